//! Choices of a consumer that are not numbers.

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
