//! A broker and a database in memory, for tests and examples.
//!
//! [`Broker`] behaves as Kafka does: topics with partitions, consumer groups with one committed offset per partition,
//! redelivery of what was not settled. [`Store`] is a database with transactions: inbox, held messages, outbox,
//! leases, ledger, and a few values that a handler can write in the same transaction. Both pass the conformance suite
//! that the real adapters pass, and both can be told to fail.
//!
//! Time is tokio's: under `tokio::time::pause` leases expire and held messages fall due when the test's clock says so.
//! Neither survives the process, and neither is made for speed.

mod audit;
mod broker;
mod charges;
mod data;
mod dead_rows;
mod group;
mod held;
mod inbox;
mod ledger;
mod outbox;
mod owed;
mod redrives;
mod scheduled;
mod sink;
mod source;
mod store;
mod transaction;

pub use broker::{Broker, DEFAULT_MAX_BYTES, DEFAULT_PARTITIONS};
pub use sink::{MemoryDeadLetters, MemoryPublisher, MemorySink, PUBLISHER_WINDOW};
pub use source::{DEFAULT_WINDOW, MemorySettlement, MemorySource};
pub use store::{CommitFault, Store};
pub use transaction::MemoryTx;
