//! The audit log of a ledger: who did what by hand, when, from where, and how it ended. It only grows.

use chrono::{DateTime, Utc};
use futures_core::future::BoxFuture;
use serde::{Deserialize, Serialize};

use crate::adapter_error::AdapterError;

/// How far an action had come when an entry was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AuditStep {
    /// It begins; where no other entry follows, nobody knows how it ended.
    Begun,
    /// It was done.
    Done,
    /// It was not allowed, or made no sense: nothing was done.
    Refused,
    /// It failed on its way; a part of it may be done.
    Failed,
}

impl AuditStep {
    /// The word as columns and pages spell it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Begun => "begun",
            Self::Done => "done",
            Self::Refused => "refused",
            Self::Failed => "failed",
        }
    }

    /// What that word means.
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Begun, Self::Done, Self::Refused, Self::Failed].into_iter().find(|step| step.as_str() == name)
    }
}

/// What is written into the audit log. No body and no secret belongs into it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NewAuditEntry {
    /// The same for all entries of one action.
    pub deed: String,
    /// How far it has come.
    pub step: AuditStep,
    /// Who, by the name that they gave.
    pub who: String,
    /// What they may do: `operator`, `viewer`, or `relay` for what the relay does by itself.
    pub role: String,
    /// From where: the console, the API or a command line, and which host.
    pub origin: String,
    /// What, such as `redrive.start`.
    pub action: String,
    /// To what: an id, or a filter as it stands in an address.
    pub object: String,
    /// The redrive that it is about.
    pub redrive: Option<String>,
    /// How many letters, or other things, it is about; `None` where that is no question.
    pub letters: Option<u64>,
    /// Why, as they said.
    pub because: Option<String>,
    /// Why it was refused, or failed.
    pub error: Option<String>,
}

/// An entry of the audit log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AuditEntry {
    /// Grows with each entry.
    pub n: i64,
    /// When, by the database's clock.
    pub at: DateTime<Utc>,
    /// What was written.
    #[serde(flatten)]
    pub entry: NewAuditEntry,
}

/// Which entries are meant. Every field narrows the choice; the default means all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AuditFilter {
    /// Older than the one with this number.
    pub before: Option<i64>,
    /// Of actions whose names begin so.
    pub action: Option<String>,
    /// Of this person.
    pub who: Option<String>,
    /// About this redrive.
    pub redrive: Option<String>,
}

impl AuditFilter {
    /// Whether an entry is meant.
    pub fn matches(&self, entry: &AuditEntry) -> bool {
        let AuditEntry { n, entry, .. } = entry;
        self.before.is_none_or(|before| *n < before)
            && self.action.as_ref().is_none_or(|action| entry.action.starts_with(action.as_str()))
            && self.who.as_ref().is_none_or(|who| entry.who == *who)
            && (self.redrive.is_none() || self.redrive == entry.redrive)
    }
}

/// The audit log. Object-safe, like the [`Ledger`](super::Ledger) to which it belongs.
pub trait AuditLog: Send + Sync {
    /// Writes an entry; it is durable when this returns, and is never changed or removed.
    ///
    /// # Errors
    /// When the database cannot be asked: what was to be written down must not be done then.
    fn write_audit<'a>(&'a self, entry: &'a NewAuditEntry) -> BoxFuture<'a, Result<(), AdapterError>>;

    /// Entries that are meant, newest first, at most `limit`. The beginning of an action that has ended is left out.
    ///
    /// # Errors
    /// When the database cannot be asked.
    fn read_audit<'a>(
        &'a self,
        filter: &'a AuditFilter,
        limit: u32,
    ) -> BoxFuture<'a, Result<Vec<AuditEntry>, AdapterError>>;
}
