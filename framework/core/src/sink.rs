//! The writing side of a broker: one confirmed publish, and the relay's pipeline of them.

use std::fmt;
use std::future::Future;

use futures_core::future::BoxFuture;

use crate::adapter_error::AdapterError;
use crate::cloudevents::Binding;
use crate::message::{Destination, Envelope};
use crate::schema::Finding;

/// How far a publishing error reaches, which decides what may be charged for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scope {
    /// The broker: nothing can be published. Wait; charge nobody.
    Broker,
    /// One destination: missing, denied, unroutable, full. Pause that destination; charge nobody.
    Destination,
    /// This message alone: too large, invalid. It will never pass as it is.
    Message,
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Broker => "broker",
            Self::Destination => "destination",
            Self::Message => "message",
        })
    }
}

/// A publish that the broker did not confirm.
#[derive(Debug)]
pub struct PublishError {
    scope: Scope,
    error: AdapterError,
}

impl PublishError {
    /// An error of that scope.
    pub fn new(scope: Scope, error: AdapterError) -> Self {
        Self { scope, error }
    }

    /// How far it reaches.
    pub fn scope(&self) -> Scope {
        self.scope
    }

    /// What the adapter says, with its hint.
    pub fn error(&self) -> &AdapterError {
        &self.error
    }
}

impl fmt::Display for PublishError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl std::error::Error for PublishError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        std::error::Error::source(&self.error)
    }
}

/// Publishes one message and waits until the broker has confirmed it.
pub trait Sink: Send + Sync + 'static {
    /// The header names that this broker's envelopes use.
    fn binding(&self) -> Binding;

    /// Publishes the envelope as it is. `Ok` means that the broker has stored it and that it reached a topic or
    /// queue; an unroutable message is an error although RabbitMQ acks it.
    ///
    /// An error does not mean that the message is not there: after a lost connection nobody knows. Publishing again
    /// with the same id is always right.
    ///
    /// # Errors
    /// With the scope that tells whom to charge.
    fn publish(
        &self,
        destination: &Destination,
        envelope: Envelope,
    ) -> impl Future<Output = Result<(), PublishError>> + Send;
}

/// What became of one submitted message.
#[derive(Debug)]
pub struct Confirmation {
    /// The number given to [`Publisher::submit`].
    pub ticket: u64,
    /// Whether the broker has it.
    pub result: Result<(), PublishError>,
}

/// Why a message was not taken by [`Publisher::submit`].
#[derive(Debug)]
pub enum Refused {
    /// The pipeline is full: take confirmations first. The envelope comes back.
    Full(Envelope),
    /// This message cannot be sent, or its destination or broker cannot take it now.
    Failed(PublishError),
}

/// The relay's pipeline: many messages under way, each confirmed by its ticket.
///
/// Messages of one key and destination are stored by the broker in the order of submission, as long as none fails.
/// When one fails, the publisher fails whatever it can still hold back of that key and destination; the relay
/// submits nothing more of them until all that is under way has been confirmed, and then begins again with the
/// failed one. A publisher that loses its connection or meets a fatal error fails everything under way with
/// [`Scope::Broker`] and comes back by itself.
///
/// Object-safe, because the relay's configuration chooses the broker.
pub trait Publisher: Send + Sync {
    /// The header names that envelopes for this destination use.
    fn binding(&self, destination: &Destination) -> Binding;

    /// Queues a message; never waits for the broker.
    ///
    /// # Errors
    /// [`Refused`]; a refused message has not been sent and will not be confirmed.
    fn submit(&mut self, ticket: u64, destination: &Destination, envelope: Envelope) -> Result<(), Refused>;

    /// Waits for at least one confirmation and appends all that are there. Cancel-safe. Waits for ever when nothing
    /// is under way.
    fn confirmations<'a>(&'a mut self, into: &'a mut Vec<Confirmation>) -> BoxFuture<'a, ()>;

    /// Gives up on everything under way, as if the connection had been lost: for messages that a broker neither
    /// confirms nor refuses, such as those for a deleted topic or for a queue without a majority.
    ///
    /// Sets it in motion and returns without waiting for the broker; cancel-safe. Whatever was under way is then
    /// confirmed within seconds, whether or not the broker can be reached, and what the broker has not answered by
    /// then as a failure of [`Scope::Broker`]. Its fate is unknown: it may be stored, even later. Afterwards the
    /// publisher works as new. Without anything under way nothing is confirmed.
    fn abandon<'a>(&'a mut self) -> BoxFuture<'a, ()>;

    /// Messages that can be under way at once.
    fn window(&self) -> usize;

    /// Whether the broker can be reached now and, where it can be asked, whether these destinations exist and may be
    /// written to. One error for each that cannot.
    fn probe<'a>(&'a self, destinations: &'a [Destination]) -> BoxFuture<'a, Vec<PublishError>>;

    /// What the broker's own settings mean for what is to be sent, such as limits of size and retention. Nothing where
    /// the broker does not tell, as by default, or cannot be reached, which [`probe`](Publisher::probe) says.
    fn inspect<'a>(&'a self, _traffic: &'a Traffic) -> BoxFuture<'a, Vec<Finding>> {
        Box::pin(std::future::ready(Vec::new()))
    }
}

/// What goes through a broker, as far as an operator who has it inspected knows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Destinations, each with the size in bytes of the largest message that waits for it.
    pub largest: Vec<(Destination, usize)>,
    /// Where dead letters are.
    pub letters: Vec<Destination>,
}
