//! Live messages that share transactions: which do, how many, and what is done with those that failed.
//!
//! What is promised of a message holds as if it were alone. Where anything goes wrong the shared transaction is rolled
//! back, nobody is charged, and whoever is to blame is handled by itself: its attempts are counted there.

use std::collections::VecDeque;

use backstop_core::held::{HeldMessages, Holding, NewHeld, ordering_key};
use backstop_core::inbox::{GroupAdmission, Standing, Unit};
use backstop_core::source::{Received, Settlement};
use backstop_core::{Codec, DeadLetters, Delivery, HandlerError, Identity, Via};
use futures_util::future::Either;

use crate::consumer::calling::Calls;
use crate::consumer::invoke::decode;
use crate::consumer::sharing::{Ended, Shared};
use crate::consumer::transactional::Transactional;
use crate::control::breaker::Attempt;
use crate::stats::{count, count_all};

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
        let mut redriven = Vec::new();
        for received in batch {
            let received = match self.redriven(received) {
                Either::Left(one) => {
                    redriven.push(one);
                    continue;
                }
                Either::Right(received) => received,
            };
            let suspect = self.context.suspect(&received);
            let sequence = self.in_sequence(suspect).await;
            match self.join(received, sequence) {
                Joined::As(member, settlement) => members.push((member, settlement)),
                Joined::Not(odd, sequence) => {
                    // It must not overtake those of its key that came before it, nor those that are left for the next run.
                    self.share(std::mem::take(&mut members)).await;
                    self.import_several(std::mem::take(&mut redriven)).await;
                    if self.context.stop.is_cancelled() {
                        return;
                    }
                    self.receive_checked(odd, sequence).await;
                }
            }
        }
        self.share(members).await;
        if !self.context.stop.is_cancelled() {
            self.import_several(redriven).await;
        }
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
        self.append_several(of_held_keys).await;
    }

    /// Appends messages of held keys, in their order. Whatever is not stored begins by itself: its key may be free again.
    async fn append_several<S: Settlement>(&self, members: Vec<(Member<H::Message>, S)>) {
        let envelopes: Vec<_> =
            members.iter().map(|(member, _)| member.delivery.message().envelope()).collect();
        let new = members.iter().zip(&envelopes).map(|((member, _), envelope)| NewHeld {
            unit: member.unit(&self.context.consumer),
            envelope,
            origin: member.delivery.origin(),
            via: Via::Live,
        });
        let stored = self.store_together(&new.collect::<Vec<_>>()).await;
        for ((member, settlement), stored) in members.into_iter().zip(stored) {
            if self.context.stop.is_cancelled() {
                return;
            }
            match stored {
                Some(holding @ (Holding::Stored | Holding::AlreadyHandled)) => {
                    if self.note(holding, &self.context.stats.waiting) {
                        settlement.settle();
                    }
                }
                Some(Holding::KeyFree) | None => self.alone(member, settlement).await,
            }
        }
    }

    /// Begin, one handler after another or one for all, proven commit.
    async fn attempt_group(&self, members: &[Member<H::Message>]) -> Ended {
        let consumer = &self.context.consumer;
        let units: Vec<Unit<'_>> = members.iter().map(|member| member.unit(consumer)).collect();
        let deliveries: Vec<_> = members.iter().map(|member| &member.delivery).collect();
        let place = self.turns.place().await;
        let asked = tokio::time::Instant::now();
        let admission = self.inbox.begin_group(&units, self.limits).await;
        match self.context.answered(asked, admission) {
            Ok(GroupAdmission::Shared { tx, standings }) => {
                self.handle_shared(Shared { tx, units: &units, standings, run: None }, &deliveries, place)
                    .await
            }
            Ok(GroupAdmission::Apart) => Ended::Apart,
            // The first of them, by itself, waits until the database answers.
            Err(error) => {
                tracing::debug!(%consumer, %error, "messages cannot share a transaction");
                Ended::Apart
            }
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
