//! The database in memory as an inbox.

use std::error::Error;
use std::time::Duration;

use backstop_core::inbox::{Admission, CommitError, Inbox, Limits, Unit};
use backstop_core::{AdapterError, Disposition, ErrorClass, Explained, FaultKind, MessageKey};
use tokio::time::{Instant, timeout_at};

use super::data::{Data, TxId, unreachable};
use super::store::Store;
use super::transaction::MemoryTx;

/// What the tables say of a message, before a transaction is opened for it.
enum Answer {
    Fresh(TxId),
    Duplicate,
    Held,
    /// Another open transaction has written its inbox row.
    Locked,
}

impl Data {
    fn admit(&mut self, unit: Unit<'_>) -> Result<Answer, AdapterError> {
        self.may_begin()?;
        let key = (unit.consumer.to_owned(), unit.message_key.clone());
        if !self.held_of(unit.consumer, unit.place, unit.ordering_key).is_empty() {
            return Ok(Answer::Held);
        }
        if self.inbox.contains_key(&key) {
            return Ok(Answer::Duplicate);
        }
        if self.working.contains_key(&key) {
            return Ok(Answer::Locked);
        }
        let tx = self.next_number().unsigned_abs();
        self.working.insert(key, tx);
        Ok(Answer::Fresh(tx))
    }

    pub(super) fn may_begin(&mut self) -> Result<(), AdapterError> {
        self.reachable()?;
        if self.faults.begins > 0 {
            self.faults.begins -= 1;
            return Err(unreachable("no transaction can be begun because the test wants it so"));
        }
        Ok(())
    }
}

impl Inbox for Store {
    type Tx = MemoryTx;

    async fn begin(&self, unit: Unit<'_>, limits: Limits) -> Result<Admission<MemoryTx>, AdapterError> {
        let deadline = Instant::now() + limits.lock;
        let mut changes = self.shared.changes();
        loop {
            changes.borrow_and_update();
            match self.shared.look(|data| data.admit(unit))? {
                Answer::Fresh(tx) => {
                    let key = (unit.consumer.to_owned(), unit.message_key.clone());
                    return Ok(Admission::Fresh(MemoryTx::new(self.shared.clone(), tx, Some(key))));
                }
                Answer::Duplicate => return Ok(Admission::Duplicate),
                Answer::Held => return Ok(Admission::Held),
                Answer::Locked if timeout_at(deadline, changes.changed()).await.is_err() => {
                    return Ok(Admission::Busy);
                }
                Answer::Locked => {}
            }
        }
    }

    async fn commit(&self, tx: MemoryTx) -> Result<(), CommitError> {
        tx.commit(|_| {})
    }

    async fn rollback(&self, tx: MemoryTx) {
        drop(tx);
    }

    async fn is_handled(&self, consumer: &str, message_key: &MessageKey) -> Result<bool, AdapterError> {
        let key = (consumer.to_owned(), message_key.clone());
        self.shared.look(|data| data.reachable().map(|()| data.inbox.contains_key(&key)))
    }

    async fn prune(&self, consumer: &str, age: Duration, limit: u32) -> Result<u64, AdapterError> {
        self.shared.change(|data| {
            data.reachable()?;
            let now = data.now();
            let old = data.inbox.iter().filter(|((owner, _), handled_at)| {
                owner == consumer && now.saturating_duration_since(**handled_at) > age
            });
            let old: Vec<_> = old.map(|(key, _)| key.clone()).take(limit as usize).collect();
            for key in &old {
                data.inbox.remove(key);
            }
            Ok(old.len() as u64)
        })
    }

    /// Knows [`AdapterError`], which this database's own calls fail with.
    fn explain(&self, error: &(dyn Error + 'static)) -> Option<Explained> {
        let disposition = match error.downcast_ref::<AdapterError>()?.kind() {
            FaultKind::Unreachable => Some(Disposition::Fail(ErrorClass::Unavailable)),
            FaultKind::Conflict => Some(Disposition::Conflict),
            _ => None,
        };
        Some(Explained { disposition, facts: None })
    }

    async fn ready(&self) -> Result<(), AdapterError> {
        self.shared.look(|data| data.sound())
    }
}
