//! The table of held messages.
//!
//! Every change is made under the file's one write lock, so that what a statement sees is what the next one finds:
//! no follower can be appended to a key between the look at its head and the head's deletion.

use backstop_core::held::{
    ClaimError, ClaimedHead, Failure, HeadCharge, Heads, HeldMessage, HeldMessages, HeldSummary, Holding,
    NewHeld,
};
use backstop_core::held_keys::{Ended, Ending, HeldFilter, HeldKey};
use backstop_core::inbox::{CommitError, Limits};
use backstop_core::{AdapterError, DeadReason, FaultKind, Headers, MessageKey};
use sqlx::{AssertSqlSafe, SqliteConnection};

use crate::commit::{commit, prove};
use crate::database::plain;
use crate::envelope::to_column;
use crate::error::adapter;
use crate::held_row::{columns, held_message, via_column};
use crate::inbox::SqliteInbox;
use crate::time::{NOW, duration, millis};
use crate::tx::SqliteTx;

/// How a message is to be held.
enum As<'a> {
    /// It failed first.
    Failed(&'a Failure),
    /// Behind others; not at all if there are none.
    Follower,
    /// Behind others, or at once.
    Redriven,
}

impl SqliteInbox {
    async fn store(&self, message: NewHeld<'_>, how: As<'_>) -> Result<Holding, AdapterError> {
        let mut tx = self.database.write("cannot hold the message").await?;
        let holding = self.store_in(&mut tx, &message, how).await?;
        match holding {
            Holding::Stored => commit(tx).await.map_err(plain)?,
            Holding::KeyFree | Holding::AlreadyHandled => tx.rollback().await,
        }
        Ok(holding)
    }

    async fn store_in(
        &self,
        tx: &mut SqliteTx,
        message: &NewHeld<'_>,
        how: As<'_>,
    ) -> Result<Holding, AdapterError> {
        let unit = message.unit;
        if self.handled(tx, unit.consumer, unit.message_key).await? {
            return Ok(Holding::AlreadyHandled);
        }
        if let As::Redriven = how {
            self.revive(tx, message).await?;
        }
        let followed = self.key_is_held(tx, unit).await?;
        let (state, failure) = match how {
            As::Failed(failure) => ("retry", Some(failure)),
            As::Follower if !followed => return Ok(Holding::KeyFree),
            As::Redriven if !followed => ("retry", None),
            As::Follower | As::Redriven => ("waiting", None),
        };
        self.insert_held(tx, message, state, failure).await?;
        Ok(Holding::Stored)
    }

    async fn insert_held(
        &self,
        connection: &mut SqliteConnection,
        message: &NewHeld<'_>,
        state: &str,
        failure: Option<&Failure>,
    ) -> Result<(), AdapterError> {
        let NewHeld { unit, envelope, origin, via } = message;
        let origin = serde_json::to_string(origin).map_err(|error| {
            AdapterError::new(FaultKind::Invalid, "the message's origin cannot be written").with_source(error)
        })?;
        let sql = format!(
            "INSERT INTO {} (consumer, place, ordering_key, message_key, via, state, due_at, attempts, throttled, \
             condemned, crashes, class, error, msg_key, headers, body, origin, held_since) \
             VALUES (?, ?, ?, ?, ?, ?, {NOW} + ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, {NOW}) ON CONFLICT DO NOTHING",
            self.database.tables.held()
        );
        sqlx::query(AssertSqlSafe(sql))
            .bind(unit.consumer)
            .bind(unit.place)
            .bind(unit.ordering_key)
            .bind(unit.message_key.as_str())
            .bind(via_column(*via))
            .bind(state)
            .bind(failure.map_or(0, |failure| millis(failure.due_in)))
            .bind(failure.map_or(0, |failure| failure.attempts))
            .bind(failure.map_or(0, |failure| failure.throttled))
            .bind(failure.and_then(|failure| failure.condemned).map(DeadReason::as_str))
            .bind(failure.map_or(0, |failure| failure.crashes))
            .bind(failure.map(|failure| failure.class.as_str()))
            .bind(failure.map(|failure| &*failure.error))
            .bind(envelope.key.as_deref())
            .bind(to_column(&envelope.headers))
            .bind(envelope.body.as_deref())
            .bind(origin)
            .execute(connection)
            .await
            .map_err(|error| adapter("cannot hold the message", error))?;
        Ok(())
    }

    /// The due head that waits longest.
    pub(crate) async fn due_head(
        &self,
        connection: &mut SqliteConnection,
        consumer: &str,
        heads: Heads,
    ) -> Result<Option<HeldMessage>, AdapterError> {
        let held = self.database.tables.held();
        let sql = format!(
            "SELECT {} FROM {held} h WHERE h.consumer = ? AND h.state = 'retry' AND h.due_at <= {NOW} \
             AND (h.crashes > 0) = ? AND NOT EXISTS (SELECT 1 FROM {held} l WHERE l.consumer = h.consumer AND l.place = h.place \
                 AND l.ordering_key = h.ordering_key AND l.n < h.n) \
             ORDER BY h.due_at, h.n LIMIT 1",
            columns()
        );
        let query = sqlx::query(AssertSqlSafe(sql)).bind(consumer).bind(heads.are_doubtful());
        let row = query.fetch_optional(connection).await;
        let row = row.map_err(|error| adapter("cannot read held messages", error))?;
        row.as_ref().map(held_message).transpose()
    }

    /// The transaction in which a head is handled that was charged; `None` when it is not to be had any more.
    async fn enter_head(
        &self,
        consumer: &str,
        limits: Limits,
        head: HeldMessage,
    ) -> Result<Option<ClaimedHead<SqliteTx>>, AdapterError> {
        let Some(mut tx) = self.database.lend(limits).await? else {
            self.acquit_held(consumer, head.unused_charge()).await?;
            return Ok(None);
        };
        let still = format!(
            "SELECT EXISTS (SELECT 1 FROM {} WHERE n = ? AND state = 'retry' AND attempts = ? \
             AND crashes = ? AND (condemned IS NULL) = ?)",
            self.database.tables.held()
        );
        let charges = if head.condemned.is_none() { head.unused_charge().stands } else { head.crashes };
        let still: bool = sqlx::query_scalar(AssertSqlSafe(still))
            .bind(head.n)
            .bind(head.attempts)
            .bind(charges)
            .bind(head.condemned.is_none())
            .fetch_one(&mut *tx)
            .await
            .map_err(|error| adapter("cannot read held messages", error))?;
        if !still {
            tx.rollback().await;
            return Ok(None);
        }
        let handled = !self.insert(&mut tx, consumer, &head.message_key).await?;
        Ok(Some(ClaimedHead { tx, head, handled }))
    }

    /// Deletes the head if it still is as `condition` says, and makes the lowest one of its key the head.
    pub(crate) async fn pop_if(
        &self,
        condition: &str,
        connection: &mut SqliteConnection,
        consumer: &str,
        head: &HeldMessage,
    ) -> Result<(), AdapterError> {
        let doing = |error| adapter("cannot delete the held message", error);
        let held = self.database.tables.held();
        let delete = format!("DELETE FROM {held} WHERE n = ? AND consumer = ? AND {condition}");
        let delete = sqlx::query(AssertSqlSafe(delete)).bind(head.n).bind(consumer);
        delete.execute(&mut *connection).await.map_err(doing)?;
        let promote = format!(
            "UPDATE {held} SET state = 'retry', due_at = {NOW} WHERE state = 'waiting' AND condemned IS NULL AND n = \
             (SELECT min(n) FROM {held} WHERE consumer = ? AND place = ? AND ordering_key = ?)"
        );
        let promote =
            sqlx::query(AssertSqlSafe(promote)).bind(consumer).bind(&head.place).bind(&head.ordering_key);
        promote.execute(&mut *connection).await.map_err(doing)?;
        Ok(())
    }

    async fn write_failure(
        &self,
        connection: &mut SqliteConnection,
        consumer: &str,
        head: &HeldMessage,
        failure: &Failure,
    ) -> Result<(), AdapterError> {
        let sql = format!(
            "UPDATE {} SET due_at = {NOW} + ?, attempts = ?, throttled = ?, condemned = ?, crashes = ?, class = ?, error = ?, \
             held_since = CASE WHEN class IS NULL THEN {NOW} ELSE held_since END WHERE n = ? AND consumer = ? AND attempts = ?",
            self.database.tables.held()
        );
        sqlx::query(AssertSqlSafe(sql))
            .bind(millis(failure.due_in))
            .bind(failure.attempts)
            .bind(failure.throttled)
            .bind(failure.condemned.map(DeadReason::as_str))
            .bind(failure.crashes)
            .bind(failure.class.as_str())
            .bind(&failure.error)
            .bind(head.n)
            .bind(consumer)
            .bind(head.attempts)
            .execute(connection)
            .await
            .map_err(|error| adapter("cannot write the failed attempt", error))?;
        Ok(())
    }
}

impl HeldMessages for SqliteInbox {
    async fn hold(&self, message: NewHeld<'_>, failure: &Failure) -> Result<Holding, AdapterError> {
        self.store(message, As::Failed(failure)).await
    }

    async fn append(&self, message: NewHeld<'_>) -> Result<Holding, AdapterError> {
        self.store(message, As::Follower).await
    }

    async fn import(&self, message: NewHeld<'_>) -> Result<Holding, AdapterError> {
        self.store(message, As::Redriven).await
    }

    /// A plain read finds out whether something is due, so that an idle consumer does not touch the write lock. That
    /// lock is the claim: no other instance runs a head, or anything else, before the transaction ends.
    async fn claim(
        &self,
        consumer: &str,
        limits: Limits,
        heads: Heads,
    ) -> Result<Option<ClaimedHead<SqliteTx>>, ClaimError> {
        let mut connection = self.database.connection().await?;
        if self.due_head(&mut connection, consumer, heads).await?.is_none() {
            return Ok(None);
        }
        drop(connection);
        let Some(head) = self.charge_head(consumer, limits, heads).await? else { return Ok(None) };
        let charge = head.unused_charge();
        let charged = Some(charge).filter(|_| head.condemned.is_none()).into_iter().collect();
        self.enter_head(consumer, limits, head).await.map_err(|error| ClaimError { error, charged })
    }

    async fn acquit_heads(&self, consumer: &str, charges: &[HeadCharge]) -> Result<(), AdapterError> {
        for charge in charges {
            self.acquit_held(consumer, *charge).await?;
        }
        Ok(())
    }

    /// The proof comes first: on a connection whose transaction has ended, the deletion would be committed by
    /// itself, and the message lost.
    async fn finish(&self, consumer: &str, mut tx: SqliteTx, head: &HeldMessage) -> Result<(), CommitError> {
        prove(&mut tx).await?;
        self.pop_if("true", &mut tx, consumer, head).await.map_err(CommitError::RolledBack)?;
        commit(tx).await
    }

    async fn undo(&self, tx: &mut SqliteTx) -> Result<(), AdapterError> {
        tx.undo().await
    }

    async fn reschedule(
        &self,
        consumer: &str,
        tx: Option<SqliteTx>,
        head: &HeldMessage,
        failure: &Failure,
    ) -> Result<(), AdapterError> {
        let mut tx = match tx {
            Some(mut tx) => {
                tx.undo().await?;
                prove(&mut tx).await.map_err(plain)?;
                tx
            }
            None => self.database.write("cannot write the failed attempt").await?,
        };
        self.write_failure(&mut tx, consumer, head, failure).await?;
        commit(tx).await.map_err(plain)
    }

    async fn give_up(&self, consumer: &str, head: &HeldMessage) -> Result<(), AdapterError> {
        let mut tx = self.database.write("cannot delete the held message").await?;
        let headers = to_column(&head.envelope.headers).replace('\'', "''");
        let still_condemned =
            format!("attempts = {} AND headers = '{headers}' AND condemned IS NOT NULL", head.attempts);
        self.pop_if(&still_condemned, &mut tx, consumer, head).await?;
        commit(tx).await.map_err(plain)
    }

    async fn park(
        &self,
        consumer: &str,
        message_key: &MessageKey,
        attempts: u32,
        headers: &Headers,
    ) -> Result<(), AdapterError> {
        self.park_condemned(consumer, message_key, attempts, headers).await
    }

    async fn end(
        &self,
        consumer: &str,
        message_key: &MessageKey,
        ending: Ending,
        generation: Option<u32>,
    ) -> Result<Ended, AdapterError> {
        self.end_held(consumer, message_key, ending, generation).await
    }

    async fn keys(&self, filter: &HeldFilter, limit: u32) -> Result<Vec<HeldKey>, AdapterError> {
        self.heads(filter, limit).await
    }

    async fn summary(&self, consumer: &str) -> Result<HeldSummary, AdapterError> {
        let sql = format!(
            "SELECT count(*), count(*) FILTER (WHERE state = 'waiting' AND condemned IS NOT NULL), {NOW} - min(held_since) FROM {} WHERE consumer = ?",
            self.database.tables.held()
        );
        let mut connection = self.database.connection().await?;
        let (messages, quarantined, oldest): (i64, i64, Option<i64>) = sqlx::query_as(AssertSqlSafe(sql))
            .bind(consumer)
            .fetch_one(&mut *connection)
            .await
            .map_err(|error| adapter("cannot read held messages", error))?;
        Ok(HeldSummary {
            messages: messages.unsigned_abs(),
            quarantined: quarantined.unsigned_abs(),
            oldest: oldest.map(duration),
        })
    }
}
