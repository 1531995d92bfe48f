//! Running held messages: due heads of whatever key, claimed one by one.

use std::time::Duration;

use backstop_core::held::{ClaimedHead, Failure, HeldMessage, HeldMessages};
use backstop_core::inbox::CommitError;
use backstop_core::{
    Codec, DeadLetters, DeadReason, Delivery, Disposition, ErrorClass, Handler, HandlerError, Message,
    cloudevents, crash_point,
};
use tokio::sync::Notify;

use crate::consumer::context::{Judged, LETTER_AGAIN, LETTER_LEASE, Subject};
use crate::consumer::invoke::decode;
use crate::consumer::policy::{Charged, Next};
use crate::consumer::transactional::Transactional;
use crate::stats::count;

/// How often the table is looked at while messages are held here, and otherwise for those of other instances.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Looks without a due head before a worker slows down.
const PATIENCE: u32 = 100;
/// How often a worker that has slowed down looks.
const IDLE_LOOK_EVERY: Duration = Duration::from_secs(1);

/// Wakes workers when something was held.
#[derive(Debug, Default)]
pub(crate) struct HeldWork {
    arrived: Notify,
}

impl HeldWork {
    /// A message was held, appended or imported.
    pub(crate) fn arrived(&self) {
        self.arrived.notify_one();
    }
}

impl<I, H, C, D> Transactional<I, H, C, D>
where
    I: HeldMessages,
    H: Handler<I::Tx>,
    C: Codec<H::Message>,
    D: DeadLetters,
{
    /// Claims and runs due heads until the consumer stops.
    pub(crate) async fn run_held(&self) {
        let (mut empty, mut outages) = (0_u32, 0_u32);
        while !self.context.stop.is_cancelled() {
            match self.inbox.claim(&self.context.consumer, self.limits).await {
                Ok(Some(claimed)) => {
                    (empty, outages) = (0, 0);
                    self.held_work.arrived();
                    self.run_head(claimed).await;
                }
                Ok(None) => {
                    outages = 0;
                    empty = empty.saturating_add(1);
                    let rest = if empty < PATIENCE { LOOK_EVERY } else { IDLE_LOOK_EVERY };
                    tokio::select! {
                        _ = self.context.sleep(rest.mul_f64(0.5 + fastrand::f64())) => {}
                        () = self.held_work.arrived.notified() => empty = 0,
                    }
                }
                Err(error) => {
                    self.report_outage(&error, outages);
                    outages += 1;
                    self.context.wait(outages).await;
                }
            }
        }
    }

    async fn run_head(&self, claimed: ClaimedHead<I::Tx>) {
        let ClaimedHead { tx, head, handled } = claimed;
        if handled {
            return self.finish(tx, &head, &self.context.stats.duplicates).await;
        }
        let (message, _) = cloudevents::decode(head.envelope.clone(), &head.origin, head.via, None);
        if let Some(reason) = head.condemned {
            let (judged, charged) = (self.sentence(&head), Charged::of(&head));
            let tx = self.undone(tx).await;
            return self.condemn(tx, head, &message, &judged, reason, charged).await;
        }
        match decode(&self.codec, &message) {
            Ok(body) => {
                let key = head.message_key.clone();
                let attempt = head.attempts.saturating_add(1);
                let delivery = Delivery::new(body, message, key, head.origin.clone(), head.via, attempt);
                self.run_delivery(tx, head, &delivery).await;
            }
            Err(error) => self.failed_head(Some(tx), head, &message, &error).await,
        }
    }

    async fn run_delivery(&self, mut tx: I::Tx, head: HeldMessage, delivery: &Delivery<H::Message>) {
        match self.invocation().run(&self.handler, delivery, &mut tx).await {
            Ok(()) => match self.inbox.finish(&self.context.consumer, tx, &head).await {
                Ok(()) => count(&self.context.stats.handled),
                Err(error) => self.uncertain_head(head, delivery.message(), error).await,
            },
            Err(failed) => {
                // Where it is not sound, it is dropped here, before anything is written: the claim would be in the way.
                let tx = Some(tx).filter(|_| failed.tx_is_sound);
                self.failed_head(tx, head, delivery.message(), &failed.error).await;
            }
        }
    }

    /// The transaction, with only the claim in it; `None` where it cannot be used any more.
    async fn undone(&self, mut tx: I::Tx) -> Option<I::Tx> {
        match self.inbox.undo(&mut tx).await {
            Ok(()) => Some(tx),
            Err(error) => {
                tracing::debug!(%error, "the claim of a held message is lost");
                None
            }
        }
    }

    /// A commit that did not simply succeed. Where it is in the database all the same, the next claim finds the inbox
    /// row and deletes the head.
    async fn uncertain_head(&self, head: HeldMessage, message: &Message, error: CommitError) {
        match &error {
            CommitError::Unknown(_) => {
                tracing::warn!(consumer = self.context.consumer, n = head.n, %error, "will be claimed again");
            }
            CommitError::RolledBack(_) => {
                self.failed_head(None, head, message, &HandlerError::from(error)).await
            }
            CommitError::EndedByHandler(_) => {
                if matches!(self.outcome(&head.message_key).await, Ok(false)) {
                    self.failed_head(None, head, message, &HandlerError::permanent(error)).await;
                }
            }
        }
    }

    /// A failed attempt of a head: written down for another one, or given up.
    async fn failed_head(
        &self,
        tx: Option<I::Tx>,
        head: HeldMessage,
        message: &Message,
        error: &HandlerError,
    ) {
        count(&self.context.stats.failures);
        let judged = self.judge(error);
        let tx = match tx {
            Some(tx) => self.undone(tx).await,
            None => None,
        };
        let charged = Charged::of(&head);
        match self.context.policies.after(judged.disposition, charged, head.age, fastrand::f64()) {
            Next::Retry { charged, due_in } => {
                self.put_back(tx, &head, &judged.retried(charged, due_in)).await;
            }
            Next::Quarantine(_) if self.context.keeps() => {
                self.put_back(tx, &head, &judged.kept(head.attempts.saturating_add(1))).await;
            }
            Next::Quarantine(reason) => {
                let charged = charged.with_one_more();
                self.condemn(tx, head, message, &judged, reason, charged).await;
            }
        }
    }

    /// Gives a head up, in three steps that each may be the last: that it is given up is written down, which keeps
    /// other instances away for as long as the letter may take; the letter is published, with no transaction open;
    /// the head is deleted. Whoever finds a condemned head that is due publishes its letter again, under the same id.
    ///
    /// Without a transaction the claim is lost, and another instance may be at the head: it is written down, and
    /// whoever claims it next publishes the letter.
    async fn condemn(
        &self,
        tx: Option<I::Tx>,
        head: HeldMessage,
        message: &Message,
        judged: &Judged,
        reason: DeadReason,
        charged: Charged,
    ) {
        let claimed = tx.is_some();
        let due_in = if claimed { LETTER_LEASE } else { Duration::ZERO };
        let written = self.put_back(tx, &head, &judged.condemned(reason, charged, due_in)).await;
        if !(claimed && written) {
            return self.held_work.arrived();
        }
        let head = HeldMessage { attempts: charged.attempts, condemned: Some(reason), ..head };
        let subject = Subject {
            message,
            message_key: Some(&head.message_key),
            origin: &head.origin,
            via: head.via,
            age: head.age,
        };
        if !self.context.quarantine(subject, judged, reason, head.attempts).await {
            self.put_back(None, &head, &judged.condemned(reason, charged, LETTER_AGAIN)).await;
            return;
        }
        crash_point!("consumer.held.quarantined");
        match self.inbox.give_up(&self.context.consumer, &head).await {
            Ok(()) => self.held_work.arrived(),
            Err(error) => {
                tracing::warn!(consumer = self.context.consumer, n = head.n, %error, "quarantined, but still held; will be repeated");
            }
        }
    }

    /// Writes a failed attempt down; `false` where that cannot be done.
    async fn put_back(&self, tx: Option<I::Tx>, head: &HeldMessage, failure: &Failure) -> bool {
        let consumer = &self.context.consumer;
        let Failure { attempts, due_in, error, .. } = failure;
        tracing::info!(%consumer, origin = %head.origin, attempts, ?due_in, %error, "held message failed");
        match self.inbox.reschedule(consumer, tx, head, failure).await {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(%consumer, n = head.n, %error, hint = error.hint(), "a failed attempt could not be written down");
                false
            }
        }
    }

    async fn finish(&self, tx: I::Tx, head: &HeldMessage, counter: &std::sync::atomic::AtomicU64) {
        match self.inbox.finish(&self.context.consumer, tx, head).await {
            Ok(()) => count(counter),
            Err(error) => {
                tracing::warn!(consumer = self.context.consumer, n = head.n, %error, "will be claimed again")
            }
        }
    }

    /// What was written down when the head was condemned.
    fn sentence(&self, head: &HeldMessage) -> Judged {
        let text = head.error.clone().unwrap_or_default();
        let class = head.class.unwrap_or(ErrorClass::Transient);
        let failure = HandlerError::permanent(Sentence(text));
        let mut judged = self.judge(&failure);
        judged.disposition = Disposition::Fail(class);
        judged
    }
}

/// An error of an earlier attempt, as it was written down.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Sentence(String);
