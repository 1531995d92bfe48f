//! Group commit on PostgreSQL, with messages from memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use backstop::{Consumer, Delivery, GroupCommit, Handler, HandlerError, Message, Snapshot};
use backstop_postgres::{PgInbox, PgTx};
use backstop_testkit::memory::Broker;
use backstop_tests::database::Database;

/// Rows that all keys share.
const ROWS: i32 = 5;

async fn database() -> Database {
    let database = Database::fresh("groups").await;
    sqlx::raw_sql("CREATE TABLE total (n int PRIMARY KEY, sum int NOT NULL); INSERT INTO total SELECT n, 0 FROM generate_series(0, 4) n")
        .execute(&database.pool)
        .await
        .expect("made");
    database
}

async fn sum(database: &Database) -> i64 {
    sqlx::query_scalar("SELECT sum(sum) FROM total").fetch_one(&database.pool).await.expect("read")
}

async fn held(database: &Database) -> i64 {
    sqlx::query_scalar("SELECT count(*) FROM backstop_held").fetch_one(&database.pool).await.expect("read")
}

async fn consume<H: Handler<PgTx, Message = i32>>(
    database: &Database,
    broker: &Broker,
    handler: H,
) -> Snapshot {
    let inbox = PgInbox::with_tables(database.pool.clone(), database.tables());
    Consumer::transactional("totals", broker.source("totals", ["numbers"]).ends_when_idle(), inbox, handler)
        .dead_letter(broker.dead_letters())
        .group_commit(GroupCommit::up_to(64))
        .concurrency(4)
        .run(std::future::pending())
        .await
        .expect("an orderly end")
}

fn publish(broker: &Broker, count: i32, keys: i32) {
    broker.create("numbers", 4);
    for n in 0..count {
        let message = Message::new("number").id(n.to_string()).source("/tests").key(format!("k{}", n % keys));
        broker.publish("numbers", message.json(&n).expect("plain data"));
    }
}

/// Adds to a row that other keys' handlers add to as well, and takes its time with it.
struct Share;

impl Handler<PgTx> for Share {
    type Message = i32;

    async fn handle(&self, delivery: &Delivery<i32>, tx: &mut PgTx) -> Result<(), HandlerError> {
        let add = "UPDATE total SET sum = sum + 1 WHERE n = $1";
        sqlx::query(add).bind(delivery.body() * 7 % ROWS).execute(&mut **tx).await?;
        tokio::time::sleep(Duration::from_millis(2)).await;
        Ok(())
    }
}

/// Alone, these handlers never deadlock; groups of them do. Nobody is charged for it, and nothing is applied twice.
#[tokio::test(flavor = "multi_thread")]
async fn groups_that_deadlock_harm_nobody() {
    // Whether they do is a matter of timing: until they have.
    for round in 1..=50 {
        let (database, broker) = (database().await, Broker::new());
        publish(&broker, 600, 50);
        let report = consume(&database, &broker, Share).await;
        assert_eq!(sum(&database).await, 600);
        assert_eq!((report.handled, report.failures, report.held), (600, 0, 0), "{report:?}");
        assert!(broker.published("numbers.totals.dlq").is_empty());
        database.drop().await;
        if report.regrouped > 0 {
            return println!("they deadlocked in round {round}");
        }
    }
    panic!("they have never deadlocked");
}

/// Fails for some messages after its statement, and once swallows the failure of one.
#[derive(Clone, Default)]
struct Flaw(Arc<AtomicU32>);

#[derive(Debug, thiserror::Error)]
#[error("{0} is not to be added")]
struct Refused(i32);

impl Handler<PgTx> for Flaw {
    type Message = i32;

    async fn handle(&self, delivery: &Delivery<i32>, tx: &mut PgTx) -> Result<(), HandlerError> {
        let n = *delivery.body();
        let add = "UPDATE total SET sum = sum + 1 WHERE n = $1";
        sqlx::query(add).bind(n % ROWS).execute(&mut **tx).await?;
        match n % 100 {
            17 => return Err(HandlerError::permanent(Refused(n))),
            34 => {
                sqlx::query("SELECT 1 / 0").execute(&mut **tx).await?;
            }
            _ if n == 951 && self.0.fetch_add(1, Ordering::SeqCst) == 0 => {
                let swallowed = sqlx::query("SELECT 1 / 0").execute(&mut **tx).await;
                assert!(swallowed.is_err(), "division by zero fails");
            }
            _ => {}
        }
        Ok(())
    }
}

/// F77: on PostgreSQL.
/// Every hundredth message is refused and another one fails in SQL: these end as letters, and all others are applied.
#[tokio::test(flavor = "multi_thread")]
async fn what_fails_in_a_group_is_undone_alone() {
    let (database, broker) = (database().await, Broker::new());
    publish(&broker, 1_000, 50);
    let report = consume(&database, &broker, Flaw::default()).await;
    // What swallows a failure is charged where it happens to stand alone; it is held for its next attempt, which may
    // come after the source's end.
    let waiting = held(&database).await;
    assert!(waiting <= 1, "{report:?}");
    assert_eq!(sum(&database).await, 980 - waiting, "{report:?}");
    assert_eq!((report.handled as i64, report.quarantined), (980 - waiting, 20), "{report:?}");
    assert!(report.grouped > 0 && report.regrouped > 0, "{report:?}");
    assert_eq!(broker.published("numbers.totals.dlq").len(), 20);
    database.drop().await;
}

/// F76: in groups.
/// Another instance has the same messages: each is applied once.
#[tokio::test(flavor = "multi_thread")]
async fn two_instances_with_the_same_messages_apply_them_once() {
    let database = database().await;
    let brokers = [Broker::new(), Broker::new()];
    brokers.iter().for_each(|broker| publish(broker, 1_000, 50));
    let (one, two) = tokio::join!(
        consume(&database, &brokers[0], Flaw(Arc::new(AtomicU32::new(1)))),
        consume(&database, &brokers[1], Flaw(Arc::new(AtomicU32::new(1)))),
    );
    // Instances that get into each other's way may hold a message for its next attempt, which comes after their end.
    assert_eq!(sum(&database).await + held(&database).await, 980, "{one:?} {two:?}");
    database.drop().await;
}
