//! Dead letters: the original to the letter, in the place that belongs to the consumer.

use backstop_core::source::{Received, Source};
use backstop_core::{DeadLetter, DeadLetters, DeadReason, Envelope, ErrorClass, ErrorReport, Message, names};
use bytes::Bytes;
use chrono::Utc;

use super::BrokerHarness;
use super::sample::*;
use crate::conformance::needs;

/// The letter of a message that was received from the live place.
pub(super) fn letter_of<H: BrokerHarness>(harness: &H, received: &ReceivedOf<H>) -> DeadLetter {
    let Message { key, headers, body, .. } = received.message.clone();
    let error = std::io::Error::other("out of stock");
    DeadLetter {
        envelope: Envelope { key, headers, body },
        origin: received.origin.clone(),
        message_key: received.identity.key().cloned(),
        generation: 0,
        consumer: "reserve-stock".to_owned(),
        group: harness.group(),
        reason: DeadReason::Exhausted,
        class: ErrorClass::Transient,
        report: ErrorReport::new("reserve-stock", "io::Error", &error, None, str::to_owned),
        attempts: 6,
        first_failed_at: Utc::now(),
        dead_at: Utc::now(),
        host: "host-1".to_owned(),
        consumer_version: "1.2.3".to_owned(),
    }
}

/// Publishes a message, receives it, and quarantines it.
pub(super) async fn quarantined<H: BrokerHarness>(harness: &H, sent: Message) -> DeadLetter {
    publish(harness, [sent]).await;
    let (source, received) = receive_one(harness).await;
    let dead_letters = harness.dead_letters().await;
    dead_letters.prepare(&source.describe()).await.expect("the destination is there");
    let letter = letter_of(harness, &received);
    dead_letters.quarantine(&letter).await.expect("the broker confirms it");
    settle(received);
    close(source).await;
    letter
}

/// The first letter.
pub(super) async fn found<H: BrokerHarness>(harness: &H) -> ReceivedOf<H> {
    receive(&mut harness.letters().await, 1).await.remove(0)
}

/// Every header that was on the message is on the letter.
fn assert_kept<S>(letter: &DeadLetter, found: &Received<S>) {
    for (name, value) in letter.envelope.headers.iter() {
        let kept = found.message.headers.iter().any(|other| other == (name, value));
        assert!(kept, "header {name} is lost or changed");
    }
    assert_eq!(found.message.body, letter.envelope.body);
    assert_eq!(found.message.key, letter.envelope.key.clone().or_else(|| found.message.key.clone()));
}

/// A letter carries the original body, key and headers, and says why it is one.
pub async fn a_letter_keeps_the_original<H: BrokerHarness>(harness: &H) {
    let bytes: Vec<u8> = (0..=255).collect();
    let mut sent = message("tea", "1").header("tenant", "a").header("bytes", bytes.clone());
    sent.body = Some(bytes.into());
    let letter = quarantined(harness, sent).await;
    let found = found(harness).await;
    assert_kept(&letter, &found);
    let headers = &found.message.headers;
    assert_eq!(headers.get_str(names::MESSAGE_KEY), Some("/orders|1"));
    assert_eq!(headers.get_str(names::REASON), Some("exhausted"));
    assert_eq!(headers.get_str(names::ERROR_MESSAGE), Some("out of stock"));
    assert_eq!(headers.get_str(names::ATTEMPTS), Some("6"));
    assert_eq!(headers.get_str(names::DEAD_LETTER_ID), Some(letter.id().to_string().as_str()));
    let place = headers.get_str(names::ORIGINAL_TOPIC).or_else(|| headers.get_str(names::ORIGINAL_QUEUE));
    assert_eq!(place, Some(harness.place().as_str()));
}

/// A tombstone's letter is a tombstone.
pub async fn a_tombstones_letter_is_one<H: BrokerHarness>(harness: &H) {
    needs!(H::CAPABILITIES, tombstones);
    let mut sent = message("tea", "1");
    sent.body = None;
    quarantined(harness, sent).await;
    assert_eq!(found(harness).await.message.body, None);
}

/// An empty body stays an empty body.
pub async fn an_empty_body_stays<H: BrokerHarness>(harness: &H) {
    let mut sent = message("tea", "1");
    sent.body = Some(Bytes::new());
    quarantined(harness, sent).await;
    assert_eq!(found(harness).await.message.body, Some(Bytes::new()));
}

/// A quarantine that is repeated after a crash is the same letter.
pub async fn a_repeated_quarantine_is_the_same_letter<H: BrokerHarness>(harness: &H) {
    let letter = quarantined(harness, message("tea", "1")).await;
    let dead_letters = harness.dead_letters().await;
    dead_letters.quarantine(&letter).await.expect("the broker confirms it");
    let letters = receive(&mut harness.letters().await, 2).await;
    let id = |nth: usize| letters[nth].message.headers.get_str(names::DEAD_LETTER_ID).map(str::to_owned);
    assert!(id(0).is_some());
    assert_eq!(id(0), id(1));
}

/// Preparing twice, as every instance does at start-up, is fine.
pub async fn prepare_twice_is_fine<H: BrokerHarness>(harness: &H) {
    let source = harness.source(WINDOW).await;
    for _ in 0..2 {
        let dead_letters = harness.dead_letters().await;
        dead_letters.prepare(&source.describe()).await.expect("the destination is there");
    }
    close(source).await;
}
