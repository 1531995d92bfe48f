//! Producers that keep the order of each key, whatever breaks.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use backstop::cloudevents::{self, Binding};
use backstop::sink::Sink as _;
use backstop::{Destination, Envelope};
use backstop_kafka::{KafkaSettings, KafkaSink};
use fastrand::Rng;
use sqlx::PgPool;
use tokio::task::JoinHandle;
use tokio::time::{interval, sleep};

use crate::apply::{Event, Fail};
use crate::database::Database;
use crate::servers;
use crate::workload::Placed;

/// Producers; each has keys of its own.
const PRODUCERS: usize = 4;
/// Keys of all producers together.
const KEYS: usize = 1_000;
/// Time between two events of one producer.
const PACE: Duration = Duration::from_millis(20);
/// Time until a step that failed is tried again.
const AGAIN: Duration = Duration::from_millis(200);

/// Publishes events, each of them until the broker has confirmed it.
///
/// One whose confirmation was lost is published again: consumers get it twice, and apply it once.
#[derive(Debug, Clone)]
pub struct Producer {
    pool: PgPool,
    sink: Arc<KafkaSink>,
    topic: Destination,
    last: BTreeMap<String, i64>,
}

impl Producer {
    /// Into that topic, with the ledger in that database.
    pub fn new(database: &Database, topic: &str) -> Self {
        let sink = KafkaSink::new(KafkaSettings::new(servers::kafka()));
        let (sink, topic) = (Arc::new(sink), Destination::new(topic));
        Self { pool: database.pool.clone(), sink, topic, last: BTreeMap::new() }
    }

    /// Writes the next event of a key into the ledger, and publishes it.
    pub async fn publish(&mut self, key: String, fail: Option<Fail>) -> Placed {
        let last = self.last.entry(key.clone()).or_default();
        *last += 1;
        let event = Event { key, seq: *last, fail };
        let placed = Placed { id: uuid::Uuid::now_v7().to_string(), event };
        while let Err(error) = self.record(&placed).await {
            tracing::debug!(%error, "the ledger does not answer");
            sleep(AGAIN).await;
        }
        let envelope = cloudevents::encode(placed.message("/tests"), Binding::Kafka);
        while !self.is_confirmed(envelope.clone()).await {
            sleep(AGAIN).await;
        }
        placed
    }

    async fn record(&self, placed: &Placed) -> Result<(), sqlx::Error> {
        // A commit whose answer was lost is tried again.
        sqlx::query("INSERT INTO committed (id, key, seq) VALUES ($1, $2, $3) ON CONFLICT (id) DO NOTHING")
            .bind(&placed.id)
            .bind(&placed.event.key)
            .bind(placed.event.seq)
            .execute(&self.pool)
            .await
            .map(drop)
    }

    async fn is_confirmed(&self, envelope: Envelope) -> bool {
        self.sink.publish(&self.topic, envelope).await.is_ok()
    }
}

/// Producers at work in the background.
#[derive(Debug)]
pub struct Producers {
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<Vec<Placed>>>,
}

impl Producers {
    /// Starts them. Of their events 5 % fail for an attempt or two, and 0.1 % for good.
    pub fn start(database: &Database, topic: &str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let task = |number| tokio::spawn(produce(Producer::new(database, topic), number, stop.clone()));
        let tasks = (0..PRODUCERS).map(task).collect();
        Self { stop, tasks }
    }

    /// Ends them, each after the event it is at; returns all that they have published.
    ///
    /// # Panics
    /// When one of them panicked.
    pub async fn stop(self) -> Vec<Placed> {
        self.stop.store(true, Ordering::SeqCst);
        let ended = futures_util::future::join_all(self.tasks).await;
        ended.into_iter().flat_map(|task| task.expect("a producer does not panic")).collect()
    }
}

async fn produce(mut producer: Producer, number: usize, stop: Arc<AtomicBool>) -> Vec<Placed> {
    let mut random = Rng::with_seed(number as u64);
    let mut published = Vec::new();
    let mut ticks = interval(PACE);
    while !stop.load(Ordering::SeqCst) {
        // After an outage it catches up: missed ticks come at once.
        ticks.tick().await;
        let key = number + PRODUCERS * random.usize(..KEYS / PRODUCERS);
        published.push(producer.publish(format!("key-{key}"), failure(&mut random)).await);
    }
    published
}

fn failure(random: &mut Rng) -> Option<Fail> {
    match random.u32(..1_000) {
        0 => Some(Fail::Permanent),
        1..=50 => Some(Fail::Transient(random.u32(1..=2))),
        _ => None,
    }
}
