//! Reads the outbox in `seq` order without skipping a row that commits late.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use backstop_core::AdapterError;
use backstop_core::outbox::{Claimed, DeadRow, OutboxReader, OutboxRow, Reread};
use futures_core::future::BoxFuture;
use futures_util::TryStreamExt;
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, PgPool, Postgres, Row};

use crate::failure::failed;
use crate::layout::Layout;
use crate::outbox_row::{self, columns};
use crate::progress::{Before, Progress};
use crate::scoped::Scoped;
use crate::stranded;
use crate::tables::PgTables;

/// Every read is a scan of the key's index from the frontier on: plans that were made while the table was empty, or
/// by statistics of an hour ago, must not turn it into a scan of the table. JIT compilation would only cost time.
const PLANS: &str = "SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off; SET LOCAL enable_sort = off; \
                     SET LOCAL max_parallel_workers_per_gather = 0; SET LOCAL jit = off";

/// How long the sequence alone is asked whether there is something to read. Rows whose numbers do not come from it are
/// found after that.
const WHOLE: Duration = Duration::from_secs(1);

/// Unread rows that are read to the end and thrown away rather than closing the connection.
const MAX_WASTE: usize = 4 << 20;

#[derive(Debug)]
pub(crate) struct ReaderSql {
    outbox: String,
    read: Arc<str>,
    reread: Arc<str>,
    numbers: Arc<str>,
    fetch: Arc<str>,
}

impl ReaderSql {
    pub(crate) fn new(tables: &PgTables, layout: &Layout) -> Self {
        let columns = columns();
        let fill = |statement: String| Arc::<str>::from(layout.fill(tables, &statement));
        Self {
            outbox: layout.table.clone(),
            // One statement, hence one snapshot: a row in a gap comes before a later one of its key.
            read: fill(format!(
                "(SELECT o.* FROM unnest($2::bigint[], $3::bigint[]) AS gap (a, z) CROSS JOIN LATERAL (\
                 SELECT {columns} FROM {{rows}} WHERE seq BETWEEN gap.a AND gap.z ORDER BY seq) AS o LIMIT $4) \
                 UNION ALL (SELECT {columns} FROM {{rows}} WHERE seq > $1 \
                 AND (seq, id) NOT IN (SELECT * FROM unnest($6::bigint[], $7::text[])) ORDER BY seq LIMIT $5)"
            )),
            reread: fill(format!(
                "SELECT {columns} FROM {{rows}} WHERE seq BETWEEN $1 AND $2 AND destination = $3 \
                 AND routing_key IS NOT DISTINCT FROM $4 AND ($5::text IS NULL OR key = $5) ORDER BY seq LIMIT $6"
            )),
            numbers: fill("SELECT seq FROM {rows} WHERE seq BETWEEN $1 AND $2 ORDER BY seq".to_owned()),
            fetch: fill(format!("SELECT {columns} FROM {{rows}} WHERE seq = ANY($1) ORDER BY seq")),
        }
    }

    /// Last number given, when the server was started, and who holds locks on the outbox. Locks of prepared transactions have no process, and
    /// count all the same.
    fn pulse(&self, sequence: Option<&str>) -> String {
        // A sequence that was never called names the number that it will give first.
        let last = sequence.map_or("NULL::bigint".to_owned(), |name| {
            format!("(SELECT CASE WHEN is_called THEN last_value ELSE last_value - 1 END FROM {name})")
        });
        format!(
            "SELECT {last}, pg_postmaster_start_time()::text, CASE WHEN $1 THEN ARRAY(SELECT virtualtransaction FROM pg_locks \
             WHERE locktype = 'relation' AND mode = 'RowExclusiveLock' AND granted \
             AND relation = '{}'::regclass \
             AND database = (SELECT oid FROM pg_database WHERE datname = current_database())) END",
            self.outbox
        )
    }
}

type Bound<'q> = Query<'q, Postgres, PgArguments>;

/// A reader of one outbox.
#[derive(Debug)]
pub(crate) struct PgOutboxReader {
    pool: PgPool,
    sql: Arc<ReaderSql>,
    full_scan: Option<Duration>,
    /// The statement that reads the pulse, once the sequence is known.
    pulse: Option<Arc<str>>,
    state: State,
}

#[derive(Debug)]
struct State {
    progress: Progress,
    scanned: Instant,
    /// When the outbox itself was read last.
    read: Option<Instant>,
    /// Whether the last read brought rows: then so will the next, most likely.
    fruitful: bool,
    /// Bytes of a row, on average of the last read that brought any.
    row_bytes: usize,
}

impl State {
    fn new() -> Self {
        Self {
            progress: Progress::new(),
            scanned: Instant::now(),
            read: None,
            fruitful: false,
            row_bytes: 256,
        }
    }
}

/// What is asked between two reads.
struct Pulse {
    /// The last number given, where the sequence may be read.
    last: Option<i64>,
    /// When the server was started, as it says.
    server: String,
    /// The holders of locks, where there are gaps.
    holders: Vec<String>,
}

/// Rows that a statement brought, within bounds.
#[derive(Default)]
struct Batch {
    rows: Vec<(OutboxRow, Option<String>)>,
    bytes: usize,
    /// Whether the bounds left rows behind.
    cut: bool,
    /// How many rows the statement brought, skipped ones included.
    fetched: usize,
    /// The number of the last one.
    last: i64,
}

impl Batch {
    fn into_claimed(self, stragglers: u64) -> Claimed {
        let mut claimed = Claimed { stragglers, more: self.cut, ..Claimed::default() };
        for (row, fault) in self.rows {
            match fault {
                None => claimed.rows.push(row),
                Some(error) => {
                    claimed.unreadable.push(DeadRow {
                        seq: row.seq,
                        id: row.message.id.as_str().into(),
                        reason: "invalid-row".to_owned(),
                        error,
                    });
                }
            }
        }
        claimed
    }
}

impl PgOutboxReader {
    pub(crate) fn new(pool: PgPool, sql: Arc<ReaderSql>, full_scan: Option<Duration>) -> Self {
        Self { pool, sql, full_scan, pulse: None, state: State::new() }
    }

    async fn begin(&self) -> Result<Scoped, AdapterError> {
        Scoped::begin(&self.pool, format!("{}; {PLANS}", stranded::beginning()))
            .await
            .map_err(failed("read the outbox"))
    }

    /// One statement in place of a transaction, which is what an idle outbox costs.
    async fn is_complete(&self) -> Result<bool, AdapterError> {
        let (Some(pulse), Some(read)) = (&self.pulse, self.state.read) else { return Ok(false) };
        let State { progress, fruitful, .. } = &self.state;
        if *fruitful || !progress.awaits_nothing() || read.elapsed() >= WHOLE || self.scan_is_due() {
            return Ok(false);
        }
        let Pulse { last, server, .. } = ask(pulse, false, &self.pool).await?;
        Ok(self.state.progress.is_complete(&server, last))
    }

    async fn read_next(&mut self, rows: usize, bytes: usize) -> Result<Claimed, AdapterError> {
        if self.is_complete().await? {
            return Ok(Claimed::default());
        }
        self.state.read = Some(Instant::now());
        let mut scoped = self.begin().await?;
        let Pulse { last, server, holders } = self.feel(&mut scoped).await?;
        if self.state.progress.meet(&server, last) {
            tracing::warn!(
                outbox = self.sql.outbox,
                "the server was started anew, or the outbox's sequence went backwards: reading from the start"
            );
        }
        if self.scan_is_due()
            && let Some(claimed) = self.scan(&mut scoped, rows).await?
        {
            scoped.release();
            return Ok(claimed);
        }
        if let Some(lowest) = self.state.progress.gaps.overflow() {
            self.merge_gaps(&mut scoped, lowest).await?;
        }
        if self.state.progress.ahead.is_due() {
            let from = self.state.progress.frontier.saturating_add(1);
            let there = self.numbers(&mut scoped, from, i64::MAX).await?;
            self.state.progress.ahead.keep(&there);
        }
        // The holders were read after the last read and before this one: both uses of them need just that.
        let ripe = self.state.progress.gaps.observe(holders);
        self.read_rows(scoped, rows, bytes, Before { last, ripe }).await
    }

    async fn read_rows(
        &mut self,
        mut scoped: Scoped,
        rows: usize,
        bytes: usize,
        before: Before,
    ) -> Result<Claimed, AdapterError> {
        let State { progress: Progress { frontier, gaps, ahead, .. }, row_bytes, .. } = &self.state;
        let limit = rows.min(2 * bytes / row_bytes.max(&1)).max(16).min(rows.max(1));
        let probes = gaps.probes();
        let count = i64::try_from(limit).unwrap_or(i64::MAX);
        let (numbers, ids) = ahead.names();
        let query = sqlx::query(AssertSqlSafe(Arc::clone(&self.sql.read)))
            .bind(frontier)
            .bind(probes.from)
            .bind(probes.to)
            .bind(count)
            .bind(count)
            .bind(numbers)
            .bind(ids);
        let known = |seq: i64| seq <= *frontier && !gaps.is_open(seq);
        let mut batch = collect(query, &mut scoped, limit, bytes, known).await?;
        let full = batch.rows.len() >= limit;
        let waste = if batch.cut { limit.saturating_sub(batch.rows.len()) * row_bytes } else { 0 };
        if waste <= MAX_WASTE {
            scoped.release();
        }
        batch.cut |= full;
        // There is no wait between this and the return of the rows: a caller that is cancelled has lost none.
        let read: Vec<_> = batch.rows.iter().map(|(row, _)| (row.seq, row.message.id.as_str())).collect();
        self.state.progress.advance(&read, batch.cut, before);
        self.state.fruitful = !batch.rows.is_empty();
        if self.state.fruitful {
            self.state.row_bytes = (batch.bytes / batch.rows.len()).max(1);
        }
        Ok(batch.into_claimed(0))
    }

    fn scan_is_due(&self) -> bool {
        self.full_scan.is_some_and(|every| self.state.scanned.elapsed() >= every)
    }

    async fn feel(&mut self, scoped: &mut Scoped) -> Result<Pulse, AdapterError> {
        let pulse = match &self.pulse {
            Some(pulse) => Arc::clone(pulse),
            None => self.find_sequence(scoped).await?,
        };
        ask(&pulse, !self.state.progress.gaps.is_empty(), &mut **scoped).await
    }

    async fn find_sequence(&mut self, scoped: &mut Scoped) -> Result<Arc<str>, AdapterError> {
        let sequence: Option<String> = sqlx::query_scalar(
            "SELECT name FROM pg_get_serial_sequence($1, 'seq') AS name \
             WHERE name IS NOT NULL AND has_sequence_privilege(name, 'SELECT')",
        )
        .bind(&self.sql.outbox)
        .fetch_optional(&mut **scoped)
        .await
        .map_err(failed("find the sequence of the outbox"))?;
        let pulse = Arc::<str>::from(self.sql.pulse(sequence.as_deref()));
        self.pulse = Some(Arc::clone(&pulse));
        Ok(pulse)
    }

    /// Looks through everything up to the frontier for rows in gaps that were closed. `None` if there are none.
    async fn scan(&mut self, scoped: &mut Scoped, rows: usize) -> Result<Option<Claimed>, AdapterError> {
        let rows = rows.max(1);
        let mut found: Vec<i64> = Vec::new();
        {
            let mut numbers = sqlx::query_scalar::<_, i64>(AssertSqlSafe(Arc::clone(&self.sql.numbers)))
                .bind(i64::MIN)
                .bind(self.state.progress.frontier)
                .fetch(&mut **scoped);
            while let Some(number) = numbers.try_next().await.map_err(failed("scan the outbox"))? {
                if self.state.progress.gaps.is_closed(number) && found.len() < rows {
                    found.push(number);
                }
            }
        }
        if found.is_empty() {
            self.state.scanned = Instant::now();
            return Ok(None);
        }
        let query = sqlx::query(AssertSqlSafe(Arc::clone(&self.sql.fetch))).bind(&found);
        let batch = collect(query, scoped, rows, usize::MAX, |_| false).await?;
        for number in found {
            self.state.progress.gaps.straggled(number);
        }
        let stragglers = batch.rows.len() as u64;
        tracing::warn!(outbox = self.sql.outbox, stragglers, "the full scan found rows that were missed");
        Ok(Some(Claimed { more: true, ..batch.into_claimed(stragglers) }))
    }

    /// Merges gaps, of which there are too many because a transaction that wrote to the outbox stays open while others
    /// roll back.
    async fn merge_gaps(&mut self, scoped: &mut Scoped, lowest: i64) -> Result<(), AdapterError> {
        let mut apart = BTreeSet::new();
        {
            let mut numbers = sqlx::query_scalar::<_, i64>(AssertSqlSafe(Arc::clone(&self.sql.numbers)))
                .bind(lowest)
                .bind(self.state.progress.frontier)
                .fetch(&mut **scoped);
            while let Some(number) = numbers.try_next().await.map_err(failed("scan the outbox"))? {
                apart.extend(self.state.progress.gaps.below(number));
            }
        }
        self.state.progress.gaps.merge(&apart);
        tracing::warn!(
            outbox = self.sql.outbox,
            from = lowest,
            "a transaction that wrote to the outbox stays open, and reads look at ever more for its sake"
        );
        Ok(())
    }

    async fn numbers(&self, scoped: &mut Scoped, from: i64, to: i64) -> Result<BTreeSet<i64>, AdapterError> {
        let numbers = sqlx::query_scalar(AssertSqlSafe(Arc::clone(&self.sql.numbers))).bind(from).bind(to);
        let numbers: Vec<i64> = numbers.fetch_all(&mut **scoped).await.map_err(failed("scan the outbox"))?;
        Ok(numbers.into_iter().collect())
    }

    async fn read_again(
        &mut self,
        what: &Reread,
        rows: usize,
        bytes: usize,
    ) -> Result<Claimed, AdapterError> {
        let Ok(key) = what.key.as_deref().map(std::str::from_utf8).transpose() else {
            return Ok(Claimed::default());
        };
        let limit = rows.max(1);
        let mut scoped = self.begin().await?;
        let mut from = what.from;
        let progress = &self.state.progress;
        let returned = progress.ahead.highest().unwrap_or(progress.frontier);
        let mut batch = loop {
            let query = sqlx::query(AssertSqlSafe(Arc::clone(&self.sql.reread)))
                .bind(from)
                .bind(returned)
                .bind(&what.destination.name)
                .bind(what.destination.routing_key.as_deref())
                .bind(key)
                .bind(i64::try_from(limit).unwrap_or(i64::MAX));
            let batch = collect(query, &mut scoped, limit, bytes, |seq| progress.is_unread(seq)).await?;
            // Rows in gaps that were filled since count against the limit, and are for the next read to return.
            if !batch.rows.is_empty() || batch.fetched < limit {
                break batch;
            }
            from = batch.last.saturating_add(1);
        };
        if !batch.cut {
            scoped.release();
        }
        batch.cut |= batch.fetched >= limit;
        Ok(batch.into_claimed(0))
    }
}

async fn ask(
    pulse: &Arc<str>,
    holders: bool,
    executor: impl sqlx::PgExecutor<'_>,
) -> Result<Pulse, AdapterError> {
    let (last, server, holders): (_, _, Option<Vec<String>>) =
        sqlx::query_as(AssertSqlSafe(Arc::clone(pulse)))
            .bind(holders)
            .fetch_one(executor)
            .await
            .map_err(failed("read who writes to the outbox"))?;
    Ok(Pulse { last, server, holders: holders.unwrap_or_default() })
}

/// Rows that are not to be skipped, in order, up to `rows` of them and `bytes` together; one row may exceed those.
async fn collect(
    query: Bound<'_>,
    scoped: &mut Scoped,
    rows: usize,
    bytes: usize,
    skip: impl Fn(i64) -> bool,
) -> Result<Batch, AdapterError> {
    let mut batch = Batch::default();
    let mut stream = query.fetch(&mut **scoped);
    while let Some(row) = stream.try_next().await.map_err(failed("read the outbox"))? {
        batch.last = row.try_get(0).map_err(failed("read a row of the outbox"))?;
        batch.fetched += 1;
        if skip(batch.last) {
            continue;
        }
        let (row, fault) = read_row(&row)?;
        let size = row.size();
        if batch.rows.len() >= rows || (batch.bytes.saturating_add(size) > bytes && !batch.rows.is_empty()) {
            batch.cut = true;
            break;
        }
        batch.bytes = batch.bytes.saturating_add(size);
        batch.rows.push((row, fault));
    }
    drop(stream);
    // Already so, unless the planner found another way to join the two halves of the read.
    batch.rows.sort_by_key(|(row, _)| row.seq);
    Ok(batch)
}

fn read_row(row: &PgRow) -> Result<(OutboxRow, Option<String>), AdapterError> {
    outbox_row::read(row).map_err(failed("read a row of the outbox"))
}

impl OutboxReader for PgOutboxReader {
    fn read(&mut self, rows: usize, bytes: usize) -> BoxFuture<'_, Result<Claimed, AdapterError>> {
        Box::pin(self.read_next(rows, bytes))
    }

    fn reread<'a>(
        &'a mut self,
        what: &'a Reread,
        rows: usize,
        bytes: usize,
    ) -> BoxFuture<'a, Result<Claimed, AdapterError>> {
        Box::pin(self.read_again(what, rows, bytes))
    }

    fn reset(&mut self) {
        self.state = State::new();
    }
}
