//! The inbox: begins the transaction in which a message is handled once.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use backstop_core::inbox::{Admission, CommitError, GroupAdmission, Inbox, Limits, Unit};
use backstop_core::{AdapterError, Explained, FaultKind, MessageKey};
use sqlx::{AssertSqlSafe, MySqlPool};

use crate::contest::run_contested;
use crate::failure::{errors, failed, is_busy, number};
use crate::held_keys::KeysSql;
use crate::held_sql::HeldSql;
use crate::literal;
use crate::owed::OwedSql;
use crate::patience::within;
use crate::scoped::Scoped;
use crate::tables::MySqlTables;
use crate::time::micros;
use crate::transaction::{MySqlTx, Savepoint};
use crate::{check, session};

/// Rows that one transaction takes.
const PRUNE_AT_ONCE: usize = 500;

/// Opens the transactions of a transactional consumer, and keeps its failures.
///
/// The transaction runs at READ COMMITTED and with autocommit off, whatever the session's defaults. The server ends a
/// connection that idles for longer than the handler may take, and with it its transaction; MariaDB ends statements
/// after that time, MySQL only those that read. Limits of waiting are whole seconds here, rounded up. Transactions of
/// Backstop's own, such as that which holds a message, end after 20 s without a statement.
///
/// A statement that fails costs the transaction nothing but itself, so that a handler may go on after it. A deadlock
/// costs it everything: it then ends as [`CommitError::RolledBack`], whether or not the handler swallows the error. DDL
/// commits, and ends as [`CommitError::EndedByHandler`], as a handler's own COMMIT does.
#[derive(Debug, Clone)]
pub struct MySqlInbox {
    pub(crate) pool: MySqlPool,
    pub(crate) tables: MySqlTables,
    pub(crate) sql: Arc<InboxSql>,
    pub(crate) held: Arc<HeldSql>,
    pub(crate) keys: Arc<KeysSql>,
    pub(crate) owed: Arc<OwedSql>,
}

#[derive(Debug)]
pub(crate) struct InboxSql {
    inbox: String,
    held: String,
    pub(crate) is_handled: Arc<str>,
    old: Arc<str>,
    ready: Arc<str>,
}

impl MySqlInbox {
    /// An inbox in the tables `backstop_inbox` and `backstop_held`. The pool may be the application's own; every
    /// message that is handled takes one of its connections.
    pub fn new(pool: MySqlPool) -> Self {
        Self::with_tables(pool, MySqlTables::default())
    }

    /// An inbox in those tables.
    pub fn with_tables(pool: MySqlPool, tables: MySqlTables) -> Self {
        let fill = |statement: &str| Arc::<str>::from(tables.fill(statement));
        let sql = Arc::new(InboxSql {
            inbox: tables.inbox(),
            held: tables.quoted("held"),
            is_handled: fill("SELECT EXISTS (SELECT 1 FROM {inbox} WHERE consumer = ? AND message_key = ?)"),
            old: fill(
                "SELECT message_key FROM {inbox} FORCE INDEX (`age`) WHERE consumer = ? \
                 AND handled_at < UTC_TIMESTAMP(6) - INTERVAL ? MICROSECOND ORDER BY handled_at LIMIT ?",
            ),
            ready: fill(
                "SELECT (SELECT COUNT(*) FROM (SELECT consumer, message_key, handled_at FROM {inbox} LIMIT 0) AS i) \
                 + (SELECT COUNT(*) FROM (SELECT n, digest, origin, crashes FROM {held} LIMIT 0) AS h) \
                 + (SELECT COUNT(*) FROM (SELECT crashes, charged_at FROM {charge} LIMIT 0) AS c) \
                 + (SELECT COUNT(*) FROM {gate})",
            ),
        });
        let (held, keys) = (Arc::new(HeldSql::new(&tables)), Arc::new(KeysSql::new(&tables)));
        let owed = Arc::new(OwedSql::new(&tables));
        Self { pool, tables, sql, held, keys, owed }
    }

    pub(crate) async fn enter(&self, limits: Limits) -> Result<Scoped, AdapterError> {
        within("begin a transaction", async {
            Scoped::enter(&self.pool, session::enter(limits)).await.map_err(failed("begin a transaction"))
        })
        .await
    }

    async fn admit(&self, unit: Unit<'_>, limits: Limits) -> Result<Admission<MySqlTx>, AdapterError> {
        let mut scoped = self.enter(limits).await?;
        let savepoint = Savepoint::new();
        let sql = format!(
            "{}; SAVEPOINT {savepoint}; {}",
            self.sql.insert_unless_held(unit),
            session::admitted(limits)
        );
        match scoped.run(sql).await {
            Ok(changed) if changed.first() == Some(&1) => {
                let message = (unit.consumer.to_owned(), unit.message_key.clone());
                Ok(Admission::Fresh(MySqlTx { scoped, savepoint, message }))
            }
            Ok(_) => {
                scoped.rollback().await;
                Ok(Admission::Held)
            }
            Err(stopped) if number(&stopped.error) == Some(errors::DUPLICATE) => {
                scoped.rollback().await;
                Ok(Admission::Duplicate)
            }
            Err(stopped) if is_busy(&stopped.error) => {
                scoped.rollback().await;
                Ok(Admission::Busy)
            }
            Err(stopped) => Err(failed("write the inbox row")(stopped.error)),
        }
    }

    async fn prune_some(&self, consumer: &str, age: Duration, limit: u32) -> Result<u64, AdapterError> {
        const DOING: &str = "prune the inbox";
        let old = sqlx::query_scalar::<_, Vec<u8>>(AssertSqlSafe(Arc::clone(&self.sql.old)))
            .bind(consumer.as_bytes())
            .bind(micros(age))
            .bind(limit);
        let old = within(DOING, async { old.fetch_all(&self.pool).await.map_err(failed(DOING)) }).await?;
        let mut pruned = 0;
        for some in old.chunks(PRUNE_AT_ONCE) {
            let sql = self.sql.delete(consumer, some);
            pruned += run_contested(&self.pool, DOING, sql).await?.iter().sum::<u64>();
        }
        Ok(pruned)
    }
}

impl InboxSql {
    /// Writes the inbox row, unless the message is handled (which is an error) or its key is held.
    fn insert_unless_held(&self, unit: Unit<'_>) -> String {
        self.unless_held("INSERT", unit)
    }

    /// The same, where a handled message is no error.
    pub(crate) fn insert_if_fresh(&self, unit: Unit<'_>) -> String {
        self.unless_held("INSERT IGNORE", unit)
    }

    fn unless_held(&self, insert: &str, unit: Unit<'_>) -> String {
        let (consumer, message_key) = (unit.consumer.as_bytes(), unit.message_key.as_str().as_bytes());
        let (consumer, message_key) = (literal::bytes(consumer), literal::bytes(message_key));
        format!(
            "{insert} INTO {} (consumer, message_key) SELECT {consumer}, {message_key} FROM DUAL WHERE NOT {}",
            self.inbox,
            self.key_is_held(unit)
        )
    }

    /// Whether something of the unit's key is held, as an expression.
    pub(crate) fn key_is_held(&self, unit: Unit<'_>) -> String {
        format!(
            "EXISTS (SELECT 1 FROM {} WHERE consumer = {} AND place = {} AND digest = UNHEX(SHA2({}, 256)))",
            self.held,
            literal::bytes(unit.consumer.as_bytes()),
            literal::bytes(unit.place.as_bytes()),
            literal::bytes(unit.ordering_key),
        )
    }

    /// Deletes these rows, each by a statement of its own: where a list has few rows, the server may read all rows of the
    /// consumer instead, and wait for those of open transactions.
    fn delete(&self, consumer: &str, message_keys: &[Vec<u8>]) -> String {
        let consumer = literal::bytes(consumer.as_bytes());
        let delete = |key: &Vec<u8>| {
            let key = literal::bytes(key);
            format!("DELETE FROM {} WHERE consumer = {consumer} AND message_key = {key}", self.inbox)
        };
        message_keys.iter().map(delete).collect::<Vec<_>>().join("; ")
    }

    /// Writes the inbox row of a claimed head.
    pub(crate) fn insert(&self, consumer: &str, message_key: &MessageKey) -> String {
        format!(
            "INSERT INTO {} (consumer, message_key) VALUES ({}, {})",
            self.inbox,
            literal::bytes(consumer.as_bytes()),
            literal::bytes(message_key.as_str().as_bytes())
        )
    }
}

impl Inbox for MySqlInbox {
    type Tx = MySqlTx;

    async fn begin(&self, unit: Unit<'_>, limits: Limits) -> Result<Admission<MySqlTx>, AdapterError> {
        within("write the inbox row", Box::pin(self.admit(unit, limits))).await
    }

    async fn begin_group(
        &self,
        units: &[Unit<'_>],
        limits: Limits,
    ) -> Result<GroupAdmission<MySqlTx>, AdapterError> {
        within("write the inbox rows of a group", Box::pin(self.admit_group(units, limits))).await
    }

    async fn withdraw(
        &self,
        tx: &mut MySqlTx,
        consumer: &str,
        message_keys: &[&MessageKey],
    ) -> Result<(), AdapterError> {
        const DOING: &str = "take messages out of a group";
        let keys: Vec<Vec<u8>> = message_keys.iter().map(|key| key.as_str().as_bytes().to_vec()).collect();
        let deleted = tx.scoped.run(self.sql.delete(consumer, &keys));
        within(DOING, async { deleted.await.map_err(|stopped| failed(DOING)(stopped.error)) }).await?;
        Ok(())
    }

    async fn commit(&self, tx: MySqlTx) -> Result<(), CommitError> {
        crate::commit::commit(tx, &[], &self.sql).await
    }

    async fn is_unbroken(&self, tx: &mut MySqlTx) -> Result<bool, AdapterError> {
        crate::commit::is_unbroken(tx).await
    }

    fn conflicts_end_transactions(&self) -> bool {
        true
    }

    async fn is_ended(&self, tx: &mut MySqlTx) -> Result<bool, AdapterError> {
        self.is_unbroken(tx).await.map(|unbroken| !unbroken)
    }

    async fn rollback(&self, tx: MySqlTx) {
        tx.scoped.rollback().await;
    }

    async fn is_handled(&self, consumer: &str, message_key: &MessageKey) -> Result<bool, AdapterError> {
        let query = sqlx::query_scalar::<_, i64>(AssertSqlSafe(Arc::clone(&self.sql.is_handled)))
            .bind(consumer.as_bytes())
            .bind(message_key.as_str().as_bytes());
        within("read the inbox", async {
            query.fetch_one(&self.pool).await.map(|found| found != 0).map_err(failed("read the inbox"))
        })
        .await
    }

    async fn prune(&self, consumer: &str, age: Duration, limit: u32) -> Result<u64, AdapterError> {
        let pruned = self.prune_some(consumer, age, limit).await?;
        self.prune_charges(consumer, age).await?;
        Ok(pruned)
    }

    fn explain(&self, error: &(dyn Error + 'static)) -> Option<Explained> {
        crate::explain::explain(error)
    }

    async fn ready(&self) -> Result<(), AdapterError> {
        let gates: i64 = sqlx::query_scalar(AssertSqlSafe(Arc::clone(&self.sql.ready)))
            .fetch_one(&self.pool)
            .await
            .map_err(failed("use the tables of inbox and held messages"))?;
        if gates < i64::from(crate::held_sql::GATES) {
            let what = format!("table {} lacks rows", self.tables.quoted("held_gate").replace('`', ""));
            return Err(AdapterError::new(FaultKind::Missing, what)
                .with_hint("write the numbers 0 to 63 into it, as migration 2 does"));
        }
        for (table, columns) in [("inbox", check::INBOX), ("held", check::HELD), ("charge", check::CHARGE)] {
            let lacking = check::lacking(&self.pool, &self.tables, table, columns).await?;
            if !lacking.is_empty() {
                let table = self.tables.quoted(table);
                let what = format!("the database user lacks {} on {table}", lacking.join(", "));
                return Err(AdapterError::new(FaultKind::Denied, what.replace('`', ""))
                    .with_hint("grant the user its permissions: see migrations/README.md"));
            }
        }
        Ok(())
    }
}
