//! Letters that failed alike, and how many of them stand where.

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::LetterStatus;

/// Letters of one fingerprint, consumer, place, class and reason. Every letter is in exactly one group.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct LetterGroup {
    /// Fingerprint; strangers' letters have none.
    pub fingerprint: Option<String>,
    /// The consumer that gave them up.
    pub consumer: Option<String>,
    /// Topic or queue that they were read from before they failed.
    pub place: Option<String>,
    /// Class of the last error.
    pub class: Option<String>,
    /// Why they were given up.
    pub reason: Option<String>,
    /// Type of the error, of the first letter.
    pub error_type: Option<String>,
    /// Text of the error, of the first letter.
    pub error: Option<String>,
    /// How many are meant: the sum of [`by_status`](Self::by_status).
    pub letters: u64,
    /// Where those that are meant stand.
    pub by_status: StatusCounts,
    /// When the first letter of the group died, whatever became of it.
    pub first_seen: DateTime<Utc>,
    /// When the last one did.
    pub last_seen: DateTime<Utc>,
    /// How many letters of the group, of any status, died in the last 60 minutes.
    pub last_hour: u64,
}

/// How many letters died in a minute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct LetterMinute {
    /// The minute's beginning.
    pub at: DateTime<Utc>,
    /// Letters of any status.
    pub letters: u64,
}

/// How many letters have which status.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct StatusCounts {
    /// Waiting for somebody.
    pub open: u64,
    /// Sent; the outcome is not known yet.
    pub redriving: u64,
    /// Handled after all.
    pub resolved: u64,
    /// Given up, with a reason.
    pub discarded: u64,
    /// Failed again: a newer letter stands for them.
    pub superseded: u64,
}

impl StatusCounts {
    /// Adds letters.
    pub fn add(&mut self, status: LetterStatus, letters: u64) {
        *match status {
            LetterStatus::Open => &mut self.open,
            LetterStatus::Redriving => &mut self.redriving,
            LetterStatus::Resolved => &mut self.resolved,
            LetterStatus::Discarded => &mut self.discarded,
            LetterStatus::Superseded => &mut self.superseded,
        } += letters;
    }

    /// All of them.
    pub fn sum(&self) -> u64 {
        self.open + self.redriving + self.resolved + self.discarded + self.superseded
    }
}
