//! How the jobs of this process stand, for probes and metrics.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use backstop_core::outbox::{OutboxStatus, OutboxStore};
use futures_util::future::join_all;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use crate::pump::{PumpState, PumpStatus, Tally, Traffic, Trouble};
use crate::receipts::ReceiptCounts;

/// How long the count of pending rows is taken for current, and a failed one not tried again: counting costs the database
/// a scan, and a database that is gone costs whoever asks their patience.
const COUNTED_EVERY: Duration = Duration::from_secs(15);
/// How long a count may take. Prometheus waits 10 s for the whole page.
const PATIENCE: Duration = Duration::from_secs(4);

/// The jobs of one process. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Jobs {
    outboxes: Arc<Vec<OutboxJob>>,
    receipts: Arc<ReceiptCounts>,
}

/// One outbox that this process drains, or stands by for.
#[derive(Debug)]
pub struct OutboxJob {
    name: String,
    started: OnceLock<Started>,
    backlog: Mutex<Backlog>,
}

/// What waits in an outbox, as far as it could be counted.
#[derive(Debug, Default)]
struct Backlog {
    /// When it was counted last, in vain or not.
    asked: Option<Instant>,
    counted: Option<OutboxStatus>,
}

struct Started {
    store: Arc<dyn OutboxStore>,
    status: watch::Receiver<PumpStatus>,
    traffic: Arc<Traffic>,
}

impl std::fmt::Debug for Started {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Started").field("status", &self.status).finish_non_exhaustive()
    }
}

/// A job in one word, and why it is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Report {
    /// The outbox.
    pub outbox: String,
    /// `starting`, `standby`, `running`, `waiting` or `draining`.
    pub state: &'static str,
    /// Whether the job does what it is for. Another relay's standby does.
    pub ready: bool,
    /// What keeps it from that, if it is not its state: `lease`, `broker` or `deletes`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trouble: Option<&'static str>,
}

impl Jobs {
    /// Jobs that have not started yet.
    pub fn new(outboxes: impl IntoIterator<Item = String>) -> Self {
        let job = |name| OutboxJob { name, started: OnceLock::new(), backlog: Mutex::default() };
        Self { outboxes: Arc::new(outboxes.into_iter().map(job).collect()), receipts: Arc::default() }
    }

    /// The pump of that outbox has been made.
    pub fn started(
        &self,
        outbox: &str,
        store: Arc<dyn OutboxStore>,
        status: watch::Receiver<PumpStatus>,
        traffic: Arc<Traffic>,
    ) {
        if let Some(job) = self.outboxes.iter().find(|job| job.name == outbox) {
            // A pump is made once; a second one would tell of the same outbox.
            let _ = job.started.set(Started { store, status, traffic });
        }
    }

    /// Every job, in a word.
    pub fn reports(&self) -> Vec<Report> {
        self.outboxes.iter().map(OutboxJob::report).collect()
    }

    /// Every job.
    pub fn outboxes(&self) -> &[OutboxJob] {
        &self.outboxes
    }

    /// What was read of receipts and reports.
    pub fn receipts(&self) -> &Arc<ReceiptCounts> {
        &self.receipts
    }

    /// Counts what waits in each outbox, side by side, unless that was tried a moment ago. A count that fails leaves the
    /// old one.
    pub async fn count(&self) {
        join_all(self.outboxes.iter().map(OutboxJob::count)).await;
    }
}

impl OutboxJob {
    /// The outbox.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The outbox's database; `None` before the pump starts.
    pub(crate) fn store(&self) -> Option<&dyn OutboxStore> {
        self.started.get().map(|started| &*started.store)
    }

    /// The pump's own account; `None` before it starts.
    pub fn status(&self) -> Option<PumpStatus> {
        self.started.get().map(|started| started.status.borrow().clone())
    }

    /// What became of the messages for each destination; nothing before the pump starts.
    pub fn tallies(&self) -> Vec<Tally> {
        self.started.get().map(|started| started.traffic.tallies()).unwrap_or_default()
    }

    /// What waited when it was counted last; `None` before the first count.
    pub fn backlog(&self) -> Option<OutboxStatus> {
        self.known().counted.clone()
    }

    fn known(&self) -> MutexGuard<'_, Backlog> {
        self.backlog.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn count(&self) {
        let Some(started) = self.started.get() else { return };
        if self.known().asked.is_some_and(|at| at.elapsed() < COUNTED_EVERY) {
            return;
        }
        let answer = timeout(PATIENCE, started.store.status()).await;
        let mut known = self.known();
        known.asked = Some(Instant::now());
        if let Ok(Ok(status)) = answer {
            known.counted = Some(status);
        }
    }

    fn report(&self) -> Report {
        let status = self.status();
        let trouble = status.as_ref().and_then(|status| status.trouble);
        let state = status.map(|status| status.state);
        let ready = matches!(state, Some(PumpState::Standby | PumpState::Running)) && trouble.is_none();
        let state = state.map_or("starting", PumpState::word);
        Report { outbox: self.name.clone(), state, ready, trouble: trouble.map(Trouble::as_str) }
    }
}

#[cfg(test)]
mod tests {
    use backstop_postgres::{PgOutboxStore, PgTables};
    use sqlx::PgPool;
    use tokio::net::TcpListener;
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn databases_that_are_silent_cost_little_time_together_and_none_for_a_while() {
        // It takes connections, and says nothing.
        let server = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("postgres://x@{}/x", server.local_addr().expect("an address"));
        let names = ["a", "b", "c", "d"].map(str::to_owned);
        let jobs = Jobs::new(names.clone());
        for name in &names {
            let pool = PgPool::connect_lazy(&url).expect("a URL");
            let store = Arc::new(PgOutboxStore::new(pool, PgTables::default()));
            let (_sender, status) = watch::channel(PumpStatus::default());
            jobs.started(name, store, status, Arc::default());
        }
        for expected in [PATIENCE, Duration::ZERO] {
            let begun = Instant::now();
            jobs.count().await;
            // A timer is up to a millisecond late.
            assert!(begun.elapsed() <= expected + Duration::from_millis(5), "{:?}", begun.elapsed());
        }
        advance(COUNTED_EVERY).await;
        let begun = Instant::now();
        jobs.count().await;
        assert!(begun.elapsed() >= PATIENCE, "they are asked again");
    }
}
