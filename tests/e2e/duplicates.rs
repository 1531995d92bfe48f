//! The same message again, and the same id from somebody else.

use std::time::Duration;

use backstop_tests::database::Database;
use backstop_tests::program::{Broker, ConsumerConfig};
use backstop_tests::workload::{self, Publisher};
use backstop_tests::{servers, wait};

const PATIENCE: Duration = Duration::from_secs(60);
const COUNT: usize = 500;

async fn published_twice(broker: Broker) {
    let database = Database::fresh("twice").await;
    let place = servers::unique("twice");
    workload::create_place(broker, &place, 4).await;
    let config = ConsumerConfig::new(broker, &place, &servers::unique("group"), &database.schema);
    let group = config.group.clone();
    let publisher = Publisher::new(broker);
    let events = workload::events(COUNT, 20, |_| None);
    for placed in &events {
        publisher.message(&place, placed.message("/a")).await;
    }
    // The same identities once more, and the same ids under another source.
    for source in ["/a", "/b"] {
        for placed in &events {
            publisher.message(&place, placed.message(source)).await;
        }
    }

    let run = config.start();
    let count = format!("SELECT count(*) FROM applied WHERE consumer = '{group}'");
    let expected = 2 * COUNT as i64;
    wait::until("both sources are applied", PATIENCE, || async { database.number(&count).await >= expected })
        .await;
    let report = run.stop().await;
    assert_eq!(database.number(&count).await, expected, "effects added by duplicates");
    assert_eq!((report.handled, report.duplicates), (2 * COUNT as u64, COUNT as u64));
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn duplicates_are_counted_and_sources_told_apart_on_kafka() {
    published_twice(Broker::Kafka).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn duplicates_are_counted_and_sources_told_apart_on_rabbitmq() {
    published_twice(Broker::RabbitMq).await;
}
