//! What a topic holds beside messages, and members that are slow.

mod common;

use std::time::Duration;

use backstop_core::source::{Settlement, Source};
use backstop_kafka::KafkaSource;
use common::*;
use rdkafka::ClientConfig;
use rdkafka::producer::{BaseRecord, Producer, ThreadedProducer};

fn transactional() -> ThreadedProducer<rdkafka::producer::DefaultProducerContext> {
    ClientConfig::new()
        .set("bootstrap.servers", brokers())
        .set("transactional.id", unique("writer"))
        .create()
        .expect("a producer")
}

/// F61: markers of transactions, and messages of those that were given up, take offsets that nobody settles.
#[tokio::test(flavor = "multi_thread")]
async fn markers_and_aborted_messages_do_not_hold_up_the_watermark() {
    let topic = Topic::new("markers", 1).await;
    let name = topic.name.clone();
    let written = tokio::task::spawn_blocking(move || {
        let producer = transactional();
        producer.init_transactions(BOUND).expect("a transactional producer");
        for (bodies, commits) in [(["0", "1"], true), (["x", "y"], false), (["2", "3"], true)] {
            producer.begin_transaction().expect("begun");
            for body in bodies {
                producer.send(BaseRecord::to(&name).key("k").payload(body)).expect("sent");
            }
            let ended = if commits {
                producer.commit_transaction(BOUND)
            } else {
                producer.flush(BOUND).and_then(|()| producer.abort_transaction(BOUND))
            };
            ended.expect("ended");
        }
    });
    written.await.expect("written");
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
