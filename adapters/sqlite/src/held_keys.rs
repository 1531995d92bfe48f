//! Held messages that were given up and stay at their place, and what operators do with held keys.
//!
//! A row that waits although it is condemned is quarantined: nobody claims it, and it is the lowest of its key, so that
//! its followers wait as behind any other head.

use backstop_core::dead_letter::generation;
use backstop_core::held::NewHeld;
use backstop_core::held_keys::{Ended, Ending, HeldFilter, HeldKey, HeldState};
use backstop_core::{AdapterError, FaultKind, Headers, MessageKey};
use sqlx::sqlite::SqliteRow;
use sqlx::{AssertSqlSafe, QueryBuilder, Row, Sqlite, SqliteConnection};

use crate::commit::commit;
use crate::database::plain;
use crate::envelope::to_column;
use crate::error::adapter;
use crate::held_row::{columns, held_message, via_column};
use crate::inbox::SqliteInbox;
use crate::time::{NOW, duration};

/// A message and what it waits for.
fn read_key(row: &SqliteRow) -> Result<HeldKey, AdapterError> {
    let failed = |error| adapter("cannot read held messages", error);
    let head = held_message(row)?;
    let waits: bool = row.try_get("waits").map_err(failed)?;
    let due_in: i64 = row.try_get("due_in").map_err(failed)?;
    let behind: i64 = row.try_get("behind").map_err(failed)?;
    Ok(HeldKey {
        consumer: row.try_get("consumer").map_err(failed)?,
        state: HeldState::of_row(waits, head.condemned.is_some()),
        due_in: (!waits).then(|| duration(due_in)),
        behind: behind.unsigned_abs(),
        head,
    })
}

impl SqliteInbox {
    pub(crate) async fn park_condemned(
        &self,
        consumer: &str,
        message_key: &MessageKey,
        attempts: u32,
        headers: &Headers,
    ) -> Result<(), AdapterError> {
        let sql = format!(
            "UPDATE {} SET state = 'waiting' \
             WHERE consumer = ? AND message_key = ? AND attempts = ? AND headers = ? AND condemned IS NOT NULL",
            self.database.tables.held()
        );
        let mut tx = self.database.write("cannot quarantine the held message").await?;
        sqlx::query(AssertSqlSafe(sql))
            .bind(consumer)
            .bind(message_key.as_str())
            .bind(attempts)
            .bind(to_column(headers))
            .execute(&mut *tx)
            .await
            .map_err(|error| adapter("cannot quarantine the held message", error))?;
        commit(tx).await.map_err(plain)
    }

    /// Lets a redriven message take the place of what it was when it was given up, where it still is held.
    pub(crate) async fn revive(
        &self,
        connection: &mut SqliteConnection,
        message: &NewHeld<'_>,
    ) -> Result<(), AdapterError> {
        let NewHeld { unit, envelope, via, .. } = message;
        let Some(found) = self.held_as(connection, unit.consumer, unit.message_key).await? else {
            return Ok(());
        };
        if found.head.condemned.is_none() || found.head.generation() > generation(&envelope.headers) {
            return Ok(());
        }
        let origin = serde_json::to_string(message.origin).map_err(|error| {
            AdapterError::new(FaultKind::Invalid, "the message's origin cannot be written").with_source(error)
        })?;
        let sql = format!(
            "UPDATE {} SET state = 'retry', due_at = {NOW}, held_since = {NOW}, attempts = 0, throttled = 0, crashes = 0, \
             condemned = NULL, class = NULL, error = NULL, msg_key = ?, headers = ?, body = ?, origin = ?, via = ? \
             WHERE n = ?",
            self.database.tables.held()
        );
        sqlx::query(AssertSqlSafe(sql))
            .bind(envelope.key.as_deref())
            .bind(to_column(&envelope.headers))
            .bind(envelope.body.as_deref())
            .bind(origin)
            .bind(via_column(*via))
            .bind(found.head.n)
            .execute(connection)
            .await
            .map_err(|error| adapter("cannot take in the redriven message", error))?;
        Ok(())
    }

    pub(crate) async fn end_held(
        &self,
        consumer: &str,
        message_key: &MessageKey,
        ending: Ending,
        generation: Option<u32>,
    ) -> Result<Ended, AdapterError> {
        let mut tx = self.database.write("cannot end the wait for a held message").await?;
        let found = self.held_as(&mut tx, consumer, message_key).await?;
        let refusal = match &found {
            Some(found) => Ended::refusal(&found.head, found.state, ending, generation),
            None if self.handled(&mut tx, consumer, message_key).await? => Some(Ended::AlreadyHandled),
            None => (!ending.is_handled()).then_some(Ended::NotHeld),
        };
        if let Some(refusal) = refusal {
            tx.rollback().await;
            return Ok(refusal);
        }
        if ending.is_handled() {
            self.insert(&mut tx, consumer, message_key).await?;
        }
        if let Some(found) = found {
            self.pop_if("true", &mut tx, consumer, &found.head).await?;
        }
        commit(tx).await.map_err(plain)?;
        Ok(Ended::Done)
    }

    async fn held_as(
        &self,
        connection: &mut SqliteConnection,
        consumer: &str,
        message_key: &MessageKey,
    ) -> Result<Option<HeldKey>, AdapterError> {
        let mut query = self.keys_query();
        query.push(" WHERE h.consumer = ").push_bind(consumer);
        query.push(" AND h.message_key = ").push_bind(message_key.as_str());
        let row = query.build().fetch_optional(connection).await;
        let row = row.map_err(|error| adapter("cannot read held messages", error))?;
        row.as_ref().map(read_key).transpose()
    }

    pub(crate) async fn heads(&self, filter: &HeldFilter, limit: u32) -> Result<Vec<HeldKey>, AdapterError> {
        let held = self.database.tables.held();
        let mut query = self.keys_query();
        query.push(format!(
            " WHERE NOT EXISTS (SELECT 1 FROM {held} l WHERE l.consumer = h.consumer AND l.place = h.place \
             AND l.ordering_key = h.ordering_key AND l.n < h.n)"
        ));
        if let Some(after) = filter.after {
            query.push(" AND h.n > ").push_bind(after);
        }
        if let Some(consumer) = &filter.consumer {
            query.push(" AND h.consumer = ").push_bind(consumer);
        }
        if let Some(place) = &filter.place {
            query.push(" AND h.place = ").push_bind(place);
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
        let mut connection = self.database.connection().await?;
        let rows = query.build().fetch_all(&mut *connection).await;
        let rows = rows.map_err(|error| adapter("cannot read held messages", error))?;
        rows.iter().map(read_key).collect()
    }

    /// Reads messages without their bodies, and what they wait for.
    fn keys_query(&self) -> QueryBuilder<Sqlite> {
        let held = self.database.tables.held();
        let columns = columns().replace("h.body", "NULL AS body");
        QueryBuilder::new(format!(
            "SELECT {columns}, h.consumer, h.state = 'waiting' AS waits, h.due_at - {NOW} AS due_in, \
             (SELECT count(*) FROM {held} l WHERE l.consumer = h.consumer AND l.place = h.place \
              AND l.ordering_key = h.ordering_key) - 1 AS behind FROM {held} h"
        ))
    }
}
