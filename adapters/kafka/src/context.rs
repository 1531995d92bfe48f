//! How librdkafka's own log lines and errors reach ours.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use backstop_core::AdapterError;
use rdkafka::client::{ClientContext, OAuthToken};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaErrorCode as Code;

use crate::fault::{is_refusal, refused};
use crate::token::TokenFile;

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
    refusal: Mutex<Option<(Code, String)>>,
}

impl Voice {
    /// A line that librdkafka wrote.
    pub(crate) fn line(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        // The end of a connection is an error to librdkafka only where it did not see it coming.
        if facility == "FAIL" {
            text.clone_into(&mut lock(&self.last_reason));
        }
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
        // That all brokers are down is what follows from the reason before.
        let mut last = lock(&self.last_reason);
        if last.is_empty() || error.rdkafka_error_code() != Some(Code::AllBrokersDown) {
            reason.clone_into(&mut last);
        }
        drop(last);
        if let Some(code) = error.rdkafka_error_code().filter(|code| is_refusal(*code, reason)) {
            *lock(&self.refusal) = Some((code, reason.to_owned()));
        }
    }

    /// Why brokers refused this client, if one has since it last got through.
    pub(crate) fn refusal(&self) -> Option<AdapterError> {
        lock(&self.refusal).as_ref().map(|(code, reason)| refused(*code, reason))
    }

    /// The client got through to a broker.
    pub(crate) fn forget_refusal(&self) {
        *lock(&self.refusal) = None;
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

/// The callbacks of a client that only asks.
#[derive(Debug, Default)]
pub(crate) struct Asking {
    pub(crate) voice: Voice,
    pub(crate) token: TokenFile,
}

impl ClientContext for Asking {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        self.voice.line(level, facility, text);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.voice.error(&error, reason);
    }

    fn generate_oauth_token(&self, _: Option<&str>) -> Result<OAuthToken, Box<dyn std::error::Error>> {
        self.token.read()
    }
}

impl ConsumerContext for Asking {}
