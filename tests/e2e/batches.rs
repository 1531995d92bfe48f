//! Batches with one set-based statement, on each database, with messages from memory.

use backstop::held::HeldMessages;
use backstop::inbox::Inbox;
use backstop::schema::Schema;
use backstop::{
    BatchHandler, Consumer, DeadReason, Delivery, GroupCommit, HandlerError, Message, Outcomes, Snapshot,
    names,
};
use backstop_mysql::{MySqlInbox, MySqlSchema, MySqlTables, MySqlTx};
use backstop_postgres::{PgInbox, PgTx};
use backstop_sqlite::{SqliteInbox, SqliteSchema, SqliteTables, SqliteTx};
use backstop_testkit::memory::Broker;
use backstop_tests::database::Database;
use backstop_tests::servers;
use sqlx::AssertSqlSafe;

const COUNT: i32 = 1_000;
/// Every so many, a number is negative, which the table refuses.
const REFUSED_EVERY: i32 = 100;

/// Adds numbers up with one statement; the database refuses what is negative.
struct Sum {
    table: String,
}

fn numbers(batch: &[&Delivery<i32>]) -> Vec<i32> {
    batch.iter().map(|delivery| *delivery.body()).collect()
}

fn json(batch: &[&Delivery<i32>]) -> Result<String, HandlerError> {
    Ok(serde_json::to_string(&numbers(batch))?)
}

impl BatchHandler<PgTx> for Sum {
    type Message = i32;

    async fn handle(&self, batch: &[&Delivery<i32>], tx: &mut PgTx) -> Result<Outcomes, HandlerError> {
        let sql = format!("INSERT INTO {} SELECT n FROM unnest($1::int[]) AS n", self.table);
        sqlx::query(AssertSqlSafe(sql)).bind(numbers(batch)).execute(&mut **tx).await?;
        Ok(Outcomes::handled())
    }
}

impl BatchHandler<MySqlTx> for Sum {
    type Message = i32;

    async fn handle(&self, batch: &[&Delivery<i32>], tx: &mut MySqlTx) -> Result<Outcomes, HandlerError> {
        let numbers = "JSON_TABLE(?, '$[*]' COLUMNS (n int PATH '$'))";
        let sql = format!("INSERT INTO {} SELECT numbers.n FROM {numbers} AS numbers", self.table);
        sqlx::query(AssertSqlSafe(sql)).bind(json(batch)?).execute(&mut **tx).await?;
        Ok(Outcomes::handled())
    }
}

impl BatchHandler<SqliteTx> for Sum {
    type Message = i32;

    async fn handle(&self, batch: &[&Delivery<i32>], tx: &mut SqliteTx) -> Result<Outcomes, HandlerError> {
        let sql = format!("INSERT INTO {} SELECT value FROM json_each(?)", self.table);
        sqlx::query(AssertSqlSafe(sql)).bind(json(batch)?).execute(&mut **tx).await?;
        Ok(Outcomes::handled())
    }
}

/// The numbers, each of them twice; those that are refused are the only negative ones.
fn broker() -> Broker {
    let broker = Broker::new();
    broker.create("numbers", 4);
    for n in 1..=COUNT {
        let number = if n % REFUSED_EVERY == 0 { -n } else { n };
        let message = Message::new("number").id(n.to_string()).source("/tests").key(format!("k{}", n % 20));
        let message = message.json(&number).expect("plain data");
        broker.publish("numbers", message.clone());
        broker.publish("numbers", message);
    }
    broker
}

async fn consume<I>(broker: &Broker, inbox: I, table: &str) -> Snapshot
where
    I: HeldMessages,
    Sum: BatchHandler<<I as Inbox>::Tx, Message = i32>,
{
    let source = broker.source("sum", ["numbers"]).ends_when_idle();
    Consumer::batch("sum", source, inbox, Sum { table: table.to_owned() })
        .dead_letter(broker.dead_letters())
        .group_commit(GroupCommit::up_to(200))
        .concurrency(2)
        .run(std::future::pending())
        .await
        .expect("an orderly end")
}

/// All that is sound is in the table once, and of each refused number there is a letter.
fn check(broker: &Broker, report: Snapshot, applied: (i64, i64)) {
    let refused = COUNT / REFUSED_EVERY;
    let sum: i32 = (1..=COUNT).filter(|n| n % REFUSED_EVERY != 0).sum();
    assert_eq!(applied, (i64::from(COUNT - refused), i64::from(sum)), "{report:?}");
    assert!(report.grouped > 0 && report.regrouped > 0, "{report:?}");
    let letters = broker.published("numbers.sum.dlq");
    let permanent = DeadReason::Permanent.as_str();
    let refusals = letters.iter().filter(|letter| letter.headers.get_str(names::REASON) == Some(permanent));
    assert_eq!(refusals.count(), letters.len());
    let ids: std::collections::HashSet<_> =
        letters.iter().filter_map(|letter| letter.headers.get_str(names::DEAD_LETTER_ID)).collect();
    assert_eq!(ids.len(), refused.unsigned_abs() as usize);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_statement_for_a_batch_on_postgres() {
    let (database, broker) = (Database::fresh("batches").await, broker());
    sqlx::query("CREATE TABLE total (n int NOT NULL CHECK (n > 0))")
        .execute(&database.pool)
        .await
        .expect("made");
    let inbox = PgInbox::with_tables(database.pool.clone(), database.tables());
    let report = consume(&broker, inbox, "total").await;
    let applied = sqlx::query_as("SELECT count(*), sum(n) FROM total").fetch_one(&database.pool).await;
    check(&broker, report, applied.expect("read"));
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_statement_for_a_batch_on_mariadb() {
    let (broker, prefix) = (broker(), format!("{}_", servers::unique("b").replace('-', "_")));
    let url = std::env::var("BACKSTOP_TEST_MYSQL_URL")
        .expect("BACKSTOP_TEST_MYSQL_URL is not set; run: eval \"$(tests/servers env)\"");
    let pool = backstop_mysql::open(&url).await.expect("MariaDB answers");
    let tables = MySqlTables::default().with_prefix(&prefix).expect("a name of ours");
    let schema = MySqlSchema::new(pool.clone(), tables.clone());
    schema.migrate().await.expect("migrated");
    let table = format!("{prefix}total");
    let create = format!("CREATE TABLE {table} (n int NOT NULL CHECK (n > 0))");
    sqlx::query(AssertSqlSafe(create)).execute(&pool).await.expect("made");
    let report = consume(&broker, MySqlInbox::with_tables(pool.clone(), tables), &table).await;
    let select = format!("SELECT COUNT(*), CAST(SUM(n) AS SIGNED) FROM {table}");
    let applied = sqlx::query_as(AssertSqlSafe(select)).fetch_one(&pool).await;
    check(&broker, report, applied.expect("read"));
    schema.revert(0).await.expect("taken back");
    sqlx::query(AssertSqlSafe(format!("DROP TABLE {table}"))).execute(&pool).await.expect("dropped");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_statement_for_a_batch_on_sqlite() {
    let (broker, folder) = (broker(), tempfile::tempdir().expect("a folder"));
    let file = folder.path().join("batches.sqlite");
    let pool = backstop_sqlite::open(&file.to_string_lossy()).await.expect("opened");
    SqliteSchema::new(pool.clone(), SqliteTables::default()).migrate().await.expect("migrated");
    sqlx::query("CREATE TABLE total (n INTEGER NOT NULL CHECK (n > 0))").execute(&pool).await.expect("made");
    let report = consume(&broker, SqliteInbox::new(pool.clone()), "total").await;
    let applied = sqlx::query_as("SELECT count(*), sum(n) FROM total").fetch_one(&pool).await;
    check(&broker, report, applied.expect("read"));
}
