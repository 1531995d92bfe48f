//! What a service team writes.

use std::future::Future;

use crate::delivery::Delivery;
use crate::error::HandlerError;

/// Handles one message inside the transaction that its inbox opened.
///
/// `Tx` is the transaction: `PgTx`, `SqliteTx`, or `()` for a consumer without a database. What the handler writes
/// through it commits together with the inbox row, exactly once. Everything else it does (HTTP, e-mail) is at least
/// once; [`Delivery::message_key`] is a stable idempotency key for that.
///
/// Return `Ok` when the effects are written. Any error becomes a [`HandlerError`] through `?`, the transaction is
/// rolled back, and what happens next is decided by the error's class. The handler neither commits nor rolls back.
///
/// ```
/// use backstop_core::{Delivery, Handler, HandlerError};
///
/// struct Greet;
///
/// impl<Tx: Send> Handler<Tx> for Greet {
///     type Message = String;
///
///     async fn handle(&self, delivery: &Delivery<String>, _tx: &mut Tx) -> Result<(), HandlerError> {
///         println!("hello, {}", delivery.body());
///         Ok(())
///     }
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot handle messages inside a `{Tx}`",
    label = "no `Handler<{Tx}>` here",
    note = "the handler's transaction must be the one that its inbox opens: `impl Handler<PgTx> for {Self}` goes \
            with `PgInbox`, `Handler<SqliteTx>` with `SqliteInbox`, `Handler<()>` with `Consumer::plain`"
)]
pub trait Handler<Tx>: Send + Sync + 'static {
    /// What the body is read into.
    type Message: Send + Sync;

    /// Handles one message.
    fn handle(
        &self,
        delivery: &Delivery<Self::Message>,
        tx: &mut Tx,
    ) -> impl Future<Output = Result<(), HandlerError>> + Send;
}
