//! The database of the process under test, tied to its life.

use std::collections::BTreeMap;
use std::error::Error;
use std::future::Future;
use std::time::Duration;

use backstop::charges::Charges;
use backstop::held::{
    ClaimError, ClaimedHead, Failure, HeadCharge, Heads, HeldMessage, HeldMessages, HeldSummary, Holding,
    NewHeld,
};
use backstop::held_keys::{Ended, Ending, HeldFilter, HeldKey};
use backstop::held_run::{RunChoice, RunClaim};
use backstop::inbox::{Admission, CommitError, GroupAdmission, Inbox, Limits, Unit};
use backstop::owed::{Owed, OwedReceipts};
use backstop::{AdapterError, Explained, FaultKind, Headers, MessageKey, Receipt};

use super::life::{Fate, Step, Tie, gone};
use super::outside::Effect;
use super::parts::event_of;
use crate::memory::{MemoryTx, Store};

/// A database that handlers are tested on. [`InMemory`] is the usual one; implement it for your own to test handlers
/// that need its transaction.
pub trait Database: Send + Sync + 'static {
    /// What lends handlers their transactions.
    type Inbox: HeldMessages + Clone;

    /// A database with nothing in it but the empty tables of inbox, held messages and application. Each run has its
    /// own.
    fn open(&self) -> impl Future<Output = Self::Inbox> + Send;

    /// Everything that handlers have written and committed, once for each time that it is there, in the order in which
    /// it was written: rows of a table without a unique key.
    fn effects(&self, inbox: &Self::Inbox) -> impl Future<Output = Vec<Effect>> + Send;

    /// Names and values that must be the same in the end, whatever happened. Defaults to none.
    fn state(&self, inbox: &Self::Inbox) -> impl Future<Output = BTreeMap<String, String>> + Send {
        let _ = inbox;
        std::future::ready(BTreeMap::new())
    }

    /// Called before the handler is, with the event's id. Defaults to nothing.
    fn handling(&self, tx: &mut <Self::Inbox as Inbox>::Tx, event: &str) {
        let _ = (tx, event);
    }
}

/// The database in memory. An effect is what a handler writes by [`apply`](MemoryTx::apply), by
/// [`enqueue`](MemoryTx::enqueue) and by [`put`](MemoryTx::put), whose values are also the
/// [state](Database::state).
#[derive(Debug, Clone, Copy, Default)]
pub struct InMemory;

impl Database for InMemory {
    type Inbox = Store;

    async fn open(&self) -> Store {
        Store::new()
    }

    async fn effects(&self, store: &Store) -> Vec<Effect> {
        store.effects().into_iter().map(|(event, what)| Effect::new(event, what)).collect()
    }

    async fn state(&self, store: &Store) -> BTreeMap<String, String> {
        store.values()
    }

    fn handling(&self, tx: &mut MemoryTx, event: &str) {
        tx.handling(event);
    }
}

/// The inbox of a consumer under test.
#[derive(Debug)]
pub struct TestInbox<I> {
    pub(super) tie: Tie,
    pub(super) inbox: I,
}

impl<I> TestInbox<I> {
    async fn after<T>(&self, step: Step, at_work: &str, answer: T) -> T {
        self.tie.life.after(step, at_work).await;
        answer
    }
}

fn events_of(run: &[HeldMessage]) -> String {
    let events: Vec<&str> = run.iter().map(|message| event_of(&message.message_key)).collect();
    events.join(", ")
}

/// What was in the way of a commit whose answer is lost.
fn lost() -> CommitError {
    CommitError::Unknown(gone("the connection was lost inside the commit because the test wants it so"))
}

impl<I: HeldMessages> TestInbox<I> {
    /// Ends a transaction by `commit`, with the fate that is planned for it.
    async fn conclude<F>(
        &self,
        tx: I::Tx,
        at_work: &str,
        commit: impl FnOnce(I::Tx) -> F,
    ) -> Result<(), CommitError>
    where
        F: Future<Output = Result<(), CommitError>>,
    {
        self.tie.life.alive().await;
        let fate = self.tie.life.next_commit();
        let away = self.tie.life.ask().await.is_err();
        match fate {
            Some(Fate::RolledBack) => {
                self.inbox.rollback(tx).await;
                let error = AdapterError::new(FaultKind::Other, "rolled back because the test wants it so");
                return Err(CommitError::RolledBack(error));
            }
            Some(Fate::Lost) => {
                self.inbox.rollback(tx).await;
                return Err(lost());
            }
            _ if away => {
                drop(tx);
                return Err(lost());
            }
            Some(Fate::Committed) | None => {}
        }
        let answer = commit(tx).await;
        self.tie.life.after(Step::Committed, at_work).await;
        match (fate, answer) {
            (Some(_), Ok(())) => Err(lost()),
            (_, answer) => answer,
        }
    }
}

impl<I: HeldMessages> Inbox for TestInbox<I> {
    type Tx = I::Tx;

    async fn begin(&self, unit: Unit<'_>, limits: Limits) -> Result<Admission<I::Tx>, AdapterError> {
        self.tie.life.ask().await?;
        let answer = self.inbox.begin(unit, limits).await;
        self.after(Step::Begun, event_of(unit.message_key), answer).await
    }

    async fn begin_group(
        &self,
        units: &[Unit<'_>],
        limits: Limits,
    ) -> Result<GroupAdmission<I::Tx>, AdapterError> {
        self.tie.life.ask().await?;
        let answer = self.inbox.begin_group(units, limits).await;
        let events: Vec<&str> = units.iter().map(|unit| event_of(unit.message_key)).collect();
        self.after(Step::Begun, &events.join(", "), answer).await
    }

    async fn withdraw(
        &self,
        tx: &mut I::Tx,
        consumer: &str,
        message_keys: &[&MessageKey],
    ) -> Result<(), AdapterError> {
        self.tie.life.ask().await?;
        self.inbox.withdraw(tx, consumer, message_keys).await
    }

    async fn commit(&self, tx: I::Tx) -> Result<(), CommitError> {
        self.conclude(tx, "", |tx| self.inbox.commit(tx)).await
    }

    async fn is_unbroken(&self, tx: &mut I::Tx) -> Result<bool, AdapterError> {
        self.tie.life.ask().await?;
        self.inbox.is_unbroken(tx).await
    }

    fn conflicts_end_transactions(&self) -> bool {
        self.inbox.conflicts_end_transactions()
    }

    async fn is_ended(&self, tx: &mut I::Tx) -> Result<bool, AdapterError> {
        self.tie.life.ask().await?;
        self.inbox.is_ended(tx).await
    }

    async fn rollback(&self, tx: I::Tx) {
        self.tie.life.alive().await;
        self.inbox.rollback(tx).await;
        self.after(Step::RolledBack, "", ()).await;
    }

    async fn is_handled(&self, consumer: &str, message_key: &MessageKey) -> Result<bool, AdapterError> {
        self.tie.life.ask().await?;
        self.inbox.is_handled(consumer, message_key).await
    }

    async fn prune(&self, consumer: &str, age: Duration, limit: u32) -> Result<u64, AdapterError> {
        self.tie.life.ask().await?;
        self.inbox.prune(consumer, age, limit).await
    }

    fn explain(&self, error: &(dyn Error + 'static)) -> Option<Explained> {
        self.inbox.explain(error)
    }

    async fn ready(&self) -> Result<(), AdapterError> {
        self.tie.life.ask().await?;
        self.inbox.ready().await
    }
}

impl<I: HeldMessages> Charges for TestInbox<I> {
    async fn charges(&self, consumer: &str, message_key: &MessageKey) -> Result<u32, AdapterError> {
        self.tie.life.ask().await?;
        self.inbox.charges(consumer, message_key).await
    }

    async fn charge(&self, consumer: &str, message_key: &MessageKey) -> Result<u32, AdapterError> {
        self.tie.life.ask().await?;
        self.inbox.charge(consumer, message_key).await
    }

    async fn acquit(&self, consumer: &str, message_key: &MessageKey, up_to: u32) -> Result<(), AdapterError> {
        self.tie.life.ask().await?;
        self.inbox.acquit(consumer, message_key, up_to).await
    }
}

impl<I: HeldMessages> OwedReceipts for TestInbox<I> {
    async fn owe(&self, tx: &mut I::Tx, receipt: &Receipt) -> Result<(), AdapterError> {
        self.tie.life.ask().await?;
        self.inbox.owe(tx, receipt).await
    }

    async fn owe_all(&self, tx: &mut I::Tx, receipts: &[Receipt]) -> Result<(), AdapterError> {
        self.tie.life.ask().await?;
        self.inbox.owe_all(tx, receipts).await
    }

    async fn owe_now(&self, receipt: &Receipt) -> Result<(), AdapterError> {
        self.tie.life.ask().await?;
        self.inbox.owe_now(receipt).await
    }

    async fn owed(
        &self,
        consumer: &str,
        instance: &str,
        others_after: Duration,
        limit: u32,
    ) -> Result<Vec<Owed>, AdapterError> {
        self.tie.life.ask().await?;
        self.inbox.owed(consumer, instance, others_after, limit).await
    }

    async fn paid(&self, numbers: &[i64]) -> Result<(), AdapterError> {
        self.tie.life.ask().await?;
        self.inbox.paid(numbers).await
    }

    async fn can_owe(&self) -> Result<(), AdapterError> {
        self.tie.life.ask().await?;
        self.inbox.can_owe().await
    }
}

impl<I: HeldMessages> HeldMessages for TestInbox<I> {
    async fn hold(&self, message: NewHeld<'_>, failure: &Failure) -> Result<Holding, AdapterError> {
        self.tie.life.ask().await?;
        let key = message.unit.message_key;
        let answer = self.inbox.hold(message, failure).await;
        self.after(Step::Held, event_of(key), answer).await
    }

    async fn append(&self, message: NewHeld<'_>) -> Result<Holding, AdapterError> {
        self.tie.life.ask().await?;
        let key = message.unit.message_key;
        let answer = self.inbox.append(message).await;
        self.after(Step::Held, event_of(key), answer).await
    }

    async fn import(&self, message: NewHeld<'_>) -> Result<Holding, AdapterError> {
        self.tie.life.ask().await?;
        let key = message.unit.message_key;
        let answer = self.inbox.import(message).await;
        self.after(Step::Held, event_of(key), answer).await
    }

    async fn store_all(&self, messages: &[NewHeld<'_>]) -> Result<Vec<Option<Holding>>, AdapterError> {
        self.tie.life.ask().await?;
        let answer = self.inbox.store_all(messages).await;
        let events: Vec<&str> = messages.iter().map(|message| event_of(message.unit.message_key)).collect();
        self.after(Step::Held, &events.join(", "), answer).await
    }

    /// Only a claim that succeeds is a step: the loop asks again and again.
    async fn claim(
        &self,
        consumer: &str,
        limits: Limits,
        heads: Heads,
    ) -> Result<Option<ClaimedHead<I::Tx>>, ClaimError> {
        self.tie.life.ask().await?;
        let claimed = self.inbox.claim(consumer, limits, heads).await?;
        if let Some(claimed) = &claimed {
            self.tie.life.after(Step::Claimed, event_of(&claimed.head.message_key)).await;
        }
        Ok(claimed)
    }

    async fn acquit_heads(&self, consumer: &str, charges: &[HeadCharge]) -> Result<(), AdapterError> {
        self.tie.life.ask().await?;
        self.inbox.acquit_heads(consumer, charges).await
    }

    /// As a claim, it is a step when it succeeds.
    async fn claim_run(
        &self,
        consumer: &str,
        limits: Limits,
        choice: RunChoice<'_>,
    ) -> Result<RunClaim<I::Tx>, ClaimError> {
        self.tie.life.ask().await?;
        let claim = self.inbox.claim_run(consumer, limits, choice).await?;
        if let RunClaim::Shared(run) = &claim {
            self.tie.life.after(Step::Claimed, &events_of(&run.members)).await;
        }
        Ok(claim)
    }

    async fn finish_run(
        &self,
        consumer: &str,
        tx: I::Tx,
        done: &[HeldMessage],
        left: &[HeldMessage],
    ) -> Result<(), CommitError> {
        self.conclude(tx, &events_of(done), |tx| self.inbox.finish_run(consumer, tx, done, left)).await
    }

    async fn finish(&self, consumer: &str, tx: I::Tx, head: &HeldMessage) -> Result<(), CommitError> {
        let at_work = event_of(&head.message_key);
        self.conclude(tx, at_work, |tx| self.inbox.finish(consumer, tx, head)).await
    }

    async fn undo(&self, tx: &mut I::Tx) -> Result<(), AdapterError> {
        self.tie.life.ask().await?;
        let answer = self.inbox.undo(tx).await;
        self.after(Step::RolledBack, "", answer).await
    }

    async fn reschedule(
        &self,
        consumer: &str,
        tx: Option<I::Tx>,
        head: &HeldMessage,
        failure: &Failure,
    ) -> Result<(), AdapterError> {
        self.tie.life.ask().await?;
        let answer = self.inbox.reschedule(consumer, tx, head, failure).await;
        self.after(Step::Rescheduled, event_of(&head.message_key), answer).await
    }

    async fn give_up(&self, consumer: &str, head: &HeldMessage) -> Result<(), AdapterError> {
        self.tie.life.ask().await?;
        let answer = self.inbox.give_up(consumer, head).await;
        self.after(Step::GivenUp, event_of(&head.message_key), answer).await
    }

    async fn park(
        &self,
        consumer: &str,
        message_key: &MessageKey,
        attempts: u32,
        headers: &Headers,
    ) -> Result<(), AdapterError> {
        self.tie.life.ask().await?;
        let answer = self.inbox.park(consumer, message_key, attempts, headers).await;
        self.after(Step::GivenUp, event_of(message_key), answer).await
    }

    async fn end(
        &self,
        consumer: &str,
        message_key: &MessageKey,
        ending: Ending,
        generation: Option<u32>,
    ) -> Result<Ended, AdapterError> {
        self.tie.life.ask().await?;
        self.inbox.end(consumer, message_key, ending, generation).await
    }

    async fn keys(&self, filter: &HeldFilter, limit: u32) -> Result<Vec<HeldKey>, AdapterError> {
        self.tie.life.ask().await?;
        HeldMessages::keys(&self.inbox, filter, limit).await
    }

    async fn summary(&self, consumer: &str) -> Result<HeldSummary, AdapterError> {
        self.tie.life.ask().await?;
        self.inbox.summary(consumer).await
    }
}
