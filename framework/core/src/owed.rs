//! Owed receipts: what a consumer has done and has not told yet, kept in its own database.
//!
//! Between the commit of a redriven message and the confirmation of its receipt a process may die. So what is owed
//! is written in the transaction that handles the message, and deleted when the broker has confirmed the receipt: a
//! receipt may come twice, and never not at all.

use std::future::Future;
use std::time::Duration;

use crate::adapter_error::AdapterError;
use crate::inbox::Inbox;
use crate::receipt::{Receipt, ReceiptOutcome};

/// A receipt that is owed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owed {
    /// Its number.
    pub n: i64,
    /// The receipt.
    pub receipt: Receipt,
}

impl Owed {
    /// The row of that number and text; `None`, with a word in the log, when the text is no receipt.
    pub fn read(n: i64, text: &str) -> Option<Self> {
        match serde_json::from_str(text) {
            Ok(receipt) => Some(Self { n, receipt }),
            Err(error) => {
                tracing::error!(n, %error, "a row of owed receipts cannot be read; it stays");
                None
            }
        }
    }

    /// The text of a row.
    pub fn text(receipt: &Receipt) -> String {
        serde_json::to_string(receipt).expect("a receipt is JSON")
    }
}

/// Whether a receipt with that outcome may be owed only for a message that the inbox knows.
///
/// A handler may have rolled back the transaction that it was lent; what is written after that commits by itself,
/// and would say of a message that it was handled although it was not.
pub fn needs_inbox_row(outcome: ReceiptOutcome) -> bool {
    matches!(outcome, ReceiptOutcome::Handled | ReceiptOutcome::AlreadyHandled)
}

/// The table of owed receipts beside an inbox.
pub trait OwedReceipts: Inbox {
    /// Writes in the transaction in which a message is handled that its receipt is owed. Nothing is written where
    /// [`needs_inbox_row`] says so and the inbox, as this transaction sees it, does not know the message.
    ///
    /// # Errors
    /// When the statement fails; the transaction must not be committed then.
    fn owe(
        &self,
        tx: &mut Self::Tx,
        receipt: &Receipt,
    ) -> impl Future<Output = Result<(), AdapterError>> + Send;

    /// The same for several messages that share the transaction. Defaults to one after another.
    ///
    /// # Errors
    /// When a statement fails; the transaction must not be committed then.
    fn owe_all(
        &self,
        tx: &mut Self::Tx,
        receipts: &[Receipt],
    ) -> impl Future<Output = Result<(), AdapterError>> + Send {
        async move {
            for receipt in receipts {
                self.owe(tx, receipt).await?;
            }
            Ok(())
        }
    }

    /// [`owe`](OwedReceipts::owe) in a transaction of its own.
    ///
    /// # Errors
    /// When the database cannot be asked; the message must not be settled then.
    fn owe_now(&self, receipt: &Receipt) -> impl Future<Output = Result<(), AdapterError>> + Send;

    /// What the consumer owes, oldest first: receipts of this instance, and those of others that are older than
    /// `others_after`, since whoever wrote them may be gone.
    ///
    /// # Errors
    /// When the database cannot be asked.
    fn owed(
        &self,
        consumer: &str,
        instance: &str,
        others_after: Duration,
        limit: u32,
    ) -> impl Future<Output = Result<Vec<Owed>, AdapterError>> + Send;

    /// Forgets receipts that the broker has confirmed.
    ///
    /// # Errors
    /// When the database cannot be asked; the receipts come again then.
    fn paid(&self, numbers: &[i64]) -> impl Future<Output = Result<(), AdapterError>> + Send;

    /// Checks at start-up that the table is there and usable.
    ///
    /// # Errors
    /// Names what is missing and how to mend it.
    fn can_owe(&self) -> impl Future<Output = Result<(), AdapterError>> + Send;
}
