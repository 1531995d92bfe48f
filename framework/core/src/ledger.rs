//! The ledger: dead letters in a database, where they can be searched and redriven.

use std::fmt;

use chrono::{DateTime, Utc};
use futures_core::future::BoxFuture;
use serde::{Deserialize, Serialize};

use crate::adapter_error::AdapterError;
use crate::lease::Leases;
use crate::message::Envelope;

/// Where a dead letter stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum LetterStatus {
    /// Waits for somebody.
    Open,
    /// Sent to its consumer's door; the outcome is not known yet.
    Redriving,
    /// Handled after all.
    Resolved,
    /// Given up, with a reason.
    Discarded,
    /// Redriven and failed again: a newer letter of the same message stands for it.
    Superseded,
}

impl LetterStatus {
    /// The status as columns and commands spell it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Redriving => "redriving",
            Self::Resolved => "resolved",
            Self::Discarded => "discarded",
            Self::Superseded => "superseded",
        }
    }

    /// The status of that name.
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Open, Self::Redriving, Self::Resolved, Self::Discarded, Self::Superseded]
            .into_iter()
            .find(|status| status.as_str() == name)
    }
}

impl fmt::Display for LetterStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What the ledger keeps of a dead letter beside its envelope.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Letter {
    /// Its identity: `backstop-dead-letter-id`, or made from the coordinates of a letter without one.
    pub id: String,
    /// Identity of the original message.
    pub message_key: Option<String>,
    /// The consumer that gave it up.
    pub consumer: Option<String>,
    /// Topic or queue that it was read from before it failed.
    pub place: Option<String>,
    /// Topic or queue in which the letter was found.
    pub found_in: String,
    /// Where to redrive it to; `None` for letters of strangers.
    pub door: Option<String>,
    /// Why it was given up.
    pub reason: Option<String>,
    /// Class of the last error.
    pub class: Option<String>,
    /// Type of the last error.
    pub error_type: Option<String>,
    /// Text of the last error.
    pub error: Option<String>,
    /// Groups equal failures.
    pub fingerprint: Option<String>,
    /// Charged attempts.
    pub attempts: Option<i64>,
    /// How often it had been redriven when it failed.
    pub generation: i64,
    /// First failure.
    pub first_failed_at: Option<DateTime<Utc>>,
    /// Quarantine.
    pub dead_at: Option<DateTime<Utc>>,
    /// Where it stands.
    pub status: LetterStatus,
    /// When the ledger took it.
    pub collected_at: DateTime<Utc>,
    /// Key, headers and body as found.
    #[serde(skip)]
    pub envelope: Envelope,
}

impl Letter {
    /// A letter that is open and has nothing but an identity, a place and an envelope.
    pub fn new(id: impl Into<String>, found_in: impl Into<String>, envelope: Envelope) -> Self {
        Self {
            id: id.into(),
            message_key: None,
            consumer: None,
            place: None,
            found_in: found_in.into(),
            door: None,
            reason: None,
            class: None,
            error_type: None,
            error: None,
            fingerprint: None,
            attempts: None,
            generation: 0,
            first_failed_at: None,
            dead_at: None,
            status: LetterStatus::Open,
            collected_at: Utc::now(),
            envelope,
        }
    }
}

/// Which letters are meant. Every field that is set narrows it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LetterFilter {
    /// Exactly these.
    pub ids: Vec<String>,
    /// Of this consumer.
    pub consumer: Option<String>,
    /// From this topic or queue.
    pub place: Option<String>,
    /// With this fingerprint.
    pub fingerprint: Option<String>,
    /// With this status.
    pub status: Option<LetterStatus>,
}

/// Something that happened to a letter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LetterEvent {
    /// When.
    pub at: DateTime<Utc>,
    /// What: `collected`, `redriven`, `failed-again`, …
    pub what: String,
    /// More of it.
    pub detail: Option<String>,
}

/// Keeps dead letters. Object-safe: the relay's configuration chooses the database.
pub trait Ledger: Leases {
    /// Writes letters that are not there yet, all or none; returns how many were new. A letter whose message was
    /// redriven and failed again puts the older letter's history on, `failed-again`, and closes it as superseded, so that
    /// there is one open letter a dead message. Older are letters of the same message and consumer with a lower
    /// generation, whether [`Redriving`](LetterStatus::Redriving) or [`Open`](LetterStatus::Open) once more because the
    /// redrive's confirmation was lost.
    ///
    /// # Errors
    /// When the database cannot be asked; the letters must not be settled then.
    fn record<'a>(&'a self, letters: &'a [Letter]) -> BoxFuture<'a, Result<u64, AdapterError>>;

    /// Letters, oldest first, from after `after` (a letter's id) on.
    ///
    /// # Errors
    /// When the database cannot be asked.
    fn list<'a>(
        &'a self,
        filter: &'a LetterFilter,
        after: Option<&'a str>,
        limit: u32,
    ) -> BoxFuture<'a, Result<Vec<Letter>, AdapterError>>;

    /// How many letters are meant.
    ///
    /// # Errors
    /// When the database cannot be asked.
    fn count<'a>(&'a self, filter: &'a LetterFilter) -> BoxFuture<'a, Result<u64, AdapterError>>;

    /// What happened to a letter, oldest first.
    ///
    /// # Errors
    /// When the database cannot be asked.
    fn history<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Vec<LetterEvent>, AdapterError>>;

    /// Moves letters from one status to another and writes `what` into their history; returns those that moved.
    ///
    /// # Errors
    /// When the database cannot be asked.
    fn mark<'a>(
        &'a self,
        ids: &'a [String],
        from: LetterStatus,
        to: LetterStatus,
        what: &'a str,
        detail: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Vec<String>, AdapterError>>;
}
