//! What a topic holds beside messages, and members that are slow.

use std::time::Duration;

use crate::common::*;
use backstop_core::source::{Settlement, Source};
use backstop_kafka::KafkaSource;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::producer::{BaseRecord, Producer, ThreadedProducer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

fn transactional() -> ThreadedProducer<rdkafka::producer::DefaultProducerContext> {
    ClientConfig::new()
        .set("bootstrap.servers", brokers())
        .set("transactional.id", unique("writer"))
        .create()
        .expect("a producer")
}

/// Publishes what commits and what does not, each in a transaction of its own.
async fn publish(topic: &Topic, transactions: &'static [(&'static [&'static str], bool)]) {
    let name = topic.name.clone();
    let written = tokio::task::spawn_blocking(move || {
        let producer = transactional();
        producer.init_transactions(BOUND).expect("a transactional producer");
        for (bodies, commits) in transactions {
            producer.begin_transaction().expect("begun");
            for body in *bodies {
                producer.send(BaseRecord::to(&name).key("k").payload(*body)).expect("sent");
            }
            let ended = if *commits {
                producer.commit_transaction(BOUND)
            } else {
                producer.flush(BOUND).and_then(|()| producer.abort_transaction(BOUND))
            };
            ended.expect("ended");
        }
    });
    written.await.expect("written");
}

/// F61: markers of transactions, and messages of those that were given up, take offsets that nobody settles.
#[tokio::test(flavor = "multi_thread")]
async fn markers_and_aborted_messages_do_not_hold_up_the_watermark() {
    let topic = Topic::new("markers", 1).await;
    publish(&topic, &[(&["0", "1"], true), (&["x", "y"], false), (&["2", "3"], true)]).await;
    let group = unique("g");
    let mut first = KafkaSource::subscribe(brokers(), &group, &[topic.name.as_str()]).door(false);
    let taken = read(&mut first, 4).await;
    assert_eq!(taken.iter().map(body).collect::<Vec<_>>(), ["0", "1", "2", "3"]);
    taken.into_iter().for_each(|received| assert!(settle(received)));
    within("close", first.close()).await.expect("closed");

    publish_numbers(&topic.name, "k", 4..5).await;
    let mut second = KafkaSource::subscribe(brokers(), &group, &[topic.name.as_str()]).door(false);
    assert_eq!(read(&mut second, 1).await.iter().map(body).collect::<Vec<_>>(), ["4"]);
    within("close", second.close()).await.expect("closed");
}

/// Commits as an owner does that then dies with messages at work.
fn die_at(group: &str, topic: &str, offset: i64) {
    let mut offsets = TopicPartitionList::new();
    let mut element = offsets.add_partition(topic, 0);
    element.set_offset(Offset::Offset(offset)).expect("an offset");
    element.set_metadata("dirty");
    member(group).commit(&offsets, CommitMode::Sync).expect("committed");
}

/// What the group's last commit says of how its owner left.
fn mark(group: &str, topic: &str) -> String {
    let mut asked = TopicPartitionList::new();
    asked.add_partition(topic, 0);
    let answer = member(group).committed_offsets(asked, BOUND).expect("Kafka answers");
    answer.elements()[0].metadata().to_owned()
}

fn member(group: &str) -> BaseConsumer {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers()).set("group.id", group);
    config.create().expect("a consumer")
}

/// F61: whoever has done everything leaves clean, although the marker at the end is never settled.
#[tokio::test(flavor = "multi_thread")]
async fn suspicion_ends_where_a_log_ends_in_a_marker() {
    let topic = Topic::new("clean", 1).await;
    let group = unique("g");
    publish(&topic, &[(&["0", "1"], true), (&["x"], false)]).await;
    die_at(&group, &topic.name, 1);
    let subscribe = || KafkaSource::subscribe(brokers(), &group, &[topic.name.as_str()]).door(false);
    let mut source = subscribe();
    let taken = read(&mut source, 1).await;
    assert!(taken[0].settlement.is_suspect());
    drop(taken);
    within("close", source.close()).await.expect("closed");
    assert_eq!(mark(&group, &topic.name), "dirty", "the suspect was not handled");

    let mut source = subscribe();
    read(&mut source, 1).await.into_iter().for_each(|received| assert!(settle(received)));
    within("close", source.close()).await.expect("closed");
    assert_eq!((committed(&group, &topic.name, 0), mark(&group, &topic.name)), (Some(2), "clean".to_owned()));

    // The next owner finds nothing but what is never handed over.
    die_at(&group, &topic.name, 2);
    within("a restart that leaves clean", async {
        while mark(&group, &topic.name) != "clean" {
            let mut source = subscribe();
            let nothing = tokio::time::timeout(Duration::from_secs(2), source.next()).await;
            assert!(nothing.is_err(), "there is nothing to hand over");
            within("close", source.close()).await.expect("closed");
        }
    })
    .await;
}

/// F54: the consumer is polled although its window is full and its handler outlasts `max.poll.interval.ms`.
#[tokio::test(flavor = "multi_thread")]
async fn a_handler_slower_than_the_poll_interval_keeps_its_partition() {
    let topic = Topic::new("slow", 1).await;
    let group = unique("g");
    publish_numbers(&topic.name, "k", 0..4).await;
    let slow = settings().property("max.poll.interval.ms", "6000");
    let mut source = KafkaSource::subscribe(brokers(), &group, &[topic.name.as_str()])
        .settings(slow)
        .door(false)
        .window(2, usize::MAX)
        .commit_interval(Duration::from_millis(100));
    let mut taken = read(&mut source, 2).await;
    taken.iter_mut().for_each(|received| assert!(received.settlement.begin()));
    // The handler's work.
    tokio::time::sleep(Duration::from_secs(9)).await;
    assert_eq!(state(&group), ("Stable".to_owned(), 1), "it is a member still");
    taken.into_iter().for_each(|received| received.settlement.settle());
    until("the commit", || committed(&group, &topic.name, 0) == Some(2)).await;
    assert_eq!(read(&mut source, 2).await.iter().map(body).collect::<Vec<_>>(), ["2", "3"], "none twice");
    within("close", source.close()).await.expect("closed");
}
