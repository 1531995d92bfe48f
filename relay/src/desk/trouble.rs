//! Why something was not done, for programs and people.

use std::time::Duration;

use axum::http::StatusCode;
use backstop_core::{AdapterError, FaultKind};

use crate::encryption::Locked;
use crate::exit::with_cause;

/// What sort of trouble it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The request makes no sense.
    Invalid,
    /// The caller may not do it.
    Forbidden,
    /// There is no such thing.
    Missing,
    /// Something has changed meanwhile, or does not fit where it stands.
    Conflict,
    /// The database cannot be asked now.
    Unreachable,
    /// Anything else.
    Failed,
}

impl Kind {
    pub(crate) const fn status(self) -> StatusCode {
        match self {
            Self::Invalid => StatusCode::BAD_REQUEST,
            Self::Forbidden => StatusCode::FORBIDDEN,
            Self::Missing => StatusCode::NOT_FOUND,
            Self::Conflict => StatusCode::CONFLICT,
            Self::Unreachable => StatusCode::SERVICE_UNAVAILABLE,
            Self::Failed => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// The last part of the problem's type.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::Forbidden => "forbidden",
            Self::Missing => "not-found",
            Self::Conflict => "conflict",
            Self::Unreachable => "unavailable",
            Self::Failed => "failed",
        }
    }

    /// The same for every trouble of this kind.
    pub(crate) const fn title(self) -> &'static str {
        match self {
            Self::Invalid => "The request makes no sense",
            Self::Forbidden => "Not allowed",
            Self::Missing => "Not found",
            Self::Conflict => "Not as things stand",
            Self::Unreachable => "The ledger cannot be asked now",
            Self::Failed => "It failed",
        }
    }
}

/// Why something was not done. Nothing was, unless the text says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Trouble {
    pub(crate) kind: Kind,
    /// What is wrong, in one line.
    pub(crate) what: String,
    /// What to do about it.
    pub(crate) hint: String,
}

impl Trouble {
    pub(crate) fn new(kind: Kind, what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { kind, what: what.into(), hint: hint.into() }
    }

    /// A value that cannot be one.
    pub(crate) fn invalid(what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(Kind::Invalid, what, hint)
    }

    /// A thing that is not there.
    pub(crate) fn missing(what: impl Into<String>) -> Self {
        Self::new(Kind::Missing, what, "it may be gone; go back to the list")
    }

    /// A body that cannot be had.
    pub(super) fn locked(locked: &Locked) -> Self {
        Self::new(Kind::Conflict, locked.to_string(), locked.hint())
    }

    pub(super) fn slow(patience: Duration) -> Self {
        let what = format!("the ledger's database has not answered for {} s", patience.as_secs());
        Self::new(Kind::Unreachable, what, "try again; look at the database if it lasts")
    }

    /// A failure of the database. Its cause is told: adapters name no secrets.
    pub(super) fn of(error: &AdapterError) -> Self {
        let kind = match error.kind() {
            FaultKind::Unreachable | FaultKind::Conflict => Kind::Unreachable,
            _ => Kind::Failed,
        };
        Self::new(kind, with_cause(error), error.hint().unwrap_or("look at the relay's log"))
    }
}
