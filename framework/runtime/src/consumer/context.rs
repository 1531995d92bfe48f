//! What every part of a running consumer shares.

use std::error::Error;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use backstop_core::classify::causes;
use backstop_core::message::Message;
use backstop_core::{
    Classifier, DeadLetter, DeadLetters, DeadReason, Disposition, ErrorReport, Explained, HandlerError,
    MessageKey, Origin, Via,
};
use chrono::Utc;
use tokio_util::sync::CancellationToken;

use crate::consumer::policy::Policies;
use crate::run_error::RunError;
use crate::stats::{Stats, count};

/// Tries of a publish before the failure is made durable instead.
const QUARANTINE_TRIES: u32 = 3;
/// Waits between tries grow to this.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// A function that takes secrets and personal data out of error texts.
pub(crate) type Redact = Arc<dyn Fn(&str) -> String + Send + Sync>;

pub(crate) struct Context<D> {
    pub(crate) consumer: String,
    pub(crate) group: String,
    pub(crate) version: String,
    pub(crate) host: String,
    pub(crate) dead_letters: D,
    pub(crate) policies: Policies,
    pub(crate) classifier: Classifier,
    pub(crate) redact: Redact,
    pub(crate) stats: Arc<Stats>,
    /// Set when the consumer is to stop; waits end then.
    pub(crate) stop: CancellationToken,
    pub(crate) fatal: Mutex<Option<RunError>>,
}

/// A failure, judged.
#[derive(Debug)]
pub(crate) struct Judged {
    pub(crate) disposition: Disposition,
    pub(crate) report: ErrorReport,
}

/// A message that failed: what it was, where it was, and since when.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Subject<'a> {
    pub(crate) message: &'a Message,
    pub(crate) message_key: Option<&'a MessageKey>,
    pub(crate) origin: &'a Origin,
    pub(crate) via: Via,
    /// How long it has been failing.
    pub(crate) age: Duration,
}

impl<D: DeadLetters> Context<D> {
    /// What a failure means and how it reads; `explain` is what the store knows of its own errors.
    pub(crate) fn judge(
        &self,
        failure: &HandlerError,
        explain: impl Fn(&(dyn Error + 'static)) -> Option<Explained>,
    ) -> Judged {
        let explained = causes(failure.error()).find_map(explain).unwrap_or_default();
        Judged {
            disposition: self.classifier.dispose(failure, explained.disposition),
            report: ErrorReport::new(
                &self.consumer,
                failure.type_name(),
                failure.error(),
                explained.facts.as_deref(),
                &*self.redact,
            ),
        }
    }

    /// Publishes the letter of a message, a few times where it fails; `false` when it is not confirmed.
    pub(crate) async fn quarantine(
        &self,
        subject: Subject<'_>,
        judged: &Judged,
        reason: DeadReason,
        attempts: u32,
    ) -> bool {
        let letter = self.letter(subject, judged, reason, attempts);
        for attempt in 1..=QUARANTINE_TRIES {
            match self.dead_letters.quarantine(&letter).await {
                Ok(()) => {
                    count(&self.stats.quarantined);
                    let (consumer, error) = (&self.consumer, &judged.report.message);
                    tracing::warn!(%consumer, origin = %letter.origin, %reason, attempts, %error, "message quarantined");
                    backstop_core::crash_point!("consumer.quarantined");
                    return true;
                }
                Err(error) => {
                    let (consumer, hint) = (&self.consumer, error.error().hint());
                    tracing::error!(%consumer, origin = %letter.origin, %error, hint, "dead letter not published; the message is kept");
                }
            }
            if attempt < QUARANTINE_TRIES && !self.wait(attempt).await {
                break;
            }
        }
        false
    }

    fn letter(&self, subject: Subject<'_>, judged: &Judged, reason: DeadReason, attempts: u32) -> DeadLetter {
        let envelope = subject.message.envelope();
        let dead_at = Utc::now();
        let age = chrono::Duration::from_std(subject.age).unwrap_or_default();
        DeadLetter {
            generation: match subject.via {
                Via::Live => 0,
                Via::Door => backstop_core::dead_letter::generation(&envelope.headers),
            },
            envelope,
            origin: subject.origin.clone(),
            message_key: subject.message_key.cloned(),
            consumer: self.consumer.clone(),
            group: self.group.clone(),
            reason,
            class: judged.disposition.class(),
            report: judged.report.clone(),
            attempts,
            first_failed_at: dead_at - age,
            dead_at,
            host: self.host.clone(),
            consumer_version: self.version.clone(),
        }
    }
}

impl<D> Context<D> {
    /// Waits before try number `attempt + 1` of something that depends on others; `false` when the consumer stops.
    pub(crate) async fn wait(&self, attempt: u32) -> bool {
        let full = Duration::from_millis(100).saturating_mul(1 << attempt.min(10)).min(LONGEST_WAIT);
        self.sleep(full.mul_f64(0.5 + fastrand::f64() / 2.0)).await
    }

    /// Waits that long; `false` when the consumer stops.
    pub(crate) async fn sleep(&self, time: Duration) -> bool {
        tokio::select! {
            () = tokio::time::sleep(time) => true,
            () = self.stop.cancelled() => false,
        }
    }

    /// Stops the consumer with this error; the first one stays.
    pub(crate) fn fail(&self, error: RunError) {
        self.fatal.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        self.stop.cancel();
    }
}

impl<D> fmt::Debug for Context<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").field("consumer", &self.consumer).finish_non_exhaustive()
    }
}
