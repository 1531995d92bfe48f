//! Letters of messages that died, were done with, and died anew under the same id.

use std::sync::Arc;
use std::time::Duration;

use backstop_core::ledger::{
    Change, Edit, Ledger, Letter, LetterFilter, LetterStatus, NewRedrive, Outcome, Run, Sent, Standing,
};
use backstop_core::{MessageKey, Receipt, ReceiptOutcome};
use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};

use super::StoreHarness;
use super::ledger::{found, letter, record, with_status};
use super::redrives;

async fn now(ledger: &dyn Ledger) -> DateTime<Utc> {
    ledger.time().await.expect("the database answers")
}

/// Waits until the database's clock has moved on, by more than the millisecond that times are compared by.
async fn some_milliseconds(ledger: &dyn Ledger) {
    let began = now(ledger).await;
    while now(ledger).await <= began + TimeDelta::milliseconds(2) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// A letter that died just now.
async fn dead(ledger: &dyn Ledger, id: &str) -> Letter {
    let mut letter = letter(id);
    letter.door = Some("orders.stock.redrive".to_owned());
    letter.dead_at = Some(now(ledger).await);
    letter
}

/// The letter of a message that died again, later than everything that has happened, of something else.
async fn anew(ledger: &dyn Ledger, letter: &Letter) -> Letter {
    let mut anew = letter.clone();
    let at = (now(ledger).await + TimeDelta::seconds(1)).timestamp_millis();
    let after = letter.dead_at.map_or(at, |before| at.max(before.timestamp_millis() + 1));
    anew.dead_at = DateTime::from_timestamp_millis(after);
    anew.error = Some("shut down".to_owned());
    anew.fingerprint = Some("f2".to_owned());
    anew.class = Some("transient".to_owned());
    anew.attempts = Some(9);
    anew.envelope.body = Some(Bytes::from_static(b"later"));
    anew.envelope.headers.set("tenant", "acme");
    anew
}

async fn change(ledger: &dyn Ledger, id: &str, change: Change) {
    let changed = ledger.change(&LetterFilter::of_ids(&[id.to_owned()]), &change, 10).await;
    assert_eq!(changed.expect("the database answers"), 1, "{id}");
}

async fn discard(ledger: &dyn Ledger, id: &str) {
    change(ledger, id, Change::Discard { because: "not needed".to_owned() }).await;
}

fn receipt(letter: &Letter, outcome: ReceiptOutcome) -> Receipt {
    Receipt {
        message_key: letter.message_key.as_deref().and_then(MessageKey::parse).expect("a key"),
        letter: Some(letter.id.clone()),
        consumer: "stock".to_owned(),
        instance: "stock-1".to_owned(),
        generation: u32::try_from(letter.generation + 1).expect("small"),
        redrive: None,
        outcome,
        at: Utc::now(),
    }
}

async fn take(ledger: &dyn Ledger, letter: &Letter, outcome: ReceiptOutcome) {
    ledger.record_outcomes(&[receipt(letter, outcome)]).await.expect("the database answers");
}

async fn read(ledger: &dyn Ledger, id: &str) -> Letter {
    let filter = LetterFilter::of_ids(&[id.to_owned()]);
    ledger.list(&filter, None, 1).await.expect("the database answers").remove(0)
}

async fn whats(ledger: &dyn Ledger, id: &str) -> Vec<String> {
    let history = ledger.history(id).await.expect("the database answers");
    history.into_iter().map(|event| event.what).collect()
}

/// The same message with one redrive more behind it.
fn redriven(letter: &Letter, id: &str) -> Letter {
    let mut redriven = letter.clone();
    (redriven.id, redriven.generation) = (id.to_owned(), letter.generation + 1);
    redriven
}

/// The groups' numbers add up to the count, of each status as well.
async fn adds_up(ledger: &dyn Ledger) {
    use LetterStatus::{Discarded, Open, Redriving, Resolved, Superseded};
    let statuses = [Open, Redriving, Resolved, Discarded, Superseded].map(with_status);
    for filter in statuses.into_iter().chain([LetterFilter::default()]) {
        let groups = ledger.groups(&filter, 100).await.expect("the database answers");
        let sum: u64 = groups.iter().map(|group| group.letters).sum();
        assert_eq!(sum, found(ledger, &filter).await.len() as u64, "{filter:?}: {groups:?}");
        assert!(groups.iter().all(|group| group.by_status.sum() == group.letters), "{filter:?}: {groups:?}");
    }
}

/// Whatever closed a letter: it is open again, and says what the new one says.
pub async fn a_closed_letter_opens_again<H: StoreHarness>(harness: &H) {
    let ledger = harness.ledger();
    let mut letters = Vec::new();
    for id in ["discarded", "resolved", "superseded", "copy", "skipped"] {
        letters.push(dead(&*ledger, id).await);
    }
    let (copy, rest) = (letters.remove(3), letters);
    record(&*ledger, &rest).await;
    discard(&*ledger, "discarded").await;
    take(&*ledger, &rest[1], ReceiptOutcome::Handled).await;
    let edit = Edit { id: "superseded".to_owned(), copy, because: "a price".to_owned() };
    assert!(ledger.edit(&edit).await.expect("the database answers"));
    discard(&*ledger, "copy").await;
    take(&*ledger, &rest[3], ReceiptOutcome::Skipped).await;
    assert_eq!(found(&*ledger, &with_status(LetterStatus::Open)).await, [""; 0]);

    for letter in &rest {
        let before = read(&*ledger, &letter.id).await;
        let mut expected = anew(&*ledger, letter).await;
        assert_eq!(record(&*ledger, std::slice::from_ref(&expected)).await, 1, "{}", letter.id);
        expected.collected_at = before.collected_at;
        assert_eq!(read(&*ledger, &letter.id).await, expected);
        let last = ledger.history(&letter.id).await.expect("it answers").pop().expect("an event");
        let was = format!("it was {}", before.status);
        assert_eq!((last.what.as_str(), last.detail.as_deref()), ("died-again", Some(was.as_str())));
        assert_eq!(record(&*harness.ledger(), &[expected]).await, 0, "collected twice");
    }
    assert_eq!(whats(&*ledger, "discarded").await, ["collected", "discarded", "died-again"]);
    let mut open = found(&*ledger, &with_status(LetterStatus::Open)).await;
    open.sort();
    assert_eq!(open, ["discarded", "resolved", "skipped", "superseded"]);
    adds_up(&*ledger).await;
}

/// It is found by what it says now, and by nothing that it said before.
pub async fn what_died_again_is_found_anew<H: StoreHarness>(harness: &H) {
    let ledger = harness.ledger();
    let mut first = dead(&*ledger, "a").await;
    first.error = Some("sold out".to_owned());
    first.envelope.headers.set("region", "north");
    record(&*ledger, std::slice::from_ref(&first)).await;
    discard(&*ledger, "a").await;
    let mut second = anew(&*ledger, &first).await;
    second.envelope.headers.set("region", "south");
    record(&*ledger, &[second]).await;
    let text = |text: &str| Some(text.to_owned());
    let header = |value| {
        let header = backstop_core::ledger::HeaderFilter { name: "region".to_owned(), value: text(value) };
        LetterFilter { header: Some(header), ..LetterFilter::default() }
    };
    for (filter, expected) in [
        (LetterFilter { error: text("shut"), ..LetterFilter::default() }, true),
        (LetterFilter { error: text("sold"), ..LetterFilter::default() }, false),
        (header("south"), true),
        (header("north"), false),
        (LetterFilter { fingerprint: text("f2"), ..LetterFilter::default() }, true),
        (LetterFilter { fingerprint: text("f1"), ..LetterFilter::default() }, false),
        (LetterFilter { class: text("transient"), ..with_status(LetterStatus::Open) }, true),
    ] {
        assert_eq!(found(&*ledger, &filter).await.len(), usize::from(expected), "{filter:?}");
    }
}

/// A copy of the death that is closed, and a letter that does not say when it died, open nothing, however late they are
/// collected, and whatever has happened to the letter since. A later death does, in the same batch as well.
pub async fn an_old_copy_opens_nothing<H: StoreHarness>(harness: &H) {
    let ledger = harness.ledger();
    let first = dead(&*ledger, "a").await;
    record(&*ledger, std::slice::from_ref(&first)).await;
    let mut copy = first.clone();
    copy.dead_at = Some(now(&*ledger).await);
    discard(&*ledger, "a").await;
    let mut undated = first.clone();
    undated.dead_at = None;
    let mut closed = anew(&*ledger, &first).await;
    closed.status = LetterStatus::Discarded;
    assert_eq!(record(&*ledger, &[first.clone(), copy.clone(), undated.clone(), closed]).await, 0);
    assert_eq!(read(&*ledger, "a").await.status, LetterStatus::Discarded);
    assert_eq!(whats(&*ledger, "a").await, ["collected", "discarded"]);

    // What is told of it afterwards closes nothing.
    let mut second = anew(&*ledger, &first).await;
    some_milliseconds(&*ledger).await;
    second.dead_at = Some(now(&*ledger).await);
    some_milliseconds(&*ledger).await;
    change(&*ledger, "a", Change::Hold { because: "case 7".to_owned() }).await;
    let third = anew(&*ledger, &first).await;
    let batch = [copy, undated, second.clone(), third, letter("b")];
    assert_eq!(record(&*ledger, &batch).await, 2, "a, once, and b");
    let opened = read(&*ledger, "a").await;
    assert_eq!((opened.status, opened.hold.as_deref()), (LetterStatus::Open, Some("case 7")), "a hold stays");
    assert_eq!(
        opened.dead_at.map(|at| at.timestamp_millis()),
        second.dead_at.map(|at| at.timestamp_millis())
    );
    assert_eq!(whats(&*ledger, "a").await, ["collected", "discarded", "held", "died-again"]);
    adds_up(&*ledger).await;
}

/// A consumer's clock may be ahead of the ledger's: a copy of the very death that is closed opens nothing, although it says
/// that it died after the closing. Another death does, also one that a consumer dates before the first.
pub async fn a_copy_from_the_future_opens_nothing<H: StoreHarness>(harness: &H) {
    let ledger = harness.ledger();
    let mut first = dead(&*ledger, "a").await;
    let ahead = now(&*ledger).await + TimeDelta::hours(1);
    first.dead_at = Some(ahead);
    record(&*ledger, std::slice::from_ref(&first)).await;
    discard(&*ledger, "a").await;
    assert_eq!(record(&*ledger, std::slice::from_ref(&first)).await, 0, "the same death");
    // As a text of milliseconds has it.
    first.dead_at = DateTime::from_timestamp_millis(ahead.timestamp_millis());
    assert_eq!(record(&*ledger, std::slice::from_ref(&first)).await, 0, "the same death, less exactly");
    assert_eq!(read(&*ledger, "a").await.status, LetterStatus::Discarded);
    first.dead_at = Some(ahead - TimeDelta::minutes(30));
    assert_eq!(
        record(&*ledger, std::slice::from_ref(&first)).await,
        1,
        "of a consumer whose clock is less ahead"
    );
    assert_eq!(whats(&*ledger, "a").await, ["collected", "discarded", "died-again"]);
}

/// What is under legal hold is opened again, and keeps error and content: they are evidence. Its history has the later error,
/// and the later death counts in the group of that.
pub async fn a_hold_keeps_the_evidence<H: StoreHarness>(harness: &H) {
    let ledger = harness.ledger();
    let mut first = dead(&*ledger, "a").await;
    first.error = Some("sold out".to_owned());
    record(&*ledger, std::slice::from_ref(&first)).await;
    discard(&*ledger, "a").await;
    change(&*ledger, "a", Change::Hold { because: "case 7".to_owned() }).await;
    let later = anew(&*ledger, &first).await;
    let held = read(&*ledger, "a").await;
    assert_eq!(record(&*ledger, std::slice::from_ref(&later)).await, 1);
    let mut expected = held;
    (expected.status, expected.dead_at) = (LetterStatus::Open, later.dead_at);
    assert_eq!(read(&*ledger, "a").await, expected);
    let last = ledger.history("a").await.expect("it answers").pop().expect("an event");
    let told = "it was discarded; on hold, so that it stays as it was: shut down";
    assert_eq!((last.what.as_str(), last.detail.as_deref()), ("died-again", Some(told)));
    for (word, letters) in [("sold", 1), ("shut", 0)] {
        let filter = LetterFilter { error: Some(word.to_owned()), ..LetterFilter::default() };
        assert_eq!(found(&*ledger, &filter).await.len(), letters, "{word}");
    }
    for fingerprint in ["f1", "f2"] {
        let minutes = ledger.minutes(Some(fingerprint)).await.expect("the database answers");
        assert_eq!(minutes.iter().map(|minute| minute.letters).sum::<u64>(), 1, "{fingerprint}");
    }
    assert_eq!(record(&*ledger, &[later]).await, 0, "collected twice");
    adds_up(&*ledger).await;
}

/// Letters that are open, or being redriven, stay as they are.
pub async fn what_is_open_stays_as_it_is<H: StoreHarness>(harness: &H) {
    let ledger = harness.ledger();
    let letters = [dead(&*ledger, "a").await, dead(&*ledger, "b").await];
    record(&*ledger, &letters).await;
    let (open, redriving) = (LetterStatus::Open, LetterStatus::Redriving);
    ledger.mark(&["b".to_owned()], open, redriving, "redriven", None).await.expect("the database answers");
    for letter in &letters {
        let before = read(&*ledger, &letter.id).await;
        let again = anew(&*ledger, letter).await;
        assert_eq!(record(&*ledger, &[again]).await, 0, "{}", letter.id);
        assert_eq!(read(&*ledger, &letter.id).await, before);
    }
    assert_eq!(whats(&*ledger, "a").await, ["collected"]);
    assert_eq!(whats(&*ledger, "b").await, ["collected", "redriven"]);
    adds_up(&*ledger).await;
}

/// Every death counts, in its own group and minute; a group knows its first and its last.
pub async fn every_death_counts<H: StoreHarness>(harness: &H) {
    let ledger = harness.ledger();
    let began = now(&*ledger).await - TimeDelta::minutes(30);
    let mut first = dead(&*ledger, "a").await;
    first.dead_at = Some(began);
    let other = dead(&*ledger, "b").await;
    record(&*ledger, &[first.clone(), other]).await;
    discard(&*ledger, "a").await;
    let mut second = anew(&*ledger, &first).await;
    second.fingerprint = first.fingerprint.clone();
    second.class = first.class.clone();
    record(&*ledger, &[second.clone(), second.clone()]).await;
    let groups = ledger.groups(&LetterFilter::default(), 10).await.expect("the database answers");
    assert_eq!((groups.len(), groups[0].letters, groups[0].by_status.open), (1, 2, 2), "{groups:?}");
    assert_eq!(groups[0].last_hour, 3, "a twice, and b");
    let millis = |at: DateTime<Utc>| at.timestamp_millis();
    let seen = (millis(groups[0].first_seen), Some(millis(groups[0].last_seen)));
    assert_eq!(seen, (millis(began), second.dead_at.map(millis)));
    let minutes = ledger.minutes(Some("f1")).await.expect("the database answers");
    assert_eq!(minutes.iter().map(|minute| minute.letters).sum::<u64>(), 3, "{minutes:?}");
    assert_eq!((minutes[0].at.timestamp() / 60, minutes[0].letters), (began.timestamp() / 60, 1));

    discard(&*ledger, "a").await;
    let third = anew(&*ledger, &second).await;
    record(&*ledger, &[third]).await;
    let groups = ledger.groups(&LetterFilter::default(), 10).await.expect("the database answers");
    let mut numbers: Vec<_> = groups.iter().map(|group| (group.letters, group.last_hour)).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, [(1, 1), (1, 3)], "of another failure: {groups:?}");
    adds_up(&*ledger).await;
}

/// One open letter a message: where another one stands for it nothing is opened, and one that is opened closes those of
/// earlier redrives.
pub async fn one_letter_stands_for_a_message<H: StoreHarness>(harness: &H) {
    let ledger = harness.ledger();
    let first = dead(&*ledger, "first").await;
    let second = redriven(&first, "second");
    record(&*ledger, std::slice::from_ref(&first)).await;
    record(&*ledger, std::slice::from_ref(&second)).await;
    assert_eq!(whats(&*ledger, "first").await, ["collected", "failed-again"]);
    assert_eq!(record(&*ledger, &[anew(&*ledger, &first).await]).await, 0, "the second one is open");
    assert_eq!(whats(&*ledger, "first").await, ["collected", "failed-again"]);

    discard(&*ledger, "second").await;
    assert_eq!(record(&*ledger, &[anew(&*ledger, &first).await]).await, 1, "nothing stands for it now");
    assert_eq!(found(&*ledger, &with_status(LetterStatus::Open)).await, ["first"]);
    assert_eq!(record(&*ledger, &[anew(&*ledger, &second).await]).await, 1, "it was redriven once more");
    assert_eq!(found(&*ledger, &with_status(LetterStatus::Open)).await, ["second"]);
    assert_eq!(found(&*ledger, &with_status(LetterStatus::Superseded)).await, ["first"]);
    assert_eq!(whats(&*ledger, "first").await, ["collected", "failed-again", "died-again", "failed-again"]);
    let mut stranger = redriven(&first, "stranger");
    (stranger.consumer, stranger.generation) = (Some("billing".to_owned()), 0);
    record(&*ledger, std::slice::from_ref(&stranger)).await;
    discard(&*ledger, "stranger").await;
    assert_eq!(
        record(&*ledger, &[anew(&*ledger, &stranger).await]).await,
        1,
        "that one is of another consumer"
    );
    adds_up(&*ledger).await;
}

/// What died again also closes a copy of an earlier generation that came after it.
pub async fn a_copy_is_closed_by_what_opens_again<H: StoreHarness>(harness: &H) {
    let ledger = harness.ledger();
    let first = dead(&*ledger, "first").await;
    let second = redriven(&first, "second");
    record(&*ledger, std::slice::from_ref(&first)).await;
    record(&*ledger, std::slice::from_ref(&second)).await;
    discard(&*ledger, "second").await;
    assert_eq!(record(&*ledger, &[anew(&*ledger, &first).await]).await, 1, "nothing stands for it");
    let mut copy = anew(&*ledger, &first).await;
    copy.id = "copy".to_owned();
    let edit = Edit { id: "first".to_owned(), copy, because: "a price".to_owned() };
    assert!(ledger.edit(&edit).await.expect("the database answers"));
    assert_eq!(found(&*ledger, &with_status(LetterStatus::Open)).await, ["copy"]);
    assert_eq!(
        record(&*ledger, &[anew(&*ledger, &second).await]).await,
        1,
        "the copy was redriven and failed"
    );
    assert_eq!(found(&*ledger, &with_status(LetterStatus::Open)).await, ["second"]);
    assert_eq!(whats(&*ledger, "copy").await, ["collected", "edit-of", "failed-again"]);
    adds_up(&*ledger).await;
}

/// What redrives knew of a letter is over, one that has not sent it leaves it out, and their numbers stay.
pub async fn a_redrive_leaves_out_what_died_again<H: StoreHarness>(harness: &H) {
    let ledger: Arc<dyn Ledger> = harness.ledger();
    let letters = [dead(&*ledger, "a").await, dead(&*ledger, "b").await];
    record(&*ledger, &letters).await;
    let new = |id: &str| NewRedrive { brake: 1.0, ..redrives::new(id) };
    let made = ledger.create_redrive(&new("over")).await.expect("the database answers");
    ledger.create_redrive(&new("going-on")).await.expect("the database answers");
    let lease = redrives::lease(&ledger, "me").await;
    let claim = async |id: &str| redrives::claim(&ledger, &lease, id, 1).await;
    assert_eq!(claim("over").await, ["a"]);
    let sent = [("a".to_owned(), Sent::Confirmed)];
    ledger.settle_letters("over", &sent).await.expect("the database answers");
    take(&*ledger, &letters[0], ReceiptOutcome::Handled).await;
    discard(&*ledger, "b").await;
    let cancelled = Standing { run: Run::Cancelled, ..made.standing.clone() };
    assert!(ledger.steer_redrive("over", &made.standing, &cancelled).await.expect("the database answers"));
    let tally = async |id: &str| {
        let redrive = ledger.redrive(id).await.expect("the database answers");
        redrive.expect("it is there").letters()
    };
    let before = tally("over").await;
    assert_eq!((before.resolved, before.pending), (1, 1));

    for letter in &letters {
        assert_eq!(record(&*ledger, &[anew(&*ledger, letter).await]).await, 1);
    }
    let opened = read(&*ledger, "a").await;
    assert_eq!((opened.outcome, opened.redrive), (None, None));
    let resolved = LetterFilter { outcome: Some(Outcome::Resolved), ..LetterFilter::default() };
    assert_eq!(found(&*ledger, &resolved).await, [""; 0]);
    assert_eq!(tally("over").await, before, "what it counted stays true");
    assert_eq!(claim("going-on").await, [""; 0], "they died after it was made");
    let after = tally("going-on").await;
    assert_eq!((after.dropped, after.sum()), (2, 2), "{after:?}");
    assert_eq!(read(&*ledger, "b").await.status, LetterStatus::Open);
}

/// What its consumer says of the later death is told once more, although the history has it from before.
pub async fn a_later_death_has_answers_of_its_own<H: StoreHarness>(harness: &H) {
    let ledger = harness.ledger();
    let first = dead(&*ledger, "a").await;
    record(&*ledger, std::slice::from_ref(&first)).await;
    take(&*ledger, &first, ReceiptOutcome::Released).await;
    discard(&*ledger, "a").await;
    let later = anew(&*ledger, &first).await;
    record(&*ledger, std::slice::from_ref(&later)).await;
    let say = async |outcome| {
        let at = later.dead_at.expect("a time") + TimeDelta::milliseconds(1);
        let said = [Receipt { at, ..receipt(&first, outcome) }];
        ledger.record_outcomes(&said).await.expect("the database answers");
    };
    for _ in 0..2 {
        say(ReceiptOutcome::Released).await;
    }
    let told = ["collected", "key-released", "discarded", "died-again", "key-released"];
    assert_eq!(whats(&*ledger, "a").await, told);
    say(ReceiptOutcome::Skipped).await;
    assert_eq!(read(&*ledger, "a").await.status, LetterStatus::Discarded);
}

/// A receipt of before the later death, which is read once more, is no answer to that; one of the redrive that has sent the
/// letter since is, also where its consumer's clock is behind.
pub async fn a_later_death_ignores_earlier_answers<H: StoreHarness>(harness: &H) {
    let ledger = harness.ledger();
    let first = dead(&*ledger, "a").await;
    record(&*ledger, std::slice::from_ref(&first)).await;
    let named = Receipt { redrive: Some("one".to_owned()), ..receipt(&first, ReceiptOutcome::Handled) };
    let unnamed = Receipt { letter: None, redrive: None, ..named.clone() };
    let skip = Receipt { redrive: None, ..receipt(&first, ReceiptOutcome::Skipped) };
    let said = [named.clone(), unnamed, skip, receipt(&first, ReceiptOutcome::Released)];
    assert_eq!(ledger.record_outcomes(&said[..1]).await.expect("the database answers"), 1);
    record(&*ledger, &[anew(&*ledger, &first).await]).await;
    for receipt in &said {
        let took = ledger.record_outcomes(std::slice::from_ref(receipt)).await;
        assert_eq!(took.expect("the database answers"), 0, "{receipt:?}");
    }
    assert_eq!(read(&*ledger, "a").await.status, LetterStatus::Open);
    assert_eq!(whats(&*ledger, "a").await, ["collected", "resolved", "died-again"]);

    ledger.create_redrive(&redrives::new("two")).await.expect("the database answers");
    let lease = redrives::lease(&ledger, "me").await;
    assert_eq!(redrives::claim(&ledger, &lease, "two", 1).await.len(), 1);
    let current = Receipt { redrive: Some("two".to_owned()), ..named.clone() };
    let took = ledger.record_outcomes(&[named, current]).await;
    assert_eq!(took.expect("the database answers"), 1);
    assert_eq!(read(&*ledger, "a").await.status, LetterStatus::Resolved);
}

/// An edited copy takes no id that a letter has, closed or not.
pub async fn an_edit_opens_nothing<H: StoreHarness>(harness: &H) {
    let ledger = harness.ledger();
    let closed = dead(&*ledger, "closed").await;
    record(&*ledger, &[closed.clone(), letter("open")]).await;
    discard(&*ledger, "closed").await;
    let copy = anew(&*ledger, &closed).await;
    let edit = Edit { id: "open".to_owned(), copy, because: "a price".to_owned() };
    assert!(!ledger.edit(&edit).await.expect("the database answers"));
    assert_eq!(found(&*ledger, &with_status(LetterStatus::Open)).await, ["open"]);
    assert_eq!(whats(&*ledger, "closed").await, ["collected", "discarded"]);
}
