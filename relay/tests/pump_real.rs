//! The pump between real servers: every row arrives once, in the order of its key.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use backstop_core::outbox::OutboxStore;
use backstop_core::schema::Schema;
use backstop_core::sink::Publisher;
use backstop_core::source::{Settlement, Source};
use backstop_core::{Message, Outgoing};
use backstop_kafka::{KafkaPublisher, KafkaSettings, KafkaSource, StartFrom};
use backstop_mysql::{MySqlOutbox, MySqlOutboxStore, MySqlSchema, MySqlTables};
use backstop_postgres::{PgOutbox, PgOutboxStore, PgSchema, PgTables};
use backstop_rabbitmq::{RabbitPublisher, RabbitSettings, RabbitSource, declare_queue, delete_queue};
use backstop_relay::pump::{OnUnsendable, Pump, PumpSettings};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

const ROWS: usize = 5_000;
const KEYS: usize = 97;
const BOUND: Duration = Duration::from_secs(120);

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set; run: eval \"$(tests/servers env)\""))
}

fn unique(what: &str) -> String {
    format!("test_relay_{what}_{}", uuid::Uuid::new_v4().simple())
}

fn message(destination: &str, n: usize) -> Outgoing {
    let key = format!("k{}", n % KEYS);
    Outgoing::to(destination, Message::new("test").key(key).body("text/plain", n.to_string()))
}

/// Writes the rows into PostgreSQL and pumps them into `destination`.
async fn postgresql(destination: &str, publisher: Box<dyn Publisher>) {
    let pool = backstop_postgres::open(&variable("BACKSTOP_TEST_POSTGRES_URL")).await.expect("PostgreSQL");
    let tables = PgTables::in_schema(&unique("pump")).expect("a name");
    let schema = PgSchema::new(pool.clone(), tables.clone());
    schema.migrate().await.expect("migrated");
    let outbox = PgOutbox::with_tables(&tables);
    for first in (0..ROWS).step_by(500) {
        let mut tx = pool.begin().await.expect("a transaction");
        let messages = (first..first + 500).map(|n| message(destination, n));
        outbox.enqueue_all(&mut tx, messages).await.expect("rows");
        tx.commit().await.expect("committed");
    }
    pump(Arc::new(PgOutboxStore::new(pool.clone(), tables).full_scan(None)), publisher).await;
    schema.revert(0).await.expect("tables removed");
    pool.close().await;
}

/// The same with MariaDB.
async fn mariadb(destination: &str, publisher: Box<dyn Publisher>) {
    let pool = backstop_mysql::open(&variable("BACKSTOP_TEST_MYSQL_URL")).await.expect("MariaDB");
    let prefix = format!("t{}", &uuid::Uuid::new_v4().simple().to_string()[..12]);
    let tables = MySqlTables::default().with_prefix(&prefix).expect("a prefix");
    let schema = MySqlSchema::new(pool.clone(), tables.clone());
    schema.migrate().await.expect("migrated");
    let outbox = MySqlOutbox::with_tables(&tables);
    for first in (0..ROWS).step_by(500) {
        let mut tx = pool.begin().await.expect("a transaction");
        let messages = (first..first + 500).map(|n| message(destination, n));
        outbox.enqueue_all(&mut tx, messages).await.expect("rows");
        tx.commit().await.expect("committed");
    }
    pump(Arc::new(MySqlOutboxStore::new(pool.clone(), tables).full_scan(None)), publisher).await;
    schema.revert(0).await.expect("tables removed");
    pool.close().await;
}

/// Pumps until nothing is left.
async fn pump(store: Arc<dyn OutboxStore>, publisher: Box<dyn Publisher>) {
    let settings = PumpSettings { on_unsendable: OnUnsendable::Stop, ..PumpSettings::default() };
    let pump = Pump::new(store, publisher, settings);
    let mut status = pump.status();
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(pump.run(shutdown.clone()));
    let drained = status.wait_for(|status| status.deleted >= ROWS as u64);
    timeout(BOUND, drained).await.expect("drained in time").expect("still running");
    shutdown.cancel();
    let report = running.await.expect("no panic").expect("an orderly end");
    assert_eq!((report.status.published, report.status.dead, report.unconfirmed), (ROWS as u64, 0, 0));
}

/// Reads all rows back: each once, and those of a key in order.
async fn check(mut source: impl Source) {
    let mut last: HashMap<Vec<u8>, usize> = HashMap::new();
    let mut seen = BTreeSet::new();
    while seen.len() < ROWS {
        let batch = timeout(BOUND, source.next()).await.expect("in time").expect("readable").expect("more");
        for mut received in batch {
            assert!(received.settlement.begin());
            let body = received.message.body.expect("a body");
            let n: usize = std::str::from_utf8(&body).expect("text").parse().expect("a number");
            assert!(seen.insert(n), "row {n} came twice");
            let before = last.insert(received.message.key.expect("a key").to_vec(), n);
            assert!(before.is_none_or(|before| before < n), "row {n} came after {before:?}");
            received.settlement.settle();
        }
    }
    source.close().await.expect("closed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgresql_to_kafka() {
    let brokers = variable("BACKSTOP_TEST_KAFKA");
    let topic = unique("kafka");
    postgresql(&topic, Box::new(KafkaPublisher::new(KafkaSettings::new(brokers.as_str())))).await;
    let source = KafkaSource::subscribe(brokers, unique("group"), &[&topic]);
    check(source.start_from(StartFrom::Earliest)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mariadb_to_kafka() {
    let brokers = variable("BACKSTOP_TEST_KAFKA");
    let topic = unique("kafka");
    mariadb(&topic, Box::new(KafkaPublisher::new(KafkaSettings::new(brokers.as_str())))).await;
    let source = KafkaSource::subscribe(brokers, unique("group"), &[&topic]);
    check(source.start_from(StartFrom::Earliest)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgresql_to_rabbitmq() {
    let url = variable("BACKSTOP_TEST_AMQP_URL");
    let queue = unique("rabbitmq");
    let settings = RabbitSettings::parse(&url).expect("a URL");
    declare_queue(&settings, &queue).await.expect("a queue");
    let publisher = RabbitPublisher::builder(settings.clone()).start().expect("started");
    postgresql(&queue, Box::new(publisher)).await;
    check(RabbitSource::consume(&url, queue.as_str()).build().expect("a source")).await;
    delete_queue(&settings, &queue).await.expect("removed");
}
