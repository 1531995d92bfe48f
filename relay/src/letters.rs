//! A message that was found on a dead-letter topic or queue, as a letter of the ledger.
//!
//! A letter that Backstop wrote carries its identity, its story and, by the name of the place where it was found, its
//! door. A stranger's letter is kept just the same, with what its [dialect](crate::dialects) tells, but has no door. Its identity is derived, so that reading it twice does not make two of it:
//!
//! - Kafka: from topic, partition and offset;
//! - RabbitMQ, which has no coordinates: from the queue and the content, without what the broker says of the delivery.
//!   Two letters of strangers that are equal in headers, key and body therefore count as one.

use backstop_core::dead_letter;
use backstop_core::fingerprint::fingerprint;
use backstop_core::ledger::Letter;
use backstop_core::names;
use backstop_core::report::{cut, escaped};
use backstop_core::{Envelope, Message, Origin};
use backstop_rabbitmq::properties;
use uuid::Uuid;

use crate::dialects::{self, Told};

/// Namespace of the ids of strangers' letters; a constant of Backstop's own.
const NAMESPACE: Uuid = Uuid::from_u128(0x2f0f_5a0a_93f7_4b0e_8f0a_61d0_5d0c_77e4);

/// Longest name in a column, in bytes.
const MAX_NAME: usize = 512;
/// Longest text in a column, in bytes.
const MAX_TEXT: usize = 2 * 1024;
/// Most attempts that a letter may claim.
const MAX_ATTEMPTS: i64 = 1_000_000_000;

/// Headers that differ from one delivery of the same letter to the next: RabbitMQ's counts, and the exact types of
/// all headers, these counts included. `x-death` is none of them: it changes only when a message dies once more, and
/// keeps apart letters of equal content.
const OF_A_DELIVERY: [&str; 3] = ["x-delivery-count", "x-acquired-count", properties::TYPED];

/// The letter that `message`, found at `origin`, is.
///
/// Headers are a stranger's word: texts are escaped and cut, numbers clamped, times that cannot be read left out.
pub fn letter(message: Message, origin: &Origin) -> Letter {
    let envelope = Envelope { key: message.key, headers: message.headers, body: message.body };
    let found_in = name(origin.place());
    let headers = &envelope.headers;
    let ours = headers.get_str(names::DEAD_LETTER_ID).and_then(|id| Uuid::try_parse(id).ok());
    let id = ours.unwrap_or_else(|| derived_id(&envelope, origin));
    let mut letter = Letter::new(id.to_string(), found_in, Envelope::default());
    if let Some(told) = dialects::read(headers) {
        tell(&mut letter, told);
    }
    if ours.is_some() {
        letter.door = dead_letter::door_of_letters(origin.place());
    } else {
        letter.fingerprint = Some(group(&letter));
    }
    letter.envelope = envelope;
    letter
}

/// What the headers say, in bounds.
fn tell(letter: &mut Letter, told: Told) {
    let short = |text: Option<String>| text.as_deref().map(name);
    letter.message_key = told.message_key;
    letter.consumer = short(told.consumer);
    letter.place = short(told.place);
    letter.reason = short(told.reason);
    letter.class = short(told.class);
    letter.error_type = short(told.error_type);
    letter.error = told.error.as_deref().map(text);
    letter.fingerprint = short(told.fingerprint);
    letter.attempts = told.attempts.map(|attempts| attempts.clamp(0, MAX_ATTEMPTS));
    letter.generation = told.generation;
    letter.first_failed_at = told.first_failed_at;
    letter.dead_at = told.dead_at;
}

/// The group of a stranger's letter. One that says neither who nor why belongs to the place where it was found.
fn group(letter: &Letter) -> String {
    let who = letter.consumer.as_deref().or(letter.place.as_deref()).unwrap_or(&letter.found_in);
    let (kind, error) = (letter.error_type.as_deref(), letter.error.as_deref());
    fingerprint(who, kind.unwrap_or_default(), error.unwrap_or_default(), letter.reason.as_deref())
}

fn name(value: &str) -> String {
    cut(&escaped(value), MAX_NAME)
}

fn text(value: &str) -> String {
    cut(&escaped(value), MAX_TEXT)
}

fn derived_id(envelope: &Envelope, origin: &Origin) -> Uuid {
    let mut name = Vec::new();
    match origin {
        Origin::Kafka { topic, partition, offset, .. } => {
            part(&mut name, Some(b"kafka"));
            part(&mut name, Some(topic.as_bytes()));
            name.extend(partition.to_be_bytes());
            name.extend(offset.to_be_bytes());
        }
        other => {
            part(&mut name, Some(other.place().as_bytes()));
            part(&mut name, envelope.key.as_deref());
            part(&mut name, envelope.body.as_deref());
            let content = envelope.headers.iter().filter(|(header, _)| !OF_A_DELIVERY.contains(header));
            for (header, value) in content {
                part(&mut name, Some(header.as_bytes()));
                part(&mut name, value.map(AsRef::as_ref));
            }
        }
    }
    Uuid::new_v5(&NAMESPACE, &name)
}

/// Appends a part with its length, so that no two lists of parts share their bytes.
fn part(name: &mut Vec<u8>, part: Option<&[u8]>) {
    match part {
        Some(bytes) => {
            name.push(1);
            name.extend((bytes.len() as u64).to_be_bytes());
            name.extend(bytes);
        }
        None => name.push(0),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use backstop_core::message::Destination;
    use backstop_core::sink::Sink;
    use backstop_core::source::Source;
    use backstop_rabbitmq::{RabbitSettings, RabbitSink, RabbitSource};

    use super::*;

    fn kafka(offset: i64) -> Origin {
        Origin::Kafka { topic: "orders.stock.dlq".into(), partition: 1, offset, timestamp: None }
    }

    fn rabbit(queue: &str) -> Origin {
        Origin::RabbitMq {
            exchange: String::new(),
            routing_key: queue.into(),
            queue: queue.into(),
            redelivered: false,
        }
    }

    fn message(headers: &[(&str, &[u8])]) -> Message {
        let mut message = Message::new("order.placed").key("k").body("text/plain", "hello");
        for (name, value) in headers {
            message.headers.append(*name, value.to_vec());
        }
        message
    }

    const ID: &[u8] = b"6d1b25c8-52f1-4f0e-9c4b-7f6a3f0c8b11";

    #[test]
    fn our_own_letter_tells_its_story_and_has_a_door() {
        let letter = letter(
            message(&[
                ("backstop-dead-letter-id", ID),
                ("backstop-message-key", b"/orders|7"),
                ("backstop-consumer", b"stock"),
                ("backstop-original-topic", b"orders"),
                ("backstop-original-partition", b"3"),
                ("backstop-original-offset", b"17"),
                ("backstop-attempts", b"6"),
                ("backstop-redrive-generation", b"2"),
                ("backstop-dead-at", b"2026-01-02T03:04:05.678Z"),
            ]),
            &kafka(4),
        );
        assert_eq!(letter.id.as_bytes(), ID);
        assert_eq!(letter.door.as_deref(), Some("orders.stock.redrive"));
        assert_eq!((letter.place.as_deref(), letter.consumer.as_deref()), (Some("orders"), Some("stock")));
        assert_eq!((letter.attempts, letter.generation), (Some(6), 2));
        assert!(letter.dead_at.is_some());
        assert_eq!(letter.envelope.body.as_deref(), Some(&b"hello"[..]));
    }

    #[test]
    fn a_strangers_letter_has_no_door_and_one_identity_per_coordinates() {
        let of = |offset| letter(message(&[("kafka_dlt-original-topic", b"orders")]), &kafka(offset));
        assert_eq!(of(4).id, of(4).id);
        assert_ne!(of(4).id, of(5).id);
        assert_eq!((of(4).door, of(4).place.as_deref()), (None, Some("orders")));
        let stranger = message(&[("backstop-dead-letter-id", b"not a uuid"), ("backstop-reason", b"forged")]);
        let stranger = letter(stranger, &kafka(4));
        assert_eq!((stranger.id, stranger.door, stranger.reason), (of(4).id, None, None));
        assert_eq!(of(4).fingerprint, of(5).fingerprint, "letters of strangers have groups, too");
        assert_ne!(of(4).fingerprint, stranger.fingerprint);
    }

    #[test]
    fn on_rabbitmq_a_strangers_identity_is_its_queue_and_content() {
        let of = |queue, headers: &[(&str, &[u8])]| letter(message(headers), &rabbit(queue)).id;
        assert_eq!(of("a.dlq", &[("x", b"1")]), of("a.dlq", &[("x", b"1")]));
        let different =
            [of("a.dlq", &[]), of("b.dlq", &[]), of("a.dlq", &[("x", b"1")]), of("a.dlq", &[("x1", b"")])];
        assert_eq!(different.iter().collect::<std::collections::HashSet<_>>().len(), 4);
    }

    /// A broker that delivers again says so in headers, which do not make another letter of it.
    #[test]
    fn how_often_it_was_delivered_is_no_part_of_a_strangers_identity() {
        let of = |headers: &[(&str, &[u8])]| letter(message(headers), &rabbit("a.dlq")).id;
        let first = of(&[("x", b"1")]);
        let typed = br#"{"x-delivery-count":{"l":1}}"#;
        assert_eq!(of(&[("x", b"1"), ("x-delivery-count", b"1"), ("amqp:typed", typed)]), first);
        assert_eq!(of(&[("x-acquired-count", b"2"), ("x", b"1"), ("x-delivery-count", b"2")]), first);
        let died = |time: &[u8]| of(&[("x", b"1"), ("x-death", time)]);
        assert_ne!(died(b"[{time: 1}]"), died(b"[{time: 2}]"), "the same content, dead twice");
    }

    #[tokio::test]
    async fn a_strangers_letter_that_is_delivered_again_is_the_same_letter() {
        let variable = "BACKSTOP_TEST_AMQP_URL";
        let url = std::env::var(variable)
            .unwrap_or_else(|_| panic!("{variable} is not set; run: eval \"$(tests/servers env)\""));
        let settings = RabbitSettings::parse(&url).expect("a URL");
        let queue = format!("backstop-test-letters-{}", Uuid::now_v7().simple());
        backstop_rabbitmq::declare_queue(&settings, &queue).await.expect("declared");
        let typed = br#"{"tries":{"I":3}}"#.to_vec();
        let headers = [("tries", Some(b"3".to_vec())), ("amqp:typed", Some(typed))];
        let envelope = Envelope { headers: headers.into_iter().collect(), ..Envelope::default() };
        let sink = RabbitSink::new(settings.clone());
        sink.publish(&Destination::new(&queue), envelope).await.expect("published");

        let mut source =
            RabbitSource::with_settings(settings.clone(), &queue).door(false).build().expect("a source");
        let mut letters = Vec::new();
        for _ in 0..3 {
            let next = tokio::time::timeout(Duration::from_secs(60), source.next());
            let batch = next.await.expect("delivered").expect("no error").expect("not the end");
            // dropped unsettled, it comes again
            letters.extend(batch.into_iter().map(|received| letter(received.message, &received.origin)));
        }
        let counts: Vec<_> =
            letters.iter().map(|letter| letter.envelope.headers.get_str("x-delivery-count")).collect();
        assert_eq!(counts[1..], [Some("1"), Some("2")], "the broker counts deliveries");
        assert!(letters.iter().all(|letter| letter.id == letters[0].id), "{letters:?}");
        backstop_rabbitmq::delete_queue(&settings, &queue).await.expect("deleted");
    }

    #[test]
    fn forged_and_odd_values_are_bounded() {
        let long = vec![b'x'; 100_000];
        let letter = letter(
            message(&[
                ("backstop-dead-letter-id", ID),
                ("backstop-consumer", b"a\0b\x1b[31m\n"),
                ("backstop-error-message", &long),
                ("backstop-error-type", &long),
                ("backstop-attempts", b"-9223372036854775808"),
                ("backstop-redrive-generation", b"4294967295"),
                ("backstop-dead-at", b"+262142-12-31T23:59:59Z"),
                ("backstop-message-key", &long),
                ("backstop-reason", &[0xff]),
            ]),
            &kafka(4),
        );
        assert_eq!(letter.consumer.as_deref(), Some("a\\u{0}b\\u{1b}[31m\\n"));
        assert!(letter.error.is_some_and(|text| text.len() <= MAX_TEXT));
        assert!(letter.error_type.is_some_and(|text| text.len() <= MAX_NAME));
        assert_eq!((letter.attempts, letter.generation), (Some(0), 1_000_000));
        assert_eq!((letter.dead_at, letter.message_key, letter.reason), (None, None, None));
    }
}
