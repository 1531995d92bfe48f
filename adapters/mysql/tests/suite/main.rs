//! What the conformance suite cannot show, because it is about this database only.

mod commit;
mod common;
mod group;
mod held;
mod lease;
mod lost;
mod outbox;
mod reader;
mod schema;
mod stranded;
mod stress;
