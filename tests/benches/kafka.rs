//! Topics, the bare producer, and reading back what a topic holds.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, DeliveryResult, Header, Headers as _, Message as _, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer as _, ProducerContext, ThreadedProducer};
use rdkafka::{ClientConfig, ClientContext, Offset, Timestamp, TopicPartitionList};

use crate::Outcome;
use crate::clock::Times;
use crate::event::{self, Check};
use crate::servers::{Servers, unique};

/// Partitions of every topic.
pub(crate) const PARTITIONS: i32 = 8;

const PATIENCE: Duration = Duration::from_secs(60);

/// Makes a topic.
pub(crate) async fn create_topic(servers: &Servers, topic: &str) -> Outcome<()> {
    create(servers, new_topic(topic)).await
}

/// Makes a topic in which the broker notes when each message arrives.
pub(crate) async fn create_timed_topic(servers: &Servers, topic: &str) -> Outcome<()> {
    create(servers, new_topic(topic).set("message.timestamp.type", "LogAppendTime")).await
}

fn new_topic(topic: &str) -> NewTopic<'_> {
    NewTopic::new(topic, PARTITIONS, TopicReplication::Fixed(1))
}

async fn create(servers: &Servers, topic: NewTopic<'_>) -> Outcome<()> {
    for result in admin(servers)?.create_topics(&[topic], &AdminOptions::new()).await? {
        result.map_err(|(topic, code)| format!("topic {topic} cannot be made: {code}"))?;
    }
    Ok(())
}

/// Deletes topics; those that are not there are no error.
pub(crate) async fn delete_topics(servers: &Servers, topics: &[&str]) -> Outcome<()> {
    admin(servers)?.delete_topics(topics, &AdminOptions::new()).await?;
    Ok(())
}

fn admin(servers: &Servers) -> Outcome<AdminClient<DefaultClientContext>> {
    Ok(ClientConfig::new().set("bootstrap.servers", &servers.kafka).create()?)
}

/// The settings of the relay's own publisher, so that only the relay makes a difference.
fn producer_config(servers: &Servers) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", &servers.kafka)
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("max.in.flight.requests.per.connection", "5")
        .set("compression.codec", "zstd")
        .set("compression.level", "1")
        .set("partitioner", "murmur2_random")
        .set("message.timeout.ms", "0")
        .set("linger.ms", "1")
        .set("batch.size", "1000000")
        .set("batch.num.messages", "10000")
        .set("queue.buffering.max.messages", "20001")
        .set("queue.buffering.max.kbytes", "262144");
    config
}

/// Counts deliveries.
#[derive(Debug, Default, Clone)]
struct Deliveries {
    delivered: Arc<AtomicUsize>,
    failed: Arc<AtomicUsize>,
}

impl ClientContext for Deliveries {}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        let counter = if result.is_ok() { &self.delivered } else { &self.failed };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// Produces the events with the bare driver and waits for every delivery; messages a second.
///
/// Records carry the headers that the relay's do; they are made before the clock starts.
pub(crate) async fn produce(servers: &Servers, topic: &str, events: usize) -> Outcome<f64> {
    produce_with(servers, topic, events, event::key).await
}

/// The same with keys of the caller's choice.
pub(crate) async fn produce_with(
    servers: &Servers,
    topic: &str,
    events: usize,
    key: impl Fn(usize) -> String + Send + 'static,
) -> Outcome<f64> {
    let (config, topic) = (producer_config(servers), topic.to_owned());
    tokio::task::spawn_blocking(move || produce_all(&config, &topic, events, key)).await?
}

fn produce_all(
    config: &ClientConfig,
    topic: &str,
    events: usize,
    key: impl Fn(usize) -> String,
) -> Outcome<f64> {
    let records: Vec<(String, Vec<u8>, OwnedHeaders)> =
        (0..events).map(|n| (key(n), event::payload(n), headers(n))).collect();
    let deliveries = Deliveries::default();
    let producer: ThreadedProducer<Deliveries> = config.create_with_context(deliveries.clone())?;
    let began = Instant::now();
    for (key, payload, headers) in records {
        let mut record = BaseRecord::to(topic).key(&key).payload(&payload).headers(headers);
        while let Err((error, refused)) = producer.send(record) {
            if !matches!(error, KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull)) {
                return Err(error.into());
            }
            std::thread::sleep(Duration::from_micros(200));
            record = refused;
        }
    }
    while deliveries.delivered.load(Ordering::Relaxed) < events {
        if deliveries.failed.load(Ordering::Relaxed) > 0 || began.elapsed() > PATIENCE {
            return Err("the bare producer could not deliver".into());
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    Ok(events as f64 / began.elapsed().as_secs_f64())
}

/// Produces so many events a second, each by itself, and says when each was handed to the driver.
pub(crate) async fn produce_steadily(
    servers: &Servers,
    topic: &str,
    rate: usize,
    events: usize,
) -> Outcome<Times> {
    let (mut config, topic) = (producer_config(servers), topic.to_owned());
    config.set("linger.ms", "0");
    tokio::task::spawn_blocking(move || {
        let (produced, deliveries) = (Times::default(), Deliveries::default());
        let producer: ThreadedProducer<Deliveries> = config.create_with_context(deliveries.clone())?;
        let began = Instant::now();
        for n in 0..events {
            let due = began + Duration::from_secs_f64(n as f64 / rate as f64);
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            let (key, payload) = (event::key(n), event::payload(n));
            let record = BaseRecord::to(&topic).key(&key).payload(&payload).headers(headers(n));
            produced.note(n);
            producer.send(record).map_err(|(error, _)| error)?;
        }
        producer.flush(PATIENCE)?;
        match deliveries.delivered.load(Ordering::Relaxed) {
            delivered if delivered == events => Ok(produced),
            delivered => Err(format!("of {events} events {delivered} were delivered").into()),
        }
    })
    .await?
}

fn headers(n: usize) -> OwnedHeaders {
    let id = event::id(n);
    let pairs = [
        ("ce_specversion", "1.0"),
        ("ce_id", &id),
        ("ce_source", "/bench"),
        ("ce_type", "bench.event"),
        ("ce_time", "2026-01-01T00:00:00.123456Z"),
        ("content-type", "application/json"),
    ];
    pairs.into_iter().fold(OwnedHeaders::new_with_capacity(pairs.len()), |headers, (key, value)| {
        headers.insert(Header { key, value: Some(value) })
    })
}

/// A reader of a whole topic, outside of any group, that begins at `offset`.
pub(crate) fn reader(servers: &Servers, topic: &str, offset: Offset) -> Outcome<BaseConsumer> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", &servers.kafka)
        .set("group.id", "bench-reader")
        .set("enable.auto.commit", "false")
        .set("fetch.wait.max.ms", "100")
        .create()?;
    let mut partitions = TopicPartitionList::new();
    for partition in 0..PARTITIONS {
        partitions.add_partition_offset(topic, partition, offset)?;
    }
    consumer.assign(&partitions)?;
    Ok(consumer)
}

/// A reader of a whole topic as consumers are written by hand: the one member of a group, with offsets that are committed
/// by themselves. It fetches as much ahead as `KafkaSource` does.
pub(crate) fn member(servers: &Servers, topic: &str) -> Outcome<BaseConsumer> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", &servers.kafka)
        .set("group.id", unique("group"))
        .set("auto.offset.reset", "earliest")
        .set("fetch.queue.backoff.ms", "20")
        .set("queued.min.messages", "20000")
        .create()?;
    consumer.subscribe(&[topic])?;
    Ok(consumer)
}

/// Waits for a reader's next message.
pub(crate) fn next(reader: &BaseConsumer) -> Outcome<BorrowedMessage<'_>> {
    let mut waiting = None;
    loop {
        if let Some(message) = reader.poll(Duration::from_millis(100)) {
            return Ok(message?);
        }
        if waiting.get_or_insert_with(Instant::now).elapsed() > PATIENCE {
            return Err("the topic could not be read".into());
        }
    }
}

/// Shows `check` the whole topic.
pub(crate) async fn read_back(servers: &Servers, topic: &str, check: Check) -> Outcome<Check> {
    fold(servers, topic, check, |check, message| {
        check.see(id_of(message).unwrap_or_default(), message.payload().unwrap_or_default());
    })
    .await
}

/// When each event arrived, by the broker's clock. The broker cuts times to whole milliseconds, which is made up for by
/// half of one.
pub(crate) async fn arrivals(servers: &Servers, topic: &str) -> Outcome<Times> {
    fold(servers, topic, Times::default(), |times, message| {
        let event = event::number(message.payload().unwrap_or_default());
        if let (Some(n), Timestamp::LogAppendTime(millis)) = (event, message.timestamp()) {
            times.note_at(n, millis as f64 + 0.5);
        }
    })
    .await
}

fn id_of<'a>(message: &'a BorrowedMessage<'_>) -> Option<&'a [u8]> {
    message.headers()?.iter().find(|header| header.key == "ce_id")?.value
}

/// Takes every message of the topic into one value.
async fn fold<T: Send + 'static>(
    servers: &Servers,
    topic: &str,
    into: T,
    take: fn(&mut T, &BorrowedMessage<'_>),
) -> Outcome<T> {
    let (servers, topic) = (servers.clone(), topic.to_owned());
    tokio::task::spawn_blocking(move || fold_all(&servers, &topic, into, take)).await?
}

fn fold_all<T>(
    servers: &Servers,
    topic: &str,
    mut into: T,
    take: fn(&mut T, &BorrowedMessage<'_>),
) -> Outcome<T> {
    let consumer = reader(servers, topic, Offset::Beginning)?;
    let mut left: i64 = 0;
    for partition in 0..PARTITIONS {
        let (low, high) = consumer.fetch_watermarks(topic, partition, PATIENCE)?;
        left += high - low;
    }
    let mut heard = Instant::now();
    while left > 0 {
        if let Some(message) = consumer.poll(Duration::from_millis(100)) {
            take(&mut into, &message?);
            left -= 1;
            heard = Instant::now();
        } else if heard.elapsed() > PATIENCE {
            return Err(format!("{left} messages of topic {topic} could not be read back").into());
        }
    }
    Ok(into)
}
