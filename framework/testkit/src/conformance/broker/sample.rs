//! Messages and shorthands for the cases.

use std::time::Duration;

use backstop_core::cloudevents::encode;
use backstop_core::sink::Sink;
use backstop_core::source::{Received, Settlement, Source};
use backstop_core::{Destination, Envelope, Message};

use super::BrokerHarness;

/// What the harness's source hands over.
pub(super) type ReceivedOf<H> = Received<<<H as BrokerHarness>::Source as Source>::Settlement>;

/// Messages at work at once, where a case does not care.
pub(super) const WINDOW: usize = 100;

/// How long nothing must come before it counts as nothing.
pub(super) const SILENCE: Duration = Duration::from_millis(500);

/// Message `id` of `key`, with a small body.
pub(super) fn message(key: &str, id: &str) -> Message {
    let message = Message::new("order.placed").source("/orders").id(id).key(key.to_owned());
    message.body("text/plain", format!("body of {id}"))
}

/// Publishes to the live place.
pub(super) async fn publish<H: BrokerHarness>(harness: &H, messages: impl IntoIterator<Item = Message>) {
    let sink = harness.sink().await;
    for message in messages {
        publish_by(&sink, &harness.place(), encode(message, sink.binding())).await;
    }
}

/// Publishes an envelope as it is.
pub(super) async fn publish_by<S: Sink>(sink: &S, place: &str, envelope: Envelope) {
    sink.publish(&Destination::new(place), envelope).await.expect("the broker confirms it");
}

/// Messages `1` to `count` of one key.
pub(super) fn numbered(key: &str, count: usize) -> impl Iterator<Item = Message> {
    (1..=count).map(move |n| message(key, &n.to_string()))
}

/// The next batch.
pub(super) async fn batch<S: Source>(source: &mut S) -> Vec<Received<S::Settlement>> {
    let batch = source.next().await.expect("the source goes on").expect("the source has not ended");
    assert!(!batch.is_empty(), "an empty batch");
    batch
}

/// Reads until there are `count` messages, unsettled, or more if the last batch brought more.
pub(super) async fn receive<S: Source>(source: &mut S, count: usize) -> Vec<Received<S::Settlement>> {
    let mut received = Vec::new();
    while received.len() < count {
        received.extend(batch(source).await);
    }
    received
}

/// Reads and settles until message `id` has come; returns the ids that came, `id` included.
pub(super) async fn settle_until<S: Source>(source: &mut S, id: &str) -> Vec<String> {
    let mut ids = Vec::new();
    while !ids.iter().any(|other| other == id) {
        for received in batch(source).await {
            ids.push(received.message.id.clone());
            settle(received);
        }
    }
    ids
}

/// Begins and settles.
pub(super) fn settle<S: Settlement>(received: Received<S>) {
    let mut settlement = received.settlement;
    assert!(settlement.begin(), "the message was taken back");
    settlement.settle();
}

/// The only message of a fresh source.
pub(super) async fn receive_one<H: BrokerHarness>(harness: &H) -> (H::Source, ReceivedOf<H>) {
    let mut source = harness.source(WINDOW).await;
    let mut received = receive(&mut source, 1).await;
    assert_eq!(received.len(), 1);
    (source, received.remove(0))
}

pub(super) fn ids<S>(received: &[Received<S>]) -> Vec<&str> {
    received.iter().map(|received| received.message.id.as_str()).collect()
}

pub(super) async fn close<S: Source>(source: S) {
    source.close().await.expect("the last settlements are stored");
}
