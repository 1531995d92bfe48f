//! Running held messages: due heads of whatever key, claimed one by one, or several where they may share transactions.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use backstop_core::held::{ClaimError, ClaimedHead, Failure, HeadCharge, Heads, HeldMessage, HeldMessages};
use backstop_core::held_run::ClaimedRun;
use backstop_core::inbox::CommitError;
use backstop_core::{
    Codec, DeadLetters, DeadReason, Delivery, Disposition, ErrorClass, HandlerError, Message, ReceiptOutcome,
    Via, cloudevents, crash_point,
};
use tokio::sync::{Notify, Semaphore};
use tokio::time::{Instant, sleep};

use crate::consumer::calling::Calls;
use crate::consumer::context::{Judged, LETTER_AGAIN, LETTER_LEASE, Subject};
use crate::consumer::held_run::Loners;
use crate::consumer::invoke::decode;
use crate::consumer::policy::{Charged, Next};
use crate::consumer::suspects::Turn;
use crate::consumer::transactional::Transactional;
use crate::consumer::turns::Place;
use crate::control::breaker::Attempt;
use crate::stats::count;

/// How often a worker looks at the table while messages are held here.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Looks without a due head before workers slow down.
const PATIENCE: u32 = 200;
/// How often a worker looks otherwise, for those of other instances.
const IDLE_LOOK_EVERY: Duration = Duration::from_secs(1);

/// What a worker has claimed.
enum Claimed<'a, Tx> {
    /// A head, and the right to be run by itself where it needs it.
    Head(Box<ClaimedHead<Tx>>, Option<Turn<'a>>),
    Run(ClaimedRun<Tx>),
}

/// Wakes workers when something was held, and knows what they are at.
#[derive(Debug)]
pub(crate) struct HeldWork {
    arrived: Notify,
    /// Looks without a due head, of all workers in a row.
    in_vain: AtomicU32,
    /// Of those who wait, one looks at the table now and then. Who finds something wakes the next one.
    lookout: Semaphore,
    /// Heads that are charged and of whose end nothing is written yet, with their charges.
    begun: Mutex<BTreeMap<i64, HeadCharge>>,
    pub(crate) loners: Loners,
    /// Whether a run is looked for before a single head, by turns: neither kind keeps the other waiting.
    run_first: AtomicBool,
}

impl Default for HeldWork {
    fn default() -> Self {
        Self {
            arrived: Notify::default(),
            in_vain: AtomicU32::default(),
            lookout: Semaphore::new(1),
            begun: Mutex::default(),
            loners: Loners::default(),
            run_first: AtomicBool::default(),
        }
    }
}

impl HeldWork {
    /// A message was held, appended or imported.
    pub(crate) fn arrived(&self) {
        self.arrived.notify_one();
    }

    /// Something was due: there may be more.
    fn found(&self) {
        self.in_vain.store(0, Ordering::Relaxed);
        self.arrived();
    }

    /// Nothing was due: rests until something arrives, or it is time to look again. Whoever `always_looks` does so by a
    /// clock of its own.
    async fn rest(&self, always_looks: bool) {
        let looks = self.in_vain.fetch_add(1, Ordering::Relaxed);
        let rest = if looks < PATIENCE { LOOK_EVERY } else { IDLE_LOOK_EVERY };
        let look = async {
            let _lookout = if always_looks { None } else { self.lookout.acquire().await.ok() };
            sleep(rest.mul_f64(0.5 + fastrand::f64())).await;
        };
        tokio::select! {
            () = look => {}
            () = self.arrived.notified() => self.in_vain.store(0, Ordering::Relaxed),
        }
    }

    pub(crate) fn begin(&self, charges: &[HeadCharge]) {
        lock(&self.begun).extend(charges.iter().map(|charge| (charge.n, *charge)));
    }

    pub(crate) fn is_begun(&self, n: i64) -> bool {
        lock(&self.begun).contains_key(&n)
    }

    /// The end of a run is written.
    pub(crate) fn end(&self, n: i64) {
        lock(&self.begun).remove(&n);
    }

    /// Those of whose end nothing is written.
    pub(crate) fn unfinished(&self) -> impl Iterator<Item = HeadCharge> {
        std::mem::take(&mut *lock(&self.begun)).into_values()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<I, H, C, D> Transactional<I, H, C, D>
where
    I: HeldMessages,
    H: Calls<I::Tx>,
    C: Codec<H::Message>,
    D: DeadLetters,
{
    /// Claims and runs due heads until the consumer stops; `doubtful` ones too, or only the others.
    pub(crate) async fn run_held(&self, doubtful: bool) {
        let mut outages = 0;
        while let Some(pass) = self.context.control.gate.pass(&self.context.stop).await
            && !self.context.stop.is_cancelled()
        {
            let place = self.turns.place().await;
            let asked = Instant::now();
            let mut charged = Vec::new();
            let claimed = self.claim(doubtful).await.map_err(|failed| {
                charged = failed.charged;
                failed.error
            });
            match self.context.answered(asked, claimed) {
                Ok(Some(claimed)) => {
                    outages = 0;
                    self.held_work.found();
                    match claimed {
                        Claimed::Head(head, _alone) => self.run_charged(*head, place).await,
                        Claimed::Run(run) => self.run_several(run, place).await,
                    }
                }
                Ok(None) => {
                    drop((pass, place));
                    outages = 0;
                    self.context.stop.run_until_cancelled(self.held_work.rest(doubtful)).await;
                }
                Err(error) => {
                    self.report_outage(&error, outages);
                    drop((pass, place));
                    outages += 1;
                    self.context.wait_unless_lost(&error, outages).await;
                    if !charged.is_empty() {
                        self.take_back(charged).await;
                    }
                }
            }
        }
    }

    /// What is due; a doubtful head together with the right to be run by itself.
    async fn claim(&self, doubtful: bool) -> Result<Option<Claimed<'_, I::Tx>>, ClaimError> {
        let claim = |heads| self.inbox.claim(&self.context.consumer, self.limits, heads);
        if doubtful
            && let Some(alone) = self.suspects.turn_alone()
            && let Some(claimed) = claim(Heads::Doubtful).await?
        {
            return Ok(Some(Claimed::Head(Box::new(claimed), Some(alone))));
        }
        let run_first = self.held_work.run_first.fetch_xor(true, Ordering::Relaxed);
        if run_first && let Some(run) = self.claim_run().await? {
            return Ok(Some(Claimed::Run(run)));
        }
        if let Some(head) = claim(Heads::Sound).await? {
            return Ok(Some(Claimed::Head(Box::new(head), None)));
        }
        Ok(None)
    }

    /// Runs a head that was charged with its claim. Where nothing could be written of the end, the charge is taken back.
    async fn run_charged(&self, claimed: ClaimedHead<I::Tx>, place: Place<'_>) {
        let head = &claimed.head;
        // One that is given up does not run: what it has felled is not forgotten.
        let runs = head.crashes < self.suspects.max_crashes;
        let charge = if runs { head.spent_charge() } else { head.unused_charge() };
        self.held_work.begin(&[charge]);
        self.run_head(claimed, place).await;
        self.held_work.loners.remove(charge.n);
        if self.held_work.is_begun(charge.n) {
            self.take_back(vec![charge]).await;
        }
    }

    /// Takes charges back that nobody has died of; where the consumer stops before, its farewell does.
    pub(crate) async fn take_back(&self, charges: Vec<HeadCharge>) {
        self.held_work.begin(&charges);
        if self.until_taken(|| self.inbox.acquit_heads(&self.context.consumer, &charges)).await {
            charges.iter().for_each(|charge| self.held_work.end(charge.n));
        }
    }

    /// Only a handler needs the place: nobody else waits while a letter is published.
    async fn run_head(&self, claimed: ClaimedHead<I::Tx>, place: Place<'_>) {
        let ClaimedHead { tx, head, handled } = claimed;
        if handled {
            return self.finish(tx, &head, &self.context.stats.duplicates).await;
        }
        let (message, _) = cloudevents::decode(head.envelope.clone(), &head.origin, head.via, None);
        if let Some(reason) = head.condemned {
            drop(place);
            let (judged, charged) = (self.sentence(&head), Charged::of(&head));
            let tx = self.undone(tx).await;
            return self.condemn(tx, head, &message, &judged, reason, charged).await;
        }
        if head.crashes >= self.suspects.max_crashes {
            drop(place);
            return self.give_up_crashed_head(tx, head, &message).await;
        }
        if head.crashes > 0 {
            self.suspects.count_handled(&self.context.stats);
        }
        crash_point!("consumer.held.charged");
        match decode(&self.codec, &message) {
            Ok(body) => {
                let key = head.message_key.clone();
                let attempt = head.attempts.saturating_add(1);
                let delivery = Delivery::new(body, message, key, head.origin.clone(), head.via, attempt);
                self.run_delivery(tx, head, &delivery, place).await;
            }
            Err(error) => {
                drop(place);
                self.failed_head(Some(tx), head, &message, &error).await;
            }
        }
    }

    /// Gives up a head that has felled its process too often, without running it.
    async fn give_up_crashed_head(&self, tx: I::Tx, head: HeldMessage, message: &Message) {
        let (judged, tx) = (self.crashed(head.crashes), self.undone(tx).await);
        let attempts = head.attempts.saturating_add(head.crashes);
        if self.context.keeps() {
            self.put_back(tx, &head, &judged.kept(head.attempts)).await;
            return;
        }
        self.suspects.count_given_up();
        let charged = Charged { attempts, ..Charged::of(&head) };
        self.condemn(tx, head, message, &judged, DeadReason::CrashedProcess, charged).await;
    }

    async fn run_delivery(
        &self,
        mut tx: I::Tx,
        head: HeldMessage,
        delivery: &Delivery<H::Message>,
        place: Place<'_>,
    ) {
        let attempt = Attempt::now(&head.place, &head.ordering_key);
        let mut turn = place.turn().await;
        let called = self.handler.one(self.invocation(), delivery, &mut tx).await;
        turn.end(1);
        match called {
            Ok(()) => match self.conclude(tx, &head, ReceiptOutcome::Handled).await {
                Ok(()) => {
                    self.context.succeeded(attempt);
                    count(&self.context.stats.handled);
                    self.group_size.committed(1);
                }
                Err(error) => self.uncertain_head(head, delivery.message(), error).await,
            },
            Err(failed) => {
                // Where it is not sound, it is dropped here, before anything is written: the claim would be in the way.
                let tx = Some(tx).filter(|_| failed.tx_is_sound);
                drop(turn);
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
                self.found_out();
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
        let attempt = Attempt::now(&head.place, &head.ordering_key);
        let judged = self.context.weigh(attempt, self.judge(error));
        let tx = match tx {
            Some(tx) => self.undone(tx).await,
            None => None,
        };
        let charged = Charged::of(&head);
        match self.context.policies.after(judged.disposition, charged, head.failing_for(), fastrand::f64()) {
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
    /// the head is deleted, or quarantined where the order is kept. Whoever finds a condemned head that is due publishes its letter again, under the same id.
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
        let due_in = if tx.is_some() { LETTER_LEASE } else { Duration::ZERO };
        if !self.put_back(tx, &head, &judged.condemned(reason, charged, due_in)).await {
            return self.held_work.arrived();
        }
        if reason == DeadReason::CrashedProcess && head.via == Via::Live {
            self.remember_crashes(&head.message_key).await;
        }
        let head = HeldMessage { attempts: charged.attempts, condemned: Some(reason), ..head };
        let subject = Subject {
            message,
            message_key: Some(&head.message_key),
            origin: &head.origin,
            via: head.via,
            age: head.failing_for(),
        };
        if !self.context.quarantine(subject, judged, reason, head.attempts).await {
            self.put_back(None, &head, &judged.condemned(reason, charged, LETTER_AGAIN)).await;
            return;
        }
        crash_point!("consumer.held.quarantined");
        if self.ordered {
            return self.park(&head.message_key, head.attempts, &head.envelope.headers).await;
        }
        match self.inbox.give_up(&self.context.consumer, &head).await {
            Ok(()) => {
                self.context.waits_no_more(&head);
                self.held_work.arrived();
            }
            Err(error) => {
                tracing::warn!(consumer = self.context.consumer, n = head.n, %error, "quarantined, but still held; will be repeated");
            }
        }
    }

    /// Writes a failed attempt down; whether that was done under the claim. Where the claim is lost, with what was
    /// written under it, it is repeated without until it is taken: a head whose failures are forgotten has no end.
    async fn put_back(&self, tx: Option<I::Tx>, head: &HeldMessage, failure: &Failure) -> bool {
        let consumer = &self.context.consumer;
        let Failure { attempts, due_in, error, .. } = failure;
        tracing::info!(%consumer, origin = %head.origin, attempts, ?due_in, %error, "held message failed");
        let claimed = tx.is_some();
        let first = self.inbox.reschedule(consumer, tx, head, failure).await;
        let under_claim = claimed && first.is_ok();
        if let Err(error) = first {
            tracing::warn!(%consumer, n = head.n, %error, hint = error.hint(), "a failed attempt is written down once more");
            if !self.until_taken(|| self.inbox.reschedule(consumer, None, head, failure)).await {
                return false;
            }
        }
        self.held_work.end(head.n);
        self.context.waits(&head.place, &head.ordering_key, failure);
        under_claim
    }

    async fn finish(&self, tx: I::Tx, head: &HeldMessage, counter: &std::sync::atomic::AtomicU64) {
        match self.conclude(tx, head, ReceiptOutcome::AlreadyHandled).await {
            Ok(()) => count(counter),
            Err(error) => {
                tracing::warn!(consumer = self.context.consumer, n = head.n, %error, "will be claimed again")
            }
        }
    }

    /// Commits the end of a head, and with it that its receipt is owed.
    async fn conclude(
        &self,
        mut tx: I::Tx,
        head: &HeldMessage,
        outcome: ReceiptOutcome,
    ) -> Result<(), CommitError> {
        self.owe(&mut tx, head, outcome).await.map_err(CommitError::RolledBack)?;
        self.inbox.finish(&self.context.consumer, tx, head).await?;
        self.held_work.end(head.n);
        crash_point!("consumer.held.finished");
        self.receipt_is_owed();
        Ok(())
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
