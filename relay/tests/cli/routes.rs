//! One process with several outboxes and several brokers.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::relay::{Relay, amqp, kafka, unique};
use backstop_core::source::{Settlement, Source};
use backstop_kafka::KafkaSource;
use backstop_rabbitmq::{RabbitSettings, RabbitSource, declare_queue, delete_queue};
use sqlx::SqlitePool;
use tokio::time::timeout;

const BOUND: Duration = Duration::from_secs(60);

/// Two outboxes in one file, of which each has rows for both brokers.
async fn filled(rabbit: &str, topic: &str, queue: &str) -> Relay {
    let relay = Relay::new(&format!(
        "[database]\nurl = \"sqlite:x.db?mode=rwc\"\n[broker]\nkind = \"rabbitmq\"\nurl = \"{rabbit}\"\n\
         [brokers.events]\nkind = \"kafka\"\nbrokers = [\"{}\"]\n\
         [[routes]]\ndestination = \"events.*\"\nbroker = \"events\"\n\
         [[outbox]]\n[[outbox]]\nname = \"old\"\ndatabase = {{ prefix = \"old\" }}\n",
        kafka()
    ));
    let migrated = relay.run("migrate");
    assert_eq!(migrated.code, 0, "{}", migrated.stderr);
    let pool =
        SqlitePool::connect(&format!("sqlite:{}", relay.path("x.db").display())).await.expect("the file");
    for table in ["backstop_outbox", "old_outbox"] {
        for n in 0..10 {
            for destination in [topic, queue] {
                let sql =
                    format!("INSERT INTO {table} (id, destination, key, payload) VALUES (?, ?, 'k', x'00')");
                sqlx::query(sqlx::AssertSqlSafe(sql))
                    .bind(format!("{table}-{n}"))
                    .bind(destination)
                    .execute(&pool)
                    .await
                    .expect("a row");
            }
        }
    }
    pool.close().await;
    relay
}

/// Waits until as many rows are pending in each outbox.
fn until_pending(relay: &Relay, expected: u64) {
    let begun = Instant::now();
    loop {
        let status = relay.run("outbox status --output json");
        assert_eq!(status.code, 0, "{}", status.stderr);
        let status = status.json();
        let outboxes = status.as_array().expect("a list");
        assert_eq!(outboxes.len(), 2, "{status}");
        if outboxes.iter().all(|outbox| outbox["pending"] == expected) {
            return;
        }
        assert!(begun.elapsed() < BOUND, "{status}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

async fn ids(mut source: impl Source) -> BTreeSet<String> {
    let mut ids = BTreeSet::new();
    while ids.len() < 20 {
        let batch = timeout(BOUND, source.next()).await.expect("in time").expect("readable").expect("more");
        for mut received in batch {
            assert!(received.settlement.begin());
            ids.insert(received.message.id);
            received.settlement.settle();
        }
    }
    source.close().await.expect("closed");
    ids
}

fn all_ids() -> BTreeSet<String> {
    let of = |table: &'static str| (0..10).map(move |n| format!("{table}-{n}"));
    of("backstop_outbox").chain(of("old_outbox")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_outboxes_feed_two_brokers() {
    let (topic, queue) = (format!("events.{}", unique()), unique());
    let settings = RabbitSettings::parse(&amqp()).expect("a URL");
    declare_queue(&settings, &queue).await.expect("a queue");
    let relay = filled(&amqp(), &topic, &queue).await;
    let ran = relay.run_while("run", || until_pending(&relay, 0));
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(ids(KafkaSource::subscribe(kafka(), unique(), &[&topic])).await, all_ids());
    assert_eq!(
        ids(RabbitSource::consume(&amqp(), queue.as_str()).build().expect("a source")).await,
        all_ids()
    );
    delete_queue(&settings, &queue).await.expect("removed");
    let ambiguous = relay.run("outbox dead list");
    assert_eq!((ambiguous.code, ambiguous.lines()[1]), (2, "hint: name one with --outbox: outbox, old"));
    assert_eq!(relay.run("outbox dead list --outbox old").stdout, "no dead rows\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_is_away_holds_back_its_own_rows_only() {
    let (topic, queue) = (format!("events.{}", unique()), unique());
    let relay = filled("amqp://guest:guest@127.0.0.1:1", &topic, &queue).await;
    let ran = relay.run_while("run", || until_pending(&relay, 10));
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(ids(KafkaSource::subscribe(kafka(), unique(), &[&topic])).await, all_ids());
    assert!(ran.stderr.contains("destination paused, others go on"), "{}", ran.stderr);
}
