//! Dead rows as an operator reads, retries and discards them.

use backstop_core::AdapterError;
use backstop_core::dead_rows::{BuriedRow, DeadGroup, DeadRowFilter};
use sqlx::query::Query;
use sqlx::sqlite::SqliteArguments;
use sqlx::{AssertSqlSafe, Row, Sqlite};

use crate::commit::commit;
use crate::database::{Database, plain};
use crate::error::adapter;
use crate::outbox_row::{COLUMNS, buried_row};
use crate::tx::SqliteTx;

/// The rows that [`filtered`] binds: a list of numbers, and three values or nulls.
const MEANT: &str = "(?1 = '[]' OR seq IN (SELECT value FROM json_each(?1))) \
                     AND (?2 IS NULL OR CAST(destination AS TEXT) = ?2) AND (?3 IS NULL OR reason = ?3) \
                     AND (?4 IS NULL OR n <= ?4)";

/// What a row keeps in the outbox. Its age is that of its waiting, so `created_at` is left to its default.
const KEPT: &str =
    "id, source, destination, routing_key, key, kind, subject, event_time, content_type, headers, payload";

fn filtered<'a>(sql: String, filter: &DeadRowFilter) -> Query<'a, Sqlite, SqliteArguments> {
    sqlx::query(AssertSqlSafe(sql))
        .bind(serde_json::json!(filter.seqs).to_string())
        .bind(filter.destination.clone())
        .bind(filter.reason.clone())
        .bind(filter.up_to)
}

pub(crate) async fn read(
    database: &Database,
    filter: &DeadRowFilter,
    limit: u32,
) -> Result<Vec<BuriedRow>, AdapterError> {
    let dead = database.tables.outbox_dead();
    let sql =
        format!("SELECT {COLUMNS}, n, reason, error, died_at FROM {dead} WHERE {MEANT} ORDER BY n LIMIT ?5");
    let mut connection = database.connection().await?;
    let rows = filtered(sql, filter).bind(limit).fetch_all(&mut *connection).await;
    let rows = rows.map_err(|error| adapter("cannot read dead rows of the outbox", error))?;
    Ok(rows.iter().map(buried_row).collect())
}

pub(crate) async fn groups(
    database: &Database,
    filter: &DeadRowFilter,
) -> Result<Vec<DeadGroup>, AdapterError> {
    let failed = |error| adapter("cannot count dead rows of the outbox", error);
    let dead = database.tables.outbox_dead();
    let sql = format!(
        "SELECT CAST(CAST(destination AS TEXT) AS BLOB), CAST(reason AS BLOB), count(*), max(n) FROM {dead} \
         WHERE {MEANT} GROUP BY 1, 2 ORDER BY 3 DESC, 1, 2"
    );
    let mut connection = database.connection().await?;
    let rows = filtered(sql, filter).fetch_all(&mut *connection).await.map_err(failed)?;
    let text = |bytes: Option<Vec<u8>>| String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned();
    let group = |row: &sqlx::sqlite::SqliteRow| {
        let rows: i64 = row.try_get(2)?;
        Ok(DeadGroup {
            destination: text(row.try_get(0)?),
            reason: text(row.try_get(1)?),
            rows: rows.unsigned_abs(),
            last: row.try_get(3)?,
        })
    };
    rows.iter().map(group).collect::<Result<_, _>>().map_err(failed)
}

/// Moves rows in one transaction, which has the file's write lock from its beginning.
pub(crate) async fn retry(
    database: &Database,
    filter: &DeadRowFilter,
    limit: u32,
) -> Result<u64, AdapterError> {
    const WHAT: &str = "cannot move dead rows back into the outbox";
    let mut tx = database.write(WHAT).await?;
    let taken = choose(database, &mut tx, filter, limit).await.map_err(|error| adapter(WHAT, error))?;
    let (outbox, dead) = (database.tables.outbox(), database.tables.outbox_dead());
    let insert = format!(
        "INSERT INTO {outbox} ({KEPT}) SELECT {KEPT} FROM {dead} WHERE n IN (SELECT value FROM json_each(?)) \
         ORDER BY seq, n"
    );
    sqlx::query(AssertSqlSafe(insert))
        .bind(taken.clone())
        .execute(&mut *tx)
        .await
        .map_err(|error| adapter(WHAT, error))?;
    remove(database, tx, &taken, WHAT).await
}

pub(crate) async fn discard(
    database: &Database,
    filter: &DeadRowFilter,
    limit: u32,
) -> Result<u64, AdapterError> {
    const WHAT: &str = "cannot discard dead rows";
    let mut tx = database.write(WHAT).await?;
    let taken = choose(database, &mut tx, filter, limit).await.map_err(|error| adapter(WHAT, error))?;
    remove(database, tx, &taken, WHAT).await
}

/// The numbers of the rows that are meant, as a JSON list.
async fn choose(
    database: &Database,
    tx: &mut SqliteTx,
    filter: &DeadRowFilter,
    limit: u32,
) -> Result<String, sqlx::Error> {
    let dead = database.tables.outbox_dead();
    let sql = format!("SELECT n FROM {dead} WHERE {MEANT} ORDER BY seq, n LIMIT ?5");
    let rows = filtered(sql, filter).bind(limit).fetch_all(&mut **tx).await?;
    let numbers: Vec<i64> = rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?;
    Ok(serde_json::json!(numbers).to_string())
}

async fn remove(
    database: &Database,
    mut tx: SqliteTx,
    numbers: &str,
    what: &str,
) -> Result<u64, AdapterError> {
    let dead = database.tables.outbox_dead();
    let sql = format!("DELETE FROM {dead} WHERE n IN (SELECT value FROM json_each(?))");
    let removed = sqlx::query(AssertSqlSafe(sql))
        .bind(numbers.to_owned())
        .execute(&mut *tx)
        .await
        .map_err(|error| adapter(what, error))?
        .rows_affected();
    commit(tx).await.map_err(plain)?;
    Ok(removed)
}
