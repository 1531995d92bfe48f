//! Scheduled rows on their way into the outbox.

use backstop_core::AdapterError;
use backstop_core::lease::Lease;
use backstop_core::scheduled::fitting;
use sqlx::{AssertSqlSafe, SqliteConnection};

use crate::commit::commit;
use crate::database::{Database, plain};
use crate::error::adapter;
use crate::lease;
use crate::outbox_row::SIZE;

const WHAT: &str = "cannot move scheduled rows into the outbox";

/// As the index has it, so that it is used.
const DUE: &str = "unixepoch(publish_after, 'subsec') <= unixepoch('now', 'subsec')";
const ORDER: &str = "unixepoch(publish_after, 'subsec'), n";

/// Moves due rows in one transaction, in which nobody can take the lease over. Where nothing is due it only reads.
pub(crate) async fn promote(
    database: &Database,
    owned: &Lease,
    rows: u32,
    bytes: u64,
) -> Result<Option<u64>, AdapterError> {
    let scheduled = database.tables.outbox_scheduled();
    let mut connection = database.connection().await?;
    let is_due: bool =
        sqlx::query_scalar(AssertSqlSafe(format!("SELECT EXISTS (SELECT 1 FROM {scheduled} WHERE {DUE})")))
            .fetch_one(&mut *connection)
            .await
            .map_err(|error| adapter(WHAT, error))?;
    drop(connection);
    if !is_due {
        return Ok(Some(0));
    }
    let mut tx = database.write(WHAT).await?;
    if !lease::stands(database, &mut tx, owned).await? {
        tx.rollback().await;
        return Ok(None);
    }
    let moved = move_due(database, &mut tx, rows, bytes).await.map_err(|error| adapter(WHAT, error))?;
    commit(tx).await.map_err(plain)?;
    Ok(Some(moved))
}

async fn move_due(
    database: &Database,
    connection: &mut SqliteConnection,
    rows: u32,
    bytes: u64,
) -> Result<u64, sqlx::Error> {
    const NAMES: &str = "id, source, destination, routing_key, key, kind, subject, event_time, content_type, \
                         headers, payload";
    let (scheduled, outbox) = (database.tables.outbox_scheduled(), database.tables.outbox());
    let choose = format!("SELECT n, {SIZE} FROM {scheduled} WHERE {DUE} ORDER BY {ORDER} LIMIT ?");
    let due: Vec<(i64, i64)> =
        sqlx::query_as(AssertSqlSafe(choose)).bind(rows.max(1)).fetch_all(&mut *connection).await?;
    let fits = fitting(due.iter().map(|(_, size)| size.unsigned_abs()), bytes);
    let numbers: Vec<i64> = due[..fits].iter().map(|(n, _)| *n).collect();
    let numbers = serde_json::json!(numbers).to_string();
    let these = "n IN (SELECT value FROM json_each(?))";
    let insert = format!(
        "INSERT INTO {outbox} ({NAMES}) SELECT {NAMES} FROM {scheduled} WHERE {these} ORDER BY {ORDER}"
    );
    sqlx::query(AssertSqlSafe(insert)).bind(numbers.clone()).execute(&mut *connection).await?;
    let delete = format!("DELETE FROM {scheduled} WHERE {these}");
    let deleted = sqlx::query(AssertSqlSafe(delete)).bind(numbers).execute(connection).await?;
    Ok(deleted.rows_affected())
}
