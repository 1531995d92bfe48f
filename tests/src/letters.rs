//! Reading dead letters straight from their topic or queue.

use std::collections::{BTreeSet, HashSet};
use std::time::Duration;

use backstop::dead_letter::{kafka_letters, rabbitmq_letters};
use backstop::source::{Settlement as _, Source};
use backstop::{Envelope, Message, names};
use backstop_kafka::KafkaSource;
use backstop_rabbitmq::RabbitSource;
use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use lapin::{Connection, ConnectionProperties};

use crate::program::{Broker, ConsumerConfig};
use crate::workload::Placed;
use crate::{servers, wait};

/// Where the dead letters of a consumer are.
pub fn place(config: &ConsumerConfig) -> String {
    match config.broker {
        Broker::RabbitMq => rabbitmq_letters(&config.place),
        _ => kafka_letters(&config.place, &config.group),
    }
}

/// Reads that many letters, and then looks for more until there has been none for two seconds.
///
/// # Panics
/// When they do not come within a minute.
pub async fn read(config: &ConsumerConfig, expected: usize) -> Vec<Envelope> {
    let letters = read_at_least(config, expected).await;
    assert_eq!(letters.len(), expected, "letters in the dead-letter destination");
    letters
}

/// The same, with repeated letters counted once.
///
/// # Panics
/// When they do not come within a minute.
pub async fn read_distinct(config: &ConsumerConfig, expected: usize) -> Vec<Envelope> {
    let mut letters = read_at_least(config, expected).await;
    let mut seen = HashSet::new();
    letters.retain(|letter| seen.insert(letter.headers.get(names::DEAD_LETTER_ID).cloned()));
    letters
}

/// The ids of those letters that carry one of `events`.
pub fn ids(letters: &[Envelope], events: &[Placed]) -> BTreeSet<String> {
    let known: HashSet<&str> = events.iter().map(|placed| placed.id.as_str()).collect();
    letters.iter().filter_map(id).filter(|id| known.contains(id)).map(str::to_owned).collect()
}

/// The id of the event that a letter carries, by the headers of either broker.
pub fn id(letter: &Envelope) -> Option<&str> {
    letter.headers.get_str("ce_id").or_else(|| letter.headers.get_str("cloudEvents:id"))
}

/// Waits until that many letters are there, and leaves them there.
///
/// # Panics
/// When they do not come.
pub async fn arrived(config: &ConsumerConfig, expected: usize, patience: Duration) {
    if config.broker != Broker::RabbitMq {
        assert_eq!(read_distinct(config, expected).await.len(), expected);
        return;
    }
    wait::until("the letters are there", patience, || async { ready(&place(config)).await >= expected })
        .await;
}

/// Messages of a queue that nobody has now.
///
/// # Panics
/// When RabbitMQ cannot be used.
pub async fn ready(queue: &str) -> usize {
    let url = servers::amqp_url();
    let connection = Connection::connect(&url, ConnectionProperties::default()).await.expect("RabbitMQ");
    let channel = connection.create_channel().await.expect("a channel");
    let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let declared = channel.queue_declare(queue.into(), passive, FieldTable::default());
    declared.await.expect("the queue is there").message_count() as usize
}

async fn read_at_least(config: &ConsumerConfig, expected: usize) -> Vec<Envelope> {
    let messages = messages(config.broker, &place(config), expected).await;
    messages.iter().map(Message::envelope).collect()
}

/// Reads at least that many messages of a topic or queue, and then looks for more until there has been none for two
/// seconds; fewer when they do not come within a minute.
pub async fn messages(broker: Broker, place: &str, expected: usize) -> Vec<Message> {
    match broker {
        Broker::RabbitMq => {
            let source = RabbitSource::consume(&servers::amqp_url(), place).door(false).declare(false);
            drain(source.build().expect("an AMQP URL"), expected).await
        }
        _ => {
            let group = servers::unique("letters");
            drain(KafkaSource::subscribe(servers::kafka(), group, &[place]).door(false), expected).await
        }
    }
}

async fn drain(mut source: impl Source, expected: usize) -> Vec<Message> {
    let mut letters = Vec::new();
    loop {
        let patience = Duration::from_secs(if letters.len() < expected { 60 } else { 2 });
        let Ok(batch) = tokio::time::timeout(patience, source.next()).await else { break };
        for mut received in batch.expect("the source goes on").expect("the source does not end") {
            received.settlement.begin();
            received.settlement.settle();
            letters.push(received.message);
        }
    }
    source.close().await.expect("an orderly end");
    letters
}
