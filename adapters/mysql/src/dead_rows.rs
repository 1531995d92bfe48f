//! Dead rows as an operator reads, retries and discards them.

use backstop_core::AdapterError;
use backstop_core::dead_rows::{BuriedRow, DeadGroup, DeadRowFilter};
use chrono::Utc;
use sqlx::mysql::MySqlRow;
use sqlx::{AssertSqlSafe, MySqlPool, Row};

use crate::contest::contested;
use crate::failure::failed;
use crate::outbox_row::{self, COLUMNS, COUNT, KEPT};
use crate::scoped::Scoped;
use crate::tables::MySqlTables;
use crate::{literal, time};

/// Which rows are meant, compared byte for byte: the collation takes a text with spaces at its end for the one without.
fn meant(filter: &DeadRowFilter) -> String {
    let numbers = || filter.seqs.iter().map(i64::to_string).collect::<Vec<_>>().join(", ");
    let text = |column: &str, text: &String| {
        format!("CAST({column} AS BINARY) = {}", literal::bytes(text.as_bytes()))
    };
    let conditions = [
        (!filter.seqs.is_empty()).then(|| format!("seq IN ({})", numbers())),
        filter.destination.as_ref().map(|name| text("destination", name)),
        filter.reason.as_ref().map(|reason| text("reason", reason)),
        filter.up_to.map(|n| format!("n <= {n}")),
    ];
    let conditions: Vec<String> = conditions.into_iter().flatten().collect();
    if conditions.is_empty() { "TRUE".to_owned() } else { conditions.join(" AND ") }
}

pub(crate) async fn read(
    pool: &MySqlPool,
    tables: &MySqlTables,
    filter: &DeadRowFilter,
    limit: u32,
) -> Result<Vec<BuriedRow>, AdapterError> {
    let doing = || failed("read the dead rows");
    let sql = format!(
        "SELECT {COLUMNS}, reason, error, CAST(died_at AS CHAR), n FROM {{dead}} WHERE {} ORDER BY n LIMIT {limit}",
        meant(filter)
    );
    let rows = sqlx::query(AssertSqlSafe(tables.fill(&sql))).persistent(false);
    let rows = rows.fetch_all(pool).await.map_err(doing())?;
    rows.iter().map(buried_row).collect::<Result<_, _>>().map_err(doing())
}

fn buried_row(row: &MySqlRow) -> Result<BuriedRow, sqlx::Error> {
    let (outbox_row, _) = outbox_row::read(row)?;
    let died_at: String = row.try_get(COUNT + 2)?;
    Ok(BuriedRow {
        n: row.try_get(COUNT + 3)?,
        row: outbox_row,
        reason: row.try_get(COUNT)?,
        error: row.try_get(COUNT + 1)?,
        died_at: time::parse(&died_at).unwrap_or_else(Utc::now),
    })
}

pub(crate) async fn groups(
    pool: &MySqlPool,
    tables: &MySqlTables,
    filter: &DeadRowFilter,
) -> Result<Vec<DeadGroup>, AdapterError> {
    let sql = format!(
        "SELECT CAST(destination AS BINARY), CAST(reason AS BINARY), COUNT(*), MAX(n) FROM {{dead}} WHERE {} \
         GROUP BY 1, 2 ORDER BY 3 DESC, 1, 2",
        meant(filter)
    );
    let rows: Vec<(Vec<u8>, Vec<u8>, i64, i64)> = sqlx::query_as(AssertSqlSafe(tables.fill(&sql)))
        .persistent(false)
        .fetch_all(pool)
        .await
        .map_err(failed("count the dead rows"))?;
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    let group = |(destination, reason, rows, last): (Vec<u8>, Vec<u8>, i64, i64)| DeadGroup {
        destination: text(destination),
        reason: text(reason),
        rows: rows.unsigned_abs(),
        last,
    };
    Ok(rows.into_iter().map(group).collect())
}

pub(crate) async fn retry(
    pool: &MySqlPool,
    tables: &MySqlTables,
    filter: &DeadRowFilter,
    limit: u32,
) -> Result<u64, AdapterError> {
    let back = format!(
        "INSERT INTO {{outbox}} ({KEPT}) SELECT {KEPT} FROM {{dead}} WHERE n IN ({{these}}) ORDER BY seq, n; "
    );
    take(pool, tables, filter, limit, &back, "move dead rows back into the outbox").await
}

pub(crate) async fn discard(
    pool: &MySqlPool,
    tables: &MySqlTables,
    filter: &DeadRowFilter,
    limit: u32,
) -> Result<u64, AdapterError> {
    take(pool, tables, filter, limit, "", "discard dead rows").await
}

/// Takes rows away from the dead in one transaction, after `before` was done with `{these}`. Of several who want the
/// same row, all but one wait for its lock, and find that it is gone.
async fn take(
    pool: &MySqlPool,
    tables: &MySqlTables,
    filter: &DeadRowFilter,
    limit: u32,
    before: &str,
    doing: &str,
) -> Result<u64, AdapterError> {
    let choose =
        format!("SELECT n FROM {{dead}} WHERE {} ORDER BY seq, n LIMIT {limit} FOR UPDATE", meant(filter));
    contested(doing, async || {
        let mut scoped = Scoped::begin(pool).await.map_err(failed(doing))?;
        let chosen: Vec<i64> = sqlx::query_scalar(AssertSqlSafe(tables.fill(&choose)))
            .persistent(false)
            .fetch_all(&mut *scoped)
            .await
            .map_err(failed(doing))?;
        if !chosen.is_empty() {
            let these = chosen.iter().map(i64::to_string).collect::<Vec<_>>().join(", ");
            let sql =
                format!("{before}DELETE FROM {{dead}} WHERE n IN ({{these}})").replace("{these}", &these);
            scoped.run(tables.fill(&sql)).await.map_err(|stopped| failed(doing)(stopped.error))?;
        }
        scoped.commit().await.map_err(failed(doing))?;
        Ok(chosen.len() as u64)
    })
    .await
}
