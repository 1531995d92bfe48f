//! CloudEvents 1.0, binary mode, on Kafka and AMQP: how a [`Message`] becomes an [`Envelope`] and back.
//!
//! On Kafka attributes are headers `ce_*`; on AMQP they are headers `cloudEvents:*`, and the basic properties, which
//! the RabbitMQ adapter presents as headers `amqp:*`, count where an attribute is absent.

use bytes::Bytes;
use chrono::{DateTime, SecondsFormat, Utc};

use crate::identity::{Identity, MessageKey, storable};
use crate::message::{Envelope, Headers, Message};
use crate::names;
use crate::origin::{Origin, Via};

/// Which protocol's header names are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Binding {
    /// `ce_id`, `ce_source`, …
    Kafka,
    /// `cloudEvents:id`, `cloudEvents:source`, …, and `amqp:*` for the basic properties.
    Amqp,
}

/// The pseudo headers that stand for AMQP's basic properties inside an [`Envelope`].
pub mod amqp {
    /// Prefix of all of them.
    pub const PREFIX: &str = "amqp:";
    /// `message_id`
    pub const MESSAGE_ID: &str = "amqp:message-id";
    /// `type`
    pub const TYPE: &str = "amqp:type";
    /// `timestamp`, seconds since the epoch
    pub const TIMESTAMP: &str = "amqp:timestamp";
    /// `content_type`
    pub const CONTENT_TYPE: &str = "amqp:content-type";
}

impl Binding {
    const fn attributes(self) -> &'static Attributes {
        match self {
            Self::Kafka => &KAFKA,
            Self::Amqp => &AMQP,
        }
    }

    /// The content type's header.
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Kafka => names::CONTENT_TYPE,
            Self::Amqp => amqp::CONTENT_TYPE,
        }
    }

    fn is_attribute(self, name: &str) -> bool {
        let reserved = match self {
            Self::Kafka => name.eq_ignore_ascii_case(names::CONTENT_TYPE),
            Self::Amqp => name.starts_with(amqp::PREFIX),
        };
        reserved || self.attributes().all().contains(&name)
    }
}

/// The names of the attributes' headers. Spelled out, so that no message pays for putting them together.
struct Attributes {
    specversion: &'static str,
    id: &'static str,
    source: &'static str,
    kind: &'static str,
    subject: &'static str,
    time: &'static str,
    partition_key: &'static str,
}

const KAFKA: Attributes = Attributes {
    specversion: "ce_specversion",
    id: "ce_id",
    source: "ce_source",
    kind: "ce_type",
    subject: "ce_subject",
    time: "ce_time",
    partition_key: "ce_partitionkey",
};

const AMQP: Attributes = Attributes {
    specversion: "cloudEvents:specversion",
    id: "cloudEvents:id",
    source: "cloudEvents:source",
    kind: "cloudEvents:type",
    subject: "cloudEvents:subject",
    time: "cloudEvents:time",
    partition_key: "cloudEvents:partitionkey",
};

impl Attributes {
    const fn all(&self) -> [&'static str; 7] {
        [self.specversion, self.id, self.source, self.kind, self.subject, self.time, self.partition_key]
    }
}

/// Headers that an envelope has beside the message's own, at most.
const MOST_ATTRIBUTES: usize = 11;

/// The envelope that carries `message`.
///
/// The message's fields win over headers of its own that name the same attribute. AMQP has no key of its own, so the
/// key travels as CloudEvents' `partitionkey`.
pub fn encode(message: Message, binding: Binding) -> Envelope {
    let name = binding.attributes();
    let mut headers = Headers::default();
    headers.reserve(MOST_ATTRIBUTES + message.headers.len());
    headers.append_static(name.specversion, Bytes::from_static(b"1.0"));
    headers.append_static(name.id, message.id.clone());
    if !message.source.is_empty() {
        headers.append_static(name.source, message.source);
    }
    if !message.kind.is_empty() {
        headers.append_static(name.kind, message.kind.clone());
    }
    if let Some(subject) = message.subject {
        headers.append_static(name.subject, subject);
    }
    if let Some(time) = message.time {
        headers.append_static(name.time, time.to_rfc3339_opts(SecondsFormat::AutoSi, true));
    }
    if binding == Binding::Amqp {
        if let Some(key) = &message.key {
            headers.append_static(name.partition_key, key.clone());
        }
        headers.append_static(amqp::MESSAGE_ID, message.id);
        if !message.kind.is_empty() {
            headers.append_static(amqp::TYPE, message.kind);
        }
        if let Some(time) = message.time {
            headers.append_static(amqp::TIMESTAMP, time.timestamp().to_string());
        }
    }
    if let Some(content_type) = message.content_type {
        headers.append_static(binding.content_type(), content_type);
    }
    for (name, value) in message.headers.iter().filter(|(name, _)| !binding.is_attribute(name)) {
        match value {
            Some(value) => headers.append(name, value.clone()),
            None => headers.append_null(name),
        }
    }
    Envelope { key: message.key, headers, body: message.body }
}

/// What a received envelope says: the message and how its identity was found.
///
/// Identity is taken from the first that is there: `backstop-message-key` (only through the door, where it is ours),
/// the CloudEvents id, AMQP's `message_id`, Debezium's `id` header, the header named by `id_header`, and on Kafka the
/// record's coordinates.
pub fn decode(envelope: Envelope, origin: &Origin, via: Via, id_header: Option<&str>) -> (Message, Identity) {
    let binding = match origin {
        Origin::Kafka { .. } => Binding::Kafka,
        Origin::RabbitMq { .. } => Binding::Amqp,
    };
    let headers = &envelope.headers;
    let name = binding.attributes();
    let text = |value: Option<&Bytes>| value.map(|value| String::from_utf8_lossy(value).into_owned());
    let amqp_only = |name: &str| (binding == Binding::Amqp).then(|| headers.get(name)).flatten();

    let source = headers.get(name.source).map(|source| storable(source).into_owned()).unwrap_or_default();
    let declared = headers
        .get(name.id)
        .or_else(|| amqp_only(amqp::MESSAGE_ID))
        .or_else(|| headers.get("id"))
        .or_else(|| id_header.and_then(|name| headers.get(name)))
        .filter(|id| !id.is_empty());
    let identity = identify(headers, origin, via, &source, declared);
    let id = match (declared, origin) {
        (Some(id), _) => storable(id).into_owned(),
        (None, Origin::Kafka { .. }) => coordinates(origin),
        (None, _) => String::new(),
    };
    let key = envelope.key.clone().or_else(|| amqp_only(name.partition_key).cloned());
    let message = Message {
        id,
        source,
        kind: text(headers.get(name.kind).or_else(|| amqp_only(amqp::TYPE))).unwrap_or_default(),
        subject: text(headers.get(name.subject)),
        key,
        time: headers.get(name.time).and_then(|time| parse_time(time)),
        content_type: text(headers.get(binding.content_type())),
        headers: envelope.headers,
        body: envelope.body,
    };
    (message, identity)
}

fn identify(
    headers: &Headers,
    origin: &Origin,
    via: Via,
    source: &str,
    declared: Option<&Bytes>,
) -> Identity {
    if via == Via::Door
        && let Some(key) = headers.get_str(names::MESSAGE_KEY).and_then(MessageKey::parse)
    {
        return Identity::Declared(key);
    }
    match (declared, origin) {
        (Some(id), _) => Identity::Declared(MessageKey::new(source, id)),
        (None, Origin::Kafka { .. }) => {
            Identity::Coordinates(MessageKey::new("kafka", coordinates(origin).as_bytes()))
        }
        (None, Origin::RabbitMq { .. }) => Identity::Missing,
    }
}

fn coordinates(origin: &Origin) -> String {
    match origin {
        Origin::Kafka { topic, partition, offset, timestamp } => {
            format!("{topic}/{partition}/{offset}/{}", timestamp.unwrap_or(-1))
        }
        Origin::RabbitMq { .. } => String::new(),
    }
}

fn parse_time(text: &[u8]) -> Option<DateTime<Utc>> {
    let text = std::str::from_utf8(text).ok()?;
    DateTime::parse_from_rfc3339(text).ok().map(|time| time.with_timezone(&Utc))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kafka() -> Origin {
        Origin::Kafka { topic: "orders".into(), partition: 3, offset: 17, timestamp: Some(99) }
    }

    fn rabbit() -> Origin {
        Origin::RabbitMq {
            exchange: String::new(),
            routing_key: "orders".into(),
            queue: "orders".into(),
            redelivered: false,
        }
    }

    fn message() -> Message {
        Message::new("order.placed")
            .source("/orders")
            .subject("7")
            .key("order-7")
            .body("text/plain", "hi")
            .header("tenant", "a")
    }

    #[test]
    fn a_message_survives_both_bindings() {
        for (binding, origin) in [(Binding::Kafka, kafka()), (Binding::Amqp, rabbit())] {
            let sent = message();
            let mut envelope = encode(sent.clone(), binding);
            if binding == Binding::Amqp {
                envelope.key = None;
            }
            let (received, identity) = decode(envelope, &origin, Via::Live, None);
            assert_eq!(identity, Identity::Declared(MessageKey::new("/orders", sent.id.as_bytes())));
            assert_eq!((received.id, received.source, received.kind), (sent.id, sent.source, sent.kind));
            assert_eq!((received.subject, received.key, received.body), (sent.subject, sent.key, sent.body));
            assert_eq!(received.content_type, sent.content_type);
            assert_eq!(received.headers.get_str("tenant"), Some("a"));
        }
    }

    #[test]
    fn a_strangers_message_key_counts_only_through_the_door() {
        let forged = Envelope {
            headers: [("ce_id", Some("1")), (names::MESSAGE_KEY, Some("/victim|2"))].into_iter().collect(),
            ..Envelope::default()
        };
        let (_, live) = decode(forged.clone(), &kafka(), Via::Live, None);
        let (_, door) = decode(forged, &kafka(), Via::Door, None);
        assert_eq!(live, Identity::Declared(MessageKey::new("", b"1")));
        assert_eq!(door.key().map(MessageKey::as_str), Some("/victim|2"));
    }

    #[test]
    fn without_an_id_kafka_has_coordinates_and_rabbitmq_nothing() {
        let (message, identity) = decode(Envelope::default(), &kafka(), Via::Live, None);
        assert_eq!(identity, Identity::Coordinates(MessageKey::new("kafka", b"orders/3/17/99")));
        assert_eq!(message.id, "orders/3/17/99");
        assert_eq!(decode(Envelope::default(), &rabbit(), Via::Live, None).1, Identity::Missing);
    }

    #[test]
    fn ids_are_found_in_order_and_empty_ones_are_absent() {
        let envelope = |pairs: &[(&str, &str)]| Envelope {
            headers: pairs.iter().map(|(name, value)| (*name, Some(value.to_string()))).collect(),
            ..Envelope::default()
        };
        let id = |pairs: &[(&str, &str)]| decode(envelope(pairs), &rabbit(), Via::Live, Some("x-id")).0.id;
        assert_eq!(id(&[("x-id", "4"), ("id", "3"), ("amqp:message-id", "2"), ("cloudEvents:id", "1")]), "1");
        assert_eq!(id(&[("x-id", "4"), ("id", "3"), ("amqp:message-id", "2")]), "2");
        assert_eq!(id(&[("x-id", "4"), ("id", "3")]), "3");
        assert_eq!(id(&[("x-id", "4")]), "4");
        assert_eq!(id(&[("id", "")]), "");
    }
}
