//! What the end-to-end tests and benches share: real servers, fresh schemas, a consumer program that applies events to
//! a ledger, and the oracle over it.
//!
//! Not published, and without any promise to others.

pub mod apply;
pub mod commit_proxy;
pub mod database;
pub mod dead;
pub mod fleet;
pub mod index;
pub mod letters;
pub mod pipeline;
pub mod program;
pub mod redriven;
pub mod scene;
pub mod servers;
pub mod size;
pub mod soak;
pub mod wait;
pub mod workload;

/// The code of the README compiles.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
pub struct Readme;
