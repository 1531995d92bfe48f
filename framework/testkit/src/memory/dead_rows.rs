//! The dead rows of the database in memory.

use std::collections::BTreeMap;

use backstop_core::AdapterError;
use backstop_core::dead_rows::{BuriedRow, DeadGroup, DeadRowFilter, DeadRows};
use backstop_core::outbox::OutboxRow;
use futures_core::future::BoxFuture;

use super::data::{Data, DeadEntry, OutboxEntry};
use super::outbox::now;
use super::store::Store;

impl Data {
    fn dead_groups(&self, filter: &DeadRowFilter) -> Result<Vec<DeadGroup>, AdapterError> {
        self.reachable()?;
        let mut groups: BTreeMap<(String, String), DeadGroup> = BTreeMap::new();
        for BuriedRow { n, row, reason, .. } in self.dead_rows(filter) {
            let (destination, reason) = (row.destination.name.clone(), reason.clone());
            let group = groups.entry((destination.clone(), reason.clone())).or_insert(DeadGroup {
                destination,
                reason,
                rows: 0,
                last: *n,
            });
            group.rows += 1;
            group.last = group.last.max(*n);
        }
        let mut groups: Vec<DeadGroup> = groups.into_values().collect();
        groups.sort_by_key(|group| std::cmp::Reverse(group.rows));
        Ok(groups)
    }

    fn dead_rows(&self, filter: &DeadRowFilter) -> impl Iterator<Item = &BuriedRow> {
        self.dead.iter().map(|entry| &entry.buried).filter(|buried| filter.matches(buried))
    }

    /// Takes out the rows that are meant, by the numbers that they had.
    fn take_dead(&mut self, filter: &DeadRowFilter, limit: u32) -> Result<Vec<DeadEntry>, AdapterError> {
        self.reachable()?;
        let mut numbers: Vec<(i64, i64)> =
            self.dead_rows(filter).map(|dead| (dead.row.seq, dead.n)).collect();
        numbers.sort_unstable();
        numbers.truncate(limit as usize);
        let taken = |entry: &mut DeadEntry| numbers.contains(&(entry.buried.row.seq, entry.buried.n));
        let mut taken: Vec<DeadEntry> = self.dead.extract_if(.., taken).collect();
        taken.sort_by_key(|entry| (entry.buried.row.seq, entry.buried.n));
        Ok(taken)
    }

    fn retry(&mut self, filter: &DeadRowFilter, limit: u32) -> Result<u64, AdapterError> {
        let taken = self.take_dead(filter, limit)?;
        let moved = taken.len() as u64;
        for DeadEntry { buried, unreadable } in taken {
            let seq = self.next_number();
            let row = OutboxRow { seq, ..buried.row };
            self.outbox.insert(seq, OutboxEntry { row, created: self.now(), unreadable });
        }
        Ok(moved)
    }
}

impl DeadRows for Store {
    fn buried<'a>(
        &'a self,
        filter: &'a DeadRowFilter,
        limit: u32,
    ) -> BoxFuture<'a, Result<Vec<BuriedRow>, AdapterError>> {
        now(self.shared.look(|data| {
            data.reachable()?;
            Ok(data.dead_rows(filter).take(limit as usize).cloned().collect())
        }))
    }

    fn buried_groups<'a>(
        &'a self,
        filter: &'a DeadRowFilter,
    ) -> BoxFuture<'a, Result<Vec<DeadGroup>, AdapterError>> {
        now(self.shared.look(|data| data.dead_groups(filter)))
    }

    fn retry_buried<'a>(
        &'a self,
        filter: &'a DeadRowFilter,
        limit: u32,
    ) -> BoxFuture<'a, Result<u64, AdapterError>> {
        now(self.shared.change(|data| data.retry(filter, limit)))
    }

    fn discard_buried<'a>(
        &'a self,
        filter: &'a DeadRowFilter,
        limit: u32,
    ) -> BoxFuture<'a, Result<u64, AdapterError>> {
        now(self.shared.change(|data| Ok(data.take_dead(filter, limit)?.len() as u64)))
    }
}
