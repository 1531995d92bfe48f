//! Scheduled rows on their way into the outbox.

use backstop_core::AdapterError;
use backstop_core::lease::Lease;
use sqlx::{AssertSqlSafe, PgPool};

use crate::failure::failed_or_denied;
use crate::tables::PgTables;

/// One statement, and fenced: the lease is locked against a takeover, and a stale owner finds none. Where nothing is
/// due, nothing is locked or written. Rows that somebody else has locked are skipped, because whoever waited for them
/// here would keep the lease from its own renewal.
///
/// `statement_timestamp()` rather than `clock_timestamp()`, which no index can be asked for. Numbers are given in the
/// order of time: the select sorts before the identity column is evaluated. The age of a row is that of its waiting in
/// the outbox, so `created_at` is left to its default.
const PROMOTE: &str = "
    WITH l AS MATERIALIZED (
        SELECT 1 FROM {lease} WHERE name = $1 AND owner = $2 AND token = $3
        AND EXISTS (SELECT FROM {scheduled} WHERE publish_after <= statement_timestamp()) FOR SHARE
    ), due AS MATERIALIZED (
        SELECT n, publish_after, coalesce(octet_length(payload), 0) + coalesce(octet_length(key), 0) AS size
        FROM {scheduled} WHERE publish_after <= statement_timestamp() AND EXISTS (SELECT FROM l)
        ORDER BY publish_after, n LIMIT $4 FOR UPDATE SKIP LOCKED
    ), fits AS (
        SELECT n, sum(size) OVER (ORDER BY publish_after, n ROWS UNBOUNDED PRECEDING) AS bytes,
               row_number() OVER (ORDER BY publish_after, n) AS place FROM due
    ), d AS (
        DELETE FROM {scheduled} AS s USING fits AS f WHERE s.n = f.n AND (f.bytes <= $5 OR f.place = 1)
        RETURNING s.*
    ), i AS (
        INSERT INTO {outbox} (id, source, destination, routing_key, key, kind, subject, event_time, content_type,
                              headers, payload)
        SELECT id, source, destination, routing_key, key, kind, subject, event_time, content_type, headers, payload
        FROM d ORDER BY publish_after, n
    )
    SELECT (SELECT count(*) FROM d), EXISTS (SELECT FROM l)
           OR NOT EXISTS (SELECT FROM {scheduled} WHERE publish_after <= statement_timestamp())";

const MAY_PROMOTE: &str = "GRANT SELECT, UPDATE, DELETE ON {scheduled} TO the relay's user; \
                           GRANT INSERT ON {outbox} TO it; GRANT SELECT, INSERT, UPDATE ON {lease} TO it";

pub(crate) async fn promote(
    pool: &PgPool,
    tables: &PgTables,
    lease: &Lease,
    rows: u32,
    bytes: u64,
) -> Result<Option<u64>, AdapterError> {
    let (moved, is_owner): (i64, bool) = sqlx::query_as(AssertSqlSafe(tables.fill(PROMOTE)))
        .bind(&lease.name)
        .bind(&lease.owner)
        .bind(lease.token)
        .bind(i64::from(rows.max(1)))
        .bind(i64::try_from(bytes).unwrap_or(i64::MAX))
        .fetch_one(pool)
        .await
        .map_err(failed_or_denied("move scheduled rows into the outbox", tables, MAY_PROMOTE))?;
    Ok(is_owner.then(|| moved.unsigned_abs()))
}
