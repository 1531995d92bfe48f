//! Test tools for Backstop: an in-memory broker and database, the conformance suite that every adapter passes, a
//! ledger oracle for fault runs, and helpers that break processes and connections.
//!
//! | module | holds |
//! |---|---|
//! | [`memory`] | a broker and a database without servers, with faults on demand |
//! | [`conformance`] | what every adapter must show, one named test a case |
//! | [`oracle`] | nothing lost, nothing twice, order kept: the books of a fault run |
//! | [`fault`] | crash points in a child process, a TCP proxy that cuts |
//!
//! This crate is for tests. Nothing of it belongs into a service.

pub mod conformance;
pub mod fault;
pub mod memory;
pub mod oracle;
#[doc(hidden)]
pub mod page;
