//! One message, several instances.

use backstop_core::inbox::{Admission, Inbox};

use super::StoreHarness;
use super::sample::*;

/// What one instance has committed, another knows.
pub async fn another_instance_sees_the_duplicate<H: StoreHarness>(harness: &H) {
    let message = sample("tea", "1");
    handle(&harness.store(), &message).await;
    assert_eq!(answer(&harness.store(), &message).await, "duplicate");
}

/// An instance that waits for another's transaction learns of its commit.
pub async fn a_waiting_instance_learns_of_the_commit<H: StoreHarness>(harness: &H) {
    let (first, second, message) = (harness.store(), harness.store(), sample("tea", "1"));
    let mut tx = begin(&first, &message).await;
    harness.write_effect(&mut tx, "tea").await;
    let waiting = tokio::spawn({
        let message = message.clone();
        async move { answer(&second, &message).await }
    });
    tokio::task::yield_now().await;
    first.commit(tx).await.expect("the commit is proved");
    assert_eq!(waiting.await.expect("the instance lives"), "duplicate");
    assert_eq!(harness.effects("tea").await, 1);
}

/// An instance that waits for another's transaction takes over when it rolls back.
pub async fn a_waiting_instance_takes_over<H: StoreHarness>(harness: &H) {
    let (first, second, message) = (harness.store(), harness.store(), sample("tea", "1"));
    let tx = begin(&first, &message).await;
    let waiting = tokio::spawn({
        let message = message.clone();
        async move { answer(&second, &message).await }
    });
    tokio::task::yield_now().await;
    first.rollback(tx).await;
    assert_eq!(waiting.await.expect("the instance lives"), "fresh");
}

/// An instance that has waited for the limit steps aside, and the first one is not hurt.
pub async fn an_instance_steps_aside<H: StoreHarness>(harness: &H) {
    let (first, second, message) = (harness.store(), harness.store(), sample("tea", "1"));
    let mut tx = begin(&first, &message).await;
    harness.write_effect(&mut tx, "tea").await;
    let admission = second.begin(message.unit(), short_limits()).await.expect("the database answers");
    assert!(matches!(admission, Admission::Busy), "two instances are at one message");
    first.commit(tx).await.expect("the commit is proved");
    assert_eq!(answer(&second, &message).await, "duplicate");
}

/// F76: every database.
/// Eight instances that are given one message apply it once.
pub async fn eight_instances_apply_it_once<H: StoreHarness>(harness: &H) {
    let message = sample("tea", "1");
    let runs = (0..8).map(|_| async {
        let store = harness.store();
        let admission = store.begin(message.unit(), limits()).await.expect("the database answers");
        let Admission::Fresh(mut tx) = admission else { return };
        harness.write_effect(&mut tx, "tea").await;
        store.commit(tx).await.expect("the commit is proved");
    });
    futures_util::future::join_all(runs).await;
    assert_eq!(harness.effects("tea").await, 1);
    assert!(is_handled(&harness.store(), &message).await);
}
