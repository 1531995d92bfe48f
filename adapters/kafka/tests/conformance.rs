//! What every broker shows, on topics of its own for each case.

mod common;

use backstop_core::dead_letter::{kafka_door, kafka_letters};
use backstop_kafka::{KafkaDeadLetters, KafkaPublisher, KafkaSink, KafkaSource};
use backstop_testkit::conformance::{BrokerCapabilities, BrokerHarness};
use common::{admin, brokers, create, settings};
use rdkafka::admin::{AdminOptions, NewTopic, TopicReplication};

struct Kafka {
    topic: String,
}

const GROUP: &str = "stock";
const MAX_BYTES: usize = 900_000;
const WINDOW_BYTES: usize = 64 << 20;

impl Kafka {
    fn all(&self) -> [String; 3] {
        [self.topic.clone(), self.door(), kafka_letters(&self.topic, &self.group())]
    }

    fn reader(&self, group: &str, topic: &str) -> KafkaSource {
        let source = KafkaSource::subscribe(brokers(), group, &[topic]);
        source.property("session.timeout.ms", "6000").property("heartbeat.interval.ms", "1000")
    }
}

impl BrokerHarness for Kafka {
    type Source = KafkaSource;
    type Sink = KafkaSink;
    type Publisher = KafkaPublisher;
    type DeadLetters = KafkaDeadLetters;

    const CAPABILITIES: BrokerCapabilities = BrokerCapabilities {
        key_order_over_members: true,
        coordinates_identity: true,
        settles_in_order: true,
        null_headers: true,
        repeated_headers: true,
        tombstones: true,
        binary_keys: true,
        size_limit: true,
        // The test broker creates topics on publish (auto.create.topics.enable).
        missing_destination: false,
        asks_for_destinations: true,
    };

    async fn fresh() -> Self {
        let kafka = Self { topic: format!("conformance-{}", uuid::Uuid::new_v4().simple()) };
        let names = kafka.all();
        let topics = names.each_ref().map(|name| NewTopic::new(name, 3, TopicReplication::Fixed(1)));
        create(&topics).await;
        kafka
    }

    fn place(&self) -> String {
        self.topic.clone()
    }

    fn group(&self) -> String {
        format!("{GROUP}-{}", self.topic)
    }

    fn door(&self) -> String {
        kafka_door(&self.topic, &self.group())
    }

    async fn source(&self, window: usize) -> KafkaSource {
        let source = self.reader(&self.group(), &self.topic);
        source.window(window, WINDOW_BYTES).total_window(window, WINDOW_BYTES)
    }

    async fn letters(&self) -> KafkaSource {
        let [_, _, letters] = self.all();
        self.reader(&format!("collector-{}", self.topic), &letters).door(false)
    }

    async fn sink(&self) -> KafkaSink {
        KafkaSink::new(settings()).max_message_bytes(MAX_BYTES)
    }

    async fn publisher(&self) -> KafkaPublisher {
        KafkaPublisher::new(settings()).max_message_bytes(MAX_BYTES)
    }

    async fn dead_letters(&self) -> KafkaDeadLetters {
        KafkaDeadLetters::new(settings())
    }

    fn max_bytes(&self) -> usize {
        MAX_BYTES
    }

    async fn clean_up(self) {
        let names = self.all();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        // Left-overs do no harm: a test's end is no place to fail.
        drop(admin().delete_topics(&names, &AdminOptions::new()).await);
    }
}

backstop_testkit::broker_conformance!(Kafka);
