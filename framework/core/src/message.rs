//! The message as an application sees it, and the envelope as a broker carries it.

use std::borrow::Cow;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use uuid::Uuid;

/// An ordered list of header names and values; duplicates are kept.
///
/// ```
/// use backstop_core::Headers;
///
/// let mut headers = Headers::default();
/// headers.append("tenant", "a");
/// headers.append("tenant", "b");
/// assert_eq!(headers.get_str("tenant"), Some("b"), "the last one wins");
/// headers.set("tenant", "c");
/// assert_eq!(headers.len(), 1);
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Headers(Vec<(Cow<'static, str>, Option<Bytes>)>);

impl Headers {
    /// Adds a header and keeps others of that name.
    pub fn append(&mut self, name: impl Into<String>, value: impl Into<Bytes>) {
        self.0.push((Cow::Owned(name.into()), Some(value.into())));
    }

    /// As [`append`](Headers::append), for names that are known beforehand and need no copy.
    pub fn append_static(&mut self, name: &'static str, value: impl Into<Bytes>) {
        self.0.push((Cow::Borrowed(name), Some(value.into())));
    }

    /// Adds a header without a value, as Kafka allows.
    pub fn append_null(&mut self, name: impl Into<String>) {
        self.0.push((Cow::Owned(name.into()), None));
    }

    /// Puts a header in place of all others of that name.
    pub fn set(&mut self, name: impl Into<String>, value: impl Into<Bytes>) {
        let name = name.into();
        self.0.retain(|(other, _)| *other != name);
        self.0.push((Cow::Owned(name), Some(value.into())));
    }

    /// Removes every header for which `drop` says so.
    pub fn remove_if(&mut self, mut drop: impl FnMut(&str) -> bool) {
        self.0.retain(|(name, _)| !drop(name));
    }

    /// The last value of that name; a header without a value counts as absent.
    pub fn get(&self, name: &str) -> Option<&Bytes> {
        self.0.iter().rev().find(|(other, _)| other == name).and_then(|(_, value)| value.as_ref())
    }

    /// The last value of that name, if it is UTF-8.
    pub fn get_str(&self, name: &str) -> Option<&str> {
        self.get(name).and_then(|value| std::str::from_utf8(value).ok())
    }

    /// All headers in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, Option<&Bytes>)> {
        self.0.iter().map(|(name, value)| (&**name, value.as_ref()))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Makes room for so many more.
    pub fn reserve(&mut self, additional: usize) {
        self.0.reserve(additional);
    }

    /// Bytes of all names and values together.
    pub fn size(&self) -> usize {
        self.0.iter().map(|(name, value)| name.len() + value.as_ref().map_or(0, Bytes::len)).sum()
    }
}

impl<N: Into<String>, V: Into<Bytes>> FromIterator<(N, Option<V>)> for Headers {
    fn from_iter<I: IntoIterator<Item = (N, Option<V>)>>(pairs: I) -> Self {
        Self(
            pairs.into_iter().map(|(name, value)| (Cow::Owned(name.into()), value.map(Into::into))).collect(),
        )
    }
}

/// What a broker carries: key, headers and body, to the letter.
///
/// Dead letters and held messages keep envelopes, so that nothing is lost between failure and redrive. On RabbitMQ
/// the basic properties travel as headers whose names begin with `amqp:`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Envelope {
    /// Ordering key; `None` where the producer gave none.
    pub key: Option<Bytes>,
    /// All headers.
    pub headers: Headers,
    /// Body; `None` is a Kafka tombstone and stays one.
    pub body: Option<Bytes>,
}

impl Envelope {
    /// Bytes of key, headers and body together.
    pub fn size(&self) -> usize {
        self.key.as_ref().map_or(0, Bytes::len)
            + self.headers.size()
            + self.body.as_ref().map_or(0, Bytes::len)
    }
}

/// An event.
///
/// Built by an application for its outbox, or by an adapter from what a broker delivered. A new message has a fresh
/// UUIDv7 as its id and the current time.
///
/// ```
/// use backstop_core::Message;
///
/// let message = Message::new("order.placed").source("/orders").key("order-7").json(&serde_json::json!({"sku": "tea"}))?;
/// assert_eq!(message.kind, "order.placed");
/// assert_eq!(message.content_type.as_deref(), Some("application/json"));
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Message {
    /// Opaque id, unique per source.
    pub id: String,
    /// Who made it: a CloudEvents source; empty where the producer named none.
    pub source: String,
    /// Event type, such as `order.placed`; empty where the producer named none.
    pub kind: String,
    /// CloudEvents subject.
    pub subject: Option<String>,
    /// Ordering key: messages of one key are handled one after another.
    pub key: Option<Bytes>,
    /// When the event happened.
    pub time: Option<DateTime<Utc>>,
    /// Media type of the body.
    pub content_type: Option<String>,
    /// Headers; on a received message all of the wire's, CloudEvents attributes included.
    pub headers: Headers,
    /// Body; `None` is a Kafka tombstone.
    pub body: Option<Bytes>,
}

impl Message {
    /// A message of that event type, with a fresh id and the current time, and no body yet.
    pub fn new(kind: impl Into<String>) -> Self {
        Self { time: Some(Utc::now()), ..Self::with_id(kind, Uuid::now_v7().to_string()) }
    }

    /// A message as it was stored: of that type and id, and without a time until one is set.
    pub fn with_id(kind: impl Into<String>, id: impl Into<String>) -> Self {
        Self {
            id: id.into(),
            source: String::new(),
            kind: kind.into(),
            subject: None,
            key: None,
            time: None,
            content_type: None,
            headers: Headers::default(),
            body: None,
        }
    }

    /// The envelope that a received message came in: its key, all of its headers, its body.
    pub fn envelope(&self) -> Envelope {
        Envelope { key: self.key.clone(), headers: self.headers.clone(), body: self.body.clone() }
    }

    /// Sets the id. Defaults to a fresh UUIDv7.
    #[must_use]
    pub fn id(mut self, id: impl Into<String>) -> Self {
        self.id = id.into();
        self
    }

    /// Sets the CloudEvents source. Defaults to none.
    #[must_use]
    pub fn source(mut self, source: impl Into<String>) -> Self {
        self.source = source.into();
        self
    }

    /// Sets the CloudEvents subject. Defaults to none.
    #[must_use]
    pub fn subject(mut self, subject: impl Into<String>) -> Self {
        self.subject = Some(subject.into());
        self
    }

    /// Sets the ordering key. Defaults to none.
    #[must_use]
    pub fn key(mut self, key: impl Into<Bytes>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// Adds a header and keeps others of that name.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<Bytes>) -> Self {
        self.headers.append(name, value);
        self
    }

    /// Sets the body as it is, with its media type.
    #[must_use]
    pub fn body(mut self, content_type: impl Into<String>, body: impl Into<Bytes>) -> Self {
        self.content_type = Some(content_type.into());
        self.body = Some(body.into());
        self
    }

    /// Sets the body to the JSON form of `value`.
    ///
    /// # Errors
    /// When `value` cannot be written as JSON, as serde_json defines it.
    pub fn json(self, value: &impl serde::Serialize) -> Result<Self, serde_json::Error> {
        let body = serde_json::to_vec(value)?;
        Ok(self.body("application/json", body))
    }
}

/// Where a message is published.
///
/// On Kafka the name is a topic and there is no routing key. On RabbitMQ a name with a routing key is an exchange; a
/// name without one is a queue, reached through the default exchange.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Destination {
    /// Topic, exchange or queue.
    pub name: String,
    /// Routing key: makes the name an exchange.
    pub routing_key: Option<String>,
}

impl Destination {
    /// A topic or a queue.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), routing_key: None }
    }

    /// An exchange with a routing key (which may be empty, as a fanout exchange wants it).
    pub fn exchange(name: impl Into<String>, routing_key: impl Into<String>) -> Self {
        Self { name: name.into(), routing_key: Some(routing_key.into()) }
    }
}

impl std::fmt::Display for Destination {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.routing_key {
            Some(key) => write!(f, "{}:{key}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

/// A message and where it is to go: what `enqueue` takes.
///
/// ```
/// use backstop_core::{Message, Outgoing};
///
/// let outgoing = Outgoing::to("orders", Message::new("order.placed").key("order-7"));
/// assert_eq!(outgoing.destination.name, "orders");
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outgoing {
    /// Where it goes.
    pub destination: Destination,
    /// What goes there.
    pub message: Message,
}

impl Outgoing {
    /// To a topic or a queue.
    pub fn to(destination: impl Into<String>, message: Message) -> Self {
        Self { destination: Destination::new(destination), message }
    }

    /// To an exchange with a routing key.
    pub fn to_exchange(
        exchange: impl Into<String>,
        routing_key: impl Into<String>,
        message: Message,
    ) -> Self {
        Self { destination: Destination::exchange(exchange, routing_key), message }
    }
}
