//! A schema of its own, its outbox filled, and the loop that only claims and deletes.

use std::time::{Duration, Instant};

use backstop::schema::Schema as _;
use backstop_postgres::{PgSchema, PgTables};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, PgPool, Row};

use crate::servers::{Servers, unique};
use crate::{Outcome, event};

/// Rows that one transaction writes into the backlog.
const FILL: usize = 10_000;

/// A PostgreSQL schema with Backstop's tables.
#[derive(Debug, Clone)]
pub(crate) struct Database {
    pub(crate) schema: String,
    options: PgConnectOptions,
    /// Connections whose search path is the schema.
    pub(crate) pool: PgPool,
}

impl Database {
    /// Makes a schema with the tables.
    pub(crate) async fn fresh(servers: &Servers, stem: &str) -> Outcome<Self> {
        let schema = unique(stem);
        let options: PgConnectOptions = servers.postgres.parse()?;
        let options = options.options([("search_path", schema.as_str())]);
        let pool = connect(&options, 20).await?;
        sqlx::query(AssertSqlSafe(format!("CREATE SCHEMA {schema}"))).execute(&pool).await?;
        let database = Self { schema, options, pool };
        PgSchema::new(database.pool.clone(), database.tables()?).migrate().await?;
        Ok(database)
    }

    /// Where Backstop's tables are.
    pub(crate) fn tables(&self) -> Outcome<PgTables> {
        Ok(PgTables::in_schema(&self.schema)?)
    }

    /// Another pool on the schema.
    pub(crate) async fn pool_of(&self, connections: u32) -> Outcome<PgPool> {
        connect(&self.options, connections).await
    }

    /// Commits `rows` rows for `destination` into an empty outbox.
    pub(crate) async fn fill(&self, destination: &str, rows: usize) -> Outcome<()> {
        sqlx::query("TRUNCATE backstop_outbox").execute(&self.pool).await?;
        for from in (0..rows).step_by(FILL) {
            let numbers = from..rows.min(from + FILL);
            let keys: Vec<String> = numbers.clone().map(event::key).collect();
            let payloads: Vec<Vec<u8>> = numbers.map(event::payload).collect();
            sqlx::query(
                "INSERT INTO backstop_outbox (source, destination, key, kind, event_time, content_type, payload) \
                 SELECT '/bench', $1, key, 'bench.event', now(), 'application/json', payload \
                 FROM unnest($2::text[], $3::bytea[]) WITH ORDINALITY AS row (key, payload, place) ORDER BY place",
            )
            .bind(destination)
            .bind(keys)
            .bind(payloads)
            .execute(&self.pool)
            .await?;
        }
        sqlx::query("ANALYZE backstop_outbox").execute(&self.pool).await?;
        Ok(())
    }

    /// Rows that wait in the outbox.
    pub(crate) async fn backlog(&self) -> Outcome<i64> {
        Ok(sqlx::query_scalar("SELECT count(*) FROM backstop_outbox").fetch_one(&self.pool).await?)
    }

    /// Drops the schema.
    pub(crate) async fn drop(self) -> Outcome<()> {
        sqlx::query(AssertSqlSafe(format!("DROP SCHEMA {} CASCADE", self.schema)))
            .execute(&self.pool)
            .await?;
        self.pool.close().await;
        Ok(())
    }
}

async fn connect(options: &PgConnectOptions, connections: u32) -> Outcome<PgPool> {
    let pool = PgPoolOptions::new().max_connections(connections).acquire_timeout(Duration::from_secs(30));
    Ok(pool.connect_with(options.clone()).await?)
}

/// Empties the outbox without any broker, on one connection; rows a second.
pub(crate) async fn claim_and_delete(database: &Database, batch: usize) -> Outcome<f64> {
    let mut connection = database.pool.acquire().await?;
    let began = Instant::now();
    let mut claimed = 0;
    loop {
        let rows = sqlx::query(
            "SELECT seq, id, source, destination, routing_key, key, kind, subject, event_time, content_type, \
             headers::text, payload FROM backstop_outbox ORDER BY seq LIMIT $1",
        )
        .bind(i64::try_from(batch)?)
        .fetch_all(&mut *connection)
        .await?;
        if rows.is_empty() {
            return Ok(f64::from(claimed) / began.elapsed().as_secs_f64());
        }
        let seqs: Vec<i64> = rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?;
        claimed += u32::try_from(seqs.len())?;
        sqlx::query("DELETE FROM backstop_outbox WHERE seq = ANY($1)")
            .bind(seqs)
            .execute(&mut *connection)
            .await?;
    }
}
