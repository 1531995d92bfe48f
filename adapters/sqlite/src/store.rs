//! The outbox as the relay sees it.

use std::sync::Arc;
use std::time::Duration;

use backstop_core::AdapterError;
use backstop_core::dead_rows::{BuriedRow, DeadGroup, DeadRowFilter, DeadRows};
use backstop_core::lease::{Holder, Lease, Leases};
use backstop_core::outbox::{DeadRow, OutboxReader, OutboxStatus, OutboxStore, RowId};
use backstop_core::scheduled::ScheduledRows;
use chrono::DateTime;
use futures_core::future::BoxFuture;
use sqlx::{AssertSqlSafe, SqliteConnection, SqlitePool};

use crate::commit::commit;
use crate::database::{Database, plain};
use crate::error::adapter;
use crate::reader::Reader;
use crate::tables::SqliteTables;
use crate::time::{NOW, duration};
use crate::{dead_rows, lease, scheduled};

/// Rows that are deleted in one transaction: the write lock is given back between two of them.
const CHUNK: usize = 1_000;

/// The outbox of one file, for the relay.
#[derive(Debug, Clone)]
pub struct SqliteOutboxStore {
    database: Arc<Database>,
    full_scan: Option<Duration>,
}

impl SqliteOutboxStore {
    /// The outbox of these tables, with a full scan every minute.
    pub fn new(pool: SqlitePool, tables: SqliteTables) -> Self {
        Self { database: Arc::new(Database::new(pool, tables)), full_scan: Some(Duration::from_secs(60)) }
    }

    /// Sets how often readers look for rows below those that they have returned; `None` for never. There are none
    /// unless somebody chose numbers by hand.
    #[must_use]
    pub fn full_scan(mut self, every: Option<Duration>) -> Self {
        self.full_scan = every;
        self
    }

    async fn delete_chunk(&self, rows: &[RowId]) -> Result<(), AdapterError> {
        let outbox = self.database.tables.outbox();
        // The cross join keeps the order: a look-up of the number for each row that is named.
        let sql = format!(
            "DELETE FROM {outbox} WHERE seq IN (SELECT o.seq FROM json_each(?) AS w CROSS JOIN {outbox} AS o \
             ON o.seq = w.value ->> 0 AND CAST(o.id AS TEXT) = w.value ->> 1)"
        );
        let rows: Vec<(i64, &str)> = rows.iter().map(|row| (row.seq, &*row.id)).collect();
        let mut tx = self.database.write("cannot delete published rows").await?;
        sqlx::query(AssertSqlSafe(sql))
            .bind(serde_json::json!(rows).to_string())
            .execute(&mut *tx)
            .await
            .map_err(|error| adapter("cannot delete published rows", error))?;
        commit(tx).await.map_err(plain)
    }

    async fn move_dead(&self, lease: &Lease, rows: &[DeadRow]) -> Result<bool, AdapterError> {
        const NAMES: &str = "seq, id, source, destination, routing_key, key, kind, subject, event_time, \
                             content_type, headers, payload, created_at";
        let failed = |error| adapter("cannot move rows to the dead", error);
        let (outbox, dead) = (self.database.tables.outbox(), self.database.tables.outbox_dead());
        let mut tx = self.database.write("cannot move rows to the dead").await?;
        if !lease::stands(&self.database, &mut tx, lease).await? {
            tx.rollback().await;
            return Ok(false);
        }
        let insert = format!(
            "INSERT INTO {dead} ({NAMES}, reason, error) SELECT {NAMES}, ?, ? FROM {outbox} WHERE seq = ?"
        );
        let delete = format!("DELETE FROM {outbox} WHERE seq = ?");
        for row in rows {
            if !self.is_there(&mut tx, row).await? {
                continue;
            }
            let insert =
                sqlx::query(AssertSqlSafe(insert.clone())).bind(&row.reason).bind(&row.error).bind(row.seq);
            insert.execute(&mut *tx).await.map_err(failed)?;
            let delete = sqlx::query(AssertSqlSafe(delete.clone())).bind(row.seq);
            delete.execute(&mut *tx).await.map_err(failed)?;
        }
        commit(tx).await.map_err(plain)?;
        Ok(true)
    }

    /// Whether the row of that number has that id. Compared here, because the id may be no text at all.
    async fn is_there(&self, connection: &mut SqliteConnection, row: &DeadRow) -> Result<bool, AdapterError> {
        let outbox = self.database.tables.outbox();
        let id =
            sqlx::query_scalar(AssertSqlSafe(format!("SELECT CAST(id AS BLOB) FROM {outbox} WHERE seq = ?")));
        let id: Option<Vec<u8>> = id
            .bind(row.seq)
            .fetch_optional(connection)
            .await
            .map_err(|error| adapter("cannot move rows to the dead", error))?;
        Ok(id.is_some_and(|id| String::from_utf8_lossy(&id) == *row.id))
    }

    async fn read_status(&self) -> Result<OutboxStatus, AdapterError> {
        let (outbox, dead) = (self.database.tables.outbox(), self.database.tables.outbox_dead());
        // The oldest is the lowest number: numbers are given in the order of commits.
        let sql = format!(
            "SELECT (SELECT count(*) FROM {outbox}), \
             (SELECT {NOW} - CAST(round(unixepoch(created_at, 'subsec') * 1000) AS INTEGER) \
              FROM {outbox} ORDER BY seq LIMIT 1), \
             (SELECT count(*) FROM {dead}), (SELECT count(*) FROM {scheduled}), \
             (SELECT CAST(round(unixepoch(publish_after, 'subsec') * 1000) AS INTEGER) FROM {scheduled} \
              ORDER BY unixepoch(publish_after, 'subsec') LIMIT 1)",
            scheduled = self.database.tables.outbox_scheduled()
        );
        type Counts = (i64, Option<i64>, i64, i64, Option<i64>);
        let mut connection = self.database.connection().await?;
        let (pending, oldest, dead, scheduled, due): Counts = sqlx::query_as(AssertSqlSafe(sql))
            .fetch_one(&mut *connection)
            .await
            .map_err(|error| adapter("cannot read the state of the outbox", error))?;
        Ok(OutboxStatus {
            pending: pending.unsigned_abs(),
            oldest: oldest.map(duration),
            dead: dead.unsigned_abs(),
            scheduled: scheduled.unsigned_abs(),
            next_due: due.and_then(DateTime::from_timestamp_millis),
        })
    }
}

impl Leases for SqliteOutboxStore {
    fn acquire<'a>(
        &'a self,
        name: &'a str,
        owner: &'a str,
        ttl: Duration,
    ) -> BoxFuture<'a, Result<Option<Lease>, AdapterError>> {
        Box::pin(lease::acquire(&self.database, name, owner, ttl))
    }

    fn release<'a>(&'a self, lease: &'a Lease) -> BoxFuture<'a, Result<(), AdapterError>> {
        Box::pin(lease::release(&self.database, lease))
    }

    fn report<'a>(&'a self, lease: &'a Lease, text: &'a str) -> BoxFuture<'a, Result<(), AdapterError>> {
        Box::pin(lease::report(&self.database, lease, text))
    }

    fn holder<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<Holder>, AdapterError>> {
        Box::pin(lease::holder(&self.database, name))
    }
}

impl DeadRows for SqliteOutboxStore {
    fn buried<'a>(
        &'a self,
        filter: &'a DeadRowFilter,
        limit: u32,
    ) -> BoxFuture<'a, Result<Vec<BuriedRow>, AdapterError>> {
        Box::pin(dead_rows::read(&self.database, filter, limit))
    }

    fn buried_groups<'a>(
        &'a self,
        filter: &'a DeadRowFilter,
    ) -> BoxFuture<'a, Result<Vec<DeadGroup>, AdapterError>> {
        Box::pin(dead_rows::groups(&self.database, filter))
    }

    fn retry_buried<'a>(
        &'a self,
        filter: &'a DeadRowFilter,
        limit: u32,
    ) -> BoxFuture<'a, Result<u64, AdapterError>> {
        Box::pin(dead_rows::retry(&self.database, filter, limit))
    }

    fn discard_buried<'a>(
        &'a self,
        filter: &'a DeadRowFilter,
        limit: u32,
    ) -> BoxFuture<'a, Result<u64, AdapterError>> {
        Box::pin(dead_rows::discard(&self.database, filter, limit))
    }
}

impl ScheduledRows for SqliteOutboxStore {
    fn promote<'a>(
        &'a self,
        lease: &'a Lease,
        rows: u32,
        bytes: u64,
    ) -> BoxFuture<'a, Result<Option<u64>, AdapterError>> {
        Box::pin(scheduled::promote(&self.database, lease, rows, bytes))
    }
}

impl OutboxStore for SqliteOutboxStore {
    fn reader(&self) -> Box<dyn OutboxReader> {
        Box::new(Reader::new(Arc::clone(&self.database), self.full_scan))
    }

    fn delete<'a>(&'a self, rows: &'a [RowId]) -> BoxFuture<'a, Result<(), AdapterError>> {
        Box::pin(async move {
            for chunk in rows.chunks(CHUNK) {
                self.delete_chunk(chunk).await?;
            }
            Ok(())
        })
    }

    fn bury<'a>(
        &'a self,
        lease: &'a Lease,
        rows: &'a [DeadRow],
    ) -> BoxFuture<'a, Result<bool, AdapterError>> {
        Box::pin(self.move_dead(lease, rows))
    }

    fn status(&self) -> BoxFuture<'_, Result<OutboxStatus, AdapterError>> {
        Box::pin(self.read_status())
    }
}
