//! Moving scheduled rows into the outbox when their time has come, beside everything else.
//!
//! A look once a second finds what has fallen due. After a batch the next one follows as soon as everything that was
//! read has been sent on: however many rows fall due at once, a row that is written meanwhile has one batch before it.
//! One batch a second comes in any case, so that the outbox's own rows do not keep scheduled ones out for ever.

use std::sync::Arc;
use std::time::Duration;

use backstop_core::lease::Lease;
use backstop_core::outbox::OutboxStore;
use backstop_core::{AdapterError, crash_point};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::outage::Outage;
use super::settings::PumpSettings;
use super::settling::guarded;

/// Rows of one batch.
const ROWS: u32 = 1_000;
/// Bytes of one batch: the lease cannot be renewed while it moves.
const BYTES: u64 = 4 << 20;

/// A promotion that has ended.
#[derive(Debug)]
pub(super) struct Promoted {
    /// Of the lease under which it began.
    pub(super) token: i64,
    /// How many rows moved; `None` when the lease was no longer ours.
    pub(super) result: Result<Option<u64>, AdapterError>,
}

/// The next promotion, and the one that is under way.
pub(super) struct Promotions {
    store: Arc<dyn OutboxStore>,
    every: Duration,
    next: Instant,
    /// The last one moved something, so that there may be more.
    eager: bool,
    outage: Outage,
    task: JoinSet<Promoted>,
}

impl Promotions {
    pub(super) fn new(store: Arc<dyn OutboxStore>, settings: &PumpSettings) -> Self {
        Self {
            store,
            every: settings.promote_poll,
            next: Instant::now(),
            eager: false,
            outage: Outage::new("moving scheduled rows", settings.retry_min, settings.retry_max),
            task: JoinSet::new(),
        }
    }

    /// When to look next, whatever else there is to do; `None` while a promotion is under way.
    pub(super) fn due(&self) -> Option<Instant> {
        self.task.is_empty().then_some(self.next)
    }

    /// Whether none is under way.
    pub(super) fn are_at_rest(&self) -> bool {
        self.task.is_empty()
    }

    /// Starts a promotion when it is due, or when there may be more and all that was read has been sent on.
    pub(super) fn start(&mut self, now: Instant, lease: &Lease, caught_up: bool, limit: Duration) {
        let wanted = self.due().is_some_and(|due| due <= now || (self.eager && caught_up));
        if !wanted {
            return;
        }
        self.next = now + self.every;
        let (store, lease) = (self.store.clone(), lease.clone());
        self.task.spawn(async move {
            let result = guarded(limit, "moving scheduled", store.promote(&lease, ROWS, BYTES)).await;
            if matches!(result, Ok(Some(1..))) {
                crash_point!("relay.promoted");
            }
            Promoted { token: lease.token, result }
        });
    }

    /// Waits for a promotion to end; for ever when there is none. Cancel-safe.
    pub(super) async fn done(&mut self) -> Promoted {
        match self.task.join_next().await {
            Some(ended) => ended.expect("promotions catch their panics and are never aborted"),
            None => std::future::pending().await,
        }
    }

    /// So many rows moved.
    pub(super) fn succeeded(&mut self, rows: u64) {
        self.outage.works();
        self.eager = rows > 0;
    }

    /// It failed: the rows are where they were, or moved, and the next one finds out.
    pub(super) fn failed(&mut self, error: &AdapterError) {
        self.eager = false;
        self.next = self.next.max(Instant::now() + self.outage.failed(error));
    }
}
