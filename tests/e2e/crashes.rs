//! Processes that die between two steps.

use std::time::Duration;

use backstop_tests::apply::Fail;
use backstop_tests::commit_proxy::{CommitProxy, Cut};
use backstop_tests::database::Database;
use backstop_tests::program::{Broker, ConsumerConfig, RelayConfig};
use backstop_tests::workload::{self, Publisher};
use backstop_tests::{letters, servers, wait};

const PATIENCE: Duration = Duration::from_secs(120);
const COUNT: usize = 400;

/// The relay dies at that point, and another one finishes the work.
async fn relay_dies(broker: Broker, point: &str) {
    let database = Database::fresh("crash").await;
    let place = servers::unique("crash");
    workload::create_place(broker, &place, 4).await;
    let events = workload::events(COUNT, 20, |_| None);
    workload::commit(&database, &place, &events, 10).await;
    let relay = RelayConfig::new(broker, &database.schema, &[]);
    relay.spawn(Some(point)).ended(PATIENCE).await;
    assert!(database.backlog().await > 0, "it died before the end");

    let consumer = ConsumerConfig::new(broker, &place, &servers::unique("group"), &database.schema);
    let run = consumer.start();
    let _relay = relay.spawn(None);
    wait::until("all is applied", PATIENCE, || async {
        database.applied(&consumer.group).await == COUNT as i64 && database.backlog().await == 0
    })
    .await;
    run.stop().await;
    database.assert_balanced(&consumer.group).await;
    database.drop().await;
}

/// F2, F3: the whole batch comes again under its ids.
#[tokio::test(flavor = "multi_thread")]
async fn relay_dies_after_publish_before_delete_on_kafka() {
    relay_dies(Broker::Kafka, "relay.published").await;
}

/// F2, F3: the whole batch comes again under its ids.
#[tokio::test(flavor = "multi_thread")]
async fn relay_dies_after_publish_before_delete_on_rabbitmq() {
    relay_dies(Broker::RabbitMq, "relay.published").await;
}

/// F1: what had been read is read again.
#[tokio::test(flavor = "multi_thread")]
async fn relay_dies_after_claim_before_publish() {
    relay_dies(Broker::Kafka, "relay.claimed").await;
}

/// The relay dies when it has moved a batch of scheduled rows into the outbox, several times over.
#[tokio::test(flavor = "multi_thread")]
async fn relay_dies_after_promotion() {
    const DUE: usize = 5_000;
    let database = Database::fresh("crash").await;
    let place = servers::unique("crash");
    workload::create_place(Broker::Kafka, &place, 4).await;
    let events = workload::events(DUE, 20, |_| None);
    workload::schedule(&database, &place, &events).await;
    let relay = RelayConfig::new(Broker::Kafka, &database.schema, &[]);
    for batches in [1, 2, 1] {
        relay.spawn(Some(&format!("relay.promoted:{batches}"))).ended(PATIENCE).await;
        assert!(database.backlog().await > 0, "it died before the end");
    }
    let consumer = ConsumerConfig::new(Broker::Kafka, &place, &servers::unique("group"), &database.schema);
    let run = consumer.start();
    let _relay = relay.spawn(None);
    wait::until("all is applied", PATIENCE, || async {
        database.applied(&consumer.group).await == DUE as i64 && database.backlog().await == 0
    })
    .await;
    run.stop().await;
    database.assert_balanced(&consumer.group).await;
    database.drop().await;
}

/// The consumer dies at that point again and again, and another one finishes the work.
async fn consumer_dies(broker: Broker, point: &str) {
    dies(broker, point, |_| {}).await;
}

/// The same with messages that share transactions.
async fn groups_die(broker: Broker, point: &str) {
    dies(broker, point, in_groups).await;
}

/// The same with a handler that is given several at once.
async fn batches_die(broker: Broker, point: &str) {
    dies(broker, point, |config| {
        in_groups(config);
        config.batches = true;
    })
    .await;
}

fn in_groups(config: &mut ConsumerConfig) {
    // Few workers, so that messages wait for each other; and not all of them are suspected of every death.
    (config.shared, config.concurrency, config.window) = (64, 2, 16);
}

async fn dies(broker: Broker, point: &str, tune: impl Fn(&mut ConsumerConfig)) {
    let database = Database::fresh("crash").await;
    let place = servers::unique("crash");
    workload::create_place(broker, &place, 2).await;
    let mut config = ConsumerConfig::new(broker, &place, &servers::unique("group"), &database.schema);
    tune(&mut config);
    let publisher = Publisher::new(broker);
    let events = workload::events(COUNT, 20, |n| match n % 40 {
        10 => Some(Fail::Transient(2)),
        20 => Some(Fail::Permanent),
        30 => Some(Fail::Always),
        _ => None,
    });
    // Some that nobody has had before each death: the others are suspected of it, and share nothing.
    let mut parts = events.chunks(COUNT / 4);
    for (pass, part) in [1, 3, 5].into_iter().zip(&mut parts) {
        workload::publish(&database, &publisher, &place, part).await;
        config.spawn(Some(&format!("{point}:{pass}"))).ended(PATIENCE).await;
    }
    for part in parts {
        workload::publish(&database, &publisher, &place, part).await;
    }
    let run = config.start();
    let dead = events.iter().filter(|placed| placed.ends_dead()).count();
    let alive = (COUNT - dead) as i64;
    wait::until("all is applied", PATIENCE, || async {
        database.applied(&config.group).await == alive && database.held().await == 0
    })
    .await;
    let letters = letters::read_distinct(&config, dead).await;
    assert_eq!(letters.len(), dead, "open letters are exactly what was injected");
    let report = run.stop().await;
    assert_eq!(report.grouped > 0, config.shared > 1, "{report:?}");
    database.assert_balanced_but_for(&config.group, &events, &letters).await;
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn consumer_dies_between_the_handlers_of_a_group_on_kafka() {
    groups_die(Broker::Kafka, "consumer.group.handled").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn consumer_dies_between_the_handlers_of_a_group_on_rabbitmq() {
    groups_die(Broker::RabbitMq, "consumer.group.handled").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn consumer_dies_after_a_batch_before_its_commit_on_kafka() {
    batches_die(Broker::Kafka, "consumer.batch.handled").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn consumer_dies_after_a_batch_before_its_commit_on_rabbitmq() {
    batches_die(Broker::RabbitMq, "consumer.batch.handled").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn consumer_dies_after_the_commit_of_a_batch_before_settle() {
    batches_die(Broker::Kafka, "consumer.committed").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn consumer_dies_after_a_shared_commit_before_settle() {
    groups_die(Broker::Kafka, "consumer.committed").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn consumer_dies_after_a_held_row_beside_groups() {
    groups_die(Broker::Kafka, "consumer.held").await;
}

/// F48, F75: on Kafka.
#[tokio::test(flavor = "multi_thread")]
async fn consumer_dies_after_commit_before_settle_on_kafka() {
    consumer_dies(Broker::Kafka, "consumer.committed").await;
}

/// F75: on RabbitMQ.
#[tokio::test(flavor = "multi_thread")]
async fn consumer_dies_after_commit_before_settle_on_rabbitmq() {
    consumer_dies(Broker::RabbitMq, "consumer.committed").await;
}

/// F88: the row is written before the source is settled.
#[tokio::test(flavor = "multi_thread")]
async fn consumer_dies_after_the_held_row_before_settle_on_kafka() {
    consumer_dies(Broker::Kafka, "consumer.held").await;
}

/// F88: the same on RabbitMQ.
#[tokio::test(flavor = "multi_thread")]
async fn consumer_dies_after_the_held_row_before_settle_on_rabbitmq() {
    consumer_dies(Broker::RabbitMq, "consumer.held").await;
}

/// F57: the same letter.
#[tokio::test(flavor = "multi_thread")]
async fn consumer_dies_after_quarantine_before_its_row_is_deleted_on_kafka() {
    consumer_dies(Broker::Kafka, "consumer.quarantined").await;
}

/// F57: the same letter.
#[tokio::test(flavor = "multi_thread")]
async fn consumer_dies_after_quarantine_before_its_row_is_deleted_on_rabbitmq() {
    consumer_dies(Broker::RabbitMq, "consumer.quarantined").await;
}

/// The connection to the database is cut inside COMMIT, before or after the server has seen it.
async fn cut_inside_commit(cut: Cut, shared: usize) {
    let database = Database::fresh("commit").await;
    let place = servers::unique("commit");
    workload::create_place(Broker::Kafka, &place, 4).await;
    let (every, at_least) = if shared > 1 { (5, 3) } else { (15, 10) };
    let proxy = CommitProxy::start(&servers::postgres_url(), cut, every).await;
    let mut config = ConsumerConfig::new(Broker::Kafka, &place, &servers::unique("group"), &database.schema);
    config.postgres_url = Some(proxy.url());
    if shared > 1 {
        (config.shared, config.concurrency) = (shared, 2);
    }
    let publisher = Publisher::new(Broker::Kafka);
    let events = workload::events(COUNT, 20, |_| None);
    workload::publish(&database, &publisher, &place, &events).await;
    let run = config.start();
    wait::until("all is applied", PATIENCE, || async {
        database.applied(&config.group).await == COUNT as i64
    })
    .await;
    let report = run.stop().await;
    assert_eq!(report.grouped > 0, shared > 1, "{report:?}");
    assert!(proxy.cuts() >= at_least, "{} commits were cut off", proxy.cuts());
    database.assert_balanced(&config.group).await;
    database.drop().await;
}

/// F85: it was not committed.
#[tokio::test(flavor = "multi_thread")]
async fn connection_cut_before_the_server_sees_commit() {
    cut_inside_commit(Cut::BeforeServer, 1).await;
}

/// F85: it was committed.
#[tokio::test(flavor = "multi_thread")]
async fn connection_cut_after_the_server_saw_commit() {
    cut_inside_commit(Cut::AfterServer, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connection_of_a_group_cut_before_the_server_sees_commit() {
    cut_inside_commit(Cut::BeforeServer, 64).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connection_of_a_group_cut_after_the_server_saw_commit() {
    cut_inside_commit(Cut::AfterServer, 64).await;
}
