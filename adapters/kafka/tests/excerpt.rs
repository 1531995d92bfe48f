//! Reading a part of a topic from a real Kafka.

mod common;

use std::collections::BTreeMap;
use std::time::Duration;

use backstop_core::message::Envelope;
use backstop_core::origin::Origin;
use backstop_core::{FaultKind, message::Destination, sink::Sink};
use backstop_kafka::{KafkaExcerpt, KafkaSink, ReadFrom};
use chrono::Utc;
use common::*;
use rdkafka::ClientConfig;
use rdkafka::producer::{BaseRecord, Producer, ThreadedProducer};

/// Opens the excerpt where blocking is allowed.
async fn open(topic: &str, from: ReadFrom) -> Result<KafkaExcerpt, backstop_core::AdapterError> {
    let topic = topic.to_owned();
    let open = move || KafkaExcerpt::open(&settings(), &topic, &from);
    tokio::task::spawn_blocking(open).await.expect("no panic")
}

/// All of it, and the excerpt.
async fn rest(mut excerpt: KafkaExcerpt) -> (Vec<(Envelope, Origin)>, KafkaExcerpt) {
    let read = tokio::task::spawn_blocking(move || {
        let end = std::time::Instant::now() + BOUND;
        let mut all = Vec::new();
        while excerpt.left() > 0 {
            assert!(std::time::Instant::now() < end, "{excerpt:?}");
            all.extend(excerpt.read(50, Duration::from_millis(500)).expect("the topic is there"));
        }
        (all, excerpt)
    });
    read.await.expect("no panic")
}

fn bodies(messages: &[(Envelope, Origin)]) -> Vec<String> {
    let body = |envelope: &Envelope| String::from_utf8(envelope.body.as_ref().expect("a body").to_vec());
    messages.iter().map(|(envelope, _)| body(envelope).expect("text")).collect()
}

fn numbers(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|number| number.to_string()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn it_ends_where_the_topic_ended_when_it_was_opened() {
    let topic = Topic::new("excerpt", 1).await;
    publish_numbers(&topic.name, "k", 0..120).await;
    let excerpt = open(&topic.name, ReadFrom::Beginning).await.expect("there");
    assert_eq!((excerpt.left(), excerpt.ranges()), (120, &BTreeMap::from([(0, 0..120)])));
    publish_numbers(&topic.name, "k", 120..150).await;
    let (read, excerpt) = rest(excerpt).await;
    assert_eq!(bodies(&read), numbers(0..120));
    assert_eq!(excerpt.left(), 0);
    assert!(matches!(&read[7].1, Origin::Kafka { partition: 0, offset: 7, timestamp: Some(_), .. }));
}

#[tokio::test(flavor = "multi_thread")]
async fn it_begins_at_an_offset_or_a_time_and_goes_on_where_it_was() {
    let topic = Topic::new("excerpt", 1).await;
    publish_numbers(&topic.name, "k", 0..10).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    let noon = Utc::now();
    publish_numbers(&topic.name, "k", 10..20).await;

    let excerpt = open(&topic.name, ReadFrom::Offsets(BTreeMap::from([(0, 15)]))).await.expect("there");
    assert_eq!(bodies(&rest(excerpt).await.0), numbers(15..20));
    let mut excerpt = open(&topic.name, ReadFrom::Time(noon)).await.expect("there");
    assert_eq!(excerpt.left(), 10);
    let read = tokio::task::spawn_blocking(move || {
        let mut read = Vec::new();
        while read.len() < 4 {
            read.extend(excerpt.read(4 - read.len(), Duration::from_secs(5)).expect("the topic is there"));
        }
        (read, excerpt.ranges().clone())
    });
    let (read, left) = read.await.expect("no panic");
    assert_eq!(bodies(&read), numbers(10..14));
    publish_numbers(&topic.name, "k", 20..25).await;
    let excerpt = open(&topic.name, ReadFrom::Ranges(left)).await.expect("there");
    assert_eq!(bodies(&rest(excerpt).await.0), numbers(14..20), "to the end that it had at first");
    let later = Utc::now() + Duration::from_secs(3_600);
    assert_eq!(open(&topic.name, ReadFrom::Time(later)).await.expect("there").left(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_partition_is_read_in_its_order_and_empty_ones_end() {
    let topic = Topic::new("excerpt", 5).await;
    let sink = KafkaSink::new(settings());
    for number in 0..200 {
        let sent = envelope(&format!("key-{}", number % 3), number.to_string());
        sink.publish(&Destination::new(&topic.name), sent).await.expect("published");
    }
    let excerpt = open(&topic.name, ReadFrom::Beginning).await.expect("there");
    let (read, _) = rest(excerpt).await;
    assert_eq!(read.len(), 200);
    for key in ["key-0", "key-1", "key-2"] {
        let of_key = read.iter().filter(|(envelope, _)| envelope.key.as_deref() == Some(key.as_bytes()));
        let of_key: Vec<_> = of_key.cloned().collect();
        let numbers: Vec<u32> = bodies(&of_key).iter().map(|body| body.parse().expect("a number")).collect();
        assert!(numbers.is_sorted(), "{key}: {numbers:?}");
    }
}

/// What is not committed yet is not there; marks of transactions are no messages and hold nothing up.
#[tokio::test(flavor = "multi_thread")]
async fn of_transactions_it_reads_what_is_committed() {
    let topic = Topic::new("excerpt", 1).await;
    let producer: ThreadedProducer<_> = ClientConfig::new()
        .set("bootstrap.servers", brokers())
        .set("transactional.id", unique("tx"))
        .create()
        .expect("a producer");
    producer.init_transactions(BOUND).expect("Kafka answers");
    let send = |body: &str, commit: Option<bool>| {
        producer.begin_transaction().expect("begun");
        producer.send(BaseRecord::to(&topic.name).key("k").payload(body)).expect("queued");
        producer.flush(BOUND).expect("sent");
        match commit {
            Some(true) => producer.commit_transaction(BOUND).expect("committed"),
            Some(false) => producer.abort_transaction(BOUND).expect("aborted"),
            None => {}
        }
    };
    send("one", Some(true));
    send("two", Some(false));
    send("three", Some(true));
    send("four", None);
    let excerpt = open(&topic.name, ReadFrom::Beginning).await.expect("there");
    let (read, _) = rest(excerpt).await;
    assert_eq!(bodies(&read), ["one", "three"]);
    producer.commit_transaction(BOUND).expect("committed");
    let excerpt = open(&topic.name, ReadFrom::Beginning).await.expect("there");
    assert_eq!(bodies(&rest(excerpt).await.0), ["one", "three", "four"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_is_named() {
    let topic = Topic::new("excerpt", 2).await;
    let at = |partition, offset| ReadFrom::Offsets(BTreeMap::from([(partition, offset)]));
    let error = open(&topic.name, at(2, 0)).await.expect_err("no such partition");
    assert_eq!((error.kind(), error.hint()), (FaultKind::Missing, Some("it has 2 partitions")));
    assert_eq!(open(&topic.name, at(0, 1)).await.expect_err("no such offset").kind(), FaultKind::Missing);
    let error = open("backstop-no-such-topic", ReadFrom::Beginning).await.expect_err("no such topic");
    assert_eq!(error.kind(), FaultKind::Missing);
    assert_eq!(open(&topic.name, at(1, 0)).await.expect("empty, and there").left(), 0);
}
