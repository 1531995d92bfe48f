//! Dead letters in numbers, as consumers write them.

use backstop::{Destination, Envelope, names};
use backstop_core::sink::{Publisher, Refused};
use backstop_kafka::{KafkaPublisher, KafkaSettings};
use backstop_rabbitmq::{RabbitPublisher, RabbitSettings};
use uuid::Uuid;

use crate::program::Broker;
use crate::servers;

/// The id of the letter `n`.
pub fn id(n: usize) -> String {
    Uuid::new_v5(&Uuid::NAMESPACE_OID, &n.to_be_bytes()).to_string()
}

/// The letter `n`, one of as many groups as there are numbers for `group`. Its body is some 250 bytes long.
pub fn letter(n: usize, group: usize) -> Envelope {
    let headers = [
        (names::DEAD_LETTER_ID, id(n)),
        (names::MESSAGE_KEY, format!("/orders|{n}")),
        (names::CONSUMER, "stock".to_owned()),
        (names::REASON, "exhausted".to_owned()),
        (names::ERROR_CLASS, "transient".to_owned()),
        (names::ERROR_TYPE, "stock::Missing".to_owned()),
        (names::ERROR_MESSAGE, format!("warehouse {group} does not answer")),
        (names::FINGERPRINT, format!("fingerprint-{group}")),
        (names::ATTEMPTS, "6".to_owned()),
        (names::FIRST_FAILED_AT, "2026-01-02T03:04:05.678Z".to_owned()),
        (names::DEAD_AT, "2026-01-02T03:05:05.678Z".to_owned()),
        (names::ORIGINAL_TOPIC, "orders".to_owned()),
        ("tenant", format!("tenant-{}", n % 50)),
    ];
    let pad = "x".repeat(220);
    Envelope {
        key: Some(format!("key-{}", n % 1_000).into()),
        headers: headers.into_iter().map(|(name, value)| (name, Some(value))).collect(),
        body: Some(format!("{{\"n\":\"{n:09}\",\"pad\":\"{pad}\"}}").into()),
    }
}

/// Publishes letters, many at once, each confirmed.
///
/// # Panics
/// When the broker does not take one.
pub async fn publish(broker: Broker, letters: impl IntoIterator<Item = (String, Envelope)>) {
    let mut publisher: Box<dyn Publisher> = match broker {
        Broker::RabbitMq => {
            let settings = RabbitSettings::parse(&servers::amqp_url()).expect("an AMQP URL");
            let unordered = RabbitPublisher::builder(settings).ordering(backstop_rabbitmq::Ordering::None);
            Box::new(unordered.start().expect("usual settings"))
        }
        _ => Box::new(KafkaPublisher::new(KafkaSettings::new(servers::kafka()))),
    };
    let (mut under_way, mut confirmations) = (0, Vec::new());
    for (ticket, (place, letter)) in (0..).zip(letters) {
        let (destination, mut envelope) = (Destination::new(place), letter);
        loop {
            match publisher.submit(ticket, &destination, envelope) {
                Ok(()) => break,
                Err(Refused::Full(back)) => envelope = back,
                Err(Refused::Failed(error)) => panic!("publish to {destination:?}: {error}"),
            }
            publisher.confirmations(&mut confirmations).await;
            under_way -= confirmed(&mut confirmations);
        }
        under_way += 1;
    }
    while under_way > 0 {
        publisher.confirmations(&mut confirmations).await;
        under_way -= confirmed(&mut confirmations);
    }
}

fn confirmed(confirmations: &mut Vec<backstop_core::sink::Confirmation>) -> usize {
    let all = confirmations.drain(..).map(|confirmation| confirmation.result.expect("the broker takes it"));
    all.count()
}
