//! Members that come and go, and a topic that grows, under load.

use std::time::Duration;

use backstop_tests::apply::Fail;
use backstop_tests::database::Database;
use backstop_tests::program::{Broker, ConsumerConfig};
use backstop_tests::workload::{self, Publisher};
use backstop_tests::{servers, wait};

const PATIENCE: Duration = Duration::from_secs(120);

/// Two members, a third joins, one leaves; then the topic grows from 4 to 8 partitions while keys are held.
async fn rebalanced(broker: Broker) {
    let database = Database::fresh("rebalance").await;
    let place = servers::unique("rebalance");
    workload::create_place(broker, &place, 4).await;
    let mut config = ConsumerConfig::new(broker, &place, &servers::unique("group"), &database.schema);
    config.max_attempts = 40;
    config.concurrency = 8;
    config.work_ms = 2;
    let group = &config.group;
    let publisher = Publisher::new(broker);
    let events = workload::events(2_400, 40, |n| (n % 50 == 0).then_some(Fail::Transient(2)));
    let applied = |count: i64| {
        let database = &database;
        async move { database.applied(group).await >= count }
    };

    let (first, second) = (config.start(), config.start());
    workload::publish(&database, &publisher, &place, &events[..500]).await;
    let third = config.start();
    workload::publish(&database, &publisher, &place, &events[500..1_600]).await;
    wait::until("part of it is applied", PATIENCE, || applied(1_000)).await;
    first.stop().await;
    // An order across a change of the partition count is not promised for what is in the topic still.
    wait::until("the first part is applied or held", PATIENCE, || async {
        database.applied(group).await + database.held().await >= 1_600
    })
    .await;
    workload::grow_topic(&place, 8).await;
    workload::publish(&database, &publisher, &place, &events[1_600..]).await;
    wait::until("all is applied", PATIENCE, || applied(2_400)).await;
    second.stop().await;
    third.stop().await;
    database.assert_balanced(group).await;
    database.drop().await;
}

/// F49, F65: members come and go, and a topic grows.
#[tokio::test(flavor = "multi_thread")]
async fn rebalanced_cooperatively() {
    rebalanced(Broker::Kafka).await;
}

/// F49, F65: the same where the broker decides.
#[tokio::test(flavor = "multi_thread")]
async fn rebalanced_by_the_broker() {
    rebalanced(Broker::KafkaNext).await;
}
