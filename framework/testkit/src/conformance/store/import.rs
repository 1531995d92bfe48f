//! Redriven messages, taken in through the door.

use backstop_core::Via;
use backstop_core::held::{HeldMessages, Holding};
use tokio::task::JoinSet;

use super::StoreHarness;
use super::sample::*;

fn redriven(key: &str, id: &str) -> Sample {
    Sample { via: Via::Door, ..sample(key, id) }
}

async fn import<S: HeldMessages>(store: &S, message: &Sample) -> Holding {
    store.import(message.new_held()).await.expect("the database answers")
}

/// A redriven message of a free key is due at once, and runs as held messages do.
pub async fn a_free_key_runs_at_once<H: StoreHarness>(harness: &H) {
    let (store, message) = (harness.store(), redriven("tea", "1"));
    assert_eq!(import(&store, &message).await, Holding::Stored);
    let claimed = claim(&store).await;
    assert_eq!((claimed.head.via, claimed.head.attempts, claimed.head.class), (Via::Door, 0, None));
    store.finish(CONSUMER, claimed.tx, &claimed.head).await.expect("the commit is proved");
    assert!(is_handled(&store, &message).await);
}

/// A redriven message waits until what is held of its key before it has ended.
pub async fn a_held_key_comes_first<H: StoreHarness>(harness: &H) {
    let store = harness.store();
    hold(&store, &sample("tea", "1")).await;
    append(&store, &sample("tea", "2")).await;
    assert_eq!(import(&store, &redriven("tea", "0")).await, Holding::Stored);
    for id in ["1", "2", "0"] {
        run_head(&store, &sample("tea", id)).await;
    }
}

/// A redriven message that was handled is not run again.
pub async fn a_handled_message_is_not_imported<H: StoreHarness>(harness: &H) {
    let (store, message) = (harness.store(), redriven("tea", "1"));
    handle(&store, &message).await;
    assert_eq!(import(&store, &message).await, Holding::AlreadyHandled);
    hold(&store, &sample("tea", "2")).await;
    assert_eq!(import(&store, &message).await, Holding::AlreadyHandled, "behind a held one");
    assert_eq!(held_count(&store, CONSUMER).await, 1);
}

/// Importing a message twice, as after a crash before settling, is one row.
pub async fn import_twice_is_one_row<H: StoreHarness>(harness: &H) {
    let (store, message) = (harness.store(), redriven("tea", "1"));
    assert_eq!(import(&store, &message).await, Holding::Stored);
    assert_eq!(import(&store, &message).await, Holding::Stored);
    assert_eq!(held_count(&store, CONSUMER).await, 1);
}

/// Redriven messages that other instances run at once were stored all the same, and not handled before.
pub async fn what_runs_at_once_was_stored<H: StoreHarness>(harness: &H) {
    const INSTANCES: usize = 4;
    const MESSAGES: usize = 60;
    let mut tasks = JoinSet::new();
    for instance in 0..INSTANCES {
        let (store, other) = (harness.store(), harness.store());
        tasks.spawn(async move {
            for n in 0..MESSAGES {
                let id = format!("{instance}-{n}");
                assert_eq!(import(&store, &redriven(&id, &id)).await, Holding::Stored, "message {id}");
            }
        });
        tasks.spawn(async move {
            for _ in 0..MESSAGES {
                let claimed = claim(&other).await;
                other.finish(CONSUMER, claimed.tx, &claimed.head).await.expect("the commit is proved");
            }
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended.expect("no task fails");
    }
}

/// A live message of a key waits behind a redriven one that came first.
pub async fn a_live_message_waits_behind<H: StoreHarness>(harness: &H) {
    let (store, live) = (harness.store(), sample("tea", "2"));
    assert_eq!(import(&store, &redriven("tea", "1")).await, Holding::Stored);
    assert_eq!(answer(&store, &live).await, "held");
    append(&store, &live).await;
    run_head(&store, &redriven("tea", "1")).await;
    run_head(&store, &live).await;
}
