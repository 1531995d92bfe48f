//! What the tests of this crate share: a real Kafka, topics of their own, and waiting for events with a bound.
#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    clippy::allow_attributes,
    reason = "each test program uses its part of this module"
)]

use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

use backstop_core::Destination;
use backstop_core::message::Envelope;
use backstop_core::origin::Origin;
use backstop_core::sink::Sink;
use backstop_core::source::{Received, Settlement, Source};
use backstop_kafka::{KafkaSettings, KafkaSettlement, KafkaSink, KafkaSource};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

/// How long a test waits for an event before it fails.
pub const BOUND: Duration = Duration::from_secs(60);

pub fn brokers() -> String {
    variable("BACKSTOP_TEST_KAFKA")
}

pub fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set; run: eval \"$(tests/servers env)\""))
}

pub fn settings() -> KafkaSettings {
    KafkaSettings::new(brokers())
}

/// A name that no other test has.
pub fn unique(what: &str) -> String {
    format!("test-kafka-{what}-{}", uuid::Uuid::new_v4().simple())
}

/// A topic that is removed with everything that belongs to it.
pub struct Topic {
    pub name: String,
    extra: Vec<String>,
}

impl Topic {
    pub async fn new(what: &str, partitions: i32) -> Self {
        Self::with(&unique(what), partitions, &[]).await
    }

    pub async fn with(name: &str, partitions: i32, config: &[(&str, &str)]) -> Self {
        let mut topic = NewTopic::new(name, partitions, TopicReplication::Fixed(1));
        topic.config = config.to_vec();
        create(&[topic]).await;
        Self { name: name.to_owned(), extra: Vec::new() }
    }

    /// Names a topic that the code under test makes, so that it is removed too.
    pub fn and(mut self, other: String) -> Self {
        self.extra.push(other);
        self
    }
}

impl Drop for Topic {
    fn drop(&mut self) {
        let mut names = vec![self.name.as_str()];
        names.extend(self.extra.iter().map(String::as_str));
        // Bounded, and its answer is not looked at: a test's end is no place to fail.
        let admin = admin();
        let options = AdminOptions::new().request_timeout(Some(Duration::from_secs(10)));
        let answer = admin.delete_topics(&names, &options);
        let wait = || {
            let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
            let _ = runtime.block_on(answer);
        };
        let _ = std::thread::scope(|scope| scope.spawn(wait).join());
    }
}

pub fn admin() -> AdminClient<DefaultClientContext> {
    ClientConfig::new().set("bootstrap.servers", brokers()).create().expect("an admin client")
}

/// Makes fresh topics, and waits until the brokers show them: they answer before that.
pub async fn create(topics: &[NewTopic<'_>]) {
    let options = AdminOptions::new().operation_timeout(Some(Duration::from_secs(30)));
    for created in admin().create_topics(topics, &options).await.expect("Kafka answers") {
        created.expect("a fresh topic can be made");
    }
    let consumer = consumer();
    for topic in topics {
        let wanted = usize::try_from(topic.num_partitions).expect("a number of partitions");
        until(&format!("topic {} is seen", topic.name), || partitions_with(&consumer, topic.name) == wanted)
            .await;
    }
}

fn consumer() -> BaseConsumer {
    ClientConfig::new().set("bootstrap.servers", brokers()).create().expect("a consumer")
}

/// What the group's coordinator says of it: its state, and how many members it has.
pub fn state(group: &str) -> (String, usize) {
    let groups = consumer().fetch_group_list(Some(group), BOUND).expect("Kafka answers");
    let found = groups.groups().first();
    found.map_or((String::new(), 0), |found| (found.state().to_owned(), found.members().len()))
}

/// What the group has committed in a partition.
pub fn committed(group: &str, topic: &str, partition: i32) -> Option<i64> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers())
        .set("group.id", group)
        .create()
        .expect("a consumer");
    let mut asked = TopicPartitionList::new();
    asked.add_partition(topic, partition);
    let answer = consumer.committed_offsets(asked, BOUND).expect("Kafka answers");
    match answer.elements()[0].offset() {
        Offset::Offset(offset) => Some(offset),
        _ => None,
    }
}

pub fn partitions(topic: &str) -> usize {
    partitions_with(&consumer(), topic)
}

/// How many partitions with a leader the topic has; none where it does not exist.
fn partitions_with(consumer: &BaseConsumer, topic: &str) -> usize {
    let metadata = consumer.fetch_metadata(Some(topic), BOUND).expect("Kafka answers");
    let found = &metadata.topics()[0];
    if found.error().is_some() { 0 } else { found.partitions().iter().filter(|it| it.leader() >= 0).count() }
}

/// An envelope with that key and body.
pub fn envelope(key: &str, body: impl Into<String>) -> Envelope {
    Envelope { key: Some(key.to_owned().into()), body: Some(body.into().into()), ..Envelope::default() }
}

/// Publishes bodies `0`, `1`, … under one key, in order.
pub async fn publish_numbers(topic: &str, key: &str, numbers: std::ops::Range<usize>) {
    let sink = KafkaSink::new(settings());
    for number in numbers {
        let sent = sink.publish(&Destination::new(topic), envelope(key, number.to_string())).await;
        sent.unwrap_or_else(|error| panic!("{error:?}"));
    }
}

pub async fn within<F: Future>(what: &str, future: F) -> F::Output {
    tokio::time::timeout(BOUND, future).await.unwrap_or_else(|_| panic!("{what}: nothing within {BOUND:?}"))
}

/// Asks until the answer is yes, which it must be within the bound.
pub async fn until(what: &str, mut done: impl FnMut() -> bool) {
    within(what, async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

/// The next `count` messages, which must come within the bound.
pub async fn read(source: &mut KafkaSource, count: usize) -> Vec<Received<KafkaSettlement>> {
    let mut read = Vec::new();
    while read.len() < count {
        let batch = within(&format!("{} of {count} messages came", read.len()), source.next()).await;
        read.extend(batch.unwrap_or_else(|error| panic!("{error:?}")).expect("the source has not ended"));
    }
    assert_eq!(read.len(), count, "more came than were sent");
    read
}

pub fn body(received: &Received<KafkaSettlement>) -> String {
    let body = received.message.body.as_ref().expect("a body");
    String::from_utf8(body.to_vec()).expect("text")
}

pub fn offset(received: &Received<KafkaSettlement>) -> i64 {
    match received.origin {
        Origin::Kafka { offset, .. } => offset,
        _ => panic!("a Kafka origin"),
    }
}

/// Begins and settles.
pub fn settle(mut received: Received<KafkaSettlement>) -> bool {
    let begun = received.settlement.begin();
    if begun {
        received.settlement.settle();
    }
    begun
}

/// How often each body was counted.
pub fn counted(bodies: impl IntoIterator<Item = String>) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for body in bodies {
        *counts.entry(body).or_default() += 1;
    }
    counts
}
