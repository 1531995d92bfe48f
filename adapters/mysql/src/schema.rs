//! Makes the tables, step by step.

use std::time::Duration;

use backstop_core::schema::{Finding, Migration, Schema};
use backstop_core::{AdapterError, FaultKind};
use futures_core::future::BoxFuture;
use sqlx::mysql::MySqlConnection;
use sqlx::pool::PoolConnection;
use sqlx::{AssertSqlSafe, Executor, MySql, MySqlPool};

use crate::check;
use crate::failure::{errors, failed, number};
use crate::tables::MySqlTables;

macro_rules! migration {
    ($version:literal, $name:literal) => {
        Migration {
            version: $version,
            name: $name,
            up: include_str!(concat!("../migrations/000", $version, "_", $name, ".up.sql")),
            down: include_str!(concat!("../migrations/000", $version, "_", $name, ".down.sql")),
        }
    };
}

pub(crate) const MIGRATIONS: &[Migration] = &[
    migration!(1, "outbox"),
    migration!(2, "inbox"),
    migration!(3, "lease"),
    migration!(4, "scheduled"),
    migration!(5, "lease_report"),
    migration!(6, "receipt"),
    migration!(7, "charge"),
];

/// How long to wait for another who changes the tables.
const PATIENCE: Duration = Duration::from_secs(60);

/// How many seconds a step waits for a table: whoever comes after it waits as long.
const TABLE_PATIENCE: u32 = 5;
/// What to do when that was too short.
const HELD: &str = "a transaction holds a table: see information_schema.INNODB_TRX, and run it again";

/// The tables of one database and prefix.
///
/// Which steps were taken is kept in `backstop_migrations`, apart from the versions of any other tool. MySQL commits
/// with every change of a table: a step that fails midway leaves what it has made, and can be taken again.
#[derive(Debug, Clone)]
pub struct MySqlSchema {
    pool: MySqlPool,
    tables: MySqlTables,
}

/// A connection that alone may change these tables, for as long as it is open.
struct Alone {
    connection: PoolConnection<MySql>,
}

impl Drop for Alone {
    fn drop(&mut self) {
        self.connection.close_on_drop();
    }
}

impl MySqlSchema {
    /// The schema of those tables.
    pub fn new(pool: MySqlPool, tables: MySqlTables) -> Self {
        Self { pool, tables }
    }

    async fn begin(&self) -> Result<Alone, AdapterError> {
        let doing = || failed("begin a change of the tables");
        let mut alone = Alone { connection: self.pool.acquire().await.map_err(doing())? };
        let bound = format!("SET SESSION lock_wait_timeout = {TABLE_PATIENCE}");
        alone.connection.execute(sqlx::raw_sql(AssertSqlSafe(bound))).await.map_err(doing())?;
        if let Some(schema) = self.tables.schema() {
            let there: i64 =
                sqlx::query_scalar("SELECT COUNT(*) FROM information_schema.SCHEMATA WHERE SCHEMA_NAME = ?")
                    .bind(schema.as_str())
                    .fetch_one(&mut *alone.connection)
                    .await
                    .map_err(doing())?;
            if there == 0 {
                let create = format!("CREATE DATABASE IF NOT EXISTS {}", schema.quoted('`'));
                alone
                    .connection
                    .execute(sqlx::raw_sql(AssertSqlSafe(create)))
                    .await
                    .map_err(failed("create the database of the tables"))?;
            }
        }
        // The names of locks are short, and shared by all databases of a server.
        let lock = format!(
            "SELECT GET_LOCK(CONCAT('backstop/', LEFT(SHA2(CONCAT({}, '/', ?), 256), 40)), ?)",
            self.tables.schema_expression()
        );
        let taken: Option<i64> = sqlx::query_scalar(AssertSqlSafe(lock))
            .bind(self.tables.name("migrations"))
            .bind(PATIENCE.as_secs())
            .fetch_one(&mut *alone.connection)
            .await
            .map_err(doing())?;
        if taken == Some(1) {
            return Ok(alone);
        }
        let what = format!("somebody else has been changing the tables for {} s", PATIENCE.as_secs());
        Err(AdapterError::new(FaultKind::Conflict, what).with_hint("wait for the other migration to end"))
    }

    /// Takes the next step up, if one is missing.
    async fn step_up(&self, alone: &mut Alone) -> Result<Option<i64>, AdapterError> {
        let table = self.tables.quoted("migrations");
        let create = format!(
            "CREATE TABLE IF NOT EXISTS {table} (version bigint NOT NULL PRIMARY KEY, name varchar(64) NOT NULL, \
             applied_at datetime(6) NOT NULL DEFAULT (utc_timestamp(6))) ENGINE = InnoDB"
        );
        let connection = &mut alone.connection;
        let applied = match self.versions(connection).await? {
            Some(applied) => applied,
            None => {
                let doing = failed("create the table of migrations");
                connection.execute(sqlx::raw_sql(AssertSqlSafe(create))).await.map_err(doing)?;
                Vec::new()
            }
        };
        let Some(step) = MIGRATIONS.iter().find(|step| !applied.contains(&step.version)) else {
            return Ok(None);
        };
        self.run(connection, step, step.up).await?;
        sqlx::query(AssertSqlSafe(format!("INSERT INTO {table} (version, name) VALUES (?, ?)")))
            .bind(step.version)
            .bind(step.name)
            .execute(&mut **connection)
            .await
            .map_err(failed("write down a migration"))?;
        Ok(Some(step.version))
    }

    /// Takes the newest step above `version` back.
    async fn step_down(&self, alone: &mut Alone, version: i64) -> Result<Option<i64>, AdapterError> {
        let connection = &mut alone.connection;
        let applied = self.versions(connection).await?.unwrap_or_default();
        let newest = applied.into_iter().filter(|applied| *applied > version).max();
        let Some(newest) = newest else { return Ok(None) };
        let Some(step) = MIGRATIONS.iter().find(|step| step.version == newest) else {
            let what = format!("migration {newest} is of a newer version of Backstop");
            return Err(AdapterError::new(FaultKind::Invalid, what).with_hint("revert with that version"));
        };
        self.run(connection, step, step.down).await?;
        let table = self.tables.quoted("migrations");
        sqlx::query(AssertSqlSafe(format!("DELETE FROM {table} WHERE version = ?")))
            .bind(newest)
            .execute(&mut **connection)
            .await
            .map_err(failed("write down a reverted migration"))?;
        Ok(Some(newest))
    }

    async fn run(
        &self,
        connection: &mut MySqlConnection,
        step: &Migration,
        script: &str,
    ) -> Result<(), AdapterError> {
        let script = self.tables.renamed(script);
        let doing = format!("run migration {} ({})", step.version, step.name);
        match connection.execute(sqlx::raw_sql(AssertSqlSafe(script))).await {
            Ok(_) => Ok(()),
            // A step whose last statement was done, and which was not written down.
            Err(error) if matches!(number(&error), Some(errors::COLUMN_EXISTS | errors::NO_SUCH_COLUMN)) => {
                Ok(())
            }
            Err(error) if number(&error) == Some(errors::LOCK_TIMEOUT) => {
                Err(failed(&doing)(error).with_hint(HELD))
            }
            Err(error) => Err(failed(&doing)(error)),
        }
    }

    /// The steps that were taken; `None` where even the table for them is missing.
    async fn versions(&self, connection: &mut MySqlConnection) -> Result<Option<Vec<i64>>, AdapterError> {
        let sql = format!("SELECT version FROM {} ORDER BY version", self.tables.quoted("migrations"));
        match sqlx::query_scalar(AssertSqlSafe(sql)).fetch_all(connection).await {
            Ok(versions) => Ok(Some(versions)),
            Err(error) if matches!(number(&error), Some(errors::NO_TABLE | errors::NO_DATABASE)) => Ok(None),
            Err(error) => Err(failed("read the table of migrations")(error)),
        }
    }

    async fn read_applied(&self) -> Result<Vec<i64>, AdapterError> {
        let mut connection = self.pool.acquire().await.map_err(failed("connect"))?;
        Ok(self.versions(&mut connection).await?.unwrap_or_default())
    }
}

impl Schema for MySqlSchema {
    fn migrations(&self) -> &'static [Migration] {
        MIGRATIONS
    }

    fn applied(&self) -> BoxFuture<'_, Result<Vec<i64>, AdapterError>> {
        Box::pin(self.read_applied())
    }

    fn migrate(&self) -> BoxFuture<'_, Result<Vec<i64>, AdapterError>> {
        Box::pin(async move {
            let mut alone = self.begin().await?;
            let mut taken = Vec::new();
            while let Some(version) = self.step_up(&mut alone).await? {
                taken.push(version);
            }
            Ok(taken)
        })
    }

    fn revert(&self, version: i64) -> BoxFuture<'_, Result<Vec<i64>, AdapterError>> {
        Box::pin(async move {
            let mut alone = self.begin().await?;
            let mut taken = Vec::new();
            while let Some(version) = self.step_down(&mut alone, version).await? {
                taken.push(version);
            }
            Ok(taken)
        })
    }

    fn check(&self) -> BoxFuture<'_, Result<Vec<Finding>, AdapterError>> {
        Box::pin(async move {
            let applied = self.read_applied().await?;
            check::check(&self.pool, &self.tables, &applied).await
        })
    }
}
