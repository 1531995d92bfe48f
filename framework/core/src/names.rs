//! Every header name that Backstop writes or reads, once.
//!
//! `backstop-*` headers count only on destinations that Backstop owns (dead-letter destinations and doors); on any
//! other topic or queue they are ordinary headers that a stranger may have written.

/// The prefix of every header of ours.
pub const PREFIX: &str = "backstop-";

/// The resolved identity of the original message; see [`MessageKey`](crate::MessageKey).
pub const MESSAGE_KEY: &str = "backstop-message-key";
/// Identity of a dead letter: UUIDv5 of consumer, message key and redrive generation.
pub const DEAD_LETTER_ID: &str = "backstop-dead-letter-id";
/// How often the message has been redriven.
pub const REDRIVE_GENERATION: &str = "backstop-redrive-generation";
/// At a door: what is to become of a held message; see [`Command`](crate::command::Command).
pub const COMMAND: &str = "backstop-command";
/// The redrive that sent the message through the door.
pub const REDRIVE_ID: &str = "backstop-redrive-id";
/// Why the message was given up; see [`DeadReason`](crate::DeadReason).
pub const REASON: &str = "backstop-reason";
/// The error class of the last failure.
pub const ERROR_CLASS: &str = "backstop-error-class";
/// The Rust type of the last error.
pub const ERROR_TYPE: &str = "backstop-error-type";
/// The last error's message, escaped and redacted.
pub const ERROR_MESSAGE: &str = "backstop-error-message";
/// The causes of the last error, one a line.
pub const ERROR_CHAIN: &str = "backstop-error-chain";
/// Groups equal failures.
pub const FINGERPRINT: &str = "backstop-fingerprint";
/// Charged attempts.
pub const ATTEMPTS: &str = "backstop-attempts";
/// The consumer that gave the message up.
pub const CONSUMER: &str = "backstop-consumer";
/// Time of the first failure, RFC 3339.
pub const FIRST_FAILED_AT: &str = "backstop-first-failed-at";
/// Time of quarantine, RFC 3339.
pub const DEAD_AT: &str = "backstop-dead-at";
/// Kafka origin: topic.
pub const ORIGINAL_TOPIC: &str = "backstop-original-topic";
/// Kafka origin: partition.
pub const ORIGINAL_PARTITION: &str = "backstop-original-partition";
/// Kafka origin: offset.
pub const ORIGINAL_OFFSET: &str = "backstop-original-offset";
/// Origin: broker timestamp, milliseconds since the epoch.
pub const ORIGINAL_TIMESTAMP: &str = "backstop-original-timestamp";
/// RabbitMQ origin: exchange.
pub const ORIGINAL_EXCHANGE: &str = "backstop-original-exchange";
/// RabbitMQ origin: routing key.
pub const ORIGINAL_ROUTING_KEY: &str = "backstop-original-routing-key";
/// RabbitMQ origin: queue.
pub const ORIGINAL_QUEUE: &str = "backstop-original-queue";
/// Host that gave the message up.
pub const HOST: &str = "backstop-host";
/// Backstop's version.
pub const VERSION: &str = "backstop-version";
/// The application's version.
pub const CONSUMER_VERSION: &str = "backstop-consumer-version";
/// Business conversation, inherited by what a handler enqueues.
pub const CORRELATION_ID: &str = "backstop-correlation-id";
/// The message that caused this one.
pub const CAUSATION_ID: &str = "backstop-causation-id";

/// KIP-1191 aliases, so that tools made for Kafka's own dead-letter queues read ours.
pub mod kip1191 {
    /// Original topic.
    pub const TOPIC: &str = "__dlq.errors.topic";
    /// Original partition.
    pub const PARTITION: &str = "__dlq.errors.partition";
    /// Original offset.
    pub const OFFSET: &str = "__dlq.errors.offset";
    /// Consumer group.
    pub const GROUP: &str = "__dlq.errors.group";
    /// Attempts.
    pub const DELIVERY_COUNT: &str = "__dlq.errors.delivery.count";
    /// Error text.
    pub const MESSAGE: &str = "__dlq.errors.message";
}

/// Which parts of a letter the ledger has redacted, such as `body`: it cannot be redriven.
pub const REDACTED: &str = "backstop-redacted";

/// On a letter with an edited body: the id of the letter in whose place it is.
pub const EDIT_OF: &str = "backstop-edit-of";

/// W3C trace context.
pub const TRACEPARENT: &str = "traceparent";
/// W3C trace context, vendor part.
pub const TRACESTATE: &str = "tracestate";
/// W3C baggage.
pub const BAGGAGE: &str = "baggage";
/// Content type; the same name on every broker.
pub const CONTENT_TYPE: &str = "content-type";
