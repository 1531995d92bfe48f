//! A consumer loop that keeps its promises: inbox dedup, retries per error class, quarantine, trace context,
//! back-pressure and shutdown around the [`Handler`] that you write.
//!
//! This crate re-exports [`backstop_core`]; with an adapter for your broker and one for your database it is all an
//! application needs.
//!
//! ```
//! use backstop::{Consumer, Delivery, Handler, HandlerError};
//!
//! struct Greet;
//!
//! impl<Tx: Send> Handler<Tx> for Greet {
//!     type Message = String;
//!
//!     async fn handle(&self, delivery: &Delivery<String>, _tx: &mut Tx) -> Result<(), HandlerError> {
//!         println!("hello, {}", delivery.body());
//!         Ok(())
//!     }
//! }
//! # fn build<S>(source: S) {
//! let consumer = Consumer::plain("greeter", source, Greet).concurrency(4);
//! # drop(consumer);
//! # }
//! ```

mod consumer;
mod control;
#[cfg(feature = "http")]
pub mod http;
mod run_error;
mod settings;
mod shutdown;
mod stats;
mod stop_partition;

pub use backstop_core::*;

pub use crate::consumer::{Consumer, InBatches, InPipeline, Unset, WithInbox, WithoutInbox};
pub use crate::control::breaker::{BreakerCause, BreakerPhase};
pub use crate::control::handle::ConsumerHandle;
pub use crate::control::status::{BreakerStatus, ConsumerStatus, MessageAtWork, RunState, Stalled};
pub use crate::control::waiting::WaitingKey;
pub use crate::run_error::RunError;
pub use crate::settings::{GroupCommit, MissingId, SequenceCheck};
pub use crate::shutdown::shutdown_signal;
pub use crate::stats::{Snapshot, Stats};
pub use crate::stop_partition::StopPartition;
