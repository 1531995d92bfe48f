//! Confirmed means there; an error tells how far it reaches.

use std::collections::BTreeSet;

use backstop_core::Destination;
use backstop_core::cloudevents::{Binding, encode};
use backstop_core::sink::{Scope, Sink};

use super::BrokerHarness;
use super::sample::*;
use crate::conformance::needs;

/// The envelopes of a sink are of the kind that the source's broker reads.
pub async fn the_binding_fits<H: BrokerHarness>(harness: &H) {
    publish(harness, [message("tea", "1")]).await;
    let (_source, received) = receive_one(harness).await;
    let expected = if received.origin.system() == "kafka" { Binding::Kafka } else { Binding::Amqp };
    assert_eq!(harness.sink().await.binding(), expected);
}

/// Publishing from many tasks at once, each is confirmed and there.
pub async fn many_at_once_arrive<H: BrokerHarness>(harness: &H) {
    let (sink, place) = (harness.sink().await, harness.place());
    let publishes = (0..50).map(|n| {
        let envelope = encode(message(&n.to_string(), &n.to_string()), sink.binding());
        publish_by(&sink, &place, envelope)
    });
    futures_util::future::join_all(publishes).await;
    let mut source = harness.source(WINDOW).await;
    let received = receive(&mut source, 50).await;
    let distinct: BTreeSet<&str> = ids(&received).into_iter().collect();
    assert_eq!((distinct.len(), received.len()), (50, 50));
}

/// A destination that does not exist is that destination's error, and the sink goes on.
pub async fn a_missing_destination_is_told<H: BrokerHarness>(harness: &H) {
    needs!(H::CAPABILITIES, missing_destination);
    let sink = harness.sink().await;
    let envelope = encode(message("tea", "1"), sink.binding());
    let missing = Destination::new(harness.missing());
    let error = sink.publish(&missing, envelope.clone()).await.expect_err("there is no such place");
    assert_eq!(error.scope(), Scope::Destination, "{error}");
    assert!(error.error().hint().is_some(), "an operator needs to know what to do: {error}");
    publish_by(&sink, &harness.place(), envelope).await;
}

/// A message that is too large is that message's error, and the sink goes on.
pub async fn a_large_message_is_told<H: BrokerHarness>(harness: &H) {
    needs!(H::CAPABILITIES, size_limit);
    let sink = harness.sink().await;
    let mut large = message("tea", "large");
    large.body = Some(vec![b'x'; harness.max_bytes() + 1].into());
    let place = Destination::new(harness.place());
    let error = sink.publish(&place, encode(large, sink.binding())).await.expect_err("it is too large");
    assert_eq!(error.scope(), Scope::Message, "{error}");
    publish_by(&sink, &place.name, encode(message("tea", "small"), sink.binding())).await;
    let (_source, received) = receive_one(harness).await;
    assert_eq!(received.message.id, "small");
}
