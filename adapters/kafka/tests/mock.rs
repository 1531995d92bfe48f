//! The mock broker is enough for a quick start.
#![cfg(feature = "mock")]

mod common;

use std::time::{Duration, Instant};

use backstop_core::Destination;
use backstop_core::dead_letter::DeadLetters;
use backstop_core::sink::Sink;
use backstop_core::source::Source;
use backstop_kafka::{KafkaDeadLetters, KafkaSettings, KafkaSink, KafkaSource, MockBroker};
use common::{body, envelope, read, settle, within};

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_starts_quickly_and_reads_what_was_published() {
    let broker = MockBroker::start().expect("started");
    broker.create_topic("orders", 2).expect("made");
    broker.create_owned_topics("orders", "stock", 1).expect("made");
    let settings = KafkaSettings::new(broker.bootstrap_servers());
    let started = Instant::now();
    let mut source = KafkaSource::subscribe(broker.bootstrap_servers(), "stock", &["orders"]);
    within("prepare", KafkaDeadLetters::new(settings.clone()).prepare(&source.describe()))
        .await
        .expect("prepared");
    let sink = KafkaSink::new(settings);
    for number in 0..20 {
        let (destination, message) =
            (Destination::new("orders"), envelope(&number.to_string(), number.to_string()));
        within("publish", sink.publish(&destination, message)).await.expect("published");
    }
    let mut numbers = Vec::new();
    for received in read(&mut source, 20).await {
        numbers.push(body(&received).parse::<u32>().expect("a number"));
        assert!(settle(received));
    }
    numbers.sort_unstable();
    assert_eq!(numbers, (0..20).collect::<Vec<_>>());
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    println!("read after {:?}", started.elapsed());
    within("close", source.close()).await.expect("closed");
}

#[test]
fn a_topic_that_is_there_is_an_error() {
    let broker = MockBroker::start().expect("started");
    broker.create_topic("orders", 1).expect("made");
    assert!(broker.create_topic("orders", 1).is_err());
}
