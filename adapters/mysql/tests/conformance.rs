//! What every database shows, in a database of its own for each case.

use std::sync::Arc;
use std::time::Duration;

use backstop_core::Outgoing;
use backstop_core::outbox::OutboxStore;
use backstop_core::schema::Schema;
use backstop_mysql::{MySqlInbox, MySqlOutbox, MySqlOutboxStore, MySqlSchema, MySqlTables, MySqlTx};
use backstop_testkit::conformance::{StoreCapabilities, StoreHarness};
use chrono::{DateTime, Utc};
use sqlx::mysql::{MySqlConnectOptions, MySqlPoolOptions};
use sqlx::{AssertSqlSafe, MySqlPool};

struct MySql {
    schema: String,
    pool: MySqlPool,
    tables: MySqlTables,
}

impl StoreHarness for MySql {
    type Store = MySqlInbox;

    const CAPABILITIES: StoreCapabilities = StoreCapabilities {
        concurrent_writers: true,
        failure_dooms_transaction: false,
        handler_can_commit: true,
        sees_ends_between_handlers: true,
        runs: false,
        unreadable_rows: true,
        schema: true,
    };

    async fn fresh() -> Self {
        let url = std::env::var("BACKSTOP_TEST_MYSQL_URL")
            .expect("BACKSTOP_TEST_MYSQL_URL is not set; run: eval \"$(tests/servers env)\"");
        let schema = format!("c_{}", uuid::Uuid::new_v4().simple());
        let tables = MySqlTables::in_schema(&schema).expect("a name");
        let options: MySqlConnectOptions = url.parse().expect("a URL");
        let pool = MySqlPoolOptions::new().max_connections(2).connect_with(options.clone()).await;
        let pool = pool.expect("MySQL");
        MySqlSchema::new(pool.clone(), tables.clone()).migrate().await.expect("migrated");
        pool.close().await;
        let pool = MySqlPoolOptions::new().max_connections(16).acquire_timeout(Duration::from_secs(30));
        let pool = pool.connect_with(options.database(&schema)).await.expect("MySQL");
        let table = "CREATE TABLE effects (n bigint AUTO_INCREMENT PRIMARY KEY, name varchar(255) NOT NULL)";
        sqlx::query(table).execute(&pool).await.expect("created");
        Self { schema, pool, tables }
    }

    fn store(&self) -> MySqlInbox {
        MySqlInbox::with_tables(self.pool.clone(), self.tables.clone())
    }

    fn outbox(&self) -> Arc<dyn OutboxStore> {
        Arc::new(MySqlOutboxStore::new(self.pool.clone(), self.tables.clone()))
    }

    fn schema(&self) -> Option<Arc<dyn Schema>> {
        Some(Arc::new(MySqlSchema::new(self.pool.clone(), self.tables.clone())))
    }

    async fn write_effect(&self, tx: &mut MySqlTx, name: &str) {
        let insert = sqlx::query("INSERT INTO effects (name) VALUES (?)").bind(name.to_owned());
        insert.execute(&mut **tx).await.expect("written");
    }

    async fn effects(&self, name: &str) -> u64 {
        let count = sqlx::query_scalar("SELECT COUNT(*) FROM effects WHERE name = ?").bind(name.to_owned());
        let count: i64 = count.fetch_one(&self.pool).await.expect("counted");
        count.unsigned_abs()
    }

    async fn enqueue(&self, tx: &mut MySqlTx, outgoing: Outgoing) {
        MySqlOutbox::with_tables(&self.tables).enqueue(tx, outgoing).await.expect("enqueued");
    }

    async fn enqueue_at(&self, tx: &mut MySqlTx, outgoing: Outgoing, at: DateTime<Utc>) {
        MySqlOutbox::with_tables(&self.tables).enqueue_at(tx, outgoing, at).await.expect("enqueued");
    }

    async fn enqueue_unreadable(&self, destination: &str) {
        let insert =
            "INSERT INTO backstop_outbox (destination, headers, payload) VALUES (?, '{\"a\": 7}', NULL)";
        sqlx::query(insert).bind(destination.to_owned()).execute(&self.pool).await.expect("written");
    }

    async fn swallow_failed_statement(&self, tx: &mut MySqlTx) {
        let failed = sqlx::query("INSERT INTO effects (name) VALUES (NULL)").execute(&mut **tx).await;
        failed.expect_err("the name must not be null");
    }

    async fn raw_commit(&self, tx: &mut MySqlTx) {
        sqlx::raw_sql("COMMIT").execute(&mut **tx).await.expect("committed");
    }

    async fn clean_up(self) {
        let drop = format!("DROP DATABASE `{}`", self.schema);
        sqlx::raw_sql(AssertSqlSafe(drop)).execute(&self.pool).await.expect("dropped");
        self.pool.close().await;
    }
}

backstop_testkit::store_conformance!(MySql, without ledger);
