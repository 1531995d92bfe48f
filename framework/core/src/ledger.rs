//! The ledger: dead letters in a database, where they can be searched and redriven.

mod audit;
pub mod course;
mod expiry;
mod filter;
mod group;
mod job;
pub mod terms;

use std::error::Error as _;
use std::fmt;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures_core::future::BoxFuture;
use serde::{Deserialize, Serialize};

pub use audit::{AuditEntry, AuditFilter, AuditLog, AuditStep, NewAuditEntry};
pub use expiry::{Expired, Expiry};
pub use filter::{HeaderFilter, LetterFilter};
pub use group::{LetterGroup, LetterMinute, StatusCounts};
pub use job::{
    Guard, NewRedrive, Phase, PlanGroup, Redrive, Redrives, Run, SILENT_AT_ONCE, Sent, Standing, Step, Tally,
    Verdict,
};

use crate::adapter_error::{AdapterError, FaultKind};
use crate::dead_letter::door_of_letters;
use crate::lease::Leases;
use crate::message::Envelope;
use crate::receipt::Receipt;
use crate::report_in::ConsumerReport;

/// How far letters are counted one by one; see [`Ledger::count`].
pub const COUNT_LIMIT: u64 = 10_000;

/// What a history calls the events that close a letter.
pub const CLOSINGS: [&str; 5] = ["discarded", "resolved", "skipped", "failed-again", "edited"];

/// What a history says of a letter that is not sent although it could be: it must not pass an earlier one of its key.
pub const BEHIND_REFUSED: &str = "an earlier letter of its key was refused";

/// What a history calls the event that opens a closed letter again; see [`Ledger::record`].
pub const DIED_AGAIN: &str = "died-again";

/// What the history says of that: where the letter stood, and of one on hold, which keeps what it says, the later error.
pub fn died_again(was: LetterStatus, on_hold: bool, error: Option<&str>) -> String {
    let it_was = format!("it was {was}");
    match error {
        _ if !on_hold => it_was,
        Some(error) => format!(
            "{it_was}; on hold, so that it stays as it was: {}",
            error.chars().take(1_000).collect::<String>()
        ),
        None => format!("{it_was}; on hold, so that it stays as it was"),
    }
}

/// The letter after which a list is to go on is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it was purged, or never there")]
pub struct LetterGone;

impl LetterGone {
    /// As [`Ledger::list`] tells it.
    pub fn error(id: &str) -> AdapterError {
        AdapterError::new(FaultKind::Missing, format!("there is no letter {id:?}"))
            .with_source(Self)
            .with_hint("list from the beginning")
    }

    /// Whether that is what the error tells, rather than that a table is not there.
    pub fn is_told_by(error: &AdapterError) -> bool {
        error.source().is_some_and(|cause| cause.is::<Self>())
    }
}

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
    /// Another letter of the same message stands for it: it was redriven and failed again, or somebody edited a copy of
    /// it.
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

    /// Whether nobody waits for anything any more: neither for somebody nor for an outcome.
    pub const fn is_closed(self) -> bool {
        !matches!(self, Self::Open | Self::Redriving)
    }
}

impl fmt::Display for LetterStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How the last redrive of a letter ended, or stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Outcome {
    /// Being sent, or sent, and nothing heard yet.
    Waiting,
    /// Its consumer has handled it.
    Resolved,
    /// It failed again.
    FailedAgain,
    /// Sent, and nothing heard in time.
    Silent,
    /// Sent to where nobody tells outcomes.
    Unknown,
}

impl Outcome {
    /// Every outcome.
    pub const ALL: [Self; 5] =
        [Self::Waiting, Self::Resolved, Self::FailedAgain, Self::Silent, Self::Unknown];

    /// The outcome as columns and commands spell it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Resolved => "resolved",
            Self::FailedAgain => "failed-again",
            Self::Silent => "silent",
            Self::Unknown => "unknown",
        }
    }

    /// The outcome of that name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|outcome| outcome.as_str() == name)
    }
}

/// What the ledger keeps of a dead letter beside its envelope.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
    /// How its last redrive ended, or stands; `None` where it was never sent.
    pub outcome: Option<Outcome>,
    /// The redrive that sent it last.
    pub redrive: Option<String>,
    /// Why it is under legal hold; `None` where it is not. What is on hold is never discarded.
    pub hold: Option<String>,
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
            outcome: None,
            redrive: None,
            hold: None,
            collected_at: Utc::now(),
            envelope,
        }
    }

    /// Its door, as far as that fits the place where the letter was found: a row that was tampered with reaches no
    /// other destination.
    pub fn sound_door(&self) -> Option<&str> {
        let door = self.door.as_deref()?;
        (door_of_letters(&self.found_in).as_deref() == Some(door)).then_some(door)
    }

    /// When it died; where it does not say, when the ledger took it.
    pub fn seen_at(&self) -> DateTime<Utc> {
        self.dead_at.unwrap_or(self.collected_at)
    }

    /// Whether it tells of another death than `known`, the letter of its id in the ledger: that was closed before this
    /// one died. A copy of the same death, which a crash of the consumer leaves behind and which is collected late, died
    /// before; one that does not say when it died is taken for such a copy. So is one of the very moment, to the
    /// millisecond, that `known` has: where the consumer's clock is ahead of the ledger's, that is later than the closing.
    pub fn died_after(&self, known: &Self, history: &[LetterEvent]) -> bool {
        let closings = history.iter().filter(|event| CLOSINGS.contains(&event.what.as_str()));
        let closed_at = closings.map(|event| event.at).max().unwrap_or(known.collected_at);
        known.status.is_closed()
            && self.status == LetterStatus::Open
            && self.dead_at.is_some_and(|at| at > closed_at)
            && self.dead_at.map(|at| at.timestamp_millis()) != known.dead_at.map(|at| at.timestamp_millis())
    }

    /// Whether a receipt speaks of a redrive that was over before the letter died last: it is read once more after its letter
    /// was opened again, as where the broker has lost the reader's offsets. Whoever wrote it knew nothing of that death. One
    /// of the redrive that has sent the letter since then is none, whatever the consumers' clocks say.
    pub fn died_since(&self, receipt: &Receipt, history: &[LetterEvent]) -> bool {
        history.iter().any(|event| event.what == DIED_AGAIN)
            && self.dead_at.is_some_and(|at| receipt.at.timestamp_millis() <= at.timestamp_millis())
            && (receipt.redrive.is_none() || receipt.redrive != self.redrive)
    }

    /// Whether it stands for the message that `other`, a letter of another id, tells of: whoever looks for what is dead
    /// finds this one, and closing it settles the message.
    pub fn stands_for(&self, other: &Self) -> bool {
        !self.status.is_closed()
            && self.id != other.id
            && self.message_key.is_some()
            && (&self.message_key, &self.consumer) == (&other.message_key, &other.consumer)
            && self.generation >= other.generation
    }
}

/// Something that happened to a letter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LetterEvent {
    /// When.
    pub at: DateTime<Utc>,
    /// What: `collected`, `redriven`, `failed-again`, `resolved`, …
    pub what: String,
    /// More of it.
    pub detail: Option<String>,
}

/// A body in the place of another; see [`Ledger::replace_bodies`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewBody {
    /// Whose.
    pub id: String,
    /// The one that the letter must have still.
    pub from: Bytes,
    /// The one that it gets.
    pub to: Bytes,
}

/// A copy that is to take a letter's place, because somebody changed its body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edit {
    /// The letter, which stays in the ledger as it is.
    pub id: String,
    /// What stands for it from now on: an open letter with an id of its own.
    pub copy: Letter,
    /// Why.
    pub because: String,
}

/// What somebody does with letters by hand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Gives open and redriving letters up, for this reason. Letters on hold stay as they are.
    Discard {
        /// Why.
        because: String,
    },
    /// Puts letters under legal hold, for this reason; those that are already stay as they are.
    Hold {
        /// Why.
        because: String,
    },
    /// Ends a legal hold, for this reason.
    Release {
        /// Why.
        because: String,
    },
}

impl Change {
    /// Why.
    pub fn because(&self) -> &str {
        match self {
            Self::Discard { because } | Self::Hold { because } | Self::Release { because } => because,
        }
    }

    /// What the history calls it.
    pub fn event(&self) -> &'static str {
        match self {
            Self::Discard { .. } => "discarded",
            Self::Hold { .. } => "held",
            Self::Release { .. } => "released",
        }
    }

    /// Whether it does anything to the letter.
    pub fn applies_to(&self, letter: &Letter) -> bool {
        match self {
            Self::Discard { .. } => {
                letter.hold.is_none() && matches!(letter.status, LetterStatus::Open | LetterStatus::Redriving)
            }
            Self::Hold { .. } => letter.hold.is_none(),
            Self::Release { .. } => letter.hold.is_some(),
        }
    }
}

/// Keeps dead letters. Object-safe: the relay's configuration chooses the database.
pub trait Ledger: Leases + Redrives + AuditLog {
    /// Writes letters that are not there yet, all or none; returns how many were new or opened again. A letter whose
    /// message was redriven and failed again puts the older letter's history on, `failed-again`, and closes it as
    /// superseded, so that there is one open letter a dead message. Older are letters of the same message and consumer
    /// with a lower generation, whether [`Redriving`](LetterStatus::Redriving) or [`Open`](LetterStatus::Open) once more
    /// because the redrive's confirmation was lost.
    ///
    /// A letter that is there stays as it is, with one exception: a message that was delivered anew, such as by a replay,
    /// and failed anew has the id of its first letter. Where that is closed, and the new one [died
    /// after](Letter::died_after) it was, it is opened again with what the new one says, and `died-again` is in its
    /// history. A legal hold stays, and what is on hold keeps all that it says but when it died last: its history has the
    /// later error. What redrives knew of the letter is over, and those that have not sent it yet leave it
    /// out. It counts like a new letter, in [`groups`](Self::groups) and [`minutes`](Self::minutes) as well. Nothing is
    /// opened where another letter [stands for](Letter::stands_for) the message.
    ///
    /// # Errors
    /// When the database cannot be asked; the letters must not be settled then.
    fn record<'a>(&'a self, letters: &'a [Letter]) -> BoxFuture<'a, Result<u64, AdapterError>>;

    /// Letters, by [`seen_at`](Letter::seen_at) and then in the order in which the ledger took them, from after `after`
    /// (a letter's id) on.
    ///
    /// # Errors
    /// When the database cannot be asked, or with [`FaultKind::Missing`] when the letter
    /// `after` is gone: nobody knows then what comes after it.
    fn list<'a>(
        &'a self,
        filter: &'a LetterFilter,
        after: Option<&'a str>,
        limit: u32,
    ) -> BoxFuture<'a, Result<Vec<Letter>, AdapterError>>;

    /// How many letters are meant. Exact where the filter [is by group](LetterFilter::is_by_group); else counted up to
    /// [`COUNT_LIMIT`] + 1, which stands for more than the limit.
    ///
    /// # Errors
    /// When the database cannot be asked.
    fn count<'a>(&'a self, filter: &'a LetterFilter) -> BoxFuture<'a, Result<u64, AdapterError>>;

    /// Groups with letters that are meant, those with most of them first, then by the time of the last; at most
    /// `limit`. Exact where the filter [is by group](LetterFilter::is_by_group): then the letters of all groups add up to
    /// [`count`](Self::count). Else they are those of the first [`COUNT_LIMIT`] + 1 letters that are found.
    ///
    /// # Errors
    /// When the database cannot be asked.
    fn groups<'a>(
        &'a self,
        filter: &'a LetterFilter,
        limit: u32,
    ) -> BoxFuture<'a, Result<Vec<LetterGroup>, AdapterError>>;

    /// In which minutes of the last two hours, by the database's clock, letters of that fingerprint died, or letters of any,
    /// and how many; oldest first, minutes without letters left out. A copy that was edited counts beside its original, and
    /// a letter that died again counts once more.
    /// Letters that were collected more than an hour after they died are not counted, nor those dated more than five
    /// minutes ahead.
    ///
    /// # Errors
    /// When the database cannot be asked.
    fn minutes<'a>(
        &'a self,
        fingerprint: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Vec<LetterMinute>, AdapterError>>;

    /// What happened to a letter, oldest first.
    ///
    /// # Errors
    /// When the database cannot be asked.
    fn history<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Vec<LetterEvent>, AdapterError>>;

    /// Moves letters from one status to another and writes `what` into their history, one of [`CLOSINGS`] where that closes
    /// them; returns those that moved.
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

    /// Writes `what` into the history of letters that are meant, and changes nothing else; returns how many they were. A
    /// letter that another one changes meanwhile is judged as it is afterwards.
    ///
    /// # Errors
    /// When the database cannot be asked.
    fn tell<'a>(
        &'a self,
        filter: &'a LetterFilter,
        what: &'a str,
        detail: Option<&'a str>,
    ) -> BoxFuture<'a, Result<u64, AdapterError>>;

    /// Does `change` to letters that are meant and to which it [applies](Change::applies_to), at most `limit` of them,
    /// and writes it into their history; returns how many. Called again until it returns 0, it has done all.
    ///
    /// # Errors
    /// When the database cannot be asked.
    fn change<'a>(
        &'a self,
        filter: &'a LetterFilter,
        change: &'a Change,
        limit: u32,
    ) -> BoxFuture<'a, Result<u64, AdapterError>>;

    /// Writes the copy and closes the letter as superseded, both or neither. The letter's history tells it as `edited`
    /// with the id of the copy, the copy's as `edit-of` with the id of the letter. `false` where nothing was done: the letter
    /// is not open, under legal hold or not there, or the copy's id is taken.
    ///
    /// # Errors
    /// When the database cannot be asked.
    fn edit<'a>(&'a self, edit: &'a Edit) -> BoxFuture<'a, Result<bool, AdapterError>>;

    /// Gives letters the bodies that stand for theirs from now on, such as one that is encrypted with another key, all or
    /// none; a letter that has another body by now keeps it. Nothing else of them changes, and their history does not tell
    /// it. Returns how many changed.
    ///
    /// # Errors
    /// When the database cannot be asked.
    fn replace_bodies<'a>(&'a self, bodies: &'a [NewBody]) -> BoxFuture<'a, Result<u64, AdapterError>>;

    /// Letters whose time in the ledger is over, in the order in which it took them, from after `after` (a letter's id)
    /// on, each with its history. Those under legal hold, and those that a redrive still deals with, are none of them.
    ///
    /// # Errors
    /// When the database cannot be asked.
    fn expired<'a>(
        &'a self,
        expiry: &'a Expiry,
        after: Option<&'a str>,
        limit: u32,
    ) -> BoxFuture<'a, Result<Vec<Expired>, AdapterError>>;

    /// What time it is for the database, which dates what happens to letters.
    ///
    /// # Errors
    /// When the database cannot be asked.
    fn time(&self) -> BoxFuture<'_, Result<DateTime<Utc>, AdapterError>>;

    /// Deletes those of the letters `ids` whose time in the ledger is still over, with their history; returns how many.
    /// It waits for nobody: a letter that somebody else is at stays. What redrives count of their letters stays as it is.
    ///
    /// # Errors
    /// When the database cannot be asked.
    fn purge<'a>(&'a self, expiry: &'a Expiry, ids: &'a [String])
    -> BoxFuture<'a, Result<u64, AdapterError>>;

    /// Takes what consumers say of redriven messages, all or none; returns how many letters changed. A receipt belongs
    /// to the letter that it names, or to the one of its message, consumer and generation less one. `handled` and
    /// `already-handled` resolve a letter that is open or redriving, `skipped` discards it, `released` is written into
    /// its history only, and so is `skipped` of a letter on hold. What no letter fits is ignored; what was taken before
    /// changes nothing.
    ///
    /// A key may wait for a message whose letter was discarded, and somebody may ask its consumer to end that: a
    /// discarded letter takes receipts as well. `skipped` and `released` are in its history then, `handled` resolves it,
    /// and so does `already-handled`, unless its consumer has skipped it: that is what it knows then. What was said before the
    /// letter [died again](Letter::died_since) is ignored.
    ///
    /// # Errors
    /// When the database cannot be asked; the receipts must not be settled then.
    fn record_outcomes<'a>(&'a self, receipts: &'a [Receipt]) -> BoxFuture<'a, Result<u64, AdapterError>>;

    /// Takes what consumers say of themselves, all or none; the latest of each instance is kept, until it is older than
    /// [`KEPT`](crate::report_in::KEPT) by the database's clock. One from further ahead than that is not kept either.
    ///
    /// # Errors
    /// When the database cannot be asked.
    fn record_reports<'a>(&'a self, reports: &'a [ConsumerReport])
    -> BoxFuture<'a, Result<(), AdapterError>>;

    /// The latest report of each instance of each consumer, by consumer and instance.
    ///
    /// # Errors
    /// When the database cannot be asked.
    fn consumers(&self) -> BoxFuture<'_, Result<Vec<ConsumerReport>, AdapterError>>;
}
