//! The relay's pipeline.

use std::sync::Mutex;
use std::time::Duration;

use backstop_core::AdapterError;
use backstop_core::cloudevents::Binding;
use backstop_core::message::{Destination, Envelope};
use backstop_core::schema::Finding;
use backstop_core::sink::{Confirmation, PublishError, Publisher, Refused, Scope, Traffic};
use futures_core::future::BoxFuture;
use rdkafka::types::RDKafkaErrorCode as Code;
use tokio::sync::Notify;

use crate::context::lock;
use crate::fault::coded;
use crate::inspection::inspect;
use crate::line::{Line, LineOptions, Outbox, Unsent};
use crate::settings::KafkaSettings;
use crate::topics::{Presence, Steward, check_name};

/// How long a probe waits for the brokers' answer.
const PROBE: Duration = Duration::from_secs(5);

/// Publishes many messages at once, each confirmed by its ticket.
///
/// Idempotent, confirmed by all in-sync replicas, compressed, partitioned by key as the Java clients do; messages of
/// one partition are stored in the order of submission. Nothing times out in the queue: while brokers are down, or too
/// few replicas are in sync, messages stay unconfirmed until that is over or they are
/// [given up](Publisher::abandon). A topic that was never there is told within seconds, with [`Scope::Destination`];
/// one that is deleted while messages are sent to it looks like a broker that is down, unless the brokers make topics
/// by themselves: then it is made anew, with their defaults. After a fatal error everything under way fails with
/// [`Scope::Broker`], and a new producer takes over.
///
/// What was queued behind a message that the brokers refuse cannot be held back: it may be stored before that
/// message is submitted again. Size, the usual reason, is therefore checked before a message is queued. A
/// destination's routing key means nothing on Kafka and is not looked at.
pub struct KafkaPublisher {
    line: Line<Confirmations>,
    under_way: usize,
}

/// Confirmations that wait to be taken.
#[derive(Default)]
struct Confirmations {
    ready: Mutex<Vec<Confirmation>>,
    news: Notify,
}

impl Outbox for Confirmations {
    type Ticket = u64;

    fn confirmed(&self, ticket: u64, result: Result<(), PublishError>) {
        lock(&self.ready).push(Confirmation { ticket, result });
        self.news.notify_one();
    }

    fn broken(&self) {
        self.news.notify_one();
    }
}

impl KafkaPublisher {
    /// A pipeline to these brokers. Connects at the first message.
    pub fn new(settings: KafkaSettings) -> Self {
        let options = LineOptions {
            settings,
            linger: Duration::from_millis(1),
            batch: 10_000,
            window: 20_000,
            max_message_bytes: 1_000_000,
        };
        Self { line: Line::new(options, Confirmations::default()), under_way: 0 }
    }

    /// Sets how long a batch waits for company. Defaults to 1 ms; under load batches fill while others are under way.
    #[must_use]
    pub fn linger(self, linger: Duration) -> Self {
        self.change(|options| options.linger = linger)
    }

    /// Sets how many messages may be under way at once. Defaults to 20,000; zero counts as one.
    #[must_use]
    pub fn max_under_way(self, messages: usize) -> Self {
        self.change(|options| options.window = messages.max(1))
    }

    /// Sets the largest message in bytes before compression, which must not be over `max.message.bytes` of the
    /// topics. Defaults to 1,000,000.
    #[must_use]
    pub fn max_message_bytes(self, bytes: usize) -> Self {
        self.change(|options| options.max_message_bytes = bytes)
    }

    fn change(self, change: impl FnOnce(&mut LineOptions)) -> Self {
        let mut options = self.line.options().clone();
        change(&mut options);
        Self { line: Line::new(options, Confirmations::default()), under_way: self.under_way }
    }
}

impl Publisher for KafkaPublisher {
    fn binding(&self, _destination: &Destination) -> Binding {
        Binding::Kafka
    }

    fn submit(&mut self, ticket: u64, destination: &Destination, envelope: Envelope) -> Result<(), Refused> {
        if self.under_way >= self.window() {
            return Err(Refused::Full(envelope));
        }
        match self.line.send(ticket, &destination.name, &envelope) {
            Ok(()) => {
                self.under_way += 1;
                Ok(())
            }
            Err(Unsent::Full) => Err(Refused::Full(envelope)),
            Err(Unsent::Failed(error)) => Err(Refused::Failed(error)),
        }
    }

    fn confirmations<'a>(&'a mut self, into: &'a mut Vec<Confirmation>) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            loop {
                let ready = std::mem::take(&mut *lock(&self.line.out().ready));
                if !ready.is_empty() {
                    self.under_way -= ready.len();
                    into.extend(ready);
                    return;
                }
                self.line.mend();
                self.line.out().news.notified().await;
            }
        })
    }

    fn abandon<'a>(&'a mut self) -> BoxFuture<'a, ()> {
        self.line.let_go();
        Box::pin(std::future::ready(()))
    }

    fn window(&self) -> usize {
        self.line.options().window
    }

    fn probe<'a>(&'a self, destinations: &'a [Destination]) -> BoxFuture<'a, Vec<PublishError>> {
        Box::pin(async move {
            let settings = self.line.options().settings.clone();
            let topics = destinations.iter().map(|destination| destination.name.clone()).collect();
            tokio::task::spawn_blocking(move || probe(&settings, topics)).await.unwrap_or_else(|error| {
                let error = AdapterError::new(backstop_core::FaultKind::Other, "the probe was cut off")
                    .with_source(error);
                vec![PublishError::new(Scope::Broker, error)]
            })
        })
    }

    fn inspect<'a>(&'a self, traffic: &'a Traffic) -> BoxFuture<'a, Vec<Finding>> {
        Box::pin(async move {
            let LineOptions { settings, max_message_bytes, .. } = self.line.options().clone();
            let traffic = traffic.clone();
            let work = move || match Steward::new(&settings) {
                Ok(steward) => inspect(&steward, &traffic, max_message_bytes as u64),
                // The probe meets the same error.
                Err(_) => Vec::new(),
            };
            tokio::task::spawn_blocking(work).await.unwrap_or_default()
        })
    }
}

/// Asks for every topic. Whether it may be written to is not in the answer; it shows at the first message.
fn probe(settings: &KafkaSettings, topics: Vec<String>) -> Vec<PublishError> {
    let broker = |error| vec![PublishError::new(Scope::Broker, error)];
    let steward = match Steward::new(settings) {
        Ok(steward) => steward,
        Err(error) => return broker(error),
    };
    if topics.is_empty() {
        return steward.reach(PROBE).err().map(broker).unwrap_or_default();
    }
    let mut errors = Vec::new();
    for topic in topics {
        let error = match check_name(&topic).map(|()| steward.presence(&topic, PROBE)) {
            Ok(Ok(Presence::Here(_))) => continue,
            Ok(Ok(Presence::Missing)) => {
                coded(format!("topic {topic} does not exist"), Code::UnknownTopicOrPartition)
            }
            Ok(Ok(Presence::Denied)) => {
                coded(format!("topic {topic} may not be written to"), Code::TopicAuthorizationFailed)
            }
            Ok(Err(error)) => return broker(error),
            Err(illegal) => illegal,
        };
        errors.push(PublishError::new(Scope::Destination, error));
    }
    errors
}

impl std::fmt::Debug for KafkaPublisher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KafkaPublisher")
            .field("options", self.line.options())
            .field("under_way", &self.under_way)
            .finish_non_exhaustive()
    }
}
