//! The transaction that a handler is lent.

use std::collections::BTreeMap;
use std::sync::Arc;

use backstop_core::inbox::CommitError;
use backstop_core::outbox::OutboxRow;
use backstop_core::{AdapterError, FaultKind, Outgoing, Receipt, context, trace};
use chrono::{DateTime, Utc};

use super::data::{Data, InboxKey, OutboxEntry, TxId, unreachable};
use super::store::{CommitFault, Shared};

/// An open transaction of a [`Store`](super::Store). Nothing of it is seen elsewhere before the commit; dropping it
/// abandons it.
#[derive(Debug)]
pub struct MemoryTx {
    shared: Arc<Shared>,
    id: TxId,
    writes: Writes,
    /// The event that is handled in it now, where somebody wants to know.
    event: Option<String>,
    poisoned: bool,
    ended: bool,
    lost: bool,
}

#[derive(Debug, Default)]
struct Writes {
    inbox: Vec<InboxKey>,
    deleted: Vec<InboxKey>,
    values: BTreeMap<String, String>,
    applied: Vec<String>,
    effects: Vec<(String, String)>,
    receipts: Vec<Receipt>,
    outbox: Vec<OutboxRow>,
    scheduled: Vec<(DateTime<Utc>, OutboxRow)>,
}

impl MemoryTx {
    pub(super) fn new(shared: Arc<Shared>, id: TxId, inbox: Vec<InboxKey>) -> Self {
        let writes = Writes { inbox, ..Writes::default() };
        Self { shared, id, writes, event: None, poisoned: false, ended: false, lost: false }
    }

    /// Sets a value.
    pub fn put(&mut self, name: impl Into<String>, value: impl Into<String>) {
        let name = name.into();
        self.note(format!("put {name}"), true);
        self.writes.values.insert(name, value.into());
    }

    /// The value of that name as this transaction sees it.
    pub fn get(&self, name: &str) -> Option<String> {
        let own = self.writes.values.get(name).cloned();
        own.or_else(|| self.shared.look(|data| data.values.get(name).cloned()))
    }

    /// Appends an effect to the list that [`Store::applied`](super::Store::applied) shows. It is not checked whether
    /// it is there already, so that a test sees what was applied twice.
    pub fn apply(&mut self, effect: impl Into<String>) {
        let effect = effect.into();
        self.note(effect.clone(), false);
        self.writes.applied.push(effect);
    }

    /// Writes an outbox row and returns its number.
    ///
    /// As in every outbox, the message inherits the trace context and the cause of what is being handled.
    pub fn enqueue(&mut self, outgoing: Outgoing) -> i64 {
        let row = self.new_row(outgoing);
        let seq = row.seq;
        self.writes.outbox.push(row);
        seq
    }

    /// Writes a row that is to be published later.
    pub fn enqueue_at(&mut self, outgoing: Outgoing, at: DateTime<Utc>) {
        let row = self.new_row(outgoing);
        self.writes.scheduled.push((at, row));
    }

    /// What is written from now on is for this event.
    pub(crate) fn handling(&mut self, event: &str) {
        self.event = Some(event.to_owned());
    }

    /// Notes an effect; one that takes the place of an earlier one of this transaction only once.
    fn note(&mut self, what: String, replaces: bool) {
        let Some(event) = self.event.clone() else { return };
        let effect = (event, what);
        if !(replaces && self.writes.effects.contains(&effect)) {
            self.writes.effects.push(effect);
        }
    }

    fn new_row(&mut self, mut outgoing: Outgoing) -> OutboxRow {
        self.note(format!("send {} to {}", outgoing.message.kind, outgoing.destination), false);
        trace::inject_current(&mut outgoing.message.headers);
        context::inherit(&mut outgoing.message.headers);
        let seq = self.shared.look(Data::next_number);
        OutboxRow { seq, destination: outgoing.destination, message: outgoing.message }
    }

    /// What a handler does that swallows a failed statement: the transaction can only be rolled back now.
    pub fn fail_statement(&mut self) {
        self.poisoned = true;
    }

    /// What a handler does that ends its transaction by itself, with a commit.
    pub fn commit_raw(&mut self) {
        self.end(true);
    }

    /// What a handler does that ends its transaction by itself, with a rollback.
    pub fn rollback_raw(&mut self) {
        self.end(false);
    }

    /// What a network does that fails: the server rolls the transaction back, and nobody can use it any more.
    pub fn lose(&mut self) {
        self.end(false);
        self.lost = true;
    }

    /// Whether the handler has ended it.
    pub(super) fn is_ended(&self) -> Result<bool, AdapterError> {
        self.reachable().map(|()| self.ended)
    }

    fn reachable(&self) -> Result<(), AdapterError> {
        if self.lost { Err(unreachable("the connection was lost")) } else { Ok(()) }
    }

    fn end(&mut self, commit: bool) {
        let writes = std::mem::take(&mut self.writes);
        let good = commit && !self.poisoned && !self.ended;
        self.ended = true;
        self.shared.change(|data| {
            if good {
                writes.store(data);
            }
            data.release(self.id);
        });
    }

    /// Writes that a receipt is owed. After the end each statement commits by itself.
    pub(super) fn owe(&mut self, receipt: &Receipt) {
        if self.ended {
            self.shared.change(|data| data.owe(receipt));
        } else {
            self.writes.receipts.push(receipt.clone());
        }
    }

    /// Deletes inbox rows, this transaction's own and others.
    pub(super) fn withdraw(&mut self, keys: Vec<InboxKey>) {
        self.writes.inbox.retain(|key| !keys.contains(key));
        let ended = self.ended;
        let deleted = self.shared.change(|data| {
            for key in &keys {
                data.working.remove(key);
            }
            if ended {
                // After the end each statement commits by itself.
                data.inbox.retain(|key, _| !keys.contains(key));
                return Vec::new();
            }
            keys
        });
        self.writes.deleted.extend(deleted);
    }

    /// Takes back what was written, the inbox row included, and keeps the locks.
    pub(super) fn undo(&mut self) -> Result<(), AdapterError> {
        self.reachable()?;
        if self.ended {
            return Err(ended_by_handler());
        }
        self.writes = Writes::default();
        self.poisoned = false;
        Ok(())
    }

    /// Commits with proof; `also` is written in the same transaction.
    pub(super) fn commit(mut self, also: impl FnOnce(&mut Data)) -> Result<(), CommitError> {
        self.reachable().map_err(CommitError::Unknown)?;
        if self.ended {
            return Err(CommitError::EndedByHandler(ended_by_handler()));
        }
        if self.poisoned {
            let error = AdapterError::new(FaultKind::Other, "a statement failed before the commit")
                .with_hint("return the statement's error from the handler");
            return Err(CommitError::RolledBack(error));
        }
        let writes = std::mem::take(&mut self.writes);
        self.shared.look(|data| {
            if data.faults.unreachable {
                return Err(CommitError::Unknown(unreachable("the connection was lost inside the commit")));
            }
            let fault = data.faults.commits.pop_front();
            let ended = matches!(fault, Some(CommitFault::EndedByHandler { .. }));
            if fault.is_none_or(CommitFault::is_committed) {
                writes.store(data);
                if !ended {
                    also(data);
                }
            }
            fault.map_or(Ok(()), |fault| Err(fault.to_error()))
        })
    }
}

impl Drop for MemoryTx {
    fn drop(&mut self) {
        self.shared.change(|data| data.release(self.id));
    }
}

impl Writes {
    fn store(self, data: &mut Data) {
        let now = data.now();
        for key in &self.deleted {
            data.inbox.remove(key);
        }
        data.inbox.extend(self.inbox.into_iter().map(|key| (key, now)));
        for receipt in &self.receipts {
            data.owe(receipt);
        }
        data.values.extend(self.values);
        data.applied.extend(self.applied);
        data.effects.extend(self.effects);
        for row in self.outbox {
            data.outbox.insert(row.seq, OutboxEntry { row, created: now, unreadable: None });
        }
        data.scheduled.extend(self.scheduled.into_iter().map(|(at, row)| ((at, row.seq), row)));
    }
}

impl CommitFault {
    fn is_committed(self) -> bool {
        match self {
            Self::RolledBack => false,
            Self::EndedByHandler { committed } | Self::Unknown { committed } => committed,
        }
    }

    fn to_error(self) -> CommitError {
        let lost = || unreachable("the commit failed because the test wants it to");
        match self {
            Self::RolledBack => CommitError::RolledBack(lost()),
            Self::EndedByHandler { .. } => CommitError::EndedByHandler(ended_by_handler()),
            Self::Unknown { .. } => CommitError::Unknown(lost()),
        }
    }
}

fn ended_by_handler() -> AdapterError {
    AdapterError::new(FaultKind::TransactionEnded, "the transaction was ended before the commit")
        .with_hint("leave commit and rollback to the consumer")
}
