//! A schema of its own for each test: Backstop's tables and the ledger beside them.

use std::collections::BTreeMap;
use std::time::Duration;

use backstop::schema::Schema as _;
use backstop_postgres::{PgSchema, PgTables};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, PgPool, Row};

use crate::servers;

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
        self.number("SELECT count(*) FROM backstop_outbox").await
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

    /// Drops the schema.
    pub async fn drop(self) {
        let statement = format!("DROP SCHEMA {} CASCADE", self.schema);
        if let Err(error) = sqlx::query(AssertSqlSafe(statement)).execute(&self.pool).await {
            eprintln!("schema {} is left behind: {error}", self.schema);
        }
        self.pool.close().await;
    }

    /// The verdict of the ledger for one consumer; see [`Verdict`].
    pub async fn verdict(&self, consumer: &str) -> Verdict {
        let committed = self.pairs("SELECT id, key, seq FROM committed ORDER BY key, seq").await;
        let applied = self
            .pairs(&format!("SELECT id, key, seq FROM applied WHERE consumer = '{consumer}' ORDER BY n"))
            .await;
        let overlaps = self
            .number(&format!("SELECT count(*) FROM applied WHERE consumer = '{consumer}' AND overlap"))
            .await;
        Verdict::of(&committed, &applied, overlaps, self.backlog().await)
    }

    async fn pairs(&self, query: &str) -> Vec<(String, String, i64)> {
        let rows = sqlx::query(AssertSqlSafe(query.to_owned())).fetch_all(&self.pool).await;
        let rows = rows.unwrap_or_else(|error| panic!("{query}: {error}"));
        rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect()
    }
}

/// What the oracle says. All is well when every field but `missing` is zero or empty, and `missing` holds exactly
/// what was to be dead-lettered.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Committed, but not applied.
    pub missing: Vec<String>,
    /// Applied more than once.
    pub twice: Vec<String>,
    /// Applied before an earlier one of its key.
    pub out_of_order: Vec<String>,
    /// Applied, but never committed.
    pub from_nowhere: Vec<String>,
    /// Applied while another one of its key was.
    pub overlaps: i64,
    /// Rows still in the outbox.
    pub backlog: i64,
}

impl Verdict {
    fn of(
        committed: &[(String, String, i64)],
        applied: &[(String, String, i64)],
        overlaps: i64,
        backlog: i64,
    ) -> Self {
        let mut verdict = Self { overlaps, backlog, ..Self::default() };
        let mut times: BTreeMap<&str, u32> = BTreeMap::new();
        let mut last: BTreeMap<&str, i64> = BTreeMap::new();
        for (id, key, seq) in applied {
            let count = times.entry(id).or_default();
            *count += 1;
            if *count == 2 {
                verdict.twice.push(id.clone());
            }
            let last = last.entry(key).or_insert(i64::MIN);
            if *count == 1 && *seq < *last {
                verdict.out_of_order.push(format!("{key}: {seq} after {last}"));
            }
            *last = (*last).max(*seq);
        }
        for (id, _, _) in committed {
            if times.remove(id.as_str()).is_none() {
                verdict.missing.push(id.clone());
            }
        }
        verdict.from_nowhere = times.into_keys().map(str::to_owned).collect();
        verdict
    }

    /// Panics unless all is well; `dead` are the ids that were to be dead-lettered.
    ///
    /// # Panics
    /// When anything is lost, twice, out of order, from nowhere, overlapping or left behind.
    pub fn assert_balanced(mut self, dead: &[String]) {
        let mut dead = dead.to_vec();
        dead.sort();
        self.missing.sort();
        assert_eq!(self.missing, dead, "what is missing must be what was to be dead-lettered");
        self.missing.clear();
        assert_eq!(self, Self::default());
    }
}
