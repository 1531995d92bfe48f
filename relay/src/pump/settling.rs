//! Writing back: confirmed rows are deleted in batches, while reading and publishing go on.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use backstop_core::outbox::{OutboxStore, RowId};
use backstop_core::{AdapterError, FaultKind};
use futures_util::FutureExt;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::flight::Entry;
use super::settings::PumpSettings;

/// Deleted at once at most, however many wait.
const LARGEST: usize = 5_000;

/// A batch of deletes that has ended.
#[derive(Debug)]
pub(super) struct Deleted {
    pub(super) batch: u64,
    pub(super) result: Result<(), AdapterError>,
}

/// What waits to be written back, and what is being written.
pub(super) struct Settling {
    store: Arc<dyn OutboxStore>,
    confirmed: Vec<Entry>,
    waiting_since: Instant,
    not_before: Instant,
    deleting: HashMap<u64, Vec<Entry>>,
    deleting_rows: usize,
    next_batch: u64,
    tasks: JoinSet<Deleted>,
}

impl Settling {
    pub(super) fn new(store: Arc<dyn OutboxStore>) -> Self {
        let now = Instant::now();
        Self {
            store,
            confirmed: Vec::new(),
            waiting_since: now,
            not_before: now,
            deleting: HashMap::new(),
            deleting_rows: 0,
            next_batch: 0,
            tasks: JoinSet::new(),
        }
    }

    /// The broker has this row.
    pub(super) fn confirmed(&mut self, entry: Entry, now: Instant) {
        if self.confirmed.is_empty() {
            self.waiting_since = now;
        }
        self.confirmed.push(entry);
    }

    /// Rows confirmed and not yet deleted.
    pub(super) fn undeleted(&self) -> usize {
        self.confirmed.len() + self.deleting_rows
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.confirmed.iter().chain(self.deleting.values().flatten())
    }

    /// When there is something to start; `None` when nothing waits or enough is under way.
    pub(super) fn due(&self, flush: bool, settings: &PumpSettings) -> Option<Instant> {
        (!self.confirmed.is_empty() && self.deleting.len() < settings.deletes).then(|| {
            let due = if flush || self.confirmed.len() >= settings.delete_rows {
                self.waiting_since
            } else {
                self.waiting_since + settings.delete_linger
            };
            due.max(self.not_before)
        })
    }

    /// Starts what is due.
    pub(super) fn start(&mut self, now: Instant, flush: bool, settings: &PumpSettings) {
        while self.due(flush, settings).is_some_and(|due| due <= now) {
            self.start_delete(settings.database_timeout);
        }
    }

    fn start_delete(&mut self, limit: Duration) {
        let rest = self.confirmed.split_off(self.confirmed.len().min(LARGEST));
        let entries = std::mem::replace(&mut self.confirmed, rest);
        let mut rows: Vec<RowId> =
            entries.iter().map(|entry| RowId { seq: entry.seq, id: entry.id.clone() }).collect();
        rows.sort_unstable();
        let batch = self.next_batch;
        self.next_batch += 1;
        self.deleting_rows += entries.len();
        self.deleting.insert(batch, entries);
        let store = self.store.clone();
        self.tasks.spawn(async move {
            let result = guarded(limit, "deleting", store.delete(&rows)).await;
            Deleted { batch, result }
        });
    }

    /// Waits for a batch to end; for ever when there is none. Cancel-safe.
    pub(super) async fn done(&mut self) -> Deleted {
        match self.tasks.join_next().await {
            Some(ended) => ended.expect("writes catch their panics and are never aborted"),
            None => std::future::pending().await,
        }
    }

    /// Rows of a batch whose delete has ended.
    pub(super) fn take(&mut self, batch: u64) -> Vec<Entry> {
        let entries = self.deleting.remove(&batch).unwrap_or_default();
        self.deleting_rows -= entries.len();
        entries
    }

    /// Rows that were confirmed but not deleted, to be deleted once more after `wait`.
    pub(super) fn delete_again(&mut self, entries: Vec<Entry>, wait: Duration) {
        self.confirmed.extend(entries);
        self.not_before = Instant::now() + wait;
    }

    /// Forgets what waits, though not what is being written: the rows are still in the outbox and are read again.
    pub(super) fn abandon(&mut self) {
        self.confirmed.clear();
        self.not_before = Instant::now();
    }
}

/// The outcome of a write that may also hang or panic.
pub(super) async fn guarded<T>(
    limit: Duration,
    what: &str,
    write: impl Future<Output = Result<T, AdapterError>>,
) -> Result<T, AdapterError> {
    match timeout(limit, AssertUnwindSafe(write).catch_unwind()).await {
        Ok(Ok(result)) => result,
        Ok(Err(_)) => Err(AdapterError::new(FaultKind::Other, format!("{what} rows of the outbox panicked"))),
        Err(_) => {
            Err(AdapterError::new(FaultKind::Unreachable, format!("{what} rows of the outbox took too long")))
        }
    }
}
