//! The database in memory as an outbox, with leases.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use backstop_core::AdapterError;
use backstop_core::dead_rows::BuriedRow;
use backstop_core::lease::{Holder, Lease, Leases, OwnerReport};
use backstop_core::outbox::{Claimed, DeadRow, OutboxReader, OutboxStatus, OutboxStore, Reread, RowId};
use chrono::Utc;
use futures_core::future::BoxFuture;

use super::data::{Data, DeadEntry, LeaseRow, OutboxEntry};
use super::store::{Shared, Store};

/// A future that is ready with what `work` returns.
pub(super) fn now<'a, R: Send + 'a>(result: R) -> BoxFuture<'a, R> {
    Box::pin(std::future::ready(result))
}

impl Data {
    fn acquire(&mut self, name: &str, owner: &str, ttl: Duration) -> Result<Option<Lease>, AdapterError> {
        self.reachable()?;
        let now = self.now();
        let expires = now + ttl;
        let row = self.leases.entry(name.to_owned()).or_insert_with(|| LeaseRow {
            owner: String::new(),
            token: 0,
            expires: now,
            report: None,
        });
        let expired = row.expires <= now;
        if row.owner != owner && !expired {
            return Ok(None);
        }
        if row.owner != owner || expired {
            row.token += 1;
        }
        row.owner = owner.to_owned();
        row.expires = expires;
        Ok(Some(Lease { name: name.to_owned(), owner: owner.to_owned(), token: row.token }))
    }

    fn bury(&mut self, lease: &Lease, rows: &[DeadRow]) -> Result<bool, AdapterError> {
        self.reachable()?;
        if !self.is_current(lease) {
            return Ok(false);
        }
        for dead in rows {
            if let Some(OutboxEntry { row, unreadable, .. }) = self.take_row(dead.seq, &dead.id) {
                let (n, reason, error) = (self.next_number(), dead.reason.clone(), dead.error.clone());
                let buried = BuriedRow { n, row, reason, error, died_at: Utc::now() };
                self.dead.push(DeadEntry { buried, unreadable });
            }
        }
        Ok(true)
    }

    /// Removes the row of that number and id.
    fn take_row(&mut self, seq: i64, id: &str) -> Option<OutboxEntry> {
        let there = self.outbox.get(&seq).is_some_and(|entry| entry.row.message.id == id);
        if there { self.outbox.remove(&seq) } else { None }
    }

    fn outbox_status(&self) -> Result<OutboxStatus, AdapterError> {
        self.reachable()?;
        let now = self.now();
        let oldest = self.outbox.values().map(|entry| now.saturating_duration_since(entry.created)).max();
        Ok(OutboxStatus {
            pending: self.outbox.len() as u64,
            oldest,
            dead: self.dead.len() as u64,
            scheduled: self.scheduled.len() as u64,
            next_due: self.scheduled.first_key_value().map(|((due, _), _)| *due),
        })
    }
}

impl Leases for Store {
    fn acquire<'a>(
        &'a self,
        name: &'a str,
        owner: &'a str,
        ttl: Duration,
    ) -> BoxFuture<'a, Result<Option<Lease>, AdapterError>> {
        now(self.shared.look(|data| data.acquire(name, owner, ttl)))
    }

    fn release<'a>(&'a self, lease: &'a Lease) -> BoxFuture<'a, Result<(), AdapterError>> {
        now(self.shared.look(|data| {
            data.reachable()?;
            let now = data.now();
            if data.is_current(lease)
                && let Some(row) = data.leases.get_mut(&lease.name)
            {
                row.expires = now;
            }
            Ok(())
        }))
    }

    fn report<'a>(&'a self, lease: &'a Lease, text: &'a str) -> BoxFuture<'a, Result<(), AdapterError>> {
        now(self.shared.look(|data| {
            data.reachable()?;
            let now = data.now();
            if data.is_current(lease)
                && let Some(row) = data.leases.get_mut(&lease.name)
            {
                row.report = Some((now, text.to_owned()));
            }
            Ok(())
        }))
    }

    fn holder<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<Holder>, AdapterError>> {
        now(self.shared.look(|data| {
            data.reachable()?;
            let now = data.now();
            let row = data.leases.get(name).filter(|row| row.expires > now);
            Ok(row.map(|row| Holder {
                lease: Lease { name: name.to_owned(), owner: row.owner.clone(), token: row.token },
                remaining: row.expires - now,
                report: row.report.clone().map(|(at, text)| OwnerReport { text, age: now - at }),
            }))
        }))
    }
}

impl OutboxStore for Store {
    fn reader(&self) -> Box<dyn OutboxReader> {
        Box::new(MemoryReader { shared: self.shared.clone(), returned: BTreeSet::new() })
    }

    fn delete<'a>(&'a self, rows: &'a [RowId]) -> BoxFuture<'a, Result<(), AdapterError>> {
        now(self.shared.change(|data| {
            data.reachable()?;
            for row in rows {
                data.take_row(row.seq, &row.id);
            }
            Ok(())
        }))
    }

    fn bury<'a>(
        &'a self,
        lease: &'a Lease,
        rows: &'a [DeadRow],
    ) -> BoxFuture<'a, Result<bool, AdapterError>> {
        now(self.shared.change(|data| data.bury(lease, rows)))
    }

    fn status(&self) -> BoxFuture<'_, Result<OutboxStatus, AdapterError>> {
        now(self.shared.look(|data| data.outbox_status()))
    }
}

struct MemoryReader {
    shared: Arc<Shared>,
    returned: BTreeSet<i64>,
}

impl MemoryReader {
    /// Pending rows that `wanted` picks, up to the limits.
    fn pick(
        &mut self,
        rows: usize,
        bytes: usize,
        wanted: impl Fn(&BTreeSet<i64>, &OutboxEntry) -> bool,
    ) -> Result<Claimed, AdapterError> {
        let mut claimed = Claimed::default();
        let mut size = 0;
        self.shared.look(|data| {
            data.reachable()?;
            for entry in data.outbox.values().filter(|entry| wanted(&self.returned, entry)) {
                size += entry.row.size();
                let count = claimed.rows.len() + claimed.unreadable.len();
                if count >= rows || (count > 0 && size > bytes) {
                    claimed.more = true;
                    break;
                }
                match &entry.unreadable {
                    Some(why) => claimed.unreadable.push(DeadRow {
                        seq: entry.row.seq,
                        id: entry.row.message.id.as_str().into(),
                        reason: "invalid-row".to_owned(),
                        error: why.clone(),
                    }),
                    None => claimed.rows.push(entry.row.clone()),
                }
            }
            Ok::<(), AdapterError>(())
        })?;
        self.returned.extend(claimed.rows.iter().map(|row| row.seq));
        self.returned.extend(claimed.unreadable.iter().map(|row| row.seq));
        Ok(claimed)
    }
}

impl OutboxReader for MemoryReader {
    fn read(&mut self, rows: usize, bytes: usize) -> BoxFuture<'_, Result<Claimed, AdapterError>> {
        now(self.pick(rows, bytes, |returned, entry| !returned.contains(&entry.row.seq)))
    }

    fn reread<'a>(
        &'a mut self,
        what: &'a Reread,
        rows: usize,
        bytes: usize,
    ) -> BoxFuture<'a, Result<Claimed, AdapterError>> {
        now(self.pick(rows, bytes, |returned, entry| {
            let row = &entry.row;
            returned.contains(&row.seq)
                && row.seq >= what.from
                && row.destination == what.destination
                && (what.key.is_none() || what.key == row.message.key)
        }))
    }

    fn reset(&mut self) {
        self.returned.clear();
    }
}
