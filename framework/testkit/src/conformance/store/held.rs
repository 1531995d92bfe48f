//! Held messages: a key waits in order, whoever runs it.

use backstop_core::held::{HeldMessages, Holding};
use backstop_core::inbox::Inbox;

use super::StoreHarness;
use super::sample::*;
use crate::conformance::{eventually, needs};

/// After a failure is held, later messages of its key are held too; other keys and places go on.
pub async fn hold_holds_the_key<H: StoreHarness>(harness: &H) {
    let store = harness.store();
    hold(&store, &sample("tea", "1")).await;
    assert_eq!(answer(&store, &sample("tea", "2")).await, "held");
    assert_eq!(answer(&store, &sample("coffee", "3")).await, "fresh");
    assert_eq!(answer(&store, &sample("tea", "4").in_place("returns")).await, "fresh");
}

/// A redelivered message whose key is held is held, handled or not: its key's order comes first.
pub async fn held_wins_over_duplicate<H: StoreHarness>(harness: &H) {
    let (store, first) = (harness.store(), sample("tea", "1"));
    handle(&store, &first).await;
    hold(&store, &sample("tea", "2")).await;
    assert_eq!(answer(&store, &first).await, "held");
}

/// Holding a message twice, as after a crash before settling, is one row.
pub async fn hold_twice_is_one_row<H: StoreHarness>(harness: &H) {
    let (store, message) = (harness.store(), sample("tea", "1"));
    hold(&store, &message).await;
    hold(&store, &message).await;
    assert_eq!(held_count(&store, CONSUMER).await, 1);
    let claimed = claim(&store).await;
    assert_eq!(claimed.head.attempts, 1);
    store.finish(CONSUMER, claimed.tx, &claimed.head).await.expect("the commit is proved");
    assert!(try_claim(&store, CONSUMER).await.is_none());
}

/// A message that was handled after all is not held.
pub async fn a_handled_message_is_not_held<H: StoreHarness>(harness: &H) {
    let (store, message) = (harness.store(), sample("tea", "1"));
    handle(&store, &message).await;
    let holding = store.hold(message.new_held(), &failure(1, NOW)).await.expect("the database answers");
    assert_eq!(holding, Holding::AlreadyHandled);
    assert_eq!(held_count(&store, CONSUMER).await, 0);
    assert_eq!(answer(&store, &message).await, "duplicate");
}

/// Only behind a held message can another be appended.
pub async fn append_needs_a_held_key<H: StoreHarness>(harness: &H) {
    let (store, message) = (harness.store(), sample("tea", "2"));
    let free = store.append(message.new_held()).await.expect("the database answers");
    assert_eq!(free, Holding::KeyFree);
    hold(&store, &sample("tea", "3").in_place("returns")).await;
    let other_place = store.append(message.new_held()).await.expect("the database answers");
    assert_eq!(other_place, Holding::KeyFree);
    hold(&store, &sample("tea", "1")).await;
    append(&store, &message).await;
}

/// Appending a message twice is one row.
pub async fn append_twice_is_one_row<H: StoreHarness>(harness: &H) {
    let store = harness.store();
    hold(&store, &sample("tea", "1")).await;
    append(&store, &sample("tea", "2")).await;
    append(&store, &sample("tea", "2")).await;
    assert_eq!(held_count(&store, CONSUMER).await, 2);
}

/// A handled message is not appended.
pub async fn a_handled_message_is_not_appended<H: StoreHarness>(harness: &H) {
    let (store, message) = (harness.store(), sample("tea", "1"));
    handle(&store, &message).await;
    hold(&store, &sample("tea", "2")).await;
    let holding = store.append(message.new_held()).await.expect("the database answers");
    assert_eq!(holding, Holding::AlreadyHandled);
    assert_eq!(held_count(&store, CONSUMER).await, 1);
}

/// The messages of a key run one after another, in the order in which they were held.
pub async fn a_key_runs_in_order<H: StoreHarness>(harness: &H) {
    let store = harness.store();
    let messages: Vec<_> = (1..=5).map(|n| sample("tea", &n.to_string())).collect();
    hold(&store, &messages[0]).await;
    for message in &messages[1..] {
        append(&store, message).await;
    }
    for message in &messages {
        run_head(&store, message).await;
    }
    assert_eq!(held_count(&store, CONSUMER).await, 0);
    assert_eq!(answer(&store, &sample("tea", "6")).await, "fresh", "the key is free again");
}

/// While the head waits, its followers wait, however long they have been there.
pub async fn a_follower_does_not_overtake<H: StoreHarness>(harness: &H) {
    let (store, head) = (harness.store(), sample("tea", "1"));
    let holding = store.hold(head.new_held(), &failure(1, LATER)).await.expect("it is held");
    assert_eq!(holding, Holding::Stored);
    append(&store, &sample("tea", "2")).await;
    let second_failure = store.hold(sample("tea", "3").new_held(), &failure(1, NOW)).await;
    assert_eq!(second_failure.expect("it is held"), Holding::Stored);
    assert!(try_claim(&store, CONSUMER).await.is_none(), "a follower ran before its head");
}

/// A head that is not due is not claimed; one that falls due is.
pub async fn a_head_falls_due<H: StoreHarness>(harness: &H) {
    let (store, later, soon) = (harness.store(), sample("tea", "1"), sample("coffee", "2"));
    let wait = std::time::Duration::from_millis(100);
    store.hold(later.new_held(), &failure(1, LATER)).await.expect("it is held");
    store.hold(soon.new_held(), &failure(1, wait)).await.expect("it is held");
    run_head(&store, &soon).await;
    assert!(try_claim(&store, CONSUMER).await.is_none());
}

/// Of several due heads the one that has been due longest goes first.
pub async fn the_longest_due_goes_first<H: StoreHarness>(harness: &H) {
    let store = harness.store();
    let messages: Vec<_> = (1..=3).map(|n| sample(&format!("key {n}"), &n.to_string())).collect();
    for message in &messages {
        hold(&store, message).await;
        // Clocks of databases may count in milliseconds.
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    for message in &messages {
        run_head(&store, message).await;
    }
}

/// A finished head is handled, with its effects, and its redelivery is a duplicate.
pub async fn finish_commits_everything<H: StoreHarness>(harness: &H) {
    let (store, message) = (harness.store(), sample("tea", "1"));
    hold(&store, &message).await;
    let mut claimed = claim(&store).await;
    assert!(!claimed.handled);
    harness.write_effect(&mut claimed.tx, "tea").await;
    store.finish(CONSUMER, claimed.tx, &claimed.head).await.expect("the commit is proved");
    assert_eq!(harness.effects("tea").await, 1);
    assert!(is_handled(&store, &message).await);
    assert_eq!(answer(&store, &message).await, "duplicate");
}

/// Two instances claim different heads at the same time.
pub async fn a_claimed_head_is_skipped<H: StoreHarness>(harness: &H) {
    needs!(H::CAPABILITIES, concurrent_writers);
    let (first, second) = (harness.store(), harness.store());
    hold(&first, &sample("tea", "1")).await;
    hold(&first, &sample("coffee", "2")).await;
    append(&first, &sample("tea", "3")).await;
    let one = claim(&first).await;
    let two = claim(&second).await;
    assert_ne!(one.head.n, two.head.n);
    assert!(try_claim(&harness.store(), CONSUMER).await.is_none(), "a third head was found");
    first.finish(CONSUMER, one.tx, &one.head).await.expect("the commit is proved");
    second.finish(CONSUMER, two.tx, &two.head).await.expect("the commit is proved");
    run_head(&first, &sample("tea", "3")).await;
}

/// A follower that is appended while the head is at work is not forgotten, and does not wait for the head.
pub async fn an_append_while_the_head_works<H: StoreHarness>(harness: &H) {
    needs!(H::CAPABILITIES, concurrent_writers);
    let (first, second) = (harness.store(), harness.store());
    hold(&first, &sample("tea", "1")).await;
    let claimed = claim(&first).await;
    append(&second, &sample("tea", "2")).await;
    first.finish(CONSUMER, claimed.tx, &claimed.head).await.expect("the commit is proved");
    run_head(&second, &sample("tea", "2")).await;
}

/// A claim that is dropped, as by a crash, leaves nothing, and the head comes again.
pub async fn a_dropped_claim_comes_again<H: StoreHarness>(harness: &H) {
    let (store, message) = (harness.store(), sample("tea", "1"));
    hold(&store, &message).await;
    let mut claimed = claim(&store).await;
    harness.write_effect(&mut claimed.tx, "tea").await;
    drop(claimed);
    let again = claim(&harness.store()).await;
    assert_eq!(again.head.attempts, 1, "a crash is not charged");
    assert!(!again.handled);
    store.rollback(again.tx).await;
    assert_eq!(harness.effects("tea").await, 0);
    assert!(!is_handled(&store, &message).await);
}

/// A rolled-back claim comes again.
pub async fn a_rolled_back_claim_comes_again<H: StoreHarness>(harness: &H) {
    let (store, message) = (harness.store(), sample("tea", "1"));
    hold(&store, &message).await;
    let claimed = claim(&store).await;
    store.rollback(claimed.tx).await;
    run_head(&store, &message).await;
}

/// A head whose handler committed by itself is shown as handled, and finishing it ends it.
pub async fn a_handled_head_is_shown_as_such<H: StoreHarness>(harness: &H) {
    needs!(H::CAPABILITIES, handler_can_commit);
    let (store, message) = (harness.store(), sample("tea", "1"));
    hold(&store, &message).await;
    append(&store, &sample("tea", "2")).await;
    let mut claimed = claim(&store).await;
    harness.write_effect(&mut claimed.tx, "tea").await;
    harness.raw_commit(&mut claimed.tx).await;
    assert!(store.finish(CONSUMER, claimed.tx, &claimed.head).await.is_err());
    let again = claim(&store).await;
    assert_eq!(again.head.message_key, message.message_key);
    assert!(again.handled, "the inbox knows it");
    store.finish(CONSUMER, again.tx, &again.head).await.expect("the commit is proved");
    assert_eq!(harness.effects("tea").await, 1);
    run_head(&store, &sample("tea", "2")).await;
}

/// The summary counts one consumer's messages and knows the oldest's age.
pub async fn the_summary_counts<H: StoreHarness>(harness: &H) {
    let store = harness.store();
    let empty = store.summary(CONSUMER).await.expect("the database answers");
    assert_eq!((empty.messages, empty.oldest), (0, None));
    hold(&store, &sample("tea", "1")).await;
    append(&store, &sample("tea", "2")).await;
    hold(&store, &sample("tea", "3").of_consumer("billing")).await;
    let age = eventually(|| async {
        let summary = store.summary(CONSUMER).await.expect("the database answers");
        assert_eq!(summary.messages, 2);
        summary.oldest.filter(|age| !age.is_zero())
    });
    assert!(age.await < LATER);
}

/// Consumers that share a database hold and claim their own messages only.
pub async fn consumers_hold_their_own<H: StoreHarness>(harness: &H) {
    let (store, other) = (harness.store(), sample("tea", "1").of_consumer("billing"));
    hold(&store, &other).await;
    assert_eq!(answer(&store, &sample("tea", "1")).await, "fresh");
    assert!(try_claim(&store, CONSUMER).await.is_none());
    assert!(try_claim(&store, "billing").await.is_some());
}
