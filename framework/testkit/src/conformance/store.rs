//! The suite for databases: inbox, held messages, outbox, leases, ledger and schema.

pub mod audit;
pub mod charges;
pub mod died_again;
pub mod envelopes;
pub mod expiry;
pub mod group;
pub mod held;
pub mod held_attempts;
pub mod held_run;
pub mod import;
pub mod inbox;
pub mod inbox_instances;
pub mod lease;
pub mod ledger;
pub mod letters;
pub mod outbox;
pub mod outbox_dead;
pub mod outbox_fencing;
pub mod owed;
pub mod quarantined;
pub mod redrives;
mod sample;
pub mod scheduled;
pub mod schema;

use std::future::Future;
use std::sync::Arc;

use backstop_core::Outgoing;
use backstop_core::held::HeldMessages;
use backstop_core::inbox::Inbox;
use backstop_core::ledger::Ledger;
use backstop_core::outbox::OutboxStore;
use backstop_core::schema::Schema;
use chrono::{DateTime, Utc};

/// What a database can do; each field that is `false` leaves out the cases that need it.
#[derive(Debug, Clone, Copy)]
pub struct StoreCapabilities {
    /// Two transactions can have written, both uncommitted. Not so on SQLite.
    pub concurrent_writers: bool,
    /// A failed statement dooms its transaction, whether or not the handler swallows the error. Not so on SQLite and
    /// MySQL, where the rest of the transaction stays good.
    pub failure_dooms_transaction: bool,
    /// A handler can end the transaction that it was lent by a statement of its own.
    pub handler_can_commit: bool,
    /// [`is_unbroken`](backstop_core::inbox::Inbox::is_unbroken) asks. Not so on PostgreSQL, where it would cost each message
    /// of a group another round trip, and only a handler that rolls back by itself needs it.
    pub sees_ends_between_handlers: bool,
    /// Held messages can share transactions.
    pub runs: bool,
    /// The outbox can hold rows that cannot be read as messages.
    pub unreadable_rows: bool,
    /// There is a schema with migrations.
    pub schema: bool,
}

/// The transaction of a harness's store.
pub type TxOf<H> = <<H as StoreHarness>::Store as Inbox>::Tx;

/// One fresh, isolated database, and what the suite needs to do with it beside the traits.
///
/// Every method may panic where the database cannot be reached: the case fails then.
pub trait StoreHarness: Sized + Send + Sync + 'static {
    /// The adapter's inbox.
    type Store: HeldMessages;

    /// What this database can do.
    const CAPABILITIES: StoreCapabilities;

    /// A database of its own for one case, with all tables and the table that
    /// [`write_effect`](StoreHarness::write_effect) writes to.
    fn fresh() -> impl Future<Output = Self> + Send;

    /// Another instance on this database: inbox and held messages.
    fn store(&self) -> Self::Store;

    /// Another relay on this database.
    fn outbox(&self) -> Arc<dyn OutboxStore>;

    /// Another collector on this database. Called unless the suite is made `without ledger`.
    fn ledger(&self) -> Arc<dyn Ledger> {
        panic!("the harness has no ledger: make its suite `without ledger`")
    }

    /// The schema; `None` where the capability says so.
    fn schema(&self) -> Option<Arc<dyn Schema>> {
        None
    }

    /// Does what a handler does: adds a row of that name to a table without a unique key.
    fn write_effect(&self, tx: &mut TxOf<Self>, name: &str) -> impl Future<Output = ()> + Send;

    /// How many committed rows of that name there are.
    fn effects(&self, name: &str) -> impl Future<Output = u64> + Send;

    /// Writes an outbox row in the handler's transaction, by the adapter's `enqueue`.
    fn enqueue(&self, tx: &mut TxOf<Self>, outgoing: Outgoing) -> impl Future<Output = ()> + Send;

    /// Writes a row to be published at that time in the handler's transaction, by the adapter's `enqueue_at`.
    fn enqueue_at(
        &self,
        tx: &mut TxOf<Self>,
        outgoing: Outgoing,
        at: DateTime<Utc>,
    ) -> impl Future<Output = ()> + Send;

    /// Commits an outbox row to `destination` whose headers are not what the contract says.
    fn enqueue_unreadable(&self, destination: &str) -> impl Future<Output = ()> + Send;

    /// Runs a statement that fails in the handler's transaction, and swallows the error.
    fn swallow_failed_statement(&self, tx: &mut TxOf<Self>) -> impl Future<Output = ()> + Send;

    /// Commits the handler's transaction by a statement of the handler's own.
    fn raw_commit(&self, tx: &mut TxOf<Self>) -> impl Future<Output = ()> + Send;

    /// Removes what [`fresh`](StoreHarness::fresh) made. Called after a case that passed.
    fn clean_up(self) -> impl Future<Output = ()> + Send {
        std::future::ready(())
    }
}
