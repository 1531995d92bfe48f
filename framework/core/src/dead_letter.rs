//! Dead letters: what a message carries when it is given up, and where it goes.

use std::fmt;
use std::future::Future;

use chrono::{DateTime, SecondsFormat, Utc};
use uuid::Uuid;

use crate::adapter_error::AdapterError;
use crate::error::ErrorClass;
use crate::identity::MessageKey;
use crate::message::{Envelope, Headers};
use crate::names::{self, kip1191};
use crate::origin::Origin;
use crate::report::{ErrorReport, cut};
use crate::sink::PublishError;
use crate::source::SourceInfo;

/// Longest value of a header that names a place, host or version.
const MAX_NAME: usize = 512;

/// Namespace of dead-letter ids; a constant of Backstop's own.
const NAMESPACE: Uuid = Uuid::from_u128(0x6d1b_25c8_52f1_4f0e_9c4b_7f6a_3f0c_8b11);

/// Why a message was given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DeadReason {
    /// Its attempts are used up.
    Exhausted,
    /// The error will never pass.
    Permanent,
    /// The body cannot be read.
    Undecodable,
    /// It has no id, and the consumer was told to dead-letter such messages.
    MissingId,
    /// It killed the process too often.
    CrashedProcess,
    /// It has been waiting for longer than the consumer allows.
    Expired,
    /// Refused before the handler saw it, such as a message over the size limit.
    Refused,
}

impl DeadReason {
    /// The reason as the header spells it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Exhausted => "exhausted",
            Self::Permanent => "permanent",
            Self::Undecodable => "undecodable",
            Self::MissingId => "missing-id",
            Self::CrashedProcess => "crashed-process",
            Self::Expired => "expired",
            Self::Refused => "refused",
        }
    }

    /// The reason that the header spells so.
    pub fn parse(text: &str) -> Option<Self> {
        const ALL: [DeadReason; 7] = [
            DeadReason::Exhausted,
            DeadReason::Permanent,
            DeadReason::Undecodable,
            DeadReason::MissingId,
            DeadReason::CrashedProcess,
            DeadReason::Expired,
            DeadReason::Refused,
        ];
        ALL.into_iter().find(|reason| reason.as_str() == text)
    }
}

impl fmt::Display for DeadReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A message that is given up, with everything there is to say about it.
#[derive(Debug, Clone)]
pub struct DeadLetter {
    /// Key, headers and body as received.
    pub envelope: Envelope,
    /// Where the broker had it.
    pub origin: Origin,
    /// Its identity; `None` if it has none.
    pub message_key: Option<MessageKey>,
    /// How often it had been redriven when it failed: 0 for a live message, whatever its headers say.
    pub generation: u32,
    /// The consumer that gives it up.
    pub consumer: String,
    /// The Kafka group or RabbitMQ queue.
    pub group: String,
    /// Why.
    pub reason: DeadReason,
    /// Class of the last error.
    pub class: ErrorClass,
    /// The last error.
    pub report: ErrorReport,
    /// Charged attempts.
    pub attempts: u32,
    /// First failure.
    pub first_failed_at: DateTime<Utc>,
    /// Now.
    pub dead_at: DateTime<Utc>,
    /// Host name.
    pub host: String,
    /// The application's version; empty where it named none.
    pub consumer_version: String,
}

impl DeadLetter {
    /// The letter's identity: the same for the same consumer, message and generation, so that a quarantine that is
    /// repeated after a crash is the same letter. A message without identity gets a fresh one each time; its letter
    /// may appear twice, and is never lost.
    pub fn id(&self) -> Uuid {
        match &self.message_key {
            Some(key) => {
                let name = format!("{}\0{key}\0{}", self.consumer, self.generation);
                Uuid::new_v5(&NAMESPACE, name.as_bytes())
            }
            None => Uuid::now_v7(),
        }
    }

    /// The envelope to publish: the original bytes and headers, and ours beside them.
    ///
    /// Headers of ours that are there already, from an earlier quarantine or a stranger, are replaced. Together they
    /// stay below 16 KiB.
    pub fn to_envelope(&self) -> Envelope {
        let mut envelope = self.envelope.clone();
        let headers = &mut envelope.headers;
        headers.remove_if(is_letter_header);
        self.identify(headers);
        self.explain(headers);
        self.locate(headers);
        envelope
    }

    /// The smallest envelope that still tells which message it was: for a letter that is too large for its
    /// destination with everything on it.
    pub fn to_minimal_envelope(&self) -> Envelope {
        let mut envelope = self.envelope.clone();
        envelope.headers.remove_if(is_letter_header);
        self.identify(&mut envelope.headers);
        self.locate(&mut envelope.headers);
        envelope
    }

    fn identify(&self, headers: &mut Headers) {
        headers.set(names::DEAD_LETTER_ID, self.id().to_string());
        if let Some(key) = &self.message_key {
            headers.set(names::MESSAGE_KEY, key.to_string());
        }
        headers.set(names::REDRIVE_GENERATION, self.generation.to_string());
        headers.set(names::CONSUMER, cut(&self.consumer, MAX_NAME));
        headers.set(names::REASON, self.reason.as_str());
        headers.set(names::ERROR_CLASS, self.class.as_str());
        headers.set(names::FINGERPRINT, self.report.fingerprint.clone());
        headers.set(names::ATTEMPTS, self.attempts.to_string());
        headers.set(kip1191::GROUP, cut(&self.group, MAX_NAME));
    }

    fn explain(&self, headers: &mut Headers) {
        headers.set(names::ERROR_TYPE, self.report.type_name.clone());
        headers.set(names::ERROR_MESSAGE, self.report.message.clone());
        headers.set(names::ERROR_CHAIN, self.report.chain.clone());
        headers.set(names::HOST, cut(&self.host, MAX_NAME));
        headers.set(names::VERSION, env!("CARGO_PKG_VERSION"));
        headers.set(names::CONSUMER_VERSION, cut(&self.consumer_version, MAX_NAME));
        headers.set(kip1191::DELIVERY_COUNT, self.attempts.to_string());
        headers.set(kip1191::MESSAGE, cut(&self.report.message, MAX_NAME));
    }

    fn locate(&self, headers: &mut Headers) {
        let time = |at: DateTime<Utc>| at.to_rfc3339_opts(SecondsFormat::Millis, true);
        headers.set(names::FIRST_FAILED_AT, time(self.first_failed_at));
        headers.set(names::DEAD_AT, time(self.dead_at));
        match &self.origin {
            Origin::Kafka { topic, partition, offset, timestamp } => {
                headers.set(names::ORIGINAL_TOPIC, topic.clone());
                headers.set(names::ORIGINAL_PARTITION, partition.to_string());
                headers.set(names::ORIGINAL_OFFSET, offset.to_string());
                if let Some(timestamp) = timestamp {
                    headers.set(names::ORIGINAL_TIMESTAMP, timestamp.to_string());
                }
                headers.set(kip1191::TOPIC, topic.clone());
                headers.set(kip1191::PARTITION, partition.to_string());
                headers.set(kip1191::OFFSET, offset.to_string());
            }
            Origin::RabbitMq { exchange, routing_key, queue, .. } => {
                headers.set(names::ORIGINAL_EXCHANGE, exchange.clone());
                headers.set(names::ORIGINAL_ROUTING_KEY, routing_key.clone());
                headers.set(names::ORIGINAL_QUEUE, queue.clone());
            }
        }
    }
}

/// Where a message was before it became a letter, as the letter's headers say; `None` where they do not.
pub fn original_origin(headers: &Headers) -> Option<Origin> {
    if let Some(topic) = headers.get_str(names::ORIGINAL_TOPIC) {
        return Some(Origin::Kafka {
            topic: topic.to_owned(),
            partition: headers.get_str(names::ORIGINAL_PARTITION)?.parse().ok()?,
            offset: headers.get_str(names::ORIGINAL_OFFSET)?.parse().ok()?,
            timestamp: headers.get_str(names::ORIGINAL_TIMESTAMP).and_then(|text| text.parse().ok()),
        });
    }
    Some(Origin::RabbitMq {
        queue: headers.get_str(names::ORIGINAL_QUEUE)?.to_owned(),
        exchange: headers.get_str(names::ORIGINAL_EXCHANGE).unwrap_or_default().to_owned(),
        routing_key: headers.get_str(names::ORIGINAL_ROUTING_KEY).unwrap_or_default().to_owned(),
        redelivered: false,
    })
}

/// Where a message that came through the door of `place` was before, as its headers say. They are believed only where
/// they name that very place, because whoever may write to a door writes what they like: a name that no broker gave
/// might be one that no database stores, and work would wait under a name that nothing else has.
pub fn origin_at_door(headers: &Headers, place: &str) -> Option<Origin> {
    original_origin(headers).filter(|origin| origin.place() == place)
}

/// How often a message has been redriven; 0 where the header is absent or nonsense, at most 1,000,000.
pub fn generation(headers: &Headers) -> u32 {
    let text = headers.get_str(names::REDRIVE_GENERATION);
    text.and_then(|text| text.parse::<u32>().ok()).unwrap_or(0).min(1_000_000)
}

/// The envelope that is sent through the door: the original message, its identity, where it was, and one generation
/// more. What was said about its failure stays in the ledger.
pub fn redrive_envelope(letter: &Envelope) -> Envelope {
    let mut envelope = letter.clone();
    let generation = generation(&letter.headers).saturating_add(1);
    let kept = |name: &str| {
        matches!(name, names::MESSAGE_KEY | names::DEAD_LETTER_ID) || name.starts_with("backstop-original-")
    };
    envelope.headers.remove_if(|name| is_letter_header(name) && !kept(name));
    envelope.headers.set(names::REDRIVE_GENERATION, generation.to_string());
    envelope
}

/// Whether Backstop writes this header onto a dead letter.
pub fn is_letter_header(name: &str) -> bool {
    let ours = name.strip_prefix(names::PREFIX);
    let lasting = matches!(name, names::CORRELATION_ID | names::CAUSATION_ID);
    (ours.is_some() && !lasting) || name.starts_with("__dlq.errors.")
}

/// Names of the destinations that belong to one consumer.
///
/// ```
/// use backstop_core::dead_letter::{door_of_letters, kafka_door, kafka_letters};
///
/// assert_eq!(kafka_letters("orders", "stock"), "orders.stock.dlq");
/// assert_eq!(kafka_door("orders", "stock"), "orders.stock.redrive");
/// assert_eq!(door_of_letters("orders.stock.dlq").as_deref(), Some("orders.stock.redrive"));
/// ```
pub fn kafka_letters(topic: &str, group: &str) -> String {
    format!("{topic}.{group}.dlq")
}

/// The topic of letters for a message that was at `place`: a topic that the group reads, or, for a message that was
/// first seen there, the door of one.
///
/// ```
/// use backstop_core::dead_letter::kafka_letters_of;
///
/// assert_eq!(kafka_letters_of("orders", "stock"), "orders.stock.dlq");
/// assert_eq!(kafka_letters_of("orders.stock.redrive", "stock"), "orders.stock.dlq");
/// ```
pub fn kafka_letters_of(place: &str, group: &str) -> String {
    let topic = place.strip_suffix(".redrive").and_then(|stem| stem.strip_suffix(group)?.strip_suffix('.'));
    kafka_letters(topic.unwrap_or(place), group)
}

/// The topic through which redriven messages reach one group; see [`kafka_letters`].
pub fn kafka_door(topic: &str, group: &str) -> String {
    format!("{topic}.{group}.redrive")
}

/// The exchange that quarantined messages of a queue are published to.
pub fn rabbitmq_letter_exchange(queue: &str) -> String {
    format!("{queue}.dlx")
}

/// The queue that quarantined messages of a queue end in.
pub fn rabbitmq_letters(queue: &str) -> String {
    format!("{queue}.dlq")
}

/// The queue through which redriven messages reach the consumer of a queue.
pub fn rabbitmq_door(queue: &str) -> String {
    format!("{queue}.redrive")
}

/// The door that belongs to a dead-letter topic or queue of Backstop's naming; `None` for other names.
pub fn door_of_letters(letters: &str) -> Option<String> {
    letters.strip_suffix(".dlq").map(|stem| format!("{stem}.redrive"))
}

/// Publishes dead letters to the destination that belongs to a consumer.
#[diagnostic::on_unimplemented(
    message = "this consumer has no destination for its dead letters",
    note = "call `.dead_letter(KafkaDeadLetters::new(…))` or `.dead_letter(RabbitDeadLetters::new(…))`; \
            `.dead_letter(StopPartition)` keeps what it gives up waiting instead"
)]
pub trait DeadLetters: Send + Sync + 'static {
    /// Declares or checks the destinations of a source at start-up: that they exist, may be written to, and take
    /// messages as large as the source's.
    ///
    /// # Errors
    /// Names the destination and how to mend it; the consumer does not start then.
    fn prepare(&self, source: &SourceInfo) -> impl Future<Output = Result<(), AdapterError>> + Send;

    /// Publishes the letter and waits until the broker has confirmed it.
    ///
    /// # Errors
    /// The message must stay unsettled or held then, and is tried again.
    fn quarantine(&self, letter: &DeadLetter) -> impl Future<Output = Result<(), PublishError>> + Send;

    /// Whether there is no destination at all, so that what would be given up is kept and tried again. Defaults to
    /// false.
    fn keeps(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn letter(envelope: Envelope) -> DeadLetter {
        DeadLetter {
            generation: generation(&envelope.headers),
            envelope,
            origin: Origin::Kafka { topic: "orders".into(), partition: 3, offset: 17, timestamp: Some(99) },
            message_key: Some(MessageKey::new("/orders", b"7")),
            consumer: "stock".into(),
            group: "stock".into(),
            reason: DeadReason::Exhausted,
            class: ErrorClass::Transient,
            report: ErrorReport::new(
                "stock",
                "E",
                &std::io::Error::other("x".repeat(100_000)),
                None,
                str::to_owned,
            ),
            attempts: 6,
            first_failed_at: Utc::now(),
            dead_at: Utc::now(),
            host: "h".repeat(10_000),
            consumer_version: String::new(),
        }
    }

    #[test]
    fn original_bytes_and_headers_stay_and_ours_are_bounded() {
        let original = Envelope {
            key: Some("k".into()),
            headers: [
                ("ce_id", Some("7")),
                ("x", None),
                ("x", Some("2")),
                (names::CORRELATION_ID, Some("c")),
            ]
            .into_iter()
            .collect(),
            body: Some(Bytes::from_static(&[0, 159, 146, 150])),
        };
        let envelope = letter(original.clone()).to_envelope();
        assert_eq!((&envelope.key, &envelope.body), (&original.key, &original.body));
        let kept: Vec<_> = envelope.headers.iter().take(original.headers.len()).collect();
        assert_eq!(kept, original.headers.iter().collect::<Vec<_>>());
        assert!(envelope.headers.size() - original.headers.size() < 16 * 1024);
        assert_eq!(original_origin(&envelope.headers), Some(letter(original).origin));
    }

    #[test]
    fn a_repeated_quarantine_is_the_same_letter_and_a_redriven_one_is_another() {
        let first = letter(Envelope::default());
        let envelope = first.to_envelope();
        assert_eq!(first.id(), letter(Envelope::default()).id());
        let redriven = letter(redrive_envelope(&envelope));
        assert_eq!(redriven.generation, 1);
        assert_ne!(redriven.id(), first.id());
        assert_eq!(redriven.envelope.headers.get_str(names::REASON), None);
        assert_eq!(redriven.envelope.headers.get_str(names::MESSAGE_KEY), Some("/orders|7"));
    }

    #[test]
    fn a_door_believes_only_its_own_place() {
        let envelope = redrive_envelope(&letter(Envelope::default()).to_envelope());
        assert_eq!(origin_at_door(&envelope.headers, "orders"), Some(letter(Envelope::default()).origin));
        assert_eq!(origin_at_door(&envelope.headers, "payments"), None);
        let mut forged = envelope.headers;
        forged.set(names::ORIGINAL_TOPIC, "orders\0");
        assert_eq!(origin_at_door(&forged, "orders"), None);
    }

    #[test]
    fn a_tombstone_stays_one() {
        let envelope = letter(Envelope::default()).to_envelope();
        assert_eq!(envelope.body, None);
        assert_eq!(redrive_envelope(&envelope).body, None);
    }
}
