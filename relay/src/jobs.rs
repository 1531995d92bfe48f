//! How the jobs of this process stand, for probes and metrics.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use backstop_core::outbox::{OutboxStatus, OutboxStore};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::pump::{PumpState, PumpStatus, Tally, Traffic, Trouble};
use crate::receipts::ReceiptCounts;

/// How long the count of pending rows is taken for current: counting costs the database a scan.
const COUNTED_EVERY: Duration = Duration::from_secs(15);
/// How long a count may take.
const PATIENCE: Duration = Duration::from_secs(5);

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
    backlog: Mutex<Option<(Instant, OutboxStatus)>>,
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

    /// Counts what waits in each outbox, unless that was done a moment ago. A count that fails leaves the old one.
    pub async fn count(&self) {
        for job in self.outboxes.iter() {
            job.count().await;
        }
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
        self.counted().map(|(_, status)| status)
    }

    fn counted(&self) -> Option<(Instant, OutboxStatus)> {
        self.backlog.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn count(&self) {
        let Some(started) = self.started.get() else { return };
        if self.counted().is_some_and(|(at, _)| at.elapsed() < COUNTED_EVERY) {
            return;
        }
        if let Ok(Ok(status)) = timeout(PATIENCE, started.store.status()).await {
            *self.backlog.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), status));
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
