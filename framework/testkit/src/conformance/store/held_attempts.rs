//! Held messages that fail again: undo, reschedule, quarantine, and many instances at it.

use std::collections::BTreeMap;
use std::sync::Mutex;

use backstop_core::held::{ClaimedHead, Failure, HeldMessage, HeldMessages};
use backstop_core::inbox::Inbox;
use backstop_core::{DeadReason, ErrorClass};

use super::sample::*;
use super::{StoreHarness, TxOf};
use crate::conformance::needs;

/// Undo takes back effects and inbox row and keeps the claim; then the failed attempt is written.
pub async fn undo_then_reschedule<H: StoreHarness>(harness: &H) {
    let (store, message) = (harness.store(), sample("tea", "1"));
    hold(&store, &message).await;
    let mut claimed = claim(&store).await;
    harness.write_effect(&mut claimed.tx, "tea").await;
    store.undo(&mut claimed.tx).await.expect("the claim is kept");
    let tx = Some(claimed.tx);
    store.reschedule(CONSUMER, tx, &claimed.head, &failure(2, NOW)).await.expect("it is written");
    assert_eq!(harness.effects("tea").await, 0);
    assert!(!is_handled(&store, &message).await);
    let again = claim(&store).await.head;
    assert_eq!((again.attempts, again.class), (2, Some(ErrorClass::Transient)));
    assert_eq!(again.error.as_deref(), Some("attempt 2 failed"));
}

/// While a claim is undone and not given back, nobody else gets the head.
pub async fn undo_keeps_the_claim<H: StoreHarness>(harness: &H) {
    needs!(H::CAPABILITIES, concurrent_writers);
    let store = harness.store();
    hold(&store, &sample("tea", "1")).await;
    let mut claimed = claim(&store).await;
    store.undo(&mut claimed.tx).await.expect("the claim is kept");
    assert!(try_claim(&harness.store(), CONSUMER).await.is_none());
    store.undo(&mut claimed.tx).await.expect("undoing twice is harmless");
    assert!(try_claim(&harness.store(), CONSUMER).await.is_none());
    store.rollback(claimed.tx).await;
}

/// Undo mends a transaction that a failed statement has doomed.
pub async fn undo_mends_a_failed_statement<H: StoreHarness>(harness: &H) {
    let store = harness.store();
    hold(&store, &sample("tea", "1")).await;
    let mut claimed = claim(&store).await;
    harness.write_effect(&mut claimed.tx, "tea").await;
    harness.swallow_failed_statement(&mut claimed.tx).await;
    store.undo(&mut claimed.tx).await.expect("the claim is kept");
    let tx = Some(claimed.tx);
    store.reschedule(CONSUMER, tx, &claimed.head, &failure(2, NOW)).await.expect("it is written");
    assert_eq!(harness.effects("tea").await, 0);
    assert_eq!(claim(&store).await.head.attempts, 2);
}

/// Only a head that is still condemned is given up: what somebody else has changed meanwhile stays.
pub async fn a_head_that_is_not_condemned_is_not_given_up<H: StoreHarness>(harness: &H) {
    let (store, message) = (harness.store(), sample("tea", "1"));
    hold(&store, &message).await;
    let claimed = claim(&store).await;
    store.rollback(claimed.tx).await;
    let head = HeldMessage { condemned: Some(DeadReason::Exhausted), ..claimed.head };
    store.give_up(CONSUMER, &head).await.expect("nothing is deleted, which is no error");
    let claimed = claim(&store).await;
    let condemned = Failure { condemned: Some(DeadReason::Permanent), ..failure(3, NOW) };
    let tx = Some(claimed.tx);
    store.reschedule(CONSUMER, tx, &claimed.head, &condemned).await.expect("it is written");
    store.give_up(CONSUMER, &head).await.expect("nothing is deleted: it has other attempts");
    assert_eq!(claim(&store).await.head.attempts, 3);
}

/// Undo of a transaction that the handler has ended says that the claim is lost.
pub async fn undo_of_an_ended_transaction_fails<H: StoreHarness>(harness: &H) {
    needs!(H::CAPABILITIES, handler_can_commit);
    let store = harness.store();
    hold(&store, &sample("tea", "1")).await;
    let mut claimed = claim(&store).await;
    harness.raw_commit(&mut claimed.tx).await;
    assert!(store.undo(&mut claimed.tx).await.is_err());
}

/// A head whose letter is confirmed is gone and not handled, so that a redrive runs it; its follower is the head.
pub async fn a_quarantined_head_is_not_handled<H: StoreHarness>(harness: &H) {
    let (store, message) = (harness.store(), sample("tea", "1"));
    hold(&store, &message).await;
    append(&store, &sample("tea", "2")).await;
    let mut claimed = claim(&store).await;
    harness.write_effect(&mut claimed.tx, "tea").await;
    store.undo(&mut claimed.tx).await.expect("the claim is kept");
    let condemned = Failure { condemned: Some(DeadReason::Exhausted), throttled: 1, ..failure(2, NOW) };
    let tx = Some(claimed.tx);
    store.reschedule(CONSUMER, tx, &claimed.head, &condemned).await.expect("it is written");
    let claimed = claim(&store).await;
    let head = claimed.head;
    assert_eq!((head.attempts, head.throttled, head.condemned), (2, 1, Some(DeadReason::Exhausted)));
    store.rollback(claimed.tx).await;
    store.give_up(CONSUMER, &head).await.expect("it is deleted");
    assert_eq!(harness.effects("tea").await, 0);
    assert!(!is_handled(&store, &message).await);
    run_head(&store, &sample("tea", "2")).await;
    assert_eq!(answer(&store, &message).await, "fresh");
}

/// A rescheduled head waits as long as it was told to, and its key with it.
pub async fn a_rescheduled_head_waits<H: StoreHarness>(harness: &H) {
    let store = harness.store();
    hold(&store, &sample("tea", "1")).await;
    append(&store, &sample("tea", "2")).await;
    let mut claimed = claim(&store).await;
    store.undo(&mut claimed.tx).await.expect("the claim is kept");
    let tx = Some(claimed.tx);
    store.reschedule(CONSUMER, tx, &claimed.head, &failure(2, LATER)).await.expect("it is written");
    assert!(try_claim(&store, CONSUMER).await.is_none());
    assert_eq!(answer(&store, &sample("tea", "3")).await, "held");
}

/// A failed attempt whose transaction is lost is written without it.
pub async fn reschedule_without_a_claim<H: StoreHarness>(harness: &H) {
    let store = harness.store();
    hold(&store, &sample("tea", "1")).await;
    let claimed = claim(&store).await;
    store.rollback(claimed.tx).await;
    store.reschedule(CONSUMER, None, &claimed.head, &failure(2, NOW)).await.expect("it is written");
    let again = claim(&store).await.head;
    assert_eq!((again.attempts, again.error.as_deref()), (2, Some("attempt 2 failed")));
}

/// A late report of a failure changes nothing after somebody else's success.
pub async fn a_late_failure_after_a_success<H: StoreHarness>(harness: &H) {
    let (store, message) = (harness.store(), sample("tea", "1"));
    hold(&store, &message).await;
    let lost = claim(&store).await;
    store.rollback(lost.tx).await;
    run_head(&harness.store(), &message).await;
    store.reschedule(CONSUMER, None, &lost.head, &failure(2, NOW)).await.expect("nothing to do");
    assert_eq!(held_count(&store, CONSUMER).await, 0);
    assert!(is_handled(&store, &message).await);
}

/// A late report of a failure changes nothing after somebody else's later attempt: no attempt is counted twice.
pub async fn a_late_failure_after_another<H: StoreHarness>(harness: &H) {
    let store = harness.store();
    hold(&store, &sample("tea", "1")).await;
    let lost = claim(&store).await;
    store.rollback(lost.tx).await;
    store.reschedule(CONSUMER, None, &lost.head, &failure(2, NOW)).await.expect("it is written");
    store.reschedule(CONSUMER, None, &lost.head, &failure(9, LATER)).await.expect("nothing to do");
    assert_eq!(claim(&store).await.head.attempts, 2);
}

/// The number of attempts is exact over many failures and instances.
pub async fn attempts_are_exact<H: StoreHarness>(harness: &H) {
    hold(&harness.store(), &sample("tea", "1")).await;
    for attempts in 2..=10 {
        let store = harness.store();
        let mut claimed = claim(&store).await;
        assert_eq!(claimed.head.attempts, attempts - 1);
        store.undo(&mut claimed.tx).await.expect("the claim is kept");
        let (tx, failure) = (Some(claimed.tx), failure(attempts, NOW));
        store.reschedule(CONSUMER, tx, &claimed.head, &failure).await.expect("it is written");
    }
    assert_eq!(claim(&harness.store()).await.head.attempts, 10);
}

/// Four instances, five keys, failures and dropped claims: every message runs once and each key in order.
pub async fn many_instances_keep_the_order<H: StoreHarness>(harness: &H) {
    const KEYS: u64 = 5;
    const EACH: u64 = 6;
    let store = harness.store();
    for n in 0..EACH {
        for key in 0..KEYS {
            let message = sample(&format!("key {key}"), &format!("{key}/{n}"));
            if n == 0 { hold(&store, &message).await } else { append(&store, &message).await }
        }
    }
    let done = Mutex::new(BTreeMap::<Vec<u8>, Vec<String>>::new());
    let instances = (0..4).map(|nth| work_off(harness, &done, nth));
    futures_util::future::join_all(instances).await;
    let done = done.into_inner().expect("no instance panicked");
    for key in 0..KEYS {
        let expected: Vec<String> = (0..EACH).map(|n| format!("/orders|{key}/{n}")).collect();
        assert_eq!(done[format!("key {key}").as_bytes()], expected);
        for name in expected {
            assert_eq!(harness.effects(&name).await, 1, "{name}");
        }
    }
}

/// Runs heads until nothing is held; some attempts fail, some claims are lost.
async fn work_off<H: StoreHarness>(harness: &H, done: &Mutex<BTreeMap<Vec<u8>, Vec<String>>>, nth: usize) {
    let store = harness.store();
    let mut turn = nth;
    while held_count(&store, CONSUMER).await > 0 {
        let Some(claimed) = try_claim(&store, CONSUMER).await else {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            continue;
        };
        turn += 1;
        run_one(harness, &store, claimed, done, turn).await;
    }
}

async fn run_one<H: StoreHarness>(
    harness: &H,
    store: &H::Store,
    claimed: ClaimedHead<TxOf<H>>,
    done: &Mutex<BTreeMap<Vec<u8>, Vec<String>>>,
    turn: usize,
) {
    let ClaimedHead { mut tx, head, .. } = claimed;
    harness.write_effect(&mut tx, head.message_key.as_str()).await;
    match turn % 5 {
        0 => drop(tx),
        1 => {
            store.undo(&mut tx).await.expect("the claim is kept");
            let failure = failure(head.attempts + 1, NOW);
            store.reschedule(CONSUMER, Some(tx), &head, &failure).await.expect("it is written");
        }
        _ => {
            // Noted before the commit: afterwards the follower may run before this line.
            let name = head.message_key.to_string();
            done.lock().expect("no panic").entry(head.ordering_key.clone()).or_default().push(name);
            store.finish(CONSUMER, tx, &head).await.expect("the commit is proved");
        }
    }
}
