//! A pipeline from topic to topic, in this process or in one of its own, and what its readers see.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use backstop::cloudevents::{self, Binding};
use backstop::pipeline::Outputs;
use backstop::sink::Sink as _;
use backstop::{
    Consumer, Delivery, Destination, ErrorClass, Handler, HandlerError, Message, Outgoing, RetryPolicy,
    RunError, Snapshot,
};
use backstop_kafka::{KafkaDeadLetters, KafkaPipeline, KafkaSettings, KafkaSink, KafkaSource};
use futures_util::{StreamExt as _, stream};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::{Headers as _, Message as _};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::apply::{Event, Fail};
use crate::program::Program;
use crate::servers;
use crate::workload::Placed;

/// What one message becomes.
pub const PARTS: [&str; 2] = ["a", "b"];

/// A pipeline of the tests.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PipelineConfig {
    /// Topic that it reads.
    pub place: String,
    /// Its group and name.
    pub group: String,
    /// Topic that it writes.
    pub out: String,
    /// What its outputs and its transactional id tell it by.
    pub instance: String,
    /// Whether it is a static member, which is back in its place as soon as it runs again.
    pub is_static: bool,
    /// Milliseconds that messages wait for company.
    pub linger_ms: u64,
    /// Messages in one transaction at most.
    pub messages: usize,
    /// Milliseconds that each message takes.
    pub work_ms: u64,
    /// Milliseconds after which the brokers abort its transaction.
    pub timeout_ms: u64,
}

impl PipelineConfig {
    /// A dynamic member in a hurry.
    pub fn new(place: &str, group: &str, out: &str, instance: &str) -> Self {
        Self {
            place: place.to_owned(),
            group: group.to_owned(),
            out: out.to_owned(),
            instance: instance.to_owned(),
            is_static: false,
            linger_ms: 1,
            messages: 1_000,
            work_ms: 0,
            timeout_ms: 10_000,
        }
    }

    /// Runs it here until `shutdown`.
    ///
    /// # Errors
    /// As [`Consumer::run`].
    pub async fn run(&self, shutdown: impl Future<Output = ()> + Send) -> Result<Snapshot, RunError> {
        let mut source = KafkaSource::subscribe(servers::kafka(), &self.group, &[&self.place])
            .property("session.timeout.ms", "3000")
            .property("heartbeat.interval.ms", "500");
        if self.is_static {
            source = source.property("group.instance.id", &self.instance);
        }
        let pipeline = KafkaPipeline::new(source)
            .transactional_id(format!("{}-{}", self.group, self.instance))
            .transaction_timeout(Duration::from_millis(self.timeout_ms))
            .linger(Duration::from_millis(self.linger_ms))
            .group(self.messages, 4 << 20);
        let split = Split {
            out: self.out.clone(),
            instance: self.instance.clone(),
            work: Duration::from_millis(self.work_ms),
        };
        let letters = KafkaDeadLetters::new(KafkaSettings::new(servers::kafka()));
        Consumer::pipeline(&self.group, pipeline, split)
            .retry(ErrorClass::Transient, RetryPolicy::exponential(Duration::from_millis(20)))
            .dead_letter(letters)
            .run(shutdown)
            .await
    }

    /// Runs it in a task of this process until what is returned is called.
    pub fn start(&self) -> impl AsyncFnOnce() -> Snapshot + use<> {
        let (stop, stopped) = oneshot::channel::<()>();
        let config = self.clone();
        let run = tokio::spawn(async move {
            let shutdown = async {
                // Ends when the sender is used or dropped.
                let _ = stopped.await;
            };
            config.run(shutdown).await
        });
        async move || {
            let _ = stop.send(());
            run.await.expect("the pipeline does not panic").expect("an orderly end")
        }
    }

    /// Starts it as a process of its own; `crash_at` names a crash point.
    ///
    /// # Panics
    /// When the program is not built.
    pub fn spawn(&self, crash_at: Option<&str>) -> Program {
        let config = serde_json::to_string(self).expect("plain data");
        Program::start("e2e-pipeline", &[&config], crash_at)
    }
}

/// Makes two messages of each, which keep its key and number.
struct Split {
    out: String,
    instance: String,
    work: Duration,
}

impl Handler<Outputs> for Split {
    type Message = Event;

    async fn handle(&self, delivery: &Delivery<Event>, out: &mut Outputs) -> Result<(), HandlerError> {
        let event = delivery.body();
        for part in PARTS {
            let message = Message::new("part")
                .id(format!("{}-{part}", delivery.message().id))
                .key(event.key.clone())
                .header("part", part)
                .header("instance", self.instance.clone());
            out.send(Outgoing::to(&self.out, message.json(event)?));
        }
        tokio::time::sleep(self.work).await;
        match event.fail {
            Some(Fail::Permanent) => Err(HandlerError::permanent("it never passes")),
            Some(Fail::Transient(times)) if delivery.attempt() <= times => {
                Err(HandlerError::transient("not yet"))
            }
            _ => Ok(()),
        }
    }
}

/// Publishes events to one topic, those of a key in their order.
#[derive(Debug)]
pub struct Feed {
    sink: KafkaSink,
    place: Destination,
}

impl Feed {
    /// To that topic.
    pub fn new(place: &str) -> Self {
        Self { sink: KafkaSink::new(KafkaSettings::new(servers::kafka())), place: Destination::new(place) }
    }

    /// Publishes them, each confirmed.
    ///
    /// # Panics
    /// When Kafka does not confirm them.
    pub async fn publish(&self, events: &[Placed]) {
        let sent = stream::iter(events.to_vec()).map(|placed| {
            let envelope = cloudevents::encode(placed.message("/tests"), Binding::Kafka);
            self.sink.publish(&self.place, envelope)
        });
        sent.buffered(200).for_each(async |sent| sent.expect("Kafka confirms")).await;
    }
}

/// A message as a reader of the output saw it.
#[derive(Debug, Clone)]
pub struct Part {
    /// The key and the number of its event.
    pub event: Event,
    /// Which part of it.
    pub part: String,
    /// Who wrote it.
    pub instance: String,
    /// The id of the message that it names as its cause.
    pub cause: String,
}

/// Reads a topic from its beginning, on a thread of its own, until it is dropped.
#[derive(Debug)]
pub struct Reader {
    seen: Arc<Mutex<Vec<Part>>>,
    /// Kept by the test; the thread ends when it is gone.
    _alive: Arc<()>,
    _thread: JoinHandle<()>,
}

impl Reader {
    /// A reader of committed messages.
    pub fn committed(topic: &str, partitions: i32) -> Self {
        Self::new(topic, partitions, "read_committed")
    }

    /// A reader of everything that was ever written.
    pub fn uncommitted(topic: &str, partitions: i32) -> Self {
        Self::new(topic, partitions, "read_uncommitted")
    }

    fn new(topic: &str, partitions: i32, isolation: &str) -> Self {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", servers::kafka())
            .set("group.id", "reader")
            .set("enable.auto.commit", "false")
            .set("isolation.level", isolation)
            .create()
            .expect("a consumer");
        let mut all = TopicPartitionList::new();
        for partition in 0..partitions {
            all.add_partition_offset(topic, partition, Offset::Beginning).expect("an offset");
        }
        consumer.assign(&all).expect("an assignment");
        let (seen, alive) = (Arc::new(Mutex::new(Vec::new())), Arc::new(()));
        let (into, watched) = (seen.clone(), Arc::downgrade(&alive));
        let thread = thread::spawn(move || {
            while watched.strong_count() > 0 {
                if let Some(Ok(message)) = consumer.poll(Duration::from_millis(50)) {
                    into.lock().unwrap_or_else(PoisonError::into_inner).push(part(&message));
                }
            }
        });
        Self { seen, _alive: alive, _thread: thread }
    }

    /// What was read so far, each partition in its order.
    pub fn seen(&self) -> Vec<Part> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How much that is.
    pub fn len(&self) -> usize {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Whether nothing was read so far.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Waits until so much was read.
    pub async fn reach(&self, count: usize, limit: Duration) {
        let what = format!("{count} outputs are read");
        crate::wait::until(&what, limit, || std::future::ready(self.len() >= count)).await;
    }
}

fn part(message: &rdkafka::message::BorrowedMessage<'_>) -> Part {
    let headers: HashMap<String, String> = message
        .headers()
        .into_iter()
        .flat_map(|headers| headers.iter())
        .filter_map(|header| Some((header.key.to_owned(), String::from_utf8(header.value?.to_vec()).ok()?)))
        .collect();
    let header = |name: &str| headers.get(name).cloned().unwrap_or_default();
    Part {
        event: serde_json::from_slice(message.payload().unwrap_or_default()).expect("an event"),
        part: header("part"),
        instance: header("instance"),
        cause: header("backstop-causation-id"),
    }
}

/// Both parts of each event were read exactly once, those of a key in its order.
///
/// # Panics
/// When that is not so.
pub fn assert_exactly_once(seen: &[Part], expected: usize) {
    let mut next: BTreeMap<(&str, &str), i64> = BTreeMap::new();
    let (mut repeated, mut disordered) = (0, Vec::new());
    let mut counts: BTreeMap<(&str, i64, &str), usize> = BTreeMap::new();
    for part in seen {
        let Event { key, seq, .. } = &part.event;
        let count = counts.entry((key, *seq, &part.part)).or_default();
        *count += 1;
        if *count > 1 {
            repeated += 1;
            continue;
        }
        let last = next.entry((key, &part.part)).or_default();
        if *seq <= *last {
            disordered.push((key, *seq));
        }
        *last = *seq;
    }
    assert_eq!(repeated, 0, "outputs that were seen twice");
    assert_eq!(counts.len(), expected * PARTS.len(), "outputs that were seen");
    assert!(disordered.is_empty(), "out of order: {disordered:?}");
}
