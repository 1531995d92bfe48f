//! Backstop on RabbitMQ (AMQP 0-9-1), through lapin.
//!
//! | type | implements | for |
//! |---|---|---|
//! | [`RabbitSource`] | [`Source`](backstop_core::source::Source) | a consumer, or the relay's collector of dead letters |
//! | [`RabbitSink`] | [`Sink`](backstop_core::sink::Sink) | one confirmed publish at a time |
//! | [`RabbitPublisher`] | [`Publisher`](backstop_core::sink::Publisher) | the relay's pipeline |
//! | [`RabbitDeadLetters`] | [`DeadLetters`](backstop_core::DeadLetters) | quarantine |
//! | [`RabbitManagement`] | | which queues there are |
//!
//! Every message is published persistent, mandatory and with a confirm. lapin's automatic recovery stays off: a
//! confirm or a delivery belongs to one connection and is unknown once that is lost, so each of these types opens a
//! fresh connection, with backoff, and never carries anything over.
//!
//! lapin writes a returned message, body included, to its log at `warn`. Filter the target `lapin` to `error` where
//! bodies must not be logged.
//!
//! How properties and typed headers travel inside an [`Envelope`](backstop_core::Envelope): [`properties`].

mod address;
mod dead_letters;
mod error;
mod link;
mod management;
pub mod properties;
mod publisher;
mod settings;
mod sink;
mod source;
mod tls;
mod topology;
mod typed;
mod wire;

pub use dead_letters::RabbitDeadLetters;
pub use management::RabbitManagement;
pub use publisher::{Ordering, RabbitPublisher, RabbitPublisherBuilder};
pub use settings::RabbitSettings;
pub use sink::RabbitSink;
pub use source::{RabbitSettlement, RabbitSource, RabbitSourceBuilder};
pub use topology::{declare_exchange, declare_ordered_queue, declare_queue, delete_queue};
