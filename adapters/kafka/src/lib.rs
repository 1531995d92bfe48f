//! Backstop on Apache Kafka through librdkafka.
//!
//! | type | is |
//! |---|---|
//! | [`KafkaSource`] | what a consumer reads: topics, its door, dead-letter topics by pattern |
//! | [`KafkaPipeline`] | the same, with outputs that are committed together with its offsets |
//! | [`KafkaSink`] | one confirmed publish at a time |
//! | [`KafkaPublisher`] | the relay's pipeline of confirmed publishes |
//! | [`KafkaExcerpt`] | a bounded part of a topic, beside every group |
//! | [`KafkaDeadLetters`] | quarantine in `<topic>.<group>.dlq` |
//! | [`KafkaSettings`] | how all of them reach the brokers |
//!
//! Nothing connects before it is used. Properties of librdkafka can be set as they are, except the few on which a
//! promise of Backstop rests; those are refused by name.

mod absence;
mod assignment;
mod context;
mod dead_letters;
mod decode;
mod excerpt;
mod exchange;
mod fault;
mod flow;
mod group;
mod inspection;
mod line;
#[cfg(feature = "mock")]
mod mock;
mod options;
mod pipeline;
mod poller;
mod producer;
mod progress;
mod publisher;
mod queues;
mod settings;
mod sink;
mod source;
mod start;
mod token;
mod topics;
mod transactor;

pub use assignment::KafkaSettlement;
pub use dead_letters::KafkaDeadLetters;
pub use excerpt::{KafkaExcerpt, ReadFrom};
#[cfg(feature = "mock")]
pub use mock::MockBroker;
pub use options::{OutOfRange, RebalanceProtocol, StartFrom};
pub use pipeline::{KafkaHandover, KafkaPipeline};
pub use publisher::KafkaPublisher;
pub use settings::KafkaSettings;
pub use sink::KafkaSink;
pub use source::KafkaSource;
