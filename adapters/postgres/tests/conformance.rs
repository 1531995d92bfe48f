//! What every database shows, in a schema of its own for each case.

use std::sync::Arc;
use std::time::Duration;

use backstop_core::Outgoing;
use backstop_core::ledger::Ledger;
use backstop_core::outbox::OutboxStore;
use backstop_core::schema::Schema;
use backstop_postgres::{PgInbox, PgLedger, PgOutbox, PgOutboxStore, PgSchema, PgTables, PgTx};
use backstop_testkit::conformance::{StoreCapabilities, StoreHarness};
use chrono::{DateTime, Utc};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, PgPool};

struct Postgres {
    schema: String,
    pool: PgPool,
    tables: PgTables,
}

impl StoreHarness for Postgres {
    type Store = PgInbox;

    const CAPABILITIES: StoreCapabilities = StoreCapabilities {
        concurrent_writers: true,
        failure_dooms_transaction: true,
        handler_can_commit: true,
        sees_ends_between_handlers: false,
        runs: true,
        unreadable_rows: true,
        schema: true,
    };

    async fn fresh() -> Self {
        let url = std::env::var("BACKSTOP_TEST_POSTGRES_URL")
            .expect("BACKSTOP_TEST_POSTGRES_URL is not set; run: eval \"$(tests/servers env)\"");
        let schema = format!("c_{}", uuid::Uuid::new_v4().simple());
        let options: PgConnectOptions = url.parse().expect("a URL");
        let pool = PgPoolOptions::new().max_connections(16).acquire_timeout(Duration::from_secs(30));
        let options = options.options([("search_path", schema.as_str())]);
        let pool = pool.connect_with(options).await.expect("PostgreSQL");
        let tables = PgTables::in_schema(&schema).expect("a name");
        PgSchema::new(pool.clone(), tables.clone()).migrate().await.expect("migrated");
        let table = "CREATE TABLE effects (n bigint GENERATED ALWAYS AS IDENTITY, name text NOT NULL)";
        sqlx::query(table).execute(&pool).await.expect("created");
        Self { schema, pool, tables }
    }

    fn store(&self) -> PgInbox {
        PgInbox::with_tables(self.pool.clone(), self.tables.clone())
    }

    fn outbox(&self) -> Arc<dyn OutboxStore> {
        Arc::new(PgOutboxStore::new(self.pool.clone(), self.tables.clone()))
    }

    fn ledger(&self) -> Arc<dyn Ledger> {
        Arc::new(PgLedger::new(self.pool.clone(), self.tables.clone()))
    }

    fn schema(&self) -> Option<Arc<dyn Schema>> {
        Some(Arc::new(PgSchema::new(self.pool.clone(), self.tables.clone())))
    }

    async fn write_effect(&self, tx: &mut PgTx, name: &str) {
        let insert = sqlx::query("INSERT INTO effects (name) VALUES ($1)").bind(name.to_owned());
        insert.execute(&mut **tx).await.expect("written");
    }

    async fn effects(&self, name: &str) -> u64 {
        let count = sqlx::query_scalar("SELECT count(*) FROM effects WHERE name = $1").bind(name.to_owned());
        let count: i64 = count.fetch_one(&self.pool).await.expect("counted");
        count.unsigned_abs()
    }

    async fn enqueue(&self, tx: &mut PgTx, outgoing: Outgoing) {
        PgOutbox::with_tables(&self.tables).enqueue(tx, outgoing).await.expect("enqueued");
    }

    async fn enqueue_at(&self, tx: &mut PgTx, outgoing: Outgoing, at: DateTime<Utc>) {
        PgOutbox::with_tables(&self.tables).enqueue_at(tx, outgoing, at).await.expect("enqueued");
    }

    async fn enqueue_unreadable(&self, destination: &str) {
        let insert =
            "INSERT INTO backstop_outbox (destination, headers, payload) VALUES ($1, '{\"a\": 7}', NULL)";
        sqlx::query(insert).bind(destination.to_owned()).execute(&self.pool).await.expect("written");
    }

    async fn swallow_failed_statement(&self, tx: &mut PgTx) {
        let failed = sqlx::query("INSERT INTO effects (name) VALUES (NULL)").execute(&mut **tx).await;
        failed.expect_err("the name must not be null");
    }

    async fn raw_commit(&self, tx: &mut PgTx) {
        sqlx::raw_sql("COMMIT").execute(&mut **tx).await.expect("committed");
    }

    async fn clean_up(self) {
        let drop = format!("DROP SCHEMA \"{}\" CASCADE", self.schema);
        sqlx::raw_sql(AssertSqlSafe(drop)).execute(&self.pool).await.expect("dropped");
        self.pool.close().await;
    }
}

backstop_testkit::store_conformance!(Postgres);
