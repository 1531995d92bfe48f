//! Held messages that were given up and stay at their place, and what operators do with held keys.
//!
//! A row that waits although it is condemned is quarantined: nobody claims it, and it is the lowest of its key, so that
//! its followers wait as behind any other head.

use std::sync::Arc;

use backstop_core::dead_letter::generation;
use backstop_core::held::NewHeld;
use backstop_core::held_keys::{Ended, Ending, HeldFilter, HeldKey, HeldState};
use backstop_core::inbox::{CommitError, Limits};
use backstop_core::{AdapterError, FaultKind, Headers, MessageKey, header_column};
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Row};

use crate::commit::commit_and_release;
use crate::failure::failed;
use crate::held_row::{read_message, seconds, via_name};
use crate::held_sql::integer;
use crate::inbox::PgInbox;
use crate::of_key::elder;
use crate::patience::answer_within;
use crate::proof::Proof;
use crate::tables::PgTables;
use crate::time;
use crate::transaction::PgTx;

/// The columns of a message, in the order in which they are read; then its consumer, and what it waits for.
const COLUMNS: &str = "
    n, place, ordering_key, message_key, msg_key, headers, {body}, origin::text, via, attempts, class, error,
    {held_since}, extract(epoch FROM clock_timestamp() - {held_since})::float8, throttled, condemned,
    consumer, state = 'waiting', extract(epoch FROM due_at - clock_timestamp())::float8, crashes";

const PARK: &str = "
    UPDATE {held} SET state = 'waiting'
    WHERE consumer = $1 AND message_key = $2 AND attempts = $3 AND headers = $4 AND condemned IS NOT NULL";

const FIND: &str = "SELECT {columns} FROM {held} WHERE consumer = $1 AND message_key = $2";

/// Whoever publishes the letter meanwhile finds other headers and leaves the row alone.
const REVIVE: &str = "
    UPDATE {held} SET state = 'retry', due_at = clock_timestamp(), held_since = clock_timestamp(), attempts = 0,
           throttled = 0, condemned = NULL, crashes = 0, class = NULL, error = NULL, msg_key = $3, headers = $4, body = $5,
           origin = $6::json, via = $7
    WHERE n = $1 AND headers = $2 AND condemned IS NOT NULL";

/// FOR NO KEY UPDATE, as the claim has it: followers are appended meanwhile. Whoever is at the message is not waited for.
const SEIZE: &str = "
    SELECT {columns}, pg_current_xact_id()::text FROM {held}
    WHERE consumer = $1 AND message_key = $2
    FOR NO KEY UPDATE SKIP LOCKED";

/// A message that is at work has its inbox row written and not committed; that one is waited for.
const SETTLE: &str = "INSERT INTO {inbox} (consumer, message_key) VALUES ($1, $2) ON CONFLICT DO NOTHING";

const HEADS: &str = concat!(
    "
    SELECT {columns}, (
        SELECT count(*) FROM {held} AS l WHERE l.consumer = h.consumer AND l.place = h.place
           AND sha256(l.ordering_key) BETWEEN sha256(h.ordering_key) AND sha256(h.ordering_key)
    ) - 1
    FROM {held} AS h
    WHERE n > $1 AND ($2::bigint[] = '{}' OR n = ANY($2)) AND ($3::text IS NULL OR consumer = $3)
      AND ($4::text IS NULL OR place = $4) AND (NOT $5 OR state = 'waiting' AND condemned IS NOT NULL)
      AND n = ",
    elder!("h.consumer", "h.place", "h.ordering_key"),
    "
    ORDER BY n LIMIT $6"
);

/// The statements with the names of the tables filled in.
#[derive(Debug)]
pub(crate) struct KeysSql {
    park: Arc<str>,
    find: Arc<str>,
    revive: Arc<str>,
    seize: Arc<str>,
    settle: Arc<str>,
    heads: Arc<str>,
}

impl KeysSql {
    pub(crate) fn new(tables: &PgTables) -> Self {
        let columns = COLUMNS.replace("{held_since}", &time::clamped("held_since"));
        let fill = |statement: &str, body: &str| {
            let statement = statement.replace("{columns}", &columns.replace("{body}", body));
            Arc::<str>::from(tables.fill(&statement))
        };
        Self {
            park: fill(PARK, ""),
            find: fill(FIND, "NULL::bytea"),
            revive: fill(REVIVE, ""),
            seize: fill(SEIZE, "NULL::bytea"),
            settle: fill(SETTLE, ""),
            heads: fill(HEADS, "NULL::bytea"),
        }
    }
}

/// A message and what it waits for.
fn read_key(row: &PgRow) -> Result<HeldKey, AdapterError> {
    let doing = || failed("read a held message");
    let head = read_message(row)?;
    let waits: bool = row.try_get(17).map_err(doing())?;
    let due_in: f64 = row.try_get(18).map_err(doing())?;
    Ok(HeldKey {
        consumer: row.try_get(16).map_err(doing())?,
        state: HeldState::of_row(waits, head.condemned.is_some()),
        due_in: (!waits).then(|| seconds(due_in)),
        behind: 0,
        head,
    })
}

impl PgInbox {
    pub(crate) async fn park_condemned(
        &self,
        consumer: &str,
        message_key: &MessageKey,
        attempts: u32,
        headers: &Headers,
    ) -> Result<(), AdapterError> {
        let query = sqlx::query(AssertSqlSafe(Arc::clone(&self.keys.park)))
            .bind(consumer)
            .bind(message_key.as_str())
            .bind(integer(attempts))
            .bind(header_column::encode(headers)?);
        answer_within("quarantine the held message", query.execute(&self.pool)).await?;
        Ok(())
    }

    /// Lets a redriven message take the place of what it was when it was given up; `false` when it is not held any
    /// more, or has changed under our hands.
    pub(crate) async fn revive(&self, message: &NewHeld<'_>) -> Result<bool, AdapterError> {
        const DOING: &str = "take in the redriven message";
        let (unit, envelope) = (message.unit, message.envelope);
        let find = sqlx::query(AssertSqlSafe(Arc::clone(&self.keys.find)))
            .bind(unit.consumer)
            .bind(unit.message_key.as_str());
        let Some(row) = answer_within(DOING, find.fetch_optional(&self.pool)).await? else {
            return Ok(false);
        };
        let found = read_message(&row)?;
        if found.condemned.is_none() || found.generation() > generation(&envelope.headers) {
            return Ok(true);
        }
        let origin = serde_json::to_string(message.origin).map_err(|error| {
            AdapterError::new(FaultKind::Invalid, "cannot write the origin").with_source(error)
        })?;
        let revive = sqlx::query(AssertSqlSafe(Arc::clone(&self.keys.revive)))
            .bind(found.n)
            .bind(header_column::encode(&found.envelope.headers)?)
            .bind(envelope.key.as_deref())
            .bind(header_column::encode(&envelope.headers)?)
            .bind(envelope.body.as_deref())
            .bind(origin)
            .bind(via_name(message.via));
        let done = answer_within(DOING, revive.execute(&self.pool)).await?;
        Ok(done.rows_affected() == 1)
    }

    pub(crate) async fn end_held(
        &self,
        consumer: &str,
        message_key: &MessageKey,
        ending: Ending,
        generation: Option<u32>,
    ) -> Result<Ended, AdapterError> {
        const DOING: &str = "end the wait for a held message";
        let mut scoped = self.begin_scoped(Limits::default()).await?;
        let about = |sql: &Arc<str>| {
            sqlx::query(AssertSqlSafe(Arc::clone(sql))).bind(consumer).bind(message_key.as_str())
        };
        let seized = answer_within(DOING, about(&self.keys.seize).fetch_optional(&mut *scoped)).await?;
        let Some(row) = seized else {
            scoped.release();
            return self.end_absent(consumer, message_key, ending).await;
        };
        let found = read_key(&row)?;
        if let Some(refusal) = Ended::refusal(&found.head, found.state, ending, generation) {
            // Whoever asks next is not to find the row locked by this question.
            scoped.rollback().await;
            return Ok(refusal);
        }
        if ending.is_handled() {
            answer_within(DOING, about(&self.keys.settle).execute(&mut *scoped)).await?;
        }
        let xid = row.try_get(20).map_err(failed(DOING))?;
        let before = self.held.finish(consumer, &found.head);
        let ended = commit_and_release(PgTx { scoped, proof: Proof::Xid(xid) }, &before).await;
        ended.map(|()| Ended::Done).map_err(CommitError::into_error)
    }

    /// The same for a message that is not held, or that somebody is at.
    async fn end_absent(
        &self,
        consumer: &str,
        message_key: &MessageKey,
        ending: Ending,
    ) -> Result<Ended, AdapterError> {
        const DOING: &str = "end the wait for a message that is not held";
        let about = |sql: &Arc<str>| {
            sqlx::query(AssertSqlSafe(Arc::clone(sql))).bind(consumer).bind(message_key.as_str())
        };
        let found = about(&self.keys.find).fetch_optional(&self.pool);
        if answer_within(DOING, found).await?.is_some() {
            return Ok(Ended::Busy);
        }
        if !ending.is_handled() {
            let handled = backstop_core::inbox::Inbox::is_handled(self, consumer, message_key).await?;
            return Ok(if handled { Ended::AlreadyHandled } else { Ended::NotHeld });
        }
        let settled = answer_within(DOING, about(&self.keys.settle).execute(&self.pool)).await?;
        Ok(if settled.rows_affected() == 1 { Ended::Done } else { Ended::AlreadyHandled })
    }

    pub(crate) async fn heads(&self, filter: &HeldFilter, limit: u32) -> Result<Vec<HeldKey>, AdapterError> {
        const DOING: &str = "list held keys";
        let query = sqlx::query(AssertSqlSafe(Arc::clone(&self.keys.heads)))
            .bind(filter.after.unwrap_or(i64::MIN))
            .bind(&filter.numbers[..])
            .bind(filter.consumer.as_deref())
            .bind(filter.place.as_deref())
            .bind(filter.quarantined)
            .bind(i64::from(limit));
        let rows = answer_within(DOING, query.fetch_all(&self.pool)).await?;
        let read = |row: &PgRow| {
            let behind: i64 = row.try_get(20).map_err(failed(DOING))?;
            Ok(HeldKey { behind: behind.unsigned_abs(), ..read_key(row)? })
        };
        rows.iter().map(read).collect()
    }
}
