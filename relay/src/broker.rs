//! The broker, as the configuration chooses it.

use std::collections::BTreeSet;
use std::sync::Arc;

use backstop_core::cloudevents::Binding;
use backstop_core::sink::{PublishError, Publisher, Sink};
use backstop_core::source::{Received, Settlement, Source, SourceInfo, SourceProgress};
use backstop_core::{AdapterError, Destination, Envelope, FaultKind};
use backstop_kafka::{KafkaPublisher, KafkaSettings, KafkaSettlement, KafkaSink, KafkaSource, OutOfRange};
use backstop_rabbitmq::{
    RabbitManagement, RabbitPublisher, RabbitSettings, RabbitSettlement, RabbitSink, RabbitSource,
};
use regex::RegexSet;

use crate::collector::{Discovery, Opener};
use crate::config::{BrokerConfig, Config, DeadLettersConfig, KafkaConfig, Ordering, RabbitConfig};
use crate::pump::PumpSettings;
use crate::routes::RoutedPublisher;

/// The name that brokers see.
const CLIENT: &str = "backstop-relay";
/// What `[broker]` is called beside those of `[brokers]`; no name of theirs, which are not empty.
const DEFAULT: &str = "";
/// Letters of one partition that may be on their way into the ledger: enough for the next while some are recorded.
const LETTERS_OF_ONE: usize = 4_000;
/// The same of all partitions.
const LETTERS_OF_ALL: usize = 10_000;
/// The same in bytes.
const LETTERS_BYTES: usize = 64 << 20;
/// Letters of one queue of RabbitMQ, whose size nothing bounds but the broker: enough for the next while some are
/// recorded.
const LETTERS_OF_QUEUE: u16 = 1_500;
/// How names of doors end.
const DOOR_SUFFIX: &str = ".redrive";
/// The same as a regular expression of librdkafka's.
const DOORS: &str = "\\.redrive$";
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
    let by_name = |place: &&String| matches!(config, BrokerConfig::Kafka(_)) || !is_pattern(place);
    let named: Vec<String> = letters.sources.iter().filter(by_name).cloned().collect();
    readers(config, format!("backstop-ledger-{}", letters.name), &named, Members::One)
}

/// Queues of RabbitMQ whose names match a pattern of the sources, as they come and go; `None` where there is no pattern,
/// and on Kafka, where one source reads topics by pattern.
///
/// # Errors
/// For settings that can never work; nothing connects.
pub fn discovery(
    config: &BrokerConfig,
    letters: &DeadLettersConfig,
) -> Result<Option<Discovery<AnySource>>, AdapterError> {
    let Some(queues) = matching_queues(config, letters)? else { return Ok(None) };
    let queues = Arc::new(queues);
    Ok(Some(Box::new(move || {
        let queues = queues.clone();
        Box::pin(async move {
            let names = queues.names().await?;
            let opener = |name: String| (name.clone(), rabbit_opener(queues.settings.clone(), name));
            Ok(names.into_iter().map(opener).collect())
        })
    })))
}

/// Looks for the queues that the patterns of the sources match; `None` as for [`discovery`].
pub(crate) fn matching_queues(
    config: &BrokerConfig,
    letters: &DeadLettersConfig,
) -> Result<Option<MatchingQueues>, AdapterError> {
    let BrokerConfig::RabbitMq(rabbit) = config else { return Ok(None) };
    let patterns: Vec<&String> = letters.sources.iter().filter(|place| is_pattern(place)).collect();
    let Some(url) = rabbit.management.as_ref().filter(|_| !patterns.is_empty()) else { return Ok(None) };
    let patterns = RegexSet::new(patterns).map_err(|error| {
        AdapterError::new(FaultKind::Invalid, "a pattern of [dead_letters] sources is none")
            .with_source(error)
    })?;
    let settings = rabbit_settings(rabbit)?;
    let management = RabbitManagement::new(settings.clone(), url.expose())?;
    let others = letters.sources.iter().chain(&letters.receipts).cloned().collect();
    Ok(Some(MatchingQueues { management, settings, patterns, others }))
}

/// Whether a source is a pattern over names.
pub(crate) fn is_pattern(place: &str) -> bool {
    place.starts_with('^')
}

/// Queues that are found by pattern.
pub(crate) struct MatchingQueues {
    management: RabbitManagement,
    settings: RabbitSettings,
    patterns: RegexSet,
    /// Queues that are read by name, or for another purpose.
    others: BTreeSet<String>,
}

impl MatchingQueues {
    /// The names of those that are there now. Doors are none of them, whatever the pattern: what comes in there is its
    /// consumer's.
    pub(crate) async fn names(&self) -> Result<Vec<String>, AdapterError> {
        let mut names = self.management.queues().await?;
        names.retain(|name| self.is_meant(name));
        Ok(names)
    }

    fn is_meant(&self, name: &str) -> bool {
        let is_own = name.ends_with(DOOR_SUFFIX) || name.starts_with("amq.");
        !is_own && !self.others.contains(name) && self.patterns.is_match(name)
    }
}

/// The sources of receipts and reports, as [`sources`]. Any number of relays may read them.
///
/// # Errors
/// For settings that can never work; nothing connects.
pub fn receipts(
    config: &BrokerConfig,
    letters: &DeadLettersConfig,
) -> Result<Vec<Opener<AnySource>>, AdapterError> {
    readers(config, format!("backstop-receipts-{}", letters.name), &letters.receipts, Members::Any)
}

fn readers(
    config: &BrokerConfig,
    group: String,
    places: &[String],
    members: Members,
) -> Result<Vec<Opener<AnySource>>, AdapterError> {
    match config {
        BrokerConfig::Kafka(_) if places.is_empty() => Ok(Vec::new()),
        BrokerConfig::Kafka(kafka) => {
            let (settings, topics) = (kafka_settings(kafka), places.to_vec());
            Ok(vec![Box::new(move || {
                let source = kafka_source(settings.clone(), &group, &topics, members);
                Box::pin(async move { Ok(AnySource::Kafka(Box::new(source))) })
            })])
        }
        BrokerConfig::RabbitMq(rabbit) => {
            let settings = rabbit_settings(rabbit)?;
            Ok(places.iter().map(|queue| rabbit_opener(settings.clone(), queue.clone())).collect())
        }
    }
}

/// How many read at once.
#[derive(Debug, Clone, Copy)]
enum Members {
    /// One, by lease.
    One,
    /// Any number.
    Any,
}

/// Letters that retention removed are gone; the collector goes on at the oldest that is there. Where one reads at a time,
/// it is a static member of its group: the successor of one that was killed has its partitions at once, where it would
/// wait until the brokers miss the dead one. Patterns do not match doors: what comes in there is its consumer's.
fn kafka_source(settings: KafkaSettings, group: &str, topics: &[String], members: Members) -> KafkaSource {
    let topics: Vec<&str> = topics.iter().map(String::as_str).collect();
    let source = KafkaSource::subscribe(settings.bootstrap_servers(), group, &topics);
    let source = source.window(LETTERS_OF_ONE, LETTERS_BYTES / 4).total_window(LETTERS_OF_ALL, LETTERS_BYTES);
    let source = source.settings(settings).door(false).out_of_range(OutOfRange::Earliest);
    match members {
        Members::One => source.static_member(group).property("topic.blacklist", DOORS),
        Members::Any => source,
    }
}

fn rabbit_opener(settings: RabbitSettings, queue: String) -> Opener<AnySource> {
    Box::new(move || {
        let source = RabbitSource::with_settings(settings.clone(), queue.clone())
            .door(false)
            .declare(false)
            .prefetch(LETTERS_OF_QUEUE);
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

    fn epoch(&self) -> u64 {
        match self {
            Self::Kafka(settlement) => settlement.epoch(),
            Self::RabbitMq(settlement) => settlement.epoch(),
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

    fn progress(&self) -> Option<Arc<dyn SourceProgress>> {
        match self {
            Self::Kafka(source) => source.progress(),
            Self::RabbitMq(source) => source.progress(),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Environment;

    #[test]
    fn patterns_match_letters_and_nothing_that_others_read() {
        let text = "[database]\nurl = \"sqlite:x.db\"\n[broker]\nkind = \"rabbitmq\"\nurl = \"amqp://localhost/%2f\"\n\
                    management = \"http://localhost:15672\"\n[dead_letters]\nname = \"d\"\n\
                    sources = ['^orders\\..*', '^stock\\.dlq$', \"orders.named.dlq\"]\nreceipts = [\"orders.receipts\"]\n";
        let config = Config::parse(text, &Environment::default()).expect("sound");
        let broker = config.broker.as_ref().expect("a broker");
        assert_eq!(sources(broker, &config.dead_letters).expect("sources").len(), 1, "one by name");
        let queues = matching_queues(broker, &config.dead_letters).expect("sound").expect("patterns");
        for (name, is_meant) in [
            ("orders.dlq", true),
            ("stock.dlq", true),
            ("stock.dlq.old", false),
            ("my.orders.dlq", false),
            ("orders.named.dlq", false),
            ("orders.receipts", false),
            ("orders.redrive", false),
            ("amq.gen-x", false),
        ] {
            assert_eq!(queues.is_meant(name), is_meant, "{name}");
        }
    }
}
