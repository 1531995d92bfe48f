//! The demo's ledger at the end: what the tables, the relay's ledger and the consumer's counters say.

use backstop_core::ledger::{LetterFilter, LetterStatus};
use serde::Serialize;

use crate::commands::database;
use crate::database::Database;
use crate::demo::shop::Shop;
use crate::exit::Failure;

/// Orders, letters and events, counted where they lie.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(super) struct Balance {
    /// Orders whose transaction committed.
    pub(super) placed: u64,
    /// Events that were committed to the outbox.
    pub(super) sent: u64,
    /// Orders that were placed and paid.
    pub(super) handled: u64,
    /// Copies that the inbox knew already.
    pub(super) duplicates_absorbed: u64,
    /// Dead letters in the relay's ledger.
    pub(super) dead_letters: u64,
    /// Of these, letters that were sent to the consumer's door.
    pub(super) redriven: u64,
    /// Orders that were placed and never paid.
    pub(super) lost: u64,
    /// Orders that were paid more than once.
    pub(super) twice: u64,
    /// Orders that could not be paid at first.
    pub(super) poisoned: u64,
    /// Orders that were paid through the door.
    pub(super) handled_after_redrive: u64,
    /// Orders that were paid although they were never placed, such as those of a transaction that rolled back.
    pub(super) never_placed: u64,
    /// Orders that were paid before an earlier one of the same customer; redriven ones do not count.
    pub(super) out_of_order: u64,
    /// Rows that are still in the outbox, or were given up there.
    pub(super) left_in_outbox: u64,
}

impl Balance {
    /// Counts. Whatever may still change something has ended before.
    pub(super) async fn read(
        shop: &Shop,
        relay: &Database,
        duplicates_absorbed: u64,
    ) -> Result<Self, Failure> {
        let ledger = relay.ledger().map_err(database)?;
        let letters = async |status| {
            ledger.count(&LetterFilter { status, ..LetterFilter::default() }).await.map_err(database)
        };
        let outbox = relay.outbox.status().await.map_err(database)?;
        Ok(Self {
            placed: shop.count("SELECT count(*) FROM orders").await?,
            // Numbers of the outbox are used once, and those of transactions that rolled back are not used up.
            sent: shop.count("SELECT seq FROM sqlite_sequence WHERE name = 'backstop_outbox'").await?,
            handled: shop.count("SELECT count(*) FROM orders WHERE id IN (SELECT order_id FROM payments)").await?,
            duplicates_absorbed,
            dead_letters: letters(None).await?,
            redriven: letters(Some(LetterStatus::Redriving)).await?
                + letters(Some(LetterStatus::Resolved)).await?,
            lost: shop
                .count("SELECT count(*) FROM orders WHERE id NOT IN (SELECT order_id FROM payments)")
                .await?,
            twice: shop
                .count("SELECT count(*) FROM (SELECT 1 FROM payments GROUP BY order_id HAVING count(*) > 1)")
                .await?,
            poisoned: shop.count("SELECT count(*) FROM orders WHERE item = 'gift card'").await?,
            handled_after_redrive: shop
                .count("SELECT count(DISTINCT order_id) FROM payments WHERE via = 'door'")
                .await?,
            never_placed: shop
                .count("SELECT count(*) FROM payments WHERE order_id NOT IN (SELECT id FROM orders)")
                .await?,
            out_of_order: shop
                .count(
                    "SELECT count(*) FROM (SELECT number < max(number) OVER (PARTITION BY customer ORDER BY n) AS late \
                     FROM (SELECT p.n, p.customer, o.number FROM payments p JOIN orders o ON o.id = p.order_id \
                     WHERE p.via = 'live')) WHERE late",
                )
                .await?,
            left_in_outbox: outbox.pending + outbox.dead,
        })
    }

    /// What is wrong, one sentence each; nothing when the ledger balances.
    pub(super) fn faults(&self) -> Vec<String> {
        let never = [
            (self.lost, "orders were lost"),
            (self.twice, "orders were paid twice"),
            (self.never_placed, "orders were paid although they were never placed"),
            (self.out_of_order, "orders overtook an earlier one of their customer"),
            (self.left_in_outbox, "rows are left in the outbox"),
        ];
        let equal = [
            (self.poisoned, self.dead_letters, "poison messages", "dead letters"),
            (self.dead_letters, self.redriven, "dead letters", "redriven"),
            (self.redriven, self.handled_after_redrive, "redriven letters", "handled after it"),
        ];
        let copies = self.sent.saturating_sub(self.placed);
        let unseen = copies.saturating_sub(self.duplicates_absorbed);
        let mut faults: Vec<String> = Vec::new();
        if self.placed == 0 {
            faults.push("no order was placed".to_owned());
        }
        faults.extend(
            never.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")),
        );
        let unequal = equal.iter().filter(|(one, other, ..)| one != other);
        faults.extend(unequal.map(|(one, other, what, of)| format!("{one} {what}, but {other} {of}")));
        if unseen > 0 {
            faults.push(format!("{unseen} of {copies} copies did not come to the inbox"));
        }
        faults
    }

    /// The ledger in one line.
    pub(super) fn line(&self) -> String {
        format!(
            "placed {}   handled {}   duplicates absorbed {}   dead letters {}   redriven {}   lost {}   twice {}",
            self.placed,
            self.handled,
            self.duplicates_absorbed,
            self.dead_letters,
            self.redriven,
            self.lost,
            self.twice
        )
    }
}

#[cfg(test)]
#[path = "balance_tests.rs"]
mod tests;
