//! The adapter against a real broker.

#![expect(clippy::unwrap_used, reason = "helpers of tests, which clippy does not take for tests")]

mod alarm;
mod dead_letters;
mod logged;
mod management;
mod order;
mod permissions;
mod publisher;
mod recovery;
mod silence;
mod sink;
mod source;
mod support;
