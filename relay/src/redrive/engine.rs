//! The engine: carries redrives out, one engine a ledger, by lease.
//!
//! What it is at is in the ledger, so that another engine goes on where one died. Letters are marked before they are sent
//! and settled afterwards; those that were being sent when an engine died are sent once more, and their consumer's inbox
//! absorbs the copies.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use backstop_core::AdapterError;
use backstop_core::lease::{Lease, Leases};
use backstop_core::ledger::course::Next;
use backstop_core::ledger::{
    AuditStep, Ledger, Letter, NewAuditEntry, Redrive, Run, SILENT_AT_ONCE, Sent, Standing,
};
use backstop_core::sink::{PublishError, Sink};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use uuid::Uuid;

use super::rate::Bucket;
use super::send::{Outcome, send};
use crate::encryption::Keyring;
use crate::exit::with_cause;
use crate::owner::{Owner, OwnerSettings};
use crate::patience::answer;
use crate::portion::Portion;

/// Letters that are taken and sent together, and so the most that a crash sends twice.
const CHUNK: u32 = 200;
/// How often a redrive is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How often new ones are looked for: an idle relay asks for nothing else in its ledger.
const NEW_EVERY: Duration = Duration::from_secs(1);
/// How often letters without an outcome are looked for.
const SILENCE_EVERY: Duration = Duration::from_secs(5);
/// First wait after a failure; it doubles.
const RETRY_MIN: Duration = Duration::from_millis(250);
/// Longest wait after a failure.
const RETRY_MAX: Duration = Duration::from_secs(10);

/// Why a redrive does not get on.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    /// The ledger's database failed.
    #[error("the ledger cannot be asked")]
    Ledger(#[from] AdapterError),
    /// The broker takes nothing now.
    #[error("the broker takes nothing")]
    Broker(#[source] PublishError),
    /// The target takes nothing now; the redrive is paused.
    #[error("{0} takes nothing")]
    Target(String, #[source] PublishError),
}

/// Carries redrives out.
pub struct Engine<S> {
    ledger: Arc<dyn Ledger>,
    sink: S,
    keys: Keyring,
    owner: OwnerSettings,
    only: Option<String>,
    trouble: watch::Sender<Option<Arc<Trouble>>>,
}

impl<S> std::fmt::Debug for Engine<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("owner", &self.owner).field("only", &self.only).finish_non_exhaustive()
    }
}

/// How many letters of one redrive are sent at once.
struct Pace {
    bucket: Bucket,
    portion: Portion,
}

/// What ended the sending of one batch.
enum Batch {
    Sent,
    Empty,
    LeaseLost,
}

impl<S: Sink> Engine<S> {
    /// An engine that works while it holds the lease of `owner`.
    pub fn new(ledger: Arc<dyn Ledger>, sink: S, owner: OwnerSettings) -> Self {
        Self { ledger, sink, keys: Keyring::default(), owner, only: None, trouble: watch::Sender::new(None) }
    }

    /// Opens bodies with these keys; those that none of them opens are refused.
    #[must_use]
    pub fn opening(mut self, keys: Keyring) -> Self {
        self.keys = keys;
        self
    }

    /// Carries out the redrive with this id and no other.
    #[must_use]
    pub fn only(mut self, id: impl Into<String>) -> Self {
        self.only = Some(id.into());
        self
    }

    /// The ledger whose redrives it carries out.
    pub(super) fn ledger(&self) -> Arc<dyn Ledger> {
        self.ledger.clone()
    }

    /// What holds the engine up, and every change of it; `None` while nothing does.
    pub fn trouble(&self) -> watch::Receiver<Option<Arc<Trouble>>> {
        self.trouble.subscribe()
    }

    /// Works until `stop` is cancelled; what is being sent then is finished. It has no errors: whatever fails is logged
    /// and tried again, and so is what the ledger does not answer.
    pub async fn run(self, stop: CancellationToken) {
        let leases: Arc<dyn Leases> = self.ledger.clone();
        let owner = Owner::start(leases, self.owner.clone());
        while let Some(lease) = owner.granted(&stop).await {
            let term = stop.child_token();
            tokio::select! {
                () = self.attend_all(&lease, &term) => {}
                never = owner.cancel_when_lost(&lease, &term) => match never {},
            }
        }
        owner.release().await;
    }

    /// Attends to every redrive that runs, until the term ends.
    async fn attend_all(&self, lease: &Lease, term: &CancellationToken) {
        let attended = Mutex::new(HashSet::new());
        let mut work = FuturesUnordered::new();
        let mut silence = Instant::now();
        while !term.is_cancelled() {
            match beside(&mut work, self.running(term)).await {
                Ok(running) => {
                    for id in running {
                        if attended.lock().unwrap_or_else(PoisonError::into_inner).insert(id.clone()) {
                            work.push(self.attend(lease, id, &attended, term));
                        }
                    }
                }
                Err(error) => self.troubled(Trouble::Ledger(error)),
            }
            if silence <= Instant::now() {
                silence = Instant::now() + SILENCE_EVERY;
                beside(&mut work, self.mark_silent(term)).await;
            }
            let pause = async {
                tokio::select! {
                    () = sleep(NEW_EVERY) => {}
                    () = term.cancelled() => {}
                }
            };
            beside(&mut work, pause).await;
        }
        // What is being sent is finished.
        while work.next().await.is_some() {}
    }

    /// The ids of the redrives that this engine is to carry out.
    async fn running(&self, term: &CancellationToken) -> Result<Vec<String>, AdapterError> {
        let running = answer(term, self.ledger.running_redrives()).await?;
        let running = running.into_iter().map(|redrive| redrive.plan.id);
        Ok(running.filter(|id| self.only.as_ref().is_none_or(|only| only == id)).collect())
    }

    async fn mark_silent(&self, term: &CancellationToken) {
        loop {
            match answer(term, self.ledger.fall_silent()).await {
                Ok(0) => return,
                Ok(letters) => {
                    warn!(letters, "redriven letters are silent: no outcome in time");
                    if letters < u64::from(SILENT_AT_ONCE) || term.is_cancelled() {
                        return;
                    }
                }
                Err(error) => return self.troubled(Trouble::Ledger(error)),
            }
        }
    }

    /// Carries one redrive out, through every failure, until it does not run any more.
    async fn attend(
        &self,
        lease: &Lease,
        id: String,
        attended: &Mutex<HashSet<String>>,
        term: &CancellationToken,
    ) {
        let mut pause = RETRY_MIN;
        while let Err(trouble) = self.carry_out(lease, &id, term).await {
            let pauses = matches!(trouble, Trouble::Target(..));
            self.troubled(trouble);
            if pauses {
                self.note_pause(&id, term).await;
            }
            tokio::select! {
                () = term.cancelled() => break,
                () = sleep(pause) => pause = (pause * 2).min(RETRY_MAX),
            }
        }
        attended.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
    }

    /// Writes into the audit log that a redrive was paused, if it was. Whoever waits for it has been told before.
    async fn note_pause(&self, id: &str, term: &CancellationToken) {
        if let Ok(Some(redrive)) = answer(term, self.ledger.redrive(id)).await
            && redrive.standing.run == Run::Paused
        {
            self.note(&redrive, &redrive.standing, term).await;
        }
    }

    async fn carry_out(&self, lease: &Lease, id: &str, term: &CancellationToken) -> Result<(), Trouble> {
        let mut pace = Pace { bucket: Bucket::new(), portion: Portion::of(CHUNK) };
        let mut resumed = false;
        while !term.is_cancelled() {
            let Some(redrive) = answer(term, self.ledger.redrive(id)).await? else { return Ok(()) };
            match redrive.next() {
                Next::Rest => return Ok(()),
                Next::Wait => tokio::select! {
                    () = term.cancelled() => return Ok(()),
                    () = sleep(LOOK_EVERY) => {}
                },
                Next::Change(to) => {
                    if answer(term, self.ledger.steer_redrive(id, &redrive.standing, &to)).await? {
                        let (run, phase) = (to.run.as_str(), to.phase.as_str());
                        info!(redrive = id, run, phase, why = to.why, "redrive goes on");
                        self.note(&redrive, &to, term).await;
                    }
                }
                Next::Send if !resumed => {
                    let left = answer(term, self.ledger.letters_in_flight(id)).await?;
                    self.send(&redrive, left, term).await?;
                    resumed = true;
                }
                Next::Send => match self.send_for_a_while(lease, &redrive, &mut pace, term).await? {
                    Batch::Sent => {}
                    Batch::LeaseLost => return Ok(()),
                    Batch::Empty => {
                        // A claim whose answer was lost has left letters in flight that are in nobody's hands.
                        resumed = false;
                        tokio::select! {
                            () = term.cancelled() => return Ok(()),
                            () = sleep(LOOK_EVERY) => {}
                        }
                    }
                },
            }
        }
        Ok(())
    }

    /// Writes into the audit log where a redrive stands by itself now. It goes on without that: what it does is in the
    /// ledger, too.
    async fn note(&self, redrive: &Redrive, to: &Standing, term: &CancellationToken) {
        let state = if to.run == Run::Running { to.phase.as_str() } else { to.run.as_str() };
        let id = &redrive.plan.id;
        let entry = NewAuditEntry {
            deed: Uuid::now_v7().to_string(),
            step: AuditStep::Done,
            who: "relay".to_owned(),
            role: "relay".to_owned(),
            origin: "engine of redrives".to_owned(),
            action: format!("redrive.{state}"),
            object: String::new(),
            redrive: Some(id.clone()),
            letters: Some(redrive.letters().sent()),
            because: to.why.clone(),
            error: None,
        };
        if let Err(error) = answer(term, self.ledger.write_audit(&entry)).await {
            warn!(redrive = id, error = %with_cause(&error), "the audit log does not have this");
        }
    }

    /// Sends until it is time to look again, nothing is left, or the lease is lost; what the last batch came to.
    async fn send_for_a_while(
        &self,
        lease: &Lease,
        redrive: &Redrive,
        pace: &mut Pace,
        term: &CancellationToken,
    ) -> Result<Batch, Trouble> {
        let until = Instant::now() + LOOK_EVERY;
        while Instant::now() < until && !term.is_cancelled() {
            match self.send_batch(lease, redrive, pace, term).await? {
                Batch::Sent => {}
                last => return Ok(last),
            }
        }
        Ok(Batch::Sent)
    }

    async fn send_batch(
        &self,
        lease: &Lease,
        redrive: &Redrive,
        pace: &mut Pace,
        term: &CancellationToken,
    ) -> Result<Batch, Trouble> {
        let most = tokio::select! {
            () = term.cancelled() => return Ok(Batch::Empty),
            most = pace.bucket.take(redrive.plan.rate, pace.portion.next()) => most,
            // Somebody may have changed the rate.
            () = sleep(LOOK_EVERY) => return Ok(Batch::Sent),
        };
        let claim = self.ledger.claim_letters(lease, &redrive.plan.id, most);
        let Some(letters) = answer(term, claim).await? else { return Ok(Batch::LeaseLost) };
        pace.portion.came(letters.iter());
        let claimed = u32::try_from(letters.len()).unwrap_or(most);
        if redrive.plan.rate.is_some() {
            pace.bucket.give_back(most.saturating_sub(claimed));
        }
        if letters.is_empty() {
            return Ok(Batch::Empty);
        }
        self.send(redrive, letters, term).await?;
        Ok(Batch::Sent)
    }

    /// Sends letters that are marked, and settles them.
    async fn send(
        &self,
        redrive: &Redrive,
        letters: Vec<Letter>,
        term: &CancellationToken,
    ) -> Result<(), Trouble> {
        if letters.is_empty() {
            return Ok(());
        }
        let id = &redrive.plan.id;
        let Outcome { settled, broker, target } =
            send(&self.sink, &self.keys, id, &redrive.plan.guard, letters).await;
        self.settle(id, &settled, term).await?;
        if let Some((target, error)) = target {
            let why = format!("{target} takes nothing: {}", with_cause(&error));
            if let Ok(to) = redrive.paused(why) {
                answer(term, self.ledger.steer_redrive(id, &redrive.standing, &to)).await?;
            }
            return Err(Trouble::Target(target, error));
        }
        match broker {
            Some(error) => Err(Trouble::Broker(error)),
            None => {
                self.trouble.send_if_modified(|trouble| trouble.take().is_some());
                Ok(())
            }
        }
    }

    /// Writes down what became of letters, as often as it takes: as long as that is not done they count as being sent,
    /// and would be sent once more. When the term ends, it is tried once more, and the next engine finds what is left.
    async fn settle(
        &self,
        id: &str,
        settled: &[(String, Sent)],
        term: &CancellationToken,
    ) -> Result<(), Trouble> {
        let mut pause = RETRY_MIN;
        loop {
            let last = term.is_cancelled();
            match answer(term, self.ledger.settle_letters(id, settled)).await {
                Ok(()) => return Ok(()),
                Err(error) if last => return Err(Trouble::Ledger(error)),
                Err(error) => self.troubled(Trouble::Ledger(error)),
            }
            tokio::select! {
                () = term.cancelled() => {}
                () = sleep(pause) => pause = (pause * 2).min(RETRY_MAX),
            }
        }
    }

    fn troubled(&self, trouble: Trouble) {
        warn!(cause = %with_cause(&trouble), "a redrive is held up; trying again");
        self.trouble.send_replace(Some(Arc::new(trouble)));
    }
}

/// Waits for something while the work goes on: work that stands still may hold the lock that is waited for.
async fn beside<T>(
    work: &mut FuturesUnordered<impl Future<Output = ()>>,
    waited: impl Future<Output = T>,
) -> T {
    tokio::pin!(waited);
    loop {
        tokio::select! {
            done = &mut waited => return done,
            Some(()) = work.next() => {}
        }
    }
}

#[cfg(test)]
#[path = "engine_tests.rs"]
mod tests;
