//! Messages that share a transaction: one after another, or all at once, on one connection, committed together.
//!
//! What is promised of a message holds as if it were alone. Where anything goes wrong the shared transaction is rolled
//! back, nobody is charged, and whoever is to blame is handled by itself: its attempts are counted there.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use backstop_core::held::{HeldMessages, ordering_key};
use backstop_core::inbox::{CommitError, GroupAdmission, Standing, Unit};
use backstop_core::source::{Received, Settlement};
use backstop_core::{
    AdapterError, Codec, DeadLetters, Delivery, Disposition, FaultKind, HandlerError, Identity, MessageKey,
    Via, crash_point,
};
use tokio::time::timeout;

use crate::consumer::calling::{Called, Calls};
use crate::consumer::invoke::decode;
use crate::consumer::transactional::Transactional;
use crate::consumer::turns::Turn;
use crate::control::breaker::Attempt;
use crate::stats::{count, count_all};

/// How long a transaction may take to tell whether it was ended.
const TO_TELL: Duration = Duration::from_secs(5);

/// A message that may share a transaction: a live one, with an identity, that could be read.
struct Member<M> {
    delivery: Delivery<M>,
    ordering: Vec<u8>,
}

/// Whether a message may share a transaction.
enum Joined<M, S> {
    As(Member<M>, S),
    /// With what the numbers of its key say of it.
    Not(Received<S>, Result<(), HandlerError>),
}

/// What one shared transaction came to.
enum Ended {
    /// It is committed; what the inbox said of each message that it got to, from the first on.
    Committed(Vec<Standing>),
    /// These messages failed, by their places in the group; nobody knows which where it is empty.
    Failed(Vec<usize>),
    /// Some other transaction was in the way.
    Conflict,
    /// They cannot share one.
    Apart,
}

/// What is still to be done of a batch, and in how large groups.
struct Rest<S, M> {
    members: Vec<Member<M>>,
    /// One for each member, and apart from them: they cannot be shared between threads.
    settlements: Vec<S>,
    /// Messages of the next groups, at most.
    at_most: usize,
    /// The places of those that have failed, each of which is handled by itself.
    guilty: VecDeque<usize>,
}

impl<I, H, C, D> Transactional<I, H, C, D>
where
    I: HeldMessages,
    H: Calls<I::Tx>,
    C: Codec<H::Message>,
    D: DeadLetters,
{
    /// Handles messages in their order, as many in one transaction as can be.
    pub(crate) async fn receive_group<S: Settlement>(&self, batch: Vec<Received<S>>) {
        let mut members = Vec::with_capacity(batch.len());
        for received in batch {
            let suspect = self.context.suspect(&received);
            let sequence = self.in_sequence(suspect).await;
            match self.join(received, sequence) {
                Joined::As(member, settlement) => members.push((member, settlement)),
                Joined::Not(odd, sequence) => {
                    // It must not overtake those of its key that came before it, nor those that are left for the next run.
                    self.share(std::mem::take(&mut members)).await;
                    if self.context.stop.is_cancelled() {
                        return;
                    }
                    self.receive_checked(odd, sequence).await;
                }
            }
        }
        self.share(members).await;
    }

    /// The message as a member of a group, or as it was. Suspects share nothing.
    fn join<S: Settlement>(
        &self,
        received: Received<S>,
        sequence: Result<(), HandlerError>,
    ) -> Joined<H::Message, S> {
        let key = match &received.identity {
            Identity::Declared(key) | Identity::Coordinates(key) if received.via == Via::Live => key.clone(),
            _ => return Joined::Not(received, sequence),
        };
        if sequence.is_err() || received.settlement.is_suspect() {
            return Joined::Not(received, sequence);
        }
        let Ok(body) = decode(&self.codec, &received.message) else { return Joined::Not(received, sequence) };
        let Received { message, identity, origin, via, settlement } = received;
        if matches!(identity, Identity::Coordinates(_)) {
            count(&self.context.stats.without_id);
        }
        let ordering = ordering_key(&message, &key, &origin, self.unordered);
        let delivery = Delivery::new(body, message, key, origin, via, 1);
        Joined::As(Member { delivery, ordering }, settlement)
    }

    async fn share<S: Settlement>(&self, mut members: Vec<(Member<H::Message>, S)>) {
        members.retain_mut(|(_, settlement)| settlement.begin());
        let (members, settlements): (Vec<_>, Vec<_>) = members.into_iter().unzip();
        let mut rest = Rest { at_most: members.len(), members, settlements, guilty: VecDeque::new() };
        let mut _turn = None;
        while !rest.members.is_empty() && !self.context.stop.is_cancelled() {
            match rest.next_size() {
                1 => {
                    for (member, settlement) in rest.take(1) {
                        self.alone(member, settlement).await;
                    }
                }
                size => {
                    let ended = self.attempt_group(&rest.members[..size]).await;
                    self.follow_up(&mut rest, ended).await;
                }
            }
            if !rest.members.is_empty() {
                _turn = self.context.control.gate.again(&self.context.stop).await;
            }
        }
    }

    /// Handles one message in a transaction of its own.
    async fn alone<S: Settlement>(&self, member: Member<H::Message>, settlement: S) {
        if self.attempts(member.unit(&self.context.consumer), &member.delivery).await {
            settlement.settle();
        }
    }

    async fn follow_up<S: Settlement>(&self, rest: &mut Rest<S, H::Message>, ended: Ended) {
        if let Ended::Committed(standings) = ended {
            return self.settle(rest.take(standings.len()), standings).await;
        }
        count(&self.context.stats.regrouped);
        match ended {
            Ended::Failed(guilty) => {
                self.group_size.failed();
                rest.at_most = if guilty.is_empty() { 1 } else { self.at_most() };
                // Those that were known before come after this group.
                guilty.into_iter().rev().for_each(|at| rest.guilty.push_front(at));
            }
            Ended::Committed(_) | Ended::Conflict | Ended::Apart => rest.at_most = 1,
        }
    }

    /// How many messages may share a transaction now.
    pub(crate) fn at_most(&self) -> usize {
        if self.turns.is_apart() { 1 } else { self.group_size.now() }
    }

    /// After the commit.
    async fn settle<S: Settlement>(&self, members: Vec<(Member<H::Message>, S)>, standings: Vec<Standing>) {
        let stats = &self.context.stats;
        let fresh = standings.iter().filter(|standing| **standing == Standing::Fresh).count();
        self.group_size.committed(members.len());
        count_all(&stats.handled, fresh);
        count_all(&stats.grouped, fresh);
        let mut of_held_keys = Vec::new();
        for ((member, settlement), standing) in members.into_iter().zip(standings) {
            match standing {
                Standing::Fresh => {
                    let place = member.delivery.origin().place();
                    self.context.succeeded(Attempt::now(place, &member.ordering));
                    settlement.settle();
                }
                Standing::Duplicate => {
                    count(&stats.duplicates);
                    settlement.settle();
                }
                Standing::Held => of_held_keys.push((member, settlement)),
            }
        }
        for (member, settlement) in of_held_keys {
            if self.context.stop.is_cancelled() {
                return;
            }
            self.alone(member, settlement).await;
        }
    }

    /// Begin, one handler after another or one for all, proven commit.
    async fn attempt_group(&self, members: &[Member<H::Message>]) -> Ended {
        let consumer = &self.context.consumer;
        let units: Vec<Unit<'_>> = members.iter().map(|member| member.unit(consumer)).collect();
        let place = self.turns.place().await;
        let asked = tokio::time::Instant::now();
        let admission = self.inbox.begin_group(&units, self.limits).await;
        let (mut tx, mut standings) = match self.context.answered(asked, admission) {
            Ok(GroupAdmission::Shared { tx, standings }) => (tx, standings),
            Ok(GroupAdmission::Apart) => return Ended::Apart,
            // The first of them, by itself, waits until the database answers.
            Err(error) => {
                tracing::debug!(%consumer, %error, "messages cannot share a transaction");
                return Ended::Apart;
            }
        };
        let places: Vec<usize> = (0..members.len()).filter(|at| standings[*at] == Standing::Fresh).collect();
        let fresh: Vec<&Delivery<H::Message>> = places.iter().map(|at| &members[*at].delivery).collect();
        if fresh.is_empty() {
            self.inbox.rollback(tx).await;
            return Ended::Committed(standings);
        }
        let mut turn = place.turn().await;
        let (called, was_alone) = self.call(&mut turn, &fresh, &mut tx).await;
        match called {
            Called::Handled { count, in_time } => {
                if let Some(at) = places.get(in_time) {
                    self.group_size.had_time_for(*at);
                }
                if let Some(at) = places.get(count).copied() {
                    if let Err(error) = self.leave_out(&mut tx, &units[at..], &standings[at..]).await {
                        tracing::debug!(%consumer, %error, "a shared transaction is lost");
                        return Ended::Apart;
                    }
                    standings.truncate(at);
                }
                self.commit_group(tx, &units, standings).await
            }
            // Other instances may have handled them before that can be asked: what the inbox knows does not tell.
            Called::Lost(error) => {
                tracing::debug!(%consumer, %error, "a shared transaction is lost");
                self.inbox.rollback(tx).await;
                Ended::Apart
            }
            Called::Ended { count } => self.after_the_end(tx, &units, standings, places[count]).await,
            Called::Failed { failed, from, guilty, .. } => {
                let judged = self.judge(&failed.error);
                tracing::debug!(%consumer, error = %judged.report.message, "a shared transaction is rolled back");
                let ended = self.roll_back(tx, failed.tx_is_sound).await;
                let is_conflict = judged.disposition == Disposition::Conflict;
                // Where a deadlock ends a transaction as well, somebody else may have handled them since.
                let by_handler = ended && !(is_conflict && self.inbox.conflicts_end_transactions());
                if by_handler && self.are_handled(&fresh_keys(&units, &standings)).await {
                    self.take_out(&units[places[from]..], &standings[places[from]..]).await;
                    return Ended::Apart;
                }
                if is_conflict {
                    self.turns.met_others(was_alone);
                    return Ended::Conflict;
                }
                Ended::Failed(guilty.into_iter().map(|at| places[at]).collect())
            }
        }
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
    async fn after_the_end(
        &self,
        tx: I::Tx,
        units: &[Unit<'_>],
        mut standings: Vec<Standing>,
        at: usize,
    ) -> Ended {
        self.inbox.rollback(tx).await;
        if !self.are_handled(&fresh_keys(units, &standings)).await {
            return Ended::Apart;
        }
        self.take_out(&units[at..], &standings[at..]).await;
        standings.truncate(at);
        Ended::Committed(standings)
    }

    /// Takes messages that are not begun out of the transaction.
    async fn leave_out(
        &self,
        tx: &mut I::Tx,
        units: &[Unit<'_>],
        standings: &[Standing],
    ) -> Result<(), AdapterError> {
        self.inbox.withdraw(tx, &self.context.consumer, &fresh_keys(units, standings)).await
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

    async fn commit_group(&self, tx: I::Tx, units: &[Unit<'_>], standings: Vec<Standing>) -> Ended {
        let fresh = fresh_keys(units, &standings);
        if fresh.is_empty() {
            self.inbox.rollback(tx).await;
            return Ended::Committed(standings);
        }
        let error = match self.inbox.commit(tx).await {
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

impl<M> Member<M> {
    fn unit<'a>(&'a self, consumer: &'a str) -> Unit<'a> {
        Unit {
            consumer,
            place: self.delivery.origin().place(),
            ordering_key: &self.ordering,
            message_key: self.delivery.message_key(),
        }
    }
}

impl<S, M> Rest<S, M> {
    /// How many messages come next.
    fn next_size(&self) -> usize {
        let before_failed = self.guilty.front().copied().unwrap_or(self.at_most);
        before_failed.min(self.at_most).clamp(1, self.members.len())
    }

    fn take(&mut self, count: usize) -> Vec<(Member<M>, S)> {
        let count = count.min(self.members.len());
        while self.guilty.front().is_some_and(|at| *at < count) {
            self.guilty.pop_front();
        }
        self.guilty.iter_mut().for_each(|at| *at -= count);
        self.members.drain(..count).zip(self.settlements.drain(..count)).collect()
    }
}

/// The identities of fresh messages.
fn fresh_keys<'a>(units: &[Unit<'a>], standings: &[Standing]) -> Vec<&'a MessageKey> {
    let fresh = units.iter().zip(standings).filter(|(_, standing)| **standing == Standing::Fresh);
    fresh.map(|(unit, _)| unit.message_key).collect()
}
