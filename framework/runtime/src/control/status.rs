//! What a consumer tells of itself.

use std::fmt;
use std::time::Duration;

use backstop_core::Origin;
use backstop_core::source::PartitionProgress;
use serde::Serialize;

use crate::control::breaker::{BreakerCause, BreakerPhase};
use crate::control::registry::Entry;
use crate::control::waiting::{WaitingKey, cut};
use crate::stats::Snapshot;

/// Messages at work that are told of, at most.
pub(crate) const MOST_AT_WORK: usize = 20;

/// Where a consumer is in its life, and what keeps it from its work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum RunState {
    /// It waits for its database or its dead-letter destination, or was not run yet.
    Starting,
    /// It takes messages.
    Running,
    /// Somebody paused it.
    Paused,
    /// Something is down, or somebody opened the breaker.
    BreakerOpen,
    /// It finishes what runs, and takes nothing new.
    Draining,
    /// Its loop has ended.
    Stopped,
}

/// What a consumer tells of itself at one moment.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct ConsumerStatus {
    /// Its name.
    pub consumer: String,
    /// Where it is in its life.
    pub state: RunState,
    /// Its breaker.
    pub breaker: BreakerStatus,
    /// What stands still, where something does.
    pub stalled: Option<Stalled>,
    /// Messages that the source has handed over and that are not done.
    pub in_flight: usize,
    /// Messages that are being worked on, the oldest first; a bounded number.
    pub at_work: Vec<MessageAtWork>,
    /// How far the source is in each of its partitions; empty where it does not tell.
    pub partitions: Vec<PartitionProgress>,
    /// The lag of all partitions together; `None` where it is not known of any.
    pub lag: Option<u64>,
    /// Keys that wait because a message of theirs failed here, those that wait longest first; a bounded number.
    pub waiting_keys: Vec<WaitingKey>,
    /// What it has done so far.
    pub counters: Snapshot,
}

/// How the breaker stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct BreakerStatus {
    /// Whether it is open.
    pub state: BreakerPhase,
    /// Why, where it is open.
    pub cause: Option<BreakerCause>,
    /// For how many seconds it has been open.
    pub open_for_s: Option<u64>,
}

/// A message that is being worked on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct MessageAtWork {
    /// Topic or queue.
    pub place: String,
    /// Kafka's partition.
    pub partition: Option<i32>,
    /// Kafka's offset.
    pub offset: Option<i64>,
    /// The key, escaped, redacted and cut.
    pub key: Option<String>,
    /// Which attempt it is.
    pub attempt: u32,
    /// For how many seconds.
    pub for_s: u64,
}

/// Work waits, and nothing is completed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Stalled {
    /// The consumer's name.
    pub consumer: String,
    /// Messages that wait or are being worked on.
    pub in_flight: usize,
    /// The one that has been worked on for the longest.
    pub message: MessageAtWork,
}

impl fmt::Display for Stalled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { consumer, in_flight, message } = self;
        write!(f, "consumer \"{consumer}\" completes nothing: {message}, {in_flight} in flight")
    }
}

impl std::error::Error for Stalled {}

impl MessageAtWork {
    pub(crate) fn of(entry: &Entry, redact: impl Fn(&str) -> String) -> Self {
        let offset = match &entry.origin {
            Origin::Kafka { offset, .. } => Some(*offset),
            _ => None,
        };
        let escaped = |key: &bytes::Bytes| String::from_utf8_lossy(key).escape_debug().to_string();
        Self {
            place: entry.origin.place().to_owned(),
            partition: entry.origin.partition(),
            offset,
            key: entry.key.as_ref().map(|key| cut(&redact(&escaped(key)))),
            attempt: entry.attempt,
            for_s: entry.since.elapsed().as_secs(),
        }
    }
}

impl fmt::Display for MessageAtWork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.place)?;
        if let Some(partition) = self.partition {
            write!(f, " partition {partition}")?;
        }
        if let Some(offset) = self.offset {
            write!(f, " offset {offset}")?;
        }
        if let Some(key) = &self.key {
            write!(f, " key \"{key}\"")?;
        }
        write!(f, " attempt {} is at work for {:?}", self.attempt, Duration::from_secs(self.for_s))
    }
}
