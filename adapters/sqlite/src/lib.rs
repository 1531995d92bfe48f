//! Outbox, inbox, held messages and dead-letter ledger on SQLite.
//!
//! | type | for |
//! |---|---|
//! | [`open()`], [`options`] | a pool with the settings that the promises rest on |
//! | [`SqliteSchema`] | creating and checking the tables |
//! | [`SqliteOutbox`] | an application: `enqueue` inside its own transaction |
//! | [`SqliteInbox`], [`SqliteTx`] | a consumer: each message handled once, failures held |
//! | [`SqliteOutboxStore`], [`SqliteLedger`] | the relay |
//!
//! # One writer at a time
//!
//! SQLite has one write lock for the whole file, and every transaction here takes it at once (`BEGIN IMMEDIATE`), so
//! that none fails half-way for want of it. A handler holds the lock from its first statement to its commit:
//! handlers of all consumers on one file run one after another, and so does everything else that writes to it. Keep
//! handlers short, and outside calls out of them. Writers of one process wait in a fair queue; writers of other
//! processes wait as SQLite does it, by trying again.
//!
//! Readers are never blocked and block nobody (write-ahead log).

mod charges;
mod commit;
mod database;
mod dead_rows;
mod envelope;
mod error;
mod explain;
mod held;
mod held_keys;
mod held_row;
mod inbox;
mod lease;
mod ledger;
mod letter_row;
mod open;
mod outbox;
mod outbox_row;
mod owed;
mod queue;
mod ranges;
mod reader;
mod scheduled;
mod schema;
mod store;
mod tables;
mod time;
mod tx;

pub use inbox::SqliteInbox;
pub use ledger::SqliteLedger;
pub use open::{open, options};
pub use outbox::{SqliteOutbox, SqliteTransaction};
pub use schema::SqliteSchema;
pub use store::SqliteOutboxStore;
pub use tables::SqliteTables;
pub use tx::SqliteTx;
