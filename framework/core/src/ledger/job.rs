//! A redrive as a job: which letters, how fast, and how far it is.

use std::time::Duration;

use chrono::{DateTime, Utc};
use futures_core::future::BoxFuture;
use serde::{Deserialize, Serialize};

use super::{Letter, LetterFilter};
use crate::adapter_error::AdapterError;
use crate::lease::Lease;

/// Letters that are marked as silent at once: their rows are locked until that is committed.
pub const SILENT_AT_ONCE: u32 = 1_000;

/// What a redrive sends, and what it leaves alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guard {
    /// Letters that were redriven so often before are left alone: they go round in a loop.
    pub max_generation: i64,
    /// Letters whose message failed first before this time are left alone: the consumer may have forgotten that it
    /// handled them.
    pub not_before: Option<DateTime<Utc>>,
    /// Topics and queues that letters without a door may be sent back to, where every consumer sees them again.
    pub foreign: Vec<String>,
}

impl Default for Guard {
    fn default() -> Self {
        Self { max_generation: 5, not_before: None, foreign: Vec::new() }
    }
}

/// Whether a redrive sends a letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It does.
    Send,
    /// There is nowhere to send it to.
    NoTarget,
    /// It was redriven too often.
    Looped,
    /// It is older than what its consumer remembers.
    TooOld,
}

impl Verdict {
    /// The verdict as it is spelt.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Send => "send",
            Self::NoTarget => "no-target",
            Self::Looped => "looped",
            Self::TooOld => "too-old",
        }
    }

    /// The verdict of that name.
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Send, Self::NoTarget, Self::Looped, Self::TooOld]
            .into_iter()
            .find(|verdict| verdict.as_str() == name)
    }
}

impl Guard {
    /// Whether the letter is sent; the first of the reasons against it, in the order of [`Verdict`].
    pub fn verdict(&self, letter: &Letter) -> Verdict {
        let age = letter.first_failed_at.unwrap_or_else(|| letter.seen_at());
        if self.target(letter).is_none() {
            Verdict::NoTarget
        } else if letter.generation >= self.max_generation {
            Verdict::Looped
        } else if self.not_before.is_some_and(|limit| age < limit) {
            Verdict::TooOld
        } else {
            Verdict::Send
        }
    }

    /// Where the letter is sent: its door, or the place it came from where that is allowed.
    pub fn target<'a>(&self, letter: &'a Letter) -> Option<&'a str> {
        let foreign =
            || letter.place.as_deref().filter(|place| self.foreign.iter().any(|name| name == place));
        letter.sound_door().or_else(foreign)
    }
}

/// Letters that a redrive would treat alike.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PlanGroup {
    /// Whether they are sent.
    pub verdict: Verdict,
    /// Consumer; `None` where the letters do not say.
    pub consumer: Option<String>,
    /// Why they were given up.
    pub reason: Option<String>,
    /// Where they are sent.
    pub target: Option<String>,
    /// Whether the target is no door, so that every consumer there sees them again.
    pub foreign: bool,
    /// How many.
    pub letters: u64,
}

/// A redrive that is to be made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NewRedrive {
    /// Its id. Making a redrive again with the id of one that is there changes nothing.
    pub id: String,
    /// Which letters. Its status must be `open` or `redriving`.
    pub filter: LetterFilter,
    /// Which of them are left alone.
    pub guard: Guard,
    /// At most so many, the first that the ledger took.
    pub limit: Option<u64>,
    /// So many are sent first; the rest is sent once all of these are resolved.
    pub canary: u64,
    /// Most letters a second; no limit where there is none.
    pub rate: Option<f64>,
    /// The share of letters that may fail again before the redrive pauses, from 0 to 1.
    pub brake: f64,
    /// How long an outcome may take before a letter counts as silent.
    pub silent_after: Duration,
    /// Who makes it.
    pub created_by: String,
    /// Why, as they say.
    pub because: Option<String>,
}

/// Whether a redrive goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Run {
    /// It does.
    Running,
    /// Not until somebody resumes it.
    Paused,
    /// All letters are sent, and every outcome is known, or silence.
    Done,
    /// Somebody ended it.
    Cancelled,
    /// It ended itself, because its canary failed.
    Stopped,
}

impl Run {
    /// The word as columns and commands spell it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Done => "done",
            Self::Cancelled => "cancelled",
            Self::Stopped => "stopped",
        }
    }

    /// What that word means.
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Running, Self::Paused, Self::Done, Self::Cancelled, Self::Stopped]
            .into_iter()
            .find(|run| run.as_str() == name)
    }

    /// Whether it will never send again.
    pub fn is_over(self) -> bool {
        matches!(self, Self::Done | Self::Cancelled | Self::Stopped)
    }
}

/// What a redrive is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// The first few are sent and waited for.
    Canary,
    /// The rest is sent.
    Sending,
    /// Outcomes are waited for.
    Settling,
}

impl Phase {
    /// The word as columns and commands spell it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Canary => "canary",
            Self::Sending => "sending",
            Self::Settling => "settling",
        }
    }

    /// What that word means.
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Canary, Self::Sending, Self::Settling].into_iter().find(|phase| phase.as_str() == name)
    }
}

/// Where a redrive stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Standing {
    /// Whether it goes on.
    pub run: Run,
    /// What it is at, or was when it stopped.
    pub phase: Phase,
    /// Why it does not go on.
    pub why: Option<String>,
    /// What the brake overlooks, because somebody resumed the redrive all the same: letters that had failed again.
    pub forgiven_failures: u64,
    /// The same: letters whose outcome was known.
    pub forgiven_outcomes: u64,
}

/// Where a letter of a redrive stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// Not sent yet.
    Pending,
    /// Being sent; after a crash it is sent once more.
    Sending,
    /// Sent, or perhaps sent when the redrive ended, and no outcome yet.
    Waiting,
    /// Handled.
    Resolved,
    /// Failed again.
    FailedAgain,
    /// Sent, and no outcome in time.
    Silent,
    /// Sent to where nobody tells outcomes.
    Unknown,
    /// Not taken by the broker, or behind one that was not.
    Refused,
    /// Left out: somebody else sent, discarded or skipped it.
    Dropped,
}

impl Step {
    /// Every step.
    pub const ALL: [Self; 9] = [
        Self::Pending,
        Self::Sending,
        Self::Waiting,
        Self::Resolved,
        Self::FailedAgain,
        Self::Silent,
        Self::Unknown,
        Self::Refused,
        Self::Dropped,
    ];

    /// The word as columns spell it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Sending => "sending",
            Self::Waiting => "waiting",
            Self::Resolved => "resolved",
            Self::FailedAgain => "failed-again",
            Self::Silent => "silent",
            Self::Unknown => "unknown",
            Self::Refused => "refused",
            Self::Dropped => "dropped",
        }
    }

    /// What that word means.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|step| step.as_str() == name)
    }
}

/// How many letters of a redrive stand where.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    /// Not sent yet.
    pub pending: u64,
    /// Being sent.
    pub sending: u64,
    /// Sent, or perhaps sent when the redrive ended, and no outcome yet.
    pub waiting: u64,
    /// Handled.
    pub resolved: u64,
    /// Failed again.
    pub failed_again: u64,
    /// No outcome in time.
    pub silent: u64,
    /// Sent to where nobody tells outcomes.
    pub unknown: u64,
    /// Not taken by the broker.
    pub refused: u64,
    /// Left out.
    pub dropped: u64,
}

impl Tally {
    /// Adds letters.
    pub fn add(&mut self, step: Step, letters: u64) {
        *match step {
            Step::Pending => &mut self.pending,
            Step::Sending => &mut self.sending,
            Step::Waiting => &mut self.waiting,
            Step::Resolved => &mut self.resolved,
            Step::FailedAgain => &mut self.failed_again,
            Step::Silent => &mut self.silent,
            Step::Unknown => &mut self.unknown,
            Step::Refused => &mut self.refused,
            Step::Dropped => &mut self.dropped,
        } += letters;
    }

    /// All letters.
    pub fn sum(&self) -> u64 {
        self.unsent() + self.sent() + self.refused + self.dropped
    }

    /// Those that are to be sent.
    pub fn unsent(&self) -> u64 {
        self.pending + self.sending
    }

    /// Those that the broker has confirmed.
    pub fn sent(&self) -> u64 {
        self.waiting + self.resolved + self.failed_again + self.silent + self.unknown
    }

    /// Both together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            pending: self.pending + other.pending,
            sending: self.sending + other.sending,
            waiting: self.waiting + other.waiting,
            resolved: self.resolved + other.resolved,
            failed_again: self.failed_again + other.failed_again,
            silent: self.silent + other.silent,
            unknown: self.unknown + other.unknown,
            refused: self.refused + other.refused,
            dropped: self.dropped + other.dropped,
        }
    }
}

/// A redrive in the ledger.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Redrive {
    /// What was asked for. The rate is the one in force.
    #[serde(flatten)]
    pub plan: NewRedrive,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// Where it stands.
    #[serde(flatten)]
    pub standing: Standing,
    /// The letters of the canary.
    pub canary_letters: Tally,
    /// All others.
    pub other_letters: Tally,
}

impl Redrive {
    /// All letters of the redrive.
    pub fn letters(&self) -> Tally {
        self.canary_letters.plus(self.other_letters)
    }
}

/// What became of a letter that was to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sent {
    /// The broker has confirmed it; its consumer will tell the outcome.
    Confirmed,
    /// The broker has confirmed it, and nobody will tell the outcome.
    Unanswered,
    /// It was refused, for this reason. Letters of the redrive with the same target and key that are not sent yet are
    /// refused with it.
    Refused(String),
    /// It was not tried: it is pending, and open, again.
    NotTried,
}

/// Redrives. Object-safe, like the [`Ledger`](super::Ledger) to which they belong.
pub trait Redrives: Send + Sync {
    /// What a redrive would do: the letters that are meant, each in one group. Each is judged by itself, which takes its
    /// time: no more than `most` are, the first in the order in which the ledger took them.
    ///
    /// # Errors
    /// When the database cannot be asked.
    fn plan_redrive<'a>(
        &'a self,
        filter: &'a LetterFilter,
        guard: &'a Guard,
        most: u64,
    ) -> BoxFuture<'a, Result<Vec<PlanGroup>, AdapterError>>;

    /// Makes a redrive and freezes its letters: those that are meant now and that the guard lets pass, in the order in
    /// which the ledger took them. It is read back before it is committed: where that fails nothing was made.
    ///
    /// # Errors
    /// When the database cannot be asked, or the filter asks for another status than `open` or `redriving`.
    fn create_redrive<'a>(&'a self, new: &'a NewRedrive) -> BoxFuture<'a, Result<Redrive, AdapterError>>;

    /// Redrives, newest first, from after the one with id `after` on.
    ///
    /// # Errors
    /// When the database cannot be asked.
    fn redrives<'a>(
        &'a self,
        after: Option<&'a str>,
        limit: u32,
    ) -> BoxFuture<'a, Result<Vec<Redrive>, AdapterError>>;

    /// The redrive with this id.
    ///
    /// # Errors
    /// When the database cannot be asked.
    fn redrive<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Option<Redrive>, AdapterError>>;

    /// Redrives that run, oldest first.
    ///
    /// # Errors
    /// When the database cannot be asked.
    fn running_redrives(&self) -> BoxFuture<'_, Result<Vec<Redrive>, AdapterError>>;

    /// Changes where a redrive stands, if run and phase are what they were `from`; says whether it did. Where it is over
    /// then, letters that were being sent are perhaps sent: they wait for their outcome, or for silence.
    ///
    /// # Errors
    /// When the database cannot be asked.
    fn steer_redrive<'a>(
        &'a self,
        id: &'a str,
        from: &'a Standing,
        to: &'a Standing,
    ) -> BoxFuture<'a, Result<bool, AdapterError>>;

    /// Changes the rate of a redrive that is not over; says whether it did.
    ///
    /// # Errors
    /// When the database cannot be asked.
    fn set_redrive_rate<'a>(
        &'a self,
        id: &'a str,
        rate: Option<f64>,
    ) -> BoxFuture<'a, Result<bool, AdapterError>>;

    /// Takes the next letters of a running redrive to be sent, in order; the canary's only while it is at that. They
    /// are marked before they are given out, so that nobody else sends them. A letter that somebody else took
    /// meanwhile is dropped. `None` when the lease is not the caller's any more.
    ///
    /// # Errors
    /// When the database cannot be asked.
    fn claim_letters<'a>(
        &'a self,
        lease: &'a Lease,
        id: &'a str,
        limit: u32,
    ) -> BoxFuture<'a, Result<Option<Vec<Letter>>, AdapterError>>;

    /// The letters of a redrive that were being sent when its engine ended, in order.
    ///
    /// # Errors
    /// When the database cannot be asked.
    fn letters_in_flight<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Vec<Letter>, AdapterError>>;

    /// Writes down what became of letters that were being sent, also after their redrive has ended. An outcome that came
    /// before is kept. Doing it again moves no letter.
    ///
    /// # Errors
    /// When the database cannot be asked.
    fn settle_letters<'a>(
        &'a self,
        id: &'a str,
        sent: &'a [(String, Sent)],
    ) -> BoxFuture<'a, Result<(), AdapterError>>;

    /// Marks letters as silent whose outcome has taken longer than their redrive allows, about [`SILENT_AT_ONCE`] of them
    /// at most; returns how many. The letter itself stays as it is where a later redrive is at it.
    ///
    /// # Errors
    /// When the database cannot be asked.
    fn fall_silent(&self) -> BoxFuture<'_, Result<u64, AdapterError>>;
}
