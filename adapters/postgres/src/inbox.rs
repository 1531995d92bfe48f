//! The inbox: begins the transaction in which a message is handled once.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use backstop_core::inbox::{Admission, CommitError, GroupAdmission, Inbox, Limits, Unit};
use backstop_core::{AdapterError, Explained, FaultKind, MessageKey};
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, PgPool, Postgres, Row};
use tokio::time::timeout;

use crate::chain::Chain;
use crate::charges::ChargesSql;
use crate::failure::{code, failed};
use crate::group::GroupSql;
use crate::held_keys::KeysSql;
use crate::held_run::RunsSql;
use crate::held_sql::HeldSql;
use crate::held_store::STORE_ALL;
use crate::limits::{milliseconds, shown};
use crate::of_key::elder;
use crate::owed::OwedSql;
use crate::patience::{answer_within, within};
use crate::proof::{DECLARE, Proof};
use crate::scoped::Scoped;
use crate::tables::PgTables;
use crate::transaction::PgTx;

/// Writes the inbox row unless the message is handled or its key is held. On the way the server is told the limits,
/// and the session's own lock timeout is given back once the row is there: the short one is not for the handler's
/// statements. A plain INSERT, because CTEs would cost the server a third more for each message.
const ADMIT: &str = concat!(
    "
    INSERT INTO {inbox} (consumer, message_key)
    SELECT $1, $2
    FROM (SELECT set_config('lock_timeout', $5, true), set_config('statement_timeout', $6, true),
                 set_config('idle_in_transaction_session_timeout', $6, true) OFFSET 0) AS limits
    WHERE ",
    elder!("$1", "$3", "$4"),
    " IS NULL
    ON CONFLICT DO NOTHING
    RETURNING set_config('lock_timeout', current_setting('backstop.lock_timeout'), true)"
);

/// The same where the session enforces the limits. A handler may have changed that for its session: then there is no
/// row. The wait for another instance is not limited here.
const ADMIT_NEXT: &str = concat!(
    "
    INSERT INTO {inbox} (consumer, message_key)
    SELECT $1, $2
    WHERE current_setting('statement_timeout') = $5 AND current_setting('idle_in_transaction_session_timeout') = $5
      AND ",
    elder!("$1", "$3", "$4"),
    " IS NULL
    ON CONFLICT DO NOTHING"
);

/// Why there was nothing to insert.
const REFUSAL: &str = concat!(
    "SELECT ",
    elder!("$1", "$3", "$4"),
    " IS NOT NULL, EXISTS (SELECT FROM {inbox} WHERE consumer = $1 AND message_key = $2)"
);

/// Begins the transaction of a live message, and keeps the session's own lock timeout aside for it and those that are
/// chained to it.
const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED; \
     SELECT set_config('backstop.lock_timeout', current_setting('lock_timeout'), false); ";

/// Opens the transactions of a transactional consumer, and keeps its failures.
///
/// The transaction runs at READ COMMITTED, whatever the session's default: the held messages rely on it. Under load
/// it is begun by the commit before it on its connection, so that `now()` may be up to 10 ms older than the message's
/// arrival.
#[derive(Debug, Clone)]
pub struct PgInbox {
    pub(crate) pool: PgPool,
    pub(crate) tables: PgTables,
    pub(crate) sql: Arc<InboxSql>,
    pub(crate) held: Arc<HeldSql>,
    pub(crate) keys: Arc<KeysSql>,
    pub(crate) runs: Arc<RunsSql>,
    pub(crate) store_all: Arc<str>,
    pub(crate) group: Arc<GroupSql>,
    pub(crate) owed: Arc<OwedSql>,
    pub(crate) charges: Arc<ChargesSql>,
    chain: Chain,
}

#[derive(Debug)]
pub(crate) struct InboxSql {
    admit: Arc<str>,
    admit_next: Arc<str>,
    refusal: Arc<str>,
    is_handled: Arc<str>,
    prune: Arc<str>,
    ready: Arc<str>,
}

impl PgInbox {
    /// An inbox in the tables `backstop_inbox` and `backstop_held`. The pool may be the application's own; every
    /// message that is handled takes one of its connections.
    pub fn new(pool: PgPool) -> Self {
        Self::with_tables(pool, PgTables::default())
    }

    /// An inbox in those tables.
    pub fn with_tables(pool: PgPool, tables: PgTables) -> Self {
        let fill = |statement: &str| Arc::<str>::from(tables.fill(statement));
        let sql = Arc::new(InboxSql {
            admit: fill(ADMIT),
            admit_next: fill(ADMIT_NEXT),
            refusal: fill(REFUSAL),
            is_handled: fill("SELECT EXISTS (SELECT FROM {inbox} WHERE consumer = $1 AND message_key = $2)"),
            prune: fill(
                "DELETE FROM {inbox} WHERE ctid = ANY(ARRAY(
                    SELECT ctid FROM {inbox}
                    WHERE consumer = $1 AND handled_at < now() - make_interval(secs => $2)
                    ORDER BY handled_at LIMIT $3
                 ))",
            ),
            ready: fill(
                "SELECT (SELECT count(*) FROM (SELECT consumer, message_key, handled_at FROM {inbox} LIMIT 0) i)
                      + (SELECT count(*) FROM (SELECT n, ordering_key, origin, crashes FROM {held} LIMIT 0) h)
                      + (SELECT count(*) FROM (SELECT crashes, charged_at FROM {charge} LIMIT 0) c)",
            ),
        });
        let (held, runs) = (Arc::new(HeldSql::new(&tables)), Arc::new(RunsSql::new(&tables)));
        let store_all = tables.fill(STORE_ALL).into();
        let (keys, group) = (Arc::new(KeysSql::new(&tables)), Arc::new(GroupSql::new(&tables)));
        let (owed, charges) = (Arc::new(OwedSql::new(&tables)), Arc::new(ChargesSql::new(&tables)));
        Self { pool, tables, sql, held, keys, runs, store_all, group, owed, charges, chain: Chain::default() }
    }

    /// A statement about one message.
    fn about<'q>(&self, sql: &Arc<str>, unit: Unit<'q>) -> Query<'q, Postgres, PgArguments> {
        sqlx::query(AssertSqlSafe(Arc::clone(sql)))
            .bind(unit.consumer)
            .bind(unit.message_key.as_str())
            .bind(unit.place)
            .bind(unit.ordering_key)
    }

    /// Writes the inbox row, waiting for `lock` at most.
    async fn admit(
        &self,
        mut scoped: Scoped,
        unit: Unit<'_>,
        limits: Limits,
        lock: Duration,
    ) -> Result<Admission<PgTx>, AdapterError> {
        let admitted = self
            .about(&self.sql.admit, unit)
            .bind(milliseconds(lock).to_string())
            .bind(milliseconds(limits.handler).to_string())
            .fetch_optional(&mut *scoped)
            .await;
        match admitted {
            Ok(Some(_)) => Ok(Admission::Fresh(PgTx { scoped, proof: Proof::Cursor(limits) })),
            Ok(None) => {
                // A key that was released in between counts as held: whoever then appends to it is told that it is
                // free.
                Ok(self.refusal(unit, scoped).await?.unwrap_or(Admission::Held))
            }
            Err(error) if is_busy(&error) => {
                scoped.release();
                Ok(Admission::Busy)
            }
            Err(error) => Err(failed("write the inbox row")(error)),
        }
    }

    /// Writes the inbox row in a transaction that the commit before it has begun; `None` when that says nothing about
    /// the message: the transaction may have become read-only by its predecessor's will, or lost its server.
    async fn admit_chained(
        &self,
        mut scoped: Scoped,
        unit: Unit<'_>,
        limits: Limits,
    ) -> Option<Admission<PgTx>> {
        if scoped.limits() != Some(limits) {
            return within("write the inbox row", self.admit(scoped, unit, limits, limits.lock)).await.ok();
        }
        let insert = self.about(&self.sql.admit_next, unit).bind(shown(limits.handler));
        // Whoever waits in vain is closed, and begins anew where the server knows why it waits.
        let inserted = timeout(limits.lock / 2, insert.execute(&mut *scoped)).await.ok()?.ok()?;
        if inserted.rows_affected() == 1 {
            return Some(Admission::Fresh(PgTx { scoped, proof: Proof::Cursor(limits) }));
        }
        within("write the inbox row", self.refusal(unit, scoped)).await.ok().flatten()
    }

    /// Why the message was not admitted; `None` when there is no reason any more.
    async fn refusal(
        &self,
        unit: Unit<'_>,
        mut scoped: Scoped,
    ) -> Result<Option<Admission<PgTx>>, AdapterError> {
        let row = self.about(&self.sql.refusal, unit).fetch_one(&mut *scoped).await;
        let read = |row: PgRow| Ok::<(bool, bool), sqlx::Error>((row.try_get(0)?, row.try_get(1)?));
        let (held, handled) = row.and_then(read).map_err(failed("read why the message was not admitted"))?;
        scoped.release();
        Ok(match (held, handled) {
            (true, _) => Some(Admission::Held),
            (false, true) => Some(Admission::Duplicate),
            (false, false) => None,
        })
    }

    async fn begin_live(&self) -> Result<Scoped, sqlx::Error> {
        Scoped::begin(&self.pool, format!("{BEGIN}{DECLARE}")).await
    }

    pub(crate) async fn begin_scoped(&self, limits: Limits) -> Result<Scoped, AdapterError> {
        answer_within("begin a transaction", Scoped::begin(&self.pool, begin(limits))).await
    }
}

/// Begins a transaction in which the server enforces the limits. The session's own lock timeout is kept aside.
fn begin(limits: Limits) -> String {
    format!("BEGIN ISOLATION LEVEL READ COMMITTED; {}", settings(limits))
}

/// Lets the server enforce the limits in the transaction that is open.
pub(crate) fn settings(limits: Limits) -> String {
    let (lock, handler) = (milliseconds(limits.lock), milliseconds(limits.handler));
    format!(
        "SELECT set_config('backstop.lock_timeout', current_setting('lock_timeout'), true), \
         set_config('lock_timeout', '{lock}', true), set_config('statement_timeout', '{handler}', true), \
         set_config('idle_in_transaction_session_timeout', '{handler}', true)"
    )
}

/// Whether another instance was at it: the wait for its lock was cut short, or broken as a deadlock.
pub(crate) fn is_busy(error: &sqlx::Error) -> bool {
    matches!(code(error), Some("55P03" | "40P01"))
}

impl Inbox for PgInbox {
    type Tx = PgTx;

    async fn begin(&self, unit: Unit<'_>, limits: Limits) -> Result<Admission<PgTx>, AdapterError> {
        let mut lock = limits.lock;
        if let Some(chained) = self.chain.take() {
            if let Some(admission) = self.admit_chained(chained, unit, limits).await {
                return Ok(admission);
            }
            lock /= 2;
        }
        within("write the inbox row", async {
            let begun = self.begin_live().await.map_err(failed("begin a transaction"))?;
            self.admit(begun, unit, limits, lock).await
        })
        .await
    }

    async fn begin_group(
        &self,
        units: &[Unit<'_>],
        limits: Limits,
    ) -> Result<GroupAdmission<PgTx>, AdapterError> {
        let doing = "write the inbox rows of a group";
        if let Some(chained) = self.chain.take()
            && let Ok(admission) = within(doing, self.admit_group(chained, units, limits)).await
        {
            return Ok(admission);
        }
        within(doing, async {
            let begun = self.begin_live().await.map_err(failed("begin a transaction"))?;
            self.admit_group(begun, units, limits).await
        })
        .await
    }

    async fn withdraw(
        &self,
        tx: &mut PgTx,
        consumer: &str,
        message_keys: &[&MessageKey],
    ) -> Result<(), AdapterError> {
        self.withdraw_from(tx, consumer, message_keys).await
    }

    async fn commit(&self, tx: PgTx) -> Result<(), CommitError> {
        self.chain.keep(crate::commit::commit(tx, "").await?);
        Ok(())
    }

    async fn is_ended(&self, tx: &mut PgTx) -> Result<bool, AdapterError> {
        crate::commit::is_ended(tx).await
    }

    async fn rollback(&self, tx: PgTx) {
        tx.scoped.rollback().await;
    }

    async fn is_handled(&self, consumer: &str, message_key: &MessageKey) -> Result<bool, AdapterError> {
        let query = sqlx::query_scalar(AssertSqlSafe(Arc::clone(&self.sql.is_handled)))
            .bind(consumer)
            .bind(message_key.as_str());
        answer_within("read the inbox", query.fetch_one(&self.pool)).await
    }

    async fn prune(&self, consumer: &str, age: Duration, limit: u32) -> Result<u64, AdapterError> {
        let query = sqlx::query(AssertSqlSafe(Arc::clone(&self.sql.prune)))
            .bind(consumer)
            .bind(age.as_secs_f64())
            .bind(i64::from(limit));
        let done = answer_within("prune the inbox", query.execute(&self.pool)).await?;
        self.prune_charges(consumer, age).await?;
        Ok(done.rows_affected())
    }

    fn explain(&self, error: &(dyn Error + 'static)) -> Option<Explained> {
        crate::explain::explain(error)
    }

    async fn ready(&self) -> Result<(), AdapterError> {
        let query = sqlx::query(AssertSqlSafe(Arc::clone(&self.sql.ready)));
        answer_within("use the tables of inbox and held messages", query.execute(&self.pool)).await?;
        let names = [self.tables.inbox(), self.tables.quoted("held"), self.tables.quoted("charge")];
        let query = sqlx::query_scalar(
            "SELECT bool_and(has_table_privilege(name, right_)) \
             FROM unnest($1::text[]) AS name, unnest(ARRAY['SELECT', 'INSERT', 'DELETE']) AS right_",
        )
        .bind(&names[..]);
        let doing = "read the permissions on the tables of inbox and held messages";
        if answer_within(doing, query.fetch_one(&self.pool)).await? {
            return Ok(());
        }
        Err(AdapterError::new(
            FaultKind::Denied,
            "the database user may not write to inbox and held messages",
        )
        .with_hint("grant the user its permissions: see migrations/README.md"))
    }
}
