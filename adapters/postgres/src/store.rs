//! The outbox as the relay uses it.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use backstop_core::AdapterError;
use backstop_core::dead_rows::{BuriedRow, DeadGroup, DeadRowFilter, DeadRows};
use backstop_core::lease::{Holder, Lease, Leases};
use backstop_core::outbox::{DeadRow, OutboxReader, OutboxStatus, OutboxStore, RowId};
use backstop_core::scheduled::ScheduledRows;
use chrono::{DateTime, Utc};
use futures_core::future::BoxFuture;
use sqlx::{AssertSqlSafe, Executor, PgPool};

use crate::dead_rows::Place;
use crate::debezium::DebeziumOutbox;
use crate::failure::{failed, failed_or_denied};
use crate::layout::Layout;
use crate::literal::{array, quoted};
use crate::reader::{PgOutboxReader, ReaderSql};
use crate::seat::Seat;
use crate::storable::storable;
use crate::stranded::LIMITS;
use crate::tables::PgTables;
use crate::{dead_rows, held_row, lease, scheduled, time};

/// Rows that one DELETE takes.
const DELETE_AT_ONCE: usize = 10_000;

/// Up to how many numbers for each row to be deleted a walk over all of them is quicker than a search for each.
const CLOSE: u64 = 4;

/// Moves rows while the lease is locked against a takeover; a stale owner finds no lease, and moves nothing.
const BURY: &str = "
    WITH l AS MATERIALIZED (
        SELECT 1 FROM {lease} WHERE name = $1 AND owner = $2 AND token = $3 FOR SHARE
    ), d AS (
        DELETE FROM {outbox} AS o USING unnest($4::bigint[], $5::text[], $6::text[], $7::text[])
            AS w (seq, id, reason, error)
        WHERE o.seq = w.seq AND {id} = w.id AND EXISTS (SELECT FROM l)
        RETURNING o.*, w.reason AS backstop_reason, w.error AS backstop_error, {original} AS backstop_original
    ), i AS (
        INSERT INTO {dead} (seq, id, source, destination, routing_key, key, kind, subject, event_time, content_type,
                            headers, payload, created_at, reason, error, origin, original)
        SELECT seq, id, source, destination, routing_key, key, kind, subject, event_time, content_type,
               headers, payload, coalesce(created_at, now()), backstop_reason, backstop_error, {origin},
               backstop_original
        FROM (SELECT {select}, o.backstop_reason, o.backstop_error, o.backstop_original FROM d AS o) AS r
    )
    SELECT EXISTS (SELECT FROM l)";

const MAY_BURY: &str = "GRANT SELECT, DELETE ON {outbox} TO the relay's user; GRANT SELECT, INSERT ON {dead} TO it; \
                        GRANT SELECT, INSERT, UPDATE ON {lease} TO it";

const STATUS: &str = "
    SELECT (SELECT count(*) FROM {rows}), (SELECT count(*) FROM {dead} WHERE {mine}),
           (SELECT count(*) FROM {scheduled} WHERE {origin}::text IS NULL),
           (SELECT {next} FROM {scheduled} WHERE {origin}::text IS NULL ORDER BY publish_after LIMIT 1),
           (SELECT extract(epoch FROM clock_timestamp() - greatest(created_at, '1970-01-01 00:00:00+00'))::float8
            FROM {rows} WHERE isfinite(created_at) ORDER BY seq LIMIT 1)";

/// Reads and empties an outbox.
#[derive(Debug, Clone)]
pub struct PgOutboxStore {
    pool: PgPool,
    /// For the lease.
    seat: Seat,
    tables: PgTables,
    full_scan: Option<Duration>,
    reader_sql: Arc<ReaderSql>,
    layout: Arc<Layout>,
}

impl PgOutboxStore {
    /// The outbox among those tables. Every minute its readers scan it in full for rows that they missed.
    pub fn new(pool: PgPool, tables: PgTables) -> Self {
        let layout = Layout::standard(&tables);
        Self::with_layout(pool, tables, layout)
    }

    /// The same for a table of Debezium's layout; leases and dead rows are among those tables. Nothing is scheduled in
    /// it.
    ///
    /// # Errors
    /// When a name cannot be one, the table or a column is missing, or the database cannot be asked.
    pub async fn debezium(
        pool: PgPool,
        tables: PgTables,
        outbox: &DebeziumOutbox,
    ) -> Result<Self, AdapterError> {
        let layout = outbox.layout(&pool, &tables).await?;
        Ok(Self::with_layout(pool, tables, layout))
    }

    fn with_layout(pool: PgPool, tables: PgTables, layout: Layout) -> Self {
        let reader_sql = Arc::new(ReaderSql::new(&tables, &layout));
        let full_scan = Some(Duration::from_secs(60));
        Self { pool, seat: Seat::default(), tables, full_scan, reader_sql, layout: Arc::new(layout) }
    }

    /// How often readers scan in full; `None` for never. Defaults to every minute. The scan finds nothing unless
    /// writers break the contract of the table, such as by taking numbers ahead of their INSERT.
    #[must_use]
    pub fn full_scan(mut self, every: Option<Duration>) -> Self {
        self.full_scan = every;
        self
    }

    fn place(&self) -> Place<'_> {
        Place { pool: &self.pool, tables: &self.tables, layout: &self.layout }
    }

    async fn delete_some(&self, rows: &[RowId]) -> Result<(), AdapterError> {
        self.pool
            .execute(sqlx::raw_sql(AssertSqlSafe(deletion(&self.layout, rows))))
            .await
            .map_err(failed("delete published rows from the outbox"))?;
        Ok(())
    }

    async fn move_to_dead(&self, lease: &Lease, rows: &[DeadRow]) -> Result<bool, AdapterError> {
        let seqs: Vec<i64> = rows.iter().map(|row| row.seq).collect();
        let ids: Vec<&str> = rows.iter().map(|row| &*row.id).collect();
        let reasons: Vec<String> = rows.iter().map(|row| storable(&row.reason)).collect();
        let errors: Vec<String> = rows.iter().map(|row| storable(&row.error)).collect();
        sqlx::query_scalar(AssertSqlSafe(self.layout.fill(&self.tables, BURY)))
            .bind(&lease.name)
            .bind(&lease.owner)
            .bind(lease.token)
            .bind(seqs)
            .bind(ids)
            .bind(reasons)
            .bind(errors)
            .fetch_one(&self.pool)
            .await
            .map_err(failed_or_denied("move rows from the outbox to the dead rows", &self.tables, MAY_BURY))
    }
}

/// Deletes those rows where number and id are both as given.
///
/// One string, so one round trip and one transaction, and planned for these very numbers: a plan that was cached
/// while the table was empty would scan it. Nor do its statistics matter, which may be of that time too: what is left
/// to the planner is a walk over the index of the key, and a hash or merge join.
fn deletion(Layout { table, id: id_of, .. }: &Layout, rows: &[RowId]) -> String {
    let mut numbers = String::with_capacity(10 * rows.len());
    for row in rows {
        let comma = if numbers.is_empty() { "" } else { "," };
        // Writing to a string cannot fail.
        let _ = write!(numbers, "{comma}{}", row.seq);
    }
    // Any writer may choose them.
    let ids = quoted(&array(rows.iter().map(|row| &row.id)));
    let first = rows.iter().map(|row| row.seq).min().unwrap_or_default();
    let last = rows.iter().map(|row| row.seq).max().unwrap_or_default();
    // Numbers that lie close together, as almost always, are found by one walk rather than by a search for each.
    let place = if last.abs_diff(first) < CLOSE * rows.len() as u64 {
        format!("BETWEEN '{first}'::bigint AND '{last}'::bigint")
    } else {
        format!("= ANY('{{{numbers}}}'::bigint[])")
    };
    format!(
        "{LIMITS}; \
         SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off; SET LOCAL enable_nestloop = off; \
         DELETE FROM {table} AS o USING unnest('{{{numbers}}}'::bigint[], {ids}::text[]) AS w (seq, id) \
         WHERE o.seq {place} AND o.seq = w.seq AND ({id_of}) COLLATE \"C\" = w.id"
    )
}

impl Leases for PgOutboxStore {
    fn acquire<'a>(
        &'a self,
        name: &'a str,
        owner: &'a str,
        ttl: Duration,
    ) -> BoxFuture<'a, Result<Option<Lease>, AdapterError>> {
        Box::pin(lease::acquire(&self.pool, &self.seat, &self.tables, name, owner, ttl))
    }

    fn release<'a>(&'a self, lease: &'a Lease) -> BoxFuture<'a, Result<(), AdapterError>> {
        Box::pin(lease::release(&self.pool, &self.tables, lease))
    }

    fn report<'a>(&'a self, lease: &'a Lease, text: &'a str) -> BoxFuture<'a, Result<(), AdapterError>> {
        Box::pin(lease::report(&self.pool, &self.tables, lease, text))
    }

    fn holder<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<Holder>, AdapterError>> {
        Box::pin(lease::holder(&self.pool, &self.tables, name))
    }
}

impl DeadRows for PgOutboxStore {
    fn buried<'a>(
        &'a self,
        filter: &'a DeadRowFilter,
        limit: u32,
    ) -> BoxFuture<'a, Result<Vec<BuriedRow>, AdapterError>> {
        Box::pin(dead_rows::read(self.place(), filter, limit))
    }

    fn buried_groups<'a>(
        &'a self,
        filter: &'a DeadRowFilter,
    ) -> BoxFuture<'a, Result<Vec<DeadGroup>, AdapterError>> {
        Box::pin(dead_rows::groups(self.place(), filter))
    }

    fn retry_buried<'a>(
        &'a self,
        filter: &'a DeadRowFilter,
        limit: u32,
    ) -> BoxFuture<'a, Result<u64, AdapterError>> {
        Box::pin(dead_rows::retry(self.place(), filter, limit))
    }

    fn discard_buried<'a>(
        &'a self,
        filter: &'a DeadRowFilter,
        limit: u32,
    ) -> BoxFuture<'a, Result<u64, AdapterError>> {
        Box::pin(dead_rows::discard(self.place(), filter, limit))
    }
}

impl ScheduledRows for PgOutboxStore {
    fn promote<'a>(
        &'a self,
        lease: &'a Lease,
        rows: u32,
        bytes: u64,
    ) -> BoxFuture<'a, Result<Option<u64>, AdapterError>> {
        if self.layout.origin.is_some() {
            return Box::pin(std::future::ready(Ok(Some(0))));
        }
        Box::pin(scheduled::promote(&self.pool, &self.tables, lease, rows, bytes))
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
            type Counts = (i64, i64, i64, Option<DateTime<Utc>>, Option<f64>);
            let status = STATUS.replace("{next}", &time::clamped("publish_after"));
            let (pending, dead, scheduled, next_due, oldest): Counts =
                sqlx::query_as(AssertSqlSafe(self.layout.fill(&self.tables, &status)))
                    .fetch_one(&self.pool)
                    .await
                    .map_err(failed("count the rows of the outbox"))?;
            let count = |rows: i64| u64::try_from(rows).unwrap_or(0);
            Ok(OutboxStatus {
                pending: count(pending),
                oldest: oldest.map(held_row::seconds),
                dead: count(dead),
                scheduled: count(scheduled),
                next_due,
            })
        })
    }
}
