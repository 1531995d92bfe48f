//! Names of topics, what the brokers say about them, and making those that are ours.
//!
//! Everything here blocks, within the bounds that it names.

use std::time::{Duration, Instant};

use backstop_core::{AdapterError, FaultKind};
use rdkafka::ClientContext;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::{Client, DefaultClientContext};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaErrorCode as Code;

use crate::context::Asking;
use crate::fault::fault;
use crate::settings::KafkaSettings;

/// Longest name that Kafka takes.
const MAX_NAME: usize = 249;
/// One question for a topic: how soon a refusal is noticed.
const QUESTION: Duration = Duration::from_millis(500);
/// How long events are waited for before a question. Without any time, a poll ends at the first line of the log.
pub(crate) const EVENTS: Duration = Duration::from_millis(10);
/// One request to the controller. Brokers that know no such request, as the mock cluster, leave it unanswered.
const ADMIN: Duration = Duration::from_secs(2);

/// Checks that a topic may be published to: legal for Kafka, and none of its internal ones.
pub(crate) fn check_name(topic: &str) -> Result<(), AdapterError> {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let fits = !topic.is_empty() && topic.len() <= MAX_NAME && topic != "." && topic != "..";
    if fits && topic.bytes().all(legal) && !topic.starts_with("__") {
        return Ok(());
    }
    let shown: String = topic.chars().take(60).flat_map(char::escape_default).collect();
    Err(AdapterError::new(FaultKind::Invalid, format!("\"{shown}\" is not a topic that can be published to"))
        .with_hint("use letters, digits, dots, underscores and hyphens, at most 249, not beginning with two underscores"))
}

/// What the brokers say about a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Presence {
    /// It is there, with this many partitions.
    Here(i32),
    /// It is not.
    Missing,
    /// This client may not see it.
    Denied,
}

/// Asks for one topic, without ever making it: the client must be a consumer's, since a producer's question makes
/// a topic where brokers do that.
pub(crate) fn presence<C: ClientContext>(
    client: &Client<C>,
    topic: &str,
    timeout: Duration,
) -> Result<Presence, KafkaError> {
    let metadata = client.fetch_metadata(Some(topic), timeout)?;
    let Some(found) = metadata.topics().iter().find(|found| found.name() == topic) else {
        return Ok(Presence::Missing);
    };
    match found.error().map(Code::from) {
        None => Ok(Presence::Here(i32::try_from(found.partitions().len()).unwrap_or(i32::MAX))),
        Some(Code::UnknownTopicOrPartition | Code::UnknownTopic) => Ok(Presence::Missing),
        Some(Code::TopicAuthorizationFailed) => Ok(Presence::Denied),
        Some(code) => Err(KafkaError::MetadataFetch(code)),
    }
}

/// A topic that is to be made.
#[derive(Debug)]
pub(crate) struct Wanted<'a> {
    pub(crate) name: &'a str,
    pub(crate) partitions: i32,
    pub(crate) config: Vec<(&'static str, String)>,
}

/// What a topic's own limits are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// `max.message.bytes`
    pub(crate) message_bytes: u64,
    /// `retention.ms`; -1 is for ever.
    pub(crate) retention_ms: i64,
}

impl Limits {
    /// Whether what is kept by these limits for as long as others keep it.
    pub(crate) fn keeps_as_long_as(&self, other: Self) -> bool {
        self.retention_ms < 0 || (other.retention_ms >= 0 && self.retention_ms >= other.retention_ms)
    }
}

/// Asks about topics and makes them; lives for the length of a start-up.
pub(crate) struct Steward {
    client: BaseConsumer<Asking>,
    admin: AdminClient<DefaultClientContext>,
    runtime: tokio::runtime::Runtime,
    can_administrate: bool,
}

impl Steward {
    /// Connects to nothing yet.
    pub(crate) fn new(settings: &KafkaSettings) -> Result<Self, AdapterError> {
        let config = settings.admin_config()?;
        let runtime = tokio::runtime::Builder::new_current_thread().build().map_err(|error| {
            AdapterError::new(FaultKind::Other, "no runtime could be made for Kafka's admin client")
                .with_source(error)
        })?;
        let asking = Asking { token: settings.token_file(), ..Asking::default() };
        let what = "the Kafka admin client could not be made";
        Ok(Self {
            client: config.create_with_context(asking).map_err(|error| fault(what, &error))?,
            admin: config.create().map_err(|error| fault(what, &error))?,
            runtime,
            can_administrate: settings.can_administrate(),
        })
    }

    /// Asks for a topic until an answer comes, at most as long as given.
    pub(crate) fn presence(&self, topic: &str, at_most: Duration) -> Result<Presence, AdapterError> {
        self.ask(topic, at_most, &format!("Kafka does not answer about topic {topic}"))
    }

    fn ask(&self, topic: &str, at_most: Duration, silence: &str) -> Result<Presence, AdapterError> {
        let deadline = Instant::now() + at_most;
        loop {
            // Refusals show up only among the events, while the question itself just times out; and a token is
            // asked for there.
            while self.client.poll(EVENTS).is_some() {}
            if let Some(refusal) = self.client.context().voice.refusal() {
                return Err(refusal);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let error = match presence(self.client.client(), topic, left.min(QUESTION)) {
                Ok(presence) => return Ok(presence),
                Err(error) => error,
            };
            if left.is_zero() {
                return Err(fault(silence, &error));
            }
            std::thread::sleep(Duration::from_millis(20).min(left));
        }
    }

    /// Waits until any broker answers, at most as long as given.
    pub(crate) fn reach(&self, at_most: Duration) -> Result<(), AdapterError> {
        // The name is legal and means nothing; what counts is that there is an answer.
        self.ask("backstop-probe", at_most, "Kafka does not answer").map(|_| ())
    }

    /// Waits until a topic that was just made can be seen, at most as long as given.
    pub(crate) fn await_presence(&self, topic: &str, at_most: Duration) -> Result<Presence, AdapterError> {
        let deadline = Instant::now() + at_most;
        loop {
            let presence = self.presence(topic, at_most)?;
            if presence != Presence::Missing || Instant::now() >= deadline {
                return Ok(presence);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Makes a topic with the brokers' replication factor; one that is there already is fine.
    pub(crate) fn create(&self, wanted: &Wanted<'_>) -> Result<(), Code> {
        if !self.can_administrate {
            return Err(Code::Authentication);
        }
        let mut topic = NewTopic::new(wanted.name, wanted.partitions, TopicReplication::Fixed(-1));
        for (name, value) in &wanted.config {
            topic = topic.set(name, value);
        }
        let options = AdminOptions::new().request_timeout(Some(ADMIN)).operation_timeout(Some(ADMIN));
        let results = self.runtime.block_on(self.admin.create_topics([&topic], &options));
        match results {
            Ok(results) => match results.into_iter().next() {
                Some(Err((_, Code::TopicAlreadyExists))) | Some(Ok(_)) | None => Ok(()),
                Some(Err((_, code))) => Err(code),
            },
            Err(error) => Err(crate::fault::code_of(&error).unwrap_or(Code::Fail)),
        }
    }

    /// A topic's limits; `None` where this client may not ask or the brokers do not say.
    pub(crate) fn limits(&self, topic: &str) -> Option<Limits> {
        if !self.can_administrate {
            return None;
        }
        let options = AdminOptions::new().request_timeout(Some(ADMIN));
        let asked = [ResourceSpecifier::Topic(topic)];
        let answer = self.runtime.block_on(self.admin.describe_configs(&asked, &options)).ok()?;
        let resource = answer.into_iter().next()?.ok()?;
        let value = |name: &str| resource.get(name)?.value.as_deref();
        Some(Limits {
            message_bytes: value("max.message.bytes")?.parse().ok()?,
            retention_ms: value("retention.ms")?.parse().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn illegal_and_internal_names_are_refused_and_shown_escaped() {
        for good in ["orders", "a.b-c_D9", "_x", &"x".repeat(249)] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "__consumer_offsets", "a b", "ä", "a/b", "a\0b", "a\nb", &"x".repeat(250)]
        {
            let error = check_name(bad).unwrap_err();
            assert_eq!(error.kind(), FaultKind::Invalid);
            assert!(!error.to_string().contains(['\n', '\0']));
        }
    }

    #[test]
    fn retention_for_ever_is_the_longest() {
        let limits = |retention_ms| Limits { message_bytes: 1, retention_ms };
        assert!(limits(-1).keeps_as_long_as(limits(-1)) && limits(-1).keeps_as_long_as(limits(5)));
        assert!(!limits(5).keeps_as_long_as(limits(-1)) && !limits(5).keeps_as_long_as(limits(6)));
        assert!(limits(6).keeps_as_long_as(limits(6)));
    }
}
