//! What every part of a running consumer shares.

use std::error::Error;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use backstop_core::classify::causes;
use backstop_core::held::Failure;
use backstop_core::message::Message;
use backstop_core::{
    Classifier, DeadLetter, DeadLetters, DeadReason, Disposition, ErrorReport, Explained, HandlerError,
    MessageKey, Origin, Via,
};
use chrono::Utc;
use tokio_util::sync::CancellationToken;

use crate::consumer::policy::{Charged, Policies};
use crate::run_error::RunError;
use crate::stats::{Stats, count};

/// Tries of a publish before the failure is made durable instead.
const QUARANTINE_TRIES: u32 = 3;
/// How long publishing a letter may take, its tries together.
const LETTER_LIMIT: Duration = Duration::from_secs(25);
/// For how long a letter is the business of whoever condemned its message; longer than [`LETTER_LIMIT`], so that two
/// instances do not publish it at once.
pub(crate) const LETTER_LEASE: Duration = Duration::from_secs(30);
/// After how long a letter that could not be published is tried again.
pub(crate) const LETTER_AGAIN: Duration = Duration::from_secs(5);
/// After how long a message without a dead-letter destination is tried again.
pub(crate) const KEPT_AGAIN: Duration = Duration::from_secs(60);
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

impl Judged {
    /// What is written down of a failure after which the message is tried again.
    pub(crate) fn retried(&self, charged: Charged, due_in: Duration) -> Failure {
        Failure {
            attempts: charged.attempts,
            throttled: charged.throttled,
            class: self.disposition.class(),
            error: self.report.one_line(),
            due_in,
            condemned: None,
        }
    }

    /// The same for a message that is given up; `due_in` is when somebody else may publish its letter.
    pub(crate) fn condemned(&self, reason: DeadReason, charged: Charged, due_in: Duration) -> Failure {
        Failure { condemned: Some(reason), ..self.retried(charged, due_in) }
    }

    /// The same where there is no dead-letter destination: tried again now and then, until it is mended.
    pub(crate) fn kept(&self, attempts: u32) -> Failure {
        self.retried(Charged { attempts, throttled: 0 }, KEPT_AGAIN)
    }
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
        match tokio::time::timeout(LETTER_LIMIT, self.publish(&letter, judged)).await {
            Ok(published) => published,
            Err(_) => {
                let consumer = &self.consumer;
                tracing::error!(%consumer, origin = %letter.origin, "dead letter not confirmed in time; the message is kept");
                false
            }
        }
    }

    async fn publish(&self, letter: &DeadLetter, judged: &Judged) -> bool {
        for attempt in 1..=QUARANTINE_TRIES {
            match self.dead_letters.quarantine(letter).await {
                Ok(()) => {
                    count(&self.stats.quarantined);
                    let (consumer, error) = (&self.consumer, &judged.report.message);
                    let (reason, attempts) = (letter.reason, letter.attempts);
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

    /// Whether there is nowhere to publish letters to.
    pub(crate) fn keeps(&self) -> bool {
        self.dead_letters.keeps()
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
