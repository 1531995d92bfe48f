//! A pooled connection that is closed unless its transaction has ended in order.

use std::fmt;
use std::ops::{Deref, DerefMut};

use futures_util::TryStreamExt;
use sqlx::pool::PoolConnection;
use sqlx::{AssertSqlSafe, Database, Either, MySql, MySqlConnection, MySqlPool, SqlSafeStr};
use sqlx_core::transaction::TransactionManager;

use crate::session;

type Manager = <MySql as Database>::TransactionManager;

/// A transaction on a pooled connection.
///
/// sqlx's own `Transaction` hides its connection and cannot close it when it is dropped; a connection with an open
/// transaction, or with a handler's settings, that is merely returned would do harm to the next who takes it.
pub(crate) struct Scoped {
    connection: PoolConnection<MySql>,
    done: bool,
    /// What gives back the settings of the session, after the end of the transaction.
    leave: &'static str,
}

/// A string of statements of which one failed.
#[derive(Debug)]
pub(crate) struct Stopped {
    /// How many had succeeded before. The rest was not run.
    pub(crate) ran: usize,
    pub(crate) error: sqlx::Error,
}

impl Scoped {
    /// Takes a connection and begins a transaction of Backstop's own.
    pub(crate) async fn begin(pool: &MySqlPool) -> Result<Self, sqlx::Error> {
        Self::begin_with(pool, session::own(), session::LEAVE_OWN).await
    }

    /// Takes a connection and begins a transaction whose reads are of one moment.
    pub(crate) async fn snapshot(pool: &MySqlPool) -> Result<Self, sqlx::Error> {
        Self::begin_with(pool, session::snapshot(), session::LEAVE_OWN).await
    }

    /// Takes a connection and begins a handler's transaction by `enter`, of [`session::enter`].
    pub(crate) async fn enter(pool: &MySqlPool, enter: String) -> Result<Self, sqlx::Error> {
        Self::begin_with(pool, enter, session::LEAVE).await
    }

    async fn begin_with(pool: &MySqlPool, begin: String, leave: &'static str) -> Result<Self, sqlx::Error> {
        // Marked as unfinished before anything is sent: a caller that is cancelled in between closes the connection.
        let mut scoped = Self { connection: pool.acquire().await?, done: false, leave };
        Manager::begin(&mut scoped.connection, Some(AssertSqlSafe(begin).into_sql_str())).await?;
        Ok(scoped)
    }

    /// Runs a string of statements in one round trip; the answer is how many rows each of them changed.
    pub(crate) async fn run(&mut self, sql: String) -> Result<Vec<u64>, Stopped> {
        let mut changed = Vec::new();
        let mut answers = sqlx::raw_sql(AssertSqlSafe(sql)).fetch_many(&mut *self.connection);
        loop {
            match answers.try_next().await {
                Ok(Some(Either::Left(done))) => changed.push(done.rows_affected()),
                Ok(Some(Either::Right(_))) => {}
                Ok(None) => return Ok(changed),
                Err(error) => return Err(Stopped { ran: changed.len(), error }),
            }
        }
    }

    /// Ends the transaction with COMMIT and gives the connection back.
    pub(crate) async fn commit(mut self) -> Result<(), sqlx::Error> {
        let sql = self.ending("COMMIT AND NO CHAIN NO RELEASE");
        self.run(sql).await.map_err(|stopped| stopped.error)?;
        self.release();
        Ok(())
    }

    /// Ends the transaction with ROLLBACK and gives the connection back; where that fails, the connection is closed.
    pub(crate) async fn rollback(mut self) {
        let sql = self.ending("ROLLBACK AND NO CHAIN NO RELEASE");
        if self.run(sql).await.is_ok() {
            self.release();
        }
    }

    /// `end`, and what gives back the settings of the session.
    pub(crate) fn ending(&self, end: &str) -> String {
        format!("{end}; {}", self.leave)
    }

    /// Gives the connection back after a string that has ended its transaction and restored its settings. sqlx still
    /// counts the transaction: a ROLLBACK that travels with the pool's own check of the connection corrects that.
    pub(crate) fn release(mut self) {
        if Manager::get_transaction_depth(&self.connection) == 1 {
            Manager::start_rollback(&mut self.connection);
            self.done = true;
        }
    }
}

impl Deref for Scoped {
    type Target = MySqlConnection;

    fn deref(&self) -> &MySqlConnection {
        &self.connection
    }
}

impl DerefMut for Scoped {
    fn deref_mut(&mut self) -> &mut MySqlConnection {
        &mut self.connection
    }
}

impl Drop for Scoped {
    fn drop(&mut self) {
        if !self.done {
            self.connection.close_on_drop();
        }
    }
}

impl fmt::Debug for Scoped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scoped").field("done", &self.done).finish_non_exhaustive()
    }
}
