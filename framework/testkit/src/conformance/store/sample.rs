//! Messages and shorthands for the cases.

use std::time::Duration;

use backstop_core::held::{ClaimedHead, Failure, Heads, HeldMessages, Holding, NewHeld};
use backstop_core::inbox::{Admission, Inbox, Limits, Unit};
use backstop_core::{Envelope, ErrorClass, Headers, MessageKey, Origin, Via};
use bytes::Bytes;

use crate::conformance::eventually;

pub(super) const CONSUMER: &str = "stock";
pub(super) const PLACE: &str = "orders";

/// A message with everything the traits ask for.
#[derive(Debug, Clone)]
pub(super) struct Sample {
    pub(super) consumer: String,
    pub(super) place: String,
    pub(super) ordering_key: Vec<u8>,
    pub(super) message_key: MessageKey,
    pub(super) envelope: Envelope,
    pub(super) origin: Origin,
    pub(super) via: Via,
}

/// Message `id` of `key`.
pub(super) fn sample(key: &str, id: &str) -> Sample {
    let headers: Headers = [("ce_id", Some(id.to_owned()))].into_iter().collect();
    Sample {
        consumer: CONSUMER.to_owned(),
        place: PLACE.to_owned(),
        ordering_key: key.as_bytes().to_vec(),
        message_key: MessageKey::new("/orders", id.as_bytes()),
        envelope: Envelope {
            key: Some(Bytes::from(key.to_owned())),
            headers,
            body: Some(Bytes::from_static(b"{\"sku\":\"tea\"}")),
        },
        origin: Origin::Kafka { topic: PLACE.to_owned(), partition: 3, offset: 17, timestamp: Some(1_234) },
        via: Via::Live,
    }
}

impl Sample {
    pub(super) fn unit(&self) -> Unit<'_> {
        Unit {
            consumer: &self.consumer,
            place: &self.place,
            ordering_key: &self.ordering_key,
            message_key: &self.message_key,
        }
    }

    pub(super) fn new_held(&self) -> NewHeld<'_> {
        NewHeld { unit: self.unit(), envelope: &self.envelope, origin: &self.origin, via: self.via }
    }

    pub(super) fn of_consumer(mut self, consumer: &str) -> Self {
        self.consumer = consumer.to_owned();
        self
    }

    pub(super) fn in_place(mut self, place: &str) -> Self {
        self.place = place.to_owned();
        self
    }
}

/// A failure after `attempts`, due again after `due_in`.
pub(super) fn failure(attempts: u32, due_in: Duration) -> Failure {
    let error = format!("attempt {attempts} failed");
    Failure {
        attempts,
        throttled: 0,
        class: ErrorClass::Transient,
        error,
        due_in,
        condemned: None,
        crashes: 0,
    }
}

/// Due at once.
pub(super) const NOW: Duration = Duration::ZERO;

/// Not due while the case runs.
pub(super) const LATER: Duration = Duration::from_secs(3_600);

/// Time enough for everybody.
pub(super) fn limits() -> Limits {
    Limits { lock: Duration::from_secs(20), handler: Duration::from_secs(30) }
}

/// Waits for locks for half a second only.
pub(super) fn short_limits() -> Limits {
    Limits { lock: Duration::from_millis(500), handler: Duration::from_secs(30) }
}

/// What `begin` answered, without its transaction, which is rolled back.
pub(super) async fn answer<S: Inbox>(store: &S, message: &Sample) -> &'static str {
    match store.begin(message.unit(), limits()).await.expect("the database answers") {
        Admission::Fresh(tx) => {
            store.rollback(tx).await;
            "fresh"
        }
        Admission::Duplicate => "duplicate",
        Admission::Held => "held",
        Admission::Busy => "busy",
    }
}

/// The transaction of a message that must be fresh.
pub(super) async fn begin<S: Inbox>(store: &S, message: &Sample) -> S::Tx {
    match store.begin(message.unit(), limits()).await.expect("the database answers") {
        Admission::Fresh(tx) => tx,
        Admission::Duplicate => panic!("{} is a duplicate", message.message_key),
        Admission::Held => panic!("the key of {} is held", message.message_key),
        Admission::Busy => panic!("{} is busy", message.message_key),
    }
}

/// Handles a fresh message.
pub(super) async fn handle<S: Inbox>(store: &S, message: &Sample) {
    let tx = begin(store, message).await;
    store.commit(tx).await.expect("the commit is proved");
}

pub(super) async fn is_handled<S: Inbox>(store: &S, message: &Sample) -> bool {
    store.is_handled(&message.consumer, &message.message_key).await.expect("the database answers")
}

/// Holds a message that failed once, due at once.
pub(super) async fn hold<S: HeldMessages>(store: &S, message: &Sample) {
    let holding = store.hold(message.new_held(), &failure(1, NOW)).await.expect("it is held");
    assert_eq!(holding, Holding::Stored);
}

/// Appends a message behind others of its key.
pub(super) async fn append<S: HeldMessages>(store: &S, message: &Sample) {
    let holding = store.append(message.new_held()).await.expect("it is appended");
    assert_eq!(holding, Holding::Stored);
}

/// The next due head, if there is one now, sound or not.
pub(super) async fn try_claim<S: HeldMessages>(store: &S, consumer: &str) -> Option<ClaimedHead<S::Tx>> {
    let sound = store.claim(consumer, limits(), Heads::Sound).await.expect("the database answers");
    if sound.is_some() {
        return sound;
    }
    store.claim(consumer, limits(), Heads::Doubtful).await.expect("the database answers")
}

/// Waits for a head to fall due.
pub(super) async fn claim<S: HeldMessages>(store: &S) -> ClaimedHead<S::Tx> {
    eventually(|| try_claim(store, CONSUMER)).await
}

/// Claims the next due head, which must be this message, and finishes it.
pub(super) async fn run_head<S: HeldMessages>(store: &S, expected: &Sample) {
    let claimed = claim(store).await;
    assert_eq!(claimed.head.message_key, expected.message_key, "the head is another message");
    store.finish(CONSUMER, claimed.tx, &claimed.head).await.expect("the commit is proved");
}

pub(super) async fn held_count<S: HeldMessages>(store: &S, consumer: &str) -> u64 {
    store.summary(consumer).await.expect("the database answers").messages
}
