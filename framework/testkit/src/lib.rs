//! Test tools for Backstop: for those who write handlers, and for those who write adapters.
//!
//! **For tests of your handlers**, see [`trial`] and the guide `docs/guides/testing.md`:
//!
//! | module | holds |
//! |---|---|
//! | [`trial`] | a handler in the real loop, killed at every point, and whether its effects are exactly once |
//! | [`memory`] | a broker and a database without servers, with faults on demand |
//!
//! **For adapters and fault runs against real servers:**
//!
//! | module | holds |
//! |---|---|
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
pub mod trial;

pub use trial::{Outside, TestConsumer};
