//! The broker, as the configuration chooses it.

use backstop_core::cloudevents::Binding;
use backstop_core::sink::{PublishError, Publisher, Sink};
use backstop_core::source::{Received, Settlement, Source, SourceInfo};
use backstop_core::{AdapterError, Destination, Envelope};
use backstop_kafka::{KafkaPublisher, KafkaSettings, KafkaSettlement, KafkaSink, KafkaSource, OutOfRange};
use backstop_rabbitmq::{RabbitPublisher, RabbitSettings, RabbitSettlement, RabbitSink, RabbitSource};

use crate::collector::Opener;
use crate::config::{BrokerConfig, Config, DeadLettersConfig, KafkaConfig, Ordering, RabbitConfig};
use crate::pump::PumpSettings;
use crate::routes::RoutedPublisher;

/// The name that brokers see.
const CLIENT: &str = "backstop-relay";
/// What `[broker]` is called beside those of `[brokers]`; no name of theirs, which are not empty.
const DEFAULT: &str = "";
/// Largest dead letter that is sent again to Kafka, in bytes: what `KafkaDeadLetters` takes. The broker has the last
/// word.
const MAX_LETTER_BYTES: usize = 128 << 20;

/// The pipeline of an outbox: to one broker, or by routes to several; `None` where no broker is configured.
///
/// # Errors
/// For settings that can never work; it does not connect.
pub fn pipeline(config: &Config) -> Result<Option<Box<dyn Publisher>>, AdapterError> {
    if config.brokers.is_empty() {
        return config.broker.as_ref().map(publisher).transpose();
    }
    let named = config.brokers.iter().map(|(name, broker)| (name.as_str(), broker));
    let all = config.broker.iter().map(|broker| (DEFAULT, broker)).chain(named);
    let publishers = all
        .map(|(name, broker)| Ok((name.to_owned(), publisher(broker)?)))
        .collect::<Result<Vec<_>, AdapterError>>()?;
    let otherwise = config.broker.as_ref().map(|_| DEFAULT);
    let bytes = PumpSettings::default().in_flight_bytes;
    Ok(Some(Box::new(RoutedPublisher::new(publishers, &config.routes, otherwise, bytes))))
}

/// The pipeline to one broker.
///
/// # Errors
/// For settings that can never work; it does not connect.
pub fn publisher(config: &BrokerConfig) -> Result<Box<dyn Publisher>, AdapterError> {
    Ok(match config {
        BrokerConfig::Kafka(kafka) => {
            let publisher = KafkaPublisher::new(kafka_settings(kafka));
            Box::new(publisher.max_message_bytes(bounded(kafka.max_message_bytes)))
        }
        BrokerConfig::RabbitMq(rabbit) => {
            let ordering = match rabbit.ordering {
                Ordering::PerKey => backstop_rabbitmq::Ordering::Strict,
                Ordering::None => backstop_rabbitmq::Ordering::None,
            };
            let publisher = RabbitPublisher::builder(rabbit_settings(rabbit)?).ordering(ordering);
            let (channels, window) =
                (bounded(rabbit.channels), bounded(rabbit.window.div_ceil(rabbit.channels)));
            Box::new(publisher.channels(channels).window_per_channel(window).start()?)
        }
    })
}

/// What publishes one dead letter and waits for it.
///
/// # Errors
/// For settings that can never work; it does not connect.
pub fn sink(config: &BrokerConfig) -> Result<AnySink, AdapterError> {
    Ok(match config {
        BrokerConfig::Kafka(kafka) => {
            AnySink::Kafka(KafkaSink::new(kafka_settings(kafka)).max_message_bytes(MAX_LETTER_BYTES))
        }
        BrokerConfig::RabbitMq(rabbit) => AnySink::RabbitMq(RabbitSink::new(rabbit_settings(rabbit)?)),
    })
}

/// The sources of dead letters: on Kafka one for all topics, on RabbitMQ one for each queue.
///
/// # Errors
/// For settings that can never work; nothing connects.
pub fn sources(
    config: &BrokerConfig,
    letters: &DeadLettersConfig,
) -> Result<Vec<Opener<AnySource>>, AdapterError> {
    match config {
        BrokerConfig::Kafka(kafka) => {
            let settings = kafka_settings(kafka);
            let (group, topics) = (format!("backstop-ledger-{}", letters.name), letters.sources.clone());
            Ok(vec![Box::new(move || {
                let source = kafka_source(settings.clone(), &group, &topics);
                Box::pin(async move { Ok(AnySource::Kafka(Box::new(source))) })
            })])
        }
        BrokerConfig::RabbitMq(rabbit) => {
            let settings = rabbit_settings(rabbit)?;
            Ok(letters.sources.iter().map(|queue| rabbit_opener(settings.clone(), queue.clone())).collect())
        }
    }
}

/// Letters that retention removed are gone; the collector goes on at the oldest that is there.
fn kafka_source(settings: KafkaSettings, group: &str, topics: &[String]) -> KafkaSource {
    let topics: Vec<&str> = topics.iter().map(String::as_str).collect();
    let source = KafkaSource::subscribe(settings.bootstrap_servers(), group, &topics);
    source.settings(settings).door(false).out_of_range(OutOfRange::Earliest)
}

fn rabbit_opener(settings: RabbitSettings, queue: String) -> Opener<AnySource> {
    Box::new(move || {
        let source = RabbitSource::with_settings(settings.clone(), queue.clone()).door(false).declare(false);
        Box::pin(async move { source.build().map(|source| AnySource::RabbitMq(Box::new(source))) })
    })
}

fn kafka_settings(config: &KafkaConfig) -> KafkaSettings {
    config.settings().client_id(CLIENT)
}

fn rabbit_settings(config: &RabbitConfig) -> Result<RabbitSettings, AdapterError> {
    Ok(RabbitSettings::parse(config.url.expose())?.connection_name(CLIENT))
}

fn bounded(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

/// A sink of either broker.
#[derive(Debug)]
pub enum AnySink {
    /// Kafka's.
    Kafka(KafkaSink),
    /// RabbitMQ's.
    RabbitMq(RabbitSink),
}

impl Sink for AnySink {
    fn binding(&self) -> Binding {
        match self {
            Self::Kafka(sink) => sink.binding(),
            Self::RabbitMq(sink) => sink.binding(),
        }
    }

    async fn publish(&self, destination: &Destination, envelope: Envelope) -> Result<(), PublishError> {
        match self {
            Self::Kafka(sink) => sink.publish(destination, envelope).await,
            Self::RabbitMq(sink) => sink.publish(destination, envelope).await,
        }
    }
}

/// A source of either broker.
#[derive(Debug)]
pub enum AnySource {
    /// Kafka's.
    Kafka(Box<KafkaSource>),
    /// RabbitMQ's.
    RabbitMq(Box<RabbitSource>),
}

/// A settlement of either broker.
#[derive(Debug)]
pub enum AnySettlement {
    /// Kafka's.
    Kafka(KafkaSettlement),
    /// RabbitMQ's.
    RabbitMq(RabbitSettlement),
}

impl Settlement for AnySettlement {
    fn begin(&mut self) -> bool {
        match self {
            Self::Kafka(settlement) => settlement.begin(),
            Self::RabbitMq(settlement) => settlement.begin(),
        }
    }

    fn settle(self) {
        match self {
            Self::Kafka(settlement) => settlement.settle(),
            Self::RabbitMq(settlement) => settlement.settle(),
        }
    }
}

impl Source for AnySource {
    type Settlement = AnySettlement;

    fn describe(&self) -> SourceInfo {
        match self {
            Self::Kafka(source) => source.describe(),
            Self::RabbitMq(source) => source.describe(),
        }
    }

    async fn next(&mut self) -> Result<Option<Vec<Received<AnySettlement>>>, AdapterError> {
        Ok(match self {
            Self::Kafka(source) => source.next().await?.map(|batch| wrapped(batch, AnySettlement::Kafka)),
            Self::RabbitMq(source) => {
                source.next().await?.map(|batch| wrapped(batch, AnySettlement::RabbitMq))
            }
        })
    }

    async fn close(self) -> Result<(), AdapterError> {
        match self {
            Self::Kafka(source) => source.close().await,
            Self::RabbitMq(source) => source.close().await,
        }
    }
}

fn wrapped<S>(batch: Vec<Received<S>>, wrap: impl Fn(S) -> AnySettlement) -> Vec<Received<AnySettlement>> {
    let one = |received: Received<S>| Received {
        message: received.message,
        identity: received.identity,
        origin: received.origin,
        via: received.via,
        settlement: wrap(received.settlement),
    };
    batch.into_iter().map(one).collect()
}
