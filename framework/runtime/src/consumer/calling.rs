//! How a handler is called: for one message after another, or once for all that share a transaction.

use std::future::Future;
use std::time::{Duration, Instant};

use backstop_core::inbox::Inbox;
use backstop_core::{AdapterError, BatchHandler, Delivery, Handler, Outcomes, crash_point};

use crate::consumer::invoke::{Failed, Invocation};

/// A handler of either kind.
pub(crate) trait Calls<Tx>: Send + Sync + 'static {
    /// What bodies are read into.
    type Message: Send + Sync;

    /// How old a shared transaction becomes, unless set.
    const MAX_AGE: Duration;

    /// Handles a message that has its transaction for itself.
    fn one(
        &self,
        invocation: Invocation<'_>,
        delivery: &Delivery<Self::Message>,
        tx: &mut Tx,
    ) -> impl Future<Output = Result<(), Failed>> + Send;

    /// Handles messages that share a transaction of the inbox, which is to be as old as `age` at most.
    fn several<I: Inbox<Tx = Tx>>(
        &self,
        invocation: Invocation<'_>,
        deliveries: &[&Delivery<Self::Message>],
        age: Duration,
        inbox: &I,
        tx: &mut Tx,
    ) -> impl Future<Output = Called> + Send;
}

/// What handling several messages came to.
pub(crate) enum Called {
    /// Nothing failed.
    Handled {
        /// So many are handled, from the first on.
        count: usize,
        /// There was time for so many, at least 1.
        in_time: usize,
    },
    /// The handler of the last of so many has ended the transaction; the others were not handled.
    Ended { count: usize },
    /// The transaction is lost between two handlers.
    Lost(AdapterError),
    /// Nothing of it may be committed.
    Failed {
        /// Why.
        failed: Failed,
        /// The messages before this one were handled.
        from: usize,
        /// The handler was called for so many.
        called: usize,
        /// The places of those who are to blame, in their order; none where nobody knows.
        guilty: Vec<usize>,
    },
}

impl Called {
    /// For how many of these the handler was called, as far as it is known.
    pub(crate) fn calls(&self, of: usize) -> usize {
        match self {
            Self::Handled { count, .. } | Self::Ended { count } => *count,
            Self::Failed { called, .. } => *called,
            Self::Lost(_) => of,
        }
    }
}

/// A handler that is called for each message.
#[derive(Debug)]
pub(crate) struct Each<H>(pub(crate) H);

impl<Tx: Send, H: Handler<Tx>> Calls<Tx> for Each<H> {
    type Message = H::Message;

    const MAX_AGE: Duration = Duration::from_millis(50);

    async fn one(
        &self,
        invocation: Invocation<'_>,
        delivery: &Delivery<H::Message>,
        tx: &mut Tx,
    ) -> Result<(), Failed> {
        invocation.run(&self.0, delivery, tx).await
    }

    async fn several<I: Inbox<Tx = Tx>>(
        &self,
        invocation: Invocation<'_>,
        deliveries: &[&Delivery<H::Message>],
        age: Duration,
        inbox: &I,
        tx: &mut Tx,
    ) -> Called {
        let began = Instant::now();
        for (at, delivery) in deliveries.iter().enumerate() {
            let is_unbroken = if at > 0 { inbox.is_unbroken(tx).await } else { Ok(true) };
            match is_unbroken {
                Ok(true) => {}
                Ok(false) => return Called::Ended { count: at },
                Err(error) => return Called::Lost(error),
            }
            if at > 0 && began.elapsed() >= age {
                return Called::Handled { count: at, in_time: at };
            }
            if let Err(failed) = invocation.run(&self.0, delivery, tx).await {
                return Called::Failed { failed, from: at, called: at + 1, guilty: vec![at] };
            }
            crash_point!("consumer.group.handled");
        }
        Called::Handled { count: deliveries.len(), in_time: deliveries.len() }
    }
}

/// A handler that is called once for a batch.
#[derive(Debug)]
pub(crate) struct Whole<H>(pub(crate) H);

impl<Tx: Send, H: BatchHandler<Tx>> Calls<Tx> for Whole<H> {
    type Message = H::Message;

    const MAX_AGE: Duration = Duration::from_millis(250);

    async fn one(
        &self,
        invocation: Invocation<'_>,
        delivery: &Delivery<H::Message>,
        tx: &mut Tx,
    ) -> Result<(), Failed> {
        let outcomes = invocation.run_batch(&self.0, &[delivery], tx).await?;
        outcomes.into_first_error().map_or(Ok(()), |error| Err(Failed { error, tx_is_sound: true }))
    }

    async fn several<I: Inbox<Tx = Tx>>(
        &self,
        invocation: Invocation<'_>,
        deliveries: &[&Delivery<H::Message>],
        age: Duration,
        _: &I,
        tx: &mut Tx,
    ) -> Called {
        let (began, count) = (Instant::now(), deliveries.len());
        let outcomes = match invocation.run_batch(&self.0, deliveries, tx).await {
            Ok(outcomes) => outcomes,
            Err(failed) => return Called::Failed { failed, from: 0, called: count, guilty: Vec::new() },
        };
        crash_point!("consumer.batch.handled");
        let guilty = guilty(&outcomes, count);
        match outcomes.into_first_error() {
            None => Called::Handled { count, in_time: in_time(count, age, began.elapsed()) },
            Some(error) => {
                Called::Failed { failed: Failed { error, tx_is_sound: true }, from: 0, called: count, guilty }
            }
        }
    }
}

/// Who failed; nobody where a place is named that is not in the batch, since the others may then be wrong too.
fn guilty(outcomes: &Outcomes, count: usize) -> Vec<usize> {
    let places: Vec<usize> = outcomes.failed().map(|(at, _)| at).collect();
    if places.last().is_some_and(|last| *last >= count) { Vec::new() } else { places }
}

/// How many of a batch that took so long would have been done in time.
fn in_time(count: usize, age: Duration, took: Duration) -> usize {
    if took <= age {
        return count;
    }
    let share = age.as_secs_f64() / took.as_secs_f64();
    ((count as f64 * share) as usize).max(1)
}

#[cfg(test)]
mod tests {
    use backstop_core::HandlerError;

    use super::*;

    #[test]
    fn batches_shrink_to_what_is_done_in_time() {
        let age = Duration::from_millis(50);
        assert_eq!(in_time(100, age, Duration::from_millis(20)), 100);
        assert_eq!(in_time(100, age, Duration::from_millis(200)), 25);
        assert_eq!(in_time(3, age, Duration::from_secs(60)), 1);
        assert_eq!(in_time(3, Duration::ZERO, Duration::from_nanos(1)), 1);
    }

    #[test]
    fn a_place_outside_of_the_batch_blames_nobody() {
        let mut outcomes = Outcomes::handled();
        outcomes.fail(1, HandlerError::permanent("wrong"));
        assert_eq!(guilty(&outcomes, 3), [1]);
        outcomes.fail(3, HandlerError::permanent("wrong"));
        assert!(guilty(&outcomes, 3).is_empty());
    }
}
