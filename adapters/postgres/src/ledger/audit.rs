//! The audit log.

use backstop_core::ledger::{AuditEntry, AuditFilter, AuditStep, NewAuditEntry};
use backstop_core::{AdapterError, BoxError, FaultKind};
use sqlx::Row;
use sqlx::postgres::PgRow;

use super::choice::{self, begin};
use super::{PgLedger, stored};
use crate::failure::failed;
use crate::storable::storable;
use crate::time;

const WRITE: &str = "
    INSERT INTO {audit} (deed, step, who, role, origin, action, object, redrive, letters, because, error)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)";

/// The beginning of what has ended is left out.
const READ: &str = "
    SELECT a.n, {at}, a.deed, a.step, a.who, a.role, a.origin, a.action, a.object, a.redrive, a.letters, a.because, a.error
    FROM {audit} AS a WHERE (a.step <> 'begun' OR NOT EXISTS (
        SELECT FROM {audit} AS e WHERE e.deed = a.deed AND e.step <> 'begun'))";

impl PgLedger {
    pub(super) async fn write_entry(&self, entry: &NewAuditEntry) -> Result<(), AdapterError> {
        sqlx::query(self.sql(WRITE))
            .bind(storable(&entry.deed))
            .bind(entry.step.as_str())
            .bind(storable(&entry.who))
            .bind(storable(&entry.role))
            .bind(storable(&entry.origin))
            .bind(storable(&entry.action))
            .bind(storable(&entry.object))
            .bind(stored(entry.redrive.as_deref()))
            .bind(entry.letters.map(|letters| i64::try_from(letters).unwrap_or(i64::MAX)))
            .bind(stored(entry.because.as_deref()))
            .bind(stored(entry.error.as_deref()))
            .execute(&self.pool)
            .await
            .map(drop)
            .map_err(failed("write into the audit log"))
    }

    pub(super) async fn read_entries(
        &self,
        filter: &AuditFilter,
        limit: u32,
    ) -> Result<Vec<AuditEntry>, AdapterError> {
        let mut sql = begin(&self.tables, &READ.replace("{at}", &time::clamped("a.at")));
        if let Some(before) = filter.before {
            sql.push(" AND a.n < ").push_bind(before);
        }
        if let Some(action) = &filter.action {
            sql.push(" AND starts_with(a.action, ").push_bind(storable(action)).push(")");
        }
        if let Some(who) = &filter.who {
            sql.push(" AND a.who = ").push_bind(storable(who));
        }
        if let Some(redrive) = &filter.redrive {
            sql.push(" AND a.redrive = ").push_bind(storable(redrive));
        }
        sql.push(" ORDER BY a.n DESC LIMIT ").push_bind(i64::from(limit));
        let rows =
            choice::query(&mut sql).fetch_all(&self.pool).await.map_err(failed("read the audit log"))?;
        rows.iter().map(read).collect::<Result<_, BoxError>>().map_err(|error| {
            AdapterError::new(FaultKind::Invalid, "an entry of the audit log cannot be read")
                .with_hint("use at least the version of Backstop that wrote it")
                .with_source(error)
        })
    }
}

fn read(row: &PgRow) -> Result<AuditEntry, BoxError> {
    let entry = NewAuditEntry {
        deed: row.try_get(2)?,
        step: AuditStep::parse(row.try_get(3)?).ok_or("its step is unknown")?,
        who: row.try_get(4)?,
        role: row.try_get(5)?,
        origin: row.try_get(6)?,
        action: row.try_get(7)?,
        object: row.try_get(8)?,
        redrive: row.try_get(9)?,
        letters: row.try_get::<Option<i64>, _>(10)?.and_then(|letters| u64::try_from(letters).ok()),
        because: row.try_get(11)?,
        error: row.try_get(12)?,
    };
    Ok(AuditEntry { n: row.try_get(0)?, at: row.try_get(1)?, entry })
}
