//! How the transactions of a consumer keep out of each other's way after a deadlock.
//!
//! A server takes about a second to notice a deadlock, and handlers that share rows would meet again and again. So for a
//! while, and for longer after the next deadlock, handlers have turns: those of one transaction are called while no
//! others are, and the commit of one runs beside the handlers of the next. Where that does not help, because what is in
//! the way belongs to another instance, or costs too much, because handlers take long, nothing is shared instead.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;

/// How long a pause is: the first, and at most.
const PAUSE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(600));
/// After so many times the last pause without a deadlock the next one counts as the first.
const QUIET: u32 = 10;
/// What was begun before a pause may stay in the way for so long.
const LINGER: Duration = Duration::from_secs(3);
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
}

#[derive(Debug)]
struct Pause {
    since: Instant,
    until: Instant,
    last: Duration,
    /// Whether turns were no remedy.
    in_vain: bool,
    /// What handlers have taken in their turns, and of how many messages they were.
    taken: (Duration, u32),
}

/// A place among those who wait for their turn.
#[derive(Debug)]
pub(crate) struct Place<'a>(#[expect(dead_code, reason = "held until it is dropped")] SemaphorePermit<'a>);

/// The right to call handlers, until it is dropped.
#[derive(Debug)]
pub(crate) struct Turn<'a> {
    turns: &'a Turns,
    began: Instant,
    _turn: SemaphorePermit<'a>,
    _place: Place<'a>,
}

impl Turns {
    pub(crate) fn new() -> Self {
        let now = Instant::now();
        let pause =
            Pause { since: now, until: now, last: Duration::ZERO, in_vain: false, taken: Default::default() };
        Self { pause: Mutex::new(pause), places: Semaphore::new(2), turn: Semaphore::new(1) }
    }

    /// A place to be had before a transaction begins; `None` while nobody needs one.
    pub(crate) async fn place(&self) -> Option<Place<'_>> {
        if !self.pause().has_turns(Instant::now()) {
            return None;
        }
        let place = self.places.acquire().await.ok()?;
        // It may have come to an end while others were called.
        let needed = self.pause().has_turns(Instant::now());
        needed.then_some(Place(place))
    }

    /// The turn of whoever has a place, once the one before is done.
    pub(crate) async fn turn<'a>(&'a self, place: Option<Place<'a>>) -> Option<Turn<'a>> {
        let place = place?;
        let turn = self.turn.acquire().await.ok()?;
        Some(Turn { turns: self, began: Instant::now(), _turn: turn, _place: place })
    }

    /// Whether nothing may be shared now.
    pub(crate) fn is_apart(&self) -> bool {
        let pause = self.pause();
        pause.in_vain && Instant::now() < pause.until
    }

    /// A transaction met another one; whether it had the turn.
    pub(crate) fn met_others(&self, in_turn: bool) {
        let (mut pause, now) = (self.pause(), Instant::now());
        if pause.until <= now {
            pause.begin(now);
        } else if in_turn && now.saturating_duration_since(pause.since) > LINGER {
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
        *self = Self {
            since: now,
            until: now + self.last,
            last: self.last,
            in_vain: false,
            taken: Default::default(),
        };
    }

    fn has_turns(&self, now: Instant) -> bool {
        !self.in_vain && now < self.until
    }

    fn measure(&mut self, took: Duration, messages: u32, now: Instant) {
        if now.saturating_duration_since(self.since) <= LINGER + took {
            return;
        }
        self.taken = (self.taken.0 + took, self.taken.1.saturating_add(messages));
        let (taken, messages) = self.taken;
        if taken >= MEASURED {
            self.in_vain = taken > LONG.saturating_mul(messages);
            self.taken = Default::default();
        }
    }
}

impl Turn<'_> {
    /// The handlers of so many messages were called.
    pub(crate) fn end(self, messages: usize) {
        let now = Instant::now();
        let (took, messages) = (now - self.began, u32::try_from(messages).unwrap_or(u32::MAX));
        self.turns.pause().measure(took, messages, now);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::{advance, timeout};

    use super::*;

    const MOMENT: Duration = Duration::from_millis(1);

    async fn has_turns(turns: &Turns) -> bool {
        turns.place().await.is_some()
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
        let first = turns.turn(turns.place().await).await.expect("the turn");
        let second = turns.place().await;
        assert!(timeout(MOMENT, turns.place()).await.is_err(), "a third has to wait");
        assert!(timeout(MOMENT, turns.turn(second)).await.is_err(), "the first still has the turn");
        let second = turns.place().await;
        first.end(1);
        assert!(turns.turn(second).await.is_some());
        assert!(turns.place().await.is_some());
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
        assert!(waiting.await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_deadlock_in_turn_calls_for_smaller_ones() {
        let turns = Turns::new();
        turns.met_others(false);
        turns.met_others(true);
        assert!(!turns.is_apart(), "it met what was begun before");
        advance(LINGER + MOMENT).await;
        turns.met_others(false);
        assert!(!turns.is_apart(), "it was not its turn");
        turns.met_others(true);
        assert!(turns.is_apart() && !has_turns(&turns).await);
        advance(PAUSE.0).await;
        assert!(!turns.is_apart());
        turns.met_others(false);
        assert!(!turns.is_apart() && has_turns(&turns).await, "the next pause begins with turns");
    }

    /// Whether nothing is shared when handlers took so long for so many messages.
    async fn is_apart_after(turns: &Turns, took: Duration, messages: usize) -> bool {
        let turn = turns.turn(turns.place().await).await.expect("the turn");
        advance(took).await;
        turn.end(messages);
        turns.is_apart()
    }

    #[tokio::test(start_paused = true)]
    async fn handlers_that_take_long_have_no_turns() {
        let turns = Turns::new();
        turns.met_others(false);
        assert!(!is_apart_after(&turns, 2 * MEASURED, 1).await, "it waited for what was begun before");
        advance(LINGER).await;
        assert!(!is_apart_after(&turns, MEASURED, 500).await, "1 ms each");
        assert!(!is_apart_after(&turns, MEASURED / 2, 1).await, "not enough is known");
        assert!(is_apart_after(&turns, MEASURED / 2, 400).await, "0.5 s for 401 messages");
    }
}
