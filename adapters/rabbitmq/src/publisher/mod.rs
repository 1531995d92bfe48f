//! The relay's pipeline: many messages under way over several channels.

mod backlog;
mod crew;
mod flights;
mod grudges;
mod returns;
mod worker;

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use backstop_core::cloudevents::Binding;
use backstop_core::message::Destination;
use backstop_core::sink::{Confirmation, PublishError, Publisher, Refused, Scope};
use backstop_core::{AdapterError, Envelope, FaultKind};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use self::backlog::Job;
use self::crew::Crew;
use crate::address::Address;
use crate::error::Failure;
use crate::link::Link;
use crate::settings::RabbitSettings;
use crate::sink::{MAX_MESSAGE_BYTES, check_size};
use crate::{topology, wire};

/// Which order is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ordering {
    /// Messages of one key and destination are stored in the order of submission: one of them is under way at a
    /// time. Messages without a key are not ordered.
    #[default]
    Strict,
    /// No order. A key whose messages come faster than the broker confirms one after the other is not slowed down.
    None,
}

/// Publishes for the relay: persistent, mandatory, confirmed, over several channels of one connection.
///
/// It connects in the background and comes back by itself. What a lost connection leaves unconfirmed fails with
/// [`Scope::Broker`]. When the broker closes a channel because of one message (its exchange is missing, say), the
/// other messages under way there are published again, one at a time, until the culprit is found; it alone, and what
/// waits for the same exchange, fails. While the broker blocks publishing (memory or disk alarm) messages stay under
/// way, and no time limit applies; after [`abandon`](Publisher::abandon) they fail until the alarm is over.
///
/// A task of the publisher that dies, with the runtime that it was started on for example, fails what it had under
/// way with [`Scope::Broker`]; the next message starts another one.
#[derive(Debug)]
pub struct RabbitPublisher {
    link: Arc<Link>,
    crew: Crew,
    hasher: RandomState,
    ordering: Ordering,
    window: usize,
    unordered_turn: usize,
    max_message_bytes: usize,
}

/// Settings of a [`RabbitPublisher`].
#[derive(Debug, Clone)]
pub struct RabbitPublisherBuilder {
    settings: RabbitSettings,
    channels: usize,
    window_per_channel: usize,
    ordering: Ordering,
    max_message_bytes: usize,
}

impl RabbitPublisher {
    /// Settings to begin with.
    pub fn builder(settings: RabbitSettings) -> RabbitPublisherBuilder {
        RabbitPublisherBuilder {
            settings,
            channels: 4,
            window_per_channel: 1_000,
            ordering: Ordering::Strict,
            max_message_bytes: MAX_MESSAGE_BYTES,
        }
    }

    /// The lane of a message, if its order matters.
    fn lane(&self, destination: &Destination, envelope: &Envelope) -> Option<u64> {
        if self.ordering == Ordering::None {
            return None;
        }
        let key = envelope.key.as_ref().or_else(|| envelope.headers.get(wire::PARTITION_KEY))?;
        Some(self.hasher.hash_one((destination, key)))
    }

    fn prepare(&self, ticket: u64, destination: &Destination, envelope: Envelope) -> Result<Job, Failure> {
        let address = Address::of(destination)?;
        check_size(&envelope, self.max_message_bytes, self.link.frame_max())?;
        Job::new(ticket, self.lane(destination, &envelope), address, envelope)
    }
}

impl RabbitPublisherBuilder {
    /// Sets how many channels messages are spread over, by key. Defaults to 4.
    #[must_use]
    pub fn channels(mut self, channels: usize) -> Self {
        self.channels = channels;
        self
    }

    /// Sets how many messages may be unconfirmed on each channel. Defaults to 1,000.
    #[must_use]
    pub fn window_per_channel(mut self, messages: usize) -> Self {
        self.window_per_channel = messages;
        self
    }

    /// Sets which order is kept. Defaults to [`Ordering::Strict`].
    #[must_use]
    pub fn ordering(mut self, ordering: Ordering) -> Self {
        self.ordering = ordering;
        self
    }

    /// Sets the largest body in bytes. Defaults to 16 MiB.
    #[must_use]
    pub fn max_message_bytes(mut self, limit: usize) -> Self {
        self.max_message_bytes = limit;
        self
    }

    /// Starts the publisher, which connects in the background.
    ///
    /// # Errors
    /// [`FaultKind::Invalid`] without a channel or a window, and outside of a tokio runtime.
    pub fn start(self) -> Result<RabbitPublisher, AdapterError> {
        if self.channels == 0 || self.window_per_channel == 0 {
            return Err(AdapterError::new(FaultKind::Invalid, "a publisher needs a channel and a window")
                .with_hint("set both to at least 1"));
        }
        let link = Arc::new(Link::new(self.settings));
        let mut crew = Crew::new(link.clone(), self.channels, self.window_per_channel);
        crew.start_all()?;
        Ok(RabbitPublisher {
            link,
            crew,
            hasher: RandomState::new(),
            ordering: self.ordering,
            window: self.channels * self.window_per_channel,
            unordered_turn: 0,
            max_message_bytes: self.max_message_bytes,
        })
    }
}

impl Publisher for RabbitPublisher {
    fn binding(&self, _destination: &Destination) -> Binding {
        Binding::Amqp
    }

    fn submit(&mut self, ticket: u64, destination: &Destination, envelope: Envelope) -> Result<(), Refused> {
        if self.crew.under_way() >= self.window {
            return Err(Refused::Full(envelope));
        }
        let refuse = |failure: Failure| Refused::Failed(failure.to_error());
        let job = self.prepare(ticket, destination, envelope).map_err(refuse)?;
        let number = match job.lane {
            Some(lane) => usize::try_from(lane % self.crew.len() as u64).unwrap_or(0),
            None => {
                self.unordered_turn = (self.unordered_turn + 1) % self.crew.len();
                self.unordered_turn
            }
        };
        self.crew.assign(number, job).map_err(refuse)
    }

    fn confirmations<'a>(&'a mut self, into: &'a mut Vec<Confirmation>) -> BoxFuture<'a, ()> {
        self.crew.hear(into).boxed()
    }

    fn abandon<'a>(&'a mut self) -> BoxFuture<'a, ()> {
        self.crew.give_up();
        std::future::ready(()).boxed()
    }

    fn window(&self) -> usize {
        self.window
    }

    fn probe<'a>(&'a self, destinations: &'a [Destination]) -> BoxFuture<'a, Vec<PublishError>> {
        async move {
            if let Err(error) = self.link.channel().await {
                return vec![PublishError::new(Scope::Broker, error)];
            }
            let mut faults = Vec::new();
            for destination in destinations {
                faults.extend(probe(&self.link, destination).await.err());
            }
            faults
        }
        .boxed()
    }
}

async fn probe(link: &Link, destination: &Destination) -> Result<(), PublishError> {
    let address = Address::of(destination).map_err(|failure| failure.to_error())?;
    let found = match address.exchange.as_str() {
        "" => topology::check_queue(link, address.routing_key.as_str()).await,
        exchange => topology::check_exchange(link, exchange).await,
    };
    found.map_err(|error| {
        let scope = if error.kind() == FaultKind::Unreachable { Scope::Broker } else { Scope::Destination };
        PublishError::new(scope, error)
    })
}
