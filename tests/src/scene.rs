//! One outbox through one broker to one consumer, under a relay that something happens to.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use backstop::Outgoing;
use backstop_postgres::PgOutbox;
use backstop_testkit::fault::Proxy;
use backstop_testkit::oracle::{Books, Verdict};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::database::Database;
use crate::program::{Broker, ConsumerConfig, Relay, RelayConfig};
use crate::workload::{self, Placed};
use crate::{servers, wait};

/// Keys of the events of a scene.
const KEYS: usize = 20;
/// The longest wait for anything. Far above what is promised: it only ends tests that hang.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// Proxies before the servers that the relay uses; nobody else goes through them.
#[derive(Debug)]
pub struct Network {
    /// Before PostgreSQL.
    pub database: Proxy,
    /// Before the broker.
    pub broker: Proxy,
}

/// A database, a topic or queue, a relay's configuration and a consumer that is started again when it ends.
#[derive(Debug)]
pub struct Scene {
    /// Which broker.
    pub broker: Broker,
    /// The outbox and the ledger.
    pub database: Database,
    /// Topic or queue.
    pub place: String,
    /// The relay's ways.
    pub network: Network,
    relay: RelayConfig,
    consumer: ConsumerConfig,
    consuming: Consuming,
    events: Arc<AtomicUsize>,
}

impl Scene {
    /// Makes everything, and starts the consumer.
    ///
    /// # Panics
    /// When a server cannot be used.
    pub async fn new(broker: Broker, stem: &str) -> Self {
        Self::with_amqp(broker, stem, &servers::amqp_url()).await
    }

    /// The same with another URL of RabbitMQ for the relay.
    ///
    /// # Panics
    /// When a server cannot be used.
    pub async fn with_amqp(broker: Broker, stem: &str, amqp: &str) -> Self {
        let database = Database::fresh(stem).await;
        let place = servers::unique(stem);
        workload::create_ordered_place(broker, &place, 4).await;
        let (network, relay) = Network::for_relay(broker, &database.schema, amqp).await;
        let consumer = ConsumerConfig::new(broker, &place, &servers::unique("ledger"), &database.schema);
        let consuming = Consuming::start(consumer.clone());
        Self { broker, database, place, network, relay, consumer, consuming, events: Arc::default() }
    }

    /// Starts a relay.
    ///
    /// # Panics
    /// When it is not built.
    pub fn relay(&self) -> Relay {
        self.relay.watched()
    }

    /// Starts a relay, and waits until it says that it is ready.
    ///
    /// # Panics
    /// When it does not.
    pub async fn ready_relay(&self) -> Relay {
        let relay = self.relay();
        wait::until("the relay is ready", PATIENCE, || relay.is_ready()).await;
        relay
    }

    /// Commits so many events more, ten in a transaction.
    ///
    /// # Panics
    /// When PostgreSQL cannot be used.
    pub async fn commit(&self, count: usize) {
        let events = next_events(&self.events, count);
        workload::commit(&self.database, &self.place, &events, 10).await;
    }

    /// Commits events in the background until told to stop. Transactions that fail are not tried again.
    pub fn write(&self) -> Writing {
        let stop = Arc::new(AtomicBool::new(false));
        let (database, place, events) = (self.database.clone(), self.place.clone(), self.events.clone());
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            while !stopped.load(Ordering::SeqCst) {
                // What fails is not in the ledger either: both are of one transaction.
                let _ = try_commit(&database, &place, &next_events(&events, 5)).await;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        Writing { stop, task }
    }

    /// Begins a transaction, writes one event, and commits it after `time`.
    ///
    /// # Panics
    /// When PostgreSQL cannot be used.
    pub async fn stay_open(&self, time: Duration) -> LongWriter {
        let event = next_events(&self.events, 1).remove(0);
        // A key of its own: others do not wait for it, so its key has no order among them.
        let key = format!("long-{}", event.event.seq);
        let event = Placed { event: crate::apply::Event { key, ..event.event }, ..event };
        let outbox = PgOutbox::with_tables(&self.database.tables());
        let mut tx = self.database.pool.begin().await.expect("PostgreSQL answers");
        workload::try_record(&mut tx, &event).await.expect("a fresh id");
        outbox
            .enqueue(&mut tx, Outgoing::to(&self.place, event.message("/tests")))
            .await
            .expect("a sound message");
        let (now, told) = oneshot::channel();
        let task = tokio::spawn(async move {
            // Ends when the sender is used or dropped, too.
            let _ = tokio::time::timeout(time, told).await;
            // A server that was restarted meanwhile has rolled it back, and the ledger's row with it.
            let _ = tx.commit().await;
        });
        LongWriter { now, task }
    }

    /// How long it takes from now until the lowest row that waits is published and deleted.
    ///
    /// # Panics
    /// When that does not happen.
    pub async fn flows_again(&self) -> Duration {
        let began = Instant::now();
        let lowest = "SELECT coalesce(min(seq), 0) FROM backstop_outbox";
        if self.number(lowest).await == Some(0) {
            self.commit(1).await;
        }
        let first = Cell::new(None);
        wait::until("rows flow again", PATIENCE, || async {
            let Some(now) = self.number(lowest).await else { return false };
            let before = first.get().unwrap_or(now);
            first.set(Some(before));
            now == 0 || now > before
        })
        .await;
        began.elapsed()
    }

    /// One number, if the database can tell it now.
    async fn number(&self, query: &'static str) -> Option<i64> {
        sqlx::query_scalar(query).fetch_one(&self.database.pool).await.ok()
    }

    /// Rows that wait; `None` when the database does not answer.
    pub async fn backlog(&self) -> Option<i64> {
        self.number("SELECT count(*) FROM backstop_outbox").await
    }

    /// Waits until nothing waits any more.
    ///
    /// # Panics
    /// When that does not happen.
    pub async fn drained(&self) {
        let committed = self.database.committed().await;
        let patience = PATIENCE + Duration::from_millis(10) * committed.try_into().unwrap_or(0);
        wait::until("all is applied", patience, || async {
            let waiting = self.database.backlog().await + self.database.held().await;
            waiting == 0 && self.database.applied(&self.consumer.group).await >= committed
        })
        .await;
    }

    /// Waits until all is applied, asks the oracle, and clears up. Dead rows are wrong, since nothing here is made to
    /// fail.
    ///
    /// # Panics
    /// With what is wrong.
    pub async fn settle(self) {
        self.drained().await;
        self.verdict().await.assert_balanced();
        drop(self.consuming);
        self.database.drop().await;
    }

    /// What the oracle says now.
    ///
    /// # Panics
    /// When PostgreSQL cannot be used.
    pub async fn verdict(&self) -> Verdict {
        let dead = "SELECT id FROM backstop_outbox_dead";
        let dead: Vec<String> =
            sqlx::query_scalar(dead).fetch_all(&self.database.pool).await.expect("PostgreSQL answers");
        let books = self.database.books(&self.consumer.group).await;
        Books { dead_rows: BTreeSet::from_iter(dead), ..books }.audit()
    }

    /// How often the consumer had to be started again.
    pub fn restarts(&self) -> u32 {
        self.consuming.restarts.load(Ordering::SeqCst)
    }
}

impl Network {
    async fn for_relay(broker: Broker, schema: &str, amqp: &str) -> (Self, RelayConfig) {
        let (server, database) = proxied(&servers::postgres_url()).await;
        let (proxy, address) = before_broker(broker, amqp).await;
        let relay = RelayConfig::through(broker, schema, &[], &database, &address);
        (Self { database: server, broker: proxy }, relay)
    }
}

/// A proxy before Kafka, or before the RabbitMQ that `amqp` names; and the address through it.
///
/// # Panics
/// When there is no free port, or the address names none.
pub async fn before_broker(broker: Broker, amqp: &str) -> (Proxy, String) {
    if broker == Broker::RabbitMq {
        return proxied(amqp).await;
    }
    let broker = servers::kafka().parse().expect("the address of one broker");
    let proxy = Proxy::before_kafka(broker).await.expect("a free port");
    let address = proxy.address().to_string();
    (proxy, address)
}

/// A proxy before the server that a URL names, and the URL through it.
///
/// # Panics
/// When the URL is not `user@host/path`, or no port can be had.
pub async fn proxied(url: &str) -> (Proxy, String) {
    let (user, rest) = url.rsplit_once('@').expect("user@host in the URL");
    let (server, path) = rest.split_once('/').expect("host/path in the URL");
    let proxy = Proxy::start(server).await.expect("a free port");
    let url = format!("{user}@{}/{path}", proxy.address());
    (proxy, url)
}

fn next_events(counter: &AtomicUsize, count: usize) -> Vec<Placed> {
    let first = counter.fetch_add(count, Ordering::SeqCst);
    (first..first + count)
        .map(|n| {
            let event = crate::apply::Event { key: format!("key-{}", n % KEYS), seq: n as i64, fail: None };
            Placed { id: uuid::Uuid::now_v7().to_string(), event }
        })
        .collect()
}

async fn try_commit(database: &Database, place: &str, events: &[Placed]) -> Result<(), sqlx::Error> {
    let outbox = PgOutbox::with_tables(&database.tables());
    let mut tx = database.pool.begin().await?;
    for placed in events {
        workload::try_record(&mut tx, placed).await?;
        let enqueued = outbox.enqueue(&mut tx, Outgoing::to(place, placed.message("/tests"))).await;
        if enqueued.is_err() {
            return Err(sqlx::Error::WorkerCrashed);
        }
    }
    tx.commit().await
}

/// A writer in the background.
#[derive(Debug)]
pub struct Writing {
    stop: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Writing {
    /// Ends it after the transaction it is at.
    ///
    /// # Panics
    /// When it panicked.
    pub async fn stop(self) {
        self.stop.store(true, Ordering::SeqCst);
        self.task.await.expect("the writer does not panic");
    }
}

/// A transaction that stays open.
#[derive(Debug)]
pub struct LongWriter {
    now: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl LongWriter {
    /// Whether its time is over.
    pub fn has_ended(&self) -> bool {
        self.task.is_finished()
    }

    /// Commits it, if that has not happened yet.
    ///
    /// # Panics
    /// When it panicked.
    pub async fn end(self) {
        let _ = self.now.send(());
        self.task.await.expect("the writer does not panic");
    }
}

/// A consumer process; another one takes its place when it ends.
#[derive(Debug)]
struct Consuming {
    restarts: Arc<AtomicU32>,
    task: JoinHandle<()>,
}

impl Consuming {
    fn start(config: ConsumerConfig) -> Self {
        let restarts = Arc::new(AtomicU32::new(0));
        let counted = restarts.clone();
        let task = tokio::spawn(async move {
            let mut program = config.spawn(None);
            loop {
                tokio::time::sleep(Duration::from_millis(200)).await;
                if !program.is_running() {
                    counted.fetch_add(1, Ordering::SeqCst);
                    program = config.spawn(None);
                }
            }
        });
        Self { restarts, task }
    }
}

impl Drop for Consuming {
    fn drop(&mut self) {
        self.task.abort();
    }
}
