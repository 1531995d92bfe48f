//! Receipts: what a consumer says of a redriven message, once its effects are committed.
//!
//! A receipt travels as a message of kind [`Receipt::KIND`] to the destination that the consumer's configuration
//! names, never to one that a header names. Its body is JSON:
//!
//! ```json
//! {
//!   "message_key": "/orders|7",
//!   "letter": "0f0e…",
//!   "consumer": "stock",
//!   "instance": "stock-7f9c-3b1d2a4e",
//!   "generation": 1,
//!   "redrive": "0197…",
//!   "outcome": "handled",
//!   "at": "2026-03-01T12:00:00Z"
//! }
//! ```
//!
//! `letter` and `redrive` are absent where the redriven message named none. Fields that a reader does not know are to be
//! ignored. A receipt may come twice, also with two outcomes: a message that was handled and is sent again is
//! `already-handled`.

use std::fmt;

use chrono::{DateTime, Datelike, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::identity::MessageKey;
use crate::message::{Headers, Message};
use crate::{dead_letter, names};

/// Namespace of receipts' ids; a constant of Backstop's own.
const NAMESPACE: Uuid = Uuid::from_u128(0x2f8a_9d07_41c3_4b6e_8e55_93a0_6bd1_c7f4);
/// Longest body of a receipt or report that is read.
pub(crate) const MAX_BODY: usize = 16 * 1024;
/// Longest consumer, instance, letter, redrive or version that is read, in bytes.
pub(crate) const MAX_TEXT: usize = 255;

/// What became of a redriven message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum ReceiptOutcome {
    /// Its handler ran, and its effects are committed.
    Handled,
    /// The consumer had handled it before: nothing was done.
    AlreadyHandled,
    /// Somebody let the consumer pass over it: nothing was done.
    Skipped,
    /// Somebody let go of its key: later messages of the key run, and this one may come again.
    Released,
}

impl ReceiptOutcome {
    /// Every outcome.
    pub const ALL: [Self; 4] = [Self::Handled, Self::AlreadyHandled, Self::Skipped, Self::Released];

    /// The outcome as receipts and columns spell it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Handled => "handled",
            Self::AlreadyHandled => "already-handled",
            Self::Skipped => "skipped",
            Self::Released => "released",
        }
    }

    /// The outcome of that name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|outcome| outcome.as_str() == name)
    }
}

impl fmt::Display for ReceiptOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A consumer's word on a redriven message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// Identity of the message.
    #[serde(with = "message_key")]
    pub message_key: MessageKey,
    /// The dead letter that was redriven; `None` where the redriven message does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub letter: Option<String>,
    /// The consumer.
    pub consumer: String,
    /// Which of its processes.
    pub instance: String,
    /// How often the message had been redriven when it came in: one more than the letter says.
    pub generation: u32,
    /// The redrive that sent it; `None` where the redriven message does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redrive: Option<String>,
    /// What became of it.
    pub outcome: ReceiptOutcome,
    /// When that was known, by the consumer's clock.
    pub at: DateTime<Utc>,
}

/// A message that is no receipt, or no report.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unreadable(pub(crate) String);

impl Receipt {
    /// The event type of receipts.
    pub const KIND: &'static str = "backstop.receipt.v1";

    /// Whether a message that came through the door was redriven, so that somebody waits for its receipt. One that was
    /// replayed was not.
    pub fn is_wanted(headers: &Headers) -> bool {
        [names::DEAD_LETTER_ID, names::REDRIVE_ID].iter().any(|name| headers.get(name).is_some())
            || dead_letter::generation(headers) > 0
    }

    /// A receipt of now for a message that came in with those headers, through the door.
    pub fn new(
        message_key: MessageKey,
        headers: &Headers,
        consumer: impl Into<String>,
        instance: impl Into<String>,
        outcome: ReceiptOutcome,
    ) -> Self {
        let text = |name: &str| headers.get_str(name).filter(|text| is_text(text)).map(str::to_owned);
        Self {
            message_key,
            letter: text(names::DEAD_LETTER_ID),
            consumer: consumer.into(),
            instance: instance.into(),
            generation: dead_letter::generation(headers),
            redrive: text(names::REDRIVE_ID),
            outcome,
            at: Utc::now(),
        }
    }

    /// The receipt's own id: the same for the same message, generation, redrive and outcome.
    pub fn id(&self) -> Uuid {
        let Self { message_key, consumer, generation, outcome, .. } = self;
        let redrive = self.redrive.as_deref().unwrap_or_default();
        let name = format!("{consumer}\0{message_key}\0{generation}\0{redrive}\0{outcome}");
        Uuid::new_v5(&NAMESPACE, name.as_bytes())
    }

    /// The message that carries it, keyed by the identity it speaks of.
    pub fn to_message(&self) -> Message {
        let mut message = Message::with_id(Self::KIND, self.id().to_string())
            .source(source(&self.consumer))
            .key(self.message_key.as_str().to_owned())
            .json(self)
            .expect("a receipt is JSON");
        message.time = Some(self.at);
        message
    }

    /// The receipt that a message carries.
    ///
    /// # Errors
    /// When it is of another kind, or does not read as one.
    pub fn from_message(message: &Message) -> Result<Self, Unreadable> {
        let receipt: Self = read(message, Self::KIND)?;
        let named = [Some(&receipt.consumer), Some(&receipt.instance), receipt.letter.as_ref()];
        let named = named.into_iter().chain([receipt.redrive.as_ref()]).flatten();
        check(named.map(String::as_str), receipt.at)?;
        Ok(receipt)
    }
}

/// Who a receipt or report is from, as a CloudEvents source.
pub(crate) fn source(consumer: &str) -> String {
    format!("/backstop/{consumer}")
}

/// The JSON of a message of that kind.
pub(crate) fn read<T: serde::de::DeserializeOwned>(message: &Message, kind: &str) -> Result<T, Unreadable> {
    if message.kind != kind {
        return Err(Unreadable(format!("its kind is not {kind}")));
    }
    match &message.body {
        None => Err(Unreadable("it has no body".into())),
        Some(body) if body.len() > MAX_BODY => Err(Unreadable(format!("it is over {MAX_BODY} bytes"))),
        Some(body) => serde_json::from_slice(body).map_err(|error| Unreadable(error.to_string())),
    }
}

/// Texts and times that every database stores, and that a page can show.
pub(crate) fn check<'a>(texts: impl Iterator<Item = &'a str>, at: DateTime<Utc>) -> Result<(), Unreadable> {
    if !(1970..=9999).contains(&at.year()) {
        return Err(Unreadable("its time is not of this era".into()));
    }
    for text in texts {
        if !is_text(text) {
            return Err(Unreadable(format!("a name in it is empty, over {MAX_TEXT} bytes, or not text")));
        }
    }
    Ok(())
}

fn is_text(text: &str) -> bool {
    !text.is_empty() && text.len() <= MAX_TEXT && !text.chars().any(char::is_control)
}

mod message_key {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    use crate::identity::MessageKey;

    pub(super) fn serialize<S: Serializer>(key: &MessageKey, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(key.as_str())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<MessageKey, D::Error> {
        let text = String::deserialize(deserializer)?;
        MessageKey::parse(&text).ok_or_else(|| D::Error::custom("not the identity of a message"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cloudevents::{Binding, decode, encode};
    use crate::origin::{Origin, Via};

    fn receipt() -> Receipt {
        let headers = [
            (names::REDRIVE_GENERATION, Some("3")),
            (names::REDRIVE_ID, Some("job-1")),
            (names::DEAD_LETTER_ID, Some("letter-1")),
        ];
        let key = MessageKey::new("/orders", b"7");
        Receipt::new(key, &headers.into_iter().collect(), "stock", "host-1", ReceiptOutcome::Handled)
    }

    #[test]
    fn a_receipt_survives_the_wire() {
        let sent = receipt();
        assert_eq!((sent.generation, sent.redrive.as_deref()), (3, Some("job-1")));
        let envelope = encode(sent.to_message(), Binding::Kafka);
        let origin = Origin::Kafka { topic: "receipts".into(), partition: 0, offset: 0, timestamp: None };
        let (message, _) = decode(envelope, &origin, Via::Live, None);
        assert_eq!(Receipt::from_message(&message), Ok(sent));
    }

    #[test]
    fn the_documented_form_is_the_form() {
        let mut receipt = receipt();
        receipt.at = DateTime::UNIX_EPOCH;
        let json = serde_json::to_value(&receipt).expect("a receipt is JSON");
        let documented = serde_json::json!({
            "message_key": "/orders|7", "letter": "letter-1", "consumer": "stock", "instance": "host-1",
            "generation": 3, "redrive": "job-1", "outcome": "handled", "at": "1970-01-01T00:00:00Z",
        });
        assert_eq!(json, documented);
        for outcome in ReceiptOutcome::ALL {
            assert_eq!(serde_json::to_value(outcome).expect("JSON"), outcome.as_str());
            assert_eq!(ReceiptOutcome::parse(outcome.as_str()), Some(outcome));
        }
    }

    #[test]
    fn a_repeated_receipt_has_the_same_id_and_another_outcome_has_another() {
        let (first, mut again) = (receipt(), receipt());
        again.at += chrono::TimeDelta::seconds(9);
        assert_eq!(first.id(), again.id());
        again.outcome = ReceiptOutcome::AlreadyHandled;
        assert_ne!(first.id(), again.id());
    }

    #[test]
    fn what_is_no_receipt_is_told_apart() {
        let with = |body: &str| receipt().to_message().body("application/json", body.to_owned());
        let changed = |from: &str, to: &str| {
            with(&serde_json::to_string(&receipt()).expect("a receipt is JSON").replace(from, to))
        };
        let foreign = Message::new("order.placed").body("application/json", "{}");
        let tombstone = Message { body: None, ..receipt().to_message() };
        let huge = with(&format!("\"{}\"", "x".repeat(MAX_BODY)));
        for message in [
            foreign,
            tombstone,
            huge,
            with("{}"),
            with("\u{1}"),
            changed("\"stock\"", "\"\""),
            changed("host-1", "a\\u0000b"),
            changed("/orders|7", "\\u0000"),
            changed("handled", "eaten"),
            changed("\"at\":\"2", "\"at\":\"-2"),
            changed("job-1", &"j".repeat(MAX_TEXT + 1)),
        ] {
            assert!(Receipt::from_message(&message).is_err(), "{:?}", message.body);
        }
        assert!(Receipt::from_message(&changed("{", "{\"later\":1,")).is_ok(), "unknown fields are ignored");
    }

    #[test]
    fn a_door_that_names_nothing_readable_leaves_it_out() {
        let headers = [(names::REDRIVE_ID, Some("a\0b"))].into_iter().collect();
        let key = MessageKey::new("", b"7");
        let receipt = Receipt::new(key, &headers, "stock", "host-1", ReceiptOutcome::AlreadyHandled);
        assert_eq!((receipt.redrive, receipt.letter, receipt.generation), (None, None, 0));
    }
}
