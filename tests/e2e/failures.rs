//! What fails, and where it ends.

use std::collections::HashMap;
use std::time::Duration;

use backstop::dead_letter::{rabbitmq_letter_exchange, rabbitmq_letters};
use backstop::{Envelope, Message, names};
use backstop_tests::apply::Fail;
use backstop_tests::database::Database;
use backstop_tests::program::{Broker, ConsumerConfig};
use backstop_tests::workload::{self, Placed, Publisher};
use backstop_tests::{letters, servers, wait};
use lapin::options::{ExchangeDeclareOptions, ExchangeDeleteOptions, QueueBindOptions};
use lapin::types::FieldTable;
use lapin::{Connection, ConnectionProperties, ExchangeKind};

const PATIENCE: Duration = Duration::from_secs(90);

/// Every header that a letter must carry, whatever its origin.
const HEADERS: [&str; 14] = [
    names::DEAD_LETTER_ID,
    names::REASON,
    names::ERROR_CLASS,
    names::ERROR_TYPE,
    names::ERROR_MESSAGE,
    names::ERROR_CHAIN,
    names::FINGERPRINT,
    names::ATTEMPTS,
    names::CONSUMER,
    names::FIRST_FAILED_AT,
    names::DEAD_AT,
    names::HOST,
    names::VERSION,
    names::CONSUMER_VERSION,
];
const OF_KAFKA: [&str; 7] = [
    names::ORIGINAL_TOPIC,
    names::ORIGINAL_PARTITION,
    names::ORIGINAL_OFFSET,
    names::ORIGINAL_TIMESTAMP,
    names::kip1191::TOPIC,
    names::kip1191::GROUP,
    names::kip1191::DELIVERY_COUNT,
];
const OF_RABBITMQ: [&str; 3] = [names::ORIGINAL_EXCHANGE, names::ORIGINAL_ROUTING_KEY, names::ORIGINAL_QUEUE];

/// What goes wrong with every seventh event; key order must hold through it.
fn trouble(n: usize) -> Option<Fail> {
    match n % 35 {
        7 => Some(Fail::Permanent),
        14 => Some(Fail::Always),
        21 => Some(Fail::Transient(3)),
        28 => Some(Fail::Panic),
        _ => None,
    }
}

/// Messages that never reach the handler, and why; each with what must stand in the letter's reason.
fn odd(broker: Broker) -> Vec<(Envelope, &'static str)> {
    let id = match broker {
        Broker::RabbitMq => "cloudEvents:id",
        _ => "ce_id",
    };
    let with = |headers: &[(&str, &str)], body: Option<&[u8]>| Envelope {
        key: Some("odd".into()),
        headers: headers.iter().map(|(name, value)| (*name, Some(value.to_string()))).collect(),
        body: body.map(|body| body.to_vec().into()),
    };
    let mut odd =
        vec![(with(&[(id, "not-json"), ("tenant", "ü")], Some(&[0xff, 0x00, b'{'])), "undecodable")];
    if broker == Broker::RabbitMq {
        odd.push((with(&[("tenant", "a")], Some(br#"{"key":"odd","seq":1}"#)), "missing-id"));
    } else {
        odd.push((with(&[(id, "a-tombstone")], None), "undecodable"));
    }
    odd
}

async fn everything_ends_where_it_must(broker: Broker, shared: usize) {
    let database = Database::fresh("failures").await;
    let place = servers::unique("failures");
    workload::create_place(broker, &place, 4).await;
    let mut config = ConsumerConfig::new(broker, &place, &servers::unique("group"), &database.schema);
    config.max_attempts = 4;
    config.shared = shared;
    let publisher = Publisher::new(broker);
    let events = workload::events(350, 9, trouble);
    let odd = odd(broker);
    let run = config.start();
    workload::publish(&database, &publisher, &place, &events).await;
    for (envelope, _) in &odd {
        publisher.envelope(&place, envelope.clone()).await;
    }

    let dead = events.iter().filter(|placed| placed.ends_dead()).count();
    let letters = letters::read(&config, dead + odd.len()).await;
    let alive = (events.len() - dead) as i64;
    wait::until("the others are applied", PATIENCE, || async {
        database.applied(&config.group).await == alive
    })
    .await;
    run.stop().await;
    database.assert_balanced_but_for(&config.group, &events, &letters).await;
    check_letters(&config, &events, &odd, &letters);
    database.drop().await;
}

fn check_letters(config: &ConsumerConfig, events: &[Placed], odd: &[(Envelope, &str)], letters: &[Envelope]) {
    let expected_reasons: HashMap<&str, &str> = events
        .iter()
        .filter(|placed| placed.ends_dead())
        .map(|event| {
            let permanent = event.event.fail == Some(Fail::Permanent);
            (event.id.as_str(), if permanent { "permanent" } else { "exhausted" })
        })
        .collect();
    let places: &[&str] = if config.broker == Broker::RabbitMq { &OF_RABBITMQ } else { &OF_KAFKA };
    for letter in letters {
        for name in HEADERS.iter().chain(places) {
            assert!(letter.headers.get(name).is_some(), "{name} is missing: {letter:?}");
        }
        assert_eq!(letter.headers.get_str(names::CONSUMER), Some(config.group.as_str()));
        let reason = letter.headers.get_str(names::REASON).expect("checked above");
        let id = letters::id(letter);
        if let Some(expected) = id.and_then(|id| expected_reasons.get(id)) {
            assert_eq!(reason, *expected, "{id:?}");
            let placed = events.iter().find(|event| Some(event.id.as_str()) == id).expect("an event of ours");
            let original: Message = placed.message("/tests");
            assert_eq!((&letter.body, &letter.key), (&original.body, &original.key));
        } else {
            assert_eq!(reason == "missing-id", id.is_none(), "{letter:?}");
        }
    }
    for (envelope, reason) in odd {
        let same = |letter: &&Envelope| {
            let tenant = letter.headers.get("tenant") == envelope.headers.get("tenant");
            tenant && letter.body == envelope.body && letter.headers.get_str(names::REASON) == Some(reason)
        };
        assert_eq!(letters.iter().filter(same).count(), 1, "{reason}, original bytes");
    }
}

/// F55, F83, F89: each kind of failure ends as its class says.
#[tokio::test(flavor = "multi_thread")]
async fn everything_ends_where_it_must_on_kafka() {
    everything_ends_where_it_must(Broker::Kafka, 1).await;
}

/// F55, F83, F89: the same on RabbitMQ.
#[tokio::test(flavor = "multi_thread")]
async fn everything_ends_where_it_must_on_rabbitmq() {
    everything_ends_where_it_must(Broker::RabbitMq, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_ends_where_it_must_in_groups() {
    everything_ends_where_it_must(Broker::Kafka, 64).await;
}

/// The dead-letter destination fails while the consumer runs: what is given up waits in the database, others go on,
/// and when it is mended every letter arrives once.
async fn quarantine_waits(broker: Broker) {
    let database = Database::fresh("quarantine").await;
    let place = servers::unique("quarantine");
    workload::create_place(broker, &place, 2).await;
    let config = ConsumerConfig::new(broker, &place, &servers::unique("group"), &database.schema);
    let run = config.start();
    let publisher = Publisher::new(broker);
    let first = workload::events(10, 10, |_| None);
    workload::publish(&database, &publisher, &place, &first).await;
    wait::until("the consumer runs", PATIENCE, || async { database.applied(&config.group).await == 10 })
        .await;

    break_letters(&config).await;
    let events = workload::events(60, 60, |n| (n % 3 == 0).then_some(Fail::Permanent));
    let events: Vec<_> = events.into_iter().map(renamed).collect();
    workload::publish(&database, &publisher, &place, &events).await;
    wait::until("the others are applied", PATIENCE, || async { database.applied(&config.group).await == 50 })
        .await;
    wait::until("what is given up is held", PATIENCE, || async { database.held().await == 20 }).await;

    mend_letters(&config).await;
    let letters = letters::read(&config, 20).await;
    let ids: std::collections::HashSet<_> =
        letters.iter().map(|letter| letter.headers.get_str(names::DEAD_LETTER_ID)).collect();
    assert_eq!(ids.len(), 20);
    wait::until("nothing is held", PATIENCE, || async { database.held().await == 0 }).await;
    run.stop().await;
    database.assert_balanced_but_for(&config.group, &events, &letters).await;
    database.drop().await;
}

/// Keys of their own, so that none of them waits behind another.
fn renamed(mut placed: Placed) -> Placed {
    placed.event.key = format!("other-{}", placed.event.key);
    placed
}

async fn break_letters(config: &ConsumerConfig) {
    if config.broker != Broker::RabbitMq {
        return servers::control(&["kafka-acl", "deny-write", &letters::place(config)]);
    }
    let connection = rabbitmq().await;
    let channel = connection.create_channel().await.expect("a channel");
    let exchange = rabbitmq_letter_exchange(&config.place);
    channel
        .exchange_delete(exchange.as_str().into(), ExchangeDeleteOptions::default())
        .await
        .expect("deleted");
}

async fn mend_letters(config: &ConsumerConfig) {
    if config.broker != Broker::RabbitMq {
        return servers::control(&["kafka-acl", "allow-write", &letters::place(config)]);
    }
    let connection = rabbitmq().await;
    let channel = connection.create_channel().await.expect("a channel");
    let (exchange, queue) = (rabbitmq_letter_exchange(&config.place), rabbitmq_letters(&config.place));
    let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    let declared = channel.exchange_declare(
        exchange.as_str().into(),
        ExchangeKind::Direct,
        durable,
        FieldTable::default(),
    );
    declared.await.expect("declared");
    let bound = channel.queue_bind(
        queue.as_str().into(),
        exchange.as_str().into(),
        config.place.as_str().into(),
        QueueBindOptions::default(),
        FieldTable::default(),
    );
    bound.await.expect("bound");
}

async fn rabbitmq() -> Connection {
    Connection::connect(&servers::amqp_url(), ConnectionProperties::default())
        .await
        .expect("RabbitMQ answers")
}

/// F56: on Kafka.
#[tokio::test(flavor = "multi_thread")]
async fn quarantine_waits_while_the_topic_is_denied() {
    quarantine_waits(Broker::Kafka).await;
}

/// F56, F73: on RabbitMQ.
#[tokio::test(flavor = "multi_thread")]
async fn quarantine_waits_while_the_exchange_is_gone() {
    quarantine_waits(Broker::RabbitMq).await;
}
