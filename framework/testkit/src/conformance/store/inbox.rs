//! One message, one instance: fresh once, and nothing half.

use std::time::Duration;

use backstop_core::MessageKey;
use backstop_core::inbox::{CommitError, Inbox};

use super::StoreHarness;
use super::sample::*;
use crate::conformance::{eventually, needs};

/// A message is fresh until its transaction commits, and a duplicate from then on.
pub async fn fresh_then_duplicate<H: StoreHarness>(harness: &H) {
    let (store, message) = (harness.store(), sample("tea", "1"));
    let tx = begin(&store, &message).await;
    store.commit(tx).await.expect("the commit is proved");
    assert_eq!(answer(&store, &message).await, "duplicate");
}

/// Ids are unique per source only: the same id of two sources is two messages.
pub async fn same_id_of_two_sources<H: StoreHarness>(harness: &H) {
    let (store, first, mut second) = (harness.store(), sample("tea", "1"), sample("tea", "1"));
    second.message_key = MessageKey::new("/refunds", b"1");
    handle(&store, &first).await;
    assert_eq!(answer(&store, &second).await, "fresh");
}

/// F81: every database.
/// What one consumer has handled is fresh to another.
pub async fn consumers_do_not_see_each_other<H: StoreHarness>(harness: &H) {
    let (store, message) = (harness.store(), sample("tea", "1"));
    handle(&store, &message).await;
    let other = message.of_consumer("billing");
    assert_eq!(answer(&store, &other).await, "fresh");
    assert!(!is_handled(&store, &other).await);
}

/// F75: every database.
/// Inbox row and effects become visible together.
pub async fn effects_commit_with_the_inbox_row<H: StoreHarness>(harness: &H) {
    let (store, message) = (harness.store(), sample("tea", "1"));
    let mut tx = begin(&store, &message).await;
    harness.write_effect(&mut tx, "tea").await;
    assert_eq!(harness.effects("tea").await, 0, "visible before the commit");
    assert!(!is_handled(&store, &message).await, "handled before the commit");
    store.commit(tx).await.expect("the commit is proved");
    assert_eq!(harness.effects("tea").await, 1);
    assert!(is_handled(&store, &message).await);
}

/// A rollback leaves neither effect nor inbox row.
pub async fn rollback_leaves_nothing<H: StoreHarness>(harness: &H) {
    let (store, message) = (harness.store(), sample("tea", "1"));
    let mut tx = begin(&store, &message).await;
    harness.write_effect(&mut tx, "tea").await;
    store.rollback(tx).await;
    assert_eq!(harness.effects("tea").await, 0);
    assert_eq!(answer(&store, &message).await, "fresh");
}

/// A transaction that is dropped, as a cancelled handler's is, leaves nothing, and its message is fresh again.
pub async fn a_dropped_transaction_leaves_nothing<H: StoreHarness>(harness: &H) {
    let (store, message) = (harness.store(), sample("tea", "1"));
    let mut tx = begin(&store, &message).await;
    harness.write_effect(&mut tx, "tea").await;
    drop(tx);
    eventually(|| async { (answer(&store, &message).await == "fresh").then_some(()) }).await;
    assert_eq!(harness.effects("tea").await, 0);
    assert!(!is_handled(&store, &message).await);
}

/// Many dropped transactions do not exhaust the connections.
pub async fn dropped_transactions_do_not_leak<H: StoreHarness>(harness: &H) {
    let store = harness.store();
    for n in 0..40 {
        let message = sample("tea", &n.to_string());
        let mut tx = begin(&store, &message).await;
        harness.write_effect(&mut tx, "tea").await;
        drop(tx);
    }
    handle(&store, &sample("tea", "last")).await;
    assert_eq!(harness.effects("tea").await, 0);
}

/// A handler that swallowed a failed statement is not taken for a success.
pub async fn a_swallowed_failure_is_rolled_back<H: StoreHarness>(harness: &H) {
    needs!(H::CAPABILITIES, failure_dooms_transaction);
    let (store, message) = (harness.store(), sample("tea", "1"));
    let mut tx = begin(&store, &message).await;
    harness.write_effect(&mut tx, "tea").await;
    harness.swallow_failed_statement(&mut tx).await;
    let outcome = store.commit(tx).await;
    assert!(matches!(outcome, Err(CommitError::RolledBack(_))), "{outcome:?}");
    assert_eq!(harness.effects("tea").await, 0);
    assert_eq!(answer(&store, &message).await, "fresh", "trying again is safe");
}

/// Where a failed statement leaves the rest of the transaction good, inbox row and effects commit together.
pub async fn a_swallowed_failure_is_never_half<H: StoreHarness>(harness: &H) {
    let (store, message) = (harness.store(), sample("tea", "1"));
    let mut tx = begin(&store, &message).await;
    harness.write_effect(&mut tx, "tea").await;
    harness.swallow_failed_statement(&mut tx).await;
    let committed = store.commit(tx).await.is_ok();
    assert_eq!(harness.effects("tea").await, u64::from(committed));
    assert_eq!(is_handled(&store, &message).await, committed);
}

/// A handler that commits by itself is found out, and the inbox tells what happened.
pub async fn a_raw_commit_is_found_out<H: StoreHarness>(harness: &H) {
    needs!(H::CAPABILITIES, handler_can_commit);
    let (store, message) = (harness.store(), sample("tea", "1"));
    let mut tx = begin(&store, &message).await;
    harness.write_effect(&mut tx, "tea").await;
    harness.raw_commit(&mut tx).await;
    let outcome = store.commit(tx).await;
    assert!(matches!(outcome, Err(CommitError::EndedByHandler(_))), "{outcome:?}");
    assert!(is_handled(&store, &message).await);
    assert_eq!(harness.effects("tea").await, 1);
    assert_eq!(answer(&store, &message).await, "duplicate");
}

/// After a handler has ended its transaction the next message is not hurt by it.
pub async fn a_raw_commit_does_not_hurt_the_next<H: StoreHarness>(harness: &H) {
    needs!(H::CAPABILITIES, handler_can_commit);
    let store = harness.store();
    for n in 0..10 {
        let mut tx = begin(&store, &sample("tea", &format!("raw {n}"))).await;
        harness.raw_commit(&mut tx).await;
        drop(store.commit(tx).await);
        let next = sample("tea", &format!("next {n}"));
        let mut tx = begin(&store, &next).await;
        harness.write_effect(&mut tx, "next").await;
        store.rollback(tx).await;
        assert!(!is_handled(&store, &next).await);
    }
    assert_eq!(harness.effects("next").await, 0);
}

/// F79: within the time that was configured.
/// Pruning forgets what is older than the age, and keeps the young.
pub async fn prune_keeps_the_young<H: StoreHarness>(harness: &H) {
    let (store, message) = (harness.store(), sample("tea", "1"));
    handle(&store, &message).await;
    let kept = store.prune(CONSUMER, Duration::from_secs(3_600), 100).await.expect("pruned");
    assert_eq!(kept, 0, "an hour has not passed");
    assert!(is_handled(&store, &message).await);
    let forgotten = eventually(|| async {
        let count = store.prune(CONSUMER, Duration::from_millis(20), 100).await.expect("pruned");
        (count > 0).then_some(count)
    });
    assert_eq!(forgotten.await, 1);
    assert_eq!(answer(&store, &message).await, "fresh", "it is forgotten");
}

/// A call of prune forgets at most as many as it was told to, and of that consumer only.
pub async fn prune_keeps_to_its_limit<H: StoreHarness>(harness: &H) {
    let store = harness.store();
    let other = sample("tea", "1").of_consumer("billing");
    handle(&store, &other).await;
    for n in 0..5 {
        handle(&store, &sample("tea", &n.to_string())).await;
    }
    let mut forgotten = 0;
    while forgotten < 5 {
        let count = store.prune(CONSUMER, Duration::from_millis(1), 2).await.expect("pruned");
        assert!(count <= 2, "{count} is over the limit");
        forgotten += count;
    }
    assert_eq!(forgotten, 5);
    assert!(is_handled(&store, &other).await);
}

/// Message keys are compared as bytes: case, spaces and forms of one character make different messages.
pub async fn message_keys_are_bytes<H: StoreHarness>(harness: &H) {
    let store = harness.store();
    let ids = ["a", "A", "a ", " a", "ä", "a\u{308}", "ａ", "", "%", "_", "a%", "\u{1f375}"];
    for id in ids {
        handle(&store, &sample("tea", id)).await;
    }
    for id in ids {
        assert_eq!(answer(&store, &sample("tea", id)).await, "duplicate", "{id:?}");
    }
}

/// Quotes, backslashes, control characters and the longest key are stored as they are.
pub async fn odd_message_keys_are_stored<H: StoreHarness>(harness: &H) {
    let store = harness.store();
    let longest = "é".repeat(MessageKey::MAX_BYTES / 2);
    for text in ["it's", "\"x\"", "\\", "a\nb\tc", "'; drop table x; --", "$1 ?1 :a", &longest] {
        let mut message = sample("tea", "odd");
        message.message_key = MessageKey::parse(text).expect("a sound key");
        handle(&store, &message).await;
        assert!(is_handled(&store, &message).await, "{text:?}");
        assert_eq!(answer(&store, &message).await, "duplicate", "{text:?}");
    }
}

/// A database with all its tables is ready.
pub async fn a_complete_database_is_ready<H: StoreHarness>(harness: &H) {
    harness.store().ready().await.expect("everything is there");
}
