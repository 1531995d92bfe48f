//! The database in memory as a table of held messages.

use backstop_core::held::{ClaimedHead, Failure, HeldMessage, HeldMessages, HeldSummary, Holding, NewHeld};
use backstop_core::inbox::{CommitError, Limits};
use backstop_core::{AdapterError, FaultKind};

use super::data::{Data, InboxKey, TxId};
use super::store::Store;
use super::transaction::MemoryTx;

impl Data {
    /// What is known of a message that is to be held; `None` when it must be written.
    fn holding(&self, message: &NewHeld<'_>) -> Result<Option<Holding>, AdapterError> {
        self.sound()?;
        self.may_hold(message.envelope.body.as_ref().map_or(0, |body| body.len()))?;
        let unit = message.unit;
        if self.is_held(unit.consumer, unit.message_key) {
            return Ok(Some(Holding::Stored));
        }
        let handled = self.inbox.contains_key(&(unit.consumer.to_owned(), unit.message_key.clone()));
        Ok(handled.then_some(Holding::AlreadyHandled))
    }

    fn is_key_held(&self, message: &NewHeld<'_>) -> bool {
        let unit = message.unit;
        !self.held_of(unit.consumer, unit.place, unit.ordering_key).is_empty()
    }

    /// The due head that has waited longest and that nobody is at.
    fn due_head(&self, consumer: &str) -> Option<i64> {
        let now = self.now();
        let due = self.held.iter().filter(|(n, row)| {
            let inbox_key = (row.consumer.clone(), row.message_key.clone());
            row.consumer == consumer
                && row.due.is_some_and(|due| due <= now)
                && !self.claimed.contains_key(n)
                && !self.working.contains_key(&inbox_key)
                && self.held_of(consumer, &row.place, &row.ordering_key).first() == Some(n)
        });
        due.min_by_key(|(n, row)| (row.due, **n)).map(|(n, _)| *n)
    }

    /// Locks the head and its inbox row.
    fn lock_head(&mut self, n: i64) -> Option<(TxId, InboxKey, HeldMessage, bool)> {
        let now = self.now();
        let row = self.held.get(&n)?;
        let key = (row.consumer.clone(), row.message_key.clone());
        let message = row.to_message(n, now);
        let handled = self.inbox.contains_key(&key);
        let tx = self.next_number().unsigned_abs();
        self.claimed.insert(n, tx);
        self.working.insert(key.clone(), tx);
        Some((tx, key, message, handled))
    }

    /// A failed attempt, written only if nobody has changed the row in the meantime.
    fn charge_lost(&mut self, head: &HeldMessage, failure: &Failure) -> Result<(), AdapterError> {
        self.reachable()?;
        if self.claimed.contains_key(&head.n) {
            return Err(AdapterError::new(
                FaultKind::Conflict,
                "another instance has claimed the held message",
            ));
        }
        let now = self.now();
        if let Some(row) = self.held.get_mut(&head.n).filter(|row| row.attempts == head.attempts) {
            row.charge(failure, now);
        }
        Ok(())
    }
}

impl HeldMessages for Store {
    async fn hold(&self, message: NewHeld<'_>, failure: &Failure) -> Result<Holding, AdapterError> {
        self.shared.change(|data| {
            if let Some(known) = data.holding(&message)? {
                return Ok(known);
            }
            let due = data.now() + failure.due_in;
            data.insert_held(&message, Some(due), Some(failure));
            Ok(Holding::Stored)
        })
    }

    async fn append(&self, message: NewHeld<'_>) -> Result<Holding, AdapterError> {
        self.shared.change(|data| {
            if let Some(known) = data.holding(&message)? {
                return Ok(known);
            }
            if !data.is_key_held(&message) {
                return Ok(Holding::KeyFree);
            }
            data.insert_held(&message, None, None);
            Ok(Holding::Stored)
        })
    }

    async fn import(&self, message: NewHeld<'_>) -> Result<Holding, AdapterError> {
        self.shared.change(|data| {
            if let Some(known) = data.holding(&message)? {
                return Ok(known);
            }
            let due = (!data.is_key_held(&message)).then(|| data.now());
            data.insert_held(&message, due, None);
            Ok(Holding::Stored)
        })
    }

    async fn claim(
        &self,
        consumer: &str,
        _limits: Limits,
    ) -> Result<Option<ClaimedHead<MemoryTx>>, AdapterError> {
        let locked = self.shared.look(|data| {
            data.may_begin()?;
            Ok::<_, AdapterError>(data.due_head(consumer).and_then(|n| data.lock_head(n)))
        })?;
        Ok(locked.map(|(tx, key, head, handled)| {
            let inbox = (!handled).then_some(key).into_iter().collect();
            ClaimedHead { tx: MemoryTx::new(self.shared.clone(), tx, inbox), head, handled }
        }))
    }

    async fn finish(&self, _consumer: &str, tx: MemoryTx, head: &HeldMessage) -> Result<(), CommitError> {
        tx.commit(|data| data.finish_held(head.n))
    }

    async fn undo(&self, tx: &mut MemoryTx) -> Result<(), AdapterError> {
        tx.undo()
    }

    async fn reschedule(
        &self,
        _consumer: &str,
        tx: Option<MemoryTx>,
        head: &HeldMessage,
        failure: &Failure,
    ) -> Result<(), AdapterError> {
        let Some(tx) = tx else {
            return self.shared.change(|data| data.charge_lost(head, failure));
        };
        let committed = tx.commit(|data| {
            let now = data.now();
            if let Some(row) = data.held.get_mut(&head.n) {
                row.charge(failure, now);
            }
        });
        committed.map_err(|error| match error {
            CommitError::RolledBack(error)
            | CommitError::EndedByHandler(error)
            | CommitError::Unknown(error) => error,
        })
    }

    async fn give_up(&self, _consumer: &str, head: &HeldMessage) -> Result<(), AdapterError> {
        self.shared.change(|data| {
            data.reachable()?;
            let row = data.held.get(&head.n);
            if row.is_some_and(|row| row.attempts == head.attempts && row.condemned.is_some()) {
                data.finish_held(head.n);
            }
            Ok(())
        })
    }

    async fn summary(&self, consumer: &str) -> Result<HeldSummary, AdapterError> {
        self.shared.look(|data| {
            data.reachable()?;
            let now = data.now();
            let rows: Vec<_> = data.held.values().filter(|row| row.consumer == consumer).collect();
            let oldest = rows.iter().map(|row| now.saturating_duration_since(row.since)).max();
            Ok(HeldSummary { messages: rows.len() as u64, oldest })
        })
    }
}
