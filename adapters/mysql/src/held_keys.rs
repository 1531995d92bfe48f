//! Held messages that were given up and stay at their place, and what operators do with held keys.
//!
//! A row that waits although it is condemned is quarantined: nobody claims it, and it is the lowest of its key, so that
//! its followers wait as behind any other head.

use std::sync::Arc;

use backstop_core::dead_letter::generation;
use backstop_core::held::NewHeld;
use backstop_core::held_keys::{Ended, Ending, HeldFilter, HeldKey, HeldState};
use backstop_core::inbox::Inbox as _;
use backstop_core::{AdapterError, FaultKind, Headers, MessageKey, header_column};
use sqlx::mysql::{MySqlArguments, MySqlRow};
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, MySql, QueryBuilder, Row};

use crate::contest::contested;
use crate::failure::failed;
use crate::held_row::{COLUMNS, read, via_name};
use crate::held_sql::{IS_HEAD, integer};
use crate::inbox::MySqlInbox;
use crate::patience::within;
use crate::scoped::Scoped;
use crate::tables::MySqlTables;
use crate::time::from_micros;

const PARK: &str = "
    UPDATE {held} SET state = 'waiting'
    WHERE consumer = ? AND message_key = ? AND attempts = ? AND headers = ? AND condemned IS NOT NULL";

/// Whoever publishes the letter meanwhile finds other headers and leaves the row alone. The key stays held, so that
/// this needs no gate.
const REVIVE: &str = "
    UPDATE {held} SET state = 'retry', due_at = UTC_TIMESTAMP(6), held_since = UTC_TIMESTAMP(6), attempts = 0,
           throttled = 0, condemned = NULL, crashes = 0, class = NULL, error = NULL, msg_key = ?, headers = ?, body = ?,
           origin = ?, via = ?
    WHERE n = ? AND headers = ? AND condemned IS NOT NULL";

const SETTLE: &str = "INSERT IGNORE INTO {inbox} (consumer, message_key) VALUES (?, ?)";

/// The statements with the names of the tables filled in.
#[derive(Debug)]
pub(crate) struct KeysSql {
    park: Arc<str>,
    revive: Arc<str>,
    settle: Arc<str>,
    /// One message, as it is read and as it is seized: whoever is at it is not waited for.
    find: Arc<str>,
    seize: Arc<str>,
    /// The beginning of the statement that lists heads.
    heads: String,
}

impl KeysSql {
    pub(crate) fn new(tables: &MySqlTables) -> Self {
        let fill = |statement: &str| Arc::<str>::from(tables.fill(statement));
        let columns = format!(
            "SELECT {}, consumer, state = 'waiting', TIMESTAMPDIFF(MICROSECOND, UTC_TIMESTAMP(6), due_at)",
            COLUMNS.replace("body,", "NULL,")
        );
        let find = format!("{columns} FROM {{held}} WHERE consumer = ? AND message_key = ?");
        let heads = format!(
            "{columns}, (SELECT COUNT(*) FROM {{held}} AS l WHERE l.consumer = h.consumer AND l.place = h.place \
             AND l.digest = h.digest) - 1 FROM {{held}} AS h WHERE {IS_HEAD}"
        );
        Self {
            park: fill(PARK),
            revive: fill(REVIVE),
            settle: fill(SETTLE),
            seize: fill(&format!("{find} FOR UPDATE SKIP LOCKED")),
            find: fill(&find),
            heads: tables.fill(&heads),
        }
    }
}

/// A message and what it waits for.
fn read_key(row: &MySqlRow) -> Result<HeldKey, AdapterError> {
    let doing = || failed("read a held message");
    let head = read(row, row.try_get(0).map_err(doing())?)?;
    let consumer: Vec<u8> = row.try_get(17).map_err(doing())?;
    let waits = row.try_get::<i64, _>(18).map_err(doing())? != 0;
    let due_in: i64 = row.try_get(19).map_err(doing())?;
    Ok(HeldKey {
        consumer: String::from_utf8_lossy(&consumer).into_owned(),
        state: HeldState::of_row(waits, head.condemned.is_some()),
        due_in: (!waits).then(|| from_micros(due_in)),
        behind: 0,
        head,
    })
}

/// A statement about one message.
fn about<'q>(
    sql: &Arc<str>,
    consumer: &'q str,
    message_key: &'q MessageKey,
) -> Query<'q, MySql, MySqlArguments> {
    sqlx::query(AssertSqlSafe(Arc::clone(sql)))
        .bind(consumer.as_bytes())
        .bind(message_key.as_str().as_bytes())
}

impl MySqlInbox {
    pub(crate) async fn park_condemned(
        &self,
        consumer: &str,
        message_key: &MessageKey,
        attempts: u32,
        headers: &Headers,
    ) -> Result<(), AdapterError> {
        const DOING: &str = "quarantine the held message";
        let headers = header_column::encode(headers)?;
        contested(DOING, async || {
            let park = about(&self.keys.park, consumer, message_key).bind(integer(attempts)).bind(&headers);
            let mut scoped = Scoped::begin(&self.pool).await.map_err(failed(DOING))?;
            park.execute(&mut *scoped).await.map_err(failed(DOING))?;
            scoped.commit().await.map_err(failed(DOING))
        })
        .await
    }

    /// Lets a redriven message take the place of what it was when it was given up; `false` when it is not held any
    /// more, or has changed under our hands.
    pub(crate) async fn revive(&self, message: &NewHeld<'_>) -> Result<bool, AdapterError> {
        const DOING: &str = "take in the redriven message";
        let NewHeld { unit, envelope, via, .. } = message;
        let Some(found) = self.held_as(unit.consumer, unit.message_key).await? else { return Ok(false) };
        if found.head.condemned.is_none() || found.head.generation() > generation(&envelope.headers) {
            return Ok(true);
        }
        let origin = serde_json::to_string(message.origin).map_err(|error| {
            AdapterError::new(FaultKind::Invalid, "cannot write the origin").with_source(error)
        })?;
        let before = header_column::encode(&found.head.envelope.headers)?;
        let headers = header_column::encode(&envelope.headers)?;
        contested(DOING, async || {
            let mut scoped = Scoped::begin(&self.pool).await.map_err(failed(DOING))?;
            let done = sqlx::query(AssertSqlSafe(Arc::clone(&self.keys.revive)))
                .bind(envelope.key.as_deref())
                .bind(&headers)
                .bind(envelope.body.as_deref())
                .bind(&origin)
                .bind(via_name(*via))
                .bind(found.head.n)
                .bind(&before)
                .execute(&mut *scoped)
                .await
                .map_err(failed(DOING))?;
            scoped.commit().await.map_err(failed(DOING))?;
            Ok(done.rows_affected() == 1)
        })
        .await
    }

    pub(crate) async fn end_held(
        &self,
        consumer: &str,
        message_key: &MessageKey,
        ending: Ending,
        generation: Option<u32>,
    ) -> Result<Ended, AdapterError> {
        const DOING: &str = "end the wait for a held message";
        contested(DOING, async || {
            let mut scoped = Scoped::begin(&self.pool).await.map_err(failed(DOING))?;
            let seize = about(&self.keys.seize, consumer, message_key).fetch_optional(&mut *scoped).await;
            let Some(row) = seize.map_err(failed(DOING))? else {
                scoped.rollback().await;
                return self.end_absent(consumer, message_key, ending).await;
            };
            let found = read_key(&row)?;
            if let Some(refusal) = Ended::refusal(&found.head, found.state, ending, generation) {
                scoped.rollback().await;
                return Ok(refusal);
            }
            if ending.is_handled() {
                let settle = about(&self.keys.settle, consumer, message_key).execute(&mut *scoped).await;
                settle.map_err(failed(DOING))?;
            }
            let delete = self.held.delete(consumer, &found.head).join("; ");
            scoped.run(delete).await.map_err(|stopped| failed(DOING)(stopped.error))?;
            scoped.commit().await.map_err(failed(DOING))?;
            Ok(Ended::Done)
        })
        .await
    }

    /// The same for a message that is not held, or that somebody is at.
    async fn end_absent(
        &self,
        consumer: &str,
        message_key: &MessageKey,
        ending: Ending,
    ) -> Result<Ended, AdapterError> {
        const DOING: &str = "end the wait for a message that is not held";
        if self.held_as(consumer, message_key).await?.is_some() {
            return Ok(Ended::Busy);
        }
        if !ending.is_handled() {
            let handled = self.is_handled(consumer, message_key).await?;
            return Ok(if handled { Ended::AlreadyHandled } else { Ended::NotHeld });
        }
        let mut scoped = Scoped::begin(&self.pool).await.map_err(failed(DOING))?;
        let settle = about(&self.keys.settle, consumer, message_key).execute(&mut *scoped).await;
        let settled = settle.map_err(failed(DOING))?;
        scoped.commit().await.map_err(failed(DOING))?;
        Ok(if settled.rows_affected() == 1 { Ended::Done } else { Ended::AlreadyHandled })
    }

    async fn held_as(
        &self,
        consumer: &str,
        message_key: &MessageKey,
    ) -> Result<Option<HeldKey>, AdapterError> {
        const DOING: &str = "read a held message";
        let find = about(&self.keys.find, consumer, message_key);
        let row =
            within(DOING, async { find.fetch_optional(&self.pool).await.map_err(failed(DOING)) }).await?;
        row.as_ref().map(read_key).transpose()
    }

    pub(crate) async fn heads(&self, filter: &HeldFilter, limit: u32) -> Result<Vec<HeldKey>, AdapterError> {
        const DOING: &str = "list held keys";
        let mut query = QueryBuilder::<MySql>::new(&self.keys.heads);
        if let Some(after) = filter.after {
            query.push(" AND h.n > ").push_bind(after);
        }
        if let Some(consumer) = &filter.consumer {
            query.push(" AND h.consumer = ").push_bind(consumer.as_bytes());
        }
        if let Some(place) = &filter.place {
            query.push(" AND h.place = ").push_bind(place.as_bytes());
        }
        if filter.quarantined {
            query.push(" AND h.state = 'waiting' AND h.condemned IS NOT NULL");
        }
        if !filter.numbers.is_empty() {
            let mut numbers = query.push(" AND h.n IN (").separated(", ");
            filter.numbers.iter().for_each(|n| {
                numbers.push_bind(*n);
            });
            query.push(")");
        }
        query.push(" ORDER BY h.n LIMIT ").push_bind(limit);
        let rows = async { query.build().fetch_all(&self.pool).await.map_err(failed(DOING)) };
        let read = |row: &MySqlRow| {
            let behind: i64 = row.try_get(20).map_err(failed(DOING))?;
            Ok(HeldKey { behind: behind.unsigned_abs(), ..read_key(row)? })
        };
        within(DOING, rows).await?.iter().map(read).collect()
    }
}
