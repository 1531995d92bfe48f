//! Held messages to the letter: what goes in comes out.

use backstop_core::{Headers, Origin, Via};
use bytes::Bytes;

use super::StoreHarness;
use super::sample::*;

/// Holds the message and claims it: everything must be as it was.
async fn round_trip<H: StoreHarness>(harness: &H, message: Sample) {
    let store = harness.store();
    hold(&store, &message).await;
    let head = claim(&store).await.head;
    assert_eq!(head.envelope, message.envelope);
    assert_eq!(head.origin, message.origin);
    assert_eq!(head.via, message.via);
    assert_eq!(head.place, message.place);
    assert_eq!(head.ordering_key, message.ordering_key);
    assert_eq!(head.message_key, message.message_key);
}

async fn with_headers<H: StoreHarness>(harness: &H, headers: Headers) {
    let mut message = sample("tea", "1");
    message.envelope.headers = headers;
    round_trip(harness, message).await;
}

async fn with_body<H: StoreHarness>(harness: &H, body: Option<Bytes>) {
    let mut message = sample("tea", "1");
    message.envelope.body = body;
    round_trip(harness, message).await;
}

/// A plain message survives, with where it came from.
pub async fn a_plain_message<H: StoreHarness>(harness: &H) {
    round_trip(harness, sample("tea", "1")).await;
}

/// A RabbitMQ origin survives.
pub async fn a_queue_as_origin<H: StoreHarness>(harness: &H) {
    let origin = Origin::RabbitMq {
        exchange: "shop".to_owned(),
        routing_key: "order.placed".to_owned(),
        queue: PLACE.to_owned(),
        redelivered: true,
    };
    round_trip(harness, Sample { origin, via: Via::Door, ..sample("tea", "1") }).await;
}

/// A header without a value stays one, and is not an empty one.
pub async fn a_header_without_a_value<H: StoreHarness>(harness: &H) {
    let mut headers = Headers::default();
    headers.append_null("absent");
    headers.append("empty", "");
    with_headers(harness, headers).await;
}

/// Headers of one name keep their number and order.
pub async fn headers_of_one_name<H: StoreHarness>(harness: &H) {
    let mut headers = Headers::default();
    for (name, value) in [("b", "1"), ("a", "2"), ("b", "3"), ("", "4"), ("b", "1")] {
        headers.append(name, value);
    }
    with_headers(harness, headers).await;
}

/// Header values that are not UTF-8 keep their bytes.
pub async fn binary_header_values<H: StoreHarness>(harness: &H) {
    let mut headers = Headers::default();
    headers.append("bytes", (0..=255).collect::<Vec<u8>>());
    headers.append("nul", "\0");
    headers.append("ключ \" \\ 🍵", "value");
    with_headers(harness, headers).await;
}

/// A tombstone stays one.
pub async fn a_tombstone<H: StoreHarness>(harness: &H) {
    with_body(harness, None).await;
}

/// An empty body is not a tombstone.
pub async fn an_empty_body<H: StoreHarness>(harness: &H) {
    with_body(harness, Some(Bytes::new())).await;
}

/// Every byte of a body is kept.
pub async fn a_binary_body<H: StoreHarness>(harness: &H) {
    with_body(harness, Some((0..=255).collect::<Vec<u8>>().into())).await;
}

/// A body of 1 MiB survives.
pub async fn a_body_of_one_mebibyte<H: StoreHarness>(harness: &H) {
    let body: Vec<u8> = (0..1 << 20).map(|n: u32| (n % 251) as u8).collect();
    with_body(harness, Some(body.into())).await;
}

/// A message without a key has none afterwards, and waits under its stand-in.
pub async fn no_key<H: StoreHarness>(harness: &H) {
    let mut message = sample("\0partition/3", "1");
    message.envelope.key = None;
    round_trip(harness, message).await;
}

/// An empty key is not a missing one.
pub async fn an_empty_key<H: StoreHarness>(harness: &H) {
    round_trip(harness, sample("", "1")).await;
}

/// A key is bytes: NULs and what is not UTF-8 are kept, and keep keys apart.
pub async fn a_binary_key<H: StoreHarness>(harness: &H) {
    let mut message = sample("tea", "1");
    message.ordering_key = vec![0, 255, 0, 39, 92];
    message.envelope.key = Some(Bytes::from(message.ordering_key.clone()));
    let mut other = sample("tea", "2");
    other.ordering_key = vec![0, 255, 0, 39];
    round_trip(harness, message).await;
    assert_eq!(answer(&harness.store(), &other).await, "fresh");
}

/// Texts of errors are kept as they are.
pub async fn an_odd_error_text<H: StoreHarness>(harness: &H) {
    use backstop_core::held::HeldMessages;
    let (store, message) = (harness.store(), sample("tea", "1"));
    let mut failed = failure(1, NOW);
    failed.error = "it's \"so\" \\ ключ\n🍵".to_owned();
    store.hold(message.new_held(), &failed).await.expect("it is held");
    assert_eq!(claim(&store).await.head.error, Some(failed.error));
}
