//! The broker: topics, partitions and what was published to them.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError};

use backstop_core::cloudevents::{Binding, encode};
use backstop_core::sink::{PublishError, Scope};
use backstop_core::{AdapterError, Envelope, FaultKind, Message};
use chrono::Utc;
use tokio::sync::watch;

use super::group::Group;
use super::sink::{MemoryDeadLetters, MemoryPublisher, MemorySink};
use super::source::MemorySource;

/// Partitions of a topic that was not created with another number.
pub const DEFAULT_PARTITIONS: u16 = 4;

/// Largest message in bytes (key, headers and body) that a broker takes unless told otherwise: 16 MiB.
pub const DEFAULT_MAX_BYTES: usize = 16 << 20;

/// A broker in memory. Cloning it gives another handle to the same broker.
///
/// ```
/// use backstop_core::Message;
/// use backstop_testkit::memory::Broker;
///
/// let broker = Broker::new();
/// broker.publish("orders", Message::new("order.placed").key("order-7"));
/// assert_eq!(broker.published("orders").len(), 1);
/// ```
#[derive(Debug, Clone)]
pub struct Broker {
    shared: Arc<Shared>,
}

impl Default for Broker {
    fn default() -> Self {
        Self::new()
    }
}

impl Broker {
    /// An empty broker. Defaults: [`DEFAULT_MAX_BYTES`] a message.
    pub fn new() -> Self {
        let state = State {
            topics: BTreeMap::new(),
            groups: BTreeMap::new(),
            faults: Vec::new(),
            max_bytes: DEFAULT_MAX_BYTES,
            members: 0,
        };
        Self { shared: Arc::new(Shared { state: Mutex::new(state), changed: watch::Sender::new(()) }) }
    }

    /// Sets the largest message in bytes; larger ones are refused with [`Scope::Message`].
    pub fn set_max_bytes(&self, bytes: usize) {
        self.shared.change(|state| state.max_bytes = bytes);
    }

    /// Creates a topic with `partitions` (at least one), unless it is there already.
    pub fn create(&self, topic: &str, partitions: u16) {
        self.shared.change(|state| state.create(topic, partitions));
    }

    /// Publishes a message, as CloudEvents on Kafka, to a topic that is created where it is missing.
    ///
    /// Faults set by [`fail_publishes`](Broker::fail_publishes) and the size limit do not apply: they are for the code
    /// under test.
    pub fn publish(&self, topic: &str, message: Message) {
        self.publish_envelope(topic, encode(message, Binding::Kafka));
    }

    /// Publishes an envelope as it is; otherwise as [`publish`](Broker::publish).
    pub fn publish_envelope(&self, topic: &str, envelope: Envelope) {
        self.shared.change(|state| {
            state.create(topic, DEFAULT_PARTITIONS);
            if let Some(topic) = state.topics.get_mut(topic) {
                topic.append(envelope);
            }
        });
    }

    /// Everything that was ever published to a topic, in order of publication; empty where there is no such topic.
    pub fn published(&self, topic: &str) -> Vec<Envelope> {
        self.shared.look(|state| state.topics.get(topic).map(Topic::in_order).unwrap_or_default())
    }

    /// Lets the next `times` publishes to `topic` by a sink, publisher or dead-letter writer fail with `scope`.
    pub fn fail_publishes(&self, topic: &str, scope: Scope, times: u32) {
        self.shared
            .change(|state| state.faults.push(PublishFault { topic: topic.to_owned(), scope, left: times }));
    }

    /// Messages of the group's topics and doors that are not settled yet.
    pub fn unsettled(&self, group: &str) -> u64 {
        self.shared.look(|state| state.groups.get(group).map_or(0, |group| group.unsettled(&state.topics)))
    }

    /// A new member of the consumer group, reading these topics and their doors. Creates the ones that are missing,
    /// with [`DEFAULT_PARTITIONS`].
    pub fn source<'a>(&self, group: &str, topics: impl IntoIterator<Item = &'a str>) -> MemorySource {
        MemorySource::join(self.shared.clone(), group, topics.into_iter().map(str::to_owned).collect())
    }

    /// Publishes one message at a time. Unlike [`publish`](Broker::publish), to topics that exist only.
    pub fn sink(&self) -> MemorySink {
        MemorySink::new(self.shared.clone())
    }

    /// The relay's pipeline.
    pub fn publisher(&self) -> MemoryPublisher {
        MemoryPublisher::new(self.shared.clone())
    }

    /// Publishes dead letters to `<topic>.<group>.dlq`, which it creates.
    pub fn dead_letters(&self) -> MemoryDeadLetters {
        MemoryDeadLetters::new(self.shared.clone())
    }
}

/// The broker's state and the bell that rings when it changes.
#[derive(Debug)]
pub(super) struct Shared {
    state: Mutex<State>,
    changed: watch::Sender<()>,
}

impl Shared {
    /// Looks at or takes from the state without ringing.
    pub(super) fn look<R>(&self, work: impl FnOnce(&mut State) -> R) -> R {
        work(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Changes the state and wakes every source.
    pub(super) fn change<R>(&self, work: impl FnOnce(&mut State) -> R) -> R {
        let result = self.look(work);
        self.changed.send_replace(());
        result
    }

    pub(super) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) topics: BTreeMap<String, Topic>,
    pub(super) groups: BTreeMap<String, Group>,
    faults: Vec<PublishFault>,
    max_bytes: usize,
    members: u64,
}

impl State {
    pub(super) fn next_member(&mut self) -> u64 {
        self.members += 1;
        self.members
    }

    pub(super) fn create(&mut self, topic: &str, partitions: u16) {
        self.topics.entry(topic.to_owned()).or_insert_with(|| Topic::new(partitions));
    }

    /// Publishes as a client does: with faults, the size limit and the need for the topic to exist.
    pub(super) fn publish(&mut self, topic: &str, envelope: Envelope) -> Result<(), PublishError> {
        if let Some(scope) = self.next_fault(topic) {
            let what = format!("publish to {topic} failed because the test wants it to");
            return Err(PublishError::new(scope, AdapterError::new(kind_of(scope), what)));
        }
        let found = self.topics.get_mut(topic).ok_or_else(|| missing(topic))?;
        let size = envelope.size();
        if size > self.max_bytes {
            let what = format!("message of {size} bytes is larger than the limit of {}", self.max_bytes);
            let error = AdapterError::new(FaultKind::Invalid, what)
                .with_hint("publish a smaller message or raise the limit with set_max_bytes");
            return Err(PublishError::new(Scope::Message, error));
        }
        found.append(envelope);
        Ok(())
    }

    fn next_fault(&mut self, topic: &str) -> Option<Scope> {
        let fault = self.faults.iter_mut().find(|fault| fault.topic == topic && fault.left > 0)?;
        fault.left -= 1;
        Some(fault.scope)
    }
}

pub(super) fn missing(topic: &str) -> PublishError {
    let error = AdapterError::new(FaultKind::Missing, format!("topic {topic} does not exist"))
        .with_hint("create it with Broker::create");
    PublishError::new(Scope::Destination, error)
}

fn kind_of(scope: Scope) -> FaultKind {
    match scope {
        Scope::Broker => FaultKind::Unreachable,
        Scope::Destination => FaultKind::Denied,
        Scope::Message => FaultKind::Invalid,
    }
}

#[derive(Debug)]
struct PublishFault {
    topic: String,
    scope: Scope,
    left: u32,
}

#[derive(Debug)]
pub(super) struct Topic {
    pub(super) partitions: Vec<Vec<Record>>,
    published: u64,
}

#[derive(Debug)]
pub(super) struct Record {
    pub(super) envelope: Envelope,
    /// Milliseconds since the epoch.
    pub(super) timestamp: i64,
    nth: u64,
}

impl Topic {
    fn new(partitions: u16) -> Self {
        Self { partitions: (0..partitions.max(1)).map(|_| Vec::new()).collect(), published: 0 }
    }

    fn append(&mut self, envelope: Envelope) {
        let slot = match &envelope.key {
            Some(key) => {
                let mut hasher = DefaultHasher::new();
                key.hash(&mut hasher);
                hasher.finish()
            }
            None => self.published,
        };
        let count = self.partitions.len() as u64;
        let record = Record { envelope, timestamp: Utc::now().timestamp_millis(), nth: self.published };
        self.published += 1;
        self.partitions[(slot % count) as usize].push(record);
    }

    fn in_order(&self) -> Vec<Envelope> {
        let mut records: Vec<&Record> = self.partitions.iter().flatten().collect();
        records.sort_by_key(|record| record.nth);
        records.into_iter().map(|record| record.envelope.clone()).collect()
    }
}
