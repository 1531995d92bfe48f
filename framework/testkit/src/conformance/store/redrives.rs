//! Redrives: frozen letters, one sender, and every outcome in one place.

use std::sync::Arc;
use std::time::Duration;

use backstop_core::lease::Lease;
use backstop_core::ledger::{
    BEHIND_REFUSED, Change, Guard, Ledger, Letter, LetterFilter, LetterStatus, NewRedrive, Outcome, Phase,
    Redrive, Run, Sent, Standing, Step, Tally, Verdict,
};
use backstop_core::{FaultKind, MessageKey, Receipt, ReceiptOutcome};
use bytes::Bytes;
use chrono::{TimeDelta, Utc};

use super::StoreHarness;
use super::ledger::{found, letter, record, with_status};

type AnyLedger = Arc<dyn Ledger>;

/// A letter that can be redriven.
fn dead(id: &str) -> Letter {
    let mut letter = letter(id);
    letter.door = Some("orders.stock.redrive".to_owned());
    letter.reason = Some("exhausted".to_owned());
    letter
}

fn dead_many(many: usize) -> Vec<Letter> {
    (0..many).map(|n| dead(&format!("{n:03}"))).collect()
}

pub(super) fn new(id: &str) -> NewRedrive {
    NewRedrive {
        id: id.to_owned(),
        filter: with_status(LetterStatus::Open),
        guard: Guard::default(),
        limit: None,
        canary: 0,
        rate: None,
        brake: 0.2,
        silent_after: Duration::from_secs(600),
        created_by: "ann".to_owned(),
        because: Some("mended".to_owned()),
    }
}

async fn create(ledger: &AnyLedger, new: &NewRedrive) -> Redrive {
    ledger.create_redrive(new).await.expect("the database answers")
}

async fn read(ledger: &AnyLedger, id: &str) -> Redrive {
    ledger.redrive(id).await.expect("the database answers").expect("it is there")
}

pub(super) async fn lease(ledger: &AnyLedger, owner: &str) -> Lease {
    let lease = ledger.acquire("redrive", owner, Duration::from_secs(60)).await;
    lease.expect("the database answers").expect("nobody else has it")
}

pub(super) async fn claim(ledger: &AnyLedger, lease: &Lease, id: &str, limit: u32) -> Vec<String> {
    let letters = ledger.claim_letters(lease, id, limit).await.expect("the database answers");
    let letters = letters.expect("the lease stands");
    for letter in &letters {
        assert_eq!((letter.status, letter.outcome), (LetterStatus::Redriving, Some(Outcome::Waiting)));
    }
    letters.into_iter().map(|letter| letter.id).collect()
}

async fn settle(ledger: &AnyLedger, id: &str, letters: &[String], sent: &Sent) {
    let settled: Vec<_> = letters.iter().map(|letter| (letter.clone(), sent.clone())).collect();
    ledger.settle_letters(id, &settled).await.expect("the database answers");
}

fn handled(letter: &Letter) -> Receipt {
    Receipt {
        message_key: letter.message_key.as_deref().and_then(MessageKey::parse).expect("a key"),
        letter: Some(letter.id.clone()),
        consumer: "stock".to_owned(),
        instance: "stock-1".to_owned(),
        generation: 1,
        redrive: None,
        outcome: ReceiptOutcome::Handled,
        at: Utc::now(),
    }
}

fn tally(steps: &[(Step, u64)]) -> Tally {
    let mut tally = Tally::default();
    steps.iter().for_each(|(step, letters)| tally.add(*step, *letters));
    tally
}

/// The plan takes every letter that is meant once, and says what speaks against some.
pub async fn a_plan_adds_up<H: StoreHarness>(harness: &H) {
    let ledger = harness.ledger();
    let mut letters = dead_many(8);
    letters[1].door = None;
    letters[2].generation = 5;
    letters[3].first_failed_at = Some(Utc::now() - TimeDelta::days(40));
    letters[4].door = None;
    letters[4].place = Some("invoices".to_owned());
    letters[5].door = Some("payments".to_owned());
    record(&*ledger, &letters).await;
    let guard = Guard {
        not_before: Some(Utc::now() - TimeDelta::days(30)),
        foreign: vec!["invoices".to_owned()],
        ..Guard::default()
    };
    let filter = with_status(LetterStatus::Open);
    let groups = ledger.plan_redrive(&filter, &guard, u64::MAX).await.expect("the database answers");
    let of = |verdict| -> u64 {
        groups.iter().filter(|group| group.verdict == verdict).map(|group| group.letters).sum()
    };
    assert_eq!(groups.iter().map(|group| group.letters).sum::<u64>(), 8);
    assert_eq!(
        [Verdict::Send, Verdict::NoTarget, Verdict::Looped, Verdict::TooOld].map(of),
        [4, 2, 1, 1],
        "{groups:?}"
    );
    let first = ledger.plan_redrive(&filter, &guard, 3).await.expect("the database answers");
    assert_eq!(first.iter().map(|group| group.letters).sum::<u64>(), 3, "no more are judged: {first:?}");
    let foreign: Vec<_> = groups.iter().filter(|group| group.foreign).collect();
    assert_eq!(foreign.len(), 1);
    assert_eq!((foreign[0].target.as_deref(), foreign[0].letters), (Some("invoices"), 1));
    let made = create(&ledger, &NewRedrive { guard, ..new("r") }).await;
    assert_eq!(made.letters(), tally(&[(Step::Pending, 4)]), "what the plan said is what is made");
}

/// What fails after the redrive was made is not in it, and making it twice is making it once.
pub async fn the_letters_are_frozen<H: StoreHarness>(harness: &H) {
    let ledger = harness.ledger();
    record(&*ledger, &dead_many(3)).await;
    let made = create(&ledger, &NewRedrive { canary: 2, ..new("r") }).await;
    assert_eq!(made.plan, NewRedrive { canary: 2, ..new("r") });
    assert_eq!((made.standing.run, made.standing.phase), (Run::Running, Phase::Canary));
    record(&*ledger, &[dead("later")]).await;
    let again = create(&ledger, &NewRedrive { canary: 1, ..new("r") }).await;
    assert_eq!(again, made, "the first one stays");
    assert_eq!(made.canary_letters, tally(&[(Step::Pending, 2)]));
    assert_eq!(made.other_letters, tally(&[(Step::Pending, 1)]));
    let limited = create(&ledger, &NewRedrive { limit: Some(2), ..new("s") }).await;
    assert_eq!(limited.letters().sum(), 2);
    let refused = NewRedrive { filter: with_status(LetterStatus::Resolved), ..new("t") };
    let refused = ledger.create_redrive(&refused).await.expect_err("nobody redrives what is resolved");
    assert_eq!(refused.kind(), FaultKind::Invalid);
    let ids = |page: Vec<Redrive>| page.into_iter().map(|redrive| redrive.plan.id).collect::<Vec<_>>();
    assert_eq!(ids(ledger.redrives(None, 10).await.expect("it answers")), ["s", "r"]);
    assert_eq!(ids(ledger.redrives(Some("s"), 10).await.expect("it answers")), ["r"]);
    assert_eq!(ids(ledger.running_redrives().await.expect("it answers")), ["r", "s"]);
    assert!(ledger.redrive("nobody").await.expect("it answers").is_none());
}

/// Letters are taken in the ledger's order, each by one, the canary's first; what somebody else took is left out.
pub async fn letters_are_claimed_in_order<H: StoreHarness>(harness: &H) {
    let ledger = harness.ledger();
    record(&*ledger, &dead_many(6)).await;
    create(&ledger, &NewRedrive { canary: 2, ..new("r") }).await;
    create(&ledger, &new("rival")).await;
    let lease = lease(&ledger, "engine").await;
    assert_eq!(claim(&ledger, &lease, "r", 10).await, ["000", "001"], "the canary only");
    assert_eq!(claim(&ledger, &lease, "r", 10).await, [""; 0]);
    assert_eq!(claim(&ledger, &lease, "rival", 3).await, ["002"], "three, of which two are taken");
    let standing = read(&ledger, "r").await.standing;
    let sending = Standing { phase: Phase::Sending, ..standing.clone() };
    assert!(ledger.steer_redrive("r", &standing, &sending).await.expect("it answers"));
    assert!(!ledger.steer_redrive("r", &standing, &sending).await.expect("it answers"), "it moved meanwhile");
    assert_eq!(claim(&ledger, &lease, "r", 2).await, ["003"]);
    assert_eq!(claim(&ledger, &lease, "r", 2).await, ["004", "005"]);
    let redrive = read(&ledger, "r").await;
    assert_eq!(redrive.canary_letters, tally(&[(Step::Sending, 2)]));
    assert_eq!(redrive.other_letters, tally(&[(Step::Sending, 3), (Step::Dropped, 1)]));
    let in_flight = ledger.letters_in_flight("r").await.expect("it answers");
    let in_flight: Vec<_> = in_flight.iter().map(|letter| letter.id.as_str()).collect();
    assert_eq!(in_flight, ["000", "001", "003", "004", "005"]);
    let sent = LetterFilter { redrive: Some("r".to_owned()), ..LetterFilter::default() };
    assert_eq!(found(&*ledger, &sent).await.len(), 5);
}

/// An engine that has lost its lease takes nothing, and a redrive that does not run gives nothing.
pub async fn a_stale_engine_takes_nothing<H: StoreHarness>(harness: &H) {
    let ledger = harness.ledger();
    record(&*ledger, &dead_many(2)).await;
    let made = create(&ledger, &new("r")).await;
    let old = lease(&ledger, "old").await;
    ledger.release(&old).await.expect("it answers");
    let current = lease(&ledger, "new").await;
    assert!(ledger.claim_letters(&old, "r", 10).await.expect("it answers").is_none());
    let paused = made.paused("lunch").expect("it runs");
    assert!(ledger.steer_redrive("r", &made.standing, &paused).await.expect("it answers"));
    assert_eq!(read(&ledger, "r").await.standing, paused);
    assert_eq!(claim(&ledger, &current, "r", 10).await, [""; 0]);
    assert!(ledger.running_redrives().await.expect("it answers").is_empty());
    let resumed = read(&ledger, "r").await.resumed().expect("it is paused");
    assert!(ledger.steer_redrive("r", &paused, &resumed).await.expect("it answers"));
    assert_eq!(claim(&ledger, &current, "r", 10).await.len(), 2);
    assert_eq!(found(&*ledger, &with_status(LetterStatus::Redriving)).await.len(), 2);
}

/// What became of each letter is counted where it stands; what was not sent is open again, with all behind a refused one.
pub async fn letters_are_settled<H: StoreHarness>(harness: &H) {
    let ledger = harness.ledger();
    let mut letters = dead_many(8);
    for (n, letter) in letters.iter_mut().enumerate() {
        letter.envelope.key = Some(Bytes::from(["a", "b"][n % 2]));
    }
    record(&*ledger, &letters).await;
    create(&ledger, &new("r")).await;
    let lease = lease(&ledger, "engine").await;
    let claimed = claim(&ledger, &lease, "r", 4).await;
    settle(&ledger, "r", &claimed[..1], &Sent::Confirmed).await;
    settle(&ledger, "r", &claimed[1..2], &Sent::Refused("too large".to_owned())).await;
    settle(&ledger, "r", &claimed[2..3], &Sent::Unanswered).await;
    settle(&ledger, "r", &claimed[3..], &Sent::NotTried).await;
    settle(&ledger, "r", &["nobody".to_owned()], &Sent::Confirmed).await;
    let expected = [(Step::Pending, 3), (Step::Waiting, 1), (Step::Unknown, 1), (Step::Refused, 3)];
    assert_eq!(read(&ledger, "r").await.letters(), tally(&expected), "005 and 007 are behind 001");
    assert_eq!(found(&*ledger, &with_status(LetterStatus::Redriving)).await, ["000", "002"]);
    let unknown = LetterFilter { outcome: Some(Outcome::Unknown), ..LetterFilter::default() };
    assert_eq!(found(&*ledger, &unknown).await, ["002"]);
    for (letter, why) in [("001", "too large"), ("005", BEHIND_REFUSED), ("007", BEHIND_REFUSED)] {
        let history = ledger.history(letter).await.expect("it answers");
        let last = history.last().expect("an event");
        assert_eq!((last.what.as_str(), last.detail.as_deref()), ("redrive-failed", Some(why)), "{letter}");
    }
}

/// Outcomes find their letters wherever they stand, before the sending is written down and after silence, and are final.
pub async fn outcomes_reach_the_redrive<H: StoreHarness>(harness: &H) {
    let ledger = harness.ledger();
    let letters = dead_many(5);
    record(&*ledger, &letters).await;
    create(&ledger, &NewRedrive { silent_after: Duration::from_millis(100), ..new("r") }).await;
    let lease = lease(&ledger, "engine").await;
    let claimed = claim(&ledger, &lease, "r", 10).await;
    let of = |outcome| LetterFilter { outcome: Some(outcome), ..LetterFilter::default() };
    assert_eq!(found(&*ledger, &of(Outcome::Waiting)).await, claimed, "from when it may be on its way");
    // The receipt is quicker than the engine.
    ledger.record_outcomes(&[handled(&letters[0])]).await.expect("it answers");
    settle(&ledger, "r", &claimed, &Sent::Confirmed).await;
    let waiting = tally(&[(Step::Waiting, 4), (Step::Resolved, 1)]);
    assert_eq!(read(&ledger, "r").await.letters(), waiting);
    let mut again = dead("again");
    (again.message_key, again.generation) = (letters[1].message_key.clone(), 1);
    record(&*ledger, &[again]).await;
    let discard = Change::Discard { because: "not needed".to_owned() };
    ledger.change(&LetterFilter::of_ids(&claimed[2..3]), &discard, 1).await.expect("it answers");
    let mut silent = 0;
    // They may fall silent one after the other: each has its own time.
    while silent < 2 {
        tokio::time::sleep(Duration::from_millis(10)).await;
        silent += ledger.fall_silent().await.expect("it answers");
    }
    assert_eq!(silent, 2);
    let expected = [(Step::Resolved, 1), (Step::FailedAgain, 1), (Step::Dropped, 1), (Step::Silent, 2)];
    assert_eq!(read(&ledger, "r").await.letters(), tally(&expected));
    assert_eq!(found(&*ledger, &of(Outcome::Silent)).await, ["003", "004"]);
    assert_eq!(found(&*ledger, &of(Outcome::FailedAgain)).await, ["001"]);
    ledger.record_outcomes(&[handled(&letters[4])]).await.expect("it answers");
    let expected = [(Step::Resolved, 2), (Step::FailedAgain, 1), (Step::Dropped, 1), (Step::Silent, 1)];
    assert_eq!(read(&ledger, "r").await.letters(), tally(&expected), "late is better than never");
}

/// A redrive that ends leaves nothing in flight: what was being sent waits for its outcome, or for silence, and what its
/// engine knows of it afterwards still counts. A pause leaves it in flight.
pub async fn what_is_being_sent_outlives_its_redrive<H: StoreHarness>(harness: &H) {
    let ledger = harness.ledger();
    let mut letters = dead_many(7);
    letters.iter_mut().for_each(|letter| letter.envelope.key = None);
    record(&*ledger, &letters).await;
    let made = create(&ledger, &NewRedrive { silent_after: Duration::from_millis(100), ..new("r") }).await;
    let lease = lease(&ledger, "engine").await;
    let claimed = claim(&ledger, &lease, "r", 6).await;
    let paused = made.paused("the broker is away").expect("it runs");
    assert!(ledger.steer_redrive("r", &made.standing, &paused).await.expect("it answers"));
    assert_eq!(ledger.letters_in_flight("r").await.expect("it answers").len(), 6, "a pause ends nothing");
    let cancelled = made.cancelled(Some("enough".to_owned())).expect("it is not over");
    assert!(ledger.steer_redrive("r", &paused, &cancelled).await.expect("it answers"));
    assert!(ledger.letters_in_flight("r").await.expect("it answers").is_empty());
    let expected = tally(&[(Step::Pending, 1), (Step::Waiting, 6)]);
    assert_eq!(read(&ledger, "r").await.letters(), expected);
    assert_eq!(found(&*ledger, &with_status(LetterStatus::Open)).await, ["006"]);
    let of = |outcome| LetterFilter { outcome: Some(outcome), ..LetterFilter::default() };
    assert_eq!(found(&*ledger, &of(Outcome::Waiting)).await, claimed);
    let history = ledger.history("000").await.expect("it answers");
    assert_eq!(history.last().map(|event| event.what.as_str()), Some("perhaps-redriven"));

    ledger.record_outcomes(&[handled(&letters[0])]).await.expect("it answers");
    let mut again = dead("again");
    (again.message_key, again.generation) = (letters[1].message_key.clone(), 1);
    record(&*ledger, &[again]).await;
    settle(&ledger, "r", &claimed[2..3], &Sent::NotTried).await;
    settle(&ledger, "r", &claimed[3..4], &Sent::Refused("too large".to_owned())).await;
    settle(&ledger, "r", &claimed[4..5], &Sent::Unanswered).await;
    assert_eq!(found(&*ledger, &with_status(LetterStatus::Open)).await, ["002", "003", "006", "again"]);
    while ledger.fall_silent().await.expect("it answers") == 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let expected = [
        (Step::Pending, 2),
        (Step::Resolved, 1),
        (Step::FailedAgain, 1),
        (Step::Refused, 1),
        (Step::Unknown, 1),
        (Step::Silent, 1),
    ];
    assert_eq!(read(&ledger, "r").await.letters(), tally(&expected));
    assert_eq!(found(&*ledger, &of(Outcome::Silent)).await, ["005"]);
}

/// What an earlier redrive learns of a letter is not what a later one waits for.
pub async fn a_letter_stands_as_its_last_redrive_says<H: StoreHarness>(harness: &H) {
    let ledger = harness.ledger();
    record(&*ledger, &dead_many(4)).await;
    let first =
        create(&ledger, &NewRedrive { silent_after: Duration::from_millis(100), ..new("first") }).await;
    let lease = lease(&ledger, "engine").await;
    let claimed = claim(&ledger, &lease, "first", 4).await;
    settle(&ledger, "first", &claimed[..2], &Sent::Confirmed).await;
    let cancelled = first.cancelled(Some("enough".to_owned())).expect("it is not over");
    assert!(ledger.steer_redrive("first", &first.standing, &cancelled).await.expect("it answers"));
    let again = NewRedrive { filter: with_status(LetterStatus::Redriving), ..new("again") };
    create(&ledger, &again).await;
    assert_eq!(claim(&ledger, &lease, "again", 4).await, claimed);
    settle(&ledger, "first", &claimed[2..3], &Sent::NotTried).await;
    settle(&ledger, "first", &claimed[3..], &Sent::Unanswered).await;
    let mut silent = 0;
    while silent < 2 {
        tokio::time::sleep(Duration::from_millis(10)).await;
        silent += ledger.fall_silent().await.expect("it answers");
    }
    let expected = [(Step::Pending, 1), (Step::Unknown, 1), (Step::Silent, 2)];
    assert_eq!(read(&ledger, "first").await.letters(), tally(&expected));
    let waiting = LetterFilter { outcome: Some(Outcome::Waiting), ..with_status(LetterStatus::Redriving) };
    assert_eq!(found(&*ledger, &waiting).await, claimed);
    settle(&ledger, "again", &claimed[..1], &Sent::NotTried).await;
    let silent = LetterFilter { outcome: Some(Outcome::Silent), ..with_status(LetterStatus::Redriving) };
    assert_eq!(found(&*ledger, &silent).await, claimed[..1], "the last that has sent it");
}

/// A letter that was surely not sent waits for no outcome, although its redrive ended while it was being sent. Where an
/// earlier redrive had sent it, that one's outcome is the letter's again.
pub async fn what_was_not_sent_waits_for_nothing<H: StoreHarness>(harness: &H) {
    let ledger = harness.ledger();
    let mut letters = dead_many(3);
    letters.iter_mut().for_each(|letter| letter.envelope.key = None);
    record(&*ledger, &letters).await;
    let lease = lease(&ledger, "engine").await;
    let of = |outcome| LetterFilter { outcome: Some(outcome), ..LetterFilter::default() };
    let cancel = async |made: Redrive| {
        let cancelled = made.cancelled(Some("enough".to_owned())).expect("it is not over");
        assert!(ledger.steer_redrive(&made.plan.id, &made.standing, &cancelled).await.expect("it answers"));
    };
    let made = create(&ledger, &new("r")).await;
    let claimed = claim(&ledger, &lease, "r", 10).await;
    cancel(made).await;
    assert_eq!(found(&*ledger, &of(Outcome::Waiting)).await, claimed, "perhaps sent");
    settle(&ledger, "r", &claimed[..1], &Sent::NotTried).await;
    settle(&ledger, "r", &claimed[1..2], &Sent::Refused("too large".to_owned())).await;
    settle(&ledger, "r", &claimed[2..], &Sent::Unanswered).await;
    assert_eq!(found(&*ledger, &with_status(LetterStatus::Open)).await, ["000", "001"]);
    assert_eq!(found(&*ledger, &of(Outcome::Waiting)).await, [""; 0]);

    let filter = with_status(LetterStatus::Redriving);
    let made = create(&ledger, &NewRedrive { filter, ..new("s") }).await;
    assert_eq!(claim(&ledger, &lease, "s", 10).await, ["002"]);
    cancel(made).await;
    assert_eq!(found(&*ledger, &of(Outcome::Waiting)).await, ["002"]);
    settle(&ledger, "s", &claimed[2..], &Sent::NotTried).await;
    assert_eq!(found(&*ledger, &of(Outcome::Waiting)).await, [""; 0]);
    assert_eq!(found(&*ledger, &of(Outcome::Unknown)).await, ["002"], "as the first redrive left it");
}

/// The rate can be changed until the redrive is over.
pub async fn the_rate_changes_while_it_runs<H: StoreHarness>(harness: &H) {
    let ledger = harness.ledger();
    record(&*ledger, &dead_many(1)).await;
    let made = create(&ledger, &NewRedrive { rate: Some(10.5), ..new("r") }).await;
    assert_eq!(made.plan.rate, Some(10.5));
    assert!(ledger.set_redrive_rate("r", Some(2_000.0)).await.expect("it answers"));
    assert_eq!(read(&ledger, "r").await.plan.rate, Some(2_000.0));
    let cancelled = made.cancelled(Some("enough".to_owned())).expect("it runs");
    assert!(ledger.steer_redrive("r", &made.standing, &cancelled).await.expect("it answers"));
    assert!(!ledger.set_redrive_rate("r", None).await.expect("it answers"));
    assert!(!ledger.set_redrive_rate("nobody", None).await.expect("it answers"));
}

/// Of several engines that claim at once under one lease, each letter goes to one.
pub async fn claims_at_once_share<H: StoreHarness>(harness: &H) {
    let ledger = harness.ledger();
    record(&*ledger, &dead_many(40)).await;
    create(&ledger, &new("r")).await;
    let lease = lease(&ledger, "engine").await;
    let ledgers: Vec<AnyLedger> = (0..4).map(|_| harness.ledger()).collect();
    let claims = ledgers.iter().map(|ledger| claim(ledger, &lease, "r", 20));
    let mut taken: Vec<String> = futures_util::future::join_all(claims).await.concat();
    taken.sort();
    let once = taken.len();
    taken.dedup();
    assert_eq!(taken.len(), once, "no letter is taken twice");
    let letters = read(&ledger, "r").await.letters();
    assert_eq!((letters.sending, letters.sum()), (once as u64, 40), "{letters:?}");
}
