//! MySQL and MariaDB for Backstop: outbox, inbox, held messages and leases.
//!
//! | type | used by | does |
//! |---|---|---|
//! | [`MySqlOutbox`] | applications | writes messages into the outbox, inside the caller's transaction |
//! | [`MySqlInbox`], [`MySqlTx`] | consumers | opens the transaction in which a message is handled once, and holds failures |
//! | [`MySqlOutboxStore`] | the relay | reads, deletes and buries outbox rows; grants leases |
//! | [`MySqlSchema`] | everybody | makes and checks the tables |
//! | [`MySqlTables`] | everybody | says where the tables are |
//!
//! MariaDB 10.6 or MySQL 8.0.16, or later; tested on MariaDB only. The ledger of dead letters is on PostgreSQL or
//! SQLite.
//!
//! Every transaction of Backstop sets its own isolation level, READ COMMITTED to write and a consistent snapshot to
//! read the outbox, whatever the session's default: at REPEATABLE READ, gap locks would let writers wait for the relay.
//! What a handler's transaction sets beside that is given back with its connection.
//!
//! **The outbox is read without assumptions about time.** AUTO_INCREMENT hands numbers out before their rows commit, so
//! a number that is missing may still come. It is looked for in every read, in the same snapshot as the rows beyond it,
//! so that a late row comes before a later one of its key. It is given up only on proof: no transaction that could have
//! taken it is left. The proof needs the table of metadata locks of the performance schema (on by default in MySQL)
//! and SELECT on it; without, missing numbers are looked for as long as the reader lives, which costs time where many
//! rows that wait are interspersed with many numbers that were rolled back, and loses nothing.

mod charges;
mod check;
mod commit;
mod contest;
mod dead_rows;
mod explain;
mod failure;
mod gaps;
mod group;
mod held;
mod held_keys;
mod held_row;
mod held_sql;
mod inbox;
mod lease;
mod literal;
mod numbers;
mod open;
mod outbox;
mod outbox_row;
mod owed;
mod patience;
mod reader;
mod scheduled;
mod schema;
mod scoped;
mod seat;
mod session;
mod store;
mod tables;
mod time;
mod transaction;
mod witness;

pub use backstop_nodelay::set as set_nodelay;
pub use inbox::MySqlInbox;
pub use open::open;
pub use outbox::MySqlOutbox;
pub use schema::MySqlSchema;
pub use store::MySqlOutboxStore;
pub use tables::MySqlTables;
pub use transaction::{MySqlTransaction, MySqlTx};
