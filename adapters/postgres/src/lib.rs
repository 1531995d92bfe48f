//! PostgreSQL for Backstop: outbox, inbox, held messages, leases and the ledger of dead letters.
//!
//! | type | used by | does |
//! |---|---|---|
//! | [`PgOutbox`] | applications | writes messages into the outbox, inside the caller's transaction |
//! | [`PgInbox`], [`PgTx`] | consumers | opens the transaction in which a message is handled once, and holds failures |
//! | [`PgOutboxStore`] | the relay | reads, deletes and buries outbox rows; grants leases |
//! | [`PgLedger`] | the relay | keeps dead letters |
//! | [`DebeziumOutbox`], [`DebeziumSchema`] | the relay | an outbox table of Debezium's layout |
//! | [`PgSchema`] | everybody | makes and checks the tables |
//! | [`PgTables`] | everybody | says where the tables are |
//!
//! PostgreSQL 13 or later. Everything works through a pooler in transaction mode: there are no session locks and no
//! LISTEN, and every setting is local to a transaction.

mod ahead;
mod chain;
mod charges;
mod check;
mod commit;
mod dead_rows;
mod debezium;
mod debezium_schema;
mod explain;
mod failure;
mod gaps;
mod group;
mod held;
mod held_keys;
mod held_row;
mod held_run;
mod held_sql;
mod held_store;
mod hex;
mod inbox;
mod layout;
mod lease;
mod ledger;
mod ledger_row;
mod limits;
mod literal;
#[cfg(test)]
mod model;
mod of_key;
mod open;
mod outbox;
mod outbox_row;
mod owed;
mod patience;
mod progress;
mod proof;
mod reader;
mod scheduled;
mod schema;
mod scoped;
mod seat;
mod storable;
mod store;
mod stranded;
mod tables;
mod time;
mod transaction;

pub use backstop_nodelay::set as set_nodelay;
pub use debezium::{AdditionalField, DebeziumOutbox, Placement};
pub use debezium_schema::DebeziumSchema;
pub use inbox::PgInbox;
pub use ledger::PgLedger;
pub use open::open;
pub use outbox::PgOutbox;
pub use schema::PgSchema;
pub use store::PgOutboxStore;
pub use tables::PgTables;
pub use transaction::{PgTransaction, PgTx};
