//! What a pump tells about itself, while it runs and at its end.

use std::fmt;

use backstop_core::sink::PublishError;
use backstop_core::{AdapterError, Destination, FaultKind};
use bytes::Bytes;
use chrono::{DateTime, Utc};
use tokio::sync::watch;
use tokio::time::{Duration, Instant};

/// What a pump is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PumpState {
    /// Another relay owns the outbox, or the lease cannot be asked for.
    #[default]
    Standby,
    /// Rows flow.
    Running,
    /// Broker or database failed; the pump waits and then begins again at the lowest unconfirmed row.
    Waiting,
    /// Shutting down: nothing new is sent, the rest is waited for.
    Draining,
}

impl PumpState {
    /// As people and programs read it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Standby => "standby",
            Self::Running => "running",
            Self::Waiting => "waiting",
            Self::Draining => "draining",
        }
    }
}

/// Why rows do not flow, or pile up, although the pump runs or stands by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// The database cannot be asked for the lease: this relay could not take over.
    Lease,
    /// A broker cannot be reached or confirms nothing, and nothing else was confirmed for
    /// [`stall_after`](super::PumpSettings::stall_after).
    Broker,
    /// Published rows could not be deleted for as long: they would be published again by another owner.
    Deletes,
}

impl Trouble {
    /// In one word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Lease => "lease",
            Self::Broker => "broker",
            Self::Deletes => "deletes",
        }
    }
}

/// An error as it is shown: its one line, its remedy, and since when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Coarse kind.
    pub kind: FaultKind,
    /// What failed, in one line.
    pub what: String,
    /// How to mend it.
    pub hint: Option<String>,
    /// When it happened first, for a lasting one.
    pub at: DateTime<Utc>,
}

impl From<&AdapterError> for Fault {
    fn from(error: &AdapterError) -> Self {
        Self {
            kind: error.kind(),
            what: error.to_string(),
            hint: error.hint().map(str::to_owned),
            at: Utc::now(),
        }
    }
}

/// A destination that takes nothing now; rows for others flow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PausedDestination {
    /// Which.
    pub destination: Destination,
    /// The lowest row that waits, where known.
    pub from: Option<i64>,
    /// Why.
    pub fault: Fault,
}

/// A key whose first row cannot be sent, so that later rows of it wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockedKey {
    /// Where its rows go.
    pub destination: Destination,
    /// The key; `None` for a single row without one.
    pub key: Option<Bytes>,
    /// The row that cannot be sent, where known.
    pub from: Option<i64>,
    /// Why.
    pub fault: Fault,
}

/// How a pump stands. Counters run from its start.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PumpStatus {
    /// What it does.
    pub state: PumpState,
    /// What keeps it from that.
    pub trouble: Option<Trouble>,
    /// The fencing token while this relay owns the outbox.
    pub token: Option<i64>,
    /// Messages that the broker confirmed, duplicates included.
    pub published: u64,
    /// Rows deleted after confirmation.
    pub deleted: u64,
    /// Rows moved to the dead.
    pub dead: u64,
    /// Scheduled rows moved into the outbox.
    pub promoted: u64,
    /// Rows that can never be sent and are not yet moved to the dead; more than 10,000 are not counted.
    pub unburied: usize,
    /// Rows that only the full scan found.
    pub stragglers: u64,
    /// Messages submitted and not confirmed.
    pub under_way: usize,
    /// Rows confirmed and not yet deleted.
    pub undeleted: usize,
    /// Rows read ahead and not submitted.
    pub buffered: usize,
    /// Destinations that take nothing now; at most 100 are listed.
    pub paused: Vec<PausedDestination>,
    /// Keys that are blocked; at most 100 are listed.
    pub blocked: Vec<BlockedKey>,
    /// How many destinations are paused.
    pub paused_count: usize,
    /// How many keys are blocked.
    pub blocked_count: usize,
    /// The last failure of broker, database or lease.
    pub last_error: Option<Fault>,
}

/// What a pump did until it was told to stop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PumpReport {
    /// The last status: counters, paused destinations, blocked keys.
    pub status: PumpStatus,
    /// Messages whose confirmation did not come in time: they will be published again, with the same id.
    pub unconfirmed: usize,
    /// Confirmed rows that could not be deleted in time: they will be published again, with the same id.
    pub undeleted: usize,
}

/// Why a pump ended although nobody told it to.
#[derive(Debug)]
pub enum PumpError {
    /// A row can never be sent, and [`OnUnsendable::Stop`](super::OnUnsendable::Stop) was chosen.
    Unsendable {
        /// The row's number.
        seq: i64,
        /// Where it was to go.
        destination: Destination,
        /// Why not.
        error: PublishError,
    },
    /// Messages stay unconfirmed although the publisher was told to give them up: only a new process is rid of them.
    Unconfirmed {
        /// How many.
        under_way: usize,
        /// Where they were to go.
        destinations: String,
    },
    /// The task that keeps the lease has died.
    OwnerLost,
}

impl fmt::Display for PumpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unsendable { seq, destination, .. } => {
                write!(f, "row {seq} cannot be sent to {destination}, and on_unsendable is stop")
            }
            Self::Unconfirmed { under_way, destinations } => {
                write!(f, "{under_way} messages for {destinations} are not confirmed and cannot be given up")
            }
            Self::OwnerLost => f.write_str("the task that keeps the lease has ended"),
        }
    }
}

impl std::error::Error for PumpError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Unsendable { error, .. } => Some(error),
            Self::Unconfirmed { .. } | Self::OwnerLost => None,
        }
    }
}

/// How many paused destinations and blocked keys are listed.
pub(super) const LISTED: usize = 100;
const EVERY: Duration = Duration::from_millis(100);

/// Publishes the status: at once when it matters, otherwise every 100 ms, never for each row.
pub(super) struct Board {
    pub(super) status: PumpStatus,
    sender: watch::Sender<PumpStatus>,
    shown: Instant,
    urgent: bool,
    touched: bool,
}

impl Board {
    pub(super) fn new() -> (Self, watch::Receiver<PumpStatus>) {
        let (sender, receiver) = watch::channel(PumpStatus::default());
        (
            Self {
                status: PumpStatus::default(),
                sender,
                shown: Instant::now(),
                urgent: false,
                touched: false,
            },
            receiver,
        )
    }

    /// Something changed that should not wait.
    pub(super) fn urgent(&mut self) {
        self.urgent = true;
    }

    pub(super) fn fault(&mut self, error: &AdapterError) {
        self.status.last_error = Some(error.into());
        self.urgent = true;
    }

    /// Something changed that can wait a little.
    pub(super) fn touch(&mut self) {
        self.touched = true;
    }

    /// When to show; `None` when readers see how things are.
    pub(super) fn due(&self) -> Option<Instant> {
        match (self.urgent, self.touched) {
            (true, _) => Some(self.shown),
            (false, true) => Some(self.shown + EVERY),
            (false, false) => None,
        }
    }

    pub(super) fn show(&mut self, now: Instant) {
        (self.urgent, self.touched) = (false, false);
        self.shown = now;
        self.sender.send_if_modified(|shown| {
            let changed = *shown != self.status;
            if changed {
                shown.clone_from(&self.status);
            }
            changed
        });
    }
}
