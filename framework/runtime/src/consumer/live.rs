//! A message from its topic or queue, from receipt to settling, beside an inbox.

use backstop_core::classify::Explained;
use backstop_core::held::{Failure, Holding, NewHeld, ordering_key};
use backstop_core::identity::Identity;
use backstop_core::inbox::{Admission, CommitError, Unit};
use backstop_core::source::{Received, Settlement};
use backstop_core::{
    AdapterError, Codec, DeadLetters, DeadReason, Delivery, Disposition, FaultKind, HandlerError, Headers,
    Message, MessageKey, Origin, ReceiptOutcome, Via, crash_point,
};
use std::error::Error;
use std::time::Duration;
use tokio::time::Instant;

use crate::consumer::calling::Calls;
use crate::consumer::context::{Judged, LETTER_AGAIN, Subject};
use crate::consumer::invoke::decode;
use crate::consumer::policy::{Charged, Next};
use crate::consumer::sequence::Suspect;
use crate::consumer::suspects::Examined;
use crate::consumer::transactional::Transactional;
use crate::control::breaker::Attempt;
use crate::control::gate::Pass;
use crate::run_error::RunError;
use crate::settings::MissingId;
use crate::stats::count;

/// Tries at once after a lost race, before it counts as a failure.
const CONFLICT_TRIES: u32 = 3;

/// What one try came to.
#[derive(Debug)]
enum Try {
    /// Its effects are committed.
    Handled,
    /// The inbox knew it.
    Duplicate,
    /// An earlier message of its key is held.
    KeyHeld,
    /// Another instance is at it.
    Busy,
    /// The handler, or its commit, failed.
    Failed(HandlerError),
    /// The database could not be asked, or nobody knows whether it committed.
    Outage(AdapterError),
}

/// The message was started by two instances at once.
#[derive(Debug, thiserror::Error)]
#[error("another instance is handling this message")]
struct BusyElsewhere;

impl<I, H, C, D> Transactional<I, H, C, D>
where
    I: backstop_core::held::HeldMessages,
    H: Calls<I::Tx>,
    C: Codec<H::Message>,
    D: DeadLetters,
{
    /// Handles the message as far as it goes, and settles it when it is done or its failure is durable.
    pub(crate) async fn receive<S: Settlement>(&self, received: Received<S>) {
        let suspect = self.context.suspect(&received);
        let sequence = self.in_sequence(suspect).await;
        self.receive_checked(received, sequence).await;
    }

    /// What a message whose number is wrong is to fail with, if with anything. The inbox knows duplicates by more than
    /// their numbers.
    pub(crate) async fn in_sequence(&self, suspect: Option<Suspect>) -> Result<(), HandlerError> {
        let Some(suspect) = suspect else { return Ok(()) };
        if let Some(key) = suspect.perhaps_handled()
            && matches!(self.outcome(key).await, Ok(true))
        {
            return Ok(());
        }
        self.context.judge_number(&suspect)
    }

    /// Handles a message whose number was looked at.
    pub(crate) async fn receive_checked<S: Settlement>(
        &self,
        received: Received<S>,
        sequence: Result<(), HandlerError>,
    ) {
        let Received { message, identity, origin, via, mut settlement } = received;
        if !settlement.begin() {
            return;
        }
        let suspect = via == Via::Live && settlement.is_suspect();
        let done = match self.identify(&message, identity, &origin, via).await {
            Identified::As(key) if suspect => match self.examine(message, &key, &origin, sequence).await {
                Examined::Known => return settlement.settle_known(),
                Examined::Done => true,
                Examined::Left => false,
            },
            Identified::As(key) => self.work(message, &key, &origin, via, sequence).await,
            Identified::Quarantined => true,
            Identified::Left => false,
        };
        if done {
            settlement.settle();
        }
    }

    async fn identify(&self, message: &Message, identity: Identity, origin: &Origin, via: Via) -> Identified {
        match (identity, self.missing_id) {
            (Identity::Declared(key), _) => Identified::As(key),
            (Identity::Coordinates(key), _) => {
                count(&self.context.stats.without_id);
                Identified::As(key)
            }
            (_, MissingId::Stop) => {
                self.context.fail(RunError::missing_id(origin));
                Identified::Left
            }
            (_, MissingId::ProcessWithoutDedup) => {
                count(&self.context.stats.without_id);
                Identified::As(MessageKey::new("without-dedup", uuid::Uuid::now_v7().as_bytes()))
            }
            (_, MissingId::DeadLetter) => {
                let failure = HandlerError::permanent(NoId);
                let judged = self.context.judge(&failure, |_| None);
                let subject = Subject { message, message_key: None, origin, via, age: Duration::ZERO };
                // Without an identity there is no held row: the message waits in place until its letter is published.
                while !self.context.quarantine(subject, &judged, DeadReason::MissingId, 0).await {
                    if !self.context.wait(5).await {
                        return Identified::Left;
                    }
                }
                Identified::Quarantined
            }
        }
    }

    /// Whether the message may be settled.
    pub(crate) async fn work(
        &self,
        message: Message,
        key: &MessageKey,
        origin: &Origin,
        via: Via,
        sequence: Result<(), HandlerError>,
    ) -> bool {
        let ordering = self.ordering_key(&message, key, origin);
        let unit = Unit {
            consumer: &self.context.consumer,
            place: origin.place(),
            ordering_key: &ordering,
            message_key: key,
        };
        if via == Via::Door {
            return self.come_in(unit, &message, origin).await;
        }
        let body = match sequence.and_then(|()| decode(&self.codec, &message)) {
            Ok(body) => body,
            Err(error) => {
                let judged = self.judge(&error);
                return self.failed(unit, &message, origin, &judged).await;
            }
        };
        let delivery = Delivery::new(body, message, key.clone(), origin.clone(), via, 1);
        self.attempts(unit, &delivery).await
    }

    pub(crate) async fn attempts(&self, unit: Unit<'_>, delivery: &Delivery<H::Message>) -> bool {
        let (mut outages, mut conflicts) = (0, 0);
        let mut _turn = None;
        loop {
            let attempt = Attempt::now(unit.place, unit.ordering_key);
            match self.attempt(unit, delivery).await {
                Try::Handled => {
                    self.context.succeeded(attempt);
                    count(&self.context.stats.handled);
                    return true;
                }
                Try::Duplicate => {
                    count(&self.context.stats.duplicates);
                    return true;
                }
                Try::KeyHeld => match self.append(unit, delivery).await {
                    Some(done) => return done,
                    None => continue,
                },
                Try::Busy => return self.step_aside(unit, delivery).await,
                Try::Failed(error) => {
                    let judged = self.context.weigh(attempt, self.judge(&error));
                    if judged.disposition != Disposition::Conflict || conflicts == CONFLICT_TRIES {
                        return self.failed(unit, delivery.message(), delivery.origin(), &judged).await;
                    }
                    conflicts += 1;
                    let jitter = Duration::from_millis(fastrand::u64(1..=20 << conflicts));
                    if !self.context.sleep(jitter).await {
                        return false;
                    }
                }
                Try::Outage(error) => {
                    self.report_outage(&error, outages);
                    outages += 1;
                    let Some(turn) = self.context.wait_out(&error, outages).await else { return false };
                    _turn = Some(turn);
                }
            }
        }
    }

    /// Begin, handler, proven commit.
    async fn attempt(&self, unit: Unit<'_>, delivery: &Delivery<H::Message>) -> Try {
        let place = self.turns.place().await;
        let asked = Instant::now();
        let admission = self.inbox.begin(unit, self.limits).await;
        let mut tx = match self.context.answered(asked, admission) {
            Ok(Admission::Fresh(tx)) => tx,
            Ok(Admission::Duplicate) => return Try::Duplicate,
            Ok(Admission::Held) => return Try::KeyHeld,
            Ok(Admission::Busy) => return Try::Busy,
            Err(error) => return Try::Outage(error),
        };
        let mut turn = place.turn().await;
        let called = self.handler.one(self.invocation(), delivery, &mut tx).await;
        turn.end(1);
        if let Err(failed) = called {
            if failed.tx_is_sound {
                self.inbox.rollback(tx).await;
            }
            return Try::Failed(failed.error);
        }
        match self.inbox.commit(tx).await {
            Ok(()) => {
                crash_point!("consumer.committed");
                self.group_size.committed(1);
                Try::Handled
            }
            Err(error) => self.uncertain(unit, error).await,
        }
    }

    /// What a commit that did not simply succeed comes to: where nobody knows, the inbox does.
    async fn uncertain(&self, unit: Unit<'_>, error: CommitError) -> Try {
        match error {
            CommitError::RolledBack(_) => return Try::Failed(HandlerError::from(error)),
            CommitError::EndedByHandler(_) => self.found_out(),
            CommitError::Unknown(_) => {}
        }
        match self.outcome(unit.message_key).await {
            Err(outage) => Try::Outage(outage),
            Ok(true) => {
                tracing::warn!(consumer = unit.consumer, message = %unit.message_key, %error, "committed all the same");
                Try::Handled
            }
            Ok(false) => match error {
                CommitError::Unknown(error) => Try::Outage(error),
                ended => Try::Failed(HandlerError::permanent(ended)),
            },
        }
    }

    /// Asks the inbox until it answers; the error is the last one when the consumer stops.
    pub(crate) async fn outcome(&self, key: &MessageKey) -> Result<bool, AdapterError> {
        let asked = self.asked(|| self.inbox.is_handled(&self.context.consumer, key)).await;
        asked.map(|(handled, _)| handled)
    }

    /// What the database answers, once it does, and how many tries failed before; the error is the last one when the
    /// consumer stops.
    pub(crate) async fn asked<T, F>(&self, mut ask: impl FnMut() -> F) -> Result<(T, u32), AdapterError>
    where
        F: Future<Output = Result<T, AdapterError>>,
    {
        let (mut tries, mut turn) = (0, None);
        loop {
            let asked = Instant::now();
            match self.context.answered(asked, ask().await) {
                Ok(answer) => return Ok((answer, tries)),
                Err(error) if !self.ask_again(&error, &mut tries, &mut turn).await => return Err(error),
                Err(_) => {}
            }
        }
    }

    /// Repeats a write that no message waits for until the database has taken it; `false` when the consumer stops before.
    pub(crate) async fn until_taken<F>(&self, mut write: impl FnMut() -> F) -> bool
    where
        F: Future<Output = Result<(), AdapterError>>,
    {
        let mut tries = 0;
        while let Err(error) = write().await {
            self.report_outage(&error, tries);
            tries += 1;
            if !self.context.wait(tries).await {
                return false;
            }
        }
        true
    }

    /// After an error in the middle of a message: waits until the database may be asked again; `false` when the consumer
    /// stops. Hold the `turn` while asking.
    async fn ask_again<'a>(
        &'a self,
        error: &AdapterError,
        tries: &mut u32,
        turn: &mut Option<Pass<'a>>,
    ) -> bool {
        self.report_outage(error, *tries);
        *tries += 1;
        *turn = self.context.wait_out(error, *tries).await;
        turn.is_some()
    }

    /// A failure of a live message: quarantined or held; whether it may be settled.
    async fn failed(&self, unit: Unit<'_>, message: &Message, origin: &Origin, judged: &Judged) -> bool {
        count(&self.context.stats.failures);
        let subject = subject_of(unit, message, origin, Via::Live);
        let (none, random) = (Charged::default(), fastrand::f64());
        match self.context.policies.after(judged.disposition, none, Duration::ZERO, random) {
            Next::Retry { charged, due_in } => match self.give_up_once_more(unit, subject).await {
                Some(done) => done,
                None => self.hold(unit, subject, &judged.retried(charged, due_in)).await,
            },
            Next::Quarantine(reason) => self.give_up_live(unit, subject, judged, reason, 1).await,
        }
    }

    /// Quarantines a live message, or holds it until that is done; whether it may be settled.
    pub(crate) async fn give_up_live(
        &self,
        unit: Unit<'_>,
        subject: Subject<'_>,
        judged: &Judged,
        reason: DeadReason,
        attempts: u32,
    ) -> bool {
        let charged = Charged { attempts, throttled: 0 };
        let failure = if self.context.keeps() {
            judged.kept(attempts)
        } else if self.ordered {
            return self.condemn_live(unit, subject, judged, reason, charged).await;
        } else if self.context.quarantine(subject, judged, reason, attempts).await {
            return true;
        } else {
            judged.condemned(reason, charged, LETTER_AGAIN)
        };
        self.hold(unit, subject, &failure).await
    }

    /// The key under which the message is kept in order.
    pub(crate) fn ordering_key(&self, message: &Message, key: &MessageKey, origin: &Origin) -> Vec<u8> {
        ordering_key(message, key, origin, self.unordered)
    }

    /// Another instance is at it: held, uncharged; when it is due, the inbox tells whether it is done.
    async fn step_aside(&self, unit: Unit<'_>, delivery: &Delivery<H::Message>) -> bool {
        let judged = self.judge(&HandlerError::unavailable(BusyElsewhere));
        let subject = subject_of(unit, delivery.message(), delivery.origin(), Via::Live);
        let failure = judged.retried(Charged::default(), Duration::from_millis(500));
        self.hold(unit, subject, &failure).await
    }

    async fn hold(&self, unit: Unit<'_>, subject: Subject<'_>, failure: &Failure) -> bool {
        match self.write_down(unit, subject, failure).await {
            Ok(held) => self.note(held, &self.context.stats.held),
            Err(settled) => settled,
        }
    }

    /// Holds the message; where that cannot be done, the error is whether it may be settled all the same.
    pub(crate) async fn write_down(
        &self,
        unit: Unit<'_>,
        subject: Subject<'_>,
        failure: &Failure,
    ) -> Result<Holding, bool> {
        let envelope = subject.message.envelope();
        let new = NewHeld { unit, envelope: &envelope, origin: subject.origin, via: subject.via };
        let (consumer, origin) = (unit.consumer, subject.origin);
        let Failure { attempts, due_in, error, .. } = failure;
        tracing::info!(%consumer, %origin, attempts, ?due_in, %error, "message held");
        match self.until_answered(|| self.inbox.hold(new.clone(), failure)).await {
            Stored::Refused(refusal) => {
                let failed = format!("it was to be held because it failed: {error}");
                Err(self.refused(subject, Refusal { error: refusal, failed }, failure.attempts).await)
            }
            Stored::As(held) => {
                if held != Holding::AlreadyHandled {
                    self.context.waits(unit.place, unit.ordering_key, failure);
                }
                Ok(held)
            }
            Stored::Stopped => Err(false),
        }
    }

    pub(crate) async fn import(&self, unit: Unit<'_>, message: &Message, origin: &Origin) -> bool {
        let envelope = message.envelope();
        let new = NewHeld { unit, envelope: &envelope, origin, via: Via::Door };
        match self.until_answered(|| self.inbox.import(new.clone())).await {
            Stored::Refused(error) => {
                let subject = subject_of(unit, message, origin, Via::Door);
                let failed = "it came through the door".to_owned();
                self.refused(subject, Refusal { error, failed }, 0).await
            }
            Stored::As(imported) => self.taken_in(unit.message_key, &message.headers, imported).await,
            Stored::Stopped => false,
        }
    }

    /// A redriven message was taken in, or had been handled before; whether it may be settled.
    pub(crate) async fn taken_in(&self, key: &MessageKey, headers: &Headers, holding: Holding) -> bool {
        let owed = holding != Holding::AlreadyHandled
            || self.owe_now(key, headers, ReceiptOutcome::AlreadyHandled).await;
        owed && self.note(holding, &self.context.stats.redriven)
    }

    /// Whether the message may be settled; `None` when its key is free again and it must be handled anew.
    async fn append(&self, unit: Unit<'_>, delivery: &Delivery<H::Message>) -> Option<bool> {
        let envelope = delivery.message().envelope();
        let new = NewHeld { unit, envelope: &envelope, origin: delivery.origin(), via: Via::Live };
        Some(match self.until_answered(|| self.inbox.append(new.clone())).await {
            Stored::Refused(error) => {
                let subject = subject_of(unit, delivery.message(), delivery.origin(), Via::Live);
                let failed = "an earlier message of its key is held".to_owned();
                self.refused(subject, Refusal { error, failed }, 0).await
            }
            Stored::As(Holding::KeyFree) => return None,
            Stored::As(appended) => self.note(appended, &self.context.stats.waiting),
            Stored::Stopped => false,
        })
    }

    /// A message that the database will never take goes to its dead letters at once. Nothing can be written down of
    /// it, so it waits in place until its letter is published.
    async fn refused(&self, subject: Subject<'_>, refusal: Refusal, attempts: u32) -> bool {
        let judged = self.judge(&HandlerError::permanent(refusal));
        while !self.context.quarantine(subject, &judged, DeadReason::Refused, attempts).await {
            if !self.context.wait(5).await {
                return false;
            }
        }
        true
    }

    /// Counts what was stored and wakes whoever runs held messages; whether the message may be settled.
    pub(crate) fn note(&self, holding: Holding, counter: &std::sync::atomic::AtomicU64) -> bool {
        match holding {
            Holding::AlreadyHandled => count(&self.context.stats.duplicates),
            Holding::Stored | Holding::KeyFree => {
                count(counter);
                self.held_work.arrived();
            }
        }
        crash_point!("consumer.held");
        true
    }

    /// Repeats a write until the database has taken it, or has refused this very message while it takes others.
    async fn until_answered<F>(&self, mut write: impl FnMut() -> F) -> Stored
    where
        F: Future<Output = Result<Holding, AdapterError>>,
    {
        let (mut tries, mut turn) = (0, None);
        loop {
            let asked = Instant::now();
            match self.context.answered(asked, write().await) {
                Ok(holding) => return Stored::As(holding),
                // A database that is not what it was would refuse every message, and all would become letters.
                Err(error) if error.kind() == FaultKind::Invalid && self.inbox.ready().await.is_ok() => {
                    return Stored::Refused(error);
                }
                Err(error) if !self.ask_again(&error, &mut tries, &mut turn).await => return Stored::Stopped,
                Err(_) => {}
            }
        }
    }

    pub(crate) fn judge(&self, error: &HandlerError) -> Judged {
        self.context
            .judge(error, |error: &(dyn Error + 'static)| -> Option<Explained> { self.inbox.explain(error) })
    }

    /// Says what is wrong with the database, the first time and then now and again.
    pub(crate) fn report_outage(&self, error: &AdapterError, tries: u32) {
        if tries.is_power_of_two() || tries == 0 {
            let (consumer, hint, cause) =
                (&self.context.consumer, error.hint(), error.source().map(tracing::field::display));
            tracing::error!(%consumer, %error, cause, hint, tries, "the consumer's database does not answer; waiting");
        }
    }
}

/// A message that has just failed, or was never tried.
pub(crate) fn subject_of<'a>(
    unit: Unit<'a>,
    message: &'a Message,
    origin: &'a Origin,
    via: Via,
) -> Subject<'a> {
    Subject { message, message_key: Some(unit.message_key), origin, via, age: Duration::ZERO }
}

/// What became of a message that was to be written down.
enum Stored {
    As(Holding),
    /// It can never be.
    Refused(AdapterError),
    /// The consumer stops.
    Stopped,
}

/// A message that must be held, and cannot.
#[derive(Debug, thiserror::Error)]
#[error("the database refuses to hold the message; {failed}")]
struct Refusal {
    #[source]
    error: AdapterError,
    failed: String,
}

enum Identified {
    As(MessageKey),
    Quarantined,
    Left,
}

/// A message came without an id.
#[derive(Debug, thiserror::Error)]
#[error("the message has no id")]
struct NoId;
