//! The handle of a consumer.

use std::fmt;
use std::sync::Arc;

use crate::consumer::Redact;
use crate::control::breaker::BreakerPhase;
use crate::control::registry::Entry;
use crate::control::status::{BreakerStatus, ConsumerStatus, MOST_AT_WORK, MessageAtWork, RunState, Stalled};
use crate::control::{Control, Phase};
use crate::stats::{Snapshot, Stats};

/// Shows what a consumer does, and steers it, from anywhere in its process.
///
/// Made with [`Consumer::handle`](crate::Consumer::handle) before the consumer runs. Cloning it is cheap; keeping it
/// does not keep the consumer alive.
#[derive(Clone)]
pub struct ConsumerHandle {
    consumer: Arc<str>,
    control: Arc<Control>,
    stats: Arc<Stats>,
    redact: Redact,
}

impl ConsumerHandle {
    pub(crate) fn new(consumer: &str, control: Arc<Control>, stats: Arc<Stats>, redact: Redact) -> Self {
        Self { consumer: consumer.into(), control, stats, redact }
    }

    /// The consumer's name.
    pub fn consumer(&self) -> &str {
        &self.consumer
    }

    /// Where it is in its life, and what keeps it from its work.
    pub fn state(&self) -> RunState {
        match self.control.phase() {
            Phase::Starting => RunState::Starting,
            Phase::Draining => RunState::Draining,
            Phase::Stopped => RunState::Stopped,
            Phase::Running if self.control.gate.is_paused() => RunState::Paused,
            Phase::Running if self.breaker().state == BreakerPhase::Open => RunState::BreakerOpen,
            Phase::Running => RunState::Running,
        }
    }

    /// How its breaker stands.
    pub fn breaker(&self) -> BreakerStatus {
        let (state, open) = self.control.gate.state();
        BreakerStatus {
            state,
            cause: open.map(|(cause, _)| cause),
            open_for_s: open.map(|(_, since)| since.elapsed().as_secs()),
        }
    }

    /// Its counters.
    pub fn stats(&self) -> Snapshot {
        self.stats.snapshot()
    }

    /// All that it tells of itself.
    pub fn status(&self) -> ConsumerStatus {
        let partitions = self.control.partitions();
        let lags: Vec<u64> = partitions.iter().filter_map(|partition| partition.lag).collect();
        let at_work = self.control.at_work();
        ConsumerStatus {
            consumer: self.consumer.to_string(),
            state: self.state(),
            breaker: self.breaker(),
            stalled: self.health().err(),
            in_flight: self.control.unfinished(),
            at_work: at_work.iter().take(MOST_AT_WORK).map(|entry| self.told(entry)).collect(),
            lag: (!lags.is_empty()).then(|| lags.iter().sum()),
            partitions,
            waiting_keys: self.control.waiting.longest_first(),
            counters: self.stats(),
        }
    }

    /// Whether it gets on with its work.
    ///
    /// It does not when messages are at work and none was completed for
    /// [`stalled_after`](crate::Consumer::stalled_after), or when a handler goes on for that long after its time is
    /// over. A consumer that is paused, whose breaker is open, that starts or that stops has a reason, which its
    /// [`state`](ConsumerHandle::state) tells.
    ///
    /// # Errors
    /// [`Stalled`] names the message that has been worked on for the longest.
    pub fn health(&self) -> Result<(), Stalled> {
        if !matches!(self.state(), RunState::Running | RunState::Draining) {
            return Ok(());
        }
        let Some(entry) = self.control.stall() else { return Ok(()) };
        Err(Stalled {
            consumer: self.consumer.to_string(),
            in_flight: self.control.unfinished(),
            message: self.told(&entry),
        })
    }

    /// Makes it take nothing new and begin nothing, held messages included, until it is to
    /// [`resume`](ConsumerHandle::resume). What runs is finished. It stays in its consumer group.
    pub fn pause(&self) {
        self.control.gate.set_paused(true);
    }

    /// Ends a [`pause`](ConsumerHandle::pause).
    pub fn resume(&self) {
        self.control.gate.set_paused(false);
    }

    /// Ends it in an orderly way: it takes nothing new, finishes what runs and settles it; its
    /// [`run`](crate::Consumer::run) returns. Waits until that is so.
    pub async fn drain(&self) {
        self.control.drain();
        self.control.stopped().await;
    }

    /// Opens its breaker by hand: nothing begins, not even probes, until somebody closes it by hand.
    pub fn open_breaker(&self) {
        self.control.gate.open();
    }

    /// Closes its breaker by hand, whatever opened it. Handlers are let through by degrees; where something is still
    /// down it opens again.
    pub fn close_breaker(&self) {
        self.control.gate.close();
    }

    fn told(&self, entry: &Entry) -> MessageAtWork {
        MessageAtWork::of(entry, &*self.redact)
    }
}

impl fmt::Debug for ConsumerHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConsumerHandle").field("consumer", &self.consumer).finish_non_exhaustive()
    }
}
