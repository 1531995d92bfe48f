//! Letters of messages that were done with, and died again under the same id.

use backstop_core::AdapterError;
use backstop_core::ledger::{CLOSINGS, DIED_AGAIN, Letter, LetterStatus, died_again};
use sqlx::{AssertSqlSafe, SqliteConnection};

use super::SqliteLedger;
use crate::error::adapter;
use crate::letter_row::{open_again, replace};
use crate::time::column_millis;

const DOING: &str = "cannot open a letter again";

/// A letter whose message was done with.
struct Closed {
    n: i64,
    was: LetterStatus,
    on_hold: bool,
}

impl SqliteLedger {
    /// Opens the letter of that id again, if it is closed and the new one tells of another death; says whether it did.
    pub(super) async fn reopen(
        &self,
        tx: &mut SqliteConnection,
        letter: &Letter,
    ) -> Result<bool, AdapterError> {
        let Some(Closed { n, was, on_hold }) = self.closed_before(&mut *tx, letter).await? else {
            return Ok(false);
        };
        let group = self.group_of(&mut *tx, letter).await?;
        let table = self.database.tables.letter();
        let mut open = letter.clone();
        (open.outcome, open.redrive) = (None, None);
        let query = if on_hold { open_again(&table, &open) } else { replace(&table, &open, group) };
        query.execute(&mut *tx).await.map_err(|error| adapter(DOING, error))?;
        if !on_hold {
            self.forget_terms(&mut *tx, n).await?;
            self.write_terms(&mut *tx, n, letter).await?;
        }
        self.count_minute(&mut *tx, letter, group).await?;
        self.leave_out(&mut *tx, n).await?;
        let told = died_again(was, on_hold, letter.error.as_deref());
        self.note(&mut *tx, n, DIED_AGAIN, Some(&told)).await?;
        self.supersede(tx, letter).await?;
        Ok(true)
    }

    /// The letter of that id, if it was closed before this one died, and no other letter stands for
    /// the message: none of its generation or a later one is open or being redriven. Where a consumer's clock is ahead, a
    /// copy of the death that is closed died after that as well: it has the moment of that.
    async fn closed_before(
        &self,
        tx: &mut SqliteConnection,
        letter: &Letter,
    ) -> Result<Option<Closed>, AdapterError> {
        let Some(dead_at) = letter.dead_at.filter(|_| letter.status == LetterStatus::Open) else {
            return Ok(None);
        };
        let (letters, events) = (self.database.tables.letter(), self.database.tables.letter_event());
        let sql = format!(
            "SELECT l.n, l.status, l.hold IS NOT NULL FROM {letters} AS l WHERE l.id = ?1 AND l.status NOT IN ('open', 'redriving') \
             AND ?2 > coalesce((SELECT {closed_at} FROM {events} AS e WHERE e.letter = l.n \
                                AND e.what IN (SELECT value FROM json_each(?3))), {collected_at}) \
             AND (l.dead_at IS NULL OR ?2 <> l.seen_at) \
             AND NOT EXISTS (SELECT 1 FROM {letters} AS o WHERE o.message_key = l.message_key \
                             AND o.consumer IS l.consumer AND o.generation >= l.generation AND o.n <> l.n \
                             AND o.status IN ('open', 'redriving'))",
            closed_at = column_millis("max(e.at)"),
            collected_at = column_millis("l.collected_at"),
        );
        let found: Option<(i64, String, bool)> = sqlx::query_as(AssertSqlSafe(sql))
            .bind(&letter.id)
            .bind(dead_at.timestamp_millis())
            .bind(serde_json::json!(CLOSINGS).to_string())
            .fetch_optional(tx)
            .await
            .map_err(|error| adapter(DOING, error))?;
        Ok(found.and_then(|(n, was, on_hold)| Some(Closed { n, was: LetterStatus::parse(&was)?, on_hold })))
    }

    async fn forget_terms(&self, tx: &mut SqliteConnection, n: i64) -> Result<(), AdapterError> {
        let sql = format!("DELETE FROM {} WHERE letter = ?", self.database.tables.letter_term());
        let done = sqlx::query(AssertSqlSafe(sql)).bind(n).execute(tx).await;
        done.map(drop).map_err(|error| adapter(DOING, error))
    }

    /// Counts the death by the minute, as the trigger does for a letter that is new; one of a letter on hold in the group of
    /// the later error, too.
    async fn count_minute(
        &self,
        tx: &mut SqliteConnection,
        letter: &Letter,
        group: i64,
    ) -> Result<(), AdapterError> {
        let sql = format!(
            "INSERT INTO {} (grp, minute, letters) SELECT ?1, ?2 / 60000, 1 \
             WHERE ?2 BETWEEN (unixepoch() - 3600) * 1000 AND (unixepoch() + 300) * 1000 \
             ON CONFLICT (grp, minute) DO UPDATE SET letters = letters + 1",
            self.database.tables.letter_minute()
        );
        let dead_at = letter.dead_at.map(|at| at.timestamp_millis());
        let done = sqlx::query(AssertSqlSafe(sql)).bind(group).bind(dead_at).execute(tx).await;
        done.map(drop).map_err(|error| adapter(DOING, error))
    }

    /// Redrives that have not sent it were made for the death that is over: as it was closed, they would have dropped it.
    async fn leave_out(&self, tx: &mut SqliteConnection, n: i64) -> Result<(), AdapterError> {
        let sql = format!(
            "UPDATE {} SET step = 'dropped' WHERE letter = ? AND step = 'pending' \
             AND redrive IN (SELECT n FROM {} WHERE run IN ('running', 'paused'))",
            self.database.tables.redrive_letter(),
            self.database.tables.redrive()
        );
        let done = sqlx::query(AssertSqlSafe(sql)).bind(n).execute(tx).await;
        done.map(drop).map_err(|error| adapter(DOING, error))
    }
}
