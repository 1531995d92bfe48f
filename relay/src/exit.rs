//! Exit codes, and the failure that leads to each.

use std::fmt;
use std::io;

use backstop_core::ledger::LetterGone;
use backstop_core::report::{cut, escaped};
use backstop_core::sink::PublishError;
use backstop_core::{AdapterError, FaultKind};

use crate::secret::Scrubber;

/// Longest cause in an error line, in bytes.
const MAX_CAUSE: usize = 400;

/// How the program ended, as its exit code says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
#[non_exhaustive]
pub enum Exit {
    /// All is well.
    Ok = 0,
    /// A check found errors, or something failed that has no code of its own.
    Failed = 1,
    /// The command line cannot be understood.
    Usage = 2,
    /// The configuration is wrong.
    Configuration = 3,
    /// The database cannot be reached.
    DatabaseUnreachable = 4,
    /// The database refused: wrong password, or a permission is missing.
    DatabaseRefused = 5,
    /// The database lacks a table or column.
    DatabaseSchema = 6,
    /// The broker cannot be reached.
    BrokerUnreachable = 7,
    /// The broker refused: wrong password, or a permission is missing.
    BrokerRefused = 8,
    /// The broker lacks a topic, exchange or queue.
    BrokerMissing = 9,
    /// Nothing was done, because nobody confirmed it.
    NotConfirmed = 10,
    /// The demo came to its end, and its ledger does not balance.
    Unbalanced = 11,
    /// A second signal cut an orderly stop short.
    Interrupted = 130,
}

impl Exit {
    /// Every code there is.
    pub const ALL: [Self; 13] = [
        Self::Ok,
        Self::Failed,
        Self::Usage,
        Self::Configuration,
        Self::DatabaseUnreachable,
        Self::DatabaseRefused,
        Self::DatabaseSchema,
        Self::BrokerUnreachable,
        Self::BrokerRefused,
        Self::BrokerMissing,
        Self::NotConfirmed,
        Self::Unbalanced,
        Self::Interrupted,
    ];

    /// The number.
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// What it means, in a few words.
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::Ok => "all is well",
            Self::Failed => "a check found errors, or another failure",
            Self::Usage => "wrong usage of the command line",
            Self::Configuration => "wrong configuration",
            Self::DatabaseUnreachable => "database unreachable",
            Self::DatabaseRefused => "database refused: wrong password or missing permission",
            Self::DatabaseSchema => "database lacks a table or column",
            Self::BrokerUnreachable => "broker unreachable",
            Self::BrokerRefused => "broker refused: wrong password or missing permission",
            Self::BrokerMissing => "broker lacks a topic, exchange or queue",
            Self::NotConfirmed => "nothing done, because it was not confirmed",
            Self::Unbalanced => "the demo's ledger does not balance",
            Self::Interrupted => "a second signal cut an orderly stop short",
        }
    }

    /// The list of codes for `--help`.
    pub fn help() -> String {
        let lines = Self::ALL.map(|exit| format!("  {:>3}  {}", exit.code(), exit.meaning()));
        format!("Exit codes:\n{}", lines.join("\n"))
    }
}

/// One thing that went wrong: an `error:` line and, where a remedy is known, a `hint:` line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Complaint {
    /// What, in one line.
    pub what: String,
    /// How to mend it, in one line.
    pub hint: Option<String>,
}

/// Why a command ends without having done what it was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    exit: Exit,
    complaints: Vec<Complaint>,
}

impl Failure {
    /// A failure with one complaint.
    pub fn new(exit: Exit, what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { exit, complaints: vec![Complaint { what: what.into(), hint: Some(hint.into()) }] }
    }

    /// A failure with these complaints; none when everything has been said already.
    pub fn of(exit: Exit, complaints: Vec<Complaint>) -> Self {
        Self { exit, complaints }
    }

    /// A failure of the database.
    pub fn database(error: &AdapterError) -> Self {
        let exit = match error.kind() {
            FaultKind::Unreachable => Exit::DatabaseUnreachable,
            FaultKind::Denied => Exit::DatabaseRefused,
            FaultKind::Missing if LetterGone::is_told_by(error) => Exit::Failed,
            FaultKind::Missing => Exit::DatabaseSchema,
            FaultKind::Invalid => Exit::Configuration,
            _ => Exit::Failed,
        };
        Self::of(exit, vec![complaint(error)])
    }

    /// A failure of the broker.
    pub fn broker(error: &AdapterError) -> Self {
        let exit = match error.kind() {
            FaultKind::Unreachable => Exit::BrokerUnreachable,
            FaultKind::Denied => Exit::BrokerRefused,
            FaultKind::Missing => Exit::BrokerMissing,
            FaultKind::Invalid => Exit::Configuration,
            _ => Exit::Failed,
        };
        Self::of(exit, vec![complaint(error)])
    }

    /// A failure of the broker to take a message.
    pub fn publish(error: &PublishError) -> Self {
        Self::broker(error.error())
    }

    /// Adds a complaint.
    pub fn add(&mut self, what: impl Into<String>, hint: impl Into<String>) {
        self.complaints.push(Complaint { what: what.into(), hint: Some(hint.into()) });
    }

    /// The exit code.
    pub fn exit(&self) -> Exit {
        self.exit
    }

    /// What went wrong.
    pub fn complaints(&self) -> &[Complaint] {
        &self.complaints
    }

    /// Whether waiting may help, without anybody changing anything.
    pub fn is_unreachable(&self) -> bool {
        matches!(self.exit, Exit::DatabaseUnreachable | Exit::BrokerUnreachable)
    }

    /// The lines for standard error, without secrets and control characters.
    pub fn lines(&self, scrubber: &Scrubber) -> Vec<String> {
        let lines = self.complaints.iter().flat_map(|complaint| {
            let error = format!("error: {}", escaped(&scrubber.scrub(&complaint.what)));
            // Hints show URLs as they are to be written, with the word "password" in them.
            let hint = complaint.hint.as_deref().map(|hint| escaped(&scrubber.scrub_values(hint)));
            std::iter::once(error).chain(hint.map(|hint| format!("hint: {hint}")))
        });
        lines.collect()
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, complaint) in self.complaints.iter().enumerate() {
            if at > 0 {
                f.write_str("; ")?;
            }
            f.write_str(&complaint.what)?;
        }
        Ok(())
    }
}

impl std::error::Error for Failure {}

/// Standard output that was closed, as `head` does, is no failure worth words.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self::of(Exit::Ok, Vec::new());
        }
        Self::new(
            Exit::Failed,
            format!("cannot write to standard output: {error}"),
            "check where the output goes",
        )
    }
}

fn complaint(error: &AdapterError) -> Complaint {
    Complaint { what: with_cause(error), hint: error.hint().map(str::to_owned) }
}

/// The error and what its cause adds to it, in one line. Causes of the cause only repeat it in other words.
pub fn with_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let text = error.to_string();
    let Some(cause) = error.source().map(|cause| cut(&cause.to_string(), MAX_CAUSE)) else { return text };
    let repeats =
        text.contains(&cause) || text.rsplit_once(": ").is_some_and(|(_, last)| cause.contains(last));
    if repeats { text } else { format!("{text}: {cause}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_fault_has_its_code() {
        let of = |kind| AdapterError::new(kind, "x");
        let kinds = [
            FaultKind::Unreachable,
            FaultKind::Denied,
            FaultKind::Missing,
            FaultKind::Invalid,
            FaultKind::Conflict,
            FaultKind::Other,
        ];
        let database = kinds.map(|kind| Failure::database(&of(kind)).exit().code());
        let broker = kinds.map(|kind| Failure::broker(&of(kind)).exit().code());
        assert_eq!(database, [4, 5, 6, 3, 1, 1]);
        assert_eq!(broker, [7, 8, 9, 3, 1, 1]);
    }

    #[test]
    fn codes_are_distinct_and_listed_in_order() {
        assert!(Exit::ALL.is_sorted_by_key(|exit| exit.code()));
        assert!(Exit::help().lines().nth(1).is_some_and(|line| line == "    0  all is well"));
    }

    #[test]
    fn s18_lines_hold_no_secret_no_line_end_and_no_escape_sequence() {
        let error = AdapterError::new(FaultKind::Other, "cannot open a://u:pw@h\u{1b}[31m\nerror: forged")
            .with_source(io::Error::other("because of a://u:pw@h"))
            .with_hint("look");
        let lines = Failure::database(&error).lines(&Scrubber::default());
        assert_eq!(
            lines,
            [
                "error: cannot open a://u:***@h\\u{1b}[31m\\nerror: forged: because of a://u:***@h",
                "hint: look"
            ]
        );
    }

    #[test]
    fn a_closed_pipe_is_no_failure() {
        let failure = Failure::from(io::Error::from(io::ErrorKind::BrokenPipe));
        assert_eq!((failure.exit(), failure.complaints()), (Exit::Ok, &[][..]));
    }
}
