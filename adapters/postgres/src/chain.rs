//! Connections on which the next transaction is open already.
//!
//! A commit that chains saves the next message its BEGIN, and the two checks that the pool makes when a connection
//! goes back and comes out again: three round trips instead of six. A connection goes back to its pool when nobody
//! takes it within [`FRESH`], so that `now()` is never older than that, and after [`TURNS`] messages in any case, so
//! that whoever waits for a connection of the pool gets one.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::scoped::Scoped;

/// How long an open, empty transaction may wait for a message.
const FRESH: Duration = Duration::from_millis(10);

/// Messages in a row on one connection.
const TURNS: u8 = 32;

/// The connections of one inbox that wait for their next message.
#[derive(Debug, Clone, Default)]
pub(crate) struct Chain(Arc<Mutex<Waiting>>);

#[derive(Debug, Default)]
struct Waiting {
    /// The last one is the freshest.
    transactions: Vec<(Instant, Scoped)>,
    /// Whether a task gives them back when they are no longer fresh.
    swept: bool,
}

impl Chain {
    /// The freshest transaction, if there is one.
    pub(crate) fn take(&self) -> Option<Scoped> {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.transactions.pop_if(|(since, _)| since.elapsed() < FRESH).map(|(_, transaction)| transaction)
    }

    /// Keeps a transaction that has just begun and in which nothing has happened.
    pub(crate) fn keep(&self, transaction: Scoped) {
        if transaction.turns() >= TURNS {
            return transaction.release();
        }
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.transactions.push((Instant::now(), transaction));
        if !waiting.swept {
            waiting.swept = true;
            tokio::spawn(sweep(self.clone()));
        }
    }

    /// Takes those that are no longer fresh; `None` when there is none left to watch.
    fn stale(&self) -> Option<Vec<Scoped>> {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.transactions.is_empty() {
            waiting.swept = false;
            return None;
        }
        let stale = waiting.transactions.partition_point(|(since, _)| since.elapsed() >= FRESH);
        Some(waiting.transactions.drain(..stale).map(|(_, transaction)| transaction).collect())
    }
}

async fn sweep(chain: Chain) {
    loop {
        tokio::time::sleep(FRESH).await;
        let Some(stale) = chain.stale() else { return };
        stale.into_iter().for_each(Scoped::release);
    }
}
