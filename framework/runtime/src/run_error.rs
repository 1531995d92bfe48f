//! The one error of this crate.

use std::fmt;

use backstop_core::AdapterError;

/// Why a consumer did not start, or stopped.
///
/// Outages are no reason: the consumer waits them out. What ends it needs somebody to change something; the
/// [hint](RunError::hint) says what.
#[derive(Debug)]
pub struct RunError {
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Setting(String),
    Source(AdapterError),
    Store(AdapterError),
    DeadLetters(AdapterError),
    MissingId(String),
    Worker(tokio::task::JoinError),
}

impl RunError {
    pub(crate) fn setting(what: impl Into<String>) -> Self {
        Self { kind: Kind::Setting(what.into()) }
    }

    pub(crate) fn source(error: AdapterError) -> Self {
        Self { kind: Kind::Source(error) }
    }

    pub(crate) fn store(error: AdapterError) -> Self {
        Self { kind: Kind::Store(error) }
    }

    pub(crate) fn dead_letters(error: AdapterError) -> Self {
        Self { kind: Kind::DeadLetters(error) }
    }

    pub(crate) fn worker(error: tokio::task::JoinError) -> Self {
        Self { kind: Kind::Worker(error) }
    }

    pub(crate) fn missing_id(origin: impl fmt::Display) -> Self {
        Self { kind: Kind::MissingId(origin.to_string()) }
    }

    /// Whether a message without an id stopped the consumer.
    pub fn is_missing_id(&self) -> bool {
        matches!(self.kind, Kind::MissingId(_))
    }

    /// What to change.
    pub fn hint(&self) -> Option<&str> {
        match &self.kind {
            Kind::Setting(_) | Kind::Worker(_) => None,
            Kind::Source(error) | Kind::Store(error) | Kind::DeadLetters(error) => error.hint(),
            Kind::MissingId(_) => Some(
                "let producers set message_id or a CloudEvents id, name the header that holds one (`id_header` of \
                 the source), or choose `missing_id(MissingId::DeadLetter)` or `MissingId::ProcessWithoutDedup`",
            ),
        }
    }
}

impl fmt::Display for RunError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            Kind::Setting(what) => f.write_str(what),
            Kind::Source(_) => f.write_str("the source ended"),
            Kind::Store(_) => f.write_str("the inbox cannot be used"),
            Kind::DeadLetters(_) => f.write_str("the dead-letter destination cannot be used"),
            Kind::Worker(_) => f.write_str("a worker of the consumer failed"),
            Kind::MissingId(origin) => write!(f, "a message in {origin} has no id"),
        }
    }
}

impl std::error::Error for RunError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.kind {
            Kind::Source(error) | Kind::Store(error) | Kind::DeadLetters(error) => Some(error),
            Kind::Worker(error) => Some(error),
            Kind::Setting(_) | Kind::MissingId(_) => None,
        }
    }
}
