//! Quarantine on Kafka.

use std::time::Duration;

use backstop_core::dead_letter::{DeadLetter, DeadLetters, kafka_letters, kafka_letters_of};
use backstop_core::message::Destination;
use backstop_core::pipeline::{LetterOutput, Output};
use backstop_core::sink::{PublishError, Scope, Sink};
use backstop_core::source::SourceInfo;
use backstop_core::{AdapterError, FaultKind};
use rdkafka::types::RDKafkaErrorCode as Code;

use crate::fault::{coded, is_denied};
use crate::line::LineOptions;
use crate::options::is_pattern;
use crate::settings::KafkaSettings;
use crate::sink::KafkaSink;
use crate::topics::{Limits, Presence, Steward, Wanted, check_name};

/// Room for what a letter carries beside the message.
pub(crate) const LETTER_HEADERS: u64 = 32 * 1024;
/// The largest letter before compression. What the topic takes is for the brokers to say: they look at the compressed
/// size, and a message that they took once must not be refused here for its plain one.
const MAX_LETTER_BYTES: usize = 128 << 20;
/// How long the brokers are waited for at start-up.
const ANSWER: Duration = Duration::from_secs(10);

/// Publishes dead letters to `<topic>.<group>.dlq` under the key of the message.
///
/// [`prepare`](DeadLetters::prepare) makes missing topics, with as many partitions as the source's, room for 32 KiB
/// more per message and the source's retention at least, and warns where a topic that is there falls short of that.
/// Topics that a source names by a pattern cannot be prepared.
///
/// A letter that is too large for its topic is published with the smallest set of headers instead.
#[derive(Debug)]
pub struct KafkaDeadLetters {
    settings: KafkaSettings,
    sink: KafkaSink,
}

impl KafkaDeadLetters {
    /// Dead letters on these brokers. Connects at the first use.
    pub fn new(settings: KafkaSettings) -> Self {
        // One letter a batch: one that is refused must not take its neighbours along.
        let sink = KafkaSink::with(LineOptions {
            settings: settings.clone(),
            linger: Duration::ZERO,
            batch: 1,
            window: 10_000,
            max_message_bytes: MAX_LETTER_BYTES,
        });
        Self { settings, sink }
    }

    /// Sets how long a letter waits for its confirmation. Defaults to 30 s.
    #[must_use]
    pub fn publish_timeout(mut self, timeout: Duration) -> Self {
        self.sink = self.sink.publish_timeout(timeout);
        self
    }
}

impl DeadLetters for KafkaDeadLetters {
    async fn prepare(&self, source: &SourceInfo) -> Result<(), AdapterError> {
        let settings = self.settings.clone();
        let source = source.clone();
        let work = tokio::task::spawn_blocking(move || prepare(&settings, &source));
        work.await.unwrap_or_else(|error| {
            Err(AdapterError::new(FaultKind::Other, "the check of the dead-letter topics was cut off")
                .with_source(error))
        })
    }

    async fn quarantine(&self, letter: &DeadLetter) -> Result<(), PublishError> {
        let topic = destination(letter);
        match self.sink.publish(&topic, letter.to_envelope()).await {
            Err(error) if error.scope() == Scope::Message => {
                tracing::warn!(%topic, %error, "kafka: a letter does not fit and goes with the fewest headers");
                self.sink.publish(&topic, letter.to_minimal_envelope()).await
            }
            other => other,
        }
    }
}

impl LetterOutput for KafkaDeadLetters {
    fn output(&self, letter: &DeadLetter, small: bool) -> Option<Output> {
        let envelope = if small { letter.to_minimal_envelope() } else { letter.to_envelope() };
        Some(Output { destination: destination(letter), envelope })
    }
}

fn destination(letter: &DeadLetter) -> Destination {
    Destination::new(kafka_letters_of(letter.origin.place(), &letter.group))
}

fn prepare(settings: &KafkaSettings, source: &SourceInfo) -> Result<(), AdapterError> {
    let steward = Steward::new(settings)?;
    for place in source.places.iter().filter(|place| !is_pattern(place)) {
        let letters = kafka_letters(place, &source.group);
        check_name(&letters)?;
        let wanted = steward.limits(place).map(|source| Limits {
            message_bytes: source.message_bytes + LETTER_HEADERS,
            retention_ms: source.retention_ms,
        });
        match steward.presence(&letters, ANSWER)? {
            Presence::Here(_) => {}
            Presence::Denied => return Err(denied(&letters)),
            Presence::Missing => create(&steward, place, &letters, wanted)?,
        }
        // Brokers that did not tell the source's limits will not tell these either, and the question takes seconds.
        if let Some(wanted) = wanted
            && let Some(found) = steward.limits(&letters)
        {
            warn_of_shortfalls(&letters, wanted, found);
        }
    }
    Ok(())
}

fn create(steward: &Steward, place: &str, letters: &str, wanted: Option<Limits>) -> Result<(), AdapterError> {
    let partitions = match steward.presence(place, ANSWER)? {
        Presence::Here(partitions) => partitions,
        // The source itself will say so; the broker's default is as good as any.
        Presence::Missing | Presence::Denied => -1,
    };
    let config = wanted.map_or_else(Vec::new, |wanted| {
        vec![
            ("max.message.bytes", wanted.message_bytes.min(i32::MAX as u64).to_string()),
            ("retention.ms", wanted.retention_ms.to_string()),
        ]
    });
    match steward.create(&Wanted { name: letters, partitions, config }) {
        Err(code) if is_denied(code) => return Err(denied(letters)),
        Err(code) if code != Code::OperationTimedOut => {
            return Err(coded(format!("dead-letter topic {letters} could not be made"), code));
        }
        // A controller that was slow may have made it all the same.
        Err(_) | Ok(()) => {}
    }
    match steward.await_presence(letters, Duration::from_secs(5))? {
        Presence::Here(_) => Ok(()),
        Presence::Denied => Err(denied(letters)),
        Presence::Missing => Err(AdapterError::new(
            FaultKind::Missing,
            format!("dead-letter topic {letters} does not exist and could not be made"),
        )
        .with_hint(format!("create topic {letters}"))),
    }
}

fn denied(letters: &str) -> AdapterError {
    AdapterError::new(FaultKind::Denied, format!("dead-letter topic {letters} may not be made or written to"))
        .with_hint(format!("create topic {letters} and grant this client DESCRIBE and WRITE on it"))
}

fn warn_of_shortfalls(letters: &str, wanted: Limits, found: Limits) {
    if found.message_bytes < wanted.message_bytes {
        tracing::warn!(
            topic = letters,
            found = found.message_bytes,
            wanted = wanted.message_bytes,
            "kafka: the dead-letter topic takes smaller messages than its source and headers need: raise max.message.bytes"
        );
    }
    if !found.keeps_as_long_as(wanted) {
        tracing::warn!(
            topic = letters,
            found = found.retention_ms,
            wanted = wanted.retention_ms,
            "kafka: the dead-letter topic keeps messages for less long than its source: raise retention.ms"
        );
    }
}
