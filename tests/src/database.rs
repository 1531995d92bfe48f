//! A schema of its own for each test: Backstop's tables and the ledger beside them.

use std::time::Duration;

use backstop::Envelope;
use backstop::schema::Schema as _;
use backstop_postgres::{PgSchema, PgTables};
use backstop_testkit::oracle::{Books, Fact};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions, PgRow};
use sqlx::{AssertSqlSafe, PgPool, Row};

use crate::workload::Placed;
use crate::{letters, servers};

/// A PostgreSQL schema with Backstop's tables, `committed`, `applied` and `control`.
#[derive(Debug, Clone)]
pub struct Database {
    /// Its name.
    pub schema: String,
    /// Connections whose search path is the schema.
    pub pool: PgPool,
}

/// The ledger: what was committed by producers, what was applied by consumers.
const LEDGER: &str = "
CREATE TABLE committed (id text PRIMARY KEY, key text NOT NULL, seq bigint NOT NULL);
CREATE TABLE applied (n bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, consumer text NOT NULL, id text NOT NULL,
                      key text NOT NULL, seq bigint NOT NULL, overlap boolean NOT NULL);
CREATE TABLE control (mended boolean NOT NULL);
INSERT INTO control VALUES (false);";

impl Database {
    /// Makes a schema and everything in it.
    ///
    /// # Panics
    /// When the server cannot be used.
    pub async fn fresh(stem: &str) -> Self {
        let schema = servers::unique(stem).replace('-', "_");
        let admin = PgPool::connect(&servers::postgres_url()).await.expect("PostgreSQL answers");
        sqlx::query(AssertSqlSafe(format!("CREATE SCHEMA {schema}")))
            .execute(&admin)
            .await
            .expect("may create schemas");
        admin.close().await;
        let database = Self::open(&schema, 16).await;
        database.postgres_schema().migrate().await.expect("migrations apply");
        sqlx::raw_sql(LEDGER).execute(&database.pool).await.expect("the ledger is made");
        database
    }

    /// Opens a schema that is there.
    ///
    /// # Panics
    /// When the server cannot be used.
    pub async fn open(schema: &str, connections: u32) -> Self {
        Self::open_at(&servers::postgres_url(), schema, connections).await
    }

    /// Opens a schema that is there, through that URL.
    ///
    /// # Panics
    /// When the server cannot be used.
    pub async fn open_at(url: &str, schema: &str, connections: u32) -> Self {
        let options: PgConnectOptions = url.parse().expect("a PostgreSQL URL");
        let options = options.options([("search_path", schema)]);
        let pool = PgPoolOptions::new()
            .max_connections(connections)
            .acquire_timeout(Duration::from_secs(30))
            .connect_with(options)
            .await
            .expect("PostgreSQL answers");
        Self { schema: schema.to_owned(), pool }
    }

    /// Where Backstop's tables are.
    pub fn tables(&self) -> PgTables {
        PgTables::in_schema(&self.schema).expect("a name of ours")
    }

    /// Its migrations.
    pub fn postgres_schema(&self) -> PgSchema {
        PgSchema::new(self.pool.clone(), self.tables())
    }

    /// One number from a query.
    ///
    /// # Panics
    /// When the query fails.
    pub async fn number(&self, query: &str) -> i64 {
        let row = sqlx::query(AssertSqlSafe(query.to_owned())).fetch_one(&self.pool).await;
        row.unwrap_or_else(|error| panic!("{query}: {error}")).get(0)
    }

    /// How many ids `consumer` has applied, each counted once.
    pub async fn applied(&self, consumer: &str) -> i64 {
        self.number(&format!("SELECT count(DISTINCT id) FROM applied WHERE consumer = '{consumer}'")).await
    }

    /// How many ids are committed.
    pub async fn committed(&self) -> i64 {
        self.number("SELECT count(*) FROM committed").await
    }

    /// Rows that a relay has not published yet.
    pub async fn backlog(&self) -> i64 {
        let rows = "SELECT (SELECT count(*) FROM backstop_outbox) + (SELECT count(*) FROM backstop_outbox_scheduled)";
        self.number(rows).await
    }

    /// Messages that are held.
    pub async fn held(&self) -> i64 {
        self.number("SELECT count(*) FROM backstop_held").await
    }

    /// Lets the handler succeed where events ask it to fail.
    ///
    /// # Panics
    /// When the server cannot be used.
    pub async fn mend(&self) {
        sqlx::query("UPDATE control SET mended = true")
            .execute(&self.pool)
            .await
            .expect("the ledger is there");
    }

    /// Drops the schema. Sessions that nobody is at any more, such as those of connections that a test cut off from their
    /// client, may still have their locks in it: they are ended.
    pub async fn drop(self) {
        let end = "SELECT pg_terminate_backend(l.pid) FROM pg_locks AS l \
                   JOIN pg_class AS c ON c.oid = l.relation JOIN pg_namespace AS n ON n.oid = c.relnamespace \
                   WHERE n.nspname = $1 AND l.pid <> pg_backend_pid() AND l.database = \
                   (SELECT oid FROM pg_database WHERE datname = current_database())";
        if let Err(error) = sqlx::query(end).bind(&self.schema).execute(&self.pool).await {
            eprintln!("sessions that use schema {} are left alone: {error}", self.schema);
        }
        let statement = format!("DROP SCHEMA {} CASCADE", self.schema);
        if let Err(error) = sqlx::query(AssertSqlSafe(statement)).execute(&self.pool).await {
            eprintln!("schema {} is left behind: {error}", self.schema);
        }
        self.pool.close().await;
    }

    /// Checks that all that was committed is applied by `consumer`, and that nothing is dead.
    ///
    /// # Panics
    /// With what is wrong, when the books do not balance.
    pub async fn assert_balanced(&self, consumer: &str) {
        self.books(consumer).await.audit().assert_balanced();
    }

    /// Checks that those `letters` are of exactly the `events` that end dead, and that `consumer` has applied all else
    /// that was committed.
    ///
    /// # Panics
    /// With what is wrong, when the books do not balance.
    pub async fn assert_balanced_but_for(&self, consumer: &str, events: &[Placed], letters: &[Envelope]) {
        let dead = events.iter().filter(|placed| placed.ends_dead());
        let injected = dead.map(|placed| placed.id.clone()).collect();
        let books = self.books(consumer).await;
        let books = Books { injected, dead_letters: letters::ids(letters, events), ..books };
        books.audit().assert_balanced();
    }

    /// The books of one consumer, with what was committed, what is applied and what still waits; the caller adds
    /// what is dead.
    ///
    /// # Panics
    /// When two events of one key were at work at the same time, which the books cannot tell, or when a query fails.
    pub async fn books(&self, consumer: &str) -> Books {
        let overlaps = format!("SELECT count(*) FROM applied WHERE consumer = '{consumer}' AND overlap");
        assert_eq!(self.number(&overlaps).await, 0, "events of one key were at work at the same time");
        let applied = format!("SELECT key, seq, id FROM applied WHERE consumer = '{consumer}' ORDER BY n");
        Books {
            committed: self.facts("SELECT key, seq, id FROM committed").await,
            applied: self.facts(&applied).await,
            backlog: (self.backlog().await + self.held().await).unsigned_abs(),
            ..Books::default()
        }
    }

    async fn facts(&self, query: &str) -> Vec<Fact> {
        let rows = sqlx::query(AssertSqlSafe(query.to_owned())).fetch_all(&self.pool).await;
        let rows = rows.unwrap_or_else(|error| panic!("{query}: {error}"));
        let fact = |row: &PgRow| {
            let seq: i64 = row.get(1);
            Fact::new(row.get::<String, _>(0), seq.unsigned_abs(), row.get::<String, _>(2))
        };
        rows.iter().map(fact).collect()
    }
}
