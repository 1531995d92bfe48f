//! Makes the tables, step by step.

use backstop_core::schema::{Finding, Migration, Schema, Severity};
use backstop_core::{AdapterError, FaultKind};
use futures_core::future::BoxFuture;
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Executor, PgPool, Postgres, Transaction};

use crate::check;
use crate::failure::{code, failed};
use crate::tables::PgTables;

macro_rules! migration {
    ($version:literal, $name:literal) => {
        migration!($version, $name, "000")
    };
    ($version:literal, $name:literal, $zeros:literal) => {
        Migration {
            version: $version,
            name: $name,
            up: include_str!(concat!("../migrations/", $zeros, $version, "_", $name, ".up.sql")),
            down: include_str!(concat!("../migrations/", $zeros, $version, "_", $name, ".down.sql")),
        }
    };
}

pub(crate) const MIGRATIONS: &[Migration] = &[
    migration!(1, "outbox"),
    migration!(2, "inbox"),
    migration!(3, "lease"),
    migration!(4, "ledger"),
    migration!(5, "scheduled"),
    migration!(6, "dead_origin"),
    migration!(7, "lease_report"),
    migration!(8, "redrive"),
    migration!(9, "receipt"),
    migration!(10, "audit", "00"),
    migration!(11, "charge", "00"),
];

/// How long a step waits for a table: whoever comes after it waits as long.
const PATIENCE: &str = "5s";
/// What to do when that was too short.
const HELD: &str = "a transaction holds a table: see the oldest in pg_stat_activity, and run it again";

/// The tables of one schema and prefix.
///
/// Which steps were taken is kept in `backstop_migrations`, apart from the versions of any other tool.
#[derive(Debug, Clone)]
pub struct PgSchema {
    pool: PgPool,
    tables: PgTables,
}

impl PgSchema {
    /// The schema of those tables.
    pub fn new(pool: PgPool, tables: PgTables) -> Self {
        Self { pool, tables }
    }

    /// A transaction that alone may change these tables. The lock ends with the transaction, so that it works
    /// through poolers.
    async fn begin(&self) -> Result<Transaction<'static, Postgres>, AdapterError> {
        let doing = || failed("begin a change of the tables");
        let mut tx = self.pool.begin().await.map_err(doing())?;
        sqlx::query("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))")
            .bind(format!("backstop/migrations/{}", self.tables.quoted("migrations")))
            .execute(&mut *tx)
            .await
            .map_err(doing())?;
        if let Some(schema) = self.tables.schema() {
            let there: bool =
                sqlx::query_scalar("SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = $1)")
                    .bind(schema.as_str())
                    .fetch_one(&mut *tx)
                    .await
                    .map_err(doing())?;
            let quoted = schema.quoted('"');
            let create = if there { String::new() } else { format!("CREATE SCHEMA {quoted}; ") };
            let sql = format!("{create}SET LOCAL search_path TO {quoted}");
            let doing = failed("create or use the schema of the tables");
            tx.execute(sqlx::raw_sql(AssertSqlSafe(sql))).await.map_err(doing)?;
        }
        Ok(tx)
    }

    /// Takes the next step up, if one is missing.
    async fn step_up(&self) -> Result<Option<i64>, AdapterError> {
        let mut tx = self.begin().await?;
        let table = self.tables.quoted("migrations");
        let create = format!(
            "CREATE TABLE IF NOT EXISTS {table} (version bigint PRIMARY KEY, name text NOT NULL, \
             applied_at timestamptz NOT NULL DEFAULT now())"
        );
        if !self.has_versions(&mut tx).await? {
            tx.execute(sqlx::raw_sql(AssertSqlSafe(create)))
                .await
                .map_err(failed("create the table of migrations"))?;
        }
        let applied = self.versions(&mut tx).await?;
        let Some(step) = MIGRATIONS.iter().find(|step| !applied.contains(&step.version)) else {
            return Ok(None);
        };
        self.run(&mut tx, step, step.up).await?;
        sqlx::query(AssertSqlSafe(format!("INSERT INTO {table} (version, name) VALUES ($1, $2)")))
            .bind(step.version)
            .bind(step.name)
            .execute(&mut *tx)
            .await
            .map_err(failed("write down a migration"))?;
        tx.commit().await.map_err(failed("commit a migration"))?;
        Ok(Some(step.version))
    }

    /// Takes the newest step above `version` back.
    async fn step_down(&self, version: i64) -> Result<Option<i64>, AdapterError> {
        let mut tx = self.begin().await?;
        if !self.has_versions(&mut tx).await? {
            return Ok(None);
        }
        let newest = self.versions(&mut tx).await?.into_iter().filter(|applied| *applied > version).max();
        let Some(newest) = newest else { return Ok(None) };
        let Some(step) = MIGRATIONS.iter().find(|step| step.version == newest) else {
            let what = format!("migration {newest} is of a newer version of Backstop");
            return Err(AdapterError::new(FaultKind::Invalid, what).with_hint("revert with that version"));
        };
        self.run(&mut tx, step, step.down).await?;
        let table = self.tables.quoted("migrations");
        sqlx::query(AssertSqlSafe(format!("DELETE FROM {table} WHERE version = $1")))
            .bind(newest)
            .execute(&mut *tx)
            .await
            .map_err(failed("write down a reverted migration"))?;
        tx.commit().await.map_err(failed("commit the reversal of a migration"))?;
        Ok(Some(newest))
    }

    async fn run(&self, tx: &mut PgConnection, step: &Migration, script: &str) -> Result<(), AdapterError> {
        let script = script.replace("backstop_", &format!("{}_", self.tables.prefix()));
        let script = format!("SET LOCAL lock_timeout = '{PATIENCE}';\n{script}");
        let doing = format!("run migration {} ({})", step.version, step.name);
        tx.execute(sqlx::raw_sql(AssertSqlSafe(script))).await.map_err(|error| match code(&error) {
            Some("55P03") => failed(&doing)(error).with_hint(HELD),
            _ => failed(&doing)(error),
        })?;
        Ok(())
    }

    async fn has_versions(&self, connection: &mut PgConnection) -> Result<bool, AdapterError> {
        sqlx::query_scalar("SELECT to_regclass($1) IS NOT NULL")
            .bind(self.tables.quoted("migrations"))
            .fetch_one(connection)
            .await
            .map_err(failed("look for the table of migrations"))
    }

    async fn versions(&self, connection: &mut PgConnection) -> Result<Vec<i64>, AdapterError> {
        let sql = format!("SELECT version FROM {} ORDER BY version", self.tables.quoted("migrations"));
        sqlx::query_scalar(AssertSqlSafe(sql))
            .fetch_all(connection)
            .await
            .map_err(failed("read the table of migrations"))
    }

    async fn read_applied(&self) -> Result<Vec<i64>, AdapterError> {
        let mut connection = self.pool.acquire().await.map_err(failed("connect"))?;
        if !self.has_versions(&mut connection).await? {
            return Ok(Vec::new());
        }
        self.versions(&mut connection).await
    }
}

impl Schema for PgSchema {
    fn migrations(&self) -> &'static [Migration] {
        MIGRATIONS
    }

    fn applied(&self) -> BoxFuture<'_, Result<Vec<i64>, AdapterError>> {
        Box::pin(self.read_applied())
    }

    fn migrate(&self) -> BoxFuture<'_, Result<Vec<i64>, AdapterError>> {
        Box::pin(async move {
            let mut taken = Vec::new();
            while let Some(version) = self.step_up().await? {
                taken.push(version);
            }
            Ok(taken)
        })
    }

    fn revert(&self, version: i64) -> BoxFuture<'_, Result<Vec<i64>, AdapterError>> {
        Box::pin(async move {
            let mut taken = Vec::new();
            while let Some(version) = self.step_down(version).await? {
                taken.push(version);
            }
            Ok(taken)
        })
    }

    fn check(&self) -> BoxFuture<'_, Result<Vec<Finding>, AdapterError>> {
        Box::pin(async move {
            let mut findings = vec![check::way(&self.pool).await?];
            if findings[0].severity != Severity::Error {
                let applied = self.read_applied().await?;
                findings.extend(check::check(&self.pool, &self.tables, &applied).await?);
            }
            Ok(findings)
        })
    }
}
