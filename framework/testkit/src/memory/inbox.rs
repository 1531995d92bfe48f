//! The database in memory as an inbox.

use std::error::Error;
use std::time::Duration;

use backstop_core::inbox::{Admission, CommitError, GroupAdmission, Inbox, Limits, Standing, Unit};
use backstop_core::{AdapterError, Disposition, ErrorClass, Explained, FaultKind, MessageKey};
use tokio::time::{Instant, timeout_at};

use super::data::{Data, InboxKey, TxId, unreachable};
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
        let key = key_of(unit);
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

    /// What the tables say of each message of a group; `None` when another transaction is at one of them.
    fn admit_group(&mut self, units: &[Unit<'_>]) -> Result<Option<(TxId, Vec<Standing>)>, AdapterError> {
        self.may_begin()?;
        if units.iter().any(|unit| self.working.contains_key(&key_of(*unit))) {
            return Ok(None);
        }
        let tx = self.next_number().unsigned_abs();
        let standings = units.iter().map(|unit| {
            let key = key_of(*unit);
            if !self.held_of(unit.consumer, unit.place, unit.ordering_key).is_empty() {
                Standing::Held
            } else if self.inbox.contains_key(&key) || self.working.contains_key(&key) {
                Standing::Duplicate
            } else {
                self.working.insert(key, tx);
                Standing::Fresh
            }
        });
        let standings = standings.collect();
        Ok(Some((tx, standings)))
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

fn key_of(unit: Unit<'_>) -> InboxKey {
    (unit.consumer.to_owned(), unit.message_key.clone())
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
                    let key = key_of(unit);
                    return Ok(Admission::Fresh(MemoryTx::new(self.shared.clone(), tx, vec![key])));
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

    async fn begin_group(
        &self,
        units: &[Unit<'_>],
        _: Limits,
    ) -> Result<GroupAdmission<MemoryTx>, AdapterError> {
        let Some((tx, standings)) = self.shared.look(|data| data.admit_group(units))? else {
            return Ok(GroupAdmission::Apart);
        };
        let fresh = units.iter().zip(&standings).filter(|(_, standing)| **standing == Standing::Fresh);
        let keys = fresh.map(|(unit, _)| key_of(*unit)).collect();
        Ok(GroupAdmission::Shared { tx: MemoryTx::new(self.shared.clone(), tx, keys), standings })
    }

    async fn withdraw(
        &self,
        tx: &mut MemoryTx,
        consumer: &str,
        message_keys: &[&MessageKey],
    ) -> Result<(), AdapterError> {
        tx.withdraw(message_keys.iter().map(|key| (consumer.to_owned(), (*key).clone())).collect());
        Ok(())
    }

    async fn commit(&self, tx: MemoryTx) -> Result<(), CommitError> {
        tx.commit(|_| {})
    }

    async fn is_unbroken(&self, tx: &mut MemoryTx) -> Result<bool, AdapterError> {
        tx.is_ended().map(|ended| !ended)
    }

    async fn is_ended(&self, tx: &mut MemoryTx) -> Result<bool, AdapterError> {
        tx.is_ended()
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
