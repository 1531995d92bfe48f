//! Receipts and reports: read from where consumers publish them, written into the ledger, and then settled.
//!
//! Every relay of a ledger may read them: what is read twice, or by two, changes nothing the second time. A receipt is
//! settled only after the ledger has it; while the ledger's database is away the reader waits, and settles nothing.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use backstop_core::ledger::Ledger;
use backstop_core::source::{Received, Settlement, Source};
use backstop_core::{AdapterError, ConsumerReport, FaultKind, Message, Receipt};
use futures_util::future::join_all;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::collector::{Opener, Pause};
use crate::exit::with_cause;

/// Receipts and reports that are written together.
const CHUNK: usize = 200;
/// How long more of them are waited for after the first: a transaction costs the ledger as much as the receipts of some
/// messages, and they come one by one while letters are redriven.
const GATHER: Duration = Duration::from_millis(100);
/// How long the ledger may take to write them before the connection counts as lost.
const WRITE_LIMIT: Duration = Duration::from_secs(30);

macro_rules! counts {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What was read so far.
        #[derive(Debug, Default)]
        pub struct ReceiptCounts {
            $($name: AtomicU64,)*
        }

        impl ReceiptCounts {
            $($(#[$doc])* pub fn $name(&self) -> u64 {
                self.$name.load(Ordering::Relaxed)
            })*
        }
    };
}

counts! {
    /// Receipts that the ledger has, those that came twice included.
    receipts,
    /// Reports that the ledger has.
    reports,
    /// Messages that were neither, or that the ledger's database refuses.
    unreadable,
}

/// Reads receipts and reports from some sources into a ledger.
pub struct Receipts<S> {
    ledger: Arc<dyn Ledger>,
    sources: Vec<Opener<S>>,
    counts: Arc<ReceiptCounts>,
}

impl<S> std::fmt::Debug for Receipts<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Receipts").field("sources", &self.sources.len()).finish_non_exhaustive()
    }
}

impl<S: Source> Receipts<S> {
    /// A reader of `sources`, which adds to `counts`.
    pub fn new(ledger: Arc<dyn Ledger>, sources: Vec<Opener<S>>, counts: Arc<ReceiptCounts>) -> Self {
        Self { ledger, sources, counts }
    }

    /// Reads until `stop` is cancelled. It has no errors: whatever fails is logged and tried again, because a receipt
    /// that nobody reads is still safe where it is.
    pub async fn run(self, stop: CancellationToken) {
        join_all(self.sources.iter().map(|source| self.attend(source, &stop))).await;
    }

    /// Reads one source, opened again after every failure.
    async fn attend(&self, open: &Opener<S>, stop: &CancellationToken) {
        let mut pause = Pause::default();
        while !stop.is_cancelled() {
            let error = match open().await {
                Ok(source) => self.drain(source, stop, &mut pause).await.err(),
                Err(error) => Some(error),
            };
            if let Some(error) = error {
                warn!(cause = %with_cause(&error), hint = error.hint(), "receipts cannot be read; trying again");
                pause.wait(stop).await;
            }
        }
    }

    async fn drain(
        &self,
        mut source: S,
        stop: &CancellationToken,
        pause: &mut Pause,
    ) -> Result<(), AdapterError> {
        let places = source.describe().places.join(", ");
        info!(places, "reading receipts");
        loop {
            let batch = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                batch = source.next() => batch?,
            };
            let Some(batch) = batch else { break };
            *pause = Pause::default();
            let mut chunk = Chunk::default();
            self.add_all(&mut chunk, batch, stop).await;
            let gathered = self.gather(&mut source, &mut chunk, stop).await;
            self.write(chunk, stop).await;
            if !gathered? {
                break;
            }
        }
        source.close().await
    }

    /// Waits a moment for more, unless there is a whole chunk; `false` when the source has ended.
    async fn gather(
        &self,
        source: &mut S,
        chunk: &mut Chunk<S::Settlement>,
        stop: &CancellationToken,
    ) -> Result<bool, AdapterError> {
        let enough = sleep(GATHER);
        tokio::pin!(enough);
        while !chunk.settlements.is_empty() {
            let batch = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                batch = source.next() => batch?,
                () = &mut enough => break,
            };
            let Some(batch) = batch else { return Ok(false) };
            self.add_all(chunk, batch, stop).await;
        }
        Ok(true)
    }

    /// Takes messages, and writes whole chunks.
    async fn add_all(
        &self,
        chunk: &mut Chunk<S::Settlement>,
        batch: Vec<Received<S::Settlement>>,
        stop: &CancellationToken,
    ) {
        for received in batch {
            self.add(chunk, received);
            if chunk.settlements.len() >= CHUNK {
                self.write(std::mem::take(chunk), stop).await;
            }
        }
    }

    /// Takes a message, unless the source has taken it back.
    fn add<T: Settlement>(&self, chunk: &mut Chunk<T>, mut received: Received<T>) {
        if !received.settlement.begin() {
            return;
        }
        match Told::read(&received.message) {
            Ok(Told::Receipt(receipt)) => chunk.receipts.push(receipt),
            Ok(Told::Report(report)) => chunk.keep_latest(report),
            Err(error) => self.refuse(&received.origin, &error),
        }
        chunk.settlements.push(received.settlement);
    }

    /// What is no receipt will never be one; it is counted and passed over.
    fn refuse(&self, what: &dyn std::fmt::Display, error: &dyn std::fmt::Display) {
        let before = self.counts.unreadable.fetch_add(1, Ordering::Relaxed);
        if before.is_multiple_of(1_000) {
            warn!(%what, %error, "a message in the receipts' destination is passed over");
        }
    }

    /// Writes until the ledger has everything, then settles; leaves it unsettled when `stop` comes before.
    async fn write<T: Settlement>(&self, chunk: Chunk<T>, stop: &CancellationToken) {
        let mut pause = Pause::default();
        while !chunk.settlements.is_empty() {
            let written = tokio::select! {
                biased;
                written = timeout(WRITE_LIMIT, self.record(&chunk)) => written,
                () = stop.cancelled() => return,
            };
            let written = written.unwrap_or_else(|_| {
                Err(AdapterError::new(FaultKind::Unreachable, "recording receipts took too long")
                    .with_hint("look for a lock on the ledger's tables, or a lost connection"))
            });
            match written {
                Ok(()) => return chunk.settlements.into_iter().for_each(Settlement::settle),
                Err(error) => {
                    let cause = with_cause(&error);
                    warn!(%cause, hint = error.hint(), "receipts cannot be recorded; they stay with the broker");
                }
            }
            if !pause.wait(stop).await {
                return;
            }
        }
    }

    async fn record<T>(&self, chunk: &Chunk<T>) -> Result<(), AdapterError> {
        let receipts = &chunk.receipts[..];
        if !receipts.is_empty() {
            match self.ledger.record_outcomes(receipts).await {
                Ok(_) => self.count(&self.counts.receipts, receipts.len()),
                Err(error) if error.kind() == FaultKind::Invalid => self.record_apart(receipts).await?,
                Err(error) => return Err(error),
            }
        }
        let reports: Vec<ConsumerReport> = chunk.reports.values().cloned().collect();
        if !reports.is_empty() {
            match self.ledger.record_reports(&reports).await {
                Ok(()) => self.count(&self.counts.reports, reports.len()),
                // The next ones come in 30 s.
                Err(error) if error.kind() == FaultKind::Invalid => self.refuse(&"a report", &error),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// One that the database will never take must not keep the others out.
    async fn record_apart(&self, receipts: &[Receipt]) -> Result<(), AdapterError> {
        for receipt in receipts {
            match self.ledger.record_outcomes(std::slice::from_ref(receipt)).await {
                Ok(_) => self.count(&self.counts.receipts, 1),
                Err(error) if error.kind() == FaultKind::Invalid => {
                    self.refuse(&receipt.message_key, &error);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn count(&self, counter: &AtomicU64, messages: usize) {
        counter.fetch_add(messages as u64, Ordering::Relaxed);
    }
}

/// What a message of the receipts' destination says.
enum Told {
    Receipt(Receipt),
    Report(ConsumerReport),
}

impl Told {
    fn read(message: &Message) -> Result<Self, backstop_core::receipt::Unreadable> {
        if message.kind == ConsumerReport::KIND {
            return ConsumerReport::from_message(message).map(Self::Report);
        }
        Receipt::from_message(message).map(Self::Receipt)
    }
}

/// Receipts and reports to be written together, and what settles them.
struct Chunk<S> {
    receipts: Vec<Receipt>,
    /// The latest of each instance.
    reports: HashMap<(String, String), ConsumerReport>,
    settlements: Vec<S>,
}

impl<S> Default for Chunk<S> {
    fn default() -> Self {
        Self { receipts: Vec::new(), reports: HashMap::new(), settlements: Vec::new() }
    }
}

impl<S> Chunk<S> {
    fn keep_latest(&mut self, report: ConsumerReport) {
        let instance = (report.consumer.clone(), report.instance.clone());
        match self.reports.get(&instance) {
            Some(known) if known.at > report.at => {}
            _ => drop(self.reports.insert(instance, report)),
        }
    }
}

#[cfg(test)]
#[path = "receipts_tests.rs"]
mod tests;
