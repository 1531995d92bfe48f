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
use tokio::time::{Instant, sleep_until};

/// How long a pause is: the first, and at most.
const PAUSE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(600));
/// After so many times the last pause without a deadlock the next one counts as the first.
const QUIET: u32 = 10;
/// A message whose handler takes longer is better handled beside others than in turn.
const LONG: Duration = Duration::from_millis(1);
/// How much is measured before handlers are said to take long.
const MEASURED: Duration = Duration::from_millis(500);
/// How long one turn may keep the next one waiting: a few times what a server takes to notice a deadlock.
const PATIENCE: Duration = Duration::from_secs(3);

/// Who may call handlers now, of all workers of a consumer.
#[derive(Debug)]
pub(crate) struct Turns {
    pause: Mutex<Pause>,
    /// Two transactions at once: one that has the turn, and the next one, which begins meanwhile.
    places: Semaphore,
    turn: Semaphore,
    /// Transactions whose handlers are called without a turn: they may have begun before a pause, and be in the way.
    others: AtomicUsize,
    patience: Duration,
}

#[derive(Debug)]
struct Pause {
    until: Instant,
    last: Duration,
    /// Whether turns were no remedy.
    in_vain: bool,
    /// What handlers have taken in their turns, and of how many messages they were.
    taken: (Duration, u32),
    /// Transactions whose turn is over and that have yet to end: their rows are locked until then.
    ending: u32,
    /// When the last one of them ended.
    ended: Instant,
}

/// A place among those who wait for their turn, or beside them where nobody needs one.
#[derive(Debug)]
pub(crate) struct Place<'a> {
    turns: &'a Turns,
    permit: Option<SemaphorePermit<'a>>,
    /// Its share in the number of others, until the end of the transaction: its locks are in the way for as long.
    other: Option<Other<'a>>,
}

/// The right to call handlers, until [`Turn::end`]. It is dropped when the transaction has ended.
#[derive(Debug)]
pub(crate) struct Turn<'a> {
    place: Place<'a>,
    permit: Option<SemaphorePermit<'a>>,
    began: Instant,
    /// Whether nobody of this consumer was in the way when it began. Whoever is then is gone at its end, because it has
    /// waited for them.
    began_alone: bool,
    /// Whether it is over, and the transaction not.
    is_ending: bool,
}

/// Counts as one of the others.
#[derive(Debug)]
struct Other<'a>(&'a Turns);

impl Turns {
    /// For transactions that may wait for `limit` before a statement.
    pub(crate) fn new(limit: Duration) -> Self {
        let now = Instant::now();
        let (last, taken) = (Duration::ZERO, Default::default());
        let pause = Pause { until: now, last, in_vain: false, taken, ending: 0, ended: now };
        Self {
            pause: Mutex::new(pause),
            places: Semaphore::new(2),
            turn: Semaphore::new(1),
            others: AtomicUsize::new(0),
            // A server ends a transaction in which nothing happens for the limit.
            patience: PATIENCE.min(limit / 2),
        }
    }

    /// A place, to be had before a transaction begins.
    pub(crate) async fn place(&self) -> Place<'_> {
        let permit = self.while_needed(&self.places).await;
        let other = permit.is_none().then(|| self.other());
        Place { turns: self, permit, other }
    }

    /// A permit, unless turns are not needed, or come to an end meanwhile.
    async fn while_needed<'a>(&'a self, semaphore: &'a Semaphore) -> Option<SemaphorePermit<'a>> {
        let until = self.needed_until()?;
        tokio::select! {
            permit = semaphore.acquire() => permit.ok().filter(|_| self.needed_until().is_some()),
            () = sleep_until(until) => None,
        }
    }

    fn needed_until(&self) -> Option<Instant> {
        let pause = self.pause();
        (!pause.in_vain && Instant::now() < pause.until).then_some(pause.until)
    }

    fn other(&self) -> Other<'_> {
        self.others.fetch_add(1, Ordering::Relaxed);
        Other(self)
    }

    fn is_alone(&self) -> bool {
        self.others.load(Ordering::Relaxed) == 0
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
        (self.until, self.in_vain, self.taken) = (now + self.last, false, Default::default());
    }

    /// Measures handlers from when nobody was in their way. Where somebody is until now, nobody knows what they take.
    fn measure(&mut self, began: Instant, messages: u32) {
        if self.ending > 0 {
            return;
        }
        let took = began.max(self.ended).elapsed();
        self.taken = (self.taken.0 + took, self.taken.1.saturating_add(messages));
        let (taken, messages) = self.taken;
        if taken >= MEASURED {
            self.in_vain |= taken > LONG.saturating_mul(messages);
            self.taken = Default::default();
        }
    }
}

impl<'a> Place<'a> {
    /// The turn, once whoever has it is done. Where that takes too long, turns are given up for everybody: the transaction
    /// has begun, and what it has locked is locked for as long as it waits.
    pub(crate) async fn turn(mut self) -> Turn<'a> {
        let turns = self.turns;
        let mut permit = None;
        if self.permit.is_some() {
            match tokio::time::timeout(turns.patience, turns.while_needed(&turns.turn)).await {
                Ok(turn) => permit = turn,
                Err(_) => turns.pause().in_vain = true,
            }
        }
        if permit.is_none() {
            self.permit = None;
            self.other.get_or_insert_with(|| turns.other());
        }
        let (began, began_alone) = (Instant::now(), turns.is_alone());
        Turn { place: self, permit, began, began_alone, is_ending: false }
    }
}

impl Turn<'_> {
    /// The handlers of so many messages were called; whether nobody else of this consumer could be in their way. The next
    /// ones may be called, beside the end of this transaction.
    pub(crate) fn end(&mut self, messages: usize) -> bool {
        let turns = self.place.turns;
        let (permit, _place) = (self.permit.take(), self.place.permit.take());
        let was_alone = permit.is_some() && self.began_alone && turns.is_alone();
        let messages = u32::try_from(messages).unwrap_or(u32::MAX);
        let mut pause = turns.pause();
        if was_alone {
            pause.measure(self.began, messages);
        }
        if permit.is_some() {
            self.is_ending = true;
            pause.ending += 1;
        }
        was_alone
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if self.is_ending {
            let mut pause = self.place.turns.pause();
            (pause.ending, pause.ended) = (pause.ending - 1, Instant::now());
        }
    }
}

impl Drop for Other<'_> {
    fn drop(&mut self) {
        self.0.others.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::{advance, timeout};

    use super::*;

    const MOMENT: Duration = Duration::from_millis(1);

    fn turns() -> Turns {
        Turns::new(Duration::from_secs(30))
    }

    async fn has_turns(turns: &Turns) -> bool {
        turns.place().await.permit.is_some()
    }

    #[tokio::test(start_paused = true)]
    async fn deadlocks_call_for_turns_for_longer_and_longer() {
        let turns = turns();
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
        let turns = turns();
        turns.met_others(false);
        let mut first = turns.place().await.turn().await;
        let second = turns.place().await;
        assert!(timeout(MOMENT, turns.place()).await.is_err(), "a third has to wait");
        assert!(timeout(MOMENT, second.turn()).await.is_err(), "the first still has the turn");
        let second = turns.place().await;
        first.end(1);
        assert!(second.turn().await.permit.is_some(), "beside the commit of the first");
        assert!(has_turns(&turns).await);
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_a_turn_that_is_not_needed_any_more() {
        let turns = turns();
        turns.met_others(false);
        let _places = (turns.place().await, turns.place().await);
        let began = Instant::now();
        assert!(turns.place().await.permit.is_none());
        assert_eq!(began.elapsed().as_secs(), PAUSE.0.as_secs());
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_that_does_not_end_holds_nobody_up() {
        let turns = turns();
        turns.met_others(false);
        let _hangs = turns.place().await.turn().await;
        let next = turns.place().await;
        let began = Instant::now();
        let (next, waiting) = tokio::join!(next.turn(), turns.place());
        assert!(next.permit.is_none() && waiting.permit.is_none());
        assert!(began.elapsed() < PATIENCE + 10 * MOMENT, "{:?}", began.elapsed());
        assert!(turns.is_apart());
        let brief = Turns::new(10 * MOMENT);
        brief.met_others(false);
        let _hangs = brief.place().await.turn().await;
        let began = Instant::now();
        assert!(brief.place().await.turn().await.permit.is_none());
        assert!(began.elapsed() < 10 * MOMENT, "before its server ends it");
    }

    #[tokio::test(start_paused = true)]
    async fn a_deadlock_in_turn_calls_for_smaller_ones() {
        let turns = turns();
        let mut before = turns.place().await.turn().await;
        turns.met_others(false);
        let meets = async || turns.met_others(turns.place().await.turn().await.end(1));
        meets().await;
        assert!(!turns.is_apart(), "it may have met what was begun before");
        assert!(!before.end(1));
        turns.met_others(false);
        assert!(!turns.is_apart(), "it was not its turn");
        meets().await;
        assert!(!turns.is_apart(), "what was begun before is not committed yet");
        drop(before);
        meets().await;
        assert!(turns.is_apart() && !has_turns(&turns).await);
        advance(PAUSE.0).await;
        assert!(!turns.is_apart());
        turns.met_others(false);
        assert!(!turns.is_apart() && has_turns(&turns).await, "the next pause begins with turns");
    }

    /// Whether nothing is shared when handlers took so long for so many messages.
    async fn is_apart_after(turns: &Turns, took: Duration, messages: usize) -> bool {
        let mut turn = turns.place().await.turn().await;
        advance(took).await;
        turn.end(messages);
        turns.is_apart()
    }

    #[tokio::test(start_paused = true)]
    async fn handlers_that_take_long_have_no_turns() {
        let turns = turns();
        let before = turns.place().await;
        turns.met_others(false);
        let mut turn = turns.place().await.turn().await;
        advance(2 * MEASURED).await;
        drop(before);
        turn.end(1);
        drop(turn);
        assert!(!turns.is_apart(), "it may have waited for what was begun before, until that had ended");
        assert!(!is_apart_after(&turns, MEASURED, 500).await, "1 ms each");
        assert!(!is_apart_after(&turns, MEASURED / 2, 1).await, "not enough is known");
        assert!(is_apart_after(&turns, MEASURED / 2, 400).await, "0.5 s for 401 messages");
        assert!(!has_turns(&turns).await);
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_of_the_transaction_before_is_nobodys_work() {
        let turns = turns();
        turns.met_others(false);
        let mut before = turns.place().await.turn().await;
        before.end(1);
        let mut next = turns.place().await.turn().await;
        advance(2 * MEASURED).await;
        next.end(1);
        assert!(!turns.is_apart(), "its row may have been locked all the time");
        drop(next);
        let mut next = turns.place().await.turn().await;
        advance(2 * MEASURED).await;
        drop(before);
        advance(MEASURED / 2).await;
        next.end(1);
        assert!(!turns.is_apart(), "until half of what is measured before");
        drop(next);
        assert!(is_apart_after(&turns, MEASURED / 2, 1).await);
    }

    #[tokio::test(start_paused = true)]
    async fn turns_that_were_given_up_stay_so() {
        let turns = turns();
        turns.met_others(false);
        let mut late = turns.place().await.turn().await;
        turns.met_others(true);
        advance(MEASURED).await;
        assert!(late.end(10_000), "quick handlers");
        assert!(turns.is_apart());
    }
}
