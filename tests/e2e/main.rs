//! What is only visible from outside: real writers, real servers, processes that are killed.

mod batches;
mod breaker;
mod collect;
mod crash_poison;
mod crashes;
mod dialects;
mod duplicates;
mod examples;
mod failures;
mod groups;
mod handlers;
mod on_call;
mod ordered;
mod pipeline;
mod readme;
mod rebalance;
mod receipts;
mod redrive;
mod redrive_kills;
mod replay;
mod stopped;
mod throughout;
mod trace;
