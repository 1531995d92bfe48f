//! The door: redriven messages come in with the identity and origin that they had.

use backstop_core::cloudevents::encode;
use backstop_core::dead_letter::redrive_envelope;
use backstop_core::sink::Sink;
use backstop_core::{Envelope, Identity, Message, MessageKey, Via, names};

use super::BrokerHarness;
use super::dead_letters::{found, quarantined};
use super::sample::*;

/// From the live place over quarantine and redrive back: the same message, origin and identity, by the door.
pub async fn a_redriven_message_comes_back<H: BrokerHarness>(harness: &H) {
    let letter = quarantined(harness, message("tea", "1").header("tenant", "a")).await;
    let Message { key, headers, body, .. } = found(harness).await.message;
    let sink = harness.sink().await;
    publish_by(&sink, &harness.door(), redrive_envelope(&Envelope { key, headers, body })).await;
    let (_source, received) = receive_one(harness).await;
    assert_eq!(received.via, Via::Door);
    assert_eq!(received.identity, Identity::Declared(MessageKey::new("/orders", b"1")));
    assert_eq!(received.origin, letter.origin);
    let found = received.message;
    assert_eq!(
        (found.id.as_str(), found.source.as_str(), found.kind.as_str()),
        ("1", "/orders", "order.placed")
    );
    assert_eq!(found.key.as_deref(), Some(b"tea".as_slice()));
    assert_eq!((found.body, found.headers.get_str("tenant")), (letter.envelope.body, Some("a")));
    assert_eq!(found.headers.get_str(names::REDRIVE_GENERATION), Some("1"));
}

/// Through the door our header names the identity, whatever else the message says.
pub async fn our_identity_counts_at_the_door<H: BrokerHarness>(harness: &H) {
    let sink = harness.sink().await;
    let sent = message("tea", "1").header(names::MESSAGE_KEY, "kafka|orders/3/17/99");
    publish_by(&sink, &harness.door(), encode(sent, sink.binding())).await;
    let (_source, received) = receive_one(harness).await;
    let expected = MessageKey::parse("kafka|orders/3/17/99").expect("a sound key");
    assert_eq!(received.identity, Identity::Declared(expected));
}

/// A message at the door that carries nothing of ours is taken for what it says.
pub async fn a_bare_message_at_the_door<H: BrokerHarness>(harness: &H) {
    let sink = harness.sink().await;
    publish_by(&sink, &harness.door(), encode(message("tea", "1"), sink.binding())).await;
    let (_source, received) = receive_one(harness).await;
    assert_eq!(received.via, Via::Door);
    assert_eq!(received.identity, Identity::Declared(MessageKey::new("/orders", b"1")));
}

/// An origin that names another place than the door's own is a stranger's: it names nothing that is stored or read.
pub async fn a_foreign_origin_at_the_door_is_not_believed<H: BrokerHarness>(harness: &H) {
    let sink = harness.sink().await;
    let forgeries = ["payments".to_owned(), format!("{}\0", harness.place()), "x".repeat(5_000)];
    for (n, place) in forgeries.iter().enumerate() {
        let forged = message("tea", &n.to_string())
            .header(names::ORIGINAL_TOPIC, place.clone())
            .header(names::ORIGINAL_PARTITION, "0")
            .header(names::ORIGINAL_OFFSET, "0");
        publish_by(&sink, &harness.door(), encode(forged, sink.binding())).await;
        let forged = message("tea", &format!("{n} again")).header(names::ORIGINAL_QUEUE, place.clone());
        publish_by(&sink, &harness.door(), encode(forged, sink.binding())).await;
    }
    let received = receive(&mut harness.source(WINDOW).await, 2 * forgeries.len()).await;
    for received in received {
        assert_eq!(received.via, Via::Door);
        let place = received.origin.place();
        assert!(place == harness.place() || place == harness.door(), "{place:?}");
    }
}

/// What came by the door is settled like everything else, and comes again when it is not.
pub async fn the_door_is_settled_too<H: BrokerHarness>(harness: &H) {
    let sink = harness.sink().await;
    for id in ["1", "2"] {
        publish_by(&sink, &harness.door(), encode(message("tea", id), sink.binding())).await;
    }
    let mut source = harness.source(WINDOW).await;
    let mut received = receive(&mut source, 2).await;
    settle(received.remove(0));
    close(source).await;
    drop(received);
    let mut source = harness.source(WINDOW).await;
    let again = receive(&mut source, 1).await;
    assert_eq!(ids(&again), ["2"]);
    assert_eq!(again[0].via, Via::Door);
}

/// Live messages and redriven ones come through one source.
pub async fn live_and_door_come_together<H: BrokerHarness>(harness: &H) {
    let sink = harness.sink().await;
    publish(harness, [message("tea", "live")]).await;
    publish_by(&sink, &harness.door(), encode(message("tea", "redriven"), sink.binding())).await;
    let received = receive(&mut harness.source(WINDOW).await, 2).await;
    let mut seen: Vec<_> =
        received.iter().map(|received| (received.message.id.as_str(), received.via)).collect();
    seen.sort_unstable_by_key(|(id, _)| *id);
    assert_eq!(seen, [("live", Via::Live), ("redriven", Via::Door)]);
}
