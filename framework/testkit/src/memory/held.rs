//! The database in memory as a table of held messages.

use backstop_core::dead_letter::generation;
use backstop_core::held::{
    AFTER_CRASH, ClaimError, ClaimedHead, Failure, HeadCharge, Heads, HeldMessage, HeldMessages, HeldSummary,
    Holding, NewHeld,
};
use backstop_core::held_keys::{Ended, Ending, HeldFilter, HeldKey, HeldState};
use backstop_core::held_run::{ClaimedRun, RunChoice, RunClaim};
use backstop_core::inbox::{CommitError, Limits, Standing};
use backstop_core::{AdapterError, FaultKind, Headers, MessageKey, Via};

use super::data::{Data, HeldRow, InboxKey, TxId};
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

    /// A redriven message that is held already is left to whoever imports it by itself.
    fn store_one_of_many(&mut self, message: &NewHeld<'_>) -> Result<Option<Holding>, AdapterError> {
        let key_is_held = self.is_key_held(message);
        match (self.holding(message)?, message.via) {
            (Some(Holding::Stored), Via::Door) => Ok(None),
            (Some(known), _) => Ok(Some(known)),
            (None, Via::Live) if !key_is_held => Ok(Some(Holding::KeyFree)),
            (None, _) => {
                let due = (!key_is_held).then(|| self.now());
                self.insert_held(message, due, None);
                Ok(Some(Holding::Stored))
            }
        }
    }

    fn is_key_held(&self, message: &NewHeld<'_>) -> bool {
        let unit = message.unit;
        !self.held_of(unit.consumer, unit.place, unit.ordering_key).is_empty()
    }

    /// The due head that has waited longest and that nobody is at.
    fn due_head(&self, consumer: &str, heads: Heads) -> Option<i64> {
        let now = self.now();
        let due = self.held.iter().filter(|(n, row)| {
            let inbox_key = (row.consumer.clone(), row.message_key.clone());
            row.consumer == consumer
                && row.due.is_some_and(|due| due <= now)
                && (row.crashes > 0) == heads.are_doubtful()
                && !self.claimed.contains_key(n)
                && !self.working.contains_key(&inbox_key)
                && self.held_of(consumer, &row.place, &row.ordering_key).first() == Some(n)
        });
        due.min_by_key(|(n, row)| (row.due, **n)).map(|(n, _)| *n)
    }

    /// Locks the head and its inbox row, and charges it; the charge stays when the lock is lost.
    fn lock_head(&mut self, n: i64) -> Option<(TxId, InboxKey, HeldMessage, bool)> {
        let tx = self.next_number().unsigned_abs();
        let (key, message, handled) = self.lock_held(n, tx)?;
        Some((tx, key, message, handled))
    }

    fn lock_held(&mut self, n: i64, tx: TxId) -> Option<(InboxKey, HeldMessage, bool)> {
        let now = self.now();
        let row = self.held.get_mut(&n)?;
        let key = (row.consumer.clone(), row.message_key.clone());
        let message = row.to_message(n, now);
        if row.condemned.is_none() {
            row.due = row.due.map(|_| now + AFTER_CRASH);
            row.crashes += 1;
        }
        let handled = self.inbox.contains_key(&key);
        self.claimed.insert(n, tx);
        self.working.insert(key.clone(), tx);
        Some((key, message, handled))
    }

    /// The numbers of those that may share a transaction: due heads, and what is right behind them.
    fn due_run(&self, consumer: &str, choice: RunChoice<'_>) -> Vec<i64> {
        let now = self.now();
        let is_fit = |n: &i64| {
            self.held.get(n).is_some_and(|row| {
                let inbox_key = (row.consumer.clone(), row.message_key.clone());
                let is_sound = row.class.is_none() && row.condemned.is_none() && row.crashes == 0;
                is_sound && !choice.apart.contains(n) && !self.working.contains_key(&inbox_key)
            })
        };
        let due = self.held.iter().filter(|(n, row)| {
            row.consumer == consumer
                && row.due.is_some_and(|due| due <= now)
                && is_fit(n)
                && self.held_of(consumer, &row.place, &row.ordering_key).first() == Some(n)
        });
        let mut heads: Vec<_> = due.map(|(n, row)| (row.due, *n, row)).collect();
        heads.sort_by_key(|(due, n, _)| (*due, *n));
        heads.truncate(choice.most);
        let depth = choice.most / heads.len().max(1);
        let of_key = |row: &HeldRow| self.held_of(consumer, &row.place, &row.ordering_key);
        heads.iter().flat_map(|(_, _, row)| of_key(row).into_iter().take(depth).take_while(is_fit)).collect()
    }

    /// Locks and charges the messages of a run, and their inbox rows, of which those of fresh ones are to be written.
    fn lock_run(&mut self, run: &[i64]) -> (TxId, Vec<InboxKey>, Vec<HeldMessage>, Vec<Standing>) {
        let tx = self.next_number().unsigned_abs();
        let (mut inbox, mut members, mut standings) = (Vec::new(), Vec::new(), Vec::new());
        for n in run {
            let Some((key, message, handled)) = self.lock_held(*n, tx) else { continue };
            members.push(message);
            standings.push(if handled { Standing::Duplicate } else { Standing::Fresh });
            inbox.extend((!handled).then_some(key));
        }
        (tx, inbox, members, standings)
    }

    fn acquit_held(&mut self, charge: HeadCharge) {
        let now = self.now();
        let row = self.held.get_mut(&charge.n).filter(|row| row.condemned.is_none());
        if let Some(row) = row.filter(|row| (charge.leaves + 1..=charge.stands).contains(&row.crashes)) {
            (row.crashes, row.due) = (charge.leaves, row.due.map(|_| now));
        }
    }

    /// Lets a redriven message take the place of what it was when it was given up.
    fn revive(&mut self, message: &NewHeld<'_>) -> Result<(), AdapterError> {
        self.sound()?;
        let now = self.now();
        let found = self.held_as(message.unit.consumer, message.unit.message_key);
        let Some((n, row)) = found.and_then(|n| Some((n, self.held.get_mut(&n)?))) else { return Ok(()) };
        let before = row.to_message(n, now).generation();
        if row.condemned.is_some() && before <= generation(&message.envelope.headers) {
            if self.claimed.contains_key(&n) {
                return Err(claimed());
            }
            row.revive(message, now);
        }
        Ok(())
    }

    fn end_held(
        &mut self,
        consumer: &str,
        message_key: &MessageKey,
        ending: Ending,
        generation: Option<u32>,
    ) -> Ended {
        let (now, inbox_key) = (self.now(), (consumer.to_owned(), message_key.clone()));
        if self.working.contains_key(&inbox_key) {
            return Ended::Busy;
        }
        let Some((n, row)) = self.held_as(consumer, message_key).and_then(|n| Some((n, self.held.get(&n)?)))
        else {
            return match (self.inbox.contains_key(&inbox_key), ending.is_handled()) {
                (true, _) => Ended::AlreadyHandled,
                (false, true) => {
                    self.inbox.insert(inbox_key, now);
                    Ended::Done
                }
                (false, false) => Ended::NotHeld,
            };
        };
        if let Some(refusal) = Ended::refusal(&row.to_message(n, now), row.state(), ending, generation) {
            return refusal;
        }
        if ending.is_handled() {
            self.inbox.entry(inbox_key).or_insert(now);
        }
        self.finish_held(n);
        Ended::Done
    }

    fn held_keys<'a>(&'a self, filter: &'a HeldFilter) -> impl Iterator<Item = HeldKey> + 'a {
        let now = self.now();
        let meant = move |(n, row): &(&i64, &HeldRow)| {
            (filter.numbers.is_empty() || filter.numbers.contains(*n))
                && filter.consumer.as_ref().is_none_or(|consumer| *consumer == row.consumer)
                && filter.place.as_ref().is_none_or(|place| *place == row.place)
                && (!filter.quarantined || row.state() == HeldState::Quarantined)
                && filter.after.is_none_or(|after| **n > after)
        };
        self.held.iter().filter(meant).filter_map(move |(n, row)| {
            let of_key = self.held_of(&row.consumer, &row.place, &row.ordering_key);
            let mut head = row.to_message(*n, now);
            head.envelope.body = None;
            (of_key.first() == Some(n)).then(|| HeldKey {
                consumer: row.consumer.clone(),
                state: row.state(),
                due_in: row.due.map(|due| due.saturating_duration_since(now)),
                behind: of_key.len() as u64 - 1,
                head,
            })
        })
    }

    /// A failed attempt, written only if nobody has changed the row in the meantime.
    fn charge_lost(&mut self, head: &HeldMessage, failure: &Failure) -> Result<(), AdapterError> {
        self.reachable()?;
        if self.claimed.contains_key(&head.n) {
            return Err(claimed());
        }
        let now = self.now();
        if let Some(row) = self.held.get_mut(&head.n).filter(|row| row.attempts == head.attempts) {
            row.charge(failure, now);
        }
        Ok(())
    }
}

fn claimed() -> AdapterError {
    AdapterError::new(FaultKind::Conflict, "another instance has claimed the held message")
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
            data.revive(&message)?;
            if let Some(known) = data.holding(&message)? {
                return Ok(known);
            }
            let due = (!data.is_key_held(&message)).then(|| data.now());
            data.insert_held(&message, due, None);
            Ok(Holding::Stored)
        })
    }

    async fn store_all(&self, messages: &[NewHeld<'_>]) -> Result<Vec<Option<Holding>>, AdapterError> {
        self.shared.change(|data| messages.iter().map(|message| data.store_one_of_many(message)).collect())
    }

    async fn claim(
        &self,
        consumer: &str,
        _limits: Limits,
        heads: Heads,
    ) -> Result<Option<ClaimedHead<MemoryTx>>, ClaimError> {
        let locked = self.shared.look(|data| {
            data.may_begin()?;
            Ok::<_, AdapterError>(data.due_head(consumer, heads).and_then(|n| data.lock_head(n)))
        })?;
        Ok(locked.map(|(tx, key, head, handled)| {
            let inbox = (!handled).then_some(key).into_iter().collect();
            ClaimedHead { tx: MemoryTx::new(self.shared.clone(), tx, inbox), head, handled }
        }))
    }

    async fn acquit_heads(&self, _consumer: &str, charges: &[HeadCharge]) -> Result<(), AdapterError> {
        self.shared.change(|data| {
            data.reachable()?;
            charges.iter().for_each(|charge| data.acquit_held(*charge));
            Ok(())
        })
    }

    async fn claim_run(
        &self,
        consumer: &str,
        _limits: Limits,
        choice: RunChoice<'_>,
    ) -> Result<RunClaim<MemoryTx>, ClaimError> {
        let locked = self.shared.look(|data| {
            data.may_begin()?;
            let run = data.due_run(consumer, choice);
            Ok::<_, AdapterError>((!run.is_empty()).then(|| data.lock_run(&run)))
        })?;
        let Some((tx, inbox, members, standings)) = locked else { return Ok(RunClaim::Nothing) };
        let tx = MemoryTx::new(self.shared.clone(), tx, inbox);
        Ok(RunClaim::Shared(ClaimedRun { tx, members, standings }))
    }

    async fn finish_run(
        &self,
        _consumer: &str,
        tx: MemoryTx,
        done: &[HeldMessage],
        left: &[HeldMessage],
    ) -> Result<(), CommitError> {
        tx.commit(|data| {
            left.iter().for_each(|message| data.acquit_held(message.spent_charge()));
            done.iter().for_each(|message| data.finish_held(message.n));
        })
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
            if row.is_some_and(|row| row.is_condemned_as(head.attempts, &head.envelope.headers)) {
                data.finish_held(head.n);
            }
            Ok(())
        })
    }

    async fn park(
        &self,
        consumer: &str,
        message_key: &MessageKey,
        attempts: u32,
        headers: &Headers,
    ) -> Result<(), AdapterError> {
        self.shared.change(|data| {
            data.reachable()?;
            let row = data.held_as(consumer, message_key).and_then(|n| data.held.get_mut(&n));
            if let Some(row) = row.filter(|row| row.is_condemned_as(attempts, headers)) {
                row.due = None;
            }
            Ok(())
        })
    }

    async fn end(
        &self,
        consumer: &str,
        message_key: &MessageKey,
        ending: Ending,
        generation: Option<u32>,
    ) -> Result<Ended, AdapterError> {
        self.shared.change(|data| {
            data.reachable()?;
            Ok(data.end_held(consumer, message_key, ending, generation))
        })
    }

    async fn keys(&self, filter: &HeldFilter, limit: u32) -> Result<Vec<HeldKey>, AdapterError> {
        self.shared.look(|data| {
            data.reachable()?;
            Ok(data.held_keys(filter).take(limit as usize).collect())
        })
    }

    async fn summary(&self, consumer: &str) -> Result<HeldSummary, AdapterError> {
        self.shared.look(|data| {
            data.reachable()?;
            let now = data.now();
            let rows: Vec<_> = data.held.values().filter(|row| row.consumer == consumer).collect();
            let oldest = rows.iter().map(|row| now.saturating_duration_since(row.since)).max();
            let quarantined = rows.iter().filter(|row| row.state() == HeldState::Quarantined).count() as u64;
            Ok(HeldSummary { messages: rows.len() as u64, quarantined, oldest })
        })
    }
}
