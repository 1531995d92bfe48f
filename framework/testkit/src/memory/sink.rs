//! Writing to the broker in memory: the sink, the relay's pipeline and dead letters.

use std::collections::BTreeSet;
use std::sync::Arc;

use backstop_core::cloudevents::Binding;
use backstop_core::dead_letter::{kafka_door, kafka_letters, kafka_letters_of};
use backstop_core::sink::{Confirmation, PublishError, Publisher, Refused, Scope, Sink};
use backstop_core::source::SourceInfo;
use backstop_core::{AdapterError, DeadLetter, DeadLetters, Destination, Envelope, FaultKind};
use bytes::Bytes;
use futures_core::future::BoxFuture;

use super::broker::{DEFAULT_PARTITIONS, Shared, missing};

/// Messages that a publisher takes before it wants its confirmations fetched.
pub const PUBLISHER_WINDOW: usize = 256;

/// Publishes one message at a time.
#[derive(Debug, Clone)]
pub struct MemorySink {
    shared: Arc<Shared>,
}

impl MemorySink {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }
}

impl Sink for MemorySink {
    fn binding(&self) -> Binding {
        Binding::Kafka
    }

    async fn publish(&self, destination: &Destination, envelope: Envelope) -> Result<(), PublishError> {
        self.shared.change(|state| state.publish(&destination.name, envelope))
    }
}

/// The relay's pipeline. Messages reach their topics when their confirmations are fetched.
#[derive(Debug)]
pub struct MemoryPublisher {
    shared: Arc<Shared>,
    under_way: Vec<(u64, Destination, Envelope)>,
    /// Tickets that were given up and are not yet told of.
    abandoned: Vec<u64>,
}

impl MemoryPublisher {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, under_way: Vec::new(), abandoned: Vec::new() }
    }

    /// Publishes what is under way, in order. After a failure, what is left of the same destination and key fails
    /// too; after a failure of the broker, everything.
    fn flush(&mut self, into: &mut Vec<Confirmation>) {
        into.extend(self.abandoned.drain(..).map(|ticket| Confirmation { ticket, result: Err(given_up()) }));
        let mut blocked: BTreeSet<(Destination, Option<Bytes>)> = BTreeSet::new();
        let mut broker_down = false;
        for (ticket, destination, envelope) in self.under_way.drain(..) {
            let lane = (destination, envelope.key.clone());
            let result = if broker_down {
                Err(held_back(Scope::Broker))
            } else if blocked.contains(&lane) {
                Err(held_back(Scope::Destination))
            } else {
                self.shared.change(|state| state.publish(&lane.0.name, envelope))
            };
            if let Err(error) = &result {
                broker_down |= error.scope() == Scope::Broker;
                blocked.insert(lane);
            }
            into.push(Confirmation { ticket, result });
        }
    }
}

fn held_back(scope: Scope) -> PublishError {
    let error = AdapterError::new(FaultKind::Unreachable, "held back because an earlier publish failed");
    PublishError::new(scope, error)
}

fn given_up() -> PublishError {
    let error = AdapterError::new(FaultKind::Unreachable, "given up before the broker confirmed it");
    PublishError::new(Scope::Broker, error)
}

impl Publisher for MemoryPublisher {
    fn binding(&self, _destination: &Destination) -> Binding {
        Binding::Kafka
    }

    fn submit(&mut self, ticket: u64, destination: &Destination, envelope: Envelope) -> Result<(), Refused> {
        if self.under_way.len() + self.abandoned.len() >= PUBLISHER_WINDOW {
            return Err(Refused::Full(envelope));
        }
        self.under_way.push((ticket, destination.clone(), envelope));
        Ok(())
    }

    fn confirmations<'a>(&'a mut self, into: &'a mut Vec<Confirmation>) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            if self.under_way.is_empty() && self.abandoned.is_empty() {
                std::future::pending::<()>().await;
            }
            self.flush(into);
        })
    }

    fn abandon<'a>(&'a mut self) -> BoxFuture<'a, ()> {
        self.abandoned.extend(self.under_way.drain(..).map(|(ticket, ..)| ticket));
        Box::pin(std::future::ready(()))
    }

    fn window(&self) -> usize {
        PUBLISHER_WINDOW
    }

    fn probe<'a>(&'a self, destinations: &'a [Destination]) -> BoxFuture<'a, Vec<PublishError>> {
        let absent = |destination: &&Destination| {
            self.shared.look(|state| !state.topics.contains_key(&destination.name))
        };
        let errors =
            destinations.iter().filter(absent).map(|destination| missing(&destination.name)).collect();
        Box::pin(std::future::ready(errors))
    }
}

/// Publishes dead letters to `<topic>.<group>.dlq`.
#[derive(Debug, Clone)]
pub struct MemoryDeadLetters {
    shared: Arc<Shared>,
}

impl MemoryDeadLetters {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }
}

impl DeadLetters for MemoryDeadLetters {
    /// Creates the dead-letter topics and doors of the source.
    async fn prepare(&self, source: &SourceInfo) -> Result<(), AdapterError> {
        self.shared.change(|state| {
            for place in &source.places {
                state.create(&kafka_letters(place, &source.group), DEFAULT_PARTITIONS);
                state.create(&kafka_door(place, &source.group), DEFAULT_PARTITIONS);
            }
        });
        Ok(())
    }

    async fn quarantine(&self, letter: &DeadLetter) -> Result<(), PublishError> {
        let topic = kafka_letters_of(letter.origin.place(), &letter.group);
        self.shared.change(|state| match state.publish(&topic, letter.to_envelope()) {
            Err(error) if error.scope() == Scope::Message => {
                state.publish(&topic, letter.to_minimal_envelope())
            }
            result => result,
        })
    }
}
