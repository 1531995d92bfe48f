//! The transaction that a handler is lent.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use backstop_core::AdapterError;
use sqlx::pool::PoolConnection;
use sqlx::sqlite::SqliteTransactionManager;
use sqlx::{AssertSqlSafe, Sqlite, SqliteConnection};
use sqlx_core::sql_str::SqlSafeStr;
use sqlx_core::transaction::TransactionManager;
use tokio::sync::OwnedMutexGuard;

use crate::error::adapter;

/// How many instructions of SQLite's machine pass between two looks at the time limit: some 100 µs.
const INSTRUCTIONS: i32 = 10_000;

/// Numbers of savepoints: no two transactions of this process share one.
static NUMBERS: AtomicU64 = AtomicU64::new(1);

/// A transaction, lent to a handler; a `&mut SqliteConnection` to sqlx (`&mut **tx`).
///
/// The handler runs statements, opens nested transactions with `tx.begin()`, and leaves commit and rollback to
/// Backstop: one that ends the transaction itself is found out.
///
/// A failed statement in SQLite undoes itself and leaves the transaction as it was. A handler that goes on after one
/// commits the rest of its effects.
///
/// Dropped without either, it is abandoned: a statement that still runs is interrupted, and the connection is closed.
pub struct SqliteTx {
    connection: PoolConnection<Sqlite>,
    number: u64,
    watch: Arc<Watch>,
    ended: bool,
    /// The next writer of this process may go when this one is gone.
    _turn: OwnedMutexGuard<()>,
}

impl SqliteTx {
    /// A transaction that is not begun yet.
    pub(crate) fn new(connection: PoolConnection<Sqlite>, turn: OwnedMutexGuard<()>) -> Self {
        let number = NUMBERS.fetch_add(1, Ordering::Relaxed);
        Self { connection, number, watch: Arc::default(), ended: false, _turn: turn }
    }

    /// Interrupts statements that still run when `time` has passed, or when the transaction is dropped.
    pub(crate) async fn limit(&mut self, time: Duration) -> Result<(), AdapterError> {
        self.watch = Arc::new(Watch { deadline: Instant::now().checked_add(time), ..Watch::default() });
        let watch = Arc::clone(&self.watch);
        let locked = self.connection.lock_handle().await;
        let mut handle = locked.map_err(|error| adapter("cannot reach the connection", error))?;
        handle.set_progress_handler(INSTRUCTIONS, move || watch.go_on());
        Ok(())
    }

    /// Takes the write lock, waiting for it at most `patience`, and sets the savepoint by which the commit is proved.
    /// `usual` is the connection's own patience in milliseconds, put back at once.
    pub(crate) async fn begin(&mut self, patience: Duration, usual: i64) -> Result<(), sqlx::Error> {
        let patience = patience.as_millis().min(3_600_000);
        let sql = format!(
            "PRAGMA busy_timeout = {patience}; BEGIN IMMEDIATE; SAVEPOINT {}; PRAGMA busy_timeout = {usual}",
            self.savepoint()
        );
        let sql = AssertSqlSafe(sql).into_sql_str();
        SqliteTransactionManager::begin(&mut self.connection, Some(sql)).await
    }

    /// Gives the connection of a transaction that could not begin back to the pool.
    pub(crate) async fn give_up(mut self, usual: i64) {
        if self.run(format!("PRAGMA busy_timeout = {usual}")).await.is_ok() {
            self.finished();
        }
    }

    /// Takes back everything since the beginning, and goes on.
    pub(crate) async fn undo(&mut self) -> Result<(), AdapterError> {
        self.watch.cancel();
        let done = self.run(format!("ROLLBACK TO {}", self.savepoint())).await;
        self.watch.disarm();
        done.map_err(|error| adapter("the transaction cannot be used any more", error))
    }

    /// Rolls back and gives the connection back to the pool; closes it where that fails.
    pub(crate) async fn rollback(mut self) {
        self.watch.cancel();
        let nested = self.depth() != 1;
        if !nested && SqliteTransactionManager::rollback(&mut self.connection).await.is_ok() {
            self.finished();
        }
    }

    /// Releases the savepoint: fails when the transaction that set it has ended, however it ended and whatever was
    /// begun in its place.
    pub(crate) async fn release(&mut self) -> Result<(), sqlx::Error> {
        self.run(format!("RELEASE {}", self.savepoint())).await?;
        self.watch.disarm();
        Ok(())
    }

    /// Releases the savepoint and sets it anew: fails as [`release`](Self::release) does, and the transaction goes on.
    pub(crate) async fn renew(&mut self) -> Result<(), sqlx::Error> {
        let savepoint = self.savepoint();
        self.run(format!("RELEASE {savepoint}; SAVEPOINT {savepoint}")).await
    }

    /// Nested transactions that sqlx knows of, and this one.
    pub(crate) fn depth(&self) -> usize {
        SqliteTransactionManager::get_transaction_depth(&self.connection)
    }

    /// Commits at depth 1.
    pub(crate) async fn end(&mut self) -> Result<(), sqlx::Error> {
        SqliteTransactionManager::commit(&mut self.connection).await?;
        self.finished();
        Ok(())
    }

    fn finished(&mut self) {
        self.watch.disarm();
        self.ended = true;
    }

    fn savepoint(&self) -> String {
        format!("backstop_savepoint_{}", self.number)
    }

    async fn run(&mut self, sql: String) -> Result<(), sqlx::Error> {
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *self.connection).await.map(|_| ())
    }
}

impl Deref for SqliteTx {
    type Target = SqliteConnection;

    fn deref(&self) -> &SqliteConnection {
        &self.connection
    }
}

impl DerefMut for SqliteTx {
    fn deref_mut(&mut self) -> &mut SqliteConnection {
        &mut self.connection
    }
}

impl Drop for SqliteTx {
    fn drop(&mut self) {
        if !self.ended {
            self.watch.cancel();
            self.connection.close_on_drop();
        }
    }
}

impl fmt::Debug for SqliteTx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteTx").field("number", &self.number).finish_non_exhaustive()
    }
}

/// Asked by SQLite in the middle of statements: whether to go on.
#[derive(Debug, Default)]
struct Watch {
    state: AtomicU8,
    deadline: Option<Instant>,
}

impl Watch {
    const CANCELLED: u8 = 1;
    const DISARMED: u8 = 2;

    fn go_on(&self) -> bool {
        match self.state.load(Ordering::Acquire) {
            Self::CANCELLED => false,
            Self::DISARMED => true,
            _ => self.deadline.is_none_or(|deadline| Instant::now() < deadline),
        }
    }

    fn cancel(&self) {
        self.state.store(Self::CANCELLED, Ordering::Release);
    }

    /// No limit from here on: what follows is our own, or somebody else's who has the connection next.
    fn disarm(&self) {
        self.state.store(Self::DISARMED, Ordering::Release);
    }
}
