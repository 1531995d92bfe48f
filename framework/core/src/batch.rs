//! What a service team writes to handle several messages at once.

use std::collections::BTreeMap;
use std::future::Future;

use crate::delivery::Delivery;
use crate::error::HandlerError;

/// Handles several messages in one transaction, such as with one set-based statement for all of them.
///
/// What is promised of a [`Handler`](crate::Handler) holds here for each message: its effects commit together with its
/// inbox row, exactly once, and messages of one key come in their order, in one batch or one after another. A batch
/// holds no message twice, none that was handled before, and none whose key waits for an earlier one.
///
/// Return what became of each message: [`Outcomes::handled`] where all went well. If any of them failed, the whole
/// transaction is rolled back and nobody is charged. Messages that were named as failed are then handled in a batch of
/// their own each, and the others again. Where the handler fails as a whole (`?`), all are handled again in batches of one, so
/// that only the guilty is charged, retried or given up. The handler must therefore be ready for batches of any
/// size, and neither commits nor rolls back.
///
/// What the handler enqueues names no cause, since there are many; wrap it in [`scope`](crate::context::scope) to name
/// one.
///
/// ```
/// use backstop_core::{BatchHandler, Delivery, HandlerError, Outcomes};
///
/// struct Sum;
///
/// impl<Tx: Send> BatchHandler<Tx> for Sum {
///     type Message = u32;
///
///     async fn handle(&self, batch: &[&Delivery<u32>], _tx: &mut Tx) -> Result<Outcomes, HandlerError> {
///         let sum: u32 = batch.iter().map(|delivery| delivery.body()).sum();
///         println!("{sum} in {} messages", batch.len());
///         Ok(Outcomes::handled())
///     }
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot handle batches inside a `{Tx}`",
    label = "no `BatchHandler<{Tx}>` here",
    note = "the handler's transaction must be the one that its inbox opens: `impl BatchHandler<PgTx> for {Self}` goes \
            with `PgInbox`, `BatchHandler<SqliteTx>` with `SqliteInbox`"
)]
pub trait BatchHandler<Tx>: Send + Sync + 'static {
    /// What the bodies are read into.
    type Message: Send + Sync;

    /// Handles the messages, at least one.
    fn handle(
        &self,
        batch: &[&Delivery<Self::Message>],
        tx: &mut Tx,
    ) -> impl Future<Output = Result<Outcomes, HandlerError>> + Send;
}

/// What became of each message of a batch. Those that are not named as failed are handled.
///
/// Can be collected from one result for each message, in their order.
///
/// ```
/// use backstop_core::{HandlerError, Outcomes};
///
/// let mut outcomes = Outcomes::handled();
/// outcomes.fail(2, HandlerError::permanent("no such article"));
/// assert_eq!(outcomes.failed().map(|(at, _)| at).collect::<Vec<_>>(), [2]);
///
/// let collected: Outcomes = [Ok(()), Err(HandlerError::permanent("no such article"))].into_iter().collect();
/// assert!(!collected.is_handled());
/// ```
#[derive(Debug, Default)]
#[must_use = "a batch is what its outcomes say"]
pub struct Outcomes {
    failed: BTreeMap<usize, HandlerError>,
}

impl Outcomes {
    /// All of them are handled.
    pub fn handled() -> Self {
        Self::default()
    }

    /// The message at that place in the batch, counted from 0, has failed. Of several errors for one message the
    /// first stays.
    pub fn fail(&mut self, at: usize, error: impl Into<HandlerError>) {
        self.failed.entry(at).or_insert_with(|| error.into());
    }

    /// Whether none has failed.
    pub fn is_handled(&self) -> bool {
        self.failed.is_empty()
    }

    /// Those that have failed, by their place in the batch.
    pub fn failed(&self) -> impl Iterator<Item = (usize, &HandlerError)> {
        self.failed.iter().map(|(at, error)| (*at, error))
    }

    /// The error of the first one that has failed.
    pub fn into_first_error(mut self) -> Option<HandlerError> {
        self.failed.pop_first().map(|(_, error)| error)
    }
}

impl FromIterator<Result<(), HandlerError>> for Outcomes {
    fn from_iter<I: IntoIterator<Item = Result<(), HandlerError>>>(results: I) -> Self {
        let failed = results.into_iter().enumerate().filter_map(|(at, result)| Some((at, result.err()?)));
        Self { failed: failed.collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_error_of_a_message_stays() {
        let mut outcomes = Outcomes::handled();
        assert!(outcomes.is_handled());
        outcomes.fail(7, HandlerError::permanent("one"));
        outcomes.fail(7, HandlerError::permanent("two"));
        outcomes.fail(3, HandlerError::permanent("three"));
        assert_eq!(outcomes.failed().map(|(at, _)| at).collect::<Vec<_>>(), [3, 7]);
        assert_eq!(
            outcomes.failed().map(|(_, error)| error.to_string()).collect::<Vec<_>>(),
            ["three", "one"]
        );
        assert_eq!(outcomes.into_first_error().map(|error| error.to_string()).as_deref(), Some("three"));
    }
}
