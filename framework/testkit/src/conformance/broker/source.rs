//! What a source hands over.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use backstop_core::cloudevents::encode;
use backstop_core::sink::Sink;
use backstop_core::source::{Settlement, Source};
use backstop_core::{Identity, MessageKey, Via, names};
use bytes::Bytes;

use super::BrokerHarness;
use super::sample::*;
use crate::conformance::needs;

/// Every field of a message comes back, with its identity and where it was.
pub async fn a_message_survives<H: BrokerHarness>(harness: &H) {
    let mut sent = message("tea", "1").subject("order-7");
    sent.time = "2026-11-01T10:00:00Z".parse().ok();
    publish(harness, [sent.clone()]).await;
    let (_source, received) = receive_one(harness).await;
    let found = received.message;
    assert_eq!((&found.id, &found.source, &found.kind), (&sent.id, &sent.source, &sent.kind));
    assert_eq!((&found.subject, &found.time), (&sent.subject, &sent.time));
    assert_eq!((&found.key, &found.content_type), (&sent.key, &sent.content_type));
    assert_eq!(found.body, sent.body);
    assert_eq!(received.identity, Identity::Declared(MessageKey::new("/orders", b"1")));
    assert_eq!(received.via, Via::Live);
    assert_eq!(received.origin.place(), harness.place());
}

/// Header values are bytes, and empty ones stay.
pub async fn headers_survive<H: BrokerHarness>(harness: &H) {
    let bytes: Vec<u8> = (0..=255).collect();
    let sent = message("tea", "1").header("tenant", "a").header("bytes", bytes.clone()).header("empty", "");
    publish(harness, [sent]).await;
    let (_source, received) = receive_one(harness).await;
    let headers = &received.message.headers;
    assert_eq!(headers.get_str("tenant"), Some("a"));
    assert_eq!(headers.get("bytes"), Some(&Bytes::from(bytes)));
    assert_eq!(headers.get_str("empty"), Some(""));
}

/// Headers of one name keep their number and order.
pub async fn repeated_headers_survive<H: BrokerHarness>(harness: &H) {
    needs!(H::CAPABILITIES, repeated_headers);
    let sent = message("tea", "1").header("x", "b").header("y", "c").header("x", "a").header("x", "b");
    publish(harness, [sent]).await;
    let (_source, received) = receive_one(harness).await;
    let named = received.message.headers.iter().filter(|(name, _)| *name == "x");
    let values: Vec<_> = named.map(|(_, value)| value.cloned()).collect();
    assert_eq!(values, ["b", "a", "b"].map(|value| Some(Bytes::from_static(value.as_bytes()))));
}

/// A header without a value stays one.
pub async fn null_headers_survive<H: BrokerHarness>(harness: &H) {
    needs!(H::CAPABILITIES, null_headers);
    let mut sent = message("tea", "1");
    sent.headers.append_null("absent");
    publish(harness, [sent]).await;
    let (_source, received) = receive_one(harness).await;
    let headers: Vec<_> = received.message.headers.iter().filter(|(name, _)| *name == "absent").collect();
    assert_eq!(headers, [("absent", None)]);
}

/// A tombstone stays one.
pub async fn a_tombstone_survives<H: BrokerHarness>(harness: &H) {
    needs!(H::CAPABILITIES, tombstones);
    let mut sent = message("tea", "1");
    sent.body = None;
    publish(harness, [sent]).await;
    let (_source, received) = receive_one(harness).await;
    assert_eq!(received.message.body, None);
}

/// An empty body is not a tombstone, and every byte of others is kept, of large ones too.
pub async fn bodies_survive<H: BrokerHarness>(harness: &H) {
    let large: Vec<u8> = (0..512 << 10).map(|n: u32| (n % 251) as u8).collect();
    for (id, body) in [("empty", Vec::new()), ("nul", vec![0]), ("large", large)] {
        let mut sent = message("tea", id);
        sent.body = Some(body.clone().into());
        publish(harness, [sent]).await;
        let (source, received) = receive_one(harness).await;
        assert_eq!(received.message.id, id);
        assert!(received.message.body == Some(body.into()), "the body {id} has changed");
        settle(received);
        close(source).await;
    }
}

/// A key is bytes.
pub async fn a_binary_key_survives<H: BrokerHarness>(harness: &H) {
    needs!(H::CAPABILITIES, binary_keys);
    let sent = message("", "1").key(vec![0, 255, 10]);
    publish(harness, [sent]).await;
    let (_source, received) = receive_one(harness).await;
    assert_eq!(received.message.key, Some(Bytes::from_static(&[0, 255, 10])));
}

/// A message without a key has none.
pub async fn no_key_stays_none<H: BrokerHarness>(harness: &H) {
    let mut sent = message("", "1");
    sent.key = None;
    publish(harness, [sent]).await;
    let (_source, received) = receive_one(harness).await;
    assert_eq!(received.message.key, None);
}

/// F83: every broker.
/// A message without an id is never given a random one: redelivery finds the same identity, or none.
pub async fn no_id_is_never_made_up<H: BrokerHarness>(harness: &H) {
    let sink = harness.sink().await;
    let mut envelope = encode(message("tea", "1"), sink.binding());
    envelope.headers.remove_if(|name| name.ends_with("id") || name.ends_with("Id"));
    for _ in 0..2 {
        publish_by(&sink, &harness.place(), envelope.clone()).await;
    }
    let mut seen = Vec::new();
    for _ in 0..2 {
        let mut source = harness.source(WINDOW).await;
        let received = receive(&mut source, 2).await;
        seen.push(received.iter().map(|received| received.identity.clone()).collect::<Vec<_>>());
        drop(received);
        close(source).await;
    }
    assert_eq!(seen[0], seen[1]);
    if H::CAPABILITIES.coordinates_identity {
        assert!(matches!(seen[0][0], Identity::Coordinates(_)), "{seen:?}");
        assert_ne!(seen[0][0], seen[0][1]);
    } else {
        assert_eq!(seen[0], [Identity::Missing, Identity::Missing]);
    }
}

/// The messages of each key come in the order in which they were published.
pub async fn keys_keep_their_order<H: BrokerHarness>(harness: &H) {
    const KEYS: usize = 12;
    const EACH: usize = 10;
    let all = (0..EACH)
        .flat_map(|n| (0..KEYS).map(move |key| message(&format!("key {key}"), &format!("{key}/{n}"))));
    publish(harness, all).await;
    let mut source = harness.source(KEYS * EACH).await;
    let mut by_key = BTreeMap::<Bytes, Vec<String>>::new();
    for received in receive(&mut source, KEYS * EACH).await {
        by_key
            .entry(received.message.key.clone().unwrap_or_default())
            .or_default()
            .push(received.message.id.clone());
        settle(received);
    }
    for key in 0..KEYS {
        let expected: Vec<String> = (0..EACH).map(|n| format!("{key}/{n}")).collect();
        assert_eq!(by_key[format!("key {key}").as_bytes()], expected);
    }
}

/// A call of `next` that is dropped, as in a select, loses nothing.
pub async fn next_is_cancel_safe<H: BrokerHarness>(harness: &H) {
    publish(harness, numbered("tea", 30)).await;
    let mut source = harness.source(3).await;
    let mut seen = Vec::new();
    while seen.len() < 30 {
        let Ok(batch) = tokio::time::timeout(Duration::from_micros(300), batch(&mut source)).await else {
            continue;
        };
        for received in batch {
            seen.push(received.message.id.clone());
            settle(received);
        }
    }
    let expected: Vec<String> = (1..=30).map(|n| n.to_string()).collect();
    assert_eq!(seen, expected);
}

/// Messages of one stretch of reading have one epoch, and those of the next another.
pub async fn epochs_tell_stretches_apart<H: BrokerHarness>(harness: &H) {
    publish(harness, numbered("tea", 3)).await;
    let mut epochs = Vec::new();
    for _ in 0..2 {
        let mut source = harness.source(WINDOW).await;
        let received = receive(&mut source, 3).await;
        let of_one: BTreeSet<u64> = received.iter().map(|received| received.settlement.epoch()).collect();
        assert_eq!(of_one.len(), 1, "{of_one:?}");
        epochs.push(of_one);
        drop(received);
        close(source).await;
    }
    assert_ne!(epochs[0], epochs[1]);
}

/// The source says what it reads, without doors.
pub async fn a_source_describes_itself<H: BrokerHarness>(harness: &H) {
    let source = harness.source(WINDOW).await;
    let info = source.describe();
    assert_eq!(info.places, [harness.place()]);
    assert_eq!(info.group, harness.group());
    assert!(["kafka", "rabbitmq", "memory"].contains(&info.system));
    close(source).await;
}

/// Headers of ours on a place that is not ours are a stranger's: they name neither identity nor origin.
pub async fn forged_headers_do_not_count<H: BrokerHarness>(harness: &H) {
    let forged = message("tea", "1")
        .header(names::MESSAGE_KEY, "/orders|other")
        .header(names::ORIGINAL_TOPIC, "elsewhere")
        .header(names::ORIGINAL_PARTITION, "0")
        .header(names::ORIGINAL_OFFSET, "0")
        .header(names::ORIGINAL_QUEUE, "elsewhere");
    publish(harness, [forged]).await;
    let (_source, received) = receive_one(harness).await;
    assert_eq!(received.identity, Identity::Declared(MessageKey::new("/orders", b"1")));
    assert_eq!(received.via, Via::Live);
    assert_eq!(received.origin.place(), harness.place());
    assert_eq!(received.message.headers.get_str(names::MESSAGE_KEY), Some("/orders|other"), "it is data");
}
