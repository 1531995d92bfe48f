//! The one error that adapters report: what failed, of which kind, and how to mend it.

use std::fmt;

use crate::error::BoxError;

/// What went wrong at a broker or database, coarse enough to decide what to do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FaultKind {
    /// The server cannot be reached, is starting, shutting down or fails over. Waiting may help.
    Unreachable,
    /// Credentials are wrong or a permission is missing.
    Denied,
    /// A table, topic, exchange or queue does not exist.
    Missing,
    /// A lost race: deadlock, serialization failure, lock timeout. Trying again may help at once.
    Conflict,
    /// A setting, name or value that can never work.
    Invalid,
    /// The handler ended the transaction that it was lent.
    TransactionEnded,
    /// Anything else.
    Other,
}

/// An error of a broker or database adapter.
///
/// `Display` says what failed in one line, without the cause; the cause is in [`source`](std::error::Error::source)
/// and the remedy, where one is known, in [`hint`](AdapterError::hint). No secret is ever part of either: adapters
/// name hosts and objects, never credentials.
///
/// ```
/// use backstop_core::{AdapterError, FaultKind};
///
/// let error = AdapterError::new(FaultKind::Missing, "table backstop_outbox does not exist")
///     .with_hint("run `backstop-relay migrate`");
/// assert_eq!(error.to_string(), "table backstop_outbox does not exist");
/// assert_eq!(error.hint(), Some("run `backstop-relay migrate`"));
/// ```
#[derive(Debug)]
pub struct AdapterError {
    kind: FaultKind,
    what: String,
    hint: Option<String>,
    source: Option<BoxError>,
}

impl AdapterError {
    /// An error of `kind`; `what` is one line, lowercase, without a full stop.
    pub fn new(kind: FaultKind, what: impl Into<String>) -> Self {
        Self { kind, what: what.into(), hint: None, source: None }
    }

    /// Adds the remedy: one line in the imperative.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds the cause.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<BoxError>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// The kind of fault.
    pub fn kind(&self) -> FaultKind {
        self.kind
    }

    /// How to mend it, where that is known.
    pub fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// Whether waiting and trying again can help without anybody changing anything.
    pub fn is_retryable(&self) -> bool {
        matches!(self.kind, FaultKind::Unreachable | FaultKind::Conflict)
    }
}

impl fmt::Display for AdapterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for AdapterError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}
