//! The inbox: which messages a consumer has handled, kept in the database that its handlers write to.

use std::error::Error;
use std::fmt;
use std::future::Future;
use std::time::Duration;

use crate::adapter_error::{AdapterError, FaultKind};
use crate::classify::Explained;
use crate::identity::MessageKey;

/// One message as the inbox sees it.
#[derive(Debug, Clone, Copy)]
pub struct Unit<'a> {
    /// The consumer's name.
    pub consumer: &'a str,
    /// Topic or queue.
    pub place: &'a str,
    /// The key under which messages are kept in order; see [`ordering_key`](crate::held::ordering_key).
    pub ordering_key: &'a [u8],
    /// The message's identity.
    pub message_key: &'a MessageKey,
}

/// Limits that the database itself enforces on the handler's transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// How long to wait for another instance that handles the same message.
    pub lock: Duration,
    /// How long the handler may take: also the statement and idle timeout of its transaction.
    pub handler: Duration,
}

impl Default for Limits {
    /// 2 s for locks, 30 s for the handler.
    fn default() -> Self {
        Self { lock: Duration::from_secs(2), handler: Duration::from_secs(30) }
    }
}

/// What the inbox answers.
#[derive(Debug)]
pub enum Admission<Tx> {
    /// Not handled yet; the inbox row is written in this transaction.
    Fresh(Tx),
    /// Handled before: settle it.
    Duplicate,
    /// An earlier message of this key waits in the held table: append this one.
    Held,
    /// Another instance is at it: step aside, uncharged.
    Busy,
}

/// What the inbox answers when several messages are to share a transaction.
#[derive(Debug)]
pub enum GroupAdmission<Tx> {
    /// The transaction is open.
    Shared {
        /// Lent to one handler after another.
        tx: Tx,
        /// What the inbox says of each message, in the order in which they were given.
        standings: Vec<Standing>,
    },
    /// They cannot share one now: begin each by itself. Nothing is written.
    Apart,
}

/// What the inbox says of one message of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Not handled yet; its inbox row is written in the group's transaction.
    Fresh,
    /// Handled before, or the same message stands earlier in the group: when the group is committed, settle it.
    Duplicate,
    /// An earlier message of its key waits in the held table: begin it by itself after the group.
    Held,
}

/// A commit that did not simply succeed.
#[derive(Debug)]
pub enum CommitError {
    /// Nothing is committed; trying again is safe. A handler that swallowed a failed statement ends here.
    RolledBack(AdapterError),
    /// The handler ended the transaction that it was lent; what is in the database must be read from the inbox.
    EndedByHandler(AdapterError),
    /// The connection was lost inside COMMIT; what is in the database must be read from the inbox.
    Unknown(AdapterError),
}

impl CommitError {
    /// What the database said.
    pub fn error(&self) -> &AdapterError {
        match self {
            Self::RolledBack(error) | Self::EndedByHandler(error) | Self::Unknown(error) => error,
        }
    }

    /// [`error`](CommitError::error), taken out.
    pub fn into_error(self) -> AdapterError {
        match self {
            Self::RolledBack(error) | Self::EndedByHandler(error) | Self::Unknown(error) => error,
        }
    }
}

impl fmt::Display for CommitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::RolledBack(_) => "the transaction was rolled back instead of committed",
            Self::EndedByHandler(_) => "the handler ended the transaction that it was lent",
            Self::Unknown(_) => "the connection was lost inside COMMIT",
        })
    }
}

impl Error for CommitError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(self.error())
    }
}

/// Opens the transaction in which a message is handled once, and proves its commit.
///
/// Dropping a `Tx` abandons it: its connection is closed, so that a cancelled handler cannot commit late.
pub trait Inbox: Send + Sync + 'static {
    /// The transaction lent to the handler.
    type Tx: Send;

    /// Begins a transaction and writes the inbox row, unless the message is handled or its key is held.
    ///
    /// # Errors
    /// When the database cannot be asked. Nothing is written then.
    fn begin(
        &self,
        unit: Unit<'_>,
        limits: Limits,
    ) -> impl Future<Output = Result<Admission<Self::Tx>, AdapterError>> + Send;

    /// Begins a transaction that several messages of one consumer share, and writes the inbox rows of those that are
    /// neither handled nor of a held key, in one statement.
    ///
    /// Of messages with one identity only the first is fresh. An inbox whose transactions cannot be shared says
    /// [`GroupAdmission::Apart`], as does one that finds another instance at one of the messages.
    ///
    /// # Errors
    /// When the database cannot be asked. Nothing is written then.
    fn begin_group(
        &self,
        units: &[Unit<'_>],
        limits: Limits,
    ) -> impl Future<Output = Result<GroupAdmission<Self::Tx>, AdapterError>> + Send {
        let _ = (units, limits);
        std::future::ready(Ok(GroupAdmission::Apart))
    }

    /// Takes the inbox rows of messages that were fresh back out of the transaction that they share: they do not
    /// commit with it, and are fresh again after it.
    ///
    /// # Errors
    /// When the transaction cannot be used any more, or never was shared.
    fn withdraw(
        &self,
        tx: &mut Self::Tx,
        consumer: &str,
        message_keys: &[&MessageKey],
    ) -> impl Future<Output = Result<(), AdapterError>> + Send {
        let _ = (tx, consumer, message_keys);
        std::future::ready(Err(AdapterError::new(
            FaultKind::Other,
            "this inbox has no transactions that messages share",
        )))
    }

    /// Commits, and proves that it was this transaction that committed.
    ///
    /// # Errors
    /// [`CommitError`] says what is known of the outcome.
    fn commit(&self, tx: Self::Tx) -> impl Future<Output = Result<(), CommitError>> + Send;

    /// Whether a transaction that messages share is still the one that was begun. Asked between one handler and the next:
    /// where a handler has ended it, no other is to run behind that. Defaults to yes, without asking; then messages that
    /// share a transaction with one whose handler rolls it back by itself can be applied twice.
    ///
    /// # Errors
    /// When that cannot be told: the connection is lost, and the transaction with it.
    fn is_unbroken(&self, tx: &mut Self::Tx) -> impl Future<Output = Result<bool, AdapterError>> + Send {
        let _ = tx;
        std::future::ready(Ok(true))
    }

    /// Whether a deadlock ends the whole transaction, so that one that has ended need not have been ended by its handler.
    /// Defaults to no: it fails, and waits to be rolled back.
    fn conflicts_end_transactions(&self) -> bool {
        false
    }

    /// Whether the handler has ended a transaction that messages share, so that there is nothing left of it to roll back.
    /// The transaction is not used after this but for [`rollback`](Inbox::rollback). An inbox whose transactions cannot
    /// be shared is never asked.
    ///
    /// # Errors
    /// When that cannot be told: the connection is lost, and the transaction with it.
    fn is_ended(&self, tx: &mut Self::Tx) -> impl Future<Output = Result<bool, AdapterError>> + Send {
        let _ = tx;
        std::future::ready(Ok(false))
    }

    /// Rolls back and gives the connection back; where that fails, the connection is closed.
    fn rollback(&self, tx: Self::Tx) -> impl Future<Output = ()> + Send;

    /// Whether the consumer has handled the message.
    ///
    /// # Errors
    /// When the database cannot be asked.
    fn is_handled(
        &self,
        consumer: &str,
        message_key: &MessageKey,
    ) -> impl Future<Output = Result<bool, AdapterError>> + Send;

    /// Forgets messages handled longer ago than `age`, a bounded number a call; returns how many.
    ///
    /// # Errors
    /// When the database cannot be asked.
    fn prune(
        &self,
        consumer: &str,
        age: Duration,
        limit: u32,
    ) -> impl Future<Output = Result<u64, AdapterError>> + Send;

    /// What an error of this database means. Asked for each error in a failure's chain, outermost first.
    fn explain(&self, error: &(dyn Error + 'static)) -> Option<Explained>;

    /// Checks at start-up that the tables are there and usable.
    ///
    /// # Errors
    /// Names what is missing and how to mend it.
    fn ready(&self) -> impl Future<Output = Result<(), AdapterError>> + Send;
}
