//! The consumer loop against the in-memory broker and database, one program: what each of these files needs is compiled
//! once, and their waits overlap.

mod batch;
mod breaker;
mod common;
mod consumer;
mod crashes;
mod group;
mod handle;
mod held_run;
#[cfg(feature = "http")]
mod http;
mod ordered;
mod receipts;
mod sequence;
mod steered;
