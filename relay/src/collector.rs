//! The collector: reads dead letters from the broker, writes each into the ledger once, and then settles it.
//!
//! Sources are those that the configuration names, and those that are found by pattern, looked for again and again.
//!
//! One collector of a ledger works at a time, by lease. A letter is settled only after the ledger has it; while the
//! ledger's database is away the collector waits, and settles nothing. What is read twice (after a crash, a change of
//! owner, a lost settlement) is the same letter, by its id. Memory is bounded by the sources' own windows.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::future::ready;
use std::sync::Arc;
use std::time::Duration;

use backstop_core::AdapterError;
use backstop_core::lease::Leases;
use backstop_core::ledger::{Ledger, Letter};
use backstop_core::source::{Received, Settlement, Source};
use chrono::{DateTime, Utc};
use futures_core::future::BoxFuture;
use futures_util::future::{join, join_all};
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::encryption::Keyring;
use crate::exit::with_cause;
use crate::letters::letter;
use crate::owner::{Owner, OwnerSettings};
use crate::patience;
use crate::redact::Redaction;

/// Letters that are recorded together: what a transaction costs beside its letters is shared by so many.
const CHUNK: usize = 1_000;
/// Bytes that are recorded together; one letter may exceed it alone.
const CHUNK_BYTES: usize = 4 << 20;
/// Chunks that may wait while one is recorded.
const AHEAD: usize = 2;
/// First wait after a failure; it doubles, with jitter.
const RETRY_MIN: Duration = Duration::from_millis(200);
/// Longest wait after a failure.
const RETRY_MAX: Duration = Duration::from_secs(10);

/// Opens one source anew: at each change of owner, and after an error that the source calls final.
pub type Opener<S> = Box<dyn Fn() -> BoxFuture<'static, Result<S, AdapterError>> + Send + Sync>;

/// The sources that are there now, by name.
pub type Found<S> = BTreeMap<String, Opener<S>>;

/// Looks which sources there are.
pub type Discovery<S> = Box<dyn Fn() -> BoxFuture<'static, Result<Found<S>, AdapterError>> + Send + Sync>;

/// From one look for sources to the next.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Collects dead letters from some sources into a ledger.
pub struct Collector<S> {
    ledger: Arc<dyn Ledger>,
    sources: Vec<Opener<S>>,
    discovery: Option<Discovery<S>>,
    redaction: Redaction,
    keys: Keyring,
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
        Self {
            ledger,
            sources,
            discovery: None,
            redaction: Redaction::default(),
            keys: Keyring::default(),
            owner,
        }
    }

    /// Replaces in letters what must not be kept.
    #[must_use]
    pub fn redacting(mut self, redaction: Redaction) -> Self {
        self.redaction = redaction;
        self
    }

    /// Encrypts the bodies of letters, after what must not be kept is replaced.
    #[must_use]
    pub fn sealing(mut self, keys: Keyring) -> Self {
        self.keys = keys;
        self
    }

    /// Reads also what `discovery` finds, as long as it is found.
    #[must_use]
    pub fn discovering(mut self, discovery: Option<Discovery<S>>) -> Self {
        self.discovery = discovery;
        self
    }

    /// Collects until `stop` is cancelled. It has no errors: whatever fails is logged and tried again, because a dead
    /// letter that nobody collects is still safe where it is.
    pub async fn run(self, stop: CancellationToken) {
        let leases: Arc<dyn Leases> = self.ledger.clone();
        let owner = Owner::start(leases, self.owner.clone());
        while let Some(lease) = owner.granted(&stop).await {
            let term = stop.child_token();
            tokio::select! {
                () = self.collect(&term) => {}
                never = owner.cancel_when_lost(&lease, &term) => match never {},
            }
        }
        owner.release().await;
    }

    async fn collect(&self, term: &CancellationToken) {
        let named = join_all(self.sources.iter().map(|source| self.attend(source, term)));
        match &self.discovery {
            Some(discovery) => drop(join(named, self.attend_found(discovery, term)).await),
            None => drop(named.await),
        }
    }

    /// Reads what is found: each source from when it is there until it is gone, or the term ends.
    async fn attend_found(&self, discovery: &Discovery<S>, term: &CancellationToken) {
        let (tell, mut told) = mpsc::channel(1);
        let mut looking = std::pin::pin!(look_again_and_again(discovery, tell));
        let mut reading = HashMap::<String, CancellationToken>::new();
        let mut attended = FuturesUnordered::new();
        loop {
            let found: Found<S> = tokio::select! {
                biased;
                () = term.cancelled() => break,
                Some(found) = told.recv() => found,
                Some(()) = attended.next() => continue,
                () = &mut looking => break,
            };
            reading.retain(|name, token| {
                let is_there = found.contains_key(name);
                if !is_there {
                    info!(name, "a source of dead letters is gone");
                    token.cancel();
                }
                is_there
            });
            for (name, open) in found {
                reading.entry(name).or_insert_with(|| {
                    let token = term.child_token();
                    let until = token.clone();
                    attended.push(async move { self.attend(&open, &until).await });
                    token
                });
            }
        }
        while attended.next().await.is_some() {}
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
        let mut waiting = VecDeque::new();
        // One at most. Meanwhile the next are read: source, relay and database work at the same time.
        let mut recording = FuturesUnordered::new();
        let ended = loop {
            tokio::select! {
                biased;
                () = term.cancelled() => break Ok(()),
                recorded = recording.next(), if !recording.is_empty() => {
                    if recorded == Some(false) {
                        break Ok(());
                    }
                }
                batch = source.next(), if waiting.len() < AHEAD => match batch {
                    Ok(Some(batch)) => {
                        *pause = Pause::default();
                        self.line_up(batch, &mut waiting);
                    }
                    Ok(None) => break Ok(()),
                    Err(error) => break Err(error),
                },
                // Last, so that what is there already is recorded together, however little comes at once.
                () = ready(()), if recording.is_empty() && !waiting.is_empty() => {
                    recording.extend(waiting.pop_front().map(|chunk| self.record(chunk, term)));
                }
            }
        };
        while recording.next().await != Some(false)
            && let Some(chunk) = waiting.pop_front()
        {
            recording.push(self.record(chunk, term));
        }
        // Whoever closes waits for what has begun, and nobody records that any more.
        drop(waiting);
        ended?;
        source.close().await
    }

    /// Puts a batch behind what waits to be recorded, in chunks.
    fn line_up(&self, batch: Vec<Received<S::Settlement>>, waiting: &mut VecDeque<Chunk<S::Settlement>>) {
        let mut chunk = waiting.pop_back().unwrap_or_default();
        for received in batch {
            if chunk.is_full() {
                waiting.push_back(std::mem::take(&mut chunk));
            }
            chunk.add(received, &self.redaction, &self.keys);
        }
        waiting.push_back(chunk);
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
                recorded = timeout(patience::LIMIT, self.ledger.record(&chunk.letters)) => recorded,
                () = term.cancelled() => return false,
            };
            match recorded.unwrap_or_else(|_| Err(patience::silent())) {
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

/// Tells what is found, from time to time; a look that fails tells nothing, so that what was found before is read on.
async fn look_again_and_again<S>(discovery: &Discovery<S>, tell: mpsc::Sender<Found<S>>) {
    loop {
        match discovery().await {
            Ok(found) => {
                if tell.send(found).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                warn!(cause = %with_cause(&error), hint = error.hint(), "cannot look for sources of dead letters");
            }
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Letters to be recorded together, each death once, and what settles them.
struct Chunk<S> {
    letters: Vec<Letter>,
    /// Ids, and when each died: a message that died again has the id of its first letter.
    deaths: HashSet<(String, Option<DateTime<Utc>>)>,
    settlements: Vec<S>,
    bytes: usize,
}

impl<S> Default for Chunk<S> {
    fn default() -> Self {
        Self { letters: Vec::new(), deaths: HashSet::new(), settlements: Vec::new(), bytes: 0 }
    }
}

impl<S: Settlement> Chunk<S> {
    /// Takes a message, unless the source has taken it back.
    fn add(&mut self, mut received: Received<S>, redaction: &Redaction, keys: &Keyring) {
        if !received.settlement.begin() {
            return;
        }
        self.settlements.push(received.settlement);
        let mut letter = letter(received.message, &received.origin);
        if self.deaths.insert((letter.id.clone(), letter.dead_at)) {
            redaction.apply(&mut letter);
            keys.seal(&mut letter);
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
pub(crate) struct Pause(Duration);

impl Default for Pause {
    fn default() -> Self {
        Self(RETRY_MIN)
    }
}

impl Pause {
    /// Waits; `false` when the term ended meanwhile.
    pub(crate) async fn wait(&mut self, term: &CancellationToken) -> bool {
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
