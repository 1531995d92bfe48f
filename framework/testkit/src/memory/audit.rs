//! The database in memory as an audit log.

use backstop_core::AdapterError;
use backstop_core::ledger::{AuditEntry, AuditFilter, AuditLog, AuditStep, NewAuditEntry};
use futures_core::future::BoxFuture;

use super::data::Data;
use super::outbox::now;
use super::store::Store;

impl Data {
    /// The beginning of what has ended is left out.
    fn entries(&self, filter: &AuditFilter, limit: u32) -> Vec<AuditEntry> {
        let ended = |deed: &str| {
            self.audit.iter().any(|other| other.entry.deed == deed && other.entry.step != AuditStep::Begun)
        };
        let shown = |entry: &&AuditEntry| entry.entry.step != AuditStep::Begun || !ended(&entry.entry.deed);
        let meant = self.audit.iter().rev().filter(|entry| filter.matches(entry)).filter(shown);
        meant.take(limit as usize).cloned().collect()
    }
}

impl AuditLog for Store {
    fn write_audit<'a>(&'a self, entry: &'a NewAuditEntry) -> BoxFuture<'a, Result<(), AdapterError>> {
        now(self.shared.change(|data| {
            data.reachable()?;
            let (n, at) = (data.next_number(), data.date());
            data.audit.push(AuditEntry { n, at, entry: entry.clone() });
            Ok(())
        }))
    }

    fn read_audit<'a>(
        &'a self,
        filter: &'a AuditFilter,
        limit: u32,
    ) -> BoxFuture<'a, Result<Vec<AuditEntry>, AdapterError>> {
        now(self.shared.look(|data| {
            data.reachable()?;
            Ok(data.entries(filter, limit))
        }))
    }
}
