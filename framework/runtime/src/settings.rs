//! Choices of a consumer that are more than a number.

use std::time::Duration;

/// What to do with a message that has no id and nothing that could stand in for one.
///
/// Only RabbitMQ has such messages; on Kafka the record's coordinates stand in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MissingId {
    /// Stop the consumer and say what to configure. The default: no effect is ever applied twice unnoticed.
    #[default]
    Stop,
    /// Quarantine it with the reason `missing-id`.
    DeadLetter,
    /// Handle it; redelivered, it is handled again.
    ProcessWithoutDedup,
}

/// How messages share a transaction: [`Consumer::group_commit`](crate::Consumer::group_commit).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupCommit {
    messages: usize,
    max_age: Duration,
}

impl GroupCommit {
    /// At most so many messages in one transaction; 1 is none that is shared.
    pub fn up_to(messages: usize) -> Self {
        Self { messages, max_age: Duration::from_millis(50) }
    }

    /// How old a shared transaction may be when it begins its next message; afterwards it commits, and the rest of the
    /// messages go into another. Defaults to 50 ms. Their rows stay locked for that long, and as long as the last
    /// handler takes.
    #[must_use]
    pub fn max_age(mut self, age: Duration) -> Self {
        self.max_age = age;
        self
    }

    pub(crate) fn messages(self) -> usize {
        self.messages
    }

    pub(crate) fn age(self) -> Duration {
        self.max_age
    }
}
