//! The outbox as the relay uses it.

use std::time::Duration;

use backstop_core::AdapterError;
use backstop_core::dead_rows::{BuriedRow, DeadGroup, DeadRowFilter, DeadRows};
use backstop_core::lease::{Holder, Lease, Leases};
use backstop_core::outbox::{DeadRow, OutboxReader, OutboxStatus, OutboxStore, RowId};
use backstop_core::scheduled::ScheduledRows;
use futures_core::future::BoxFuture;
use sqlx::{AssertSqlSafe, MySqlPool};

use crate::contest::{contested, run_contested};
use crate::failure::failed;
use crate::outbox_row::{KEPT, KEPT_SOUND};
use crate::reader::MySqlOutboxReader;
use crate::scoped::Scoped;
use crate::seat::Seat;
use crate::tables::MySqlTables;
use crate::{dead_rows, lease, literal, scheduled, time};

/// Rows that one DELETE takes: MariaDB makes tables of lists with 1,000 values.
const DELETE_AT_ONCE: usize = 500;
/// Rows that one transaction deletes: their commits cost as much as all the rest when each has 500.
const DELETE_TOGETHER: usize = 2_000;

const UNLIST: &str = "DELETE FROM {outbox} WHERE seq = ?";

const STATUS: &str = "
    SELECT (SELECT COUNT(*) FROM {outbox}), (SELECT COUNT(*) FROM {dead}),
           (SELECT TIMESTAMPDIFF(MICROSECOND, created_at, UTC_TIMESTAMP(6)) FROM {outbox} ORDER BY seq LIMIT 1),
           (SELECT COUNT(*) FROM {scheduled}), (SELECT CAST(MIN(publish_after) AS CHAR) FROM {scheduled})";

/// Reads and empties an outbox.
#[derive(Debug, Clone)]
pub struct MySqlOutboxStore {
    pool: MySqlPool,
    /// For the lease.
    seat: Seat,
    tables: MySqlTables,
    full_scan: Option<Duration>,
}

impl MySqlOutboxStore {
    /// The outbox among those tables. Every minute its readers scan it in full for rows that they missed.
    pub fn new(pool: MySqlPool, tables: MySqlTables) -> Self {
        Self { pool, seat: Seat::default(), tables, full_scan: Some(Duration::from_secs(60)) }
    }

    /// How often readers scan in full; `None` for never. Defaults to every minute. The scan finds nothing unless
    /// writers break the contract of the table, such as by choosing numbers themselves that were given before.
    #[must_use]
    pub fn full_scan(mut self, every: Option<Duration>) -> Self {
        self.full_scan = every;
        self
    }

    async fn delete_some(&self, rows: &[RowId]) -> Result<(), AdapterError> {
        let statements: Vec<String> = rows.chunks(DELETE_AT_ONCE).map(|rows| self.delete_sql(rows)).collect();
        let doing = "delete published rows from the outbox";
        run_contested(&self.pool, doing, statements.join("; ")).await.map(drop)
    }

    fn delete_sql(&self, rows: &[RowId]) -> String {
        let numbers = rows.iter().map(|row| row.seq.to_string()).collect::<Vec<_>>().join(", ");
        // As bytes in hexadecimal, because any writer may choose them: there is nothing of theirs to escape.
        let ids = rows.iter().map(|row| literal::bytes(row.id.as_bytes())).collect::<Vec<_>>().join(", ");
        // Any other way to these rows would pass over those of open transactions, and wait for them: a range, too, once its
        // rows are gone. A row that took the number of a published one stays, unless it is itself a message of these
        // that was published. Pairs of number and id would be compared one by one.
        format!(
            "DELETE o FROM {} AS o FORCE INDEX (PRIMARY) WHERE o.seq IN ({numbers}) \
             AND CAST(o.id AS BINARY) IN ({ids})",
            self.tables.outbox()
        )
    }

    async fn move_to_dead(&self, lease: &Lease, rows: &[DeadRow]) -> Result<bool, AdapterError> {
        const DOING: &str = "move rows from the outbox to the dead rows";
        contested(DOING, async || {
            let mut scoped = Scoped::begin(&self.pool).await.map_err(failed(DOING))?;
            if !lease::stands(&mut scoped, &self.tables, lease).await.map_err(failed(DOING))? {
                scoped.rollback().await;
                return Ok(false);
            }
            for row in rows {
                self.move_one(&mut scoped, row).await.map_err(failed(DOING))?;
            }
            scoped.commit().await.map_err(failed(DOING))?;
            Ok(true)
        })
        .await
    }

    async fn move_one(&self, scoped: &mut Scoped, row: &DeadRow) -> Result<(), sqlx::Error> {
        // A date that is none is left out: the error tells it.
        let bury = format!(
            "INSERT INTO {{dead}} (seq, {KEPT}, created_at, reason, error) SELECT seq, {KEPT_SOUND}, created_at, ?, ? \
             FROM {{outbox}} WHERE seq = ? AND CAST(id AS BINARY) = ? FOR UPDATE"
        );
        let moved = sqlx::query(AssertSqlSafe(self.tables.fill(&bury)))
            .bind(&row.reason)
            .bind(&row.error)
            .bind(row.seq)
            .bind(row.id.as_bytes())
            .execute(&mut **scoped)
            .await?;
        if moved.rows_affected() > 0 {
            let unlist = sqlx::query(AssertSqlSafe(self.tables.fill(UNLIST))).bind(row.seq);
            unlist.execute(&mut **scoped).await?;
        }
        Ok(())
    }
}

impl Leases for MySqlOutboxStore {
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

impl DeadRows for MySqlOutboxStore {
    fn buried<'a>(
        &'a self,
        filter: &'a DeadRowFilter,
        limit: u32,
    ) -> BoxFuture<'a, Result<Vec<BuriedRow>, AdapterError>> {
        Box::pin(dead_rows::read(&self.pool, &self.tables, filter, limit))
    }

    fn buried_groups<'a>(
        &'a self,
        filter: &'a DeadRowFilter,
    ) -> BoxFuture<'a, Result<Vec<DeadGroup>, AdapterError>> {
        Box::pin(dead_rows::groups(&self.pool, &self.tables, filter))
    }

    fn retry_buried<'a>(
        &'a self,
        filter: &'a DeadRowFilter,
        limit: u32,
    ) -> BoxFuture<'a, Result<u64, AdapterError>> {
        Box::pin(dead_rows::retry(&self.pool, &self.tables, filter, limit))
    }

    fn discard_buried<'a>(
        &'a self,
        filter: &'a DeadRowFilter,
        limit: u32,
    ) -> BoxFuture<'a, Result<u64, AdapterError>> {
        Box::pin(dead_rows::discard(&self.pool, &self.tables, filter, limit))
    }
}

impl ScheduledRows for MySqlOutboxStore {
    fn promote<'a>(
        &'a self,
        lease: &'a Lease,
        rows: u32,
        bytes: u64,
    ) -> BoxFuture<'a, Result<Option<u64>, AdapterError>> {
        Box::pin(scheduled::promote(&self.pool, &self.tables, lease, rows, bytes))
    }
}

impl OutboxStore for MySqlOutboxStore {
    fn reader(&self) -> Box<dyn OutboxReader> {
        Box::new(MySqlOutboxReader::new(self.pool.clone(), &self.tables, self.full_scan))
    }

    fn delete<'a>(&'a self, rows: &'a [RowId]) -> BoxFuture<'a, Result<(), AdapterError>> {
        Box::pin(async move {
            for rows in rows.chunks(DELETE_TOGETHER) {
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
            type Counts = (i64, i64, Option<i64>, i64, Option<String>);
            let (pending, dead, oldest, scheduled, next_due): Counts =
                sqlx::query_as(AssertSqlSafe(self.tables.fill(STATUS)))
                    .fetch_one(&self.pool)
                    .await
                    .map_err(failed("count the rows of the outbox"))?;
            let count = |rows: i64| u64::try_from(rows).unwrap_or(0);
            Ok(OutboxStatus {
                pending: count(pending),
                oldest: oldest.map(time::from_micros),
                dead: count(dead),
                scheduled: count(scheduled),
                next_due: next_due.as_deref().and_then(time::parse),
            })
        })
    }
}
