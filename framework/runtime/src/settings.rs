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
    max_age: Option<Duration>,
}

impl GroupCommit {
    /// At most so many messages in one transaction; 1 is none that is shared.
    pub fn up_to(messages: usize) -> Self {
        Self { messages, max_age: None }
    }

    /// How old a shared transaction may be when it begins its next message; afterwards it commits, and the rest of the
    /// messages go into another. Their rows stay locked for that long, and as long as the last handler takes. A
    /// [batch](crate::Consumer::batch) cannot be cut short: one whose handler takes longer is followed by smaller ones.
    ///
    /// Defaults to 50 ms, and for batches to 250 ms: they are large, and run beside each other.
    #[must_use]
    pub fn max_age(mut self, age: Duration) -> Self {
        self.max_age = Some(age);
        self
    }

    pub(crate) fn messages(self) -> usize {
        self.messages
    }

    pub(crate) fn age(self, unless_set: Duration) -> Duration {
        self.max_age.unwrap_or(unless_set)
    }
}

/// Looks for gaps and reorder in the numbers that producers give the messages of a key:
/// [`Consumer::sequence_check`](crate::Consumer::sequence_check).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SequenceCheck {
    header: String,
    keys: usize,
    gaps: bool,
    reordered: bool,
}

impl SequenceCheck {
    /// Numbers are in this header, as decimal text, and grow by one from each message of a key to the next. Findings
    /// are counted and warned of.
    pub fn header(name: impl Into<String>) -> Self {
        Self { header: name.into(), keys: 100_000, gaps: false, reordered: false }
    }

    /// Of how many keys it is remembered where they are, about 50 bytes each. Defaults to 100,000; at more than that
    /// those are forgotten that were not seen for longest, and begin anew.
    #[must_use]
    pub fn keys(mut self, keys: usize) -> Self {
        self.keys = keys;
        self
    }

    /// Fails the message behind a gap as `Permanent`, so that it is quarantined; those after it are handled again,
    /// unless [`ordered`](crate::Consumer::ordered) lets its key wait. Off by default.
    #[must_use]
    pub fn quarantine_gaps(mut self) -> Self {
        self.gaps = true;
        self
    }

    /// Fails a message that comes after a later one as `Permanent`, so that it is quarantined. Off by default: it is
    /// handled.
    #[must_use]
    pub fn quarantine_reordered(mut self) -> Self {
        self.reordered = true;
        self
    }

    pub(crate) fn name(&self) -> &str {
        &self.header
    }

    pub(crate) fn remembered(&self) -> usize {
        self.keys
    }

    pub(crate) fn refuses_gaps(&self) -> bool {
        self.gaps
    }

    pub(crate) fn refuses_reordered(&self) -> bool {
        self.reordered
    }
}
