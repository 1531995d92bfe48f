//! The outbox as the relay uses it.

use std::sync::Arc;
use std::time::Duration;

use backstop_core::AdapterError;
use backstop_core::lease::{Holder, Lease, Leases};
use backstop_core::outbox::{BuriedRow, DeadRow, OutboxReader, OutboxStatus, OutboxStore, RowId};
use futures_core::future::BoxFuture;
use sqlx::{AssertSqlSafe, Executor, PgPool, Row};

use crate::envelope::storable;
use crate::failure::{code, failed};
use crate::outbox_row::{self, columns};
use crate::reader::{PgOutboxReader, ReaderSql};
use crate::tables::PgTables;
use crate::{held_row, lease, time};

/// Rows that one DELETE takes.
const DELETE_AT_ONCE: usize = 10_000;

/// Moves rows while the lease is locked against a takeover; a stale owner finds no lease, and moves nothing.
const BURY: &str = "
    WITH l AS MATERIALIZED (
        SELECT 1 FROM {lease} WHERE name = $1 AND owner = $2 AND token = $3 FOR SHARE
    ), d AS (
        DELETE FROM {outbox} AS o USING unnest($4::bigint[], $5::text[], $6::text[], $7::text[])
            AS w (seq, id, reason, error)
        WHERE o.seq = w.seq AND o.id = w.id AND EXISTS (SELECT FROM l)
        RETURNING o.*, w.reason, w.error
    ), i AS (
        INSERT INTO {dead} (seq, id, source, destination, routing_key, key, kind, subject, event_time, content_type,
                            headers, payload, created_at, reason, error)
        SELECT seq, id, source, destination, routing_key, key, kind, subject, event_time, content_type,
               headers, payload, created_at, reason, error FROM d
    )
    SELECT EXISTS (SELECT FROM l)";

const MAY_BURY: &str = "GRANT SELECT, DELETE ON {outbox} TO the relay's user; GRANT SELECT, INSERT ON {dead} TO it; \
                        GRANT SELECT, INSERT, UPDATE ON {lease} TO it";

const STATUS: &str = "
    SELECT (SELECT count(*) FROM {outbox}), (SELECT count(*) FROM {dead}),
           (SELECT extract(epoch FROM clock_timestamp() - greatest(created_at, '1970-01-01 00:00:00+00'))::float8
            FROM {outbox} WHERE isfinite(created_at) ORDER BY seq LIMIT 1)";

/// Reads and empties an outbox.
#[derive(Debug, Clone)]
pub struct PgOutboxStore {
    pool: PgPool,
    tables: PgTables,
    full_scan: Option<Duration>,
    reader_sql: Arc<ReaderSql>,
}

impl PgOutboxStore {
    /// The outbox among those tables. Every minute its readers scan it in full for rows that they missed.
    pub fn new(pool: PgPool, tables: PgTables) -> Self {
        let reader_sql = Arc::new(ReaderSql::new(&tables));
        Self { pool, tables, full_scan: Some(Duration::from_secs(60)), reader_sql }
    }

    /// How often readers scan in full; `None` for never. Defaults to every minute. The scan finds nothing unless
    /// writers break the contract of the table, such as by taking numbers ahead of their INSERT.
    #[must_use]
    pub fn full_scan(mut self, every: Option<Duration>) -> Self {
        self.full_scan = every;
        self
    }

    async fn delete_some(&self, rows: &[RowId]) -> Result<(), AdapterError> {
        let numbers = rows.iter().map(|row| row.seq.to_string()).collect::<Vec<_>>().join(",");
        // As bytes in hexadecimal, because any writer may choose them: there is nothing of theirs to escape.
        let ids = rows.iter().map(|row| bytea(&row.id)).collect::<Vec<_>>().join(",");
        // One string, so one round trip and one transaction, and planned for these very numbers: a plan that was
        // cached while the table was empty would scan it.
        let sql = format!(
            "SET LOCAL enable_seqscan = off; DELETE FROM {} AS o \
             USING unnest('{{{numbers}}}'::bigint[], E'{{{ids}}}'::bytea[]) AS w (seq, id) \
             WHERE o.seq = ANY('{{{numbers}}}'::bigint[]) \
             AND o.seq = w.seq AND convert_to(o.id, 'UTF8') = w.id",
            self.tables.outbox(),
        );
        self.pool
            .execute(sqlx::raw_sql(AssertSqlSafe(sql)))
            .await
            .map_err(failed("delete published rows from the outbox"))?;
        Ok(())
    }

    async fn move_to_dead(&self, lease: &Lease, rows: &[DeadRow]) -> Result<bool, AdapterError> {
        let seqs: Vec<i64> = rows.iter().map(|row| row.seq).collect();
        let ids: Vec<&str> = rows.iter().map(|row| &*row.id).collect();
        let reasons: Vec<String> = rows.iter().map(|row| storable(&row.reason)).collect();
        let errors: Vec<String> = rows.iter().map(|row| storable(&row.error)).collect();
        sqlx::query_scalar(AssertSqlSafe(self.tables.fill(BURY)))
            .bind(&lease.name)
            .bind(&lease.owner)
            .bind(lease.token)
            .bind(seqs)
            .bind(ids)
            .bind(reasons)
            .bind(errors)
            .fetch_one(&self.pool)
            .await
            .map_err(|error| {
                let denied = code(&error) == Some("42501");
                let error = failed("move rows from the outbox to the dead rows")(error);
                match denied {
                    true => error.with_hint(self.tables.fill(MAY_BURY)),
                    false => error,
                }
            })
    }

    async fn read_buried(&self, limit: u32) -> Result<Vec<BuriedRow>, AdapterError> {
        let died_at = time::clamped("died_at");
        let sql = format!("SELECT {}, reason, error, {died_at} FROM {{dead}} ORDER BY n LIMIT $1", columns());
        let rows = sqlx::query(AssertSqlSafe(self.tables.fill(&sql)))
            .bind(i64::from(limit))
            .fetch_all(&self.pool)
            .await
            .map_err(failed("read the dead rows"))?;
        let read = |row: &sqlx::postgres::PgRow| {
            let (outbox_row, _) = outbox_row::read(row)?;
            let (reason, error, died_at) = (row.try_get(13)?, row.try_get(14)?, row.try_get(15)?);
            Ok(BuriedRow { row: outbox_row, reason, error, died_at })
        };
        rows.iter().map(read).collect::<Result<_, _>>().map_err(failed("read the dead rows"))
    }
}

/// The text's bytes as an element of an array in an escape string.
fn bytea(text: &str) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digits = |byte: u8| [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]];
    let mut element = String::with_capacity(2 * text.len() + 7);
    element.push_str(r#""\\\\x"#);
    element.extend(text.bytes().flat_map(digits).map(char::from));
    element.push('"');
    element
}

impl Leases for PgOutboxStore {
    fn acquire<'a>(
        &'a self,
        name: &'a str,
        owner: &'a str,
        ttl: Duration,
    ) -> BoxFuture<'a, Result<Option<Lease>, AdapterError>> {
        Box::pin(lease::acquire(&self.pool, &self.tables, name, owner, ttl))
    }

    fn release<'a>(&'a self, lease: &'a Lease) -> BoxFuture<'a, Result<(), AdapterError>> {
        Box::pin(lease::release(&self.pool, &self.tables, lease))
    }

    fn holder<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<Holder>, AdapterError>> {
        Box::pin(lease::holder(&self.pool, &self.tables, name))
    }
}

impl OutboxStore for PgOutboxStore {
    fn reader(&self) -> Box<dyn OutboxReader> {
        Box::new(PgOutboxReader::new(self.pool.clone(), Arc::clone(&self.reader_sql), self.full_scan))
    }

    fn delete<'a>(&'a self, rows: &'a [RowId]) -> BoxFuture<'a, Result<(), AdapterError>> {
        Box::pin(async move {
            for rows in rows.chunks(DELETE_AT_ONCE) {
                self.delete_some(rows).await?;
            }
            Ok(())
        })
    }

    fn bury<'a>(
        &'a self,
        lease: &'a Lease,
        rows: &'a [DeadRow],
    ) -> BoxFuture<'a, Result<bool, AdapterError>> {
        Box::pin(self.move_to_dead(lease, rows))
    }

    fn status(&self) -> BoxFuture<'_, Result<OutboxStatus, AdapterError>> {
        Box::pin(async move {
            let (pending, dead, oldest): (i64, i64, Option<f64>) =
                sqlx::query_as(AssertSqlSafe(self.tables.fill(STATUS)))
                    .fetch_one(&self.pool)
                    .await
                    .map_err(failed("count the rows of the outbox"))?;
            let count = |rows: i64| u64::try_from(rows).unwrap_or(0);
            Ok(OutboxStatus {
                pending: count(pending),
                oldest: oldest.map(held_row::seconds),
                dead: count(dead),
            })
        })
    }

    fn buried(&self, limit: u32) -> BoxFuture<'_, Result<Vec<BuriedRow>, AdapterError>> {
        Box::pin(self.read_buried(limit))
    }
}
