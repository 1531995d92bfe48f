//! Held messages that share transactions: those that never failed, while nothing goes wrong.
//!
//! Whatever does go wrong is nobody's failure yet: the run is taken back with its charges, and those that are to blame,
//! or all where nobody knows, are claimed by themselves from then on. What they come to is written down there.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use backstop_core::held::{ClaimError, HeadCharge, HeldMessage, HeldMessages};
use backstop_core::held_run::{ClaimedRun, RunChoice, RunClaim};
use backstop_core::inbox::{CommitError, Standing, Unit};
use backstop_core::{Codec, DeadLetters, Delivery, ReceiptOutcome, cloudevents, crash_point};

use crate::consumer::calling::Calls;
use crate::consumer::invoke::decode;
use crate::consumer::sharing::{Ended, Shared};
use crate::consumer::transactional::Transactional;
use crate::consumer::turns::Place;
use crate::control::breaker::Attempt;
use crate::stats::{count, count_all};

/// How many messages are known as such that are to run by themselves. Of one that is forgotten another run fails.
const MOST_APART: usize = 1000;

/// Messages that are to run by themselves, by their numbers.
#[derive(Debug, Default)]
pub(crate) struct Loners(Mutex<BTreeSet<i64>>);

impl Loners {
    /// From now on these run by themselves.
    pub(crate) fn add(&self, numbers: impl IntoIterator<Item = i64>) {
        let mut loners = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        loners.extend(numbers);
        while loners.len() > MOST_APART {
            loners.pop_first();
        }
    }

    /// It has run by itself.
    pub(crate) fn remove(&self, n: i64) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&n);
    }

    pub(crate) fn numbers(&self) -> Vec<i64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect()
    }
}

impl<I, H, C, D> Transactional<I, H, C, D>
where
    I: HeldMessages,
    H: Calls<I::Tx>,
    C: Codec<H::Message>,
    D: DeadLetters,
{
    /// Due messages that may share a transaction.
    pub(crate) async fn claim_run(&self) -> Result<Option<ClaimedRun<I::Tx>>, ClaimError> {
        let most = self.at_most();
        if most < 2 {
            return Ok(None);
        }
        let apart = self.held_work.loners.numbers();
        let choice = RunChoice { most, apart: &apart };
        match self.inbox.claim_run(&self.context.consumer, self.limits, choice).await? {
            RunClaim::Shared(run) => Ok(Some(run)),
            RunClaim::Apart(numbers) => {
                self.held_work.loners.add(numbers);
                Ok(None)
            }
            RunClaim::Nothing => Ok(None),
        }
    }

    /// Runs messages that were charged with their claim. Where nothing could be written of the end, the charges are
    /// taken back.
    pub(crate) async fn run_several(&self, run: ClaimedRun<I::Tx>, place: Place<'_>) {
        let ClaimedRun { tx, members, standings } = run;
        let charges: Vec<HeadCharge> = members.iter().map(HeldMessage::spent_charge).collect();
        self.held_work.begin(&charges);
        crash_point!("consumer.held.charged");
        match self.handle_run(tx, &members, standings, place).await {
            Ended::Committed(standings) => self.count_run(&members, &standings),
            Ended::Failed(guilty) => {
                count(&self.context.stats.regrouped);
                self.group_size.failed();
                let guilty: Vec<i64> = guilty.into_iter().map(|at| members[at].n).collect();
                self.set_apart(&members, guilty);
            }
            Ended::Conflict | Ended::Apart => {
                count(&self.context.stats.regrouped);
                self.set_apart(&members, Vec::new());
            }
        }
        let unfinished: Vec<_> =
            charges.into_iter().filter(|charge| self.held_work.is_begun(charge.n)).collect();
        if !unfinished.is_empty() {
            self.take_back(unfinished).await;
        }
    }

    /// From now on those that are to blame run by themselves; all where nobody knows who is.
    fn set_apart(&self, members: &[HeldMessage], guilty: Vec<i64>) {
        match guilty.is_empty() {
            true => self.held_work.loners.add(members.iter().map(|member| member.n)),
            false => self.held_work.loners.add(guilty),
        }
    }

    async fn handle_run(
        &self,
        tx: I::Tx,
        members: &[HeldMessage],
        standings: Vec<Standing>,
        place: Place<'_>,
    ) -> Ended {
        let mut deliveries = Vec::with_capacity(members.len());
        for (at, member) in members.iter().enumerate() {
            let (message, _) = cloudevents::decode(member.envelope.clone(), &member.origin, member.via, None);
            // What cannot be read fails where it is claimed by itself.
            let Ok(body) = decode(&self.codec, &message) else {
                self.inbox.rollback(tx).await;
                return Ended::Failed(vec![at]);
            };
            let (key, origin) = (member.message_key.clone(), member.origin.clone());
            deliveries.push(Delivery::new(body, message, key, origin, member.via, 1));
        }
        let deliveries: Vec<_> = deliveries.iter().collect();
        let units: Vec<Unit<'_>> =
            members.iter().map(|member| unit(&self.context.consumer, member)).collect();
        let shared = Shared { tx, units: &units, standings, run: Some(members) };
        self.handle_shared(shared, &deliveries, place).await
    }

    /// Commits the end of the first messages of a run, with the receipts that are owed for them. The others, those without a
    /// standing, are given back.
    pub(crate) async fn conclude_run(
        &self,
        mut tx: I::Tx,
        run: &[HeldMessage],
        standings: &[Standing],
    ) -> Result<(), CommitError> {
        let (done, left) = run.split_at(standings.len());
        let outcome = |standing: &Standing| match standing {
            Standing::Fresh => ReceiptOutcome::Handled,
            Standing::Duplicate | Standing::Held => ReceiptOutcome::AlreadyHandled,
        };
        let ended = done.iter().zip(standings).map(|(message, standing)| (message, outcome(standing)));
        let owes = self.owe_all(&mut tx, ended).await.map_err(CommitError::RolledBack)?;
        self.inbox.finish_run(&self.context.consumer, tx, done, left).await?;
        run.iter().for_each(|message| self.held_work.end(message.n));
        crash_point!("consumer.held.finished");
        if owes {
            self.receipt_is_owed();
        }
        Ok(())
    }

    fn count_run(&self, members: &[HeldMessage], standings: &[Standing]) {
        let stats = &self.context.stats;
        self.group_size.committed(standings.len());
        for (member, standing) in members.iter().zip(standings) {
            match standing {
                Standing::Fresh => {
                    self.context.succeeded(Attempt::now(&member.place, &member.ordering_key));
                }
                Standing::Duplicate | Standing::Held => count(&stats.duplicates),
            }
        }
        let fresh = standings.iter().filter(|standing| **standing == Standing::Fresh).count();
        count_all(&stats.handled, fresh);
        count_all(&stats.grouped, fresh);
    }
}

fn unit<'a>(consumer: &'a str, member: &'a HeldMessage) -> Unit<'a> {
    Unit {
        consumer,
        place: &member.place,
        ordering_key: &member.ordering_key,
        message_key: &member.message_key,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_loners_are_forgotten_first() {
        let loners = Loners::default();
        loners.add(0..1010);
        loners.remove(1009);
        let numbers = loners.numbers();
        assert_eq!((numbers.len(), numbers[0]), (MOST_APART - 1, 10));
    }
}
