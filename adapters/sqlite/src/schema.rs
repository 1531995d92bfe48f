//! Creating the tables, and looking whether they are there.

use std::sync::Arc;

use backstop_core::AdapterError;
use backstop_core::schema::{Finding, Migration, Schema};
use futures_core::future::BoxFuture;
use sqlx::{AssertSqlSafe, SqliteConnection, SqlitePool};

use crate::commit::commit;
use crate::database::{Database, plain};
use crate::error::{adapter, code, primary};
use crate::tables::SqliteTables;

macro_rules! migration {
    ($version:literal, $name:literal, $file:literal) => {
        Migration {
            version: $version,
            name: $name,
            up: include_str!(concat!("../migrations/", $file, ".up.sql")),
            down: include_str!(concat!("../migrations/", $file, ".down.sql")),
        }
    };
}

const MIGRATIONS: &[Migration] = &[
    migration!(1, "outbox and its dead rows", "0001_outbox"),
    migration!(2, "inbox and held messages", "0002_inbox"),
    migration!(3, "leases", "0003_lease"),
    migration!(4, "dead-letter ledger", "0004_ledger"),
    migration!(5, "scheduled rows of the outbox", "0005_scheduled"),
    migration!(6, "what owners of leases report", "0006_lease_report"),
    migration!(7, "redrives, and counts of dead letters", "0007_redrive"),
    migration!(8, "owed receipts", "0008_receipt"),
    migration!(9, "audit log", "0009_audit"),
    migration!(10, "charges", "0010_charge"),
];

/// The schema of one file.
#[derive(Debug, Clone)]
pub struct SqliteSchema {
    database: Arc<Database>,
}

impl SqliteSchema {
    /// The schema of the file that the pool has open. The applied steps are written down in its table
    /// `backstop_migrations` (with the prefix of `tables`).
    pub fn new(pool: SqlitePool, tables: SqliteTables) -> Self {
        Self { database: Arc::new(Database::new(pool, tables)) }
    }

    async fn read_applied(&self) -> Result<Vec<i64>, AdapterError> {
        let mut connection = self.database.connection().await?;
        let sql = format!("SELECT version FROM {} ORDER BY version", self.database.tables.migrations());
        match sqlx::query_scalar(AssertSqlSafe(sql)).fetch_all(&mut *connection).await {
            Ok(versions) => Ok(versions),
            Err(error) if is_missing(&error) => Ok(Vec::new()),
            Err(error) => Err(adapter("cannot read the versions of the schema", error)),
        }
    }

    /// Runs one step unless it was run; the write lock keeps two at once apart.
    async fn step(&self, migration: &Migration, up: bool) -> Result<bool, AdapterError> {
        let (verb, sql) = if up { ("apply", migration.up) } else { ("take back", migration.down) };
        let what = format!("cannot {verb} migration {} ({})", migration.version, migration.name);
        let failed = |error| adapter(what.as_str(), error);
        let tables = &self.database.tables;
        let versions = tables.migrations();
        let mut tx = self.database.write(&what).await?;
        sqlx::raw_sql(AssertSqlSafe(format!(
            "CREATE TABLE IF NOT EXISTS {versions} (version INTEGER PRIMARY KEY, name TEXT NOT NULL, \
             applied_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))) STRICT"
        )))
        .execute(&mut *tx)
        .await
        .map_err(failed)?;
        let exists = format!("SELECT EXISTS (SELECT 1 FROM {versions} WHERE version = ?)");
        let exists: bool = sqlx::query_scalar(AssertSqlSafe(exists))
            .bind(migration.version)
            .fetch_one(&mut *tx)
            .await
            .map_err(failed)?;
        if exists == up {
            tx.rollback().await;
            return Ok(false);
        }
        sqlx::raw_sql(AssertSqlSafe(tables.renamed(sql))).execute(&mut *tx).await.map_err(failed)?;
        let (record, name) = if up {
            (format!("INSERT INTO {versions} (version, name) VALUES (?1, ?2)"), migration.name)
        } else {
            (format!("DELETE FROM {versions} WHERE version = ?1 AND ?2 = ''"), "")
        };
        let record = sqlx::query(AssertSqlSafe(record)).bind(migration.version).bind(name);
        record.execute(&mut *tx).await.map_err(failed)?;
        commit(tx).await.map_err(plain)?;
        Ok(true)
    }

    async fn findings(&self) -> Result<Vec<Finding>, AdapterError> {
        let mut connection = self.database.connection().await?;
        let tables = &self.database.tables;
        let mut findings = Vec::new();
        for table in [
            tables.outbox(),
            tables.outbox_dead(),
            tables.outbox_scheduled(),
            tables.lease(),
            tables.inbox(),
            tables.held(),
            tables.receipt(),
            tables.letter(),
            tables.letter_event(),
            tables.letter_group(),
            tables.letter_count(),
            tables.letter_minute(),
            tables.letter_term(),
            tables.redrive(),
            tables.redrive_letter(),
            tables.redrive_count(),
            tables.consumer(),
            tables.audit(),
        ] {
            findings.push(table_finding(&mut connection, &table).await?);
        }
        findings.push(journal_finding(&mut connection).await?);
        findings.push(synchronous_finding(&mut connection).await?);
        drop(connection);
        let applied = self.read_applied().await?;
        let missing = MIGRATIONS.iter().filter(|migration| !applied.contains(&migration.version)).count();
        findings.push(if missing == 0 {
            Finding::fine("migrations", format!("all {} applied", MIGRATIONS.len()))
        } else {
            Finding::error("migrations", format!("{missing} not applied"), MIGRATE)
        });
        findings.push(match self.database.write("cannot write").await {
            Ok(tx) => {
                tx.rollback().await;
                Finding::fine("writing", "the write lock can be taken")
            }
            Err(error) => {
                let remedy = error.hint().unwrap_or("see the cause").to_owned();
                Finding::error("writing", error.to_string(), remedy)
            }
        });
        Ok(findings)
    }
}

const MIGRATE: &str = "run `backstop-relay migrate`";

fn is_missing(error: &sqlx::Error) -> bool {
    primary(error) == Some(code::ERROR) && error.to_string().contains("no such table")
}

async fn table_finding(connection: &mut SqliteConnection, table: &str) -> Result<Finding, AdapterError> {
    let subject = format!("table {}", table.trim_matches('"'));
    let sql = format!("SELECT 1 FROM {table} LIMIT 0");
    match sqlx::query(AssertSqlSafe(sql)).fetch_optional(connection).await {
        Ok(_) => Ok(Finding::fine(subject, "usable")),
        Err(error) if is_missing(&error) => Ok(Finding::error(subject, "does not exist", MIGRATE)),
        Err(error) => Err(adapter(format!("cannot read {subject}"), error)),
    }
}

async fn journal_finding(connection: &mut SqliteConnection) -> Result<Finding, AdapterError> {
    let mode: String = pragma(connection, "PRAGMA journal_mode").await?;
    Ok(if mode.eq_ignore_ascii_case("wal") {
        Finding::fine("journal mode", "write-ahead log")
    } else {
        Finding::warning(
            "journal mode",
            format!("{mode}: readers and the writer wait for each other"),
            "open the file with backstop_sqlite::open, or run `PRAGMA journal_mode = WAL` once",
        )
    })
}

async fn synchronous_finding(connection: &mut SqliteConnection) -> Result<Finding, AdapterError> {
    let level: i64 = pragma(connection, "PRAGMA synchronous").await?;
    Ok(if level >= 2 {
        Finding::fine("synchronous", "a commit is on the disk when it returns")
    } else {
        Finding::warning(
            "synchronous",
            "a power cut may lose the last commits",
            "open the file with backstop_sqlite::open, or set `PRAGMA synchronous = FULL`",
        )
    })
}

async fn pragma<T>(connection: &mut SqliteConnection, sql: &'static str) -> Result<T, AdapterError>
where
    T: Send + Unpin + for<'r> sqlx::Decode<'r, sqlx::Sqlite> + sqlx::Type<sqlx::Sqlite>,
{
    let read = sqlx::query_scalar(sql).fetch_one(connection).await;
    read.map_err(|error| adapter(format!("{sql} failed"), error))
}

impl Schema for SqliteSchema {
    fn migrations(&self) -> &'static [Migration] {
        MIGRATIONS
    }

    fn applied(&self) -> BoxFuture<'_, Result<Vec<i64>, AdapterError>> {
        Box::pin(self.read_applied())
    }

    fn migrate(&self) -> BoxFuture<'_, Result<Vec<i64>, AdapterError>> {
        Box::pin(async move {
            let applied = self.read_applied().await?;
            let mut done = Vec::new();
            for migration in MIGRATIONS.iter().filter(|migration| !applied.contains(&migration.version)) {
                if self.step(migration, true).await? {
                    done.push(migration.version);
                }
            }
            Ok(done)
        })
    }

    fn revert(&self, version: i64) -> BoxFuture<'_, Result<Vec<i64>, AdapterError>> {
        Box::pin(async move {
            let applied = self.read_applied().await?;
            let mut done = Vec::new();
            for migration in MIGRATIONS.iter().rev() {
                let wanted = migration.version > version && applied.contains(&migration.version);
                if wanted && self.step(migration, false).await? {
                    done.push(migration.version);
                }
            }
            Ok(done)
        })
    }

    fn check(&self) -> BoxFuture<'_, Result<Vec<Finding>, AdapterError>> {
        Box::pin(self.findings())
    }
}
