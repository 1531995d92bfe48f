//! Redriven messages, taken in through the door.

use backstop_core::Via;
use backstop_core::held::{HeldMessages, Holding};
use backstop_core::held_run::{RunChoice, RunClaim};
use tokio::task::JoinSet;

use super::StoreHarness;
use super::sample::*;
use crate::conformance::eventually;

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

/// Stores messages together, and by themselves those of which nothing came.
async fn store_all<S: HeldMessages>(store: &S, messages: &[Sample]) -> Vec<Holding> {
    let new: Vec<_> = messages.iter().map(Sample::new_held).collect();
    let answers = store.store_all(&new).await.unwrap_or_else(|_| vec![None; new.len()]);
    assert_eq!(answers.len(), new.len());
    let mut holdings = Vec::new();
    for (message, answer) in new.into_iter().zip(answers) {
        holdings.push(match (answer, message.via) {
            (Some(holding), _) => holding,
            (None, Via::Door) => store.import(message).await.expect("the database answers"),
            (None, Via::Live) => store.append(message).await.expect("the database answers"),
        });
    }
    holdings
}

/// Redriven messages that are taken in together run in their order, behind what is held of their keys.
pub async fn messages_are_taken_in_together<H: StoreHarness>(harness: &H) {
    let store = harness.store();
    hold(&store, &sample("tea", "0")).await;
    let messages = [redriven("tea", "2"), redriven("tea", "1"), redriven("milk", "4"), redriven("milk", "3")];
    assert_eq!(store_all(&store, &messages).await, [Holding::Stored; 4]);
    assert_eq!(store_all(&store, &messages).await, [Holding::Stored; 4], "twice changes nothing");
    assert_eq!(held_count(&store, CONSUMER).await, 5);
    let mut ran = Vec::new();
    while held_count(&store, CONSUMER).await > 0 {
        let claimed = claim(&store).await;
        ran.push(claimed.head.message_key.clone());
        store.finish(CONSUMER, claimed.tx, &claimed.head).await.expect("the commit is proved");
    }
    let place = |id: &str| ran.iter().position(|key| *key == sample("", id).message_key);
    assert!(place("0") < place("2") && place("2") < place("1"), "{ran:?}");
    assert!(place("4") < place("3"), "{ran:?}");
    assert_eq!(store_all(&store, &messages).await, [Holding::AlreadyHandled; 4]);
}

/// Live messages are stored behind what is held of their keys, and not where nothing is.
pub async fn live_messages_are_appended_together<H: StoreHarness>(harness: &H) {
    let store = harness.store();
    hold(&store, &sample("tea", "1")).await;
    let messages = [sample("tea", "3"), sample("milk", "4"), sample("tea", "2"), sample("tea", "3")];
    let expected = [Holding::Stored, Holding::KeyFree, Holding::Stored, Holding::Stored];
    assert_eq!(store_all(&store, &messages).await, expected);
    for id in ["1", "3", "2"] {
        run_head(&store, &sample("tea", id)).await;
    }
    assert_eq!(held_count(&store, CONSUMER).await, 0);
}

/// Some instances take messages of the same keys in, many of them twice, while others run them: no key is left without a head.
pub async fn many_importers_leave_no_key_without_a_head<H: StoreHarness>(harness: &H) {
    const EACH: usize = 40;
    let mut importers = JoinSet::new();
    for importer in 0..3 {
        let store = harness.store();
        importers.spawn(async move {
            for batch in 0..EACH / 4 {
                // The first two of a batch are in the next importer's too.
                let message = |n: usize| {
                    let owner = if n < 2 { 0 } else { importer };
                    redriven(["tea", "milk"][n % 2], &format!("{owner}-{batch}-{n}"))
                };
                let batch: Vec<Sample> = (0..4).map(message).collect();
                store_all(&store, &batch).await;
            }
        });
    }
    let (first, second) = (run_all(harness.store()), run_all(harness.store()));
    let importing = async { while importers.join_next().await.is_some() {} };
    tokio::select! {
        () = importing => {}
        () = first => {}
        () = second => {}
    }
    let store = harness.store();
    let drained = async {
        tokio::select! {
            () = run_all(harness.store()) => {}
            () = eventually(|| async { (held_count(&store, CONSUMER).await == 0).then_some(()) }) => {}
        }
    };
    drained.await;
}

/// Runs what is due, in runs and by itself, for ever.
async fn run_all<S: HeldMessages>(store: S) {
    loop {
        let choice = RunChoice { most: 5, apart: &[] };
        match store.claim_run(CONSUMER, limits(), choice).await {
            Ok(RunClaim::Shared(run)) => {
                store.finish_run(CONSUMER, run.tx, &run.members, &[]).await.expect("the commit is proved");
            }
            Err(failed) => {
                store.acquit_heads(CONSUMER, &failed.charged).await.expect("taken back");
            }
            Ok(RunClaim::Apart(_) | RunClaim::Nothing) => {}
        }
        if let Some(claimed) = try_claim(&store, CONSUMER).await {
            store.finish(CONSUMER, claimed.tx, &claimed.head).await.expect("the commit is proved");
        }
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
}
