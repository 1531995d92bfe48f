//! Letters whose time is over: found for the archive, and deleted.

use std::collections::HashMap;

use backstop_core::AdapterError;
use backstop_core::ledger::{Expired, Expiry, LetterEvent};
use chrono::{DateTime, Utc};

use super::{PgLedger, stored_id};
use crate::failure::failed;
use crate::{ledger_row, stranded};

/// Whether the time of a letter `l` is over: $1 is the status, $2 the time before which nothing may have happened last.
const OVER: &str = "l.status = $1 AND l.hold IS NULL AND l.seen_at < $2 AND l.collected_at < $2
    AND NOT EXISTS (SELECT FROM {event} AS e WHERE e.letter = l.n AND e.at >= $2)
    AND NOT EXISTS (SELECT FROM {cohort} AS c JOIN {redrive} AS r ON r.n = c.redrive
                    WHERE c.letter = l.n AND r.run IN ('running', 'paused'))";

const FIND: &str = "
    SELECT {columns} FROM {letter} AS l
    WHERE {over} AND ($3::text IS NULL OR l.n > (SELECT n FROM {letter} WHERE id = $3)) ORDER BY l.n LIMIT $4";

const HISTORIES: &str =
    "SELECT l.id, {at}, e.what, e.detail FROM {events} WHERE l.id = ANY ($1) ORDER BY e.n";

/// Nobody is waited for, and nobody waits: letters that somebody is at are left for the next time.
const LOCK: &str = "SELECT n FROM {letter} WHERE id = ANY ($1) FOR UPDATE SKIP LOCKED";

/// Asked once they are locked: a redrive that took one of them a moment ago is seen, and none can any more.
const PICK: &str = "SELECT l.n FROM {letter} AS l WHERE l.n = ANY ($3) AND {over}";

/// What the trigger is going to take away from the counts of redrives: what became of their letters stays true.
const KEEP_COUNTS: &str = "
    WITH gone AS (
        SELECT redrive, canary, step, count(*) AS letters FROM {cohort} WHERE letter = ANY ($1) GROUP BY 1, 2, 3
    )
    UPDATE {redrive_count} AS c SET letters = c.letters + gone.letters FROM gone
    WHERE (c.redrive, c.canary, c.step) = (gone.redrive, gone.canary, gone.step)";

const DELETE: &str = "DELETE FROM {letter} WHERE n = ANY ($1)";

impl PgLedger {
    pub(super) async fn find_expired(
        &self,
        expiry: &Expiry,
        after: Option<&str>,
        limit: u32,
    ) -> Result<Vec<Expired>, AdapterError> {
        let find = FIND.replace("{columns}", &ledger_row::columns("l")).replace("{over}", OVER);
        let rows = sqlx::query(self.sql(&find))
            .bind(expiry.status.as_str())
            .bind(expiry.before)
            .bind(after.map(stored_id))
            .bind(i64::from(limit))
            .fetch_all(&self.pool)
            .await
            .map_err(failed("look for dead letters whose time is over"))?;
        let letters: Vec<_> = rows.iter().map(ledger_row::read).collect::<Result<_, _>>()?;
        let ids: Vec<&str> = letters.iter().map(|letter| letter.id.as_str()).collect();
        let mut histories = self.histories(&ids).await?;
        let expired = letters.into_iter().map(|letter| {
            let history = histories.remove(&letter.id).unwrap_or_default();
            Expired { letter, history }
        });
        Ok(expired.collect())
    }

    async fn histories(&self, ids: &[&str]) -> Result<HashMap<String, Vec<LetterEvent>>, AdapterError> {
        type Row = (String, DateTime<Utc>, String, Option<String>);
        let rows: Vec<Row> = sqlx::query_as(self.history_sql(HISTORIES))
            .bind(ids)
            .fetch_all(&self.pool)
            .await
            .map_err(failed("read the history of dead letters"))?;
        let mut histories = HashMap::<_, Vec<_>>::new();
        for (id, at, what, detail) in rows {
            histories.entry(id).or_default().push(LetterEvent { at, what, detail });
        }
        Ok(histories)
    }

    pub(super) async fn delete_expired(&self, expiry: &Expiry, ids: &[String]) -> Result<u64, AdapterError> {
        let doing = || failed("delete dead letters whose time is over");
        let mut tx = stranded::begin(&self.pool).await.map_err(doing())?;
        let locked: Vec<i64> = sqlx::query_scalar(self.sql(LOCK))
            .bind(ids.iter().map(|id| stored_id(id)).collect::<Vec<_>>())
            .fetch_all(&mut *tx)
            .await
            .map_err(doing())?;
        let picked: Vec<i64> = sqlx::query_scalar(self.sql(&PICK.replace("{over}", OVER)))
            .bind(expiry.status.as_str())
            .bind(expiry.before)
            .bind(locked)
            .fetch_all(&mut *tx)
            .await
            .map_err(doing())?;
        sqlx::query(self.sql(KEEP_COUNTS)).bind(&picked).execute(&mut *tx).await.map_err(doing())?;
        let deleted = sqlx::query(self.sql(DELETE)).bind(&picked).execute(&mut *tx).await.map_err(doing())?;
        tx.commit().await.map_err(doing())?;
        Ok(deleted.rows_affected())
    }
}
