//! Dead rows as an operator reads, retries and discards them.

use backstop_core::AdapterError;
use backstop_core::dead_rows::{BuriedRow, DeadGroup, DeadRowFilter};
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, PgPool, Postgres, Row};

use crate::failure::{failed, failed_or_denied};
use crate::layout::Layout;
use crate::outbox_row::{self, columns};
use crate::tables::PgTables;
use crate::time;

/// Where dead rows are, and where they came from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place<'a> {
    pub(crate) pool: &'a PgPool,
    pub(crate) tables: &'a PgTables,
    pub(crate) layout: &'a Layout,
}

/// The rows that [`filtered`] binds: an array of numbers, and three values or nulls.
const MEANT: &str = "{mine} AND (cardinality($1::bigint[]) = 0 OR seq = ANY($1)) \
                     AND ($2::text IS NULL OR destination = $2) \
                     AND ($3::text IS NULL OR reason = $3) AND ($4::bigint IS NULL OR n <= $4)";

/// The rows that one of several gets. All of them lock in the same order, and whoever comes late finds what is left.
const TAKEN: &str = "DELETE FROM {dead} WHERE n = ANY (ARRAY(\
                     SELECT n FROM {dead} WHERE {meant} ORDER BY seq, n LIMIT $5 FOR UPDATE))";

/// Numbers are given in the order of the old ones: the select sorts before the identity column is evaluated. The age
/// of a row is that of its waiting, so `created_at` is left to its default.
const RETRY: &str = "
    WITH d AS ({taken} RETURNING *), i AS (
        INSERT INTO {outbox} (id, source, destination, routing_key, key, kind, subject, event_time, content_type,
                              headers, payload)
        SELECT id, source, destination, routing_key, key, kind, subject, event_time, content_type, headers, payload
        FROM d ORDER BY seq, n
    )
    SELECT count(*) FROM d";

/// The same for a table that is not ours: the row is put together again from what was kept of it. Numbers are given
/// anew, and ids that the table gives by itself are not.
const RESTORE: &str = "
    WITH d AS ({taken} RETURNING *), i AS (
        INSERT INTO {outbox} ({columns}) OVERRIDING SYSTEM VALUE
        SELECT {restored} FROM d CROSS JOIN LATERAL jsonb_populate_record(NULL::{outbox}, d.original) AS p
        ORDER BY d.seq, d.n
    )
    SELECT count(*) FROM d";

const GROUPS: &str = "SELECT destination, reason, count(*), max(n) FROM {dead} WHERE {meant} \
                      GROUP BY destination, reason ORDER BY count(*) DESC, destination, reason";

const MAY_RETRY: &str =
    "GRANT INSERT ON {outbox} TO the relay's user; GRANT SELECT, UPDATE, DELETE ON {dead} TO it";

impl Place<'_> {
    fn sql(&self, statement: &str) -> AssertSqlSafe<String> {
        let statement = statement.replace("{taken}", TAKEN).replace("{meant}", MEANT);
        AssertSqlSafe(self.layout.fill(self.tables, &statement))
    }

    fn retry(&self) -> AssertSqlSafe<String> {
        let Some(origin) = &self.layout.origin else { return self.sql(RETRY) };
        let restored: Vec<String> = origin.columns.iter().map(|column| format!("p.{column}")).collect();
        let statement = RESTORE.replace("{columns}", &origin.columns.join(", "));
        self.sql(&statement.replace("{restored}", &restored.join(", ")))
    }
}

fn filtered(sql: AssertSqlSafe<String>, filter: &DeadRowFilter) -> Query<'_, Postgres, PgArguments> {
    sqlx::query(sql).bind(&filter.seqs).bind(&filter.destination).bind(&filter.reason).bind(filter.up_to)
}

pub(crate) async fn read(
    place: Place<'_>,
    filter: &DeadRowFilter,
    limit: u32,
) -> Result<Vec<BuriedRow>, AdapterError> {
    let died_at = time::clamped("died_at");
    let statement = format!(
        "SELECT {}, reason, error, {died_at}, n FROM {{dead}} WHERE {{meant}} ORDER BY n LIMIT $5",
        columns()
    );
    let rows = filtered(place.sql(&statement), filter)
        .bind(i64::from(limit))
        .fetch_all(place.pool)
        .await
        .map_err(failed("read the dead rows"))?;
    rows.iter().map(buried).collect::<Result<_, _>>().map_err(failed("read the dead rows"))
}

fn buried(row: &PgRow) -> Result<BuriedRow, sqlx::Error> {
    let (outbox_row, _) = outbox_row::read(row)?;
    Ok(BuriedRow {
        n: row.try_get(16)?,
        row: outbox_row,
        reason: row.try_get(13)?,
        error: row.try_get(14)?,
        died_at: row.try_get(15)?,
    })
}

pub(crate) async fn groups(place: Place<'_>, filter: &DeadRowFilter) -> Result<Vec<DeadGroup>, AdapterError> {
    let rows = filtered(place.sql(GROUPS), filter)
        .fetch_all(place.pool)
        .await
        .map_err(failed("count the dead rows"))?;
    let group = |row: &PgRow| {
        let rows: i64 = row.try_get(2)?;
        Ok(DeadGroup {
            destination: row.try_get(0)?,
            reason: row.try_get(1)?,
            rows: rows.unsigned_abs(),
            last: row.try_get(3)?,
        })
    };
    rows.iter().map(group).collect::<Result<_, _>>().map_err(failed("count the dead rows"))
}

pub(crate) async fn retry(place: Place<'_>, filter: &DeadRowFilter, limit: u32) -> Result<u64, AdapterError> {
    let moved: i64 = filtered(place.retry(), filter)
        .bind(i64::from(limit))
        .fetch_one(place.pool)
        .await
        .and_then(|row| row.try_get(0))
        .map_err(failed_or_denied("move dead rows back into the outbox", place.tables, MAY_RETRY))?;
    Ok(moved.unsigned_abs())
}

pub(crate) async fn discard(
    place: Place<'_>,
    filter: &DeadRowFilter,
    limit: u32,
) -> Result<u64, AdapterError> {
    let done = filtered(place.sql("{taken}"), filter)
        .bind(i64::from(limit))
        .execute(place.pool)
        .await
        .map_err(failed_or_denied("discard dead rows", place.tables, MAY_RETRY))?;
    Ok(done.rows_affected())
}
