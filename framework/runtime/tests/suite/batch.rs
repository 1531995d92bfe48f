//! Batches against the in-memory broker and database: what is promised of a message holds for each of them.

use std::cell::Cell;
use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use backstop::{
    BatchHandler, Consumer, Delivery, ErrorClass, GroupCommit, Handler, HandlerError, Outcomes, RetryPolicy,
    Snapshot, names,
};
use backstop_testkit::memory::{CommitFault, MemoryTx};
use tokio::sync::oneshot;

use crate::common::warm::*;
use crate::common::{Apply, Order, Scene, Trouble};

/// Whom a batch's handler blames.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Blame {
    /// The messages that failed, by their places.
    Named,
    /// Nobody: it fails as a whole.
    Nobody,
    /// A place that is not in the batch, whenever there is more than one message.
    Wrong,
}

/// Applies orders one after another, and writes down what it was given.
#[derive(Clone)]
struct ApplyAll {
    apply: Apply,
    blame: Blame,
    batches: Arc<Mutex<Vec<Vec<String>>>>,
}

impl BatchHandler<MemoryTx> for ApplyAll {
    type Message = Order;

    async fn handle(&self, batch: &[&Delivery<Order>], tx: &mut MemoryTx) -> Result<Outcomes, HandlerError> {
        let given: Vec<String> = batch.iter().map(|delivery| delivery.body().name.clone()).collect();
        self.batches.lock().expect("no panic").push(given);
        let mut outcomes = Outcomes::handled();
        for (at, delivery) in batch.iter().enumerate() {
            match self.apply.handle(delivery, tx).await {
                Ok(()) => {}
                Err(error) if self.blame == Blame::Nobody => return Err(error),
                Err(error) if self.blame == Blame::Wrong && batch.len() > 1 => outcomes.fail(999, error),
                Err(error) => outcomes.fail(at, error),
            }
        }
        Ok(outcomes)
    }
}

/// Runs the consumer until batches are large, publishes what is tested, and goes on until `done` says so.
async fn run(
    scene: &Scene,
    blame: Blame,
    publish: impl Fn(&Scene),
    done: impl Fn(&Scene, &[String]) -> bool,
) -> (Snapshot, Vec<Vec<String>>) {
    publish_warmth(scene);
    let batches = Arc::default();
    let handler = ApplyAll { apply: scene.handler.clone(), blame, batches: Arc::clone(&batches) };
    let source = scene.broker.source("stock", ["orders"]);
    let consumer = Consumer::batch("stock", source, scene.store.clone(), handler)
        .dead_letter(scene.broker.dead_letters())
        .retry(ErrorClass::Transient, RetryPolicy::fixed(Duration::from_secs(1)).max_attempts(3))
        .handler_timeout(Duration::from_secs(10))
        .group_commit(GroupCommit::up_to(64).max_age(Duration::from_secs(3)))
        .concurrency(1);
    let start = |stopped: oneshot::Receiver<()>| {
        consumer.run(async {
            let _ = stopped.await;
        })
    };
    let report = scene.drive(start, once_warm(publish, done)).await;
    let batches = batches.lock().expect("no panic").clone();
    (report, batches)
}

#[tokio::test(start_paused = true)]
async fn a_batch_is_what_waits_and_keeps_its_order() {
    let scene = Scene::new();
    let (report, batches) =
        run(&scene, Blame::Named, publish_around(Trouble::None), |_, applied| applied.len() == 10).await;
    let applied = applied(&scene);
    assert_eq!((of_key(&applied, "a"), of_key(&applied, "b")), (ALL_OF_A.into(), ALL_OF_B.into()));
    assert_eq!((report.handled, report.regrouped), (110, 0), "{report:?}");
    assert_eq!(batches[0].len(), 1, "it begins with one");
    assert!(batches.len() < 40, "{batches:?}");
    assert!(batches.iter().any(|batch| batch.len() >= 10), "{batches:?}");
}

#[tokio::test(start_paused = true)]
async fn whoever_is_named_is_charged_alone_and_keeps_its_key_in_order() {
    for blame in [Blame::Named, Blame::Nobody, Blame::Wrong] {
        let scene = Scene::new();
        let trouble = publish_around(Trouble::Transient(2));
        let (report, batches) = run(&scene, blame, trouble, |_, applied| applied.len() == 10).await;
        let applied = applied(&scene);
        assert_eq!((of_key(&applied, "a"), of_key(&applied, "b")), (ALL_OF_A.into(), ALL_OF_B.into()));
        assert_eq!((report.failures, report.held, report.quarantined), (2, 1, 0), "{blame:?} {report:?}");
        assert!(report.regrouped > 0, "{blame:?} {report:?}");
        let alone = batches.iter().filter(|batch| *batch == &["a2"]).count();
        assert_eq!(alone, 3, "{blame:?}: charged twice, and then handled: {batches:?}");
    }
}

/// Where the guilty are named, their neighbours go on together.
#[tokio::test(start_paused = true)]
async fn the_neighbours_of_those_who_are_named_stay_a_batch() {
    let scene = Scene::new();
    let publish = |scene: &Scene| {
        for n in 0..20 {
            let trouble = if matches!(n, 3 | 4 | 11) { Trouble::Permanent } else { Trouble::None };
            scene.publish("a", &format!("a{n:02}"), trouble);
        }
    };
    let (report, batches) = run(&scene, Blame::Named, publish, |_, applied| applied.len() == 17).await;
    let batches: Vec<_> = batches.into_iter().filter(|batch| batch[0].starts_with('a')).collect();
    assert!(of_key(&applied(&scene), "a").is_sorted());
    assert_eq!((report.failures, report.quarantined), (3, 3), "{report:?}");
    assert!(batches.len() <= 16, "{batches:?}");
}

#[tokio::test(start_paused = true)]
async fn what_is_given_up_is_a_letter_and_its_neighbours_are_applied() {
    for trouble in [Trouble::Permanent, Trouble::Panic, Trouble::Slow(9), Trouble::Swallow(9)] {
        for blame in [Blame::Named, Blame::Nobody] {
            let scene = Scene::new();
            let others = |scene: &Scene, applied: &[String]| applied.len() == 9 && scene.letters().len() == 1;
            let (report, _) = run(&scene, blame, publish_around(trouble), others).await;
            let applied = applied(&scene);
            assert_eq!(of_key(&applied, "a"), ["a0", "a1", "a3", "a4"], "{trouble:?}");
            assert_eq!(of_key(&applied, "b"), ALL_OF_B, "{trouble:?}");
            let attempts = if trouble == Trouble::Permanent { "1" } else { "3" };
            assert_eq!(scene.letters()[0].headers.get_str(names::ATTEMPTS), Some(attempts), "{trouble:?}");
            assert_eq!(report.quarantined, 1, "{trouble:?}");
        }
    }
}

/// Neither what was handled, nor the same message twice.
#[tokio::test(start_paused = true)]
async fn duplicates_never_reach_a_batch() {
    let scene = Scene::new();
    let publish = |scene: &Scene| {
        for n in 0..3 {
            for _ in 0..3 {
                scene.publish("a", &format!("a{n}"), Trouble::None);
            }
        }
        scene.publish("warm", "w1", Trouble::None);
    };
    let (report, batches) = run(&scene, Blame::Named, publish, |_, applied| applied.len() == 3).await;
    assert_eq!(applied(&scene), ["a0", "a1", "a2"]);
    assert_eq!((report.handled, report.duplicates), (103, 7));
    let given: Vec<_> = batches.into_iter().flatten().collect();
    assert_eq!(given.len(), given.iter().collect::<HashSet<_>>().len(), "{given:?}");
}

/// What waits behind a held message of its key is in no batch before that one is done.
#[tokio::test(start_paused = true)]
async fn messages_of_held_keys_never_reach_a_batch() {
    let scene = Scene::new();
    let publish = |scene: &Scene| {
        scene.publish("a", "a0", Trouble::Transient(2));
        for n in 1..5 {
            scene.publish("a", &format!("a{n}"), Trouble::None);
            scene.publish("b", &format!("b{n}"), Trouble::None);
        }
    };
    let (report, batches) = run(&scene, Blame::Named, publish, |_, applied| applied.len() == 9).await;
    assert_eq!((report.held, report.waiting), (1, 4), "{report:?}");
    let given: Vec<_> = batches.into_iter().flatten().collect();
    let last_try = given.iter().rposition(|name| name == "a0").expect("it was tried");
    // The batch that failed had them all, and so had nobody of them.
    let after_rollback = given.iter().position(|name| name == "a0").expect("it was tried") + 9;
    let early = given[after_rollback..last_try].iter().filter(|name| name.starts_with('a') && *name != "a0");
    assert_eq!(early.count(), 0, "{given:?}");
}

#[tokio::test(start_paused = true)]
async fn a_deadlock_makes_batches_smaller_and_charges_nobody() {
    let scene = Scene::new();
    let calls = scene.handler.0.clone();
    let publish = |scene: &Scene| {
        let until = calls.load(Ordering::SeqCst) + 6;
        publish_around(Trouble::Conflict(until))(scene);
    };
    let (report, _) = run(&scene, Blame::Nobody, publish, |_, applied| applied.len() == 10).await;
    assert_eq!(of_key(&applied(&scene), "a"), ALL_OF_A);
    assert_eq!((report.failures, report.held), (0, 0), "{report:?}");
    assert!(report.regrouped > 0, "{report:?}");
}

#[tokio::test(start_paused = true)]
async fn a_commit_of_a_batch_nobody_knows_of_is_looked_up() {
    for fault in [
        CommitFault::Unknown { committed: true },
        CommitFault::Unknown { committed: false },
        CommitFault::RolledBack,
    ] {
        let scene = Scene::new();
        let publish = |scene: &Scene| {
            publish_around(Trouble::None)(scene);
            scene.store.fail_next_commit(fault);
        };
        let (report, _) = run(&scene, Blame::Named, publish, |_, applied| applied.len() == 10).await;
        assert_eq!(of_key(&applied(&scene), "a"), ALL_OF_A, "{fault:?}");
        assert_eq!((report.handled, report.failures), (110, 0), "{fault:?}");
    }
}

/// A handler that commits by itself is found out, and gets no more batches to do it to.
#[tokio::test(start_paused = true)]
async fn a_handler_that_commits_by_itself_gets_batches_of_one() {
    let scene = Scene::new();
    let publish = |scene: &Scene| {
        (0..8).for_each(|n| scene.publish("a", &format!("a{n}"), Trouble::None));
        scene.publish("a", "a8", Trouble::RawCommit);
    };
    let found_out = Cell::new(false);
    let done = |scene: &Scene, applied: &[String]| {
        if applied.len() == 9 && !found_out.replace(true) {
            (0..8).for_each(|n| scene.publish("b", &format!("b{n}"), Trouble::None));
        }
        applied.len() == 17
    };
    let (report, batches) = run(&scene, Blame::Named, publish, done).await;
    assert_eq!((report.handled, report.failures), (117, 0), "{report:?}");
    let after: Vec<_> = batches.iter().filter(|batch| batch[0].starts_with('b')).collect();
    assert_eq!(after.len(), 8, "{batches:?}");
}

#[tokio::test(start_paused = true)]
async fn a_database_that_is_down_is_waited_for_by_batches() {
    let scene = Scene::new();
    let publish = |scene: &Scene| {
        publish_around(Trouble::None)(scene);
        scene.store.fail_begins(25);
    };
    let (report, _) = run(&scene, Blame::Named, publish, |_, applied| applied.len() == 10).await;
    assert_eq!((report.failures, report.held), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_message_without_company_is_a_batch_of_one() {
    let scene = Scene::new();
    let publish = |scene: &Scene| scene.publish("a", "a0", Trouble::None);
    let (report, batches) = run(&scene, Blame::Named, publish, |_, applied| applied.len() == 1).await;
    assert_eq!(batches.last().map(Vec::as_slice), Some(["a0".to_owned()].as_slice()));
    assert_eq!(report.handled, 101);
}
