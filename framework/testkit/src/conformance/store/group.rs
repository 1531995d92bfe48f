//! Several messages in one transaction.

use backstop_core::inbox::{CommitError, GroupAdmission, Inbox, Standing, Unit};

use super::StoreHarness;
use super::sample::*;
use crate::conformance::{eventually, needs};

fn samples(ids: &[&str]) -> Vec<Sample> {
    ids.iter().map(|id| sample("tea", id)).collect()
}

fn units(messages: &[Sample]) -> Vec<Unit<'_>> {
    messages.iter().map(Sample::unit).collect()
}

/// The transaction that the messages share, and what the inbox says of each.
async fn share<S: Inbox>(store: &S, messages: &[Sample]) -> (S::Tx, Vec<Standing>) {
    match store.begin_group(&units(messages), limits()).await.expect("the database answers") {
        GroupAdmission::Shared { tx, standings } => (tx, standings),
        GroupAdmission::Apart => panic!("nobody else is at one of them"),
    }
}

/// Of each message, whether it is handled.
async fn handled<S: Inbox>(store: &S, messages: &[Sample]) -> Vec<bool> {
    let mut handled = Vec::new();
    for message in messages {
        handled.push(is_handled(store, message).await);
    }
    handled
}

/// Fresh messages commit together, with the effects of all of them.
pub async fn a_group_commits_together<H: StoreHarness>(harness: &H) {
    let (store, messages) = (harness.store(), samples(&["3", "1", "2"]));
    let (mut tx, standings) = share(&store, &messages).await;
    assert_eq!(standings, [Standing::Fresh; 3]);
    for _ in &messages {
        harness.write_effect(&mut tx, "tea").await;
    }
    assert_eq!(harness.effects("tea").await, 0, "visible before the commit");
    store.commit(tx).await.expect("the commit is proved");
    assert_eq!(harness.effects("tea").await, 3);
    assert_eq!(handled(&store, &messages).await, [true; 3]);
    assert_eq!(answer(&store, &messages[1]).await, "duplicate");
}

/// A rollback leaves nothing of any of them.
pub async fn a_group_rolls_back_together<H: StoreHarness>(harness: &H) {
    let (store, messages) = (harness.store(), samples(&["1", "2"]));
    let (mut tx, _) = share(&store, &messages).await;
    harness.write_effect(&mut tx, "tea").await;
    store.rollback(tx).await;
    assert_eq!(harness.effects("tea").await, 0);
    assert_eq!(handled(&store, &messages).await, [false; 2]);
    assert_eq!(share(&store, &messages).await.1, [Standing::Fresh; 2]);
}

/// A shared transaction that is dropped leaves nothing, and its messages are fresh again.
pub async fn a_dropped_group_leaves_nothing<H: StoreHarness>(harness: &H) {
    let (store, messages) = (harness.store(), samples(&["1", "2"]));
    let (mut tx, _) = share(&store, &messages).await;
    harness.write_effect(&mut tx, "tea").await;
    drop(tx);
    eventually(|| async { (answer(&store, &messages[0]).await == "fresh").then_some(()) }).await;
    assert_eq!(harness.effects("tea").await, 0);
}

/// Duplicates are told from fresh messages, also those whose original stands earlier in the group.
pub async fn duplicates_of_a_group_are_told<H: StoreHarness>(harness: &H) {
    let (store, messages) = (harness.store(), samples(&["old", "new", "new", "old", "newer"]));
    handle(&store, &messages[0]).await;
    let (tx, standings) = share(&store, &messages).await;
    let [fresh, duplicate] = [Standing::Fresh, Standing::Duplicate];
    assert_eq!(standings, [duplicate, fresh, duplicate, duplicate, fresh]);
    store.commit(tx).await.expect("the commit is proved");
    assert_eq!(handled(&store, &messages).await, [true; 5]);
}

/// Messages of a held key, and only those, are not handled; nor are their rows written.
pub async fn held_keys_of_a_group_are_told<H: StoreHarness>(harness: &H) {
    let store = harness.store();
    hold(&store, &sample("coffee", "failed")).await;
    let messages = [sample("tea", "1"), sample("coffee", "2"), sample("coffee", "3").in_place("returns")];
    let (tx, standings) = share(&store, &messages).await;
    assert_eq!(standings, [Standing::Fresh, Standing::Held, Standing::Fresh]);
    store.commit(tx).await.expect("the commit is proved");
    assert_eq!(handled(&store, &messages).await, [true, false, true]);
    append(&store, &messages[1]).await;
}

/// Nothing fresh: the transaction is open all the same, and empty.
pub async fn a_group_of_duplicates<H: StoreHarness>(harness: &H) {
    let (store, messages) = (harness.store(), samples(&["1", "2"]));
    for message in &messages {
        handle(&store, message).await;
    }
    let (tx, standings) = share(&store, &messages).await;
    assert_eq!(standings, [Standing::Duplicate; 2]);
    store.rollback(tx).await;
    assert_eq!(handled(&store, &messages).await, [true; 2]);
}

/// Consumers do not see each other's messages.
pub async fn groups_of_consumers_are_apart<H: StoreHarness>(harness: &H) {
    let (store, messages) = (harness.store(), samples(&["1", "2"]));
    for message in &messages {
        handle(&store, &message.clone().of_consumer("billing")).await;
    }
    assert_eq!(share(&store, &messages).await.1, [Standing::Fresh; 2]);
}

/// What is withdrawn does not commit with the rest, and is fresh again.
pub async fn withdrawn_messages_are_fresh_again<H: StoreHarness>(harness: &H) {
    let (store, messages) = (harness.store(), samples(&["1", "2", "3"]));
    let (mut tx, _) = share(&store, &messages).await;
    harness.write_effect(&mut tx, "tea").await;
    let keys = [&messages[1].message_key, &messages[2].message_key];
    store.withdraw(&mut tx, CONSUMER, &keys).await.expect("withdrawn");
    store.commit(tx).await.expect("the commit is proved");
    assert_eq!(harness.effects("tea").await, 1);
    assert_eq!(handled(&store, &messages).await, [true, false, false]);
    let (tx, standings) = share(&store, &messages).await;
    assert_eq!(standings, [Standing::Duplicate, Standing::Fresh, Standing::Fresh]);
    store.commit(tx).await.expect("the commit is proved");
}

/// Rows that are committed already can be withdrawn too.
pub async fn handled_messages_can_be_withdrawn<H: StoreHarness>(harness: &H) {
    let (store, messages) = (harness.store(), samples(&["1", "2"]));
    for message in &messages {
        handle(&store, message).await;
    }
    let (mut tx, _) = share(&store, &messages).await;
    store.withdraw(&mut tx, CONSUMER, &[&messages[1].message_key]).await.expect("withdrawn");
    store.commit(tx).await.expect("the commit is proved");
    assert_eq!(handled(&store, &messages).await, [true, false]);
}

/// An instance that finds another one at a message of its group steps aside, and the other is not hurt.
pub async fn a_group_steps_aside<H: StoreHarness>(harness: &H) {
    let (first, second, messages) = (harness.store(), harness.store(), samples(&["1", "2", "3"]));
    let mut tx = begin(&first, &messages[1]).await;
    harness.write_effect(&mut tx, "tea").await;
    let admission =
        second.begin_group(&units(&messages), short_limits()).await.expect("the database answers");
    assert!(matches!(admission, GroupAdmission::Apart), "two instances are at one message");
    drop(admission);
    first.commit(tx).await.expect("the commit is proved");
    assert_eq!(handled(&second, &messages).await, [false, true, false]);
    let (fresh, duplicate) = (Standing::Fresh, Standing::Duplicate);
    assert_eq!(share(&second, &messages).await.1, [fresh, duplicate, fresh]);
}

/// Instances that are given the same groups apply each message once.
pub async fn instances_with_the_same_groups_apply_them_once<H: StoreHarness>(harness: &H) {
    let ids: Vec<String> = (0..20).map(|n| format!("{n:02}")).collect();
    let runs = (0..4).map(|instance| {
        let mut messages: Vec<Sample> = ids.iter().map(|id| sample("tea", id)).collect();
        messages.rotate_left(instance * 5);
        async move {
            let store = harness.store();
            while let GroupAdmission::Shared { mut tx, standings } =
                store.begin_group(&units(&messages), limits()).await.expect("the database answers")
            {
                for _ in standings.iter().filter(|standing| **standing == Standing::Fresh) {
                    harness.write_effect(&mut tx, "tea").await;
                }
                if store.commit(tx).await.is_ok() {
                    break;
                }
            }
        }
    });
    futures_util::future::join_all(runs).await;
    assert_eq!(harness.effects("tea").await, 20);
}

/// A statement that fails unnoticed dooms the whole group.
pub async fn a_swallowed_failure_dooms_the_group<H: StoreHarness>(harness: &H) {
    needs!(H::CAPABILITIES, failure_dooms_transaction);
    let (store, messages) = (harness.store(), samples(&["1", "2"]));
    let (mut tx, _) = share(&store, &messages).await;
    harness.write_effect(&mut tx, "tea").await;
    harness.swallow_failed_statement(&mut tx).await;
    let outcome = store.commit(tx).await;
    assert!(matches!(outcome, Err(CommitError::RolledBack(_))), "{outcome:?}");
    assert_eq!(handled(&store, &messages).await, [false; 2]);
}

/// Between two handlers it is seen whether the one before has ended the transaction; one that goes on is as it was.
pub async fn the_end_of_a_group_is_seen_between_handlers<H: StoreHarness>(harness: &H) {
    needs!(H::CAPABILITIES, sees_ends_between_handlers);
    let (store, messages) = (harness.store(), samples(&["1", "2"]));
    let (mut tx, _) = share(&store, &messages).await;
    for _ in &messages {
        harness.write_effect(&mut tx, "tea").await;
        assert!(store.is_unbroken(&mut tx).await.expect("the database answers"));
    }
    store.commit(tx).await.expect("the commit is proved all the same");
    assert_eq!(harness.effects("tea").await, 2);
    let (mut tx, _) = share(&store, &samples(&["3", "4"])).await;
    harness.raw_commit(&mut tx).await;
    harness.write_effect(&mut tx, "milk").await;
    assert!(!store.is_unbroken(&mut tx).await.expect("the database answers"));
    store.rollback(tx).await;
}

/// A handler that commits by itself is found out in a group too.
pub async fn a_raw_commit_in_a_group_is_found_out<H: StoreHarness>(harness: &H) {
    needs!(H::CAPABILITIES, handler_can_commit);
    let (store, messages) = (harness.store(), samples(&["1", "2"]));
    let (mut tx, _) = share(&store, &messages).await;
    assert!(!store.is_ended(&mut tx).await.expect("the database answers"));
    store.rollback(tx).await;
    let (mut tx, _) = share(&store, &messages).await;
    harness.raw_commit(&mut tx).await;
    assert!(store.is_ended(&mut tx).await.expect("the database answers"));
    store.rollback(tx).await;
    let messages = samples(&["3", "4"]);
    let (mut tx, _) = share(&store, &messages).await;
    harness.raw_commit(&mut tx).await;
    let outcome = store.commit(tx).await;
    assert!(matches!(outcome, Err(CommitError::EndedByHandler(_))), "{outcome:?}");
    assert_eq!(handled(&store, &messages).await, [true; 2]);
}
