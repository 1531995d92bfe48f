//! How librdkafka's own log lines and errors reach ours.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::KafkaError;

/// At most one warning in this time about a thing that repeats, such as brokers that are down.
const QUIET: Duration = Duration::from_secs(10);

/// Locks, whether or not a thread has panicked while it held the lock: what is guarded here is consistent after
/// every statement.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Speaks for one client: a warning now and then, the rest at debug level.
#[derive(Debug, Default)]
pub(crate) struct Voice {
    last_warning: Mutex<Option<Instant>>,
    last_reason: Mutex<String>,
}

impl Voice {
    /// A line that librdkafka wrote.
    pub(crate) fn line(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        match level {
            RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical => {
                tracing::error!(facility, "librdkafka: {text}");
            }
            RDKafkaLogLevel::Error | RDKafkaLogLevel::Warning => self.warn(facility, text),
            _ => tracing::debug!(facility, "librdkafka: {text}"),
        }
    }

    /// An error that librdkafka reports beside the operation that meets it; its text is kept as the reason.
    pub(crate) fn error(&self, error: &KafkaError, reason: &str) {
        tracing::debug!(%error, "librdkafka: {reason}");
        reason.clone_into(&mut lock(&self.last_reason));
    }

    /// Something that waiting may mend.
    pub(crate) fn warn(&self, what: &str, detail: &str) {
        let mut last = lock(&self.last_warning);
        if last.is_none_or(|at| at.elapsed() >= QUIET) {
            *last = Some(Instant::now());
            tracing::warn!("kafka: {what}: {detail} (repeats within {} s are not shown)", QUIET.as_secs());
        } else {
            tracing::debug!("kafka: {what}: {detail}");
        }
    }

    /// What librdkafka said last about an error; empty before the first.
    pub(crate) fn last_reason(&self) -> String {
        lock(&self.last_reason).clone()
    }
}
