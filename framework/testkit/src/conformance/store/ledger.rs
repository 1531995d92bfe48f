//! The ledger: every letter once, found again, moved by one hand.

use std::time::Duration;

use backstop_core::ledger::{Ledger, Letter, LetterFilter, LetterStatus, NewBody};
use backstop_core::{Envelope, Headers, MessageKey};
use bytes::Bytes;
use chrono::{DateTime, Utc};

use super::StoreHarness;

pub(super) fn letter(id: &str) -> Letter {
    let headers: Headers = [("ce_id", Some(id.to_owned()))].into_iter().collect();
    let envelope =
        Envelope { key: Some(Bytes::from_static(b"tea")), headers, body: Some(Bytes::from_static(b"{}")) };
    let mut letter = Letter::new(id, "orders.stock.dlq", envelope);
    letter.consumer = Some("stock".to_owned());
    letter.place = Some("orders".to_owned());
    letter.fingerprint = Some("f1".to_owned());
    letter.message_key = Some(MessageKey::new("/orders", id.as_bytes()).to_string());
    letter
}

pub(super) async fn record(ledger: &dyn Ledger, letters: &[Letter]) -> u64 {
    ledger.record(letters).await.expect("the database answers")
}

async fn list(ledger: &dyn Ledger, filter: &LetterFilter) -> Vec<Letter> {
    ledger.list(filter, None, 100).await.expect("the database answers")
}

pub(super) async fn found(ledger: &dyn Ledger, filter: &LetterFilter) -> Vec<String> {
    let letters = list(ledger, filter).await;
    let count = ledger.count(filter).await.expect("the database answers");
    assert_eq!(count, letters.len() as u64, "count and list disagree about {filter:?}");
    letters.into_iter().map(|letter| letter.id).collect()
}

async fn redriving(ledger: &dyn Ledger, ids: &[String]) -> Vec<String> {
    let (from, to) = (LetterStatus::Open, LetterStatus::Redriving);
    ledger.mark(ids, from, to, "redriven", Some("job 7")).await.expect("the database answers")
}

pub(super) fn with_status(status: LetterStatus) -> LetterFilter {
    LetterFilter { status: Some(status), ..LetterFilter::default() }
}

/// Recording a letter twice, as after a crash before settling, is one letter; the first one stays.
pub async fn record_twice_is_once<H: StoreHarness>(harness: &H) {
    let ledger = harness.ledger();
    assert_eq!(record(&*ledger, &[letter("a"), letter("b")]).await, 2);
    let mut changed = letter("a");
    changed.reason = Some("other".to_owned());
    assert_eq!(record(&*harness.ledger(), &[changed, letter("c")]).await, 1);
    assert_eq!(found(&*ledger, &LetterFilter::default()).await, ["a", "b", "c"]);
    assert_eq!(list(&*ledger, &LetterFilter::default()).await[0].reason, None);
    assert_eq!(record(&*ledger, &[]).await, 0);
}

/// A letter that occurs twice in one batch is one letter.
pub async fn twice_in_one_batch_is_once<H: StoreHarness>(harness: &H) {
    let ledger = harness.ledger();
    assert_eq!(record(&*ledger, &[letter("a"), letter("a")]).await, 1);
    assert_eq!(found(&*ledger, &LetterFilter::default()).await, ["a"]);
}

/// Every field of a letter comes back.
pub async fn a_letter_survives<H: StoreHarness>(harness: &H) {
    let ledger = harness.ledger();
    let time = |text: &str| text.parse::<DateTime<Utc>>().ok();
    let mut sent = letter("full");
    sent.door = Some("orders.stock.redrive".to_owned());
    sent.reason = Some("exhausted".to_owned());
    sent.class = Some("transient".to_owned());
    sent.error_type = Some("stock::Missing".to_owned());
    sent.error = Some("it's \"gone\" \\ 🍵".to_owned());
    sent.attempts = Some(6);
    sent.generation = 2;
    sent.first_failed_at = time("2026-11-01T10:00:00.123Z");
    sent.dead_at = time("2026-11-01T10:01:00.456Z");
    sent.collected_at = time("2026-11-01T10:02:00Z").expect("a time");
    assert_eq!(record(&*ledger, std::slice::from_ref(&sent)).await, 1);
    let mut letters = list(&*ledger, &LetterFilter::default()).await;
    // The database may take its own clock for this one.
    letters[0].collected_at = sent.collected_at;
    assert_eq!(letters, [sent]);
}

/// A letter of a stranger, of which nothing is known, comes back with nothing made up.
pub async fn a_bare_letter_survives<H: StoreHarness>(harness: &H) {
    let ledger = harness.ledger();
    let sent = Letter::new("bare", "somewhere", Envelope::default());
    assert_eq!(record(&*ledger, std::slice::from_ref(&sent)).await, 1);
    let mut letters = list(&*ledger, &LetterFilter::default()).await;
    letters[0].collected_at = sent.collected_at;
    assert_eq!(letters, [sent]);
}

/// The envelope is kept to the letter: null and repeated headers, bytes that are no text, tombstones.
pub async fn an_odd_envelope_survives<H: StoreHarness>(harness: &H) {
    let ledger = harness.ledger();
    let mut odd = letter("odd");
    odd.envelope.key = Some(Bytes::from_static(&[0, 255]));
    odd.envelope.body = None;
    odd.envelope.headers.append_null("absent");
    odd.envelope.headers.append("twice", "b");
    odd.envelope.headers.append("bytes", vec![0, 159, 255]);
    odd.envelope.headers.append("twice", "a");
    let mut empty = letter("empty");
    empty.envelope.body = Some(Bytes::new());
    let mut large = letter("large");
    large.envelope.body = Some(Bytes::from(vec![7; 1 << 20]));
    let sent = [odd, empty, large];
    assert_eq!(record(&*ledger, &sent).await, 3);
    for (letter, sent) in list(&*ledger, &LetterFilter::default()).await.iter().zip(&sent) {
        assert!(letter.envelope == sent.envelope, "the envelope of {} has changed", sent.id);
    }
}

/// A body is replaced only where it is the one that was read; nothing else of the letter changes, and its history tells
/// nothing.
pub async fn a_body_is_replaced_where_it_is_the_same<H: StoreHarness>(harness: &H) {
    let ledger = harness.ledger();
    let (mut empty, mut tombstone) = (letter("empty"), letter("tombstone"));
    empty.envelope.body = Some(Bytes::new());
    tombstone.envelope.body = None;
    record(&*ledger, &[letter("a"), letter("b"), empty, tombstone]).await;
    let before = list(&*ledger, &LetterFilter::default()).await;
    let body = |id: &str, from: &'static [u8], to: &'static [u8]| NewBody {
        id: id.to_owned(),
        from: Bytes::from_static(from),
        to: Bytes::from_static(to),
    };
    let new = [
        body("b", b"{}", &[0, 255]),
        body("empty", b"", b"full"),
        body("a", b"{ }", b"x"),
        body("tombstone", b"", b"x"),
        body("nobody", b"{}", b"x"),
    ];
    assert_eq!(ledger.replace_bodies(&new).await.expect("the database answers"), 2);
    assert_eq!(ledger.replace_bodies(&new).await.expect("the database answers"), 0, "they are others now");
    assert_eq!(ledger.replace_bodies(&[]).await.expect("the database answers"), 0);
    let mut expected = before;
    for letter in &mut expected {
        match letter.id.as_str() {
            "b" => letter.envelope.body = Some(Bytes::from_static(&[0, 255])),
            "empty" => letter.envelope.body = Some(Bytes::from_static(b"full")),
            _ => {}
        }
    }
    assert_eq!(list(&*ledger, &LetterFilter::default()).await, expected);
    assert_eq!(found(&*ledger, &with_status(LetterStatus::Open)).await.len(), 4);
    assert_eq!(ledger.history("b").await.expect("the database answers").len(), 1);
}

/// Every field of a filter narrows it, and several do so together.
pub async fn filters_narrow<H: StoreHarness>(harness: &H) {
    let ledger = harness.ledger();
    let (mut b, mut c, d) = (letter("b"), letter("c"), Letter::new("d", "x", Envelope::default()));
    b.consumer = Some("billing".to_owned());
    c.place = Some("returns".to_owned());
    c.fingerprint = Some("f2".to_owned());
    assert_eq!(record(&*ledger, &[letter("a"), b, c, d]).await, 4);
    assert_eq!(redriving(&*ledger, &["a".to_owned()]).await, ["a"]);
    let text = |text: &str| Some(text.to_owned());
    let all = LetterFilter::default;
    assert_eq!(found(&*ledger, &all()).await, ["a", "b", "c", "d"]);
    let by_ids = LetterFilter { ids: vec!["c".to_owned(), "a".to_owned(), "x".to_owned()], ..all() };
    assert_eq!(found(&*ledger, &by_ids).await, ["a", "c"]);
    assert_eq!(found(&*ledger, &LetterFilter { consumer: text("stock"), ..all() }).await, ["a", "c"]);
    assert_eq!(found(&*ledger, &LetterFilter { place: text("orders"), ..all() }).await, ["a", "b"]);
    assert_eq!(found(&*ledger, &LetterFilter { fingerprint: text("f2"), ..all() }).await, ["c"]);
    assert_eq!(found(&*ledger, &with_status(LetterStatus::Open)).await, ["b", "c", "d"]);
    let both = LetterFilter { consumer: text("stock"), ..with_status(LetterStatus::Open) };
    assert_eq!(found(&*ledger, &both).await, ["c"]);
    assert_eq!(found(&*ledger, &LetterFilter { consumer: text("' OR 1=1 --"), ..all() }).await, [""; 0]);
}

/// Pages follow each other without holes and without repeating a letter.
pub async fn pages_follow_each_other<H: StoreHarness>(harness: &H) {
    let ledger = harness.ledger();
    // Not in the order of their ids, all collected at one time.
    let names = ["7", "3", "9", "1", "5"];
    let letters: Vec<Letter> = names.iter().map(|name| letter(name)).collect();
    assert_eq!(record(&*ledger, &letters).await, 5);
    let (mut seen, mut after) = (Vec::<String>::new(), None::<String>);
    loop {
        let page = ledger.list(&LetterFilter::default(), after.as_deref(), 2).await.expect("it answers");
        let Some(last) = page.last() else { break };
        assert!(page.len() <= 2);
        after = Some(last.id.clone());
        seen.extend(page.into_iter().map(|letter| letter.id));
    }
    let whole = found(&*ledger, &LetterFilter::default()).await;
    assert_eq!(seen, whole);
    seen.sort();
    assert_eq!(seen, ["1", "3", "5", "7", "9"]);
}

/// Letters move from the stated status only, and it is told which.
pub async fn mark_moves_from_the_stated_status<H: StoreHarness>(harness: &H) {
    let ledger = harness.ledger();
    let ids: Vec<String> = ["a", "b", "c"].map(str::to_owned).to_vec();
    record(&*ledger, &[letter("a"), letter("b"), letter("c")]).await;
    assert_eq!(redriving(&*ledger, &ids[..1]).await, ["a"]);
    let mut moved = redriving(&*ledger, &ids).await;
    moved.sort();
    assert_eq!(moved, ["b", "c"], "a was moved before");
    assert_eq!(redriving(&*ledger, &["nobody".to_owned()]).await, [""; 0]);
    assert_eq!(redriving(&*ledger, &[]).await, [""; 0]);
    let (from, to) = (LetterStatus::Redriving, LetterStatus::Resolved);
    assert_eq!(ledger.mark(&ids[1..2], from, to, "resolved", None).await.expect("it answers"), ["b"]);
    assert_eq!(found(&*ledger, &with_status(LetterStatus::Redriving)).await, ["a", "c"]);
    assert_eq!(found(&*ledger, &with_status(LetterStatus::Resolved)).await, ["b"]);
}

/// Of several that move one letter at once, one does.
pub async fn one_hand_moves_a_letter<H: StoreHarness>(harness: &H) {
    let ledgers: Vec<_> = (0..6).map(|_| harness.ledger()).collect();
    record(&*ledgers[0], &[letter("a")]).await;
    let ids = ["a".to_owned()];
    let moves = ledgers.iter().map(|ledger| redriving(&**ledger, &ids));
    let moved: Vec<String> = futures_util::future::join_all(moves).await.concat();
    assert_eq!(moved, ["a"]);
    let history = ledgers[0].history("a").await.expect("the database answers");
    assert_eq!(history.iter().filter(|event| event.what == "redriven").count(), 1);
}

/// The history tells what happened, oldest first, of that letter alone.
pub async fn the_history_tells<H: StoreHarness>(harness: &H) {
    let ledger = harness.ledger();
    record(&*ledger, &[letter("a"), letter("b")]).await;
    redriving(&*ledger, &["a".to_owned()]).await;
    let (from, to) = (LetterStatus::Redriving, LetterStatus::Resolved);
    ledger.mark(&["a".to_owned()], from, to, "resolved", None).await.expect("the database answers");
    let history = ledger.history("a").await.expect("the database answers");
    let told: Vec<&str> = history.iter().map(|event| event.what.as_str()).collect();
    assert_eq!(told, ["collected", "redriven", "resolved"]);
    assert_eq!(history[1].detail.as_deref(), Some("job 7"));
    assert!(history.is_sorted_by_key(|event| event.at));
    assert_eq!(ledger.history("b").await.expect("the database answers").len(), 1);
    assert!(ledger.history("nobody").await.expect("the database answers").is_empty());
}

/// A message that was redriven and failed again has one open letter, the new one; the old one tells of it.
pub async fn failed_again_supersedes<H: StoreHarness>(harness: &H) {
    let ledger = harness.ledger();
    let (first, mut again, mut stranger) = (letter("first"), letter("again"), letter("stranger"));
    again.message_key = first.message_key.clone();
    again.generation = 1;
    stranger.message_key = first.message_key.clone();
    stranger.consumer = Some("billing".to_owned());
    record(&*ledger, &[first, stranger]).await;
    let both = ["first".to_owned(), "stranger".to_owned()];
    assert_eq!(redriving(&*ledger, &both).await.len(), 2);
    assert_eq!(record(&*ledger, std::slice::from_ref(&again)).await, 1);
    assert_eq!(record(&*ledger, &[again]).await, 0, "collected twice");
    assert_eq!(found(&*ledger, &with_status(LetterStatus::Open)).await, ["again"]);
    assert_eq!(found(&*ledger, &with_status(LetterStatus::Superseded)).await, ["first"]);
    assert_eq!(found(&*ledger, &with_status(LetterStatus::Redriving)).await, ["stranger"]);
    let history = ledger.history("first").await.expect("the database answers");
    assert_eq!(history.iter().filter(|event| event.what == "failed-again").count(), 1);
}

/// A redrive whose confirmation was lost leaves an open letter, though the message is on its way: when that fails again,
/// there is one open letter all the same.
pub async fn failed_again_after_a_lost_confirmation<H: StoreHarness>(harness: &H) {
    let ledger = harness.ledger();
    let again = |id: &str, generation| {
        let mut again = letter(id);
        again.message_key = letter("first").message_key;
        again.generation = generation;
        again
    };
    record(&*ledger, &[letter("first"), letter("another")]).await;
    let first = ["first".to_owned()];
    assert_eq!(redriving(&*ledger, &first).await, ["first"]);
    let (from, to) = (LetterStatus::Redriving, LetterStatus::Open);
    ledger.mark(&first, from, to, "redrive-failed", None).await.expect("the database answers");
    record(&*ledger, &[again("second", 1)]).await;
    assert_eq!(found(&*ledger, &with_status(LetterStatus::Open)).await, ["another", "second"]);
    assert_eq!(found(&*ledger, &with_status(LetterStatus::Superseded)).await, ["first"]);
    record(&*ledger, &[again("third", 2)]).await;
    assert_eq!(found(&*ledger, &with_status(LetterStatus::Superseded)).await, ["first", "second"]);
}

/// A letter says nothing about the redrive of a letter of its own generation or a later one.
pub async fn a_late_letter_supersedes_nothing<H: StoreHarness>(harness: &H) {
    let ledger = harness.ledger();
    let mut current = letter("current");
    current.generation = 1;
    let (mut twin, mut late) = (letter("twin"), letter("late"));
    twin.message_key = current.message_key.clone();
    twin.generation = 1;
    late.message_key = current.message_key.clone();
    record(&*ledger, &[current]).await;
    assert_eq!(redriving(&*ledger, &["current".to_owned()]).await.len(), 1);
    record(&*ledger, &[twin, late]).await;
    assert_eq!(found(&*ledger, &with_status(LetterStatus::Superseded)).await, [""; 0]);
    assert_eq!(found(&*ledger, &with_status(LetterStatus::Redriving)).await, ["current"]);
}

/// A ledger's leases are the same kind.
pub async fn the_ledger_has_leases<H: StoreHarness>(harness: &H) {
    let (ledger, other) = (harness.ledger(), harness.ledger());
    let lease =
        ledger.acquire("collector", "a", Duration::from_secs(60)).await.expect("the database answers");
    assert!(lease.is_some());
    assert_eq!(
        other.acquire("collector", "b", Duration::from_secs(60)).await.expect("the database answers"),
        None
    );
}

/// What an owner of a ledger's lease has written down is there for the next one, and nobody else writes.
pub async fn an_owner_leaves_a_note<H: StoreHarness>(harness: &H) {
    let (ledger, other) = (harness.ledger(), harness.ledger());
    let lease = ledger.acquire("notify", "a", Duration::from_secs(60)).await.expect("the database answers");
    let first = lease.expect("it is free");
    ledger.report(&first, "told: 1").await.expect("the database answers");
    ledger.release(&first).await.expect("the database answers");
    let lease = other.acquire("notify", "b", Duration::from_secs(60)).await.expect("the database answers");
    let second = lease.expect("it is free again");
    ledger.report(&first, "too late").await.expect("the database answers");
    let note = async || {
        let holder = other.holder("notify").await.expect("the database answers").expect("it is held");
        holder.report.map(|report| report.text)
    };
    assert_eq!(note().await.as_deref(), Some("told: 1"));
    other.report(&second, "told: 2").await.expect("the database answers");
    assert_eq!(note().await.as_deref(), Some("told: 2"));
}
