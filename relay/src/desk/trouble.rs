//! Why something was not done, for programs and people; or why nobody knows how much of it was.

use std::time::Duration;

use axum::http::StatusCode;
use backstop_core::ledger::LetterGone;
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

/// How much of what was asked for is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Done {
    /// Surely nothing.
    Nothing,
    /// Nobody knows how much.
    Unknown {
        /// So many letters were changed at least.
        letters: u64,
        /// What shows how much was done.
        look: &'static str,
    },
}

impl Done {
    /// Letters that were changed, as far as anybody knows; `None` where none was.
    pub(crate) const fn letters(self) -> Option<u64> {
        match self {
            Self::Nothing | Self::Unknown { letters: 0, .. } => None,
            Self::Unknown { letters, .. } => Some(letters),
        }
    }
}

/// Why something was not done, or not all of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Trouble {
    pub(crate) kind: Kind,
    /// What is wrong, in one line.
    pub(crate) what: String,
    /// What to do about it.
    pub(crate) hint: String,
    /// How much is done all the same.
    pub(crate) done: Done,
}

impl Trouble {
    /// Trouble before anything was done.
    pub(crate) fn new(kind: Kind, what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { kind, what: what.into(), hint: hint.into(), done: Done::Nothing }
    }

    /// The same, but nobody knows how much was done; `look` shows it.
    pub(super) fn unknown(self, look: &'static str) -> Self {
        Self { done: Done::Unknown { letters: 0, look }, ..self }
    }

    /// The same after so many letters were changed; `look` shows whether more were.
    pub(super) fn after(self, letters: u64, look: &'static str) -> Self {
        match letters {
            0 => self,
            _ => Self { done: Done::Unknown { letters, look }, ..self },
        }
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
        let what = format!("the database has not answered for {} s", patience.as_secs());
        Self::new(Kind::Unreachable, what, "try again; look at the database if it lasts")
    }

    /// A failure of the database. Its cause is told: adapters name no secrets.
    pub(super) fn of(error: &AdapterError) -> Self {
        let kind = match error.kind() {
            FaultKind::Missing if LetterGone::is_told_by(error) => Kind::Missing,
            FaultKind::Unreachable | FaultKind::Conflict => Kind::Unreachable,
            _ => Kind::Failed,
        };
        Self::new(kind, with_cause(error), error.hint().unwrap_or("look at the relay's log"))
    }

    /// A failure of a statement that changes something. What the database refused it has not done; whatever else failed
    /// may have failed after it was done, such as a commit whose answer was lost.
    pub(super) fn of_change(error: &AdapterError, look: &'static str) -> Self {
        match error.kind() {
            FaultKind::Denied | FaultKind::Missing | FaultKind::Conflict | FaultKind::Invalid => {
                Self::of(error)
            }
            _ => Self::of(error).unknown(look),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_that_cannot_go_on_is_no_failure_and_a_missing_table_is_one() {
        assert_eq!(Trouble::of(&LetterGone::error("a")).kind, Kind::Missing);
        assert_eq!(Trouble::of(&AdapterError::new(FaultKind::Missing, "no table")).kind, Kind::Failed);
    }

    #[test]
    fn only_what_the_database_refused_is_surely_not_done() {
        let done = |kind| Trouble::of_change(&AdapterError::new(kind, "x"), "it").done;
        for kind in [FaultKind::Denied, FaultKind::Missing, FaultKind::Conflict, FaultKind::Invalid] {
            assert_eq!(done(kind), Done::Nothing, "{kind:?}");
        }
        for kind in [FaultKind::Unreachable, FaultKind::Other, FaultKind::TransactionEnded] {
            assert_eq!(done(kind), Done::Unknown { letters: 0, look: "it" }, "{kind:?}");
        }
    }
}
