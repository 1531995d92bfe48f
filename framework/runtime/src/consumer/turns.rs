//! How the transactions of a consumer keep out of each other's way after a deadlock.
//!
//! A server takes about a second to notice a deadlock, and handlers that share rows would meet again and again. So for a
//! while, and for longer after the next deadlock, handlers have turns: those of one transaction are called while no
//! others are, and the commit of one runs beside the handlers of the next. Where that does not help, because what is in
//! the way belongs to another instance, or costs too much, because handlers take long, nothing is shared instead.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;

/// How long a pause is: the first, and at most.
const PAUSE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(600));
/// After so many times the last pause without a deadlock the next one counts as the first.
const QUIET: u32 = 10;
/// A message whose handler takes longer is better handled beside others than in turn.
const LONG: Duration = Duration::from_millis(1);
/// How much is measured before handlers are said to take long.
const MEASURED: Duration = Duration::from_millis(500);

/// Who may call handlers now, of all workers of a consumer.
#[derive(Debug)]
pub(crate) struct Turns {
    pause: Mutex<Pause>,
    /// Two transactions at once: one that has the turn, and the next one, which begins meanwhile.
    places: Semaphore,
    turn: Semaphore,
    /// Transactions whose handlers are called without a turn: they may have begun before a pause, and be in the way.
    others: AtomicUsize,
}

#[derive(Debug)]
struct Pause {
    until: Instant,
    last: Duration,
    /// Whether turns were no remedy.
    in_vain: bool,
    /// What handlers have taken in their turns, and of how many messages they were.
    taken: (Duration, u32),
}

/// A place among those who wait for their turn, or beside them where nobody needs one.
#[derive(Debug)]
pub(crate) struct Place<'a> {
    turns: &'a Turns,
    permit: Option<SemaphorePermit<'a>>,
}

/// The right to call handlers, until it is dropped.
#[derive(Debug)]
pub(crate) struct Turn<'a> {
    place: Place<'a>,
    permit: Option<SemaphorePermit<'a>>,
    began: Instant,
}

impl Turns {
    pub(crate) fn new() -> Self {
        let now = Instant::now();
        let pause = Pause { until: now, last: Duration::ZERO, in_vain: false, taken: Default::default() };
        Self {
            pause: Mutex::new(pause),
            places: Semaphore::new(2),
            turn: Semaphore::new(1),
            others: AtomicUsize::new(0),
        }
    }

    /// A place, to be had before a transaction begins.
    pub(crate) async fn place(&self) -> Place<'_> {
        let mut permit = None;
        if self.are_needed() {
            permit = self.places.acquire().await.ok();
            // They may have come to an end while it waited.
            permit = permit.filter(|_| self.are_needed());
        }
        if permit.is_none() {
            self.others.fetch_add(1, Ordering::Relaxed);
        }
        Place { turns: self, permit }
    }

    fn are_needed(&self) -> bool {
        self.pause().has_turns(Instant::now())
    }

    /// Whether nothing may be shared now.
    pub(crate) fn is_apart(&self) -> bool {
        let pause = self.pause();
        pause.in_vain && Instant::now() < pause.until
    }

    /// A transaction met another one; whether nobody else of this consumer could be in its way.
    pub(crate) fn met_others(&self, was_alone: bool) {
        let (mut pause, now) = (self.pause(), Instant::now());
        if pause.until <= now {
            pause.begin(now);
        } else if was_alone {
            pause.in_vain = true;
        }
    }

    fn pause(&self) -> MutexGuard<'_, Pause> {
        self.pause.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pause {
    fn begin(&mut self, now: Instant) {
        if now.saturating_duration_since(self.until) >= self.last * QUIET {
            self.last = Duration::ZERO;
        }
        self.last = (self.last * 2).clamp(PAUSE.0, PAUSE.1);
        *self = Self { until: now + self.last, last: self.last, in_vain: false, taken: Default::default() };
    }

    fn has_turns(&self, now: Instant) -> bool {
        !self.in_vain && now < self.until
    }

    fn measure(&mut self, took: Duration, messages: u32) {
        self.taken = (self.taken.0 + took, self.taken.1.saturating_add(messages));
        let (taken, messages) = self.taken;
        if taken >= MEASURED {
            self.in_vain = taken > LONG.saturating_mul(messages);
            self.taken = Default::default();
        }
    }
}

impl<'a> Place<'a> {
    /// The turn, once whoever has it is done.
    pub(crate) async fn turn(self) -> Turn<'a> {
        let permit = match self.permit {
            Some(_) => self.turns.turn.acquire().await.ok(),
            None => None,
        };
        Turn { place: self, permit, began: Instant::now() }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if self.permit.is_none() {
            self.turns.others.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Turn<'_> {
    /// The handlers of so many messages were called; whether nobody else of this consumer could be in their way.
    pub(crate) fn end(self, messages: usize) -> bool {
        let turns = self.place.turns;
        let is_alone = self.permit.is_some() && turns.others.load(Ordering::Relaxed) == 0;
        if is_alone {
            turns.pause().measure(self.began.elapsed(), u32::try_from(messages).unwrap_or(u32::MAX));
        }
        is_alone
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::{advance, timeout};

    use super::*;

    const MOMENT: Duration = Duration::from_millis(1);

    async fn has_turns(turns: &Turns) -> bool {
        turns.place().await.permit.is_some()
    }

    #[tokio::test(start_paused = true)]
    async fn deadlocks_call_for_turns_for_longer_and_longer() {
        let turns = Turns::new();
        assert!(!has_turns(&turns).await);
        for seconds in [10, 20, 40] {
            // Several that meet are one deadlock.
            (0..8).for_each(|_| turns.met_others(false));
            advance(Duration::from_secs(seconds) - MOMENT).await;
            assert!(has_turns(&turns).await, "after {seconds} s, almost");
            advance(MOMENT).await;
            assert!(!has_turns(&turns).await, "after {seconds} s");
        }
        advance(Duration::from_secs(400)).await;
        turns.met_others(false);
        advance(PAUSE.0).await;
        assert!(!has_turns(&turns).await, "after a quiet time it is the first again");
    }

    #[tokio::test(start_paused = true)]
    async fn one_has_the_turn_and_another_one_may_begin() {
        let turns = Turns::new();
        turns.met_others(false);
        let first = turns.place().await.turn().await;
        let second = turns.place().await;
        assert!(timeout(MOMENT, turns.place()).await.is_err(), "a third has to wait");
        assert!(timeout(MOMENT, second.turn()).await.is_err(), "the first still has the turn");
        let second = turns.place().await;
        first.end(1);
        assert!(second.turn().await.permit.is_some());
        assert!(has_turns(&turns).await);
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_a_turn_that_is_not_needed_any_more() {
        let turns = Turns::new();
        turns.met_others(false);
        let (first, _second) = (turns.place().await, turns.place().await);
        let waiting = turns.place();
        tokio::pin!(waiting);
        assert!(timeout(PAUSE.0, &mut waiting).await.is_err());
        drop(first);
        assert!(waiting.await.permit.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_deadlock_in_turn_calls_for_smaller_ones() {
        let turns = Turns::new();
        let before = turns.place().await.turn().await;
        turns.met_others(false);
        let meets = async || turns.met_others(turns.place().await.turn().await.end(1));
        meets().await;
        assert!(!turns.is_apart(), "it may have met what was begun before");
        assert!(!before.end(1));
        turns.met_others(false);
        assert!(!turns.is_apart(), "it was not its turn");
        meets().await;
        assert!(turns.is_apart() && !has_turns(&turns).await);
        advance(PAUSE.0).await;
        assert!(!turns.is_apart());
        turns.met_others(false);
        assert!(!turns.is_apart() && has_turns(&turns).await, "the next pause begins with turns");
    }

    /// Whether nothing is shared when handlers took so long for so many messages.
    async fn is_apart_after(turns: &Turns, took: Duration, messages: usize) -> bool {
        let turn = turns.place().await.turn().await;
        advance(took).await;
        turn.end(messages);
        turns.is_apart()
    }

    #[tokio::test(start_paused = true)]
    async fn handlers_that_take_long_have_no_turns() {
        let turns = Turns::new();
        let before = turns.place().await;
        turns.met_others(false);
        assert!(
            !is_apart_after(&turns, 2 * MEASURED, 1).await,
            "it may have waited for what was begun before"
        );
        drop(before);
        assert!(!is_apart_after(&turns, MEASURED, 500).await, "1 ms each");
        assert!(!is_apart_after(&turns, MEASURED / 2, 1).await, "not enough is known");
        assert!(is_apart_after(&turns, MEASURED / 2, 400).await, "0.5 s for 401 messages");
    }
}
