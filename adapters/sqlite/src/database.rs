//! A pool, the names of its tables, and the way to a write transaction.

use std::time::{Duration, Instant};

use backstop_core::AdapterError;
use backstop_core::inbox::{CommitError, Limits};
use sqlx::pool::PoolConnection;
use sqlx::{Sqlite, SqlitePool};
use tokio::sync::OnceCell;
use tokio::time::timeout;

use crate::error::{adapter, busy, is_busy};
use crate::queue::{self, Queue};
use crate::tables::SqliteTables;
use crate::tx::SqliteTx;

/// How long Backstop's own short writes wait for the write lock.
const PATIENCE: Duration = Duration::from_secs(10);

/// What every part of this adapter needs.
#[derive(Debug)]
pub(crate) struct Database {
    pub(crate) pool: SqlitePool,
    pub(crate) tables: SqliteTables,
    queue: Queue,
    /// The pool's own patience in milliseconds, to be put back after ours.
    usual: OnceCell<i64>,
}

impl Database {
    pub(crate) fn new(pool: SqlitePool, tables: SqliteTables) -> Self {
        let queue = queue::of(pool.connect_options().get_filename());
        Self { pool, tables, queue, usual: OnceCell::new() }
    }

    /// A connection for reading.
    pub(crate) async fn connection(&self) -> Result<PoolConnection<Sqlite>, AdapterError> {
        self.pool.acquire().await.map_err(|error| adapter("cannot get a connection", error))
    }

    /// A write transaction to be lent to a handler; `None` when the write lock was not to be had within
    /// `limits.lock`.
    pub(crate) async fn lend(&self, limits: Limits) -> Result<Option<SqliteTx>, AdapterError> {
        self.begin(limits.lock, Some(limits.handler)).await
    }

    /// A write transaction for short work of our own.
    pub(crate) async fn write(&self, what: &str) -> Result<SqliteTx, AdapterError> {
        self.begin(PATIENCE, None).await?.ok_or_else(|| busy(what))
    }

    async fn begin(&self, lock: Duration, time: Option<Duration>) -> Result<Option<SqliteTx>, AdapterError> {
        let started = Instant::now();
        let Ok(turn) = timeout(lock, self.queue.clone().lock_owned()).await else {
            return Ok(None);
        };
        let mut connection = self.connection().await?;
        let usual = *self.usual.get_or_try_init(|| patience(&mut connection)).await?;
        let mut tx = SqliteTx::new(connection, turn);
        if let Some(time) = time {
            tx.limit(lock.saturating_add(time)).await?;
        }
        match tx.begin(lock.saturating_sub(started.elapsed()), usual).await {
            Ok(()) => Ok(Some(tx)),
            Err(error) if is_busy(&error) => {
                tx.give_up(usual).await;
                Ok(None)
            }
            Err(error) => Err(adapter("cannot begin a transaction", error)),
        }
    }
}

async fn patience(connection: &mut PoolConnection<Sqlite>) -> Result<i64, AdapterError> {
    let read = sqlx::query_scalar("PRAGMA busy_timeout").fetch_one(&mut **connection).await;
    read.map_err(|error| adapter("cannot read the busy timeout", error))
}

/// The error of a commit of our own, whose outcome the caller need not tell apart: what was written is written again
/// without harm.
pub(crate) fn plain(error: CommitError) -> AdapterError {
    match error {
        CommitError::RolledBack(error) | CommitError::EndedByHandler(error) | CommitError::Unknown(error) => {
            error
        }
    }
}
