//! What a running consumer shows of itself, and how it is steered from outside.

pub(crate) mod breaker;
pub(crate) mod gate;
pub(crate) mod handle;
pub(crate) mod registry;
pub(crate) mod status;
pub(crate) mod waiting;

use std::future::Future;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use backstop_core::Origin;
use backstop_core::source::{PartitionProgress, SourceProgress};
use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use breaker::Attempt;
use gate::Gate;
use registry::{Entry, Registered, Registry};
use waiting::Waiting;

/// How long work may wait without anything being completed, unless set otherwise.
const STALLED_AFTER: Duration = Duration::from_secs(60);

/// What a consumer and its handles share.
#[derive(Debug)]
pub(crate) struct Control {
    phase: watch::Sender<Phase>,
    drain: CancellationToken,
    pub(crate) gate: Gate,
    pub(crate) waiting: Waiting,
    /// What workers have taken; of what they have taken together, the first.
    taken: Registry,
    /// What handlers are at.
    handled: Registry,
    began: Instant,
    /// When something was completed last: milliseconds since it began.
    progressed: AtomicU64,
    stalled_after: AtomicU64,
    sight: OnceLock<Sight>,
}

/// How far a consumer is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Starting,
    Running,
    Draining,
    Stopped,
}

/// What can be seen of a loop that runs.
struct Sight {
    /// Messages that the source has handed over and that are not done.
    unfinished: Box<dyn Fn() -> usize + Send + Sync>,
    source: Option<Arc<dyn SourceProgress>>,
    handler_limit: Duration,
}

/// The consumer has stopped when this is dropped.
#[derive(Debug)]
pub(crate) struct Running(Arc<Control>);

/// A message is being worked on until this is dropped.
#[derive(Debug)]
pub(crate) struct AtWork<'a> {
    control: &'a Control,
    _registered: Registered<'a>,
}

impl Default for Control {
    fn default() -> Self {
        Self {
            phase: watch::Sender::new(Phase::Starting),
            drain: CancellationToken::new(),
            gate: Gate::default(),
            waiting: Waiting::default(),
            taken: Registry::default(),
            handled: Registry::default(),
            began: Instant::now(),
            progressed: AtomicU64::new(0),
            stalled_after: AtomicU64::new(millis(STALLED_AFTER)),
            sight: OnceLock::new(),
        }
    }
}

impl Control {
    /// The consumer starts.
    pub(crate) fn start(self: &Arc<Self>, consumer: &str, workers: usize) -> Running {
        self.gate.start(consumer, workers);
        Running(self.clone())
    }

    /// Its loop runs.
    pub(crate) fn run(
        &self,
        unfinished: impl Fn() -> usize + Send + Sync + 'static,
        source: Option<Arc<dyn SourceProgress>>,
        handler_limit: Duration,
    ) {
        let sight = Sight { unfinished: Box::new(unfinished), source, handler_limit };
        // A consumer runs once.
        let _ = self.sight.set(sight);
        self.progress();
        self.enter(Phase::Running);
    }

    /// It takes nothing new any more.
    pub(crate) fn draining(&self) {
        self.enter(Phase::Draining);
    }

    fn enter(&self, phase: Phase) {
        self.phase.send_replace(phase);
    }

    pub(crate) fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Waits until it has stopped.
    pub(crate) async fn stopped(&self) {
        // The sender lives as long as this does.
        let _ = self.phase.subscribe().wait_for(|phase| *phase == Phase::Stopped).await;
    }

    /// Asks it to stop in an orderly way.
    pub(crate) fn drain(&self) {
        self.drain.cancel();
    }

    /// Completes with `shutdown`, or when it is asked to stop.
    pub(crate) async fn or_drained(self: Arc<Self>, shutdown: impl Future<Output = ()>) {
        tokio::select! {
            () = shutdown => {}
            () = self.drain.cancelled() => {}
        }
    }

    pub(crate) fn set_stalled_after(&self, limit: Duration) {
        self.stalled_after.store(millis(limit), Ordering::Relaxed);
    }

    fn stalled_after(&self) -> Duration {
        Duration::from_millis(self.stalled_after.load(Ordering::Relaxed))
    }

    /// A worker has taken messages, this one first.
    pub(crate) fn taken(&self, origin: &Origin, key: Option<&Bytes>) -> AtWork<'_> {
        self.register(&self.taken, origin, key, 1)
    }

    /// A handler is called.
    pub(crate) fn handling(&self, origin: &Origin, key: Option<&Bytes>, attempt: u32) -> AtWork<'_> {
        self.register(&self.handled, origin, key, attempt)
    }

    fn register<'a>(
        &'a self,
        registry: &'a Registry,
        origin: &Origin,
        key: Option<&Bytes>,
        attempt: u32,
    ) -> AtWork<'a> {
        let entry = Entry { origin: origin.clone(), key: key.cloned(), attempt, since: Instant::now() };
        AtWork { control: self, _registered: registry.enter(entry) }
    }

    /// Something was completed.
    fn progress(&self) {
        self.progressed.store(millis(self.began.elapsed()), Ordering::Relaxed);
    }

    /// For how long nothing was completed that could have been.
    fn since_progress(&self) -> Duration {
        let last = Duration::from_millis(self.progressed.load(Ordering::Relaxed));
        self.began.elapsed().saturating_sub(last).min(self.gate.unchanged_for())
    }

    /// Messages that the source has handed over and that are not done.
    pub(crate) fn unfinished(&self) -> usize {
        self.sight.get().map_or(0, |sight| (sight.unfinished)())
    }

    pub(crate) fn partitions(&self) -> Vec<PartitionProgress> {
        let source = self.sight.get().and_then(|sight| sight.source.as_ref());
        source.map_or_else(Vec::new, |source| source.partitions())
    }

    /// What is being worked on, the oldest first: handlers, or where none runs what workers have taken.
    pub(crate) fn at_work(&self) -> Vec<Entry> {
        let handled = self.handled.oldest_first();
        if handled.is_empty() { self.taken.oldest_first() } else { handled }
    }

    /// What stands still, if anything does: nothing was completed for too long although there was work all the while,
    /// or a handler goes on long after its time.
    pub(crate) fn stall(&self) -> Option<Entry> {
        let limit = self.stalled_after();
        let overdue = self.sight.get()?.handler_limit.saturating_add(limit);
        let handled = self.handled.oldest_first().into_iter().next();
        if handled.as_ref().is_some_and(|entry| entry.since.elapsed() > overdue) {
            return handled;
        }
        if self.since_progress() <= limit {
            return None;
        }
        let oldest = handled.or_else(|| self.taken.oldest_first().into_iter().next());
        oldest.filter(|entry| entry.since.elapsed() > limit)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.enter(Phase::Stopped);
    }
}

impl Drop for AtWork<'_> {
    fn drop(&mut self) {
        self.control.progress();
    }
}

impl std::fmt::Debug for Sight {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sight").field("handler_limit", &self.handler_limit).finish_non_exhaustive()
    }
}

impl Attempt {
    /// An attempt that begins now, charged to that key.
    pub(crate) fn now(place: &str, ordering_key: &[u8]) -> Self {
        let mut hasher = DefaultHasher::new();
        (place, ordering_key).hash(&mut hasher);
        Self { key: hasher.finish(), began: Instant::now() }
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
