//! What an adapter needs to know of Backstop: messages, handlers, errors, retry policy, and the traits of sources,
//! sinks, inboxes, held messages, outboxes and dead letters.
//!
//! No I/O and no async runtime live here. Applications depend on `backstop`, which re-exports this crate; adapters
//! depend on this crate alone.
//!
//! | module | holds |
//! |---|---|
//! | [`message`], [`identity`], [`cloudevents`] | the message, its identity, its form on the wire |
//! | [`handler`], [`batch`], [`router`], [`codec`], [`error`], [`classify`], [`retry`] | what a service team writes and sets |
//! | [`source`], [`sink`], [`pipeline`] | the broker side that an adapter implements |
//! | [`inbox`], [`held`], [`held_keys`], [`held_run`], [`owed`], [`outbox`], [`dead_rows`], [`scheduled`], [`lease`], [`ledger`], [`schema`], [`header_column`] | the database side that an adapter implements |
//! | [`dead_letter`], [`report`], [`fingerprint`] | what a quarantined message carries |
//! | [`command`] | what an operator tells a consumer |
//! | [`receipt`], [`report_in`] | what a consumer says of redriven messages and of itself |
//! | [`trace`], [`context`] | the trace context, and which message caused which |

pub mod adapter_error;
pub mod batch;
pub mod charges;
pub mod classify;
pub mod cloudevents;
pub mod codec;
pub mod command;
pub mod context;
pub mod crash;
pub mod dead_letter;
pub mod dead_rows;
pub mod delivery;
pub mod error;
pub mod fingerprint;
pub mod handler;
pub mod header_column;
pub mod held;
pub mod held_keys;
pub mod held_run;
pub mod identifier;
pub mod identity;
pub mod inbox;
pub mod lease;
pub mod ledger;
pub mod message;
pub mod names;
pub mod origin;
pub mod outbox;
pub mod owed;
pub mod pipeline;
pub mod receipt;
pub mod report;
pub mod report_in;
pub mod retry;
pub mod router;
pub mod scheduled;
pub mod schema;
pub mod sink;
pub mod source;
pub mod trace;
pub mod watermark;

pub use adapter_error::{AdapterError, FaultKind};
pub use batch::{BatchHandler, Outcomes};
pub use classify::{Classifier, Explained};
pub use codec::{Codec, DecodeError, Json, Undecoded};
pub use dead_letter::{DeadLetter, DeadLetters, DeadReason};
pub use delivery::Delivery;
pub use error::{BoxError, Disposition, ErrorClass, HandlerError};
pub use handler::Handler;
pub use identity::{Identity, MessageKey};
pub use message::{Destination, Envelope, Headers, Message, Outgoing};
pub use origin::{Origin, Via};
pub use receipt::{Receipt, ReceiptOutcome};
pub use report::ErrorReport;
pub use report_in::{BreakerState, ConsumerReport, ConsumerState};
pub use retry::RetryPolicy;
pub use router::{Router, Unrouted};
