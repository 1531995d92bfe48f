//! Letters in numbers: filters, groups, changes by hand, and what consumers say.

use backstop_core::ledger::{
    Change, Edit, HeaderFilter, Ledger, Letter, LetterFilter, LetterStatus, Outcome, StatusCounts,
};
use backstop_core::report_in::{ConsumerState, KEPT};
use backstop_core::{ConsumerReport, FaultKind, MessageKey, Receipt, ReceiptOutcome};
use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};

use super::StoreHarness;
use super::ledger::{found, letter, record, with_status};

/// A time in 2026, in seconds.
fn at(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_780_000_000 + seconds, 0).expect("a time")
}

fn text(text: &str) -> Option<String> {
    Some(text.to_owned())
}

fn all() -> LetterFilter {
    LetterFilter::default()
}

fn receipt(letter: &Letter, named: bool, outcome: ReceiptOutcome) -> Receipt {
    Receipt {
        message_key: letter.message_key.as_deref().and_then(MessageKey::parse).expect("a key"),
        letter: named.then(|| letter.id.clone()),
        consumer: letter.consumer.clone().expect("a consumer"),
        instance: "stock-1".to_owned(),
        generation: u32::try_from(letter.generation + 1).expect("small"),
        redrive: None,
        outcome,
        at: Utc::now(),
    }
}

async fn whats(ledger: &dyn Ledger, id: &str) -> Vec<String> {
    let history = ledger.history(id).await.expect("the database answers");
    history.into_iter().map(|event| event.what).collect()
}

/// Every field of a filter narrows it, and hostile values mean nothing.
pub async fn every_field_narrows<H: StoreHarness>(harness: &H) {
    let ledger = harness.ledger();
    let (mut a, mut b, c) = (letter("a"), letter("b"), letter("c"));
    (a.class, a.reason) = (text("transient"), text("exhausted"));
    a.error = text("Sold out: 17 of \"größe L\"");
    (a.dead_at, b.dead_at) = (Some(at(10)), Some(at(20)));
    b.envelope.key = Some(Bytes::from_static(b"coffee"));
    b.envelope.headers.append("Tenant", "acme");
    b.envelope.headers.append("tenant", "other");
    b.hold = text("case 7");
    b.outcome = Some(Outcome::Silent);
    b.redrive = text("job-7");
    record(&*ledger, &[a.clone(), b.clone(), c]).await;
    let header = |name: &str, value: Option<&str>| {
        let value = value.map(str::to_owned);
        LetterFilter { header: Some(HeaderFilter { name: name.to_owned(), value }), ..all() }
    };
    let error = |words: &str| LetterFilter { error: text(words), ..all() };
    let cases: Vec<(LetterFilter, &[&str])> = vec![
        (LetterFilter { class: text("transient"), ..all() }, &["a"]),
        (LetterFilter { reason: text("exhausted"), ..all() }, &["a"]),
        (LetterFilter { reason: text("exhausted"), class: text("permanent"), ..all() }, &[]),
        (LetterFilter { since: Some(at(11)), until: Some(at(21)), ..all() }, &["b"]),
        (LetterFilter { since: Some(at(10)), until: Some(at(20)), ..all() }, &["a"]),
        (
            LetterFilter { since: Some(at(10)), until: Some(at(30)), consumer: text("stock"), ..all() },
            &["a", "b"],
        ),
        (LetterFilter { key: text("coffee"), ..all() }, &["b"]),
        (LetterFilter { key: text("coff"), ..all() }, &[]),
        (LetterFilter { message_key: a.message_key.clone(), ..all() }, &["a"]),
        (header("TENANT", None), &["b"]),
        (header("tenant", Some("acme")), &["b"]),
        (header("tenant", Some("Acme")), &[]),
        (error("OUT sold"), &["a"]),
        (error("GRÖSSE größe"), &[]),
        (error("größe 17"), &["a"]),
        (error("sold in"), &[]),
        (LetterFilter { outcome: Some(Outcome::Silent), ..all() }, &["b"]),
        (LetterFilter { redrive: text("job-7"), status: Some(LetterStatus::Open), ..all() }, &["b"]),
        (LetterFilter { on_hold: Some(true), ..all() }, &["b"]),
        (LetterFilter { on_hold: Some(false), consumer: text("stock"), ..all() }, &["a", "c"]),
        (error("'; DROP TABLE backstop_letter; --"), &[]),
        (LetterFilter { key: text("' OR 1=1 --"), ..all() }, &[]),
    ];
    for (filter, expected) in cases {
        assert_eq!(found(&*ledger, &filter).await, expected, "{filter:?}");
    }
}

/// Pages of every filter are in the order of the time of death, whatever the order of collection.
pub async fn pages_are_in_the_order_of_death<H: StoreHarness>(harness: &H) {
    let ledger = harness.ledger();
    let letters: Vec<Letter> = [(30, "x"), (10, "y"), (20, "x"), (20, "y"), (5, "z")]
        .iter()
        .enumerate()
        .map(|(n, (seconds, consumer))| {
            let mut letter = letter(&n.to_string());
            (letter.dead_at, letter.consumer) = (Some(at(*seconds)), text(consumer));
            letter
        })
        .collect();
    record(&*ledger, &letters).await;
    let open = with_status(LetterStatus::Open);
    let x = LetterFilter { consumer: text("x"), ..open.clone() };
    for (filter, expected) in
        [(all(), vec!["4", "1", "2", "3", "0"]), (open, vec!["4", "1", "2", "3", "0"]), (x, vec!["2", "0"])]
    {
        let (mut seen, mut after) = (Vec::new(), None::<String>);
        loop {
            let page = ledger.list(&filter, after.as_deref(), 2).await.expect("it answers");
            let Some(last) = page.last() else { break };
            after = Some(last.id.clone());
            seen.extend(page.into_iter().map(|letter| letter.id));
        }
        assert_eq!(seen, expected, "{filter:?}");
    }
}

/// Nothing comes after a letter that was purged, which is no end of the list.
pub async fn a_page_after_a_letter_that_is_gone_is_an_error<H: StoreHarness>(harness: &H) {
    let ledger = harness.ledger();
    record(&*ledger, &["a", "b"].map(letter)).await;
    for filter in [all(), with_status(LetterStatus::Open)] {
        let error = ledger.list(&filter, Some("gone"), 2).await.expect_err("nobody knows");
        assert_eq!(error.kind(), FaultKind::Missing);
        assert!(ledger.list(&filter, Some("b"), 2).await.expect("it answers").is_empty());
    }
}

/// Groups take every letter once, whatever happens to it: their numbers add up to the count.
pub async fn groups_add_up<H: StoreHarness>(harness: &H) {
    let ledger = harness.ledger();
    let mut letters: Vec<Letter> = (0..12)
        .map(|n| {
            let mut letter = letter(&n.to_string());
            letter.fingerprint = text(["f1", "f1", "f2"][n % 3]);
            letter.class = text(["transient", "permanent"][n % 2]);
            letter.error = Some(format!("error {n}"));
            letter
        })
        .collect();
    letters[0].fingerprint = None;
    letters[0].consumer = None;
    let past = Utc::now() - TimeDelta::hours(5);
    letters[1].dead_at = Some(past);
    record(&*ledger, &letters).await;
    record(&*ledger, &letters).await;
    let ids = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect::<Vec<_>>();
    let (open, redriving) = (LetterStatus::Open, LetterStatus::Redriving);
    ledger.mark(&ids(&["1", "2", "4"]), open, redriving, "x", None).await.expect("it answers");
    ledger.mark(&ids(&["4"]), redriving, LetterStatus::Resolved, "x", None).await.expect("it answers");
    let change = Change::Discard { because: "test".to_owned() };
    ledger.change(&LetterFilter::of_ids(&ids(&["5"])), &change, 10).await.expect("it answers");
    for filter in [
        all(),
        with_status(open),
        LetterFilter { fingerprint: text("f1"), ..all() },
        LetterFilter { consumer: text("stock"), class: text("permanent"), ..with_status(redriving) },
        LetterFilter { error: text("error"), ..all() },
    ] {
        let groups = ledger.groups(&filter, 100).await.expect("it answers");
        let sum: u64 = groups.iter().map(|group| group.letters).sum();
        assert_eq!(sum, ledger.count(&filter).await.expect("it answers"), "{filter:?}");
        assert_eq!(sum, found(&*ledger, &filter).await.len() as u64, "{filter:?}");
        assert!(groups.iter().all(|group| group.by_status.sum() == group.letters), "{filter:?}");
        assert!(groups.is_sorted_by(|a, b| a.letters >= b.letters));
    }
    let old = LetterFilter { fingerprint: text("f1"), class: text("permanent"), ..all() };
    let group = ledger.groups(&old, 10).await.expect("it answers").remove(0);
    assert_eq!(group.by_status, StatusCounts { open: 3, redriving: 1, ..StatusCounts::default() });
    assert_eq!((group.letters, group.last_hour), (4, 3), "letter 1 died hours ago");
    assert_eq!(group.first_seen.timestamp_millis(), past.timestamp_millis());
    assert!(group.last_seen > past && group.error.as_deref() == Some("error 1"));
}

/// Minutes count what has died of late, of one fingerprint or of all.
pub async fn minutes_count_what_died_of_late<H: StoreHarness>(harness: &H) {
    let ledger = harness.ledger();
    assert_eq!(ledger.minutes(None).await.expect("it answers"), []);
    let mut letters: Vec<Letter> = ["1", "2", "3", "4", "5"].map(letter).into();
    let now = Utc::now();
    let times = [0, 0, 20, 20, 90].map(|minutes| now - TimeDelta::minutes(minutes));
    for (letter, at) in letters.iter_mut().zip(times) {
        (letter.dead_at, letter.fingerprint) = (Some(at), text("f1"));
    }
    letters[3].fingerprint = text("f2");
    record(&*ledger, &letters).await;
    let ids = vec!["1".to_owned()];
    ledger.mark(&ids, LetterStatus::Open, LetterStatus::Redriving, "x", None).await.expect("it answers");
    let minute = |at: DateTime<Utc>| at.timestamp() / 60;
    for (fingerprint, expected) in [(None, [2, 2]), (Some("f1"), [1, 2])] {
        let minutes = ledger.minutes(fingerprint).await.expect("it answers");
        let found: Vec<_> = minutes.iter().map(|found| (found.at, found.letters)).collect();
        let expected: Vec<_> = [times[2], times[0]].into_iter().map(minute).zip(expected).collect();
        let found: Vec<_> = found.into_iter().map(|(at, letters)| (minute(at), letters)).collect();
        assert_eq!(found, expected, "{fingerprint:?}: the one that died 90 minutes ago came too late");
    }
    assert_eq!(ledger.minutes(Some("f3")).await.expect("it answers"), []);
}

/// Letters on hold cannot be discarded; everything is told with its reason.
pub async fn a_hold_forbids_to_discard<H: StoreHarness>(harness: &H) {
    let ledger = harness.ledger();
    record(&*ledger, &[letter("a"), letter("b"), letter("c")]).await;
    let change = async |ids: &[&str], change: Change| {
        let ids: Vec<String> = ids.iter().map(|id| (*id).to_owned()).collect();
        ledger.change(&LetterFilter::of_ids(&ids), &change, 10).await.expect("it answers")
    };
    let because = || "case 7".to_owned();
    let discard = || Change::Discard { because: "not needed".to_owned() };
    assert_eq!(change(&["a"], Change::Hold { because: because() }).await, 1);
    assert_eq!(change(&["a"], Change::Hold { because: because() }).await, 0, "it is already");
    assert_eq!(change(&["a", "b"], discard()).await, 1);
    assert_eq!(change(&["a", "b"], discard()).await, 0);
    assert_eq!(found(&*ledger, &with_status(LetterStatus::Open)).await, ["a", "c"]);
    let kept = ledger.list(&LetterFilter::of_ids(&["a".to_owned()]), None, 1).await.expect("it answers");
    assert_eq!(kept[0].hold.as_deref(), Some("case 7"));
    assert_eq!(change(&["a"], Change::Release { because: "closed".to_owned() }).await, 1);
    assert_eq!(change(&["a"], discard()).await, 1);
    assert_eq!(whats(&*ledger, "a").await, ["collected", "held", "released", "discarded"]);
    let last = ledger.history("a").await.expect("it answers").pop().expect("an event");
    assert_eq!(last.detail.as_deref(), Some("not needed"));
}

/// A change takes no more than it is told to, and goes on where it stopped.
pub async fn changes_are_made_in_batches<H: StoreHarness>(harness: &H) {
    let ledger = harness.ledger();
    let letters: Vec<Letter> = (0..7).map(|n| letter(&n.to_string())).collect();
    record(&*ledger, &letters).await;
    let discard = Change::Discard { because: "test".to_owned() };
    let mut done = Vec::new();
    loop {
        let some = ledger.change(&with_status(LetterStatus::Open), &discard, 3).await.expect("it answers");
        if some == 0 {
            break;
        }
        done.push(some);
    }
    assert_eq!(done, [3, 3, 1]);
    assert_eq!(found(&*ledger, &with_status(LetterStatus::Discarded)).await.len(), 7);
}

/// A receipt resolves its letter, by its id or by its message; twice is once, and what fits no letter is ignored.
pub async fn receipts_resolve<H: StoreHarness>(harness: &H) {
    let ledger = harness.ledger();
    let letters = ["a", "b", "c", "d"].map(letter);
    record(&*ledger, &letters).await;
    let [a, b, c, d] = &letters;
    let mut stranger = receipt(a, false, ReceiptOutcome::Handled);
    stranger.consumer = "billing".to_owned();
    let mut other = receipt(a, false, ReceiptOutcome::Handled);
    other.generation = 5;
    let mut nobody = receipt(a, true, ReceiptOutcome::Handled);
    nobody.letter = text("nobody");
    let said = [
        receipt(a, true, ReceiptOutcome::Handled),
        receipt(b, false, ReceiptOutcome::AlreadyHandled),
        receipt(c, true, ReceiptOutcome::Skipped),
        receipt(d, true, ReceiptOutcome::Released),
    ];
    assert_eq!(ledger.record_outcomes(&[stranger, other, nobody]).await.expect("it answers"), 0);
    assert_eq!(ledger.record_outcomes(&[]).await.expect("it answers"), 0);
    assert_eq!(ledger.record_outcomes(&said).await.expect("it answers"), 3);
    assert_eq!(ledger.record_outcomes(&said).await.expect("it answers"), 0, "twice is once");
    assert_eq!(found(&*ledger, &with_status(LetterStatus::Resolved)).await, ["a", "b"]);
    assert_eq!(found(&*ledger, &with_status(LetterStatus::Discarded)).await, ["c"]);
    assert_eq!(found(&*ledger, &with_status(LetterStatus::Open)).await, ["d"]);
    let resolved = LetterFilter { outcome: Some(Outcome::Resolved), ..all() };
    assert_eq!(found(&*ledger, &resolved).await, ["a", "b"]);
    assert_eq!(whats(&*ledger, "a").await, ["collected", "resolved"]);
    assert_eq!(whats(&*ledger, "c").await, ["collected", "skipped"]);
    assert_eq!(whats(&*ledger, "d").await, ["collected", "key-released"]);
    let both = [receipt(d, true, ReceiptOutcome::Handled), receipt(d, false, ReceiptOutcome::AlreadyHandled)];
    assert_eq!(ledger.record_outcomes(&both).await.expect("it answers"), 1, "one letter");
    assert_eq!(whats(&*ledger, "d").await, ["collected", "key-released", "resolved"]);
}

/// A receipt of a skip discards nothing that is on hold: the history has it, and the letter stays where it was.
pub async fn a_skip_spares_what_is_on_hold<H: StoreHarness>(harness: &H) {
    let ledger = harness.ledger();
    let letters = ["a", "b", "c"].map(letter);
    record(&*ledger, &letters).await;
    let [a, b, c] = &letters;
    let hold = Change::Hold { because: "case 7".to_owned() };
    let held = LetterFilter::of_ids(&["a".to_owned(), "b".to_owned()]);
    assert_eq!(ledger.change(&held, &hold, 10).await.expect("it answers"), 2);
    let said = [
        receipt(a, true, ReceiptOutcome::Skipped),
        receipt(b, false, ReceiptOutcome::Skipped),
        receipt(c, true, ReceiptOutcome::Skipped),
    ];
    assert_eq!(ledger.record_outcomes(&said).await.expect("it answers"), 1, "c alone has changed");
    assert_eq!(ledger.record_outcomes(&said).await.expect("it answers"), 0, "twice is once");
    assert_eq!(found(&*ledger, &with_status(LetterStatus::Open)).await, ["a", "b"]);
    assert_eq!(found(&*ledger, &with_status(LetterStatus::Discarded)).await, ["c"]);
    assert_eq!(whats(&*ledger, "a").await, ["collected", "held", "skipped"]);
    assert_eq!(whats(&*ledger, "b").await, ["collected", "held", "skipped"]);
    let handled = [receipt(a, true, ReceiptOutcome::Handled)];
    assert_eq!(ledger.record_outcomes(&handled).await.expect("it answers"), 1, "a hold forbids no more");
    assert_eq!(found(&*ledger, &with_status(LetterStatus::Resolved)).await, ["a"]);
}

/// What is told of letters is in the history of those that are meant, and changes nothing.
pub async fn what_is_told_is_told_of_what_is_meant<H: StoreHarness>(harness: &H) {
    let ledger = harness.ledger();
    record(&*ledger, &["a", "b", "c"].map(letter)).await;
    let hold = Change::Hold { because: "case 7".to_owned() };
    let of = |ids: &[&str]| LetterFilter::of_ids(&ids.iter().map(|id| (*id).to_owned()).collect::<Vec<_>>());
    assert_eq!(ledger.change(&of(&["a"]), &hold, 10).await.expect("it answers"), 1);
    let free =
        LetterFilter { on_hold: Some(false), status: Some(LetterStatus::Open), ..of(&["a", "b", "nobody"]) };
    assert_eq!(ledger.tell(&free, "skip-asked", Some("by ann")).await.expect("it answers"), 1);
    assert_eq!(ledger.tell(&of(&["nobody"]), "skip-asked", None).await.expect("it answers"), 0);
    assert_eq!(ledger.tell(&of(&["a", "c"]), "looked-at", None).await.expect("it answers"), 2);
    assert_eq!(whats(&*ledger, "a").await, ["collected", "held", "looked-at"]);
    assert_eq!(whats(&*ledger, "b").await, ["collected", "skip-asked"]);
    let history = ledger.history("b").await.expect("it answers");
    assert_eq!(history[1].detail.as_deref(), Some("by ann"));
    assert_eq!(found(&*ledger, &with_status(LetterStatus::Open)).await, ["a", "b", "c"]);
}

/// Both or neither: the copy is written, and the letter is closed, if it is open and nobody holds it.
pub async fn an_edited_copy_takes_a_letters_place<H: StoreHarness>(harness: &H) {
    let ledger = harness.ledger();
    record(&*ledger, &["a", "b", "c"].map(letter)).await;
    let hold = Change::Hold { because: "case 7".to_owned() };
    let of_b = LetterFilter::of_ids(&["b".to_owned()]);
    assert_eq!(ledger.change(&of_b, &hold, 10).await.expect("it answers"), 1);
    let edit = async |id: &str, copy: &str| {
        let mut edited = letter(id);
        edited.id = copy.to_owned();
        edited.envelope.body = Some(Bytes::from_static(b"mended"));
        let edit = Edit { id: id.to_owned(), copy: edited, because: "a wrong price (by ann)".to_owned() };
        ledger.edit(&edit).await.expect("it answers")
    };
    assert!(!edit("b", "b2").await, "it is on hold");
    assert!(!edit("nobody", "n2").await, "it is not there");
    assert!(!edit("a", "c").await, "that letter is there already");
    assert_eq!(found(&*ledger, &with_status(LetterStatus::Open)).await, ["a", "b", "c"], "nothing was done");
    assert!(edit("a", "a2").await);
    assert!(!edit("a", "a3").await, "it is not open any more");
    assert_eq!(found(&*ledger, &with_status(LetterStatus::Open)).await, ["b", "c", "a2"]);
    assert_eq!(found(&*ledger, &with_status(LetterStatus::Superseded)).await, ["a"]);
    assert_eq!(whats(&*ledger, "a").await, ["collected", "edited"]);
    assert_eq!(whats(&*ledger, "a2").await, ["collected", "edit-of"]);
    let history = ledger.history("a2").await.expect("it answers");
    assert_eq!(history[1].detail.as_deref(), Some("a: a wrong price (by ann)"));
    let ids = LetterFilter::of_ids(&["a".to_owned(), "a2".to_owned()]);
    let letters = ledger.list(&ids, None, 10).await.expect("it answers");
    let bodies: Vec<_> = letters.iter().map(|letter| letter.envelope.body.as_deref()).collect();
    let was = letter("a").envelope.body;
    assert_eq!(bodies, [was.as_deref(), Some(b"mended".as_slice())], "the original stays as it was");
    let groups = ledger.groups(&all(), 10).await.expect("it answers");
    assert_eq!(groups.iter().map(|group| group.letters).sum::<u64>(), 4);
}

/// The consumer of a letter that was discarded may still be asked to let its key go: what it says is taken. A skip
/// changes nothing any more, and what its consumer knows from a skip is not taken for handled.
pub async fn a_discarded_letter_takes_receipts<H: StoreHarness>(harness: &H) {
    use ReceiptOutcome::{AlreadyHandled, Handled, Released, Skipped};
    let ledger = harness.ledger();
    let letters = ["a", "b", "c", "d", "e", "f"].map(letter);
    record(&*ledger, &letters).await;
    let [a, b, c, d, e, f] = &letters;
    let discard = Change::Discard { because: "not needed".to_owned() };
    let four = LetterFilter::of_ids(&["a", "b", "c", "d"].map(str::to_owned));
    assert_eq!(ledger.change(&four, &discard, 10).await.expect("it answers"), 4);
    let said = [
        receipt(a, true, Released),
        receipt(b, false, Skipped),
        receipt(c, true, Handled),
        receipt(d, false, AlreadyHandled),
        receipt(e, true, Skipped),
        receipt(f, true, Skipped),
        receipt(f, true, AlreadyHandled),
    ];
    assert_eq!(ledger.record_outcomes(&said).await.expect("it answers"), 4, "c, d, e and f");
    assert_eq!(ledger.record_outcomes(&said).await.expect("it answers"), 0, "twice is once");
    // A command may come twice, and the second time its consumer knows the message.
    let known = [receipt(b, true, AlreadyHandled), receipt(e, false, AlreadyHandled)];
    assert_eq!(ledger.record_outcomes(&known).await.expect("it answers"), 0);
    assert_eq!(found(&*ledger, &with_status(LetterStatus::Discarded)).await, ["a", "b", "e", "f"]);
    assert_eq!(found(&*ledger, &with_status(LetterStatus::Resolved)).await, ["c", "d"]);
    for (id, last) in [("a", "key-released"), ("b", "skipped"), ("c", "resolved"), ("d", "resolved")] {
        assert_eq!(whats(&*ledger, id).await, ["collected", "discarded", last]);
    }
    assert_eq!(whats(&*ledger, "e").await, ["collected", "skipped"]);
    let resolved = LetterFilter { outcome: Some(Outcome::Resolved), ..all() };
    assert_eq!(found(&*ledger, &resolved).await, ["c", "d"]);
}

/// The latest report of each instance is kept, and what is not known stays so.
pub async fn the_latest_report_is_kept<H: StoreHarness>(harness: &H) {
    let ledger = harness.ledger();
    let began = DateTime::from_timestamp(Utc::now().timestamp(), 0).expect("a time");
    let at = |seconds| began + TimeDelta::seconds(seconds);
    let report = |instance: &str, seconds, lag| ConsumerReport {
        consumer: "stock".to_owned(),
        instance: instance.to_owned(),
        version: None,
        state: ConsumerState::Running,
        breaker: None,
        breaker_closings: lag,
        breaker_closed_at: lag.map(|_| at(seconds)),
        lag,
        held: Some(0),
        oldest_held_seconds: None,
        inbox_retention_seconds: Some(86_400),
        at: at(seconds),
    };
    let record = async |reports: &[ConsumerReport]| {
        ledger.record_reports(reports).await.expect("it answers");
        ledger.consumers().await.expect("it answers")
    };
    assert_eq!(ledger.consumers().await.expect("it answers"), []);
    let (one, two) = (report("1", 10, None), report("2", 10, Some(7)));
    assert_eq!(record(&[two.clone(), one.clone()]).await, [one.clone(), two.clone()]);
    let (late, newer) = (report("1", 5, Some(99)), report("2", 20, Some(8)));
    assert_eq!(record(&[late, newer.clone(), two]).await, [one, newer]);
}

/// Reports of instances that are long gone are forgotten, with the next report that comes in; so are those that a clock
/// dated far ahead.
pub async fn reports_are_kept_for_a_while<H: StoreHarness>(harness: &H) {
    let ledger = harness.ledger();
    let now = ledger.time().await.expect("the database answers");
    let report = |instance: &str, at| ConsumerReport {
        at,
        ..ConsumerReport::new("stock", instance, ConsumerState::Running)
    };
    let little = TimeDelta::minutes(10);
    let mut told = vec![report("gone", now - KEPT - little), report("ahead", now + KEPT + little)];
    told.extend((0..2_500).map(|n| report(&format!("gone {n}"), now - KEPT - little)));
    let kept = [report("old", now - KEPT + little), report("young", now)];
    told.extend(kept.clone());
    ledger.record_reports(&told).await.expect("the database answers");
    // Not all at once, where there are many.
    for _ in 0..3 {
        ledger.record_reports(&kept[1..]).await.expect("the database answers");
    }
    let found = ledger.consumers().await.expect("the database answers");
    let found: Vec<_> = found.iter().map(|report| report.instance.as_str()).collect();
    assert_eq!(found, ["old", "young"]);
}
