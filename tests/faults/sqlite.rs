//! An outbox in a file of SQLite.

use std::time::Duration;

use backstop::Outgoing;
use backstop::schema::Schema as _;
use backstop_sqlite::{SqliteOutbox, SqliteSchema, SqliteTables};
use backstop_tests::apply::Event;
use backstop_tests::database::Database;
use backstop_tests::program::{Broker, ConsumerConfig, RelayConfig};
use backstop_tests::scene::PATIENCE;
use backstop_tests::workload::{self, Placed};
use backstop_tests::{servers, wait};
use sqlx::SqlitePool;

const WRITERS: usize = 4;
const EACH: i64 = 250;

/// Commits events of one key, and writes each into the ledger once it is committed.
async fn write(pool: SqlitePool, ledger: Database, place: String, writer: usize) {
    let outbox = SqliteOutbox::default();
    for seq in 1..=EACH {
        let event = Event { key: format!("key-{writer}"), seq, fail: None };
        let placed = Placed { id: uuid::Uuid::now_v7().to_string(), event };
        let mut tx = pool.begin_with("BEGIN IMMEDIATE").await.expect("its turn comes");
        let outgoing = Outgoing::to(&place, placed.message("/tests"));
        outbox.enqueue(&mut tx, outgoing).await.expect("a sound message");
        tx.commit().await.expect("it has the lock");
        let mut connection = ledger.pool.acquire().await.expect("PostgreSQL answers");
        workload::try_record(&mut connection, &placed).await.expect("a fresh id");
    }
}

/// F27, F28: relays are killed at any moment, and every writer waits for the others all the time.
#[tokio::test(flavor = "multi_thread")]
async fn relays_are_killed_while_many_write() {
    let _turn = servers::together().await;
    let (ledger, place) = (Database::fresh("sqlite").await, servers::unique("sqlite"));
    workload::create_ordered_place(Broker::RabbitMq, &place, 1).await;
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("outbox.db");
    let path = path.to_str().expect("a temporary path is UTF-8");
    let pool = backstop_sqlite::open(path).await.expect("a file can be made");
    SqliteSchema::new(pool.clone(), SqliteTables::default()).migrate().await.expect("migrations apply");
    let consumer = ConsumerConfig::new(Broker::RabbitMq, &place, &servers::unique("ledger"), &ledger.schema);
    let run = consumer.start();
    // A short lease, so that a dead owner is soon followed by the next.
    let relay = RelayConfig::of(&format!(
        "[database]\nurl = \"sqlite:{path}\"\n\n[broker]\nkind = \"rabbitmq\"\nurl = \"{}\"\n\n\
         [outbox]\nlease_ttl = \"2s\"\n",
        servers::amqp_url()
    ));
    let writing: Vec<_> = (0..WRITERS)
        .map(|writer| tokio::spawn(write(pool.clone(), ledger.clone(), place.clone(), writer)))
        .collect();
    for round in 1..=4 {
        let owner = relay.watched();
        let part = round * EACH * WRITERS as i64 / 8;
        wait::until("a part is applied", PATIENCE, || async {
            ledger.applied(&consumer.group).await >= part
        })
        .await;
        drop(owner);
    }
    for writer in writing {
        writer.await.expect("a writer does not panic");
    }
    let _relay = relay.watched();
    let all = EACH * WRITERS as i64;
    wait::until("all is applied", PATIENCE, || async { ledger.applied(&consumer.group).await >= all }).await;
    wait::until("the outbox is empty", Duration::from_secs(30), || async {
        let left: i64 = sqlx::query_scalar("SELECT count(*) FROM backstop_outbox")
            .fetch_one(&pool)
            .await
            .expect("SQLite answers");
        left == 0
    })
    .await;
    run.stop().await;
    ledger.assert_balanced(&consumer.group).await;
    ledger.drop().await;
}
