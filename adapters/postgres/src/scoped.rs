//! A pooled connection that is closed unless its transaction has ended in order.

use std::fmt;
use std::ops::{Deref, DerefMut};

use backstop_core::inbox::Limits;
use sqlx::pool::PoolConnection;
use sqlx::{AssertSqlSafe, Database, Executor, PgConnection, PgPool, Postgres, SqlSafeStr};
use sqlx_core::transaction::TransactionManager;
use tokio::time::timeout;

use crate::limits;
use crate::patience::PATIENCE;
use crate::proof::{DECLARE, Proof};

type Manager = <Postgres as Database>::TransactionManager;

/// A transaction on a pooled connection.
///
/// sqlx's own `Transaction` hides its connection and cannot close it when it is dropped; a connection with an open
/// transaction that is merely returned could commit late, or stay in the transaction. Where its caller is cancelled
/// while it begins, sqlx does return it so, and whoever is lent it next works in a transaction without knowing it.
pub(crate) struct Scoped {
    connection: PoolConnection<Postgres>,
    done: bool,
    /// Commits since the connection came from its pool.
    turns: u8,
    /// The limits that are set for the session, until it goes back.
    limits: Option<Limits>,
}

/// From which commit in a row on the limits are set for the session. A connection that gets one message now and then is
/// spared setting them and taking them back.
const BUSY: u8 = 2;

impl Scoped {
    /// Takes a connection and runs `begin`, a string of statements that begins a transaction, in one round trip.
    pub(crate) async fn begin(pool: &PgPool, begin: String) -> Result<Self, sqlx::Error> {
        // Marked as unfinished before BEGIN is sent: a caller that is cancelled in between closes the connection.
        let mut scoped = Self { connection: pool.acquire().await?, done: false, turns: 0, limits: None };
        Manager::begin(&mut scoped.connection, Some(AssertSqlSafe(begin).into_sql_str())).await?;
        Ok(scoped)
    }

    /// Commits since the connection came from its pool.
    pub(crate) fn turns(&self) -> u8 {
        self.turns
    }

    /// What follows COMMIT AND CHAIN in its string to make the next transaction ready for a message, and the limits
    /// that are set for the session then.
    pub(crate) fn next_turn(&mut self, proof: &Proof) -> (String, Option<Limits>) {
        self.turns = self.turns.saturating_add(1);
        match proof {
            Proof::Xid(_) => (String::new(), self.limits),
            Proof::Cursor(limits) if self.turns == BUSY => {
                (format!("; {DECLARE}; {}", limits::enforce(*limits)), Some(*limits))
            }
            Proof::Cursor(_) => (format!("; {DECLARE}"), self.limits),
        }
    }

    /// These limits are set for the session now.
    pub(crate) fn enforces(&mut self, limits: Option<Limits>) {
        self.limits = limits;
    }

    /// The limits that are set for the session.
    pub(crate) fn limits(&self) -> Option<Limits> {
        self.limits
    }

    /// Ends the transaction that is open now with a ROLLBACK and gives the connection back. There is no wait for it
    /// here: it travels with the pool's own check of the connection, or in a task with the session's own settings.
    pub(crate) fn release(mut self) {
        if self.limits.is_some() {
            tokio::spawn(self.restore());
        } else if Manager::get_transaction_depth(&self.connection) == 1 {
            Manager::start_rollback(&mut self.connection);
            self.done = true;
        }
    }

    /// Rolls back and gives the connection back with the session's own settings.
    async fn restore(mut self) {
        if Manager::get_transaction_depth(&self.connection) == 1
            && let Ok(Ok(_)) = timeout(PATIENCE, self.connection.execute(limits::RESTORE)).await
        {
            Manager::start_rollback(&mut self.connection);
            self.done = true;
        }
    }
}

impl Scoped {
    /// Commits, without any proof: for transactions that nobody was lent.
    pub(crate) async fn commit(mut self) -> Result<(), sqlx::Error> {
        Manager::commit(&mut self.connection).await?;
        self.done = true;
        Ok(())
    }

    /// Rolls back and waits for it; where that fails, or takes too long, the connection is closed.
    pub(crate) async fn rollback(mut self) {
        if self.limits.is_some() {
            return self.restore().await;
        }
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
