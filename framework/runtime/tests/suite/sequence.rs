//! The check of the numbers of messages: what it finds, and what it must not take for a finding.

use std::time::Duration;

use backstop::dead_letter::redrive_envelope;
use backstop::source::{Settlement, Source};
use backstop::{
    Consumer, Delivery, ErrorClass, GroupCommit, Handler, HandlerError, Message, RetryPolicy, SequenceCheck,
    Snapshot, names,
};
use backstop_testkit::memory::Broker;
use tokio::sync::oneshot;

use crate::common::{Order, Scene, Trouble, order};

fn numbered(key: &str, number: u64, name: &str, trouble: Trouble) -> Message {
    order(key, name, trouble).header("sequence", number.to_string())
}

/// Publishes messages of one key, named by their numbers.
fn publish(scene: &Scene, numbers: &[u64]) {
    for number in numbers {
        scene.broker.publish("orders", numbered("a", *number, &format!("a{number}"), Trouble::None));
    }
}

async fn run(scene: &Scene, check: SequenceCheck, done: impl Fn(&Scene) -> bool) -> Snapshot {
    let source = scene.broker.source("stock", ["orders"]);
    let consumer = Consumer::transactional("stock", source, scene.store.clone(), scene.handler.clone())
        .dead_letter(scene.broker.dead_letters())
        .retry(ErrorClass::Transient, RetryPolicy::fixed(Duration::from_secs(1)).max_attempts(3))
        .group_commit(scene.groups)
        .sequence_check(check);
    let run = |stopped: oneshot::Receiver<()>| {
        consumer.run(async {
            let _ = stopped.await;
        })
    };
    scene.drive(run, done).await
}

fn check() -> SequenceCheck {
    SequenceCheck::header("sequence")
}

fn strict() -> SequenceCheck {
    check().quarantine_gaps().quarantine_reordered()
}

fn findings(snapshot: &Snapshot) -> (u64, u64, u64) {
    (snapshot.gaps, snapshot.reordered, snapshot.unnumbered)
}

#[tokio::test(start_paused = true)]
async fn gaps_and_reorder_are_counted_and_handled() {
    for groups in [1, 8] {
        let scene = Scene { groups: GroupCommit::up_to(groups), ..Scene::new() };
        publish(&scene, &[1, 2, 5, 3, 6]);
        scene.broker.publish("orders", numbered("b", 7, "b7", Trouble::None));
        scene.publish("b", "b", Trouble::None);
        let report = run(&scene, check(), Scene::settled).await;
        assert_eq!(findings(&report), (1, 1, 1), "in groups of {groups}");
        assert_eq!((report.handled, report.failures), (7, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_not_in_sequence_is_quarantined_where_it_is_wanted() {
    for groups in [1, 8] {
        let scene = Scene { groups: GroupCommit::up_to(groups), ..Scene::new() };
        publish(&scene, &[1, 2, 5, 3, 6]);
        let report = run(&scene, strict(), Scene::settled).await;
        assert_eq!(scene.store.applied(), ["a1", "a2", "a6"], "in groups of {groups}");
        assert_eq!((findings(&report), report.quarantined), ((1, 1, 0), 2));
        let errors: Vec<_> = scene
            .letters()
            .iter()
            .map(|letter| letter.headers.get_str(names::ERROR_MESSAGE).unwrap_or_default().to_owned())
            .collect();
        let expected =
            ["2 messages of its key are missing before number 5", "number 3 of its key came after number 5"];
        assert_eq!(errors, expected);
    }
}

/// Duplicates, retries and redriven messages come with numbers that were seen.
#[tokio::test(start_paused = true)]
async fn what_comes_again_is_no_finding() {
    let scene = Scene::new();
    scene.broker.publish("orders", numbered("a", 1, "a1", Trouble::Transient(2)));
    scene.broker.publish("orders", numbered("a", 2, "a2", Trouble::UntilRedriven(1)));
    publish(&scene, &[3, 3, 4, 1, 2, 3, 5]);
    let first = run(&scene, strict(), |scene| scene.store.applied().len() == 4 && scene.settled()).await;
    assert_eq!(findings(&first), (0, 0, 0));
    // The letter of `a2`, and of the copy of it that came later.
    let letter = scene.letters()[0].clone();
    scene.broker.publish_envelope("orders.stock.redrive", redrive_envelope(&letter));
    publish(&scene, &[6]);
    let second = run(&scene, strict(), |scene| scene.settled() && scene.store.applied().len() == 6).await;
    assert_eq!(findings(&second), (0, 0, 0));
}

/// The inbox knows what the check, which begins anew with its process, cannot know.
#[tokio::test(start_paused = true)]
async fn a_duplicate_from_before_a_restart_is_not_reordered() {
    let scene = Scene::new();
    publish(&scene, &[11]);
    run(&scene, strict(), Scene::settled).await;
    publish(&scene, &[10, 12, 11]);
    let report = run(&scene, check(), Scene::settled).await;
    assert_eq!(findings(&report), (1, 0, 0), "only the gap, which nobody can know to be none");
    assert_eq!(report.duplicates, 1);
}

/// While another instance had the partition, numbers went on there.
#[tokio::test(start_paused = true)]
async fn a_partition_that_comes_back_begins_anew() {
    let scene = Scene::new();
    let keys: Vec<String> = (0..8).map(|n| format!("k{n}")).collect();
    let publish = |number: u64| {
        for key in &keys {
            let name = format!("{key}-{number}");
            scene.broker.publish("orders", numbered(key, number, &name, Trouble::None));
        }
    };
    let source = scene.broker.source("stock", ["orders"]);
    let consumer = Consumer::transactional("stock", source, scene.store.clone(), scene.handler.clone())
        .dead_letter(scene.broker.dead_letters())
        .sequence_check(strict());
    let stats = consumer.stats();
    let (stop, stopped) = oneshot::channel::<()>();
    let run = tokio::spawn(consumer.run(async {
        let _ = stopped.await;
    }));
    publish(1);
    until_settled(&scene).await;

    let mut other = scene.broker.source("stock", ["orders"]);
    publish(2);
    publish(3);
    let theirs = other.next().await.expect("no error").expect("messages");
    let count = theirs.len();
    for mut received in theirs {
        assert!(received.settlement.begin());
        received.settlement.settle();
    }
    until_settled(&scene).await;
    other.close().await.expect("it leaves");

    publish(4);
    until_settled(&scene).await;
    stop.send(()).expect("it runs");
    run.await.expect("no panic").expect("an orderly end");
    let report = stats.snapshot();
    assert!(count > 0 && report.handled as usize == 4 * keys.len() - count, "{report:?}");
    assert_eq!(findings(&report), (0, 0, 0));
}

async fn until_settled(scene: &Scene) {
    while !scene.settled() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_consumer_without_a_database_checks_too() {
    struct Nothing;

    impl Handler<()> for Nothing {
        type Message = Order;

        async fn handle(&self, _: &Delivery<Order>, (): &mut ()) -> Result<(), HandlerError> {
            Ok(())
        }
    }

    let broker = Broker::new();
    for number in [1, 1, 3, 2] {
        broker.publish("orders", numbered("a", number, &format!("a{number}"), Trouble::None));
    }
    let source = broker.source("stock", ["orders"]).ends_when_idle();
    let consumer = Consumer::plain("stock", source, Nothing)
        .dead_letter(broker.dead_letters())
        .sequence_check(check().quarantine_reordered());
    let report = consumer.run(std::future::pending()).await.expect("an orderly end");
    assert_eq!(findings(&report), (1, 1, 0));
    assert_eq!((report.handled, report.quarantined), (3, 1));
}

/// A check that is not asked for costs and counts nothing.
#[tokio::test(start_paused = true)]
async fn without_a_check_numbers_mean_nothing() {
    let scene = Scene::new();
    publish(&scene, &[1, 7, 3]);
    let report = scene.run_until(Scene::settled).await;
    assert_eq!((findings(&report), report.handled), ((0, 0, 0), 3));
}
