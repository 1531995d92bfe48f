//! Reads the outbox in `seq` order without skipping a row that commits late.
//!
//! A read is one snapshot. In it come first the rows in gaps, which committed late, and then those beyond all numbers
//! that were read before: a late row thus comes before a later one of its key, whose writer waited for it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use backstop_core::AdapterError;
use backstop_core::outbox::{Claimed, DeadRow, OutboxReader, OutboxRow, Reread};
use futures_core::future::BoxFuture;
use futures_util::TryStreamExt;
use sqlx::{AssertSqlSafe, MySqlPool, Row};

use crate::failure::failed;
use crate::gaps::{Gaps, Look, MAX_PROBES, between};
use crate::numbers::{LOWEST, Numbers, condition};
use crate::outbox_row::{self, COLUMNS};
use crate::scoped::Scoped;
use crate::tables::MySqlTables;
use crate::witness::{Witness, locked};
use crate::{literal, numbers};

/// Unread rows that are read to the end and thrown away rather than closing the connection.
const MAX_WASTE: usize = 4 << 20;

/// The least time between two looks whether numbers are given anew.
const COUNTER_PAUSE: Duration = Duration::from_millis(100);

/// A reader of one outbox.
#[derive(Debug)]
pub(crate) struct MySqlOutboxReader {
    pool: MySqlPool,
    outbox: Arc<str>,
    counter: Arc<str>,
    full_scan: Option<Duration>,
    witness: Witness,
    state: State,
}

#[derive(Debug)]
struct State {
    /// Every number up to here was returned, or is in a gap.
    frontier: i64,
    gaps: Gaps,
    scanned: Instant,
    counted: Instant,
    /// Bytes of a row, on average of the last read that brought any.
    row_bytes: usize,
}

impl State {
    fn new() -> Self {
        let now = Instant::now();
        Self { frontier: LOWEST, gaps: Gaps::default(), scanned: now, counted: now, row_bytes: 256 }
    }
}

/// Rows that statements brought, within bounds.
struct Batch {
    rows: Vec<(OutboxRow, Option<String>)>,
    bytes: usize,
    most_rows: usize,
    most_bytes: usize,
    /// Whether the bounds left rows behind, or may have.
    cut: bool,
    /// How many rows the last statement brought, skipped ones included, and the number of the last of them.
    fetched: usize,
    last: i64,
    /// Rows that it may have left unread on the connection.
    unread: usize,
}

impl Batch {
    fn new(most_rows: usize, most_bytes: usize) -> Self {
        let rows = Vec::new();
        Self { rows, bytes: 0, most_rows, most_bytes, cut: false, fetched: 0, last: LOWEST, unread: 0 }
    }

    fn room(&self) -> usize {
        self.most_rows - self.rows.len().min(self.most_rows)
    }

    /// Adds the rows of a statement that are not to be skipped, in their order, as far as there is room; one row may
    /// exceed the bytes.
    async fn fetch(
        &mut self,
        scoped: &mut Scoped,
        select: String,
        skip: impl Fn(i64) -> bool,
    ) -> Result<(), AdapterError> {
        let limit = self.room();
        if limit == 0 {
            self.cut = true;
            return Ok(());
        }
        self.fetched = 0;
        let sql = format!("{select} ORDER BY seq LIMIT {limit}");
        let mut stream = sqlx::raw_sql(AssertSqlSafe(sql)).fetch(&mut **scoped);
        while let Some(row) = stream.try_next().await.map_err(failed("read the outbox"))? {
            self.last = row.try_get(0).map_err(failed("read a row of the outbox"))?;
            self.fetched += 1;
            if skip(self.last) {
                continue;
            }
            let (row, fault) = outbox_row::read(&row).map_err(failed("read a row of the outbox"))?;
            let size = row.size();
            if self.bytes.saturating_add(size) > self.most_bytes && !self.rows.is_empty() {
                self.cut = true;
                self.unread = limit - self.fetched;
                break;
            }
            self.bytes = self.bytes.saturating_add(size);
            self.rows.push((row, fault));
        }
        self.cut |= self.fetched >= limit;
        Ok(())
    }

    /// Gives the connection back, or closes it where reading on to the end of the rows would cost more.
    async fn give_back(&self, scoped: Scoped, row_bytes: usize) {
        if self.unread.saturating_mul(row_bytes) <= MAX_WASTE {
            scoped.rollback().await;
        }
    }

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

impl MySqlOutboxReader {
    pub(crate) fn new(pool: MySqlPool, tables: &MySqlTables, full_scan: Option<Duration>) -> Self {
        Self {
            pool,
            outbox: tables.outbox().into(),
            counter: numbers::counter(tables).into(),
            full_scan,
            witness: Witness::new(tables),
            state: State::new(),
        }
    }

    fn select(&self, condition: &str) -> String {
        // A plan that was made for other statistics must not turn this into a scan of the table and a sort.
        format!("SELECT {COLUMNS} FROM {} FORCE INDEX (PRIMARY) WHERE {condition}", self.outbox)
    }

    async fn read_next(&mut self, rows: usize, bytes: usize) -> Result<Claimed, AdapterError> {
        // Before the snapshot: gaps may close once what it shows is later than this look.
        let ripe = self.look().await;
        let mut scoped = Scoped::snapshot(&self.pool).await.map_err(failed("read the outbox"))?;
        if self.full_scan.is_some_and(|every| self.state.scanned.elapsed() >= every)
            && let Some(claimed) = self.scan(&mut scoped, rows.max(1)).await?
        {
            scoped.rollback().await;
            return Ok(claimed);
        }
        let row_bytes = self.state.row_bytes;
        let limit = rows.min(2 * bytes / row_bytes.max(1)).max(16).min(rows.max(1));
        let mut batch = Batch::new(limit, bytes);
        let missing = self.missing(&mut scoped, limit).await?;
        if !missing.is_empty() {
            batch.fetch(&mut scoped, self.select(&condition(&missing)), |_| false).await?;
        }
        let missed_none = !batch.cut;
        if missed_none {
            let beyond = self.select(&format!("seq > {}", self.state.frontier));
            batch.fetch(&mut scoped, beyond, |_| false).await?;
        }
        batch.give_back(scoped, row_bytes).await;
        let dead = match ripe {
            Some(ripe) if missed_none => self.dead(ripe, &batch).await,
            _ => Vec::new(),
        };
        let advanced = self.advance(&batch, &dead);
        if !advanced && self.state.counted.elapsed() >= COUNTER_PAUSE {
            self.count().await?;
        }
        Ok(batch.into_claimed(0))
    }

    /// Takes in what a read brought; whether it brought anything beyond. There is no wait between this and the return of
    /// the rows: a caller that is cancelled has lost none.
    fn advance(&mut self, batch: &Batch, dead: &[(i64, i64)]) -> bool {
        let State { frontier, gaps, row_bytes, .. } = &mut self.state;
        let before = *frontier;
        let numbers = || batch.rows.iter().map(|(row, _)| row.seq);
        numbers().filter(|seq| *seq <= before).for_each(|seq| gaps.found(seq));
        gaps.close(dead);
        let beyond = || numbers().filter(|seq| *seq > before);
        gaps.open(between(before, beyond()));
        *frontier = beyond().next_back().unwrap_or(before);
        if !batch.rows.is_empty() {
            *row_bytes = (batch.bytes / batch.rows.len()).max(1);
        }
        *frontier > before
    }

    async fn look(&mut self) -> Option<Look> {
        if self.state.gaps.is_empty() {
            return None;
        }
        let holders = self.witness.look(&self.pool).await?;
        Some(self.state.gaps.observe(holders))
    }

    /// The ranges in which rows may have come late: every gap, or where there are many, up to `limit` rows in them.
    async fn missing(&mut self, scoped: &mut Scoped, limit: usize) -> Result<Vec<(i64, i64)>, AdapterError> {
        if self.state.gaps.are_many() {
            let lowest = self.state.gaps.ranges().next().map_or(LOWEST, |(from, _)| from);
            let there = Numbers::read(scoped, &self.outbox, lowest, self.state.frontier).await?;
            self.state.gaps.merge(there.iter());
            if self.state.gaps.are_many() {
                let late = there.iter().filter(|number| self.state.gaps.is_open(*number));
                return Ok(late.take(limit.min(MAX_PROBES)).map(|number| (number, number)).collect());
            }
        }
        Ok(self.state.gaps.ranges().collect())
    }

    /// The gaps in which no row can come any more.
    async fn dead(&self, ripe: Look, batch: &Batch) -> Vec<(i64, i64)> {
        let mut ranges = self.state.gaps.ripe(ripe);
        let came = |from: i64, to: i64| batch.rows.iter().any(|(row, _)| (from..=to).contains(&row.seq));
        ranges.retain(|(from, to)| !came(*from, *to));
        if ranges.is_empty() {
            return ranges;
        }
        match locked(&self.pool, &self.outbox, &condition(&ranges)).await {
            Ok(false) => ranges,
            Ok(true) => Vec::new(),
            Err(error) => {
                tracing::debug!(%error, "missing numbers of the outbox stay open");
                Vec::new()
            }
        }
    }

    /// Looks through everything up to the frontier for rows in gaps that were closed. `None` if there are none.
    async fn scan(&mut self, scoped: &mut Scoped, rows: usize) -> Result<Option<Claimed>, AdapterError> {
        let State { frontier, gaps, scanned, .. } = &mut self.state;
        let there = Numbers::read(scoped, &self.outbox, LOWEST, *frontier).await?;
        let found: Vec<(i64, i64)> = there
            .iter()
            .filter(|number| gaps.is_closed(*number))
            .take(rows.min(MAX_PROBES))
            .map(|number| (number, number))
            .collect();
        if found.is_empty() {
            let absent = there.absent(gaps.ranges(), *frontier);
            gaps.closed(absent);
            *scanned = Instant::now();
            return Ok(None);
        }
        let mut batch = Batch::new(found.len(), usize::MAX);
        batch.fetch(scoped, self.select(&condition(&found)), |_| false).await?;
        for (number, _) in found {
            self.state.gaps.straggled(number);
        }
        let stragglers = batch.rows.len() as u64;
        tracing::warn!(outbox = &*self.outbox, stragglers, "the full scan found rows that were missed");
        Ok(Some(Claimed { more: true, ..batch.into_claimed(stragglers) }))
    }

    /// Starts over if numbers are given anew that were given before.
    async fn count(&mut self) -> Result<(), AdapterError> {
        let mut scoped = Scoped::begin(&self.pool).await.map_err(failed("read the outbox's counter"))?;
        let next = numbers::next(&mut scoped, &self.counter).await?;
        scoped.rollback().await;
        self.state.counted = Instant::now();
        if next.is_some_and(|next| next <= self.state.frontier) {
            tracing::warn!(
                outbox = &*self.outbox,
                "the outbox's counter went backwards: reading from the start"
            );
            self.state = State::new();
        }
        Ok(())
    }

    async fn read_again(
        &mut self,
        what: &Reread,
        rows: usize,
        bytes: usize,
    ) -> Result<Claimed, AdapterError> {
        let State { frontier, gaps, row_bytes, .. } = &self.state;
        let unread = |seq: i64| gaps.is_open(seq) || gaps.is_closed(seq);
        let mut scoped = Scoped::snapshot(&self.pool).await.map_err(failed("read the outbox"))?;
        let mut batch = Batch::new(rows.max(1), bytes);
        let mut from = what.from;
        loop {
            let select = self.select(&format!("seq BETWEEN {from} AND {frontier} AND {}", these(what)));
            batch.fetch(&mut scoped, select, unread).await?;
            // Rows in gaps that were filled since count against the limit, and are for the next read to return.
            if !batch.rows.is_empty() || batch.fetched < rows.max(1) {
                break;
            }
            from = batch.last.saturating_add(1);
        }
        batch.give_back(scoped, *row_bytes).await;
        Ok(batch.into_claimed(0))
    }
}

/// Rows of that destination and key, compared as bytes.
fn these(what: &Reread) -> String {
    let routing_key = what.destination.routing_key.as_ref();
    let routing_key = routing_key.map_or_else(|| "NULL".to_owned(), |key| literal::bytes(key.as_bytes()));
    let key = what.key.as_ref().map(|key| format!(" AND CAST(`key` AS BINARY) = {}", literal::bytes(key)));
    format!(
        "CAST(destination AS BINARY) = {} AND CAST(routing_key AS BINARY) <=> {routing_key}{}",
        literal::bytes(what.destination.name.as_bytes()),
        key.unwrap_or_default()
    )
}

impl OutboxReader for MySqlOutboxReader {
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
