//! Rows of an outbox that were given up: what an operator sees of them and does with them.

use chrono::{DateTime, Utc};
use futures_core::future::BoxFuture;

use crate::adapter_error::AdapterError;
use crate::outbox::OutboxRow;

/// A dead row as an operator sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuriedRow {
    /// Its number among the dead rows, which grows with each burial and is never given twice.
    pub n: i64,
    /// The row, with the number that it had in the outbox. What cannot be read of it is left out.
    pub row: OutboxRow,
    /// Short reason.
    pub reason: String,
    /// The error in one line.
    pub error: String,
    /// When it was given up.
    pub died_at: DateTime<Utc>,
}

/// Which dead rows are meant. Every field narrows the choice; the default means all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeadRowFilter {
    /// Rows that had one of these numbers in the outbox; any where there are none.
    pub seqs: Vec<i64>,
    /// Rows for the topic, exchange or queue of this name.
    pub destination: Option<String>,
    /// Rows that died for this reason.
    pub reason: Option<String>,
    /// Rows whose [`BuriedRow::n`] is at most this: none that died after somebody looked.
    pub up_to: Option<i64>,
}

impl DeadRowFilter {
    /// Whether the row is meant.
    pub fn matches(&self, dead: &BuriedRow) -> bool {
        (self.seqs.is_empty() || self.seqs.contains(&dead.row.seq))
            && self.destination.as_ref().is_none_or(|name| *name == dead.row.destination.name)
            && self.reason.as_ref().is_none_or(|reason| *reason == dead.reason)
            && self.up_to.is_none_or(|n| dead.n <= n)
    }
}

/// Dead rows of one destination and reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadGroup {
    /// Topic, exchange or queue.
    pub destination: String,
    /// Short reason.
    pub reason: String,
    /// How many.
    pub rows: u64,
    /// The highest [`BuriedRow::n`] among them.
    pub last: i64,
}

/// The dead rows of an outbox. Object-safe, like the [`OutboxStore`](crate::outbox::OutboxStore) to which it belongs.
///
/// Needs no lease: of several who want the same row, one gets it.
pub trait DeadRows: Send + Sync {
    /// Dead rows, in the order in which they died.
    ///
    /// # Errors
    /// When the database cannot be asked.
    fn buried<'a>(
        &'a self,
        filter: &'a DeadRowFilter,
        limit: u32,
    ) -> BoxFuture<'a, Result<Vec<BuriedRow>, AdapterError>>;

    /// How many dead rows are meant, the largest group first.
    ///
    /// # Errors
    /// When the database cannot be asked.
    fn buried_groups<'a>(
        &'a self,
        filter: &'a DeadRowFilter,
    ) -> BoxFuture<'a, Result<Vec<DeadGroup>, AdapterError>>;

    /// Moves up to `limit` rows back into the outbox, those with the lowest numbers first; returns how many. They keep
    /// their order and their ids, get new numbers, and count as written now. All of them move, or none; a row that is
    /// no longer dead is not moved.
    ///
    /// Whoever moves all asks until nothing is moved, with [`up_to`](DeadRowFilter::up_to): a row may die again
    /// meanwhile.
    ///
    /// # Errors
    /// When the database cannot be asked, or lacks a permission; nothing is moved then, unless the connection was
    /// lost, after which that is unknown and asking again is safe.
    fn retry_buried<'a>(
        &'a self,
        filter: &'a DeadRowFilter,
        limit: u32,
    ) -> BoxFuture<'a, Result<u64, AdapterError>>;

    /// Deletes up to `limit` dead rows, those with the lowest numbers first, for good; returns how many.
    ///
    /// # Errors
    /// As [`retry_buried`](DeadRows::retry_buried).
    fn discard_buried<'a>(
        &'a self,
        filter: &'a DeadRowFilter,
        limit: u32,
    ) -> BoxFuture<'a, Result<u64, AdapterError>>;
}
