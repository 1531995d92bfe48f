//! Group commit against the in-memory broker and database: what is promised of a message holds in company too.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use backstop::inbox::{GroupAdmission, Inbox, Limits, Unit};
use backstop::{
    AdapterError, Consumer, Delivery, ErrorClass, FaultKind, GroupCommit, Handler, HandlerError, Message,
    MessageKey, RetryPolicy, Snapshot, names,
};
use backstop_testkit::memory::{CommitFault, MemoryTx, Store};
use tokio::sync::oneshot;

use crate::common::warm::*;
use crate::common::{Apply, InTrouble, Order, Scene, Trouble};

fn scene() -> Scene {
    Scene { groups: GroupCommit::up_to(64).max_age(Duration::from_secs(3)), concurrency: 1, ..Scene::new() }
}

/// Runs the consumer until groups are large, publishes what is tested, and goes on until `done` says so.
async fn run(scene: &Scene, publish: impl Fn(&Scene), done: impl Fn(&Scene, &[String]) -> bool) -> Snapshot {
    publish_warmth(scene);
    scene.run_until(once_warm(publish, done)).await
}

#[tokio::test(start_paused = true)]
async fn messages_share_a_transaction_and_keep_their_order() {
    let scene = scene();
    let report = run(&scene, publish_around(Trouble::None), |_, applied| applied.len() == 10).await;
    let applied = applied(&scene);
    assert_eq!((of_key(&applied, "a"), of_key(&applied, "b")), (ALL_OF_A.into(), ALL_OF_B.into()));
    assert!(report.grouped > 100, "{report:?}");
    assert_eq!((report.handled, report.regrouped), (110, 0));
    assert_eq!(scene.handler.0.load(Ordering::SeqCst), 110, "nobody is handled twice");
}

/// F77: in memory.
#[tokio::test(start_paused = true)]
async fn whoever_fails_in_a_group_is_charged_alone_and_keeps_its_key_in_order() {
    let scene = scene();
    let report = run(&scene, publish_around(Trouble::Transient(2)), |_, applied| applied.len() == 10).await;
    let applied = applied(&scene);
    assert_eq!((of_key(&applied, "a"), of_key(&applied, "b")), (ALL_OF_A.into(), ALL_OF_B.into()));
    assert_eq!((report.failures, report.held, report.quarantined), (2, 1, 0), "{report:?}");
    assert!(report.regrouped > 0, "{report:?}");
}

#[tokio::test(start_paused = true)]
async fn what_is_given_up_in_a_group_is_a_letter_and_its_neighbours_are_applied() {
    for trouble in [Trouble::Permanent, Trouble::Panic, Trouble::Slow(9), Trouble::Swallow(9)] {
        let scene = scene();
        let others = |scene: &Scene, applied: &[String]| applied.len() == 9 && scene.letters().len() == 1;
        let report = run(&scene, publish_around(trouble), others).await;
        let applied = applied(&scene);
        assert_eq!(of_key(&applied, "a"), ["a0", "a1", "a3", "a4"], "{trouble:?}");
        assert_eq!(of_key(&applied, "b"), ALL_OF_B, "{trouble:?}");
        let attempts = if trouble == Trouble::Permanent { "1" } else { "3" };
        assert_eq!(scene.letters()[0].headers.get_str(names::ATTEMPTS), Some(attempts), "{trouble:?}");
        assert_eq!(report.quarantined, 1, "{trouble:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn several_failures_in_one_group_harm_nobody_else() {
    let scene = scene();
    let publish = |scene: &Scene| {
        for n in 0..40 {
            let trouble = match n % 8 {
                3 => Trouble::Permanent,
                5 => Trouble::Transient(1),
                _ => Trouble::None,
            };
            scene.publish(&format!("k{}", n % 5), &format!("{}-{n:02}", n % 5), trouble);
        }
    };
    let report = run(&scene, publish, |_, applied| applied.len() == 35).await;
    for key in 0..5 {
        let of_key: Vec<_> =
            applied(&scene).into_iter().filter(|name| name.starts_with(&key.to_string())).collect();
        assert!(of_key.is_sorted(), "{of_key:?}");
    }
    assert_eq!((report.failures, report.quarantined), (10, 5), "{report:?}");
}

/// F78: one effect.
#[tokio::test(start_paused = true)]
async fn duplicates_inside_a_group_are_applied_once() {
    let scene = scene();
    let publish = |scene: &Scene| {
        for n in 0..3 {
            for _ in 0..3 {
                scene.publish("a", &format!("a{n}"), Trouble::None);
            }
        }
        scene.publish("warm", "w1", Trouble::None);
    };
    let report = run(&scene, publish, |_, applied| applied.len() == 3).await;
    assert_eq!(applied(&scene), ["a0", "a1", "a2"]);
    assert_eq!((report.handled, report.duplicates), (103, 7));
}

/// The first of two equal messages fails with its group: the second must not be settled for it.
#[tokio::test(start_paused = true)]
async fn a_duplicate_of_a_message_that_was_rolled_back_is_not_lost() {
    let scene = scene();
    let publish = |scene: &Scene| {
        scene.publish("a", "a0", Trouble::None);
        scene.publish("a", "a1", Trouble::Transient(1));
        scene.publish("a", "a1", Trouble::Transient(1));
        scene.publish("a", "a2", Trouble::None);
    };
    run(&scene, publish, |_, applied| applied.len() == 3).await;
    assert_eq!(applied(&scene), ["a0", "a1", "a2"]);
}

#[tokio::test(start_paused = true)]
async fn a_deadlock_makes_groups_smaller_and_charges_nobody() {
    let scene = scene();
    let calls = scene.handler.0.clone();
    let publish = |scene: &Scene| {
        let until = calls.load(Ordering::SeqCst) + 6;
        publish_around(Trouble::Conflict(until))(scene);
    };
    let report = run(&scene, publish, |_, applied| applied.len() == 10).await;
    assert_eq!(of_key(&applied(&scene), "a"), ALL_OF_A);
    assert_eq!((report.failures, report.held), (0, 0), "{report:?}");
    assert!(report.regrouped > 0, "{report:?}");
}

/// Takes a moment for each message; the first of a group that is named `a2` meets another transaction. Remembers how many were
/// at work at once afterwards.
#[derive(Clone, Default)]
struct Crowd {
    apply: Apply,
    met: Arc<AtomicBool>,
    now: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
}

impl Handler<MemoryTx> for Crowd {
    type Message = Order;

    async fn handle(&self, delivery: &Delivery<Order>, tx: &mut MemoryTx) -> Result<(), HandlerError> {
        if delivery.body().name == "a2" && !self.met.swap(true, Ordering::SeqCst) {
            return Err(AdapterError::new(FaultKind::Conflict, "a deadlock").into());
        }
        let others = self.now.fetch_add(1, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(1)).await;
        self.now.fetch_sub(1, Ordering::SeqCst);
        if self.met.load(Ordering::SeqCst) {
            self.most.fetch_max(others + 1, Ordering::SeqCst);
        }
        self.apply.handle(delivery, tx).await
    }
}

/// How many handlers are at work at once, of 8 that may, after one group has met another transaction, or none has. Some
/// messages fail and are held meanwhile.
async fn most_at_once(meets: bool) -> usize {
    let scene = Scene { concurrency: 8, ..scene() };
    let handler = Crowd { apply: scene.handler.clone(), ..Crowd::default() };
    let (met, most) = (handler.met.clone(), handler.most.clone());
    let source = scene.broker.source("stock", ["orders"]);
    let consumer = Consumer::transactional("stock", source, scene.store.clone(), handler)
        .dead_letter(scene.broker.dead_letters())
        .group_commit(scene.groups)
        .retry(ErrorClass::Transient, RetryPolicy::fixed(Duration::from_millis(5)))
        .concurrency(scene.concurrency);
    publish_warmth(&scene);
    let publish = |scene: &Scene| {
        met.store(!meets, Ordering::SeqCst);
        publish_around(Trouble::None)(scene);
    };
    let published_more = AtomicBool::new(false);
    let warm = once_warm(publish, |_, applied| applied.len() >= 10);
    let done = |scene: &Scene| {
        // What is published when the group has met the other: what was at work beside it is done.
        if warm(scene) && !published_more.swap(true, Ordering::SeqCst) {
            most.store(0, Ordering::SeqCst);
            (0..200).for_each(|n| {
                let trouble = if n % 20 == 7 { Trouble::Transient(1) } else { Trouble::None };
                scene.publish(&format!("k{}", n % 40), &format!("n{n}"), trouble);
            });
        }
        published_more.load(Ordering::SeqCst) && scene.settled() && scene.store.applied().len() == 310
    };
    let run = |stopped: oneshot::Receiver<()>| {
        consumer.run(async {
            let _ = stopped.await;
        })
    };
    scene.drive(run, done).await;
    most.load(Ordering::SeqCst)
}

#[tokio::test(start_paused = true)]
async fn after_a_deadlock_handlers_have_turns() {
    assert!(most_at_once(false).await > 1);
    assert_eq!(most_at_once(true).await, 1);
}

#[tokio::test(start_paused = true)]
async fn a_shared_commit_nobody_knows_of_is_looked_up() {
    for fault in [
        CommitFault::Unknown { committed: true },
        CommitFault::Unknown { committed: false },
        CommitFault::RolledBack,
    ] {
        let scene = scene();
        let publish = |scene: &Scene| {
            publish_around(Trouble::None)(scene);
            scene.store.fail_next_commit(fault);
        };
        let report = run(&scene, publish, |_, applied| applied.len() == 10).await;
        assert_eq!(of_key(&applied(&scene), "a"), ALL_OF_A, "{fault:?}");
        assert_eq!((report.handled, report.failures), (110, 0), "{fault:?}");
    }
}

/// A handler that commits by itself commits the inbox rows of those that come after it.
#[tokio::test(start_paused = true)]
async fn a_handler_that_commits_by_itself_loses_nothing_of_its_neighbours() {
    let scene = scene();
    let publish = |scene: &Scene| {
        scene.publish("a", "a0", Trouble::None);
        scene.publish("a", "a1", Trouble::RawCommit);
        scene.publish("a", "a2", Trouble::Permanent);
        scene.publish("a", "a3", Trouble::None);
        scene.publish("a", "a4", Trouble::None);
    };
    let done = |scene: &Scene, applied: &[String]| applied.len() == 4 && scene.letters().len() == 1;
    let report = run(&scene, publish, done).await;
    assert_eq!(applied(&scene), ["a0", "a1", "a3", "a4"]);
    assert_eq!(report.quarantined, 1);
}

/// Those too that nothing else goes wrong with: whoever comes after it is not called in what is left of the transaction.
#[tokio::test(start_paused = true)]
async fn a_handler_that_ends_its_transaction_takes_no_neighbour_with_it() {
    for trouble in [Trouble::RawCommit, Trouble::RawCommitAndConflict] {
        let scene = scene();
        let neighbours = |applied: &[String]| -> Vec<String> {
            applied.iter().filter(|name| *name != "a2").cloned().collect()
        };
        run(&scene, publish_around(trouble), |_, applied| neighbours(applied).len() >= 9).await;
        let applied = neighbours(&applied(&scene));
        assert_eq!(of_key(&applied, "a"), ["a0", "a1", "a3", "a4"], "{trouble:?}");
        assert_eq!(of_key(&applied, "b"), ALL_OF_B, "{trouble:?}");
    }
}

/// Loses its connection in the middle of a group, of whose messages another instance handles some before it can say so.
#[derive(Clone)]
struct Overtaken {
    apply: Apply,
    store: Store,
    seen: Arc<Mutex<Vec<MessageKey>>>,
    /// How many messages the other instance handles.
    others: usize,
    /// Whether this handler notices.
    notices: bool,
}

impl Overtaken {
    /// What the other instance does.
    async fn overtake(&self, place: &str) {
        let seen = self.seen.lock().expect("no panic").split_off(0);
        let (source, _) = seen[0].as_str().rsplit_once('|').expect("a source and an id");
        let keys: Vec<_> =
            (0..self.others).map(|n| MessageKey::new(source, format!("a{n}").as_bytes())).collect();
        let unit = |key| Unit { consumer: "stock", place, ordering_key: b"a".as_slice(), message_key: key };
        let units: Vec<Unit<'_>> = keys.iter().map(unit).collect();
        let limits = Limits { handler: Duration::from_secs(1), lock: Duration::from_secs(1) };
        let admission = self.store.begin_group(&units, limits).await.expect("the database answers");
        let GroupAdmission::Shared { mut tx, .. } = admission else { panic!("nobody else is at them") };
        keys.iter().for_each(|key| tx.apply(key.as_str().rsplit('|').next().unwrap_or_default()));
        self.store.commit(tx).await.expect("committed");
    }
}

impl Handler<MemoryTx> for Overtaken {
    type Message = Order;

    async fn handle(&self, delivery: &Delivery<Order>, tx: &mut MemoryTx) -> Result<(), HandlerError> {
        let body = delivery.body();
        if body.name.starts_with('a') && !self.store.applied().contains(&"a0".to_owned()) {
            self.seen.lock().expect("no panic").push(delivery.message_key().clone());
            if body.name == "a2" {
                tx.lose();
                self.overtake(delivery.origin().place()).await;
                return if self.notices { Err(InTrouble.into()) } else { Ok(()) };
            }
        }
        self.apply.handle(delivery, tx).await
    }
}

/// All five messages are applied once, whatever another instance handled of them.
async fn overtaken(others: usize, notices: bool) {
    let scene = scene();
    let (apply, store) = (scene.handler.clone(), scene.store.clone());
    let handler = Overtaken { apply, store, seen: Arc::default(), others, notices };
    let source = scene.broker.source("stock", ["orders"]);
    let consumer = Consumer::transactional("stock", source, scene.store.clone(), handler)
        .dead_letter(scene.broker.dead_letters())
        .group_commit(scene.groups)
        .concurrency(1);
    publish_warmth(&scene);
    let publish = |scene: &Scene| {
        for n in 0..5 {
            scene.publish("a", &format!("a{n}"), Trouble::None);
        }
    };
    let run = |stopped: oneshot::Receiver<()>| {
        consumer.run(async {
            let _ = stopped.await;
        })
    };
    let report = scene.drive(run, once_warm(publish, |_, _| true)).await;
    let mut applied = applied(&scene);
    applied.sort();
    assert_eq!(applied, ALL_OF_A);
    assert!(report.duplicates >= others as u64, "{report:?}");
}

/// A transaction that is lost is not one that the handler has committed, whatever the inbox knows by then.
#[tokio::test(start_paused = true)]
async fn what_another_instance_has_handled_meanwhile_is_not_applied_again() {
    overtaken(3, true).await;
}

/// Neither where that comes to light between two handlers, and another instance has handled all of them by then.
#[tokio::test(start_paused = true)]
async fn a_transaction_lost_between_handlers_is_not_one_that_a_handler_has_committed() {
    overtaken(5, false).await;
}

/// Of a group whose commit nobody knows of, one may be in the inbox by another instance that was not given the others.
#[tokio::test(start_paused = true)]
async fn one_message_in_the_inbox_does_not_stand_for_its_group() {
    overtaken(1, false).await;
}

/// F87: groups wait too.
#[tokio::test(start_paused = true)]
async fn a_database_that_is_down_is_waited_for_by_groups() {
    let scene = scene();
    let publish = |scene: &Scene| {
        publish_around(Trouble::None)(scene);
        scene.store.fail_begins(25);
    };
    let report = run(&scene, publish, |_, applied| applied.len() == 10).await;
    assert_eq!((report.failures, report.held), (0, 0));
}

/// What is too late for its transaction goes into the next, and is handled once all the same.
#[tokio::test]
async fn an_old_transaction_begins_nothing_more() {
    let scene = Scene { groups: GroupCommit::up_to(64).max_age(Duration::ZERO), ..scene() };
    let report = run(&scene, publish_around(Trouble::None), |_, applied| applied.len() == 10).await;
    assert_eq!(of_key(&applied(&scene), "a"), ALL_OF_A);
    assert_eq!((report.handled, report.regrouped), (110, 0));
    assert_eq!(scene.handler.0.load(Ordering::SeqCst), 110, "nobody is handled twice");
    assert_eq!(scene.store.handled(), 110);
}

/// Messages of one key, of which one cannot be read.
fn publish_odd_between(scene: &Scene) {
    scene.publish("a", "a0", Trouble::None);
    scene.publish("a", "a1", Trouble::None);
    let odd = Message::new("order").id("odd").source("/tests").key("a").body("text/plain", "not JSON");
    scene.broker.publish("orders", odd);
    scene.publish("a", "a2", Trouble::None);
}

/// What cannot be read does not overtake its key, nor is it overtaken.
#[tokio::test(start_paused = true)]
async fn an_odd_message_between_others_keeps_its_place() {
    let scene = scene();
    let done = |scene: &Scene, applied: &[String]| applied.len() == 3 && scene.letters().len() == 1;
    run(&scene, publish_odd_between, done).await;
    assert_eq!(applied(&scene), ["a0", "a1", "a2"]);
    assert_eq!(scene.letters()[0].headers.get_str(names::REASON), Some("undecodable"));
}

/// How old a transaction may be where that matters.
const AGE: Duration = Duration::from_millis(50);

/// Takes a while for `a0`, and says when it has begun with it.
struct Lingering {
    apply: Apply,
    began: Arc<AtomicBool>,
}

impl Handler<MemoryTx> for Lingering {
    type Message = Order;

    async fn handle(&self, delivery: &Delivery<Order>, tx: &mut MemoryTx) -> Result<(), HandlerError> {
        if delivery.body().name == "a0" {
            self.began.store(true, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_secs(1)).await;
            // The age of a transaction is told by a clock that tests do not set.
            std::thread::sleep(AGE);
        }
        self.apply.handle(delivery, tx).await
    }
}

/// What is left in a group for the next run is not overtaken in this one.
#[tokio::test(start_paused = true)]
async fn a_stop_in_the_middle_of_a_group_leaves_all_that_follows() {
    let scene = scene();
    publish_warmth(&scene);
    let (began, published) = (Arc::new(AtomicBool::new(false)), AtomicBool::new(false));
    let handler = Lingering { apply: scene.handler.clone(), began: began.clone() };
    let source = scene.broker.source("stock", ["orders"]);
    let consumer = Consumer::transactional("stock", source, scene.store.clone(), handler)
        .dead_letter(scene.broker.dead_letters())
        .group_commit(GroupCommit::up_to(64).max_age(AGE))
        .concurrency(1);
    let run = |stopped: oneshot::Receiver<()>| {
        consumer.run(async {
            let _ = stopped.await;
        })
    };
    let at_a0 = |scene: &Scene| {
        if scene.store.applied().len() == 100 && !published.swap(true, Ordering::SeqCst) {
            publish_odd_between(scene);
        }
        began.load(Ordering::SeqCst)
    };
    scene.drive(run, at_a0).await;
    let (applied_before, letters_before) = (applied(&scene), scene.letters().len());
    assert_eq!((applied_before.len(), letters_before), (1, 0), "{applied_before:?}");
    let done = |scene: &Scene| scene.settled() && scene.letters().len() == 1;
    scene.run_until(done).await;
    assert_eq!(applied(&scene), ["a0", "a1", "a2"]);
}

#[tokio::test(start_paused = true)]
async fn a_message_without_company_waits_for_none() {
    let scene = scene();
    scene.publish("a", "a0", Trouble::None);
    let report = scene.run_until(|scene| scene.settled() && scene.store.applied().len() == 1).await;
    assert_eq!((report.handled, report.grouped), (1, 0));
}
