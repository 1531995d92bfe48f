//! One queue that is read: subscribed, lost, subscribed again.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use backstop_core::cloudevents;
use backstop_core::dead_letter::origin_at_door;
use backstop_core::source::Received;
use backstop_core::{AdapterError, FaultKind, Origin, Via};
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, Stream};
use lapin::message::Delivery;
use lapin::options::{BasicConsumeOptions, BasicQosOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Consumer};
use tokio::time::{sleep, timeout};

use super::settlement::{Acks, GivenBack, RabbitSettlement};
use crate::error::{adapter_error, timed_out};
use crate::link::{Link, backoff};
use crate::topology::Share;
use crate::{topology, typed, wire};

/// How long the last acks and the goodbye may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);

/// How often a queue that stays missing is complained about.
const COMPLAIN_EVERY: Duration = Duration::from_secs(30);

/// A queue and how it is read.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) link: Arc<Link>,
    pub(super) queue: Arc<str>,
    pub(super) via: Via,
    /// The consumer's own queue, which a door belongs to.
    pub(super) own_queue: Arc<str>,
    pub(super) id_header: Option<String>,
    pub(super) prefetch: u16,
}

/// A queue that is read.
pub(super) struct Subscription {
    place: Place,
    state: State,
}

enum State {
    Subscribing(BoxFuture<'static, Result<Live, AdapterError>>),
    Live(Box<Live>),
    /// A final error has been reported.
    Ended,
}

struct Live {
    consumer: Consumer,
    acks: Acks,
    given_back: GivenBack,
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription").field("queue", &self.place.queue).finish_non_exhaustive()
    }
}

impl Subscription {
    pub(super) fn new(place: Place, declare: bool) -> Self {
        let first = subscribe(place.clone(), First::Yes { declare }).boxed();
        Self { place, state: State::Subscribing(first) }
    }

    /// All messages that are there, once there is one.
    pub(super) fn poll_batch(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Result<Vec<Received<RabbitSettlement>>, AdapterError>> {
        loop {
            match &mut self.state {
                State::Subscribing(subscribing) => match subscribing.poll_unpin(context) {
                    Poll::Ready(Ok(live)) => self.state = State::Live(Box::new(live)),
                    Poll::Ready(Err(error)) => {
                        self.state = State::Ended;
                        return Poll::Ready(Err(error));
                    }
                    Poll::Pending => return Poll::Pending,
                },
                State::Live(live) => {
                    live.acks.give_back(&mut live.given_back, context);
                    let (batch, lost) = live.drain(&self.place, context);
                    if lost {
                        self.state = State::Subscribing(subscribe(self.place.clone(), First::No).boxed());
                    }
                    if !batch.is_empty() {
                        return Poll::Ready(Ok(batch));
                    }
                    if !lost {
                        return Poll::Pending;
                    }
                }
                State::Ended => {
                    let what = format!("queue {} is no longer read after an error", self.place.queue);
                    return Poll::Ready(Err(AdapterError::new(FaultKind::Other, what)));
                }
            }
        }
    }

    pub(super) async fn close(self) -> Result<(), AdapterError> {
        let State::Live(live) = self.state else { return Ok(()) };
        let what = format!("the last settlements of queue {} could not be stored", self.place.queue);
        match timeout(CLOSE_TIMEOUT, live.close()).await {
            Ok(Ok(true)) => Ok(()),
            Ok(Ok(false)) => Err(AdapterError::new(FaultKind::Unreachable, what)),
            Ok(Err(error)) => Err(adapter_error(&what, error)),
            Err(_) => Err(timed_out(&what)),
        }
    }
}

impl Live {
    /// What is there without waiting, and whether the subscription is lost.
    fn drain(&mut self, place: &Place, context: &mut Context<'_>) -> (Vec<Received<RabbitSettlement>>, bool) {
        let mut batch = Vec::new();
        while batch.len() < usize::from(place.prefetch) {
            match Pin::new(&mut self.consumer).poll_next(context) {
                Poll::Ready(Some(Ok(delivery))) => batch.push(self.receive(place, delivery)),
                Poll::Ready(Some(Err(error))) => {
                    let hint = consumer_timeout_hint(&error);
                    tracing::warn!(queue = %place.queue, %error, hint, "subscription lost; subscribing again");
                    return (batch, true);
                }
                Poll::Ready(None) => {
                    tracing::warn!(queue = %place.queue, "the broker cancelled the subscription; subscribing again");
                    return (batch, true);
                }
                Poll::Pending => break,
            }
        }
        (batch, false)
    }

    fn receive(&self, place: &Place, delivery: Delivery) -> Received<RabbitSettlement> {
        let suspect = place.via == Via::Live && was_had_before(&delivery);
        let envelope = wire::decode(&delivery.properties, delivery.data);
        let own = || Origin::RabbitMq {
            exchange: delivery.exchange.to_string(),
            routing_key: delivery.routing_key.to_string(),
            queue: place.own_queue.to_string(),
            redelivered: delivery.redelivered,
        };
        let origin = match place.via {
            Via::Live => own(),
            Via::Door => match origin_at_door(&envelope.headers, &place.own_queue) {
                Some(Origin::RabbitMq { exchange, routing_key, queue, .. }) => {
                    Origin::RabbitMq { exchange, routing_key, queue, redelivered: delivery.redelivered }
                }
                _ => own(),
            },
        };
        let (message, identity) =
            cloudevents::decode(envelope, &origin, place.via, place.id_header.as_deref());
        let settlement = self.acks.settlement(delivery.delivery_tag, suspect);
        Received { message, identity, origin, via: place.via, settlement }
    }

    /// Ends the subscription in order. The broker has taken every ack when it has answered the close, because it
    /// takes what comes on a channel in order.
    ///
    /// Everything else goes back with the channel, at once and in its order. Nothing may be given back and the
    /// subscription may not be cancelled before: somebody else would be given a part of it then, or what comes after it.
    async fn close(self) -> lapin::Result<bool> {
        let written = self.acks.flush().await;
        self.acks.channel().close(200, "OK".into()).await?;
        Ok(written)
    }
}

/// Whether somebody has had the message before and has not settled it. Quorum queues count it too, and tell that also
/// after the flag is lost, as when the queue's leader changes.
fn was_had_before(delivery: &Delivery) -> bool {
    let headers = delivery.properties.headers().as_ref();
    let counted = headers.and_then(|headers| headers.inner().get("x-delivery-count"));
    delivery.redelivered || counted.is_some_and(|count| typed::text(count) != b"0"[..])
}

/// Whether the queue has been read before.
#[derive(Debug, Clone, Copy)]
enum First {
    Yes { declare: bool },
    No,
}

/// Subscribes, however often it takes. Fails only where waiting cannot help.
async fn subscribe(place: Place, first: First) -> Result<Live, AdapterError> {
    let mut waits = backoff();
    let mut complained: Option<Instant> = None;
    loop {
        let error = match attempt(&place, first).await {
            Ok(live) => return Ok(live),
            Err(error) => error,
        };
        let waiting_helps = match error.kind() {
            FaultKind::Denied | FaultKind::Invalid => false,
            FaultKind::Missing => matches!(first, First::No),
            _ => true,
        };
        if !waiting_helps {
            return Err(error);
        }
        if complained.is_none_or(|at| at.elapsed() >= COMPLAIN_EVERY) {
            complained = Some(Instant::now());
            tracing::warn!(queue = %place.queue, %error, hint = error.hint(), "cannot read the queue; trying again");
        }
        sleep(waits.next().unwrap_or(COMPLAIN_EVERY)).await;
    }
}

async fn attempt(place: &Place, first: First) -> Result<Live, AdapterError> {
    if let First::Yes { declare: true } = first {
        topology::ensure_queue(&place.link, &place.queue, Share::Competing).await?;
    }
    let channel = Arc::new(place.link.channel().await?);
    let what = format!("cannot read queue {}", place.queue);
    let consuming = timeout(place.link.settings().connect_timeout, consume(place, &channel));
    match consuming.await {
        Ok(Ok(consumer)) => {
            let (acks, given_back) = Acks::start(channel, consumer.clone());
            Ok(Live { consumer, acks, given_back })
        }
        Ok(Err(error)) => Err(adapter_error(&what, error)),
        Err(_) => Err(timed_out(&what)),
    }
}

async fn consume(place: &Place, channel: &Channel) -> lapin::Result<Consumer> {
    channel.basic_qos(place.prefetch, BasicQosOptions::default()).await?;
    let queue = place.queue.as_ref().into();
    channel.basic_consume(queue, "".into(), BasicConsumeOptions::default(), FieldTable::default()).await
}

fn consumer_timeout_hint(error: &lapin::Error) -> Option<&'static str> {
    let timed_out = error.to_string().contains("timed out");
    timed_out.then_some(
        "handlers took longer than the broker's consumer_timeout; raise it or shorten their time limit",
    )
}
