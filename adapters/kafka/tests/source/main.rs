//! The source: reading, committing, and changing hands, on a real broker.

#[path = "../common/mod.rs"]
mod common;
mod gaps;
mod reading;
mod rebalance;
