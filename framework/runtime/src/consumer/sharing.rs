//! One transaction that several messages share: their handlers are called one after another, or all at once, on one
//! connection, and committed together.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use backstop_core::held::{HeldMessage, HeldMessages};
use backstop_core::inbox::{CommitError, GroupAdmission, Standing, Unit};
use backstop_core::{
    AdapterError, Codec, DeadLetters, Delivery, Disposition, FaultKind, MessageKey, crash_point,
};
use tokio::time::timeout;

use crate::consumer::calling::{Called, Calls};
use crate::consumer::invoke::Failed;
use crate::consumer::transactional::Transactional;
use crate::consumer::turns::{Place, Turn};

/// How long a transaction may take to tell whether it was ended.
const TO_TELL: Duration = Duration::from_secs(5);

/// An open transaction, and the messages that share it.
pub(crate) struct Shared<'a, Tx> {
    pub(crate) tx: Tx,
    pub(crate) units: &'a [Unit<'a>],
    /// What the inbox says of each.
    pub(crate) standings: Vec<Standing>,
    /// The same messages, where they are held: they leave their table with the commit.
    pub(crate) run: Option<&'a [HeldMessage]>,
}

/// What one shared transaction came to.
pub(crate) enum Ended {
    /// It is committed; what the inbox said of each message that it got to, from the first on.
    Committed(Vec<Standing>),
    /// These messages failed, by their places in the group; nobody knows which where it is empty.
    Failed(Vec<usize>),
    /// Some other transaction was in the way.
    Conflict,
    /// They cannot share one.
    Apart,
}

/// Why nothing of a shared transaction may be committed, and who is to blame.
struct Failure {
    failed: Failed,
    /// The place of the first message whose handler did not come to a good end.
    from: usize,
    guilty: Vec<usize>,
    /// Whether nobody else of this consumer could be in the way.
    was_alone: bool,
}

impl<I, H, C, D> Transactional<I, H, C, D>
where
    I: HeldMessages,
    H: Calls<I::Tx>,
    C: Codec<H::Message>,
    D: DeadLetters,
{
    /// One handler after another or one for all, then the proven commit.
    pub(crate) async fn handle_shared(
        &self,
        mut shared: Shared<'_, I::Tx>,
        deliveries: &[&Delivery<H::Message>],
        place: Place<'_>,
    ) -> Ended {
        let standings = &shared.standings;
        let places: Vec<usize> =
            (0..standings.len()).filter(|at| standings[*at] == Standing::Fresh).collect();
        let fresh: Vec<&Delivery<H::Message>> = places.iter().map(|at| deliveries[*at]).collect();
        if fresh.is_empty() {
            drop(place);
            return self.commit_shared(shared).await;
        }
        let consumer = &self.context.consumer;
        let mut turn = place.turn().await;
        let (called, was_alone) = self.call(&mut turn, &fresh, &mut shared.tx).await;
        match called {
            Called::Handled { count, in_time } => {
                if let Some(at) = places.get(in_time) {
                    self.group_size.had_time_for(*at);
                }
                if let Some(at) = places.get(count).copied()
                    && let Err(error) = self.leave_out(&mut shared, at).await
                {
                    tracing::debug!(%consumer, %error, "a shared transaction is lost");
                    return Ended::Apart;
                }
                self.commit_shared(shared).await
            }
            // Other instances may have handled them before that can be asked: what the inbox knows does not tell.
            Called::Lost(error) => {
                tracing::debug!(%consumer, %error, "a shared transaction is lost");
                self.inbox.rollback(shared.tx).await;
                Ended::Apart
            }
            Called::Ended { count } => self.after_the_end(shared, places[count]).await,
            Called::Failed { failed, from, guilty, .. } => {
                let guilty = guilty.into_iter().map(|at| places[at]).collect();
                let failure = Failure { failed, from: places[from], guilty, was_alone };
                self.after_a_failure(shared, failure).await
            }
        }
    }

    async fn after_a_failure(&self, shared: Shared<'_, I::Tx>, failure: Failure) -> Ended {
        let Shared { tx, units, standings, .. } = shared;
        let judged = self.judge(&failure.failed.error);
        tracing::debug!(consumer = self.context.consumer, error = %judged.report.message, "a shared transaction is rolled back");
        let ended = self.roll_back(tx, failure.failed.tx_is_sound).await;
        let is_conflict = judged.disposition == Disposition::Conflict;
        // Where a deadlock ends a transaction as well, somebody else may have handled them since.
        let by_handler = ended && !(is_conflict && self.inbox.conflicts_end_transactions());
        if by_handler && self.are_handled(&fresh_keys(units, &standings)).await {
            self.take_out(&units[failure.from..], &standings[failure.from..]).await;
            return Ended::Apart;
        }
        if is_conflict {
            self.turns.met_others(failure.was_alone);
            return Ended::Conflict;
        }
        Ended::Failed(failure.guilty)
    }

    /// Calls the handlers in their turn; and whether nobody else of this consumer could be in their way.
    async fn call(
        &self,
        turn: &mut Turn<'_>,
        fresh: &[&Delivery<H::Message>],
        tx: &mut I::Tx,
    ) -> (Called, bool) {
        let called = self.handler.several(self.invocation(), fresh, self.group_age, &self.inbox, tx).await;
        let was_alone = turn.end(called.calls(fresh.len()));
        (called, was_alone)
    }

    /// A transaction had ended before the handlers of messages from `at` on were called. If that was a commit, the inbox
    /// rows of all are committed, those too of messages that are not handled.
    async fn after_the_end(&self, shared: Shared<'_, I::Tx>, at: usize) -> Ended {
        let Shared { tx, units, mut standings, .. } = shared;
        self.inbox.rollback(tx).await;
        if !self.are_handled(&fresh_keys(units, &standings)).await {
            return Ended::Apart;
        }
        self.take_out(&units[at..], &standings[at..]).await;
        standings.truncate(at);
        Ended::Committed(standings)
    }

    /// Takes messages that are not begun, those from `at` on, out of the transaction.
    async fn leave_out(&self, shared: &mut Shared<'_, I::Tx>, at: usize) -> Result<(), AdapterError> {
        let fresh = fresh_keys(&shared.units[at..], &shared.standings[at..]);
        self.inbox.withdraw(&mut shared.tx, &self.context.consumer, &fresh).await?;
        shared.standings.truncate(at);
        Ok(())
    }

    /// Rolls a shared transaction back; whether it had been ended before, by a handler or by a deadlock. What the inbox
    /// knows does not tell: where a transaction is lost, another instance may have handled its messages since.
    ///
    /// One that is not sound may have a statement under way, which is not waited for; its connection is closed.
    async fn roll_back(&self, mut tx: I::Tx, is_sound: bool) -> bool {
        let ended = timeout(TO_TELL, self.inbox.is_ended(&mut tx)).await;
        if is_sound {
            self.inbox.rollback(tx).await;
        }
        matches!(ended, Ok(Ok(true)))
    }

    /// Takes messages whose handlers have not run out of the inbox, to which a handler has committed them.
    async fn take_out(&self, units: &[Unit<'_>], standings: &[Standing]) {
        self.found_out();
        // The others are not in it, and must not come into it here.
        let fresh = units.iter().zip(standings).filter(|(_, standing)| **standing == Standing::Fresh);
        let fresh: Vec<Unit<'_>> = fresh.map(|(unit, _)| *unit).collect();
        let is_uncertain = AtomicBool::new(false);
        // Where the consumer stops before, there is nothing more to be done.
        self.until_taken(|| self.forget(&fresh, &is_uncertain)).await;
    }

    /// Takes messages out of the inbox in a transaction of its own. Where it `is_uncertain` whether an earlier try has done
    /// it, what is there may be another instance's.
    async fn forget(&self, units: &[Unit<'_>], is_uncertain: &AtomicBool) -> Result<(), AdapterError> {
        let keys: Vec<&MessageKey> = units.iter().map(|unit| unit.message_key).collect();
        if is_uncertain.load(Ordering::Relaxed) && !self.are_handled(&keys).await {
            return Ok(());
        }
        let GroupAdmission::Shared { mut tx, .. } = self.inbox.begin_group(units, self.limits).await? else {
            return Err(AdapterError::new(FaultKind::Conflict, "another instance is at these messages"));
        };
        self.inbox.withdraw(&mut tx, &self.context.consumer, &keys).await?;
        self.inbox.commit(tx).await.map_err(|error| {
            is_uncertain.fetch_or(matches!(error, CommitError::Unknown(_)), Ordering::Relaxed);
            error.into_error()
        })
    }

    async fn commit_shared(&self, shared: Shared<'_, I::Tx>) -> Ended {
        let Shared { tx, units, standings, run } = shared;
        let fresh = fresh_keys(units, &standings);
        let committed = match run {
            Some(run) => self.conclude_run(tx, run, &standings).await,
            None if fresh.is_empty() => {
                self.inbox.rollback(tx).await;
                return Ended::Committed(standings);
            }
            None => self.inbox.commit(tx).await,
        };
        let error = match committed {
            Ok(()) => {
                crash_point!("consumer.committed");
                return Ended::Committed(standings);
            }
            Err(error) => error,
        };
        let consumer = &self.context.consumer;
        tracing::warn!(%consumer, %error, "a shared transaction did not simply commit");
        match error {
            CommitError::RolledBack(_) => {
                self.group_size.failed();
                return Ended::Apart;
            }
            CommitError::EndedByHandler(_) => self.found_out(),
            CommitError::Unknown(_) => {}
        }
        match self.are_handled(&fresh).await {
            true => Ended::Committed(standings),
            false => Ended::Apart,
        }
    }

    /// Whether the inbox knows all of them: one alone may be there by another instance, which was not given the others.
    async fn are_handled(&self, keys: &[&MessageKey]) -> bool {
        for key in keys {
            if !matches!(self.outcome(key).await, Ok(true)) {
                return false;
            }
        }
        true
    }

    /// A handler ended a transaction that it shared with others.
    pub(crate) fn found_out(&self) {
        if self.group_size.is_on() {
            self.group_size.switch_off();
            let hint = "leave COMMIT and ROLLBACK to the consumer";
            tracing::error!(
                consumer = self.context.consumer,
                hint,
                "the handler ends its transactions; group commit is off from now on"
            );
        }
    }
}

/// The identities of fresh messages.
fn fresh_keys<'a>(units: &[Unit<'a>], standings: &[Standing]) -> Vec<&'a MessageKey> {
    let fresh = units.iter().zip(standings).filter(|(_, standing)| **standing == Standing::Fresh);
    fresh.map(|(unit, _)| unit.message_key).collect()
}
