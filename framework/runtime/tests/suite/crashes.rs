//! Messages that fell the process that handles them. A process dies here by being dropped, wherever it is.

use std::future::Future;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use backstop::source::Source as _;
use backstop::{
    Consumer, Delivery, ErrorClass, GroupCommit, Handler, HandlerError, RetryPolicy, RunError, Snapshot,
    StopPartition, names,
};
use backstop_testkit::memory::MemoryTx;
use tokio::sync::Notify;

use crate::common::{InTrouble, Order, Scene, Trouble};

/// What a handler shares with its test.
#[derive(Default)]
struct World {
    /// A process dies now.
    death: Notify,
    /// Handlers at work, and the most that were so at once.
    at_work: AtomicU32,
    most_at_work: AtomicU32,
    /// Names, in the order of calls.
    calls: Mutex<Vec<String>>,
}

/// Applies orders; one whose name begins with `poison` ends its process, after as many errors as `Transient` says.
#[derive(Clone)]
struct Mortal(Arc<World>);

struct AtWork<'a>(&'a World);

impl Drop for AtWork<'_> {
    fn drop(&mut self) {
        self.0.at_work.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Handler<MemoryTx> for Mortal {
    type Message = Order;

    async fn handle(&self, delivery: &Delivery<Order>, tx: &mut MemoryTx) -> Result<(), HandlerError> {
        let (world, order) = (&*self.0, delivery.body());
        world.calls.lock().expect("no panic").push(order.name.clone());
        let now = world.at_work.fetch_add(1, Ordering::SeqCst) + 1;
        let _at_work = AtWork(world);
        world.most_at_work.fetch_max(now, Ordering::SeqCst);
        if matches!(order.trouble, Trouble::Transient(errors) if delivery.attempt() <= errors) {
            return Err(InTrouble.into());
        }
        if order.name.starts_with("poison") {
            world.death.notify_one();
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
        tx.apply(&order.name);
        Ok(())
    }
}

struct Fleet {
    scene: Scene,
    world: Arc<World>,
    max_crashes: u32,
    keeps: bool,
}

impl Fleet {
    fn new() -> Self {
        let scene = Scene::new();
        Self { scene, world: Arc::default(), max_crashes: 3, keeps: false }
    }

    /// Twenty orders of five keys, and one among them that is poison.
    fn publish(&self, trouble: Trouble) {
        for n in 0..20 {
            if n == 9 {
                self.scene.publish("key-2", "poison", trouble);
            }
            self.scene.publish(&format!("key-{}", n % 5), &format!("{n}"), Trouble::None);
        }
    }

    async fn live(&self, shutdown: impl Future<Output = ()> + Send + 'static) -> Result<Snapshot, RunError> {
        self.live_in("stock", shutdown).await
    }

    async fn live_in(
        &self,
        group: &str,
        shutdown: impl Future<Output = ()> + Send + 'static,
    ) -> Result<Snapshot, RunError> {
        let (broker, store) = (&self.scene.broker, self.scene.store.clone());
        let handler = Mortal(self.world.clone());
        let consumer = Consumer::transactional("stock", broker.source(group, ["orders"]), store, handler)
            .retry(ErrorClass::Transient, RetryPolicy::fixed(Duration::from_secs(1)).max_attempts(3))
            .group_commit(self.scene.groups)
            .concurrency(self.scene.concurrency)
            .drain_timeout(Duration::from_secs(1))
            .handler_timeout(Duration::from_secs(60))
            .max_crashes(self.max_crashes);
        if self.keeps {
            return consumer.dead_letter(StopPartition).run(shutdown).await;
        }
        consumer.dead_letter(broker.dead_letters()).run(shutdown).await
    }

    /// Runs one process after another until `done` says so; how many have died.
    async fn outlive(&self, done: impl Fn(&Scene) -> bool) -> u32 {
        self.outlive_in("stock", done).await
    }

    async fn outlive_in(&self, group: &str, done: impl Fn(&Scene) -> bool) -> u32 {
        let limit = tokio::time::Instant::now() + Duration::from_secs(3_600);
        let mut deaths = 0;
        loop {
            let until_done = async {
                while !done(&self.scene) {
                    assert!(tokio::time::Instant::now() < limit, "applied {:?}", self.scene.store.applied());
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            };
            tokio::select! {
                ended = self.live_in(group, std::future::pending()) => panic!("it ended: {ended:?}"),
                () = self.world.death.notified() => deaths += 1,
                () = until_done => return deaths,
            }
        }
    }

    fn applied(&self) -> Vec<String> {
        let mut applied = self.scene.store.applied();
        applied.sort_by_key(|name| name.parse::<u32>().ok());
        applied
    }

    /// All but the poison are applied once, the poison is a letter, and nobody else is charged any more.
    fn assert_settled(&self, attempts: &str) {
        assert_eq!(self.applied(), (0..20).map(|n| n.to_string()).collect::<Vec<_>>());
        let letters = self.scene.letters();
        let told: Vec<_> = letters
            .iter()
            .map(|letter| (letter.headers.get_str(names::REASON), letter.headers.get_str(names::ATTEMPTS)))
            .collect();
        assert_eq!(told, [(Some("crashed-process"), Some(attempts))]);
        assert_eq!(self.scene.store.charged(), 1);
    }
}

fn is_settled(scene: &Scene) -> bool {
    scene.letters().len() == 1 && scene.settled() && scene.store.applied().len() == 20
}

/// The first death is not charged: nobody can tell which of many it was.
#[tokio::test(start_paused = true)]
async fn a_message_that_fells_its_process_is_quarantined_and_the_others_are_applied_once() {
    for max_crashes in [2, 3] {
        let fleet = Fleet { max_crashes, ..Fleet::new() };
        fleet.publish(Trouble::None);
        assert_eq!(fleet.outlive(is_settled).await, 1 + max_crashes);
        fleet.assert_settled(&max_crashes.to_string());
    }
}

#[tokio::test(start_paused = true)]
async fn a_message_that_fells_a_process_with_its_group_is_found_out() {
    let mut fleet = Fleet::new();
    (fleet.scene.groups, fleet.scene.concurrency) = (GroupCommit::up_to(64), 1);
    fleet.publish(Trouble::None);
    assert_eq!(fleet.outlive(is_settled).await, 1 + 3);
    fleet.assert_settled("3");
}

/// It failed in order before, so that it is held: there every run is charged. Its one attempt counts too.
#[tokio::test(start_paused = true)]
async fn a_held_message_that_fells_its_process_is_quarantined() {
    let fleet = Fleet::new();
    fleet.publish(Trouble::Transient(1));
    assert_eq!(fleet.outlive(is_settled).await, 3);
    fleet.assert_settled("4");
}

/// A process that dies before it has stored its position is handed the message again: it is not tried once more.
#[tokio::test(start_paused = true)]
async fn what_was_given_up_is_not_tried_again_when_it_comes_again() {
    let fleet = Fleet::new();
    fleet.scene.publish("key", "0", Trouble::None);
    fleet.scene.publish("key-1", "poison", Trouble::Transient(1));
    fleet.scene.publish("key-1", "1", Trouble::None);
    assert_eq!(fleet.outlive(|scene| scene.store.applied().len() == 2).await, 3);
    // Another group is where this one would be if it had lost its position: someone had all of it, and died.
    let mut lost = fleet.scene.broker.source("again", ["orders"]);
    lost.next().await.expect("it goes on").expect("messages");
    drop(lost);
    let deaths = fleet.outlive_in("again", |scene| scene.broker.unsettled("again") == 0).await;
    assert_eq!(deaths, 0, "its charges were found");
}

/// The same where nothing says that a process died: the position was set back, or its owner could not tell the broker
/// that it was at work.
#[tokio::test(start_paused = true)]
async fn what_was_given_up_is_not_tried_again_where_nobody_suspects_it() {
    for groups in [GroupCommit::up_to(1), GroupCommit::up_to(64)] {
        let mut fleet = Fleet::new();
        fleet.scene.groups = groups;
        fleet.scene.publish("key", "0", Trouble::None);
        fleet.scene.publish("key-1", "poison", Trouble::Transient(1));
        fleet.scene.publish("key-1", "1", Trouble::None);
        assert_eq!(fleet.outlive(|scene| scene.store.applied().len() == 2).await, 3);
        let deaths = fleet.outlive_in("again", |scene| scene.broker.unsettled("again") == 0).await;
        assert_eq!((deaths, fleet.scene.store.charged()), (0, 1), "its charges were found");
        let end = tokio::time::Instant::now() + Duration::from_secs(60);
        let deaths = fleet.outlive_in("again", |_| tokio::time::Instant::now() > end).await;
        assert_eq!((deaths, fleet.scene.store.charged()), (0, 1), "it is not held, either");
    }
}

/// What is held beside the poison dies with it once, and is then run by itself.
#[tokio::test(start_paused = true)]
async fn whoever_is_held_beside_it_is_not_taken_for_it() {
    let fleet = Fleet { max_crashes: 2, ..Fleet::new() };
    for n in 0..20 {
        fleet.scene.publish(&format!("key-{n}"), &format!("{n}"), Trouble::Transient(1));
    }
    fleet.scene.publish("key", "poison", Trouble::Transient(1));
    assert_eq!(fleet.outlive(is_settled).await, 2);
    fleet.assert_settled("3");
}

#[tokio::test(start_paused = true)]
async fn suspects_are_charged_and_tried_beside_each_other_and_then_all_goes_on() {
    let fleet = Fleet::new();
    for n in 0..40 {
        fleet.scene.publish(&format!("key-{n}"), &n.to_string(), Trouble::None);
    }
    tokio::select! {
        ended = fleet.live(std::future::pending()) => panic!("it ended: {ended:?}"),
        () = tokio::time::sleep(Duration::from_millis(12)) => {}
    }
    tokio::task::yield_now().await;
    assert_eq!(fleet.world.most_at_work.swap(0, Ordering::SeqCst), 4);
    let before = fleet.scene.store.applied().len();
    assert!((1..40).contains(&before), "it died in the middle: {before}");
    let report = fleet.scene.drive(
        |stopped| {
            let fleet = Fleet { scene: same(&fleet.scene), world: fleet.world.clone(), ..Fleet::new() };
            async move { fleet.live(async { drop(stopped.await) }).await }
        },
        |scene| scene.store.applied().len() == 40,
    );
    let report = report.await;
    assert_eq!(report.suspects as usize, 40 - before, "{report:?}");
    assert_eq!(fleet.world.most_at_work.swap(0, Ordering::SeqCst), 4, "none was charged before");
    assert_eq!((report.quarantined, fleet.scene.store.charged()), (0, 0));
    for n in 40..60 {
        fleet.scene.publish(&format!("key-{n}"), &n.to_string(), Trouble::None);
    }
    let deaths = fleet.outlive(|scene| scene.store.applied().len() == 60).await;
    assert_eq!((deaths, fleet.world.most_at_work.load(Ordering::SeqCst)), (0, 4), "all goes on");
}

/// Another scene on the same broker and database.
fn same(scene: &Scene) -> Scene {
    Scene { broker: scene.broker.clone(), store: scene.store.clone(), ..Scene::new() }
}

/// A database that goes away while a held message is handled does not make it look like one that fells processes.
#[tokio::test(start_paused = true)]
async fn an_outage_is_no_crash() {
    let fleet = Fleet { max_crashes: 2, ..Fleet::new() };
    fleet.scene.publish("key", "1", Trouble::Transient(1));
    let store = fleet.scene.store.clone();
    let flapping = async {
        // In the middle of each of its runs: they take 5 ms.
        for run in 2..6 {
            while fleet.world.calls.lock().expect("no panic").len() < run {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            store.set_unreachable(true);
            tokio::time::sleep(Duration::from_secs(2)).await;
            store.set_unreachable(false);
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        deaths = fleet.outlive(|scene| scene.store.applied() == ["1"]) => assert_eq!(deaths, 0),
        () = flapping => {}
    }
    assert!(fleet.scene.letters().is_empty());
}

/// What is cut off by an orderly end was not felled by what was at work.
#[tokio::test(start_paused = true)]
async fn what_is_dropped_at_the_end_is_not_charged() {
    let fleet = Fleet::new();
    fleet.scene.publish("key", "poison", Trouble::None);
    let (dead, died) = (fleet.live(std::future::pending()), fleet.world.death.notified());
    tokio::select! {
        ended = dead => panic!("it ended: {ended:?}"),
        () = died => {}
    }
    for _ in 0..5 {
        let world = fleet.world.clone();
        let report = fleet.live(async move { world.death.notified().await }).await.expect("an orderly end");
        assert_eq!(report.suspects, 1, "{report:?}");
    }
    assert_eq!(fleet.scene.store.charged(), 0);
    assert!(fleet.scene.letters().is_empty());
}

/// Without a dead-letter destination it waits for one, and is not run.
#[tokio::test(start_paused = true)]
async fn without_a_destination_it_is_kept_and_not_run_again() {
    let fleet = Fleet { keeps: true, ..Fleet::new() };
    fleet.publish(Trouble::None);
    let calls = |fleet: &Fleet| {
        let calls = fleet.world.calls.lock().expect("no panic");
        calls.iter().filter(|name| *name == "poison").count()
    };
    let others = |scene: &Scene| scene.settled() && scene.store.applied().len() >= 18;
    assert_eq!(fleet.outlive(others).await, 1 + 3);
    let end = tokio::time::Instant::now() + Duration::from_secs(600);
    assert_eq!(fleet.outlive(|_| tokio::time::Instant::now() > end).await, 0);
    assert_eq!(calls(&fleet), 1 + 3);
}

#[tokio::test(start_paused = true)]
async fn a_limit_that_would_condemn_bystanders_is_refused() {
    let fleet = Fleet { max_crashes: 1, ..Fleet::new() };
    let error = fleet.live(std::future::pending()).await.expect_err("refused");
    assert!(error.to_string().contains("max_crashes"), "{error}");
}
