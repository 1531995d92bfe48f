//! Scheduled rows on their way into the outbox.

use backstop_core::AdapterError;
use backstop_core::lease::Lease;
use backstop_core::scheduled::fitting;
use sqlx::{AssertSqlSafe, MySqlPool};

use crate::contest::contested;
use crate::failure::failed;
use crate::lease;
use crate::outbox_row::{KEPT, KEPT_SOUND};
use crate::scoped::Scoped;
use crate::tables::MySqlTables;

const DOING: &str = "move scheduled rows into the outbox";

const IS_DUE: &str = "SELECT EXISTS (SELECT 1 FROM {scheduled} WHERE publish_after <= UTC_TIMESTAMP(6))";

/// What is due, and how large it is. Who takes a row back at this moment is not waited for.
const CHOOSE: &str = "
    SELECT n, CAST(COALESCE(OCTET_LENGTH(payload), 0) + COALESCE(OCTET_LENGTH(`key`), 0)
                   + COALESCE(OCTET_LENGTH(headers), 0) AS SIGNED)
    FROM {scheduled} FORCE INDEX (due) WHERE publish_after <= UTC_TIMESTAMP(6)
    ORDER BY publish_after, n LIMIT ? FOR UPDATE SKIP LOCKED";

/// Moves due rows in one transaction, in which nobody can take the lease over. Where nothing is due it only reads.
pub(crate) async fn promote(
    pool: &MySqlPool,
    tables: &MySqlTables,
    owned: &Lease,
    rows: u32,
    bytes: u64,
) -> Result<Option<u64>, AdapterError> {
    let is_due: bool = sqlx::query_scalar(AssertSqlSafe(tables.fill(IS_DUE)))
        .fetch_one(pool)
        .await
        .map_err(failed(DOING))?;
    if !is_due {
        return Ok(Some(0));
    }
    contested(DOING, async || {
        let mut scoped = Scoped::begin(pool).await.map_err(failed(DOING))?;
        if !lease::stands(&mut scoped, tables, owned).await.map_err(failed(DOING))? {
            scoped.rollback().await;
            return Ok(None);
        }
        let moved = move_due(&mut scoped, tables, rows, bytes).await?;
        scoped.commit().await.map_err(failed(DOING))?;
        Ok(Some(moved))
    })
    .await
}

async fn move_due(
    scoped: &mut Scoped,
    tables: &MySqlTables,
    rows: u32,
    bytes: u64,
) -> Result<u64, AdapterError> {
    let due: Vec<(i64, i64)> = sqlx::query_as(AssertSqlSafe(tables.fill(CHOOSE)))
        .bind(rows.max(1))
        .fetch_all(&mut **scoped)
        .await
        .map_err(failed(DOING))?;
    let fits = fitting(due.iter().map(|(_, size)| size.unsigned_abs()), bytes);
    let numbers: Vec<String> = due[..fits].iter().map(|(n, _)| n.to_string()).collect();
    if numbers.is_empty() {
        return Ok(0);
    }
    let these = numbers.join(", ");
    let sql = format!(
        "INSERT INTO {{outbox}} ({KEPT}) SELECT {KEPT_SOUND} FROM {{scheduled}} WHERE n IN ({these}) \
         ORDER BY publish_after, n; DELETE FROM {{scheduled}} WHERE n IN ({these})"
    );
    scoped.run(tables.fill(&sql)).await.map_err(|stopped| failed(DOING)(stopped.error))?;
    Ok(numbers.len() as u64)
}
