//! The database in memory as a table of owed receipts.

use std::time::Duration;

use backstop_core::owed::{Owed, OwedReceipts, needs_inbox_row};
use backstop_core::{AdapterError, Receipt};

use super::data::Data;
use super::store::Store;
use super::transaction::MemoryTx;

impl Data {
    /// Writes what is owed, unless the inbox should know the message and does not.
    pub(super) fn owe(&mut self, receipt: &Receipt) {
        let key = (receipt.consumer.clone(), receipt.message_key.clone());
        if !needs_inbox_row(receipt.outcome) || self.inbox.contains_key(&key) {
            let (n, now) = (self.next_number(), self.now());
            self.receipts.insert(n, (receipt.clone(), now));
        }
    }
}

impl Store {
    /// Receipts that are written down and not published yet.
    pub fn receipts_owed(&self) -> Vec<Receipt> {
        self.shared.look(|data| data.receipts.values().map(|(receipt, _)| receipt.clone()).collect())
    }
}

impl OwedReceipts for Store {
    async fn owe(&self, tx: &mut MemoryTx, receipt: &Receipt) -> Result<(), AdapterError> {
        tx.owe(receipt);
        Ok(())
    }

    async fn owe_now(&self, receipt: &Receipt) -> Result<(), AdapterError> {
        self.shared.change(|data| {
            data.reachable()?;
            data.owe(receipt);
            Ok(())
        })
    }

    async fn owed(
        &self,
        consumer: &str,
        instance: &str,
        others_after: Duration,
        limit: u32,
    ) -> Result<Vec<Owed>, AdapterError> {
        self.shared.look(|data| {
            data.reachable()?;
            let now = data.now();
            let due = data.receipts.iter().filter(|(_, (receipt, since))| {
                let age = now.saturating_duration_since(*since);
                receipt.consumer == consumer && (receipt.instance == instance || age > others_after)
            });
            let owed = due.map(|(n, (receipt, _))| Owed { n: *n, receipt: receipt.clone() });
            Ok(owed.take(limit as usize).collect())
        })
    }

    async fn paid(&self, numbers: &[i64]) -> Result<(), AdapterError> {
        self.shared.change(|data| {
            data.reachable()?;
            data.receipts.retain(|n, _| !numbers.contains(n));
            Ok(())
        })
    }

    async fn can_owe(&self) -> Result<(), AdapterError> {
        self.shared.look(|data| data.reachable())
    }
}
