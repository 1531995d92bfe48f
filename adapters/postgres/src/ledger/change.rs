//! What people do with letters by hand.

use backstop_core::AdapterError;
use backstop_core::ledger::{Change, LetterFilter};
use sqlx::Row;

use super::choice::{self, begin};
use super::{PgLedger, stored};
use crate::failure::failed;
use crate::storable::storable;
use crate::stranded;

impl PgLedger {
    /// The letters are locked, so that one that somebody puts on hold meanwhile is judged with its hold.
    pub(super) async fn tell_all(
        &self,
        filter: &LetterFilter,
        what: &str,
        detail: Option<&str>,
    ) -> Result<u64, AdapterError> {
        let mut sql = begin(&self.tables, "WITH picked AS (SELECT l.n FROM {letter} AS l WHERE true");
        choice::meant(&mut sql, &self.tables, filter);
        sql.push(self.tables.fill(
            " ORDER BY l.n FOR UPDATE), told AS (INSERT INTO {event} (letter, what, detail) SELECT n, ",
        ));
        sql.push_bind(storable(what)).push(", ").push_bind(stored(detail));
        sql.push(" FROM picked) SELECT count(*) FROM picked");
        let doing = || failed("tell of dead letters");
        let mut tx = stranded::begin(&self.pool).await.map_err(doing())?;
        let row = choice::query(&mut sql).fetch_one(&mut *tx).await;
        let told: i64 = row.and_then(|row| row.try_get(0)).map_err(doing())?;
        tx.commit().await.map_err(doing())?;
        Ok(u64::try_from(told).unwrap_or(0))
    }

    pub(super) async fn change_some(
        &self,
        filter: &LetterFilter,
        change: &Change,
        limit: u32,
    ) -> Result<u64, AdapterError> {
        let (applies, set) = match change {
            Change::Discard { .. } => {
                (" AND l.hold IS NULL AND l.status IN ('open', 'redriving')", "status = 'discarded'")
            }
            Change::Hold { .. } => (" AND l.hold IS NULL", "hold = "),
            Change::Release { .. } => (" AND l.hold IS NOT NULL", "hold = "),
        };
        let mut sql = begin(&self.tables, "WITH picked AS (SELECT l.n FROM {letter} AS l WHERE true");
        choice::meant(&mut sql, &self.tables, filter);
        sql.push(applies).push(" ORDER BY l.n LIMIT ").push_bind(i64::from(limit));
        sql.push(self.tables.fill(" FOR UPDATE), done AS (UPDATE {letter} AS l SET "));
        sql.push(set);
        match change {
            Change::Discard { .. } => {}
            Change::Hold { because } => drop(sql.push_bind(storable(because))),
            Change::Release { .. } => drop(sql.push_bind(stored(None))),
        }
        sql.push(" FROM picked WHERE l.n = picked.n RETURNING l.n)");
        if matches!(change, Change::Discard { .. }) {
            sql.push(self.tables.fill(
                ", stepped AS (UPDATE {cohort} AS c SET step = 'dropped' FROM done WHERE c.letter = done.n \
                 AND c.step IN ('sending', 'waiting', 'silent', 'unknown'))",
            ));
        }
        sql.push(self.tables.fill(", told AS (INSERT INTO {event} (letter, what, detail) SELECT n, "));
        sql.push_bind(change.event()).push(", ").push_bind(storable(change.because()));
        sql.push(" FROM done) SELECT count(*) FROM done");
        let doing = || failed("change dead letters");
        let mut tx = stranded::begin(&self.pool).await.map_err(doing())?;
        let row = choice::query(&mut sql).fetch_one(&mut *tx).await;
        let done: i64 = row.and_then(|row| row.try_get(0)).map_err(doing())?;
        tx.commit().await.map_err(doing())?;
        Ok(u64::try_from(done).unwrap_or(0))
    }
}
