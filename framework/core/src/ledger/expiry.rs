//! Letters whose time in the ledger is over.

use chrono::{DateTime, Utc};

use super::{Letter, LetterEvent, LetterStatus};

/// Which letters' time is over: those of one status that died before a time, and that nothing has happened to since.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expiry {
    /// The status.
    pub status: LetterStatus,
    /// The time. Letters that died then, or that something happened to then or later, stay.
    pub before: DateTime<Utc>,
}

impl Expiry {
    /// Whether the letter's time is over, as far as it and its history tell.
    pub fn applies_to(&self, letter: &Letter, history: &[LetterEvent]) -> bool {
        letter.status == self.status
            && letter.hold.is_none()
            && letter.seen_at() < self.before
            && history.iter().all(|event| event.at < self.before)
    }
}

/// A letter whose time is over, and what happened to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expired {
    /// The letter.
    pub letter: Letter,
    /// Its history, oldest first.
    pub history: Vec<LetterEvent>,
}
