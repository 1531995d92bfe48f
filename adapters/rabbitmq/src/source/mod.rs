//! Reading a queue and its door.

mod settlement;
mod subscription;

use std::sync::Arc;
use std::task::Poll;

use backstop_core::dead_letter::rabbitmq_door;
use backstop_core::source::{Received, Source, SourceInfo};
use backstop_core::{AdapterError, FaultKind, Via};

pub use settlement::RabbitSettlement;
use subscription::{Place, Subscription};

use crate::link::Link;
use crate::settings::RabbitSettings;
use crate::topology;

/// Unsettled messages at once, unless set otherwise.
const PREFETCH: u16 = 200;

/// Reads a queue, and beside it the door `<queue>.redrive` through which redriven messages come.
///
/// It connects at the first [`next`](Source::next). Each message is acked by itself, on the channel it came from.
/// When the channel is lost, its messages come again; settling them afterwards does nothing, and
/// [`begin`](backstop_core::source::Settlement::begin) says no.
///
/// A queue that is missing at the first subscription is a final error, unless it is to be declared. One that is
/// deleted later is waited for, with a warning, and never declared again, because its bindings are gone with it.
/// Refused credentials are final at any time; everything else is tried again with backoff.
#[derive(Debug)]
pub struct RabbitSource {
    queue: String,
    link: Arc<Link>,
    subscriptions: Vec<Subscription>,
    /// The subscription to ask first, so that a busy queue does not starve the door.
    turn: usize,
}

/// Settings of a [`RabbitSource`].
#[derive(Debug)]
pub struct RabbitSourceBuilder {
    settings: Result<RabbitSettings, AdapterError>,
    queue: String,
    prefetch: u16,
    id_header: Option<String>,
    door: bool,
    declare: bool,
}

impl RabbitSource {
    /// Reads `queue` from the broker at `url`; see [`RabbitSettings::parse`]. A URL that is wrong is reported by
    /// [`build`](RabbitSourceBuilder::build).
    ///
    /// ```
    /// use backstop_rabbitmq::RabbitSource;
    ///
    /// let orders = RabbitSource::consume("amqp://guest:guest@localhost/%2f", "orders").prefetch(50).build()?;
    /// # Ok::<(), backstop_core::AdapterError>(())
    /// ```
    pub fn consume(url: &str, queue: impl Into<String>) -> RabbitSourceBuilder {
        Self::builder(RabbitSettings::parse(url), queue.into())
    }

    /// Reads `queue` with settings of its own.
    pub fn with_settings(settings: RabbitSettings, queue: impl Into<String>) -> RabbitSourceBuilder {
        Self::builder(Ok(settings), queue.into())
    }

    fn builder(settings: Result<RabbitSettings, AdapterError>, queue: String) -> RabbitSourceBuilder {
        RabbitSourceBuilder {
            settings,
            queue,
            prefetch: PREFETCH,
            id_header: None,
            door: true,
            declare: true,
        }
    }
}

impl RabbitSourceBuilder {
    /// Sets how many messages may be unsettled at once, for the queue and for its door each. Defaults to 200.
    #[must_use]
    pub fn prefetch(mut self, messages: u16) -> Self {
        self.prefetch = messages;
        self
    }

    /// Names a header that holds the message's id where neither CloudEvents nor `message_id` give one. Defaults to
    /// none.
    #[must_use]
    pub fn id_header(mut self, name: impl Into<String>) -> Self {
        self.id_header = Some(name.into());
        self
    }

    /// Sets whether redriven messages are read from `<queue>.redrive`. Defaults to true.
    #[must_use]
    pub fn door(mut self, read: bool) -> Self {
        self.door = read;
        self
    }

    /// Sets whether the queue and its door are declared, as with [`declare_queue`](crate::declare_queue), where they
    /// do not exist at the first subscription. Defaults to true.
    #[must_use]
    pub fn declare(mut self, declare: bool) -> Self {
        self.declare = declare;
        self
    }

    /// Checks the settings; does not connect.
    ///
    /// # Errors
    /// [`FaultKind::Invalid`] for a URL, a queue name or a prefetch that can never work.
    pub fn build(self) -> Result<RabbitSource, AdapterError> {
        let settings = self.settings?;
        if self.prefetch == 0 {
            // RabbitMQ takes 0 for no limit at all
            return Err(AdapterError::new(
                FaultKind::Invalid,
                "a prefetch of 0 would put no bound on memory",
            )
            .with_hint("set a prefetch between 1 and 65535; 200 is a good start"));
        }
        let door = rabbitmq_door(&self.queue);
        topology::short(&door)?;
        if self.queue.is_empty() {
            return Err(AdapterError::new(FaultKind::Invalid, "the name of the queue is empty"));
        }
        let link = Arc::new(Link::new(settings));
        let place = |via, queue: &str| Place {
            link: link.clone(),
            queue: queue.into(),
            via,
            own_queue: self.queue.as_str().into(),
            id_header: self.id_header.clone(),
            prefetch: self.prefetch,
        };
        let mut subscriptions = vec![Subscription::new(place(Via::Live, &self.queue), self.declare)];
        if self.door {
            subscriptions.push(Subscription::new(place(Via::Door, &door), self.declare));
        }
        Ok(RabbitSource { queue: self.queue, link, subscriptions, turn: 0 })
    }
}

impl Source for RabbitSource {
    type Settlement = RabbitSettlement;

    fn describe(&self) -> SourceInfo {
        SourceInfo { system: "rabbitmq", group: self.queue.clone(), places: vec![self.queue.clone()] }
    }

    async fn next(&mut self) -> Result<Option<Vec<Received<RabbitSettlement>>>, AdapterError> {
        let batch = std::future::poll_fn(|context| {
            let count = self.subscriptions.len();
            self.turn = (self.turn + 1) % count;
            for offset in 0..count {
                let subscription = &mut self.subscriptions[(self.turn + offset) % count];
                if let Poll::Ready(batch) = subscription.poll_batch(context) {
                    return Poll::Ready(batch);
                }
            }
            Poll::Pending
        });
        batch.await.map(Some)
    }

    async fn close(self) -> Result<(), AdapterError> {
        let mut closed = Ok(());
        for subscription in self.subscriptions {
            closed = closed.and(subscription.close().await);
        }
        self.link.close().await;
        closed
    }
}
