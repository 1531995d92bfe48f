//! The transaction that a handler is lent.

use std::fmt;
use std::ops::{Deref, DerefMut};

use sqlx::{PgConnection, Postgres, Transaction};

use crate::proof::Proof;
use crate::scoped::Scoped;

/// The transaction in which one message is handled.
///
/// It dereferences to sqlx's connection, so that queries run as `sqlx::query(…).execute(&mut **tx)`; a nested
/// `tx.begin()` is a savepoint. It is committed by the inbox and by nobody else; `CLOSE ALL` counts as an end too, since
/// it closes the cursor by which the commit is proved. Dropped before that, its connection is closed.
pub struct PgTx {
    pub(crate) scoped: Scoped,
    /// Shows at the commit that this is still the transaction that wrote the inbox row.
    pub(crate) proof: Proof,
}

impl Deref for PgTx {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.scoped
    }
}

impl DerefMut for PgTx {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.scoped
    }
}

impl fmt::Debug for PgTx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PgTx").field("proof", &self.proof).finish_non_exhaustive()
    }
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::PgTx {}
    impl Sealed for sqlx::Transaction<'_, sqlx::Postgres> {}
}

/// An open transaction: [`PgTx`] or sqlx's `Transaction<'_, Postgres>`.
///
/// A bare connection is not one, on purpose: an outbox row that is written outside of the transaction of the change
/// that it announces is what an outbox exists to prevent.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not an open PostgreSQL transaction",
    note = "begin one with `pool.begin()`, or use the `PgTx` that the handler is lent"
)]
pub trait PgTransaction: sealed::Sealed + Send {
    /// The connection on which it is open.
    #[doc(hidden)]
    fn connection(&mut self) -> &mut PgConnection;
}

impl PgTransaction for PgTx {
    fn connection(&mut self) -> &mut PgConnection {
        self
    }
}

impl PgTransaction for Transaction<'_, Postgres> {
    fn connection(&mut self) -> &mut PgConnection {
        self
    }
}
