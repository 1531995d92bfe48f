//! The scheduled rows of the database in memory.

use backstop_core::AdapterError;
use backstop_core::lease::Lease;
use backstop_core::outbox::OutboxRow;
use backstop_core::scheduled::ScheduledRows;
use futures_core::future::BoxFuture;

use super::data::{Data, OutboxEntry};
use super::outbox::now;
use super::store::Store;

impl Data {
    fn promote(&mut self, lease: &Lease, rows: u32, bytes: u64) -> Result<Option<u64>, AdapterError> {
        self.reachable()?;
        let date = self.date();
        let (mut moved, mut total) = (0_u64, 0_u64);
        while let Some(first) = self.scheduled.first_entry().filter(|first| first.key().0 <= date) {
            total += first.get().size() as u64;
            if moved >= u64::from(rows.max(1)) || (moved > 0 && total > bytes) {
                break;
            }
            if !self.is_current(lease) {
                return Ok(None);
            }
            let Some((_, row)) = self.scheduled.pop_first() else { break };
            let seq = self.next_number();
            let entry = OutboxEntry { row: OutboxRow { seq, ..row }, created: self.now(), unreadable: None };
            self.outbox.insert(seq, entry);
            moved += 1;
        }
        Ok(Some(moved))
    }
}

impl ScheduledRows for Store {
    fn promote<'a>(
        &'a self,
        lease: &'a Lease,
        rows: u32,
        bytes: u64,
    ) -> BoxFuture<'a, Result<Option<u64>, AdapterError>> {
        now(self.shared.change(|data| data.promote(lease, rows, bytes)))
    }
}
