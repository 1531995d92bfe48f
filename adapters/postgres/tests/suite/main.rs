//! The adapter against a real PostgreSQL, one program: what each of these files needs is compiled once, and their waits
//! overlap.

mod check;
mod debezium;
mod inbox;
mod ledger;
mod outbox;
mod pgbouncer;
mod schema;
mod security;
mod support;
mod writers;
