//! What every database shows, on a file of its own for each case.

use std::sync::Arc;

use backstop_core::Outgoing;
use backstop_core::ledger::Ledger;
use backstop_core::outbox::OutboxStore;
use backstop_core::schema::Schema;
use backstop_sqlite::{
    SqliteInbox, SqliteLedger, SqliteOutbox, SqliteOutboxStore, SqliteSchema, SqliteTables, SqliteTx, open,
};
use backstop_testkit::conformance::{StoreCapabilities, StoreHarness};
use chrono::{DateTime, Utc};
use sqlx::SqlitePool;
use tempfile::TempDir;

struct Sqlite {
    pool: SqlitePool,
    _directory: TempDir,
}

impl StoreHarness for Sqlite {
    type Store = SqliteInbox;

    const CAPABILITIES: StoreCapabilities = StoreCapabilities {
        concurrent_writers: false,
        failure_dooms_transaction: false,
        handler_can_commit: true,
        sees_ends_between_handlers: true,
        runs: false,
        unreadable_rows: true,
        schema: true,
    };

    async fn fresh() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("test.db");
        let pool = open(path.to_str().expect("UTF-8")).await.expect("opened");
        SqliteSchema::new(pool.clone(), SqliteTables::default()).migrate().await.expect("migrated");
        let table = "CREATE TABLE effects (n INTEGER PRIMARY KEY, name TEXT NOT NULL)";
        sqlx::query(table).execute(&pool).await.expect("created");
        Self { pool, _directory: directory }
    }

    fn store(&self) -> SqliteInbox {
        SqliteInbox::new(self.pool.clone())
    }

    fn outbox(&self) -> Arc<dyn OutboxStore> {
        Arc::new(SqliteOutboxStore::new(self.pool.clone(), SqliteTables::default()))
    }

    fn ledger(&self) -> Arc<dyn Ledger> {
        Arc::new(SqliteLedger::new(self.pool.clone(), SqliteTables::default()))
    }

    fn schema(&self) -> Option<Arc<dyn Schema>> {
        Some(Arc::new(SqliteSchema::new(self.pool.clone(), SqliteTables::default())))
    }

    async fn write_effect(&self, tx: &mut SqliteTx, name: &str) {
        let insert = sqlx::query("INSERT INTO effects (name) VALUES (?)").bind(name.to_owned());
        insert.execute(&mut **tx).await.expect("written");
    }

    async fn effects(&self, name: &str) -> u64 {
        let count = sqlx::query_scalar("SELECT count(*) FROM effects WHERE name = ?").bind(name.to_owned());
        let count: i64 = count.fetch_one(&self.pool).await.expect("counted");
        count.unsigned_abs()
    }

    async fn enqueue(&self, tx: &mut SqliteTx, outgoing: Outgoing) {
        SqliteOutbox::default().enqueue(tx, outgoing).await.expect("enqueued");
    }

    async fn enqueue_at(&self, tx: &mut SqliteTx, outgoing: Outgoing, at: DateTime<Utc>) {
        SqliteOutbox::default().enqueue_at(tx, outgoing, at).await.expect("enqueued");
    }

    async fn enqueue_unreadable(&self, destination: &str) {
        let insert =
            "INSERT INTO backstop_outbox (destination, headers, payload) VALUES (?, '{\"a\": 7}', NULL)";
        sqlx::query(insert).bind(destination.to_owned()).execute(&self.pool).await.expect("written");
    }

    async fn swallow_failed_statement(&self, tx: &mut SqliteTx) {
        let failed = sqlx::query("INSERT INTO effects (name) VALUES (NULL)").execute(&mut **tx).await;
        failed.expect_err("the name must not be null");
    }

    async fn raw_commit(&self, tx: &mut SqliteTx) {
        sqlx::raw_sql("COMMIT").execute(&mut **tx).await.expect("committed");
    }
}

backstop_testkit::store_conformance!(Sqlite);
