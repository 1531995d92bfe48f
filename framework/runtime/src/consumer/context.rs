//! What every part of a running consumer shares.

use std::error::Error;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use backstop_core::classify::causes;
use backstop_core::held::{Failure, HeldMessage};
use backstop_core::message::Message;
use backstop_core::source::{Received, Settlement};
use backstop_core::{
    AdapterError, Classifier, DeadLetter, DeadLetters, DeadReason, Disposition, ErrorClass, ErrorReport,
    Explained, FaultKind, HandlerError, MessageKey, Origin, Via,
};
use chrono::Utc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::consumer::policy::{Charged, Policies};
use crate::consumer::receipts::Desk;
use crate::consumer::sequence::{Sequences, Suspect};
use crate::control::Control;
use crate::control::breaker::{Attempt, Outcome};
use crate::control::gate::Pass;
use crate::control::waiting;
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
    /// The check of the numbers of messages, if there is one.
    pub(crate) sequence: Option<Sequences>,
    pub(crate) control: Arc<Control>,
    /// Where receipts and reports go, if anywhere.
    pub(crate) desk: Option<Desk>,
    /// Set when the consumer is to stop; waits end then.
    pub(crate) stop: CancellationToken,
    pub(crate) fatal: Mutex<Option<RunError>>,
}

/// A failure, judged.
#[derive(Debug)]
pub(crate) struct Judged {
    pub(crate) disposition: Disposition,
    pub(crate) report: ErrorReport,
    /// How often in a row its process died of it; 0 where its handler came to an end.
    pub(crate) crashes: u32,
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
            crashes: self.crashes,
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
            crashes: 0,
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

    /// The letter of a message that is given up now.
    pub(crate) fn letter(
        &self,
        subject: Subject<'_>,
        judged: &Judged,
        reason: DeadReason,
        attempts: u32,
    ) -> DeadLetter {
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
    /// Looks at a message's number. Asked once for each delivery, in the order of its key.
    pub(crate) fn suspect<S: Settlement>(&self, received: &Received<S>) -> Option<Suspect> {
        self.sequence.as_ref()?.suspect(received)
    }

    /// Tells of a number that is wrong; the error is what its message is to fail with.
    pub(crate) fn judge_number(&self, suspect: &Suspect) -> Result<(), HandlerError> {
        self.sequence.as_ref().map_or(Ok(()), |sequence| sequence.judge(suspect))
    }

    /// Waits before try number `attempt + 1` of something that depends on others; `false` when the consumer stops.
    pub(crate) async fn wait(&self, attempt: u32) -> bool {
        let full = Duration::from_millis(100).saturating_mul(1 << attempt.min(10)).min(LONGEST_WAIT);
        self.sleep(full.mul_f64(0.5 + fastrand::f64() / 2.0)).await
    }

    /// Waits in the middle of a message until the database may be asked again; `None` when the consumer stops. Hold
    /// what is returned while asking.
    pub(crate) async fn wait_out(&self, error: &AdapterError, tries: u32) -> Option<Pass<'_>> {
        if self.wait_unless_lost(error, tries).await {
            self.control.gate.again(&self.stop).await
        } else {
            None
        }
    }

    /// Waits after an error of the database, unless the breaker makes whoever comes next wait; `false` when the consumer
    /// stops.
    pub(crate) async fn wait_unless_lost(&self, error: &AdapterError, tries: u32) -> bool {
        (is_loss(error) && !self.control.gate.is_wide()) || self.wait(tries).await
    }

    /// What the database answered, or that it did not.
    pub(crate) fn answered<T>(
        &self,
        asked: Instant,
        answer: Result<T, AdapterError>,
    ) -> Result<T, AdapterError> {
        match &answer {
            Ok(_) => self.control.gate.database_answered(asked),
            Err(error) if is_loss(error) => self.control.gate.database_lost(),
            Err(_) => {}
        }
        answer
    }

    /// An attempt has succeeded.
    pub(crate) fn succeeded(&self, attempt: Attempt) {
        self.control.gate.ended(attempt, Outcome::Succeeded);
        self.control.waiting.done(attempt.key);
    }

    /// Tells the breaker of a failed attempt. What is unavailable while others succeed becomes transient.
    pub(crate) fn weigh(&self, attempt: Attempt, judged: Judged) -> Judged {
        let disposition = match judged.disposition {
            // Its handler was not called.
            Disposition::Fail(ErrorClass::Undecodable) => return judged,
            unavailable @ (Disposition::Fail(ErrorClass::Unavailable)
            | Disposition::RetryAfter(ErrorClass::Unavailable, _)) => {
                match (self.control.gate.ended(attempt, Outcome::Unavailable), unavailable) {
                    (false, _) => unavailable,
                    (true, Disposition::RetryAfter(_, wait)) => {
                        Disposition::RetryAfter(ErrorClass::Transient, wait)
                    }
                    (true, _) => Disposition::Fail(ErrorClass::Transient),
                }
            }
            other => {
                self.control.gate.ended(attempt, Outcome::Failed);
                other
            }
        };
        Judged { disposition, ..judged }
    }

    /// A key waits because one of its messages failed.
    pub(crate) fn waits(&self, place: &str, ordering_key: &[u8], failure: &Failure) {
        let told = waiting::Failure {
            place,
            key: ordering_key,
            why: &failure.error,
            attempts: failure.attempts,
            due_in: failure.due_in,
        };
        self.control.waiting.note(Attempt::now(place, ordering_key).key, &told, &*self.redact);
    }

    /// The head of a key is done, or given up.
    pub(crate) fn waits_no_more(&self, head: &HeldMessage) {
        self.control.waiting.done(Attempt::now(&head.place, &head.ordering_key).key);
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

/// Whether the database cannot be used by anybody, as far as the error tells. Others concern one message.
fn is_loss(error: &AdapterError) -> bool {
    matches!(error.kind(), FaultKind::Unreachable | FaultKind::Denied | FaultKind::Missing)
}

impl<D> fmt::Debug for Context<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").field("consumer", &self.consumer).finish_non_exhaustive()
    }
}
