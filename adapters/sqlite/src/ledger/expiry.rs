//! Letters whose time is over: found for the archive, and deleted.

use backstop_core::AdapterError;
use backstop_core::ledger::{Expired, Expiry};
use chrono::SecondsFormat;
use sqlx::{AssertSqlSafe, SqliteConnection};

use super::SqliteLedger;
use super::choice::{Builder, ceiling};
use crate::commit::commit;
use crate::database::plain;
use crate::error::adapter;
use crate::letter_row::{columns, letter};
use crate::tables::SqliteTables;

/// Conditions that the time of a letter `l` is over.
fn over(sql: &mut Builder, tables: &SqliteTables, expiry: &Expiry) {
    sql.push("l.status = ").push_bind(expiry.status.as_str());
    sql.push(" AND l.hold IS NULL AND l.seen_at < ").push_bind(ceiling(expiry.before));
    sql.push(format!(
        " AND NOT EXISTS (SELECT 1 FROM {} AS e WHERE e.letter = l.n AND e.at >= ",
        tables.letter_event()
    ));
    // As the column's default writes it: texts of one form are in the order of their times.
    sql.push_bind(expiry.before.to_rfc3339_opts(SecondsFormat::Millis, true));
    sql.push(format!(
        ") AND NOT EXISTS (SELECT 1 FROM {} AS c JOIN {} AS r ON r.n = c.redrive \
         WHERE c.letter = l.n AND r.run IN ('running', 'paused'))",
        tables.redrive_letter(),
        tables.redrive()
    ));
}

impl SqliteLedger {
    pub(super) async fn find_expired(
        &self,
        expiry: &Expiry,
        after: Option<&str>,
        limit: u32,
    ) -> Result<Vec<Expired>, AdapterError> {
        let tables = &self.database.tables;
        let mut sql = Builder::new(format!("SELECT {} FROM {} AS l WHERE ", columns("l"), tables.letter()));
        over(&mut sql, tables, expiry);
        if let Some(after) = after {
            sql.push(format!(" AND l.n > (SELECT n FROM {} WHERE id = ", tables.letter()));
            sql.push_bind(after.to_owned()).push(")");
        }
        sql.push(" ORDER BY l.n LIMIT ").push_bind(i64::from(limit));
        let rows = {
            let mut connection = self.database.connection().await?;
            let rows = sql.build().fetch_all(&mut *connection).await;
            rows.map_err(|error| adapter("cannot look for dead letters whose time is over", error))?
        };
        let mut expired = Vec::new();
        for row in &rows {
            let letter = letter(row)?;
            let history = self.read_history(&letter.id).await?;
            expired.push(Expired { letter, history });
        }
        Ok(expired)
    }

    pub(super) async fn delete_expired(&self, expiry: &Expiry, ids: &[String]) -> Result<u64, AdapterError> {
        let tables = &self.database.tables;
        let mut tx = self.database.write("cannot delete dead letters").await?;
        let mut sql = Builder::new(format!("SELECT l.n FROM {} AS l WHERE ", tables.letter()));
        over(&mut sql, tables, expiry);
        let ids = serde_json::json!(ids).to_string();
        sql.push(" AND l.id IN (SELECT value FROM json_each(").push_bind(ids).push("))");
        let picked = sql.build_query_scalar().fetch_all(&mut *tx).await;
        let picked: Vec<i64> = picked.map_err(|error| adapter("cannot delete dead letters", error))?;
        let picked_json = serde_json::json!(picked).to_string();
        self.keep_counts(&mut tx, &picked_json).await?;
        let delete = format!("DELETE FROM {} WHERE n IN (SELECT value FROM json_each(?))", tables.letter());
        let deleted = sqlx::query(AssertSqlSafe(delete)).bind(picked_json).execute(&mut *tx).await;
        let deleted = deleted.map_err(|error| adapter("cannot delete dead letters", error))?;
        commit(tx).await.map_err(plain)?;
        Ok(deleted.rows_affected())
    }

    /// What the trigger is going to take away from the counts of redrives: what became of their letters stays true.
    async fn keep_counts(
        &self,
        connection: &mut SqliteConnection,
        letters: &str,
    ) -> Result<(), AdapterError> {
        let sql = format!(
            "UPDATE {counts} AS c SET letters = c.letters + gone.letters FROM (\
                 SELECT redrive, canary, step, count(*) AS letters FROM {cohort} \
                 WHERE letter IN (SELECT value FROM json_each(?)) GROUP BY 1, 2, 3) AS gone \
             WHERE c.redrive = gone.redrive AND c.canary = gone.canary AND c.step = gone.step",
            counts = self.database.tables.redrive_count(),
            cohort = self.database.tables.redrive_letter()
        );
        let kept = sqlx::query(AssertSqlSafe(sql)).bind(letters.to_owned()).execute(connection).await;
        kept.map(drop).map_err(|error| adapter("cannot keep the counts of a redrive", error))
    }
}
