//! Replay: a part of a Kafka topic, sent once more to one consumer's door or to another topic.
//!
//! It reads beside every group, from where it is told to where the topic ended when it began, and sends in the order
//! of each partition, no faster than it is told. What it has sent is in its state, so that one that was cut off goes on
//! there: a few messages may be sent twice then.

pub mod state;

use std::collections::BTreeMap;
use std::time::Duration;

use backstop_core::cloudevents;
use backstop_core::dead_letter::{is_letter_header, kafka_door};
use backstop_core::message::{Destination, Envelope};
use backstop_core::sink::{PublishError, Scope, Sink};
use backstop_core::{AdapterError, FaultKind, MessageKey, Origin, Via, names};
use backstop_kafka::{KafkaExcerpt, KafkaSettings, ReadFrom};
use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::exit::with_cause;
use state::{State, StateFile};

/// Messages that are sent together, at most.
const CHUNK: usize = 500;
/// How long one look for messages may take.
const LOOK: Duration = Duration::from_millis(500);
/// Waits after a failed publish grow from this,
const RETRY_MIN: Duration = Duration::from_millis(200);
/// to this.
const RETRY_MAX: Duration = Duration::from_secs(10);

/// Where replayed messages go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// To the door of one group of the same topic, and so through its inbox: what that has handled is not handled
    /// again.
    Door {
        /// The group.
        group: String,
        /// Whether the consumer is to handle even what it has handled: messages get an identity of this replay.
        again: bool,
    },
    /// To another topic, as they are.
    Topic(String),
}

impl Target {
    /// The topic that is written to.
    pub fn topic(&self, source: &str) -> String {
        match self {
            Self::Door { group, .. } => kafka_door(source, group),
            Self::Topic(topic) => topic.clone(),
        }
    }

    /// The message as it is sent; `replay` is the replay's id.
    fn envelope(&self, mut envelope: Envelope, origin: &Origin, replay: &str) -> Envelope {
        let Self::Door { again, .. } = self else { return envelope };
        let identity = again.then(|| cloudevents::decode(envelope.clone(), origin, Via::Live, None).1);
        // On the door they would be believed, whoever wrote them.
        envelope.headers.remove_if(is_letter_header);
        if let Origin::Kafka { topic, partition, offset, timestamp } = origin {
            envelope.headers.set(names::ORIGINAL_TOPIC, topic.clone());
            envelope.headers.set(names::ORIGINAL_PARTITION, partition.to_string());
            envelope.headers.set(names::ORIGINAL_OFFSET, offset.to_string());
            if let Some(timestamp) = timestamp {
                envelope.headers.set(names::ORIGINAL_TIMESTAMP, timestamp.to_string());
            }
        }
        if let Some(key) = identity.as_ref().and_then(|identity| identity.key()) {
            let source = format!("replay:{replay}");
            let key = MessageKey::new(&source, key.as_str().as_bytes());
            envelope.headers.set(names::MESSAGE_KEY, key.to_string());
        }
        envelope
    }
}

/// A replay that is ready to run.
#[derive(Debug)]
pub struct Replay {
    excerpt: KafkaExcerpt,
    state: State,
    file: Option<StateFile>,
    per_second: Option<u32>,
}

/// Why a replay ended early. What was sent is in its state.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The topic cannot be read.
    #[error("messages cannot be read")]
    Read(#[source] AdapterError),
    /// A message was refused where it was sent to.
    #[error("a message was refused")]
    Refused(#[source] PublishError),
    /// The state cannot be kept.
    #[error("the state cannot be written")]
    State(#[source] std::io::Error),
}

impl Replay {
    /// A replay of `topic` from there to its present end. With a `file` it can be gone on with.
    ///
    /// Blocks while it asks the brokers.
    ///
    /// # Errors
    /// When the part that is wanted is not there.
    pub fn begin(
        settings: &KafkaSettings,
        topic: &str,
        from: &ReadFrom,
        target: Target,
        file: Option<StateFile>,
    ) -> Result<Self, AdapterError> {
        let excerpt = KafkaExcerpt::open(settings, topic, from)?;
        let state = State::new(topic, target, excerpt.ranges().clone());
        Ok(Self { excerpt, state, file, per_second: None })
    }

    /// Goes on with a replay that ended early.
    ///
    /// Blocks while it asks the brokers.
    ///
    /// # Errors
    /// When what it has left is not there any more.
    pub fn resume(settings: &KafkaSettings, state: State, file: StateFile) -> Result<Self, AdapterError> {
        let excerpt = KafkaExcerpt::open(settings, &state.topic, &ReadFrom::Ranges(state.left.clone()))?;
        Ok(Self { excerpt, state, file: Some(file), per_second: None })
    }

    /// At most so many messages a second. Defaults to as many as it can.
    #[must_use]
    pub fn per_second(mut self, messages: Option<u32>) -> Self {
        self.per_second = messages;
        self
    }

    /// How it stands.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Sends until all is sent or `stop` is cancelled, and tells `progress` how it stands. A broker that is away is
    /// waited for.
    ///
    /// # Errors
    /// [`ReplayError`], for what waiting cannot mend.
    pub async fn run(
        mut self,
        sink: &impl Sink,
        stop: &CancellationToken,
        mut progress: impl FnMut(&State),
    ) -> Result<State, ReplayError> {
        self.keep()?;
        let mut pace = Pace::new(self.per_second);
        while self.state.messages_left() > 0 && !stop.is_cancelled() {
            let (excerpt, messages) = read(self.excerpt, pace.at_once()).await;
            self.excerpt = excerpt;
            let messages = messages.map_err(ReplayError::Read)?;
            let count = messages.len() as u64;
            if !self.send(sink, messages, stop).await? {
                break;
            }
            self.state.left = self.excerpt.ranges().clone();
            self.state.sent += count;
            self.keep()?;
            progress(&self.state);
            tokio::select! {
                () = pace.after(count) => {}
                () = stop.cancelled() => {}
            }
        }
        Ok(self.state)
    }

    fn keep(&self) -> Result<(), ReplayError> {
        self.file.as_ref().map_or(Ok(()), |file| file.write(&self.state)).map_err(ReplayError::State)
    }

    /// Sends messages in their order, all of them again after a failure that waiting mends; `false` when `stop` came
    /// first. Those of one key are handed over one after another, which keeps their order.
    async fn send(
        &self,
        sink: &impl Sink,
        messages: Vec<(Envelope, Origin)>,
        stop: &CancellationToken,
    ) -> Result<bool, ReplayError> {
        let target = Destination::new(self.state.target.topic(&self.state.topic));
        let envelope = |(envelope, origin)| self.state.target.envelope(envelope, &origin, &self.state.id);
        let envelopes: Vec<Envelope> = messages.into_iter().map(envelope).collect();
        let mut pause = RETRY_MIN;
        loop {
            let sent =
                join_all(envelopes.iter().map(|envelope| sink.publish(&target, envelope.clone()))).await;
            let failed = sent.into_iter().filter_map(Result::err);
            let Some(error) = failed.max_by_key(|error| error.scope() != Scope::Broker) else {
                return Ok(true);
            };
            if error.scope() != Scope::Broker || error.error().kind() == FaultKind::Denied {
                return Err(ReplayError::Refused(error));
            }
            warn!(cause = %with_cause(&error), hint = error.error().hint(), "not sent; trying again");
            tokio::select! {
                () = tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)) => {}
                () = stop.cancelled() => return Ok(false),
            }
            pause = (pause * 2).min(RETRY_MAX);
        }
    }
}

type Messages = Result<Vec<(Envelope, Origin)>, AdapterError>;

/// Reads where blocking is allowed.
async fn read(mut excerpt: KafkaExcerpt, limit: usize) -> (KafkaExcerpt, Messages) {
    let read = tokio::task::spawn_blocking(move || {
        let messages = excerpt.read(limit, LOOK);
        (excerpt, messages)
    });
    read.await.expect("reading does not panic, and is not cancelled")
}

/// Spreads messages over time.
struct Pace {
    per_second: Option<u32>,
    next: Instant,
}

impl Pace {
    fn new(per_second: Option<u32>) -> Self {
        Self { per_second: per_second.map(|rate| rate.max(1)), next: Instant::now() }
    }

    /// How many messages may be sent at once: a tenth of a second's, so that the rate is even.
    fn at_once(&self) -> usize {
        self.per_second.map_or(CHUNK, |rate| (rate as usize).div_ceil(10).min(CHUNK))
    }

    /// Waits for as long as these messages are to take. Time that was lost is not made up for by a burst.
    async fn after(&mut self, messages: u64) {
        let Some(rate) = self.per_second else { return };
        let due = self.next + Duration::from_secs_f64(messages as f64 / f64::from(rate));
        tokio::time::sleep_until(due).await;
        self.next = due.max(Instant::now().checked_sub(Duration::from_millis(100)).unwrap_or(due));
    }
}

/// Offsets as people write them: `partition:offset`.
///
/// # Errors
/// With the text that is none.
pub fn parse_offsets(texts: &[String]) -> Result<BTreeMap<i32, i64>, String> {
    let parse = |text: &String| {
        let (partition, offset) = text.split_once(':')?;
        let (partition, offset) = (partition.parse::<i32>().ok()?, offset.parse::<i64>().ok()?);
        (partition >= 0 && offset >= 0).then_some((partition, offset))
    };
    texts.iter().map(|text| parse(text).ok_or_else(|| text.clone())).collect()
}

#[cfg(test)]
#[path = "replay/tests.rs"]
mod tests;
