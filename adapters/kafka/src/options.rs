//! What a source can be told.

use std::time::Duration;

use backstop_core::dead_letter::kafka_door;
use backstop_core::{AdapterError, FaultKind};
use rdkafka::ClientConfig;
use serde::Deserialize;

use crate::settings::KafkaSettings;

/// Where to begin in a partition for which the group has no committed offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StartFrom {
    /// At the oldest message.
    #[default]
    Earliest,
    /// At the end. Messages that were written to a partition before the group first saw it are skipped: those of a
    /// partition that a topic has grown by are lost.
    Latest,
}

/// What to do when the committed offset is not in the partition any more, because retention has removed it or the
/// topic was made anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OutOfRange {
    /// End with an error: messages are lost, or would all be read again, and an operator should know.
    #[default]
    Stop,
    /// Go on at the oldest message that is there.
    Earliest,
    /// Go on at the end.
    Latest,
}

impl OutOfRange {
    fn as_reset(self) -> &'static str {
        match self {
            Self::Stop => "error",
            Self::Earliest => "earliest",
            Self::Latest => "latest",
        }
    }
}

/// How the members of a group share partitions. All members of one group must use the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RebalanceProtocol {
    /// Only partitions that move are stopped. After a crash the others take over within about 6 s.
    #[default]
    CooperativeSticky,
    /// The broker's own protocol (KIP-848, Kafka 4): calmer in large groups. After a crash the others take over when
    /// the broker's session timeout ends, 45 s by default.
    Kip848,
    /// Everything stops at each change. For groups that have members which know nothing else.
    Eager,
}

/// Bounds on what is handed over and not yet settled or dropped.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Window {
    pub(crate) messages: usize,
    pub(crate) bytes: usize,
}

impl Window {
    /// Whether nothing more may be handed over.
    pub(crate) fn is_full(&self, messages: usize, bytes: usize) -> bool {
        messages >= self.messages || bytes >= self.bytes
    }

    /// Whether there is room that is worth handing over more: a tenth.
    pub(crate) fn has_room(&self, messages: usize, bytes: usize) -> bool {
        let worthwhile = (self.messages / 10).max(1);
        messages + worthwhile <= self.messages && bytes <= self.bytes / 10 * 9
    }
}

/// How a pipeline commits.
#[derive(Debug, Clone)]
pub(crate) struct Transactions {
    pub(crate) id: Option<String>,
    pub(crate) timeout: Duration,
    pub(crate) messages: usize,
    pub(crate) bytes: usize,
    pub(crate) linger: Duration,
}

impl Default for Transactions {
    fn default() -> Self {
        Self {
            id: None,
            timeout: Duration::from_secs(10),
            messages: 1_000,
            bytes: 4 << 20,
            linger: Duration::from_millis(5),
        }
    }
}

/// Everything that a source was told.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) settings: KafkaSettings,
    pub(crate) group: String,
    pub(crate) topics: Vec<String>,
    pub(crate) start_from: StartFrom,
    pub(crate) out_of_range: OutOfRange,
    pub(crate) protocol: RebalanceProtocol,
    pub(crate) id_header: Option<String>,
    pub(crate) partition_window: Window,
    pub(crate) total_window: Window,
    pub(crate) commit_interval: Duration,
    pub(crate) revoke_wait: Duration,
    pub(crate) door: bool,
    pub(crate) own_topics: Option<bool>,
    pub(crate) static_member: Option<String>,
    /// Set when offsets are committed in transactions.
    pub(crate) transactions: Option<Transactions>,
}

/// Properties on which settling rests.
const FIXED: [(&str, &str); 3] = [
    ("enable.auto.commit", "false"),
    ("enable.auto.offset.store", "false"),
    ("enable.partition.eof", "false"),
];

/// Defaults that a user may change. A growing topic is read within 5 s. What is fetched waits in a queue for each
/// partition: those are short, because there may be many. They last for longer than the brokers wait for news of partitions
/// that are at their ends: there is one request to a broker at a time, and full queues are not part of it. The ends of
/// partitions are told with the statistics.
const DEFAULTS: [(&str, &str); 7] = [
    ("topic.metadata.refresh.interval.ms", "5000"),
    ("fetch.wait.max.ms", "100"),
    ("fetch.queue.backoff.ms", "5"),
    ("queued.min.messages", "10000"),
    ("queued.max.messages.kbytes", "2048"),
    ("socket.keepalive.enable", "true"),
    ("statistics.interval.ms", "5000"),
];

impl Options {
    /// The configuration of the group's member.
    pub(crate) fn consumer_config(&self) -> Result<ClientConfig, AdapterError> {
        if self.group.is_empty() || self.topics.is_empty() {
            return Err(AdapterError::new(
                FaultKind::Invalid,
                "a Kafka source needs a group and at least one topic",
            )
            .with_hint("name both in KafkaSource::subscribe"));
        }
        if let Some(topic) = self.topics.iter().find(|topic| topic.is_empty() || topic.contains('\0')) {
            return Err(AdapterError::new(
                FaultKind::Invalid,
                format!("{topic:?} is not the name of a topic"),
            ));
        }
        let mut fixed = FIXED.to_vec();
        fixed.push(("group.id", &self.group));
        fixed.push(("auto.offset.reset", self.out_of_range.as_reset()));
        fixed.extend(self.static_member.as_deref().map(|member| ("group.instance.id", member)));
        if self.transactions.is_some() {
            // Outputs of others that were aborted are not read; and without it the offsets of a partition would be
            // answered while a transaction that moves them is open.
            fixed.push(("isolation.level", "read_committed"));
        }
        let mut defaults = DEFAULTS.to_vec();
        if self.leaves_out_everywhere() {
            defaults.push(("topic.blacklist", OWN));
        }
        match self.protocol {
            RebalanceProtocol::Kip848 => fixed.push(("group.protocol", "consumer")),
            protocol => {
                let strategy = match protocol {
                    RebalanceProtocol::Eager => "range,roundrobin",
                    _ => "cooperative-sticky",
                };
                fixed.extend([("group.protocol", "classic"), ("partition.assignment.strategy", strategy)]);
                defaults.extend([("session.timeout.ms", "6000"), ("heartbeat.interval.ms", "1000")]);
            }
        }
        self.settings.client_config(&defaults, &fixed)
    }

    /// The configuration of a pipeline's producer.
    pub(crate) fn producer_config(&self, id: &str, timeout: Duration) -> Result<ClientConfig, AdapterError> {
        let timeout = timeout.as_millis().max(1_000).to_string();
        let defaults = [
            ("compression.codec", "zstd"),
            ("compression.level", "1"),
            ("partitioner", "murmur2_random"),
            ("batch.size", "1000000"),
            ("topic.metadata.propagation.max.ms", "5000"),
            ("socket.keepalive.enable", "true"),
            ("reconnect.backoff.max.ms", "2000"),
        ];
        let fixed = [
            ("transactional.id", id),
            ("transaction.timeout.ms", &timeout),
            ("enable.idempotence", "true"),
            ("acks", "all"),
            ("max.in.flight.requests.per.connection", "5"),
            // The commit sends what waits; outputs are there all at once, so that batches fill without it.
            ("linger.ms", "1"),
            // What a topic takes is for the brokers to say, who look at the compressed size.
            ("message.max.bytes", "134217728"),
        ];
        self.settings.client_config(&defaults, &fixed)
    }

    /// Whether no partition of our own topics needs to be assigned at all. librdkafka's own exclusion holds for named
    /// topics too, and in the brokers' protocol it would hide what they assign.
    fn leaves_out_everywhere(&self) -> bool {
        !self.matches_own()
            && self.named_topics().next().is_none()
            && self.protocol != RebalanceProtocol::Kip848
    }

    /// Whether patterns match letters and doors.
    fn matches_own(&self) -> bool {
        self.own_topics.unwrap_or(!self.door)
    }

    /// Whether a topic is not to be read although a pattern matches it.
    pub(crate) fn leaves_out(&self, topic: &str) -> bool {
        is_own(topic)
            && !self.matches_own()
            && !self.named_topics().any(|named| named == topic || kafka_door(named, &self.group) == topic)
    }

    /// The topic that this one is the door of.
    pub(crate) fn door_of(&self, door: &str) -> Option<&str> {
        self.named_topics().find(|topic| kafka_door(topic, &self.group) == door)
    }

    /// The topics that have a name of their own.
    pub(crate) fn named_topics(&self) -> impl Iterator<Item = &str> {
        self.topics.iter().map(String::as_str).filter(|topic| !is_pattern(topic))
    }
}

/// What [`is_own`] says, as librdkafka's list of regular expressions.
const OWN: &str = "\\.dlq$,\\.redrive$";

/// Whether this is the name of a dead-letter topic or a door.
fn is_own(topic: &str) -> bool {
    topic.ends_with(".dlq") || topic.ends_with(".redrive")
}

/// Whether librdkafka reads this topic as a regular expression.
pub(crate) fn is_pattern(topic: &str) -> bool {
    topic.starts_with('^')
}

#[cfg(test)]
mod tests {
    use rdkafka::consumer::BaseConsumer;

    use super::*;
    use crate::source::KafkaSource;

    #[test]
    fn a_member_can_be_made_under_every_protocol() {
        for protocol in
            [RebalanceProtocol::CooperativeSticky, RebalanceProtocol::Kip848, RebalanceProtocol::Eager]
        {
            let source = KafkaSource::subscribe("localhost:1", "g", &["t"]).rebalance_protocol(protocol);
            let config = source.options().consumer_config().expect("valid");
            config.create::<BaseConsumer>().unwrap_or_else(|error| panic!("{protocol:?}: {error}"));
        }
    }

    #[test]
    fn a_window_of_one_is_full_and_has_room_in_turn() {
        let window = Window { messages: 1, bytes: 100 };
        assert!(window.is_full(1, 0) && !window.has_room(1, 0));
        assert!(!window.is_full(0, 0) && window.has_room(0, 0));
        assert!(window.is_full(0, 100), "bytes count too");
    }
}
