//! What the publisher finds in the settings of topics.

mod common;

use backstop_core::Destination;
use backstop_core::schema::{Finding, Severity};
use backstop_core::sink::{Publisher, Traffic};
use backstop_kafka::KafkaPublisher;
use common::{Topic, settings, unique};

/// The finding of a publisher of messages up to 100,000 bytes.
async fn only(traffic: Traffic) -> Finding {
    let publisher = KafkaPublisher::new(settings()).max_message_bytes(100_000);
    let findings = publisher.inspect(&traffic).await;
    let [finding] = <[Finding; 1]>::try_from(findings).expect("one finding");
    finding
}

fn waits(topic: &Topic, bytes: usize) -> Traffic {
    let destination = Destination::new(topic.name.as_str());
    Traffic { largest: vec![(destination.clone(), 10), (destination, bytes)], ..Traffic::default() }
}

#[tokio::test]
async fn limits_of_size() {
    let small = Topic::with(&unique("small"), 1, &[("max.message.bytes", "50000")]).await;
    let large = Topic::with(&unique("large"), 1, &[("max.message.bytes", "200000")]).await;
    for (topic, bytes, severity, detail) in [
        (&large, 100_000, Severity::Fine, "takes messages up to 200000 bytes"),
        (
            &large,
            100_001,
            Severity::Error,
            "a row of 100001 bytes waits, and max_message_bytes is 100000: it can never be sent",
        ),
        (
            &small,
            50_000,
            Severity::Warning,
            "takes messages up to 50000 bytes, and max_message_bytes is 100000",
        ),
        (&small, 50_001, Severity::Warning, "a row of 50001 bytes waits, and the topic takes 50000"),
    ] {
        let finding = only(waits(topic, bytes)).await;
        assert_eq!((finding.severity, finding.detail.as_str()), (severity, detail));
        assert_eq!(finding.remedy.is_some(), severity != Severity::Fine);
    }
}

#[tokio::test]
async fn retention_and_size_of_dead_letters() {
    let week = ("retention.ms", "604800000");
    let day = ("retention.ms", "86400000");
    let wide = ("max.message.bytes", "1032768");
    let orders = unique("orders");
    let million = ("max.message.bytes", "1000000");
    let _source = Topic::with(&orders, 1, &[week, million]).await;
    for (group, config, severity, detail) in [
        ("pay.eu", [week, wide], Severity::Fine, "kept for 7 days, as long as those of {}"),
        ("audit", [day, wide], Severity::Warning, "kept for 1 days, those of {} for 7 days"),
        (
            "small",
            [week, million],
            Severity::Warning,
            "takes 1000000 bytes, and a letter of {} has up to 1032768",
        ),
    ] {
        let letters = Topic::with(&format!("{orders}.{group}.dlq"), 1, &config).await;
        let traffic =
            Traffic { letters: vec![Destination::new(letters.name.as_str())], ..Traffic::default() };
        let finding = only(traffic).await;
        assert_eq!((finding.severity, finding.detail), (severity, detail.replace("{}", &orders)), "{group}");
    }
}

#[tokio::test]
async fn topics_that_are_not_there_are_left_to_the_probe() {
    let missing = Destination::new(unique("missing"));
    let publisher = KafkaPublisher::new(settings());
    let traffic = Traffic { largest: vec![(missing.clone(), 1)], letters: vec![missing.clone()] };
    assert_eq!(publisher.inspect(&traffic).await, []);
    assert_eq!(publisher.probe(&[missing]).await.len(), 1);
}
