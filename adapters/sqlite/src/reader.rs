//! Reading the outbox in order.
//!
//! A cursor over `seq` is safe here, as it is not on servers with several writers. A transaction takes the file's
//! one write lock before its first insert and gives it back with its commit, so numbers are given in the order of
//! commits; a rollback takes its numbers back, and `AUTOINCREMENT` never gives one again that was committed. A
//! reader that has seen `n` therefore never finds a new row below `n` - unless somebody writes numbers by hand. The
//! full scan is the net for that, and counts what it catches.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use backstop_core::AdapterError;
use backstop_core::outbox::{Claimed, OutboxReader, Reread};
use bytes::Bytes;
use futures_core::future::BoxFuture;
use sqlx::{AssertSqlSafe, SqliteConnection};

use crate::database::Database;
use crate::error::adapter;
use crate::outbox_row::{COLUMNS, SIZE, outbox_row};
use crate::ranges::Ranges;

/// Numbers that a full scan looks at in one statement.
const SCAN: i64 = 10_000;

/// Numbers of stragglers that are looked up in one statement.
const STRAGGLERS: usize = 1_000;

pub(crate) struct Reader {
    database: Arc<Database>,
    every: Option<Duration>,
    next_scan: Option<Instant>,
    /// The highest number that was returned.
    cursor: i64,
    /// What was returned and may still be there.
    returned: Ranges,
    /// What a full scan found and is not returned yet.
    stragglers: VecDeque<i64>,
}

/// Which rows.
enum Selection<'a> {
    After(i64),
    These(Vec<i64>),
    Again(&'a Reread, i64),
}

impl Reader {
    pub(crate) fn new(database: Arc<Database>, every: Option<Duration>) -> Self {
        let mut reader = Self {
            database,
            every,
            next_scan: None,
            cursor: i64::MIN,
            returned: Ranges::default(),
            stragglers: VecDeque::new(),
        };
        reader.start_over();
        reader
    }

    fn start_over(&mut self) {
        self.cursor = i64::MIN;
        self.returned.clear();
        self.stragglers.clear();
        self.next_scan = self.every.and_then(|every| Instant::now().checked_add(every));
    }

    async fn read_next(&mut self, rows: usize, bytes: usize) -> Result<Claimed, AdapterError> {
        let database = Arc::clone(&self.database);
        let mut connection = database.connection().await?;
        if self.next_scan.is_some_and(|due| due <= Instant::now()) {
            self.scan(&mut connection).await?;
            self.next_scan = self.every.and_then(|every| Instant::now().checked_add(every));
        }
        if !self.stragglers.is_empty() {
            return self.read_stragglers(&mut connection, rows, bytes).await;
        }
        let (claimed, seqs) =
            self.select(&mut connection, &Selection::After(self.cursor), rows, bytes).await?;
        match seqs.last() {
            Some(last) => self.cursor = *last,
            None if self.went_backwards(&mut connection).await? => self.start_over(),
            None => {}
        }
        seqs.into_iter().for_each(|seq| self.returned.insert(seq));
        Ok(claimed)
    }

    async fn read_stragglers(
        &mut self,
        connection: &mut SqliteConnection,
        rows: usize,
        bytes: usize,
    ) -> Result<Claimed, AdapterError> {
        let wanted: Vec<i64> = self.stragglers.iter().take(rows.clamp(1, STRAGGLERS)).copied().collect();
        let last = wanted.last().copied();
        let (mut claimed, seqs) = self.select(connection, &Selection::These(wanted), rows, bytes).await?;
        // Those that were looked for and are gone are done with, too.
        let done = if claimed.more { seqs.last().copied() } else { last };
        while self.stragglers.front().is_some_and(|seq| Some(*seq) <= done) {
            self.stragglers.pop_front();
        }
        claimed.stragglers = seqs.len() as u64;
        claimed.more = true;
        seqs.into_iter().for_each(|seq| self.returned.insert(seq));
        Ok(claimed)
    }

    async fn read_again(
        &mut self,
        what: &Reread,
        rows: usize,
        bytes: usize,
    ) -> Result<Claimed, AdapterError> {
        let database = Arc::clone(&self.database);
        let mut connection = database.connection().await?;
        let selection = Selection::Again(what, self.cursor);
        let (mut claimed, seqs) = self.select(&mut connection, &selection, rows, bytes).await?;
        for seq in seqs {
            if !self.returned.contains(seq) {
                claimed.stragglers += 1;
                self.returned.insert(seq);
                self.stragglers.retain(|straggler| *straggler != seq);
            }
        }
        Ok(claimed)
    }

    /// Looks at every number up to the cursor: those that were not returned are stragglers; those that were, and are
    /// gone, are forgotten, so that one that is written anew is found.
    async fn scan(&mut self, connection: &mut SqliteConnection) -> Result<(), AdapterError> {
        let outbox = self.database.tables.outbox();
        let sql = format!("SELECT seq FROM {outbox} WHERE seq > ? AND seq <= ? ORDER BY seq LIMIT ?");
        let (mut pending, mut found) = (Ranges::default(), VecDeque::new());
        let mut from = i64::MIN;
        loop {
            let seqs: Vec<i64> = sqlx::query_scalar(AssertSqlSafe(sql.clone()))
                .bind(from)
                .bind(self.cursor)
                .bind(SCAN)
                .fetch_all(&mut *connection)
                .await
                .map_err(|error| adapter("cannot scan the outbox", error))?;
            let Some(last) = seqs.last() else { break };
            from = *last;
            for seq in seqs {
                if self.returned.contains(seq) {
                    pending.insert(seq);
                } else {
                    found.push_back(seq);
                }
            }
        }
        (self.returned, self.stragglers) = (pending, found);
        Ok(())
    }

    /// Whether numbers are given anew that were given before: somebody reset the sequence.
    async fn went_backwards(&self, connection: &mut SqliteConnection) -> Result<bool, AdapterError> {
        let last: Option<i64> = sqlx::query_scalar("SELECT max(seq) FROM sqlite_sequence WHERE name = ?")
            .bind(self.database.tables.outbox_name())
            .fetch_one(connection)
            .await
            .map_err(|error| adapter("cannot read the outbox's sequence", error))?;
        Ok(self.cursor > last.unwrap_or(0).max(0))
    }

    /// Two statements: the first chooses rows by what they weigh without reading them, so that memory stays within
    /// `bytes`; the second reads the chosen.
    async fn select(
        &self,
        connection: &mut SqliteConnection,
        selection: &Selection<'_>,
        rows: usize,
        bytes: usize,
    ) -> Result<(Claimed, Vec<i64>), AdapterError> {
        let (chosen, more) = self.choose(connection, selection, rows.max(1), bytes).await?;
        let mut claimed = Claimed { more, ..Claimed::default() };
        if chosen.is_empty() {
            return Ok((claimed, chosen));
        }
        let outbox = self.database.tables.outbox();
        let sql = format!(
            "SELECT {COLUMNS} FROM {outbox} WHERE seq IN (SELECT value FROM json_each(?)) ORDER BY seq"
        );
        let found = sqlx::query(AssertSqlSafe(sql))
            .bind(serde_json::json!(chosen).to_string())
            .fetch_all(connection)
            .await
            .map_err(|error| adapter("cannot read the outbox", error))?;
        for row in &found {
            match outbox_row(row) {
                Ok(row) => claimed.rows.push(row),
                Err(dead) => claimed.unreadable.push(dead),
            }
        }
        Ok((claimed, chosen))
    }

    async fn choose(
        &self,
        connection: &mut SqliteConnection,
        selection: &Selection<'_>,
        rows: usize,
        bytes: usize,
    ) -> Result<(Vec<i64>, bool), AdapterError> {
        let outbox = self.database.tables.outbox();
        let rows_where = |condition: &str, limit: &str| {
            format!("SELECT seq, {SIZE} FROM {outbox} WHERE {condition} ORDER BY seq LIMIT {limit}")
        };
        let sql = match selection {
            Selection::After(_) => rows_where("seq > ?1", "?2"),
            Selection::These(_) => rows_where("seq IN (SELECT value FROM json_each(?1))", "?2"),
            Selection::Again(..) => rows_where(
                "seq BETWEEN ?1 AND ?2 AND CAST(destination AS TEXT) = ?3 \
                 AND CAST(routing_key AS TEXT) IS ?4 \
                 AND (?5 IS NULL OR CAST(key AS BLOB) = ?5)",
                "?6",
            ),
        };
        let query = sqlx::query_as::<_, (i64, i64)>(AssertSqlSafe(sql));
        let query = match selection {
            Selection::After(seq) => query.bind(*seq),
            Selection::These(seqs) => query.bind(serde_json::json!(seqs).to_string()),
            Selection::Again(what, to) => query
                .bind(what.from)
                .bind(*to)
                .bind(&*what.destination.name)
                .bind(what.destination.routing_key.as_deref())
                .bind(what.key.as_ref().map(Bytes::as_ref)),
        };
        let limit = i64::try_from(rows).unwrap_or(i64::MAX).saturating_add(1);
        let weighed = query.bind(limit).fetch_all(connection).await;
        let weighed = weighed.map_err(|error| adapter("cannot read the outbox", error))?;
        Ok(within(&weighed, rows, bytes))
    }
}

/// The numbers that fit both bounds, at least one; and whether others are left.
fn within(weighed: &[(i64, i64)], rows: usize, bytes: usize) -> (Vec<i64>, bool) {
    let mut left = bytes;
    let mut chosen = Vec::new();
    for (seq, size) in weighed.iter().take(rows) {
        let size = usize::try_from(*size).unwrap_or(usize::MAX);
        if size > left && !chosen.is_empty() {
            break;
        }
        left = left.saturating_sub(size);
        chosen.push(*seq);
    }
    let more = chosen.len() < weighed.len();
    (chosen, more)
}

impl OutboxReader for Reader {
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
        self.start_over();
    }
}

#[cfg(test)]
mod tests {
    use super::within;

    #[test]
    fn both_bounds_hold_and_one_row_may_exceed_the_second() {
        let weighed = [(1, 10), (2, 10), (3, 10), (4, 10)];
        assert_eq!(within(&weighed, 3, 1_000), (vec![1, 2, 3], true));
        assert_eq!(within(&weighed, 9, 1_000), (vec![1, 2, 3, 4], false));
        assert_eq!(within(&weighed, 9, 25), (vec![1, 2], true));
        assert_eq!(within(&weighed, 9, 5), (vec![1], true));
        assert_eq!(within(&[], 9, 5), (vec![], false));
    }
}
