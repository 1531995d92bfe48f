//! The database: its handle, its clock and its faults.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use backstop_core::Outgoing;
use backstop_core::outbox::OutboxRow;
use tokio::sync::watch;

use super::data::{Data, OutboxEntry};

/// A database in memory. Cloning it gives another connection to the same database.
///
/// It is an [`Inbox`](backstop_core::inbox::Inbox) with [`HeldMessages`](backstop_core::held::HeldMessages), an
/// [`OutboxStore`](backstop_core::outbox::OutboxStore) and a [`Ledger`](backstop_core::ledger::Ledger). The limit for
/// locks is kept, the limit for handlers is not: there are no statements that could be cut short.
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().build()?.block_on(async {
/// use backstop_core::MessageKey;
/// use backstop_core::inbox::{Admission, Inbox, Limits, Unit};
/// use backstop_testkit::memory::Store;
///
/// let store = Store::new();
/// let message_key = MessageKey::new("/orders", b"7");
/// let unit = Unit { consumer: "stock", place: "orders", ordering_key: b"tea", message_key: &message_key };
/// let Admission::Fresh(mut tx) = store.begin(unit, Limits::default()).await? else { unreachable!() };
/// tx.put("tea", "reserved");
/// assert_eq!(store.get("tea"), None, "not committed yet");
/// store.commit(tx).await?;
/// assert_eq!(store.get("tea").as_deref(), Some("reserved"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct Store {
    pub(super) shared: Arc<Shared>,
}

/// How a commit is to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommitFault {
    /// Nothing is committed, and the caller is told so.
    RolledBack,
    /// The handler ended its transaction; `committed` says what is in the database.
    EndedByHandler {
        /// Whether inbox row and effects are there. The claim's own deletion of a head is not.
        committed: bool,
    },
    /// The connection was lost inside COMMIT; `committed` says what is in the database.
    Unknown {
        /// Whether everything is there.
        committed: bool,
    },
}

impl Store {
    /// An empty database.
    pub fn new() -> Self {
        Self::default()
    }

    /// Moves the database's clock ahead: held messages fall due, leases expire, inbox rows age.
    pub fn advance(&self, by: Duration) {
        self.shared.change(|data| data.ahead += by);
    }

    /// The committed value of that name.
    pub fn get(&self, name: &str) -> Option<String> {
        self.shared.look(|data| data.values.get(name).cloned())
    }

    /// Committed effects, in the order of their commits.
    pub fn applied(&self) -> Vec<String> {
        self.shared.look(|data| data.applied.clone())
    }

    /// Event and text of what was committed by transactions that were told which event they are for.
    pub(crate) fn effects(&self) -> Vec<(String, String)> {
        self.shared.look(|data| data.effects.clone())
    }

    /// Every committed value by its name.
    pub(crate) fn values(&self) -> BTreeMap<String, String> {
        self.shared.look(|data| data.values.clone())
    }

    /// How many inbox rows there are.
    pub fn handled(&self) -> usize {
        self.shared.look(|data| data.inbox.len())
    }

    /// Writes an outbox row in a transaction of its own and returns its number.
    pub fn enqueue(&self, outgoing: Outgoing) -> i64 {
        self.insert(outgoing, None)
    }

    /// Writes an outbox row that cannot be read as a message, for the reason given, and returns its number.
    pub fn enqueue_unreadable(&self, outgoing: Outgoing, why: impl Into<String>) -> i64 {
        self.insert(outgoing, Some(why.into()))
    }

    fn insert(&self, outgoing: Outgoing, unreadable: Option<String>) -> i64 {
        self.shared.change(|data| {
            let seq = data.next_number();
            let row = OutboxRow { seq, destination: outgoing.destination, message: outgoing.message };
            let created = data.now();
            data.outbox.insert(seq, OutboxEntry { row, created, unreadable });
            seq
        })
    }

    /// Lets the next commit fail; several calls queue up.
    pub fn fail_next_commit(&self, fault: CommitFault) {
        self.shared.change(|data| data.faults.commits.push_back(fault));
    }

    /// Lets the next `times` calls of `begin` and `claim` fail as unreachable.
    pub fn fail_begins(&self, times: u32) {
        self.shared.change(|data| data.faults.begins = times);
    }

    /// Refuses to hold messages with a larger body than so many bytes, as invalid.
    pub fn hold_at_most(&self, bytes: usize) {
        self.shared.change(|data| data.faults.hold_at_most = Some(bytes));
    }

    /// Damages the table of held messages or mends it. While it is damaged it refuses every message as invalid, and
    /// [`ready`](backstop_core::inbox::Inbox::ready) says so.
    pub fn set_damaged(&self, damaged: bool) {
        self.shared.change(|data| data.faults.damaged = damaged);
    }

    /// Takes the database down or brings it back. While it is down every call fails as unreachable, and a commit as
    /// unknown although nothing is committed.
    pub fn set_unreachable(&self, unreachable: bool) {
        self.shared.change(|data| data.faults.unreachable = unreachable);
    }
}

/// The tables and the bell that rings when they change.
#[derive(Debug)]
pub(super) struct Shared {
    data: Mutex<Data>,
    changed: watch::Sender<()>,
}

impl Default for Shared {
    fn default() -> Self {
        Self { data: Mutex::default(), changed: watch::Sender::new(()) }
    }
}

impl Shared {
    /// Reads or writes without ringing.
    pub(super) fn look<R>(&self, work: impl FnOnce(&mut Data) -> R) -> R {
        work(&mut self.data.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Writes, and wakes whoever waits for a lock.
    pub(super) fn change<R>(&self, work: impl FnOnce(&mut Data) -> R) -> R {
        let result = self.look(work);
        self.changed.send_replace(());
        result
    }

    pub(super) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }
}
