//! The audit log.

use backstop_core::ledger::{AuditEntry, AuditFilter, AuditStep, NewAuditEntry};
use backstop_core::{AdapterError, BoxError, FaultKind};
use chrono::DateTime;
use sqlx::sqlite::SqliteRow;
use sqlx::{AssertSqlSafe, Row};

use super::SqliteLedger;
use super::choice::Builder;
use crate::commit::commit;
use crate::database::plain;
use crate::error::adapter;

impl SqliteLedger {
    pub(super) async fn write_entry(&self, entry: &NewAuditEntry) -> Result<(), AdapterError> {
        let sql = format!(
            "INSERT INTO {} (deed, step, who, role, origin, action, object, redrive, letters, because, error) \
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            self.database.tables.audit()
        );
        let mut tx = self.database.write("cannot write into the audit log").await?;
        sqlx::query(AssertSqlSafe(sql))
            .bind(&entry.deed)
            .bind(entry.step.as_str())
            .bind(&entry.who)
            .bind(&entry.role)
            .bind(&entry.origin)
            .bind(&entry.action)
            .bind(&entry.object)
            .bind(entry.redrive.as_deref())
            .bind(entry.letters.map(|letters| i64::try_from(letters).unwrap_or(i64::MAX)))
            .bind(entry.because.as_deref())
            .bind(entry.error.as_deref())
            .execute(&mut *tx)
            .await
            .map_err(|error| adapter("cannot write into the audit log", error))?;
        commit(tx).await.map_err(plain)
    }

    pub(super) async fn read_entries(
        &self,
        filter: &AuditFilter,
        limit: u32,
    ) -> Result<Vec<AuditEntry>, AdapterError> {
        let mut sql = self.entries();
        if let Some(before) = filter.before {
            sql.push(" AND a.n < ").push_bind(before);
        }
        if let Some(action) = &filter.action {
            sql.push(" AND substr(a.action, 1, ").push_bind(count(action)).push(") = ");
            sql.push_bind(action.clone());
        }
        if let Some(who) = &filter.who {
            sql.push(" AND a.who = ").push_bind(who.clone());
        }
        if let Some(redrive) = &filter.redrive {
            sql.push(" AND a.redrive = ").push_bind(redrive.clone());
        }
        sql.push(" ORDER BY a.n DESC LIMIT ").push_bind(limit);
        let mut connection = self.database.connection().await?;
        let rows = sql.build().fetch_all(&mut *connection).await;
        let rows = rows.map_err(|error| adapter("cannot read the audit log", error))?;
        rows.iter().map(read).collect::<Result<_, BoxError>>().map_err(|error| {
            AdapterError::new(FaultKind::Invalid, "an entry of the audit log cannot be read")
                .with_hint("use at least the version of Backstop that wrote it")
                .with_source(error)
        })
    }

    /// All entries; the beginning of what has ended is left out.
    fn entries(&self) -> Builder {
        let audit = self.database.tables.audit();
        Builder::new(format!(
            "SELECT a.n, a.at, a.deed, a.step, a.who, a.role, a.origin, a.action, a.object, a.redrive, a.letters, \
             a.because, a.error FROM {audit} AS a WHERE (a.step <> 'begun' OR NOT EXISTS (\
             SELECT 1 FROM {audit} AS e WHERE e.deed = a.deed AND e.step <> 'begun'))"
        ))
    }
}

/// Characters, as SQLite counts them.
fn count(text: &str) -> i64 {
    i64::try_from(text.chars().count()).unwrap_or(i64::MAX)
}

fn read(row: &SqliteRow) -> Result<AuditEntry, BoxError> {
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
    let at = DateTime::from_timestamp_millis(row.try_get(1)?).ok_or("its time is none")?;
    Ok(AuditEntry { n: row.try_get(0)?, at, entry })
}
