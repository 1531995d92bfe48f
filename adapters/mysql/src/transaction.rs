//! The transaction that a handler is lent.

use std::fmt;
use std::ops::{Deref, DerefMut};

use backstop_core::MessageKey;
use sqlx::{MySql, MySqlConnection, Transaction};
use uuid::Uuid;

use crate::scoped::Scoped;

/// The transaction in which one message is handled.
///
/// It dereferences to sqlx's connection, so that queries run as `sqlx::query(…).execute(&mut **tx)`; a nested
/// `tx.begin()` is a savepoint. It is committed by the inbox and by nobody else. Dropped before that, its connection
/// is closed.
pub struct MySqlTx {
    pub(crate) scoped: Scoped,
    /// Exists as long as the transaction that wrote the inbox row, and proves at the commit that this is still it.
    pub(crate) savepoint: Savepoint,
    /// Consumer and message, by whose inbox row it is told what became of a transaction that ended too early.
    pub(crate) message: (String, MessageKey),
}

impl Deref for MySqlTx {
    type Target = MySqlConnection;

    fn deref(&self) -> &MySqlConnection {
        &self.scoped
    }
}

impl DerefMut for MySqlTx {
    fn deref_mut(&mut self) -> &mut MySqlConnection {
        &mut self.scoped
    }
}

impl fmt::Debug for MySqlTx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MySqlTx").field("message", &self.message).finish_non_exhaustive()
    }
}

/// The name of a savepoint that nobody else uses.
#[derive(Debug)]
pub(crate) struct Savepoint(String);

impl Savepoint {
    pub(crate) fn new() -> Self {
        Self(format!("backstop_{}", Uuid::new_v4().simple()))
    }
}

impl fmt::Display for Savepoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::MySqlTx {}
    impl Sealed for sqlx::Transaction<'_, sqlx::MySql> {}
}

/// An open transaction: [`MySqlTx`] or sqlx's `Transaction<'_, MySql>`.
///
/// A bare connection is not one, on purpose: an outbox row that is written outside of the transaction of the change
/// that it announces is what an outbox exists to prevent.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not an open MySQL transaction",
    note = "begin one with `pool.begin()`, or use the `MySqlTx` that the handler is lent"
)]
pub trait MySqlTransaction: sealed::Sealed + Send {
    /// The connection on which it is open.
    #[doc(hidden)]
    fn connection(&mut self) -> &mut MySqlConnection;
}

impl MySqlTransaction for MySqlTx {
    fn connection(&mut self) -> &mut MySqlConnection {
        self
    }
}

impl MySqlTransaction for Transaction<'_, MySql> {
    fn connection(&mut self) -> &mut MySqlConnection {
        self
    }
}
