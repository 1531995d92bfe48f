//! Tables: what must be there, what is there, and what to do about the difference.

use chrono::{DateTime, TimeDelta, Utc};
use futures_core::future::BoxFuture;

use crate::adapter_error::AdapterError;

/// One step of a schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Migration {
    /// Grows by one.
    pub version: i64,
    /// What it is about.
    pub name: &'static str,
    /// Statements that make it so.
    pub up: &'static str,
    /// Statements that take it back.
    pub down: &'static str,
}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// As it should be.
    Fine,
    /// Works, but not as it should.
    Warning,
    /// Does not work.
    Error,
}

/// What a check found, with its remedy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// How bad.
    pub severity: Severity,
    /// What was looked at, such as `table backstop_outbox`.
    pub subject: String,
    /// What was found, in one line.
    pub detail: String,
    /// How to mend it.
    pub remedy: Option<String>,
}

impl Finding {
    /// All is well with `subject`.
    pub fn fine(subject: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { severity: Severity::Fine, subject: subject.into(), detail: detail.into(), remedy: None }
    }

    /// Something should be mended.
    pub fn warning(subject: impl Into<String>, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            severity: Severity::Warning,
            subject: subject.into(),
            detail: detail.into(),
            remedy: Some(remedy.into()),
        }
    }

    /// Something must be mended.
    pub fn error(subject: impl Into<String>, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            severity: Severity::Error,
            subject: subject.into(),
            detail: detail.into(),
            remedy: Some(remedy.into()),
        }
    }
}

impl Finding {
    /// A server's clock, read as `theirs` between two looks at the own one.
    ///
    /// Leases and due times go by the server's clock alone; ages and times that people compare go by both.
    pub fn clock(asked: DateTime<Utc>, theirs: DateTime<Utc>, answered: DateTime<Utc>) -> Self {
        let (subject, ahead, behind) = ("clock", theirs - answered, asked - theirs);
        let (apart, word) = if ahead > behind { (ahead, "ahead of") } else { (behind, "behind") };
        if apart <= FAR_APART {
            return Self::fine(subject, "agrees with this machine's");
        }
        let detail = format!("{:.1} s {word} this machine's", apart.as_seconds_f64());
        Self::warning(subject, detail, "let NTP set the clocks of both machines")
    }
}

/// What clocks under NTP never differ by.
const FAR_APART: TimeDelta = TimeDelta::seconds(2);

/// The schema of a database. Object-safe: the relay's configuration chooses the database.
pub trait Schema: Send + Sync {
    /// Every step there is, in order.
    fn migrations(&self) -> &'static [Migration];

    /// Versions that the database has; empty before the first.
    ///
    /// # Errors
    /// When the database cannot be asked.
    fn applied(&self) -> BoxFuture<'_, Result<Vec<i64>, AdapterError>>;

    /// Applies the steps that are missing, each in its own transaction under a lock; returns their versions. Two at
    /// once are safe.
    ///
    /// # Errors
    /// Names the step that failed; those before it stay.
    fn migrate(&self) -> BoxFuture<'_, Result<Vec<i64>, AdapterError>>;

    /// Takes back every step above `version`, newest first; returns their versions.
    ///
    /// # Errors
    /// Names the step that failed; those before it are gone.
    fn revert(&self, version: i64) -> BoxFuture<'_, Result<Vec<i64>, AdapterError>>;

    /// Looks at tables, settings and permissions.
    ///
    /// # Errors
    /// When the database cannot be asked at all.
    fn check(&self) -> BoxFuture<'_, Result<Vec<Finding>, AdapterError>>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_answer_is_no_difference_between_clocks() {
        let at = |seconds: i64| DateTime::from_timestamp(1_000 + seconds, 0).expect("a time");
        assert_eq!(Finding::clock(at(0), at(9), at(10)).severity, Severity::Fine);
        assert_eq!(Finding::clock(at(0), at(12), at(10)).severity, Severity::Fine);
        assert_eq!(Finding::clock(at(0), at(13), at(10)).detail, "3.0 s ahead of this machine's");
        assert_eq!(Finding::clock(at(0), at(-3), at(10)).detail, "3.0 s behind this machine's");
    }
}
