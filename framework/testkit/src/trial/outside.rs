//! The world beyond the database, as a test sees it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use chrono::{DateTime, Utc};
use tokio::time::Instant;

use super::life::{Life, Step};

/// Something that handling an event has brought about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Effect {
    /// The event's id.
    pub event: String,
    /// What it was, in words that are the same each time.
    pub what: String,
}

impl Effect {
    /// An effect of an event.
    pub fn new(event: impl Into<String>, what: impl Into<String>) -> Self {
        Self { event: event.into(), what: what.into() }
    }
}

/// Stands in for whatever a handler deals with beyond its transaction: a payment service, a mailer, another database.
/// It outlives crashes. What a process does after its death, in tasks that it left behind, does not reach it.
#[derive(Debug, Clone)]
pub struct Outside {
    pub(super) life: Arc<Life>,
    pub(super) world: Arc<Beyond>,
}

/// What is there whatever becomes of processes.
#[derive(Debug)]
pub(super) struct Beyond {
    effects: Mutex<Vec<Effect>>,
    began: (DateTime<Utc>, Instant),
}

impl Beyond {
    pub(super) fn new(clock: DateTime<Utc>) -> Self {
        Self { effects: Mutex::default(), began: (clock, Instant::now()) }
    }

    pub(super) fn effects(&self) -> Vec<Effect> {
        self.lock().clone()
    }

    pub(super) fn now(&self) -> DateTime<Utc> {
        let (clock, began) = self.began;
        let elapsed = chrono::Duration::from_std(began.elapsed()).unwrap_or(chrono::Duration::MAX);
        clock.checked_add_signed(elapsed).unwrap_or(DateTime::<Utc>::MAX_UTC)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Effect>> {
        self.effects.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Outside {
    /// Brings something about, at once and for good, each time that it is called.
    pub fn effect(&self, event: impl Into<String>, what: impl Into<String>) {
        self.bring_about(Effect::new(event, what), false);
    }

    /// The same at a service that knows idempotency keys: of equal calls only the first has an effect.
    pub fn effect_once(&self, event: impl Into<String>, what: impl Into<String>) {
        self.bring_about(Effect::new(event, what), true);
    }

    /// The time: as set by [`clock`](super::TestConsumer::clock), and moved on by tokio's.
    pub fn now(&self) -> DateTime<Utc> {
        self.world.now()
    }

    fn bring_about(&self, effect: Effect, once: bool) {
        if self.life.is_dead() {
            return;
        }
        let event = effect.event.clone();
        let mut effects = self.world.lock();
        if !(once && effects.contains(&effect)) {
            effects.push(effect);
        }
        drop(effects);
        self.life.pass(Step::Outside, &event);
    }
}
