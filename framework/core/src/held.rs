//! Held messages: failures that wait in the consumer's own database.
//!
//! A key with a row is *held*; its lowest number is the *head*. Only heads run; their followers wait. Whichever
//! instance finds a due head claims it in the handler's transaction, so that order holds whoever runs it.
//!
//! A head that is given up may stay where it is, *quarantined*: its letter is published, nobody runs it, and its
//! followers wait until it is redriven or somebody [ends](HeldMessages::end) it.

use std::future::Future;
use std::time::Duration;

use chrono::{DateTime, Utc};

use crate::adapter_error::{AdapterError, FaultKind};
use crate::charges::Charges;
use crate::dead_letter::{DeadReason, generation};
use crate::error::ErrorClass;
use crate::held_keys::{Ended, Ending, HeldFilter, HeldKey};
use crate::held_run::{RunChoice, RunClaim};
use crate::identity::MessageKey;
use crate::inbox::{CommitError, Limits, Unit};
use crate::message::{Envelope, Headers, Message};
use crate::origin::{Origin, Via};
use crate::owed::OwedReceipts;

/// The key under which a message is kept in order.
///
/// The message's own key where it has one; else its partition (or queue), or with `unordered` the message itself.
/// Stand-ins begin with a NUL, which keeps them apart from keys that people use.
pub fn ordering_key(
    message: &Message,
    message_key: &MessageKey,
    origin: &Origin,
    unordered: bool,
) -> Vec<u8> {
    match (&message.key, origin.partition()) {
        (Some(key), _) => key.to_vec(),
        (None, _) if unordered => format!("\0message/{message_key}").into_bytes(),
        (None, Some(partition)) => format!("\0partition/{partition}").into_bytes(),
        (None, None) => b"\0queue".to_vec(),
    }
}

/// A failure as it is written down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Charged attempts so far, this one included if it was charged.
    pub attempts: u32,
    /// How many of them were throttled, which have a limit of their own.
    pub throttled: u32,
    /// Class of the last error.
    pub class: ErrorClass,
    /// Text of the last error, escaped and redacted.
    pub error: String,
    /// How long to wait before the next attempt, from now by the database's clock.
    pub due_in: Duration,
    /// Why the message is given up: there is no next attempt, only its letter must still be published.
    pub condemned: Option<DeadReason>,
    /// Runs in a row that did not come to an end, because their process died: 0 after one that did.
    pub crashes: u32,
}

/// A message to be held.
#[derive(Debug, Clone)]
pub struct NewHeld<'a> {
    /// Consumer, place, ordering key and identity.
    pub unit: Unit<'a>,
    /// Key, headers and body as received.
    pub envelope: &'a Envelope,
    /// Where the broker had it.
    pub origin: &'a Origin,
    /// How it came in.
    pub via: Via,
}

/// What became of a message that was to be held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holding {
    /// It is in the table now, or was before.
    Stored,
    /// Its key is free again: process it anew.
    KeyFree,
    /// It has been handled already.
    AlreadyHandled,
}

/// A held message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldMessage {
    /// Its number; the lowest of a key is the head.
    pub n: i64,
    /// Topic or queue.
    pub place: String,
    /// The key under which it waits.
    pub ordering_key: Vec<u8>,
    /// Its identity.
    pub message_key: MessageKey,
    /// Key, headers and body as received.
    pub envelope: Envelope,
    /// Where the broker had it.
    pub origin: Origin,
    /// How it came in.
    pub via: Via,
    /// Charged attempts so far.
    pub attempts: u32,
    /// How many of them were throttled.
    pub throttled: u32,
    /// Why it is given up, if it is.
    pub condemned: Option<DeadReason>,
    /// Runs in a row that did not come to an end, because their process died; of a claimed head, without the one that
    /// it is claimed for.
    pub crashes: u32,
    /// Class of the last error; `None` before the first attempt.
    pub class: Option<ErrorClass>,
    /// Text of the last error.
    pub error: Option<String>,
    /// When it was first held, or when it failed first, if that was later.
    pub held_since: DateTime<Utc>,
    /// How long ago that was, by the database's clock.
    pub age: Duration,
}

impl HeldMessage {
    /// How long it has been failing; zero before its first failure, however long it waited for others.
    pub fn failing_for(&self) -> Duration {
        if self.class.is_some() { self.age } else { Duration::ZERO }
    }

    /// The charge with which it was claimed, to be taken back where it did not run: those before it stay.
    pub fn unused_charge(&self) -> HeadCharge {
        HeadCharge { leaves: self.crashes, ..self.spent_charge() }
    }

    /// The charge with which it was claimed, to be taken back after its run: with it go those before.
    pub fn spent_charge(&self) -> HeadCharge {
        HeadCharge { n: self.n, stands: self.crashes.saturating_add(1), leaves: 0 }
    }

    /// How often it has been redriven. Only what came through the door says so: elsewhere anybody may write the header.
    pub fn generation(&self) -> u32 {
        match self.via {
            Via::Live => 0,
            Via::Door => generation(&self.envelope.headers),
        }
    }
}

/// How long a head that is charged is left alone, unless its run comes to an end: nobody else claims it before its handler
/// is called, and instances do not go down one right after another.
pub const AFTER_CRASH: Duration = Duration::from_secs(2);

/// Which heads are to be claimed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heads {
    /// Those whose last run came to an end, or that never ran.
    Sound,
    /// Those whose last run did not: each may have felled its process, and is run by itself.
    Doubtful,
}

impl Heads {
    /// As statements ask for them.
    pub const fn are_doubtful(self) -> bool {
        matches!(self, Self::Doubtful)
    }
}

/// A head, claimed inside an open transaction.
#[derive(Debug)]
pub struct ClaimedHead<Tx> {
    /// The transaction that locks it; lent to the handler.
    pub tx: Tx,
    /// The head.
    pub head: HeldMessage,
    /// Whether the inbox knows it already: finish it without running the handler.
    pub handled: bool,
}

/// A claim that did not come about.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct ClaimError {
    /// What the database said, or that it did not answer.
    pub error: AdapterError,
    /// The charges that may stand although nothing is run: to be taken back by
    /// [`acquit_heads`](HeldMessages::acquit_heads).
    pub charged: Vec<HeadCharge>,
}

/// The charge of a message's run that has come to an end of which nothing could be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadCharge {
    /// The message: a head, or one that ran behind it.
    pub n: i64,
    /// How many charges stand with this one.
    pub stands: u32,
    /// How many may stand without it: none after a run, those before it where it never ran.
    pub leaves: u32,
}

impl From<AdapterError> for ClaimError {
    fn from(error: AdapterError) -> Self {
        Self { error, charged: Vec::new() }
    }
}

/// How much is held.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HeldSummary {
    /// Messages held.
    pub messages: u64,
    /// How many of them are quarantined: keys that wait for somebody.
    pub quarantined: u64,
    /// Age of the oldest.
    pub oldest: Option<Duration>,
}

/// The table of held messages beside an inbox.
pub trait HeldMessages: OwedReceipts + Charges {
    /// Holds a message that failed first: its key is held from now on. Storing the same message twice changes
    /// nothing.
    ///
    /// # Errors
    /// When the database cannot be asked; the message must not be settled then.
    fn hold(
        &self,
        message: NewHeld<'_>,
        failure: &Failure,
    ) -> impl Future<Output = Result<Holding, AdapterError>> + Send;

    /// Appends a message whose key is held, behind the others.
    ///
    /// # Errors
    /// When the database cannot be asked; the message must not be settled then.
    fn append(&self, message: NewHeld<'_>) -> impl Future<Output = Result<Holding, AdapterError>> + Send;

    /// Takes in a redriven message: it runs when all that is held of its key before it has ended. Where the message
    /// itself is still held and was given up, with its letter published or not, it takes that one's place, with nothing
    /// charged and this envelope; unless that one has been redriven more often, as its
    /// [generation](fn@crate::dead_letter::generation) says.
    ///
    /// # Errors
    /// When the database cannot be asked; the message must not be settled then.
    fn import(&self, message: NewHeld<'_>) -> impl Future<Output = Result<Holding, AdapterError>> + Send;

    /// Stores several messages at once, in their order: live ones as [`append`](HeldMessages::append) does, redriven ones as
    /// [`import`](HeldMessages::import) does. The answers are in the order of the messages; `None` says that nothing was
    /// done about this one, which is to be stored by itself. That is the default for all of them.
    ///
    /// # Errors
    /// When the database cannot be asked; each is to be stored by itself then, which is safe whatever was stored.
    fn store_all(
        &self,
        messages: &[NewHeld<'_>],
    ) -> impl Future<Output = Result<Vec<Option<Holding>>, AdapterError>> + Send {
        std::future::ready(Ok(vec![None; messages.len()]))
    }

    /// Claims one due head of the consumer that no other instance has, and writes its inbox row.
    ///
    /// Unless it is condemned, it is charged before: that one more run has begun is committed when this returns, and
    /// stands until [`finish`](HeldMessages::finish) or [`reschedule`](HeldMessages::reschedule) say how the run ended,
    /// or [`acquit_heads`](HeldMessages::acquit_heads) takes it back. Should the process die, the head is doubtful,
    /// and falls due again [`AFTER_CRASH`] after its claim.
    ///
    /// # Errors
    /// When the database cannot be asked.
    fn claim(
        &self,
        consumer: &str,
        limits: Limits,
        heads: Heads,
    ) -> impl Future<Output = Result<Option<ClaimedHead<Self::Tx>>, ClaimError>> + Send;

    /// Takes back the charges of messages whose run came to an end of which nothing could be written, because its
    /// transaction was lost while the process lives on, and makes heads due. Nothing changes where a message is not held
    /// any more, has no more charges than may stand, or was charged again since, by somebody who may have died of it.
    ///
    /// # Errors
    /// When the database cannot be asked; asking again is safe.
    fn acquit_heads(
        &self,
        consumer: &str,
        charges: &[HeadCharge],
    ) -> impl Future<Output = Result<(), AdapterError>> + Send;

    /// Claims due heads that have never failed, each with those right behind it that have not either, and writes their
    /// inbox rows. At least one head; what follows a head is bounded by its share of [`RunChoice::most`], and the whole
    /// by [`RUN_BYTES`](crate::held_run::RUN_BYTES).
    ///
    /// All of them are charged before, as [`claim`](HeldMessages::claim) charges one, until
    /// [`finish_run`](HeldMessages::finish_run) or [`acquit_heads`](HeldMessages::acquit_heads). A table whose messages
    /// cannot share transactions has [nothing](RunClaim::Nothing) for that, which is the default.
    ///
    /// # Errors
    /// When the database cannot be asked.
    fn claim_run(
        &self,
        consumer: &str,
        limits: Limits,
        choice: RunChoice<'_>,
    ) -> impl Future<Output = Result<RunClaim<Self::Tx>, ClaimError>> + Send {
        let _ = (consumer, limits, choice);
        std::future::ready(Ok(RunClaim::Nothing))
    }

    /// Deletes the messages of a run that are `done`, gives those that are `left` back uncharged, makes whoever is the
    /// lowest of a key then its head, and commits with proof. Of those that are left no inbox row must be there.
    ///
    /// # Errors
    /// As [`Inbox::commit`](crate::inbox::Inbox::commit).
    fn finish_run(
        &self,
        consumer: &str,
        tx: Self::Tx,
        done: &[HeldMessage],
        left: &[HeldMessage],
    ) -> impl Future<Output = Result<(), CommitError>> + Send {
        let _ = (consumer, tx, done, left);
        let error = AdapterError::new(FaultKind::Other, "these held messages do not share transactions");
        std::future::ready(Err(CommitError::RolledBack(error)))
    }

    /// Deletes a claimed head, makes its follower the head, and commits with proof: after success and after a
    /// duplicate.
    ///
    /// # Errors
    /// As [`Inbox::commit`](crate::inbox::Inbox::commit).
    fn finish(
        &self,
        consumer: &str,
        tx: Self::Tx,
        head: &HeldMessage,
    ) -> impl Future<Output = Result<(), CommitError>> + Send;

    /// Takes back everything that was written since the claim, and keeps the claim.
    ///
    /// # Errors
    /// When the transaction cannot be used any more; the claim is lost then.
    fn undo(&self, tx: &mut Self::Tx) -> impl Future<Output = Result<(), AdapterError>> + Send;

    /// Writes a failed attempt of a claimed head and gives the claim back. With its first failure it begins to be held
    /// anew. With `tx` (after
    /// [`undo`](HeldMessages::undo)) the claim is held throughout; without, for a transaction that is lost, the row
    /// is changed only if `head.attempts` still stands in it.
    ///
    /// # Errors
    /// When the database cannot be asked; the head comes again then.
    fn reschedule(
        &self,
        consumer: &str,
        tx: Option<Self::Tx>,
        head: &HeldMessage,
        failure: &Failure,
    ) -> impl Future<Output = Result<(), AdapterError>> + Send;

    /// Deletes a condemned head whose letter is confirmed, in a transaction of its own, and makes its follower the
    /// head. The inbox does not know it afterwards, so that a redrive runs it. Nothing changes unless the row still
    /// is as `head` says: condemned, with as many attempts and the same headers.
    ///
    /// # Errors
    /// When the database cannot be asked; the head comes again then, and its letter with it.
    fn give_up(
        &self,
        consumer: &str,
        head: &HeldMessage,
    ) -> impl Future<Output = Result<(), AdapterError>> + Send;

    /// Keeps a condemned message whose letter is confirmed at its place, quarantined: it is not run, and its followers
    /// wait. Nothing changes unless it still is condemned, with as many attempts and these headers: it may have been
    /// redriven meanwhile.
    ///
    /// # Errors
    /// When the database cannot be asked; it comes again then, and its letter with it.
    fn park(
        &self,
        consumer: &str,
        message_key: &MessageKey,
        attempts: u32,
        headers: &Headers,
    ) -> impl Future<Output = Result<(), AdapterError>> + Send;

    /// Ends the wait for a message from outside of the loop: it is taken out, and its follower is the head. With
    /// `generation`, only if it has been redriven that often.
    ///
    /// # Errors
    /// When the database cannot be asked; asking again is safe.
    fn end(
        &self,
        consumer: &str,
        message_key: &MessageKey,
        ending: Ending,
        generation: Option<u32>,
    ) -> impl Future<Output = Result<Ended, AdapterError>> + Send;

    /// Heads, of whatever consumer, by their numbers.
    ///
    /// # Errors
    /// When the database cannot be asked, or a row cannot be read.
    fn keys(
        &self,
        filter: &HeldFilter,
        limit: u32,
    ) -> impl Future<Output = Result<Vec<HeldKey>, AdapterError>> + Send;

    /// How much the consumer holds.
    ///
    /// # Errors
    /// When the database cannot be asked.
    fn summary(&self, consumer: &str) -> impl Future<Output = Result<HeldSummary, AdapterError>> + Send;
}
