//! The parts of the process under test that deal with the broker, and its handler, tied to its life.

use std::sync::{Arc, Mutex, PoisonError};

use backstop::inbox::Inbox;
use backstop::sink::PublishError;
use backstop::source::{Received, Settlement, Source, SourceInfo, SourceProgress};
use backstop::{AdapterError, DeadLetter, DeadLetters, Delivery, Handler, HandlerError, MessageKey};

use super::database::Database;
use super::life::{Step, Tie};
use crate::memory::{MemoryDeadLetters, MemorySettlement, MemorySource};

/// The source of a consumer under test.
#[derive(Debug)]
pub struct TestSource {
    pub(super) tie: Tie,
    pub(super) source: MemorySource,
}

impl Source for TestSource {
    type Settlement = TestSettlement;

    fn describe(&self) -> SourceInfo {
        self.source.describe()
    }

    fn progress(&self) -> Option<Arc<dyn SourceProgress>> {
        self.source.progress()
    }

    async fn next(&mut self) -> Result<Option<Vec<Received<TestSettlement>>>, AdapterError> {
        self.tie.life.alive().await;
        let Some(batch) = self.source.next().await? else { return Ok(None) };
        let batch: Vec<_> = batch.into_iter().map(|received| tied(&self.tie, received)).collect();
        let ids: Vec<&str> = batch.iter().map(|received| received.message.id.as_str()).collect();
        self.tie.life.after(Step::Received, &ids.join(", ")).await;
        Ok(Some(batch))
    }

    async fn close(self) -> Result<(), AdapterError> {
        self.tie.life.alive().await;
        self.source.close().await
    }
}

fn tied(tie: &Tie, received: Received<MemorySettlement>) -> Received<TestSettlement> {
    let Received { message, identity, origin, via, settlement } = received;
    let settlement = TestSettlement { tie: tie.clone(), event: message.id.clone(), settlement };
    Received { message, identity, origin, via, settlement }
}

/// A settlement of a consumer under test.
#[derive(Debug)]
pub struct TestSettlement {
    tie: Tie,
    event: String,
    settlement: MemorySettlement,
}

impl Settlement for TestSettlement {
    fn begin(&mut self) -> bool {
        self.settlement.begin()
    }

    fn epoch(&self) -> u64 {
        self.settlement.epoch()
    }

    fn settle(self) {
        if !self.tie.life.is_dead() {
            self.settlement.settle();
            self.tie.life.pass(Step::Settled, &self.event);
        }
    }
}

/// The dead letters of a consumer under test.
#[derive(Debug)]
pub struct TestLetters {
    pub(super) tie: Tie,
    pub(super) letters: MemoryDeadLetters,
    /// Whose letters were published.
    pub(super) published: Arc<Mutex<Vec<MessageKey>>>,
}

impl DeadLetters for TestLetters {
    async fn prepare(&self, source: &SourceInfo) -> Result<(), AdapterError> {
        self.tie.life.alive().await;
        self.letters.prepare(source).await
    }

    async fn quarantine(&self, letter: &DeadLetter) -> Result<(), PublishError> {
        self.tie.life.alive().await;
        self.letters.quarantine(letter).await?;
        let key = letter.message_key.clone();
        let at_work = key.as_ref().map_or("", event_of).to_owned();
        self.published.lock().unwrap_or_else(PoisonError::into_inner).extend(key);
        self.tie.life.after(Step::Quarantined, &at_work).await;
        Ok(())
    }
}

/// The handler under test.
#[derive(Debug)]
pub struct TestHandler<H, D> {
    pub(super) tie: Tie,
    pub(super) handler: H,
    pub(super) database: Arc<D>,
}

impl<H, D> Handler<<D::Inbox as Inbox>::Tx> for TestHandler<H, D>
where
    D: Database,
    H: Handler<<D::Inbox as Inbox>::Tx>,
{
    type Message = H::Message;

    async fn handle(
        &self,
        delivery: &Delivery<H::Message>,
        tx: &mut <D::Inbox as Inbox>::Tx,
    ) -> Result<(), HandlerError> {
        let event = &delivery.message().id;
        self.tie.life.alive().await;
        self.database.handling(tx, event);
        let result = self.handler.handle(delivery, tx).await;
        self.tie.life.after(Step::Handled, event).await;
        result
    }
}

/// The id in a message's identity, for people to read.
pub(super) fn event_of(key: &MessageKey) -> &str {
    key.as_str().split_once('|').map_or(key.as_str(), |(_, id)| id)
}
