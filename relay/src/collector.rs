//! The collector: reads dead letters from the broker, writes each into the ledger once, and then settles it.
//!
//! One collector of a ledger works at a time, by lease. A letter is settled only after the ledger has it; while the
//! ledger's database is away the collector waits, and settles nothing. What is read twice (after a crash, a change of
//! owner, a lost settlement) is the same letter, by its id. Memory is bounded by the sources' own windows.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use backstop_core::lease::Leases;
use backstop_core::ledger::{Ledger, Letter};
use backstop_core::source::{Received, Settlement, Source};
use backstop_core::{AdapterError, FaultKind};
use futures_core::future::BoxFuture;
use futures_util::future::join_all;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::exit::with_cause;
use crate::letters::letter;
use crate::owner::{Owner, OwnerSettings};

/// Letters that are recorded together.
const CHUNK: usize = 200;
/// Bytes that are recorded together; one letter may exceed it alone.
const CHUNK_BYTES: usize = 4 << 20;
/// First wait after a failure; it doubles, with jitter.
const RETRY_MIN: Duration = Duration::from_millis(200);
/// Longest wait after a failure.
const RETRY_MAX: Duration = Duration::from_secs(10);

/// How long the ledger may take to record a chunk before the connection counts as lost.
const RECORD_LIMIT: Duration = Duration::from_secs(30);

/// Opens one source anew: at each change of owner, and after an error that the source calls final.
pub type Opener<S> = Box<dyn Fn() -> BoxFuture<'static, Result<S, AdapterError>> + Send + Sync>;

/// Collects dead letters from some sources into a ledger.
pub struct Collector<S> {
    ledger: Arc<dyn Ledger>,
    sources: Vec<Opener<S>>,
    owner: OwnerSettings,
}

impl<S> std::fmt::Debug for Collector<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Collector")
            .field("sources", &self.sources.len())
            .field("owner", &self.owner)
            .finish_non_exhaustive()
    }
}

impl<S: Source> Collector<S> {
    /// A collector that reads `sources` while it holds the lease of `owner`.
    pub fn new(ledger: Arc<dyn Ledger>, sources: Vec<Opener<S>>, owner: OwnerSettings) -> Self {
        Self { ledger, sources, owner }
    }

    /// Collects until `stop` is cancelled. It has no errors: whatever fails is logged and tried again, because a dead
    /// letter that nobody collects is still safe where it is.
    pub async fn run(self, stop: CancellationToken) {
        let leases: Arc<dyn Leases> = self.ledger.clone();
        let owner = Owner::start(leases, self.owner.clone());
        let mut tenures = owner.tenures();
        while !stop.is_cancelled() {
            let taken = tokio::select! {
                () = stop.cancelled() => break,
                taken = tenures.wait_for(Option::is_some) => taken.is_ok(),
            };
            if !taken {
                break;
            }
            let term = stop.child_token();
            let lost = async {
                // A closed channel is a lost lease, too.
                let _ = tenures.wait_for(Option::is_none).await;
                term.cancel();
                std::future::pending::<()>().await;
            };
            tokio::select! {
                () = self.collect(&term) => {}
                () = lost => {}
            }
        }
        owner.release().await;
    }

    async fn collect(&self, term: &CancellationToken) {
        join_all(self.sources.iter().map(|source| self.attend(source, term))).await;
    }

    /// Reads one source, opened again after every failure, until the term ends.
    async fn attend(&self, open: &Opener<S>, term: &CancellationToken) {
        let mut pause = Pause::default();
        while !term.is_cancelled() {
            let error = match open().await {
                Ok(source) => self.drain(source, term, &mut pause).await.err(),
                Err(error) => Some(error),
            };
            if let Some(error) = error {
                warn!(cause = %with_cause(&error), hint = error.hint(), "dead letters cannot be read; trying again");
                pause.wait(term).await;
            }
        }
    }

    async fn drain(
        &self,
        mut source: S,
        term: &CancellationToken,
        pause: &mut Pause,
    ) -> Result<(), AdapterError> {
        let places = source.describe().places.join(", ");
        info!(places, "collecting dead letters");
        loop {
            let batch = tokio::select! {
                biased;
                () = term.cancelled() => break,
                batch = source.next() => batch?,
            };
            let Some(batch) = batch else { break };
            *pause = Pause::default();
            self.take(batch, term).await;
        }
        source.close().await
    }

    /// Records a batch in chunks and settles what is recorded; returns early, with the rest unsettled, when the term
    /// ends.
    async fn take(&self, batch: Vec<Received<S::Settlement>>, term: &CancellationToken) {
        let mut chunk = Chunk::default();
        for received in batch {
            chunk.add(received);
            if chunk.is_full() && !self.record(std::mem::take(&mut chunk), term).await {
                return;
            }
        }
        self.record(chunk, term).await;
    }

    /// Records until the ledger has the letters, then settles them; `false` when the term ended before.
    async fn record(&self, chunk: Chunk<S::Settlement>, term: &CancellationToken) -> bool {
        if chunk.letters.is_empty() {
            chunk.settle();
            return true;
        }
        let mut pause = Pause::default();
        loop {
            let recorded = tokio::select! {
                biased;
                recorded = timeout(RECORD_LIMIT, self.ledger.record(&chunk.letters)) => recorded,
                () = term.cancelled() => return false,
            };
            let recorded = recorded.unwrap_or_else(|_| {
                Err(AdapterError::new(FaultKind::Unreachable, "recording dead letters took too long")
                    .with_hint("look for a lock on the ledger's tables, or a lost connection"))
            });
            match recorded {
                Ok(new) => {
                    info!(new, read = chunk.letters.len(), "dead letters collected");
                    chunk.settle();
                    return true;
                }
                Err(error) => {
                    let cause = with_cause(&error);
                    warn!(%cause, hint = error.hint(), "dead letters cannot be recorded; they stay with the broker");
                }
            }
            if !pause.wait(term).await {
                return false;
            }
        }
    }
}

/// Letters to be recorded together, each once, and what settles them.
struct Chunk<S> {
    letters: Vec<Letter>,
    ids: HashSet<String>,
    settlements: Vec<S>,
    bytes: usize,
}

impl<S> Default for Chunk<S> {
    fn default() -> Self {
        Self { letters: Vec::new(), ids: HashSet::new(), settlements: Vec::new(), bytes: 0 }
    }
}

impl<S: Settlement> Chunk<S> {
    /// Takes a message, unless the source has taken it back.
    fn add(&mut self, mut received: Received<S>) {
        if !received.settlement.begin() {
            return;
        }
        self.settlements.push(received.settlement);
        let letter = letter(received.message, &received.origin);
        if self.ids.insert(letter.id.clone()) {
            self.bytes += letter.envelope.size();
            self.letters.push(letter);
        }
    }

    fn is_full(&self) -> bool {
        self.settlements.len() >= CHUNK || self.bytes >= CHUNK_BYTES
    }

    fn settle(self) {
        self.settlements.into_iter().for_each(Settlement::settle);
    }
}

/// Waits that double, with jitter.
struct Pause(Duration);

impl Default for Pause {
    fn default() -> Self {
        Self(RETRY_MIN)
    }
}

impl Pause {
    /// Waits; `false` when the term ended meanwhile.
    async fn wait(&mut self, term: &CancellationToken) -> bool {
        let pause = self.0.mul_f64(0.5 + fastrand::f64() / 2.0);
        self.0 = (self.0 * 2).min(RETRY_MAX);
        tokio::select! {
            () = term.cancelled() => false,
            () = tokio::time::sleep(pause) => true,
        }
    }
}

#[cfg(test)]
#[path = "collector_tests.rs"]
mod tests;
