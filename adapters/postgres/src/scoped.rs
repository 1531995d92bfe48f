//! A pooled connection that is closed unless its transaction has ended in order.

use std::fmt;
use std::ops::{Deref, DerefMut};

use sqlx::pool::PoolConnection;
use sqlx::{AssertSqlSafe, Database, PgConnection, PgPool, Postgres, SqlSafeStr};
use sqlx_core::transaction::TransactionManager;
use tokio::time::timeout;

use crate::patience::PATIENCE;

type Manager = <Postgres as Database>::TransactionManager;

/// A transaction on a pooled connection.
///
/// sqlx's own `Transaction` hides its connection and cannot close it when it is dropped; a connection with an open
/// transaction that is merely returned could commit late, or stay in the transaction.
pub(crate) struct Scoped {
    connection: PoolConnection<Postgres>,
    done: bool,
    turns: u8,
}

impl Scoped {
    /// Takes a connection and runs `begin`, a string of statements that begins a transaction, in one round trip.
    pub(crate) async fn begin(pool: &PgPool, begin: String) -> Result<Self, sqlx::Error> {
        // Marked as unfinished before BEGIN is sent: a caller that is cancelled in between closes the connection.
        let mut scoped = Self { connection: pool.acquire().await?, done: false, turns: 0 };
        Manager::begin(&mut scoped.connection, Some(AssertSqlSafe(begin).into_sql_str())).await?;
        Ok(scoped)
    }

    /// Counts the transactions since the connection came from its pool.
    pub(crate) fn turn(&mut self) -> u8 {
        self.turns = self.turns.saturating_add(1);
        self.turns
    }

    /// Ends the transaction that is open now with a ROLLBACK and gives the connection back. The ROLLBACK travels
    /// with the pool's own check of the connection; there is no wait for it here.
    pub(crate) fn release(mut self) {
        if Manager::get_transaction_depth(&self.connection) == 1 {
            Manager::start_rollback(&mut self.connection);
            self.done = true;
        }
    }
}

impl Scoped {
    /// Rolls back and waits for it; where that fails, or takes too long, the connection is closed.
    pub(crate) async fn rollback(mut self) {
        if Manager::get_transaction_depth(&self.connection) == 1
            && let Ok(Ok(())) = timeout(PATIENCE, Manager::rollback(&mut self.connection)).await
        {
            self.done = true;
        }
    }
}

impl Deref for Scoped {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.connection
    }
}

impl DerefMut for Scoped {
    fn deref_mut(&mut self) -> &mut PgConnection {
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
