//! One confirmed publish at a time.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use backstop_core::cloudevents::Binding;
use backstop_core::message::Destination;
use backstop_core::sink::{PublishError, Scope, Sink};
use backstop_core::{Envelope, FaultKind};
use lapin::options::BasicPublishOptions;
use lapin::{BasicProperties, Channel, Confirmation};
use tokio::sync::Semaphore;

use crate::address::Address;
use crate::error::{Failure, timed_out};
use crate::link::Link;
use crate::settings::RabbitSettings;
use crate::wire;

/// Channels in use at once; further publishes wait for one.
const MAX_CHANNELS: usize = 16;

/// A message's size limit unless set otherwise, which is RabbitMQ 4's own.
pub(crate) const MAX_MESSAGE_BYTES: usize = 16 * 1024 * 1024;

/// Publishes one message after the other, each persistent, mandatory and confirmed.
///
/// Each publish has a channel to itself while it is under way: a missing exchange, which closes the channel, fails
/// only the message that names it. Cheap to clone; clones share one connection, which is opened at the first publish
/// and again after each loss.
#[derive(Debug, Clone)]
pub struct RabbitSink {
    pool: Arc<Pool>,
    publish_timeout: Duration,
    max_message_bytes: usize,
}

#[derive(Debug)]
struct Pool {
    link: Link,
    permits: Semaphore,
    idle: Mutex<Vec<Channel>>,
}

impl RabbitSink {
    /// A sink that connects at its first publish.
    pub fn new(settings: RabbitSettings) -> Self {
        let pool =
            Pool { link: Link::new(settings), permits: Semaphore::new(MAX_CHANNELS), idle: Mutex::default() };
        Self {
            pool: Arc::new(pool),
            publish_timeout: Duration::from_secs(30),
            max_message_bytes: MAX_MESSAGE_BYTES,
        }
    }

    /// Sets how long a publish may take, connecting and the broker's confirm included. Defaults to 30 s.
    #[must_use]
    pub fn publish_timeout(mut self, limit: Duration) -> Self {
        self.publish_timeout = limit;
        self
    }

    /// Sets the largest body in bytes. Defaults to 16 MiB.
    #[must_use]
    pub fn max_message_bytes(mut self, limit: usize) -> Self {
        self.max_message_bytes = limit;
        self
    }

    pub(crate) fn link(&self) -> &Link {
        &self.pool.link
    }

    async fn send(&self, address: Address, properties: BasicProperties, body: &[u8]) -> Result<(), Failure> {
        let _permit = self.pool.permits.acquire().await.expect("the semaphore is never closed");
        let channel = match self.pool.take() {
            Some(channel) => channel,
            None => self.pool.link.confirm_channel().await.map_err(|error| Failure::broker(&error))?,
        };
        let (exchange, key) = (address.exchange.clone(), address.routing_key.clone());
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let confirmed =
            async { channel.basic_publish(exchange, key, options, body, properties).await?.await };
        // A channel that is not given back here, after an error or a timeout, closes with its last handle.
        let outcome = match confirmed.await {
            Ok(Confirmation::Ack(None)) => Ok(()),
            Ok(Confirmation::Ack(Some(_))) => Err(Failure::unroutable(&address.describe())),
            Ok(Confirmation::Nack(_)) => Err(Failure::refused(&address.describe())),
            Ok(Confirmation::NotRequested) => return Err(not_confirming()),
            Err(error) => return Err(Failure::of_channel(&address.describe(), error)),
        };
        self.pool.give_back(channel);
        outcome
    }
}

/// A confirm that cannot be: every channel here asks for confirms.
pub(crate) fn not_confirming() -> Failure {
    Failure::new(Scope::Broker, FaultKind::Other, "the broker does not confirm what is published")
}

impl Pool {
    fn take(&self) -> Option<Channel> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|channel| channel.status().connected());
        idle.pop()
    }

    fn give_back(&self, channel: Channel) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(channel);
    }
}

impl Sink for RabbitSink {
    fn binding(&self) -> Binding {
        Binding::Amqp
    }

    async fn publish(&self, destination: &Destination, envelope: Envelope) -> Result<(), PublishError> {
        let prepare = || {
            let address = Address::of(destination)?;
            check_size(&envelope, self.max_message_bytes, self.pool.link.frame_max())?;
            Ok((address, wire::encode(&envelope)?))
        };
        let (address, properties) = prepare().map_err(|failure: Failure| failure.to_error())?;
        let what = format!("cannot publish to {}", address.describe());
        let sent = self.send(address, properties, envelope.body.as_deref().unwrap_or_default());
        match tokio::time::timeout(self.publish_timeout, sent).await {
            Ok(outcome) => outcome.map_err(|failure| failure.to_error()),
            Err(_) => Err(PublishError::new(Scope::Broker, timed_out(&what))),
        }
    }
}

/// Refuses what the broker would close the channel or the connection for.
pub(crate) fn check_size(envelope: &Envelope, max_body: usize, frame_max: usize) -> Result<(), Failure> {
    let refuse = |what| Err(Failure::new(Scope::Message, FaultKind::Invalid, what));
    let body = envelope.body.as_ref().map_or(0, |body| body.len());
    if body > max_body {
        return refuse(format!("the body has {body} bytes, over the limit of {max_body}"));
    }
    let headers = wire::header_size(envelope);
    if headers > frame_max {
        return refuse(format!("the headers have {headers} bytes, over the {frame_max} of one AMQP frame"));
    }
    Ok(())
}
