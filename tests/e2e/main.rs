//! What is only visible from outside: real writers, real servers, processes that are killed.

mod crashes;
mod duplicates;
mod examples;
mod failures;
mod groups;
mod handlers;
mod readme;
mod rebalance;
mod redrive;
mod throughout;
mod trace;
