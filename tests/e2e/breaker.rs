//! Outages under traffic, on real servers: nothing is charged, nothing is dead, and it goes on by itself.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use backstop::{
    BreakerCause, BreakerPhase, Consumer, ConsumerHandle, Delivery, Handler, HandlerError, RunError,
    RunState, Snapshot, names,
};
use backstop_kafka::{KafkaDeadLetters, KafkaSettings, KafkaSource};
use backstop_postgres::{PgInbox, PgTx};
use backstop_rabbitmq::{RabbitDeadLetters, RabbitSettings, RabbitSource};
use backstop_testkit::fault::Proxy;
use backstop_tests::apply::{Apply, Event};
use backstop_tests::database::Database;
use backstop_tests::program::{Broker, ConsumerConfig};
use backstop_tests::workload::{self, Placed, Publisher};
use backstop_tests::{letters, scene, servers, wait};
use tokio::task::JoinHandle;

const PATIENCE: Duration = Duration::from_secs(90);
const OUTAGE: Duration = Duration::from_secs(8);
const KEYS: usize = 40;

/// Applies events, if its dependency answers.
#[derive(Clone)]
struct Dependent {
    apply: Apply,
    world: Arc<World>,
}

/// What its handlers depend on, and what they have seen.
#[derive(Default)]
struct World {
    down: AtomicBool,
    tries: AtomicUsize,
    highest_attempt: AtomicU32,
    /// The event that is always refused as unavailable.
    poison: Mutex<Option<String>>,
    /// The event whose handler hangs.
    hangs: Mutex<Option<String>>,
}

#[derive(Debug, thiserror::Error)]
#[error("the dependency does not answer")]
struct NoAnswer;

fn is(event: &Mutex<Option<String>>, id: &str) -> bool {
    event.lock().unwrap_or_else(PoisonError::into_inner).as_deref() == Some(id)
}

impl Handler<PgTx> for Dependent {
    type Message = Event;

    async fn handle(&self, delivery: &Delivery<Event>, tx: &mut PgTx) -> Result<(), HandlerError> {
        let (world, id) = (&self.world, &delivery.message().id);
        world.tries.fetch_add(1, Ordering::SeqCst);
        world.highest_attempt.fetch_max(delivery.attempt(), Ordering::SeqCst);
        if is(&world.hangs, id) {
            std::future::pending::<()>().await;
        }
        if world.down.load(Ordering::SeqCst) || is(&world.poison, id) {
            return Err(HandlerError::unavailable(NoAnswer));
        }
        self.apply.handle(delivery, tx).await
    }
}

/// A consumer whose way to its database can be cut.
struct Scene {
    config: ConsumerConfig,
    database: Database,
    proxy: Proxy,
    world: Arc<World>,
    handle: ConsumerHandle,
    run: JoinHandle<Result<Snapshot, RunError>>,
}

impl Scene {
    async fn start(broker: Broker) -> Self {
        let database = Database::fresh("breaker").await;
        let place = servers::unique("breaker");
        workload::create_place(broker, &place, 4).await;
        let config = ConsumerConfig::new(broker, &place, &servers::unique("group"), &database.schema);
        let (proxy, url) = scene::proxied(&servers::postgres_url()).await;
        let world = Arc::new(World::default());
        let (handle, run) = run(&config, &url, world.clone()).await;
        Self { config, database, proxy, world, handle, run }
    }

    async fn applied(&self) -> i64 {
        self.database.applied(&self.config.group).await
    }

    async fn state_is(&self, state: RunState) {
        let reached = || async { self.handle.state() == state };
        wait::until(&format!("the consumer's state is {state:?}"), PATIENCE, reached).await;
    }

    /// Publishes events until it is told to stop, and then returns them.
    fn traffic(&self) -> Traffic {
        let stop = Arc::new(AtomicBool::new(false));
        let (database, place, broker) =
            (self.database.clone(), self.config.place.clone(), self.config.broker);
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            let publisher = Publisher::new(broker);
            let events = workload::events(20_000, KEYS, |_| None);
            let mut published = 0;
            for chunk in events.chunks(KEYS) {
                if stopped.load(Ordering::SeqCst) {
                    break;
                }
                workload::publish(&database, &publisher, &place, chunk).await;
                published += chunk.len();
            }
            events[..published].to_vec()
        });
        Traffic { stop, task }
    }

    async fn publish(&self, events: &[Placed]) {
        let publisher = Publisher::new(self.config.broker);
        workload::publish(&self.database, &publisher, &self.config.place, events).await;
    }

    /// Waits until what was committed is applied, but for so many.
    async fn all_but(&self, dead: i64) {
        let all = self.database.committed().await - dead;
        let done = || async { self.applied().await == all && self.database.held().await == 0 };
        wait::until("everything is applied", PATIENCE, done).await;
    }

    async fn stop(self) -> (Database, Snapshot) {
        self.handle.drain().await;
        (self.database, self.run.await.expect("no panic").expect("an orderly end"))
    }
}

struct Traffic {
    stop: Arc<AtomicBool>,
    task: JoinHandle<Vec<Placed>>,
}

impl Traffic {
    async fn end(self) -> Vec<Placed> {
        self.stop.store(true, Ordering::SeqCst);
        self.task.await.expect("it publishes")
    }
}

async fn run(
    config: &ConsumerConfig,
    url: &str,
    world: Arc<World>,
) -> (ConsumerHandle, JoinHandle<Result<Snapshot, RunError>>) {
    let database = Database::open_at(url, &config.schema, 24).await;
    let inbox = PgInbox::with_tables(database.pool.clone(), database.tables());
    let apply = Apply { consumer: config.group.clone(), work: Duration::ZERO, immune: true };
    let (name, handler) = (config.group.clone(), Dependent { apply, world });
    let (stall, limit) = (Duration::from_secs(3), Duration::from_secs(60));
    if config.broker == Broker::RabbitMq {
        let source = RabbitSource::consume(&servers::amqp_url(), &config.place).build().expect("an AMQP URL");
        let letters =
            RabbitDeadLetters::new(RabbitSettings::parse(&servers::amqp_url()).expect("an AMQP URL"));
        let consumer = Consumer::transactional(name, source, inbox, handler).dead_letter(letters);
        let consumer = consumer.stalled_after(stall).handler_timeout(limit);
        return (consumer.handle(), tokio::spawn(consumer.run(std::future::pending())));
    }
    let source = KafkaSource::subscribe(servers::kafka(), &config.group, &[&config.place])
        .window(50, 1 << 20)
        .property("statistics.interval.ms", "500");
    let letters = KafkaDeadLetters::new(KafkaSettings::new(servers::kafka()));
    let consumer = Consumer::transactional(name, source, inbox, handler).dead_letter(letters);
    let consumer = consumer.stalled_after(stall).handler_timeout(limit);
    (consumer.handle(), tokio::spawn(consumer.run(std::future::pending())))
}

/// An outage under traffic: how long after it the first event is applied that was not before.
async fn outage(scene: &Scene, begin: impl Fn(), end: impl Fn()) -> Duration {
    let traffic = scene.traffic();
    wait::until("it runs", PATIENCE, || async { scene.applied().await > 100 }).await;
    begin();
    scene.state_is(RunState::BreakerOpen).await;
    let (tries, began) = (scene.world.tries.load(Ordering::SeqCst), Instant::now());
    while began.elapsed() < OUTAGE {
        assert_eq!(scene.handle.state(), RunState::BreakerOpen);
        scene.handle.health().expect("an open breaker is a reason");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let tries = scene.world.tries.load(Ordering::SeqCst) - tries;
    assert!(tries <= 40, "{tries} tries while it was open");
    // What was under way when it began has ended.
    let applied = scene.applied().await;
    end();
    let ended = Instant::now();
    wait::until("it goes on", PATIENCE, || async { scene.applied().await > applied }).await;
    let resumed = ended.elapsed();
    traffic.end().await;
    scene.all_but(0).await;
    resumed
}

async fn nothing_is_charged(scene: Scene, begin: impl Fn(&Scene), end: impl Fn(&Scene)) {
    let resumed = outage(&scene, || begin(&scene), || end(&scene)).await;
    assert!(resumed <= Duration::from_secs(5), "after {resumed:?}");
    scene.state_is(RunState::Running).await;
    let closed = || async { scene.handle.breaker().state == BreakerPhase::Closed };
    wait::until("the breaker is closed", PATIENCE, closed).await;
    assert_eq!(scene.world.highest_attempt.load(Ordering::SeqCst), 1, "nobody was charged");
    let group = scene.config.group.clone();
    let (database, report) = scene.stop().await;
    assert_eq!(report.quarantined, 0, "{report:?}");
    database.assert_balanced(&group).await;
    database.drop().await;
}

async fn a_database_that_is_away(broker: Broker) {
    let scene = Scene::start(broker).await;
    nothing_is_charged(scene, |scene| scene.proxy.cut(), |scene| scene.proxy.resume()).await;
}

async fn a_dependency_that_is_away(broker: Broker) {
    let scene = Scene::start(broker).await;
    let set = |down| move |scene: &Scene| scene.world.down.store(down, Ordering::SeqCst);
    nothing_is_charged(scene, set(true), set(false)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_away_charges_nothing_on_kafka() {
    a_database_that_is_away(Broker::Kafka).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_away_charges_nothing_on_rabbitmq() {
    a_database_that_is_away(Broker::RabbitMq).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dependency_that_is_away_charges_nothing_on_kafka() {
    a_dependency_that_is_away(Broker::Kafka).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dependency_that_is_away_charges_nothing_on_rabbitmq() {
    a_dependency_that_is_away(Broker::RabbitMq).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_event_that_is_always_unavailable_is_quarantined_and_stops_nobody() {
    let scene = Scene::start(Broker::Kafka).await;
    let poison = workload::events(1, 1, |_| None)
        .into_iter()
        .map(|placed| Placed { event: Event { key: "poisoned".to_owned(), ..placed.event }, ..placed });
    let poison: Vec<_> = poison.collect();
    *scene.world.poison.lock().unwrap_or_else(PoisonError::into_inner) = Some(poison[0].id.clone());
    scene.publish(&poison).await;
    let traffic = scene.traffic();
    let given_up = || async {
        assert_ne!(scene.handle.state(), RunState::BreakerOpen, "one event is no outage");
        scene.handle.stats().quarantined == 1
    };
    wait::until("it is given up", PATIENCE, given_up).await;
    traffic.end().await;
    scene.all_but(1).await;
    let letters = letters::read(&scene.config, 1).await;
    assert_eq!(letters[0].headers.get_str(names::REASON), Some("exhausted"));
    assert_eq!(letters::id(&letters[0]), Some(poison[0].id.as_str()));
    let (database, report) = scene.stop().await;
    assert_eq!(report.quarantined, 1, "{report:?}");
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_hangs_is_named() {
    let scene = Scene::start(Broker::Kafka).await;
    scene.state_is(RunState::Running).await;
    let events = workload::events(3, 3, |_| None);
    *scene.world.hangs.lock().unwrap_or_else(PoisonError::into_inner) = Some(events[1].id.clone());
    scene.publish(&events).await;
    wait::until("it is noticed", PATIENCE, || async { scene.handle.health().is_err() }).await;
    let stalled = scene.handle.health().expect_err("as before");
    let message = &stalled.message;
    assert_eq!((&*message.place, message.attempt), (&*scene.config.place, 1));
    assert_eq!(message.key.as_deref(), Some(&*events[1].event.key));
    assert!(message.partition.is_some() && message.offset.is_some(), "{stalled}");
    assert_eq!(stalled.in_flight, 1, "{stalled}");
    scene.run.abort();
    let _ = scene.run.await;
    scene.database.drop().await;
}

/// While it is open by hand partitions pause at their bound, membership is kept, and lag is told.
#[tokio::test(flavor = "multi_thread")]
async fn an_open_breaker_pauses_partitions_and_tells_their_lag() {
    let scene = Scene::start(Broker::Kafka).await;
    let events = workload::events(1_000, KEYS, |_| None);
    scene.publish(&events[..KEYS]).await;
    wait::until("it runs", PATIENCE, || async { scene.applied().await == KEYS as i64 }).await;
    scene.handle.open_breaker();
    assert_eq!(scene.handle.breaker().cause, Some(BreakerCause::Operator));
    scene.publish(&events[KEYS..]).await;
    // Longer than the group's session.
    tokio::time::sleep(Duration::from_secs(8)).await;
    assert_eq!(scene.applied().await, KEYS as i64);
    let status = scene.handle.status();
    assert!(status.lag >= Some(200), "{:?}", status.partitions);
    assert!(status.in_flight <= 4 * 50, "{} in flight", status.in_flight);
    let live: HashSet<_> = status
        .partitions
        .iter()
        .filter(|known| known.place == scene.config.place)
        .map(|known| known.partition)
        .collect();
    assert_eq!(live.len(), 4, "{:?}", status.partitions);
    scene.handle.close_breaker();
    scene.all_but(0).await;
    let no_lag = || async { scene.handle.status().lag == Some(0) };
    wait::until("lag is gone", PATIENCE, no_lag).await;
    let group = scene.config.group.clone();
    let (database, report) = scene.stop().await;
    assert_eq!((report.quarantined, report.duplicates), (0, 0), "nothing was delivered again");
    database.assert_balanced(&group).await;
    database.drop().await;
}
