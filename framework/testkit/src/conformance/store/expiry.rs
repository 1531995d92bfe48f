//! Letters whose time in the ledger is over.

use std::sync::Arc;

use backstop_core::ledger::{
    Change, Expiry, Ledger, Letter, LetterFilter, LetterStatus, NewRedrive, Run, Sent,
};
use chrono::{TimeDelta, Utc};

use super::StoreHarness;
use super::ledger::{found, letter, record, with_status};
use super::redrives;

/// Everything that has happened until now is before this.
fn soon(status: LetterStatus) -> Expiry {
    Expiry { status, before: Utc::now() + TimeDelta::hours(1) }
}

fn ids(ids: &[&str]) -> Vec<String> {
    ids.iter().map(|id| (*id).to_owned()).collect()
}

async fn expired(ledger: &dyn Ledger, expiry: &Expiry, after: Option<&str>, limit: u32) -> Vec<String> {
    let found = ledger.expired(expiry, after, limit).await.expect("the database answers");
    found.into_iter().map(|expired| expired.letter.id).collect()
}

async fn purge(ledger: &dyn Ledger, expiry: &Expiry, of: &[&str]) -> u64 {
    ledger.purge(expiry, &ids(of)).await.expect("the database answers")
}

async fn discard(ledger: &dyn Ledger, of: &[&str]) {
    let change = Change::Discard { because: "test".to_owned() };
    let changed = ledger.change(&LetterFilter::of_ids(&ids(of)), &change, 10).await;
    assert_eq!(changed.expect("the database answers"), of.len() as u64);
}

fn letters(of: &[&str]) -> Vec<Letter> {
    let old = Utc::now() - TimeDelta::days(100);
    let dead = |id: &&str| {
        let mut letter = letter(id);
        letter.dead_at = Some(old);
        letter.door = Some("orders.stock.redrive".to_owned());
        letter
    };
    of.iter().map(dead).collect()
}

/// Letters of another status, and those that something happened to lately, stay; the others are found in pages, with
/// their history, and are deleted with it.
pub async fn what_is_over_is_found_and_purged<H: StoreHarness>(harness: &H) {
    let ledger = harness.ledger();
    record(&*ledger, &letters(&["a", "b", "c", "d"])).await;
    discard(&*ledger, &["a", "b", "d"]).await;
    let lately = Expiry { before: Utc::now() - TimeDelta::hours(1), ..soon(LetterStatus::Discarded) };
    assert!(expired(&*ledger, &lately, None, 10).await.is_empty(), "they were discarded just now");
    assert_eq!(purge(&*ledger, &lately, &["a", "b"]).await, 0);
    let over = soon(LetterStatus::Discarded);
    assert_eq!(expired(&*ledger, &over, None, 2).await, ["a", "b"]);
    assert_eq!(expired(&*ledger, &over, Some("b"), 2).await, ["d"]);
    let full = ledger.expired(&over, None, 1).await.expect("the database answers");
    let history: Vec<&str> = full[0].history.iter().map(|event| event.what.as_str()).collect();
    assert_eq!(history, ["collected", "discarded"]);
    let now = ledger.time().await.expect("the database answers");
    assert!(full[0].history.iter().all(|event| event.at <= now), "it is the clock that dates them");
    assert_eq!(full[0].letter.envelope, letter("a").envelope);
    assert_eq!(purge(&*ledger, &over, &["a", "c", "nobody"]).await, 1, "c is open");
    assert_eq!(found(&*ledger, &LetterFilter::default()).await, ["b", "c", "d"]);
    assert!(ledger.history("a").await.expect("the database answers").is_empty());
    assert_eq!(found(&*ledger, &with_status(LetterStatus::Discarded)).await, ["b", "d"]);
    assert_eq!(record(&*ledger, &letters(&["a"])).await, 1, "it may come back");
}

/// What is under legal hold is neither found nor deleted, whoever asks.
pub async fn a_hold_forbids_to_purge<H: StoreHarness>(harness: &H) {
    let ledger = harness.ledger();
    record(&*ledger, &letters(&["a", "b"])).await;
    discard(&*ledger, &["a", "b"]).await;
    let over = soon(LetterStatus::Discarded);
    assert_eq!(expired(&*ledger, &over, None, 10).await, ["a", "b"]);
    // Between the archive and the purge.
    let hold = Change::Hold { because: "case 7".to_owned() };
    let held = ledger.change(&LetterFilter::of_ids(&ids(&["a"])), &hold, 10).await;
    assert_eq!(held.expect("the database answers"), 1);
    assert_eq!(purge(&*ledger, &over, &["a", "b"]).await, 1);
    assert_eq!(expired(&*ledger, &over, None, 10).await, [""; 0]);
    assert_eq!(found(&*ledger, &LetterFilter::default()).await, ["a"]);
}

/// Letters of a redrive that goes on stay; those of one that is over go, and what it counted stays.
pub async fn a_purge_leaves_redrives_alone<H: StoreHarness>(harness: &H) {
    let ledger: Arc<dyn Ledger> = harness.ledger();
    record(&*ledger, &letters(&["a", "b"])).await;
    let new = NewRedrive { brake: 1.0, ..redrives::new("job") };
    let redrive = ledger.create_redrive(&new).await.expect("the database answers");
    let lease = redrives::lease(&ledger, "me").await;
    redrives::claim(&ledger, &lease, "job", 1).await;
    let sent = [("a".to_owned(), Sent::Confirmed)];
    ledger.settle_letters("job", &sent).await.expect("the database answers");
    discard(&*ledger, &["a", "b"]).await;
    let over = soon(LetterStatus::Discarded);
    assert_eq!(purge(&*ledger, &over, &["a", "b"]).await, 0, "the redrive goes on");
    let cancelled = backstop_core::ledger::Standing { run: Run::Cancelled, ..redrive.standing.clone() };
    let steered = ledger.steer_redrive("job", &redrive.standing, &cancelled).await;
    assert!(steered.expect("the database answers"));
    let before = ledger.redrive("job").await.expect("the database answers").expect("it is there");
    assert_eq!(purge(&*ledger, &over, &["a", "b"]).await, 2);
    let after = ledger.redrive("job").await.expect("the database answers").expect("it is there");
    assert_eq!(after.letters(), before.letters());
}
