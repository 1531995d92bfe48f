//! The inbox.

use std::error::Error;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use backstop_core::inbox::{Admission, CommitError, GroupAdmission, Inbox, Limits, Standing, Unit};
use backstop_core::{AdapterError, Explained, FaultKind, MessageKey};
use sqlx::{AssertSqlSafe, SqliteConnection, SqlitePool};

use crate::commit::{commit, prove};
use crate::database::{Database, plain};
use crate::error::{adapter, code, primary};
use crate::explain::explain;
use crate::tables::SqliteTables;
use crate::time::{NOW, millis};
use crate::tx::SqliteTx;

/// Each message handled once, in the file that its handler writes to; failures are held in the same file.
///
/// Cloning is cheap; clones share the pool.
#[derive(Debug, Clone)]
pub struct SqliteInbox {
    pub(crate) database: Arc<Database>,
    pub(crate) statements: Arc<Statements>,
}

/// Statements of every message, put together once.
#[derive(Debug)]
pub(crate) struct Statements {
    admit: Arc<str>,
    key_is_held: Arc<str>,
    insert: Arc<str>,
    is_handled: Arc<str>,
    withdraw: Arc<str>,
}

impl SqliteInbox {
    /// The inbox in the standard tables.
    pub fn new(pool: SqlitePool) -> Self {
        Self::with_tables(pool, SqliteTables::default())
    }

    /// The inbox in these tables.
    pub fn with_tables(pool: SqlitePool, tables: SqliteTables) -> Self {
        let (inbox, held) = (tables.inbox(), tables.held());
        let key_is_held =
            format!("EXISTS (SELECT 1 FROM {held} WHERE consumer = ?1 AND place = ?2 AND ordering_key = ?3)");
        let insert = format!("INSERT INTO {inbox} (consumer, message_key, handled_at)");
        let statements = Statements {
            admit: format!(
                "{insert} SELECT ?1, ?4, {NOW} WHERE NOT {key_is_held} ON CONFLICT DO NOTHING RETURNING 1"
            )
            .into(),
            key_is_held: format!("SELECT {key_is_held}").into(),
            insert: format!("{insert} VALUES (?, ?, {NOW}) ON CONFLICT DO NOTHING").into(),
            is_handled: format!(
                "SELECT EXISTS (SELECT 1 FROM {inbox} WHERE consumer = ? AND message_key = ?)"
            )
            .into(),
            withdraw: format!("DELETE FROM {inbox} WHERE consumer = ? AND message_key = ?").into(),
        };
        Self { database: Arc::new(Database::new(pool, tables)), statements: Arc::new(statements) }
    }

    /// Writes the inbox row; `false` when the message is handled already.
    pub(crate) async fn insert(
        &self,
        connection: &mut SqliteConnection,
        consumer: &str,
        message_key: &MessageKey,
    ) -> Result<bool, AdapterError> {
        let done = sqlx::query(AssertSqlSafe(self.statements.insert.clone()))
            .bind(consumer)
            .bind(message_key.as_str())
            .execute(connection)
            .await
            .map_err(|error| adapter("cannot write the inbox row", error))?;
        Ok(done.rows_affected() > 0)
    }

    /// Whether the message is handled.
    pub(crate) async fn handled(
        &self,
        connection: &mut SqliteConnection,
        consumer: &str,
        message_key: &MessageKey,
    ) -> Result<bool, AdapterError> {
        sqlx::query_scalar(AssertSqlSafe(self.statements.is_handled.clone()))
            .bind(consumer)
            .bind(message_key.as_str())
            .fetch_one(connection)
            .await
            .map_err(|error| adapter("cannot read the inbox", error))
    }

    /// Whether something of the unit's key is held.
    pub(crate) async fn key_is_held(
        &self,
        connection: &mut SqliteConnection,
        unit: Unit<'_>,
    ) -> Result<bool, AdapterError> {
        sqlx::query_scalar(AssertSqlSafe(self.statements.key_is_held.clone()))
            .bind(unit.consumer)
            .bind(unit.place)
            .bind(unit.ordering_key)
            .fetch_one(connection)
            .await
            .map_err(|error| adapter("cannot read held messages", error))
    }

    async fn admit(&self, tx: &mut SqliteTx, unit: Unit<'_>) -> Result<Option<Refusal>, AdapterError> {
        let fresh = sqlx::query(AssertSqlSafe(self.statements.admit.clone()))
            .bind(unit.consumer)
            .bind(unit.place)
            .bind(unit.ordering_key)
            .bind(unit.message_key.as_str())
            .fetch_optional(&mut **tx)
            .await
            .map_err(|error| adapter("cannot write the inbox row", error))?;
        if fresh.is_some() {
            return Ok(None);
        }
        let held = self.key_is_held(tx, unit).await?;
        Ok(Some(if held { Refusal::Held } else { Refusal::Duplicate }))
    }

    async fn prune_some(&self, consumer: &str, age: Duration, limit: u32) -> Result<u64, AdapterError> {
        let failed = |error| adapter("cannot prune the inbox", error);
        let inbox = self.database.tables.inbox();
        let old = format!("{inbox} WHERE consumer = ?1 AND handled_at < {NOW} - ?2");
        let any = format!("SELECT EXISTS (SELECT 1 FROM {old})");
        let mut connection = self.database.connection().await?;
        let any: bool = sqlx::query_scalar(AssertSqlSafe(any))
            .bind(consumer)
            .bind(millis(age))
            .fetch_one(&mut *connection)
            .await
            .map_err(failed)?;
        drop(connection);
        if !any {
            return Ok(0);
        }
        let sql = format!(
            "DELETE FROM {inbox} WHERE consumer = ?1 AND message_key IN \
             (SELECT message_key FROM {old} ORDER BY handled_at LIMIT ?3)"
        );
        let mut tx = self.database.write("cannot prune the inbox").await?;
        let query = sqlx::query(AssertSqlSafe(sql)).bind(consumer).bind(millis(age)).bind(limit);
        let pruned = query.execute(&mut *tx).await.map_err(failed)?.rows_affected();
        commit(tx).await.map_err(plain)?;
        Ok(pruned)
    }

    async fn check(&self) -> Result<(), AdapterError> {
        let tables = &self.database.tables;
        let mut connection = self.database.connection().await?;
        let file: String = sqlx::query_scalar("SELECT file FROM pragma_database_list WHERE name = 'main'")
            .fetch_one(&mut *connection)
            .await
            .map_err(|error| adapter("cannot name the database file", error))?;
        if file.is_empty() {
            let what = "a database in memory cannot be shared by the connections of a pool";
            return Err(AdapterError::new(FaultKind::Invalid, what).with_hint("open a file"));
        }
        let columns = [
            ("inbox", tables.inbox(), "handled_at"),
            ("held messages", tables.held(), "crashes"),
            ("charges", tables.charge(), "crashes"),
        ];
        for (name, table, column) in columns {
            sqlx::query(AssertSqlSafe(format!("SELECT {column} FROM {table} LIMIT 0")))
                .fetch_optional(&mut *connection)
                .await
                .map_err(|error| adapter(format!("the table of {name} ({table}) cannot be read"), error))?;
        }
        drop(connection);
        // One who finds the file locked will wait for every message, and succeed; one who cannot write it will not.
        if let Some(tx) = self.database.lend(Limits::default()).await? {
            tx.rollback().await;
        }
        Ok(())
    }
}

/// Why a message is not handled now.
enum Refusal {
    Held,
    Duplicate,
}

impl Inbox for SqliteInbox {
    type Tx = SqliteTx;

    async fn begin(&self, unit: Unit<'_>, limits: Limits) -> Result<Admission<SqliteTx>, AdapterError> {
        let Some(mut tx) = self.database.lend(limits).await? else {
            return Ok(Admission::Busy);
        };
        let refusal = match self.admit(&mut tx, unit).await? {
            None => return Ok(Admission::Fresh(tx)),
            Some(refusal) => refusal,
        };
        tx.rollback().await;
        Ok(match refusal {
            Refusal::Held => Admission::Held,
            Refusal::Duplicate => Admission::Duplicate,
        })
    }

    async fn begin_group(
        &self,
        units: &[Unit<'_>],
        limits: Limits,
    ) -> Result<GroupAdmission<SqliteTx>, AdapterError> {
        let Some(mut tx) = self.database.lend(limits).await? else {
            return Ok(GroupAdmission::Apart);
        };
        // One statement each: there is no network between, and the commit is what costs.
        let mut standings = Vec::with_capacity(units.len());
        for unit in units {
            standings.push(match self.admit(&mut tx, *unit).await? {
                None => Standing::Fresh,
                Some(Refusal::Held) => Standing::Held,
                Some(Refusal::Duplicate) => Standing::Duplicate,
            });
        }
        Ok(GroupAdmission::Shared { tx, standings })
    }

    async fn withdraw(
        &self,
        tx: &mut SqliteTx,
        consumer: &str,
        message_keys: &[&MessageKey],
    ) -> Result<(), AdapterError> {
        for message_key in message_keys {
            sqlx::query(AssertSqlSafe(self.statements.withdraw.clone()))
                .bind(consumer)
                .bind(message_key.as_str())
                .execute(&mut **tx)
                .await
                .map_err(|error| adapter("cannot take a message out of its group", error))?;
        }
        Ok(())
    }

    async fn commit(&self, mut tx: SqliteTx) -> Result<(), CommitError> {
        prove(&mut tx).await?;
        commit(tx).await
    }

    async fn is_unbroken(&self, tx: &mut SqliteTx) -> Result<bool, AdapterError> {
        match tx.renew().await {
            Ok(()) => Ok(true),
            Err(error) if primary(&error) == Some(code::ERROR) => Ok(false),
            Err(error) => Err(adapter("learn whether a transaction was ended", error)),
        }
    }

    async fn is_ended(&self, tx: &mut SqliteTx) -> Result<bool, AdapterError> {
        match prove(tx).await {
            Ok(()) | Err(CommitError::RolledBack(_)) => Ok(false),
            Err(CommitError::EndedByHandler(_)) => Ok(true),
            Err(CommitError::Unknown(error)) => Err(error),
        }
    }

    async fn rollback(&self, tx: SqliteTx) {
        tx.rollback().await;
    }

    async fn is_handled(&self, consumer: &str, message_key: &MessageKey) -> Result<bool, AdapterError> {
        let mut connection = self.database.connection().await?;
        self.handled(&mut connection, consumer, message_key).await
    }

    async fn prune(&self, consumer: &str, age: Duration, limit: u32) -> Result<u64, AdapterError> {
        let pruned = self.prune_some(consumer, age, limit).await?;
        self.prune_charges(consumer, age).await?;
        Ok(pruned)
    }

    fn explain(&self, error: &(dyn Error + 'static)) -> Option<Explained> {
        explain(error)
    }

    fn ready(&self) -> impl Future<Output = Result<(), AdapterError>> + Send {
        self.check()
    }
}
