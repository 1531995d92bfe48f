//! The breaker with a clock that the tests set.

use super::*;

const SECOND: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);

/// A breaker and its clock.
struct Bench {
    breaker: Breaker,
    now: Instant,
}

impl Bench {
    fn new() -> Self {
        Self { breaker: Breaker::new(16), now: Instant::now() }
    }

    fn pass(&mut self, time: Duration) -> &mut Self {
        self.now += time;
        self
    }

    /// An attempt that takes a millisecond.
    fn attempt(&mut self, key: u64, outcome: Outcome) -> bool {
        let attempt = Attempt { key, began: self.now };
        self.pass(MS);
        self.breaker.ended(attempt, outcome, self.now)
    }

    fn succeed(&mut self, key: u64) {
        assert!(!self.attempt(key, Outcome::Succeeded));
    }

    /// Whether it is charged.
    fn unavailable(&mut self, key: u64) -> bool {
        self.attempt(key, Outcome::Unavailable)
    }

    fn state(&self) -> BreakerPhase {
        self.breaker.state().0
    }

    fn cause(&self) -> Option<BreakerCause> {
        self.breaker.state().1.map(|(cause, _)| cause)
    }

    fn is_open_for(&self, cause: BreakerCause) -> bool {
        self.state() == BreakerPhase::Open && self.cause() == Some(cause)
    }

    fn goes(&mut self, at_work: usize) -> bool {
        self.breaker.admit(at_work, self.now) == Admission::Go
    }

    /// Waits until something is admitted; when that was.
    fn admitted(&mut self) -> Instant {
        loop {
            match self.breaker.admit(0, self.now) {
                Admission::Go => return self.now,
                Admission::Wait(until) => self.now = until.expect("there is a next probe"),
            }
        }
    }

    fn open(cause: BreakerCause) -> Self {
        let mut bench = Self::new();
        match cause {
            BreakerCause::Database => bench.breaker.database_lost(bench.now),
            BreakerCause::Dependency => (0..KEYS as u64).for_each(|key| assert!(!bench.unavailable(key))),
            BreakerCause::Operator => bench.breaker.force_open(bench.now),
        }
        assert!(bench.is_open_for(cause));
        bench
    }
}

#[test]
fn a_lost_database_opens_at_once() {
    let mut bench = Bench::new();
    bench.succeed(1);
    assert!(bench.goes(1_000), "closed, everything passes");
    bench.breaker.database_lost(bench.now);
    assert!(bench.is_open_for(BreakerCause::Database));
    assert!(!bench.goes(0));
}

#[test]
fn half_of_the_attempts_over_three_keys_open_it() {
    for healthy in 0..=KEYS as u64 {
        let mut bench = Bench::new();
        (10..10 + healthy).for_each(|key| bench.succeed(key));
        for key in 0..KEYS as u64 {
            assert_eq!(bench.state(), BreakerPhase::Closed, "{key} of {KEYS} beside {healthy}");
            assert!(!bench.unavailable(key), "the first failures of an outage are not charged");
        }
        assert!(bench.is_open_for(BreakerCause::Dependency), "beside {healthy}");
    }
}

#[test]
fn less_than_half_does_not_open_it() {
    let mut bench = Bench::new();
    for round in 0..200 {
        for healthy in 0..3 {
            bench.succeed(1_000 + round * 3 + healthy);
        }
        bench.unavailable(round % 7);
        bench.unavailable(round % 5 + 100);
        assert_eq!(bench.state(), BreakerPhase::Closed, "in round {round}");
    }
}

/// Keys whose dependencies are gone for good, while others succeed, are waited for as long as an outage may take, and then
/// charged: they protect neither each other nor those that come later.
#[test]
fn what_is_gone_for_good_is_charged_in_the_end() {
    let mut bench = Bench::new();
    let mut charged = |time: Duration| {
        let (mut charged, until) = (0, bench.now + time);
        while bench.now < until {
            (0..30).for_each(|key| bench.succeed(100 + key));
            charged += (0..5).filter(|key| bench.unavailable(*key)).count();
            bench.pass(SECOND * 3);
        }
        charged
    };
    assert_eq!(charged(PATIENCE), 0);
    charged(SECOND * 5);
    assert!(charged(SECOND * 60) >= 5 * 19, "each of the five, each time");
}

/// Whoever was unavailable once, long ago, is not gone, and takes no protection from others.
#[test]
fn what_was_unavailable_long_ago_is_not_gone() {
    for since in [Outcome::Failed, Outcome::Unavailable] {
        let mut bench = Bench::new();
        bench.unavailable(0);
        bench.attempt(0, since);
        for _ in 0..360 {
            bench.pass(SECOND * 10).succeed(100);
        }
        for round in 0..20 {
            (0..30).for_each(|key| bench.succeed(200 + key));
            let charged = (0..3).filter(|key| bench.unavailable(*key)).count();
            // At first it is the only one that says so.
            assert!(charged <= usize::from(round == 0), "{since:?}, in round {round}");
            bench.pass(SECOND * 3);
        }
    }
}

/// What three messages in ten need is down: no breaker opens, and nobody is to blame all the same.
#[test]
fn an_outage_of_what_some_messages_need_charges_nobody() {
    let mut bench = Bench::new();
    for round in 0..200 {
        (0..7).for_each(|healthy| bench.succeed(1_000 + round * 7 + healthy));
        let charged = (0..3).filter(|key| bench.pass(100 * MS).unavailable(*key)).count();
        assert_eq!((charged, bench.state()), (0, BreakerPhase::Closed), "in round {round}");
    }
    bench.pass(WINDOW_AGE + SECOND).succeed(1);
    bench.unavailable(0);
    bench.pass(MS).succeed(1);
    assert!(bench.unavailable(0), "it is the only one by now");
}

#[test]
fn other_failures_are_no_outage() {
    let mut bench = Bench::new();
    for key in 0..100 {
        assert!(!bench.attempt(key, Outcome::Failed));
    }
    assert_eq!(bench.state(), BreakerPhase::Closed);
}

#[test]
fn two_keys_never_open_it_however_often_they_fail() {
    let mut bench = Bench::new();
    for _ in 0..1_000 {
        assert!(!bench.unavailable(1) && !bench.unavailable(2), "nobody else succeeds: nobody is charged");
        bench.pass(SECOND);
    }
    assert_eq!(bench.state(), BreakerPhase::Closed);
}

#[test]
fn a_key_that_is_tried_again_and_again_does_not_outweigh_the_others() {
    let mut bench = Bench::new();
    (10..16).for_each(|key| bench.succeed(key));
    bench.unavailable(2);
    bench.unavailable(3);
    for _ in 0..10 {
        bench.unavailable(1);
    }
    assert_eq!(bench.state(), BreakerPhase::Closed, "three of nine keys");
}

#[test]
fn what_was_long_ago_does_not_count() {
    let mut bench = Bench::new();
    bench.unavailable(1);
    bench.unavailable(2);
    bench.pass(WINDOW_AGE + SECOND).unavailable(3);
    assert_eq!(bench.state(), BreakerPhase::Closed);
    let mut bench = Bench::new();
    (10..30).for_each(|key| bench.succeed(key));
    bench.pass(WINDOW_AGE + SECOND);
    (0..3).for_each(|key| assert!(!bench.unavailable(key)));
    assert_eq!(bench.state(), BreakerPhase::Open, "successes of long ago do not keep it closed");
}

#[test]
fn one_that_is_always_unavailable_is_charged_while_others_succeed() {
    let mut bench = Bench::new();
    assert!(!bench.unavailable(7), "the first time nobody can know");
    for round in 0..6 {
        bench.pass(SECOND);
        bench.succeed(100 + round);
        assert!(bench.unavailable(7), "in round {round}");
    }
    assert!(!bench.pass(SECOND).unavailable(7), "nobody has succeeded since");
}

#[test]
fn only_others_that_began_after_its_failure_speak_against_it() {
    let mut bench = Bench::new();
    let slow = Attempt { key: 1, began: bench.now };
    bench.pass(MS).unavailable(7);
    bench.breaker.ended(slow, Outcome::Succeeded, bench.now);
    assert!(!bench.pass(SECOND).unavailable(7), "what succeeded had begun before");
    bench.pass(MS).succeed(1);
    assert!(bench.pass(SECOND).unavailable(7));
}

#[test]
fn nobody_is_charged_while_most_others_fail_too() {
    let mut bench = Bench::new();
    bench.unavailable(7);
    bench.succeed(1);
    bench.unavailable(8);
    bench.pass(WINDOW_AGE + SECOND);
    bench.unavailable(9);
    assert!(!bench.unavailable(7), "one succeeded, two did not");
}

#[test]
fn success_wipes_a_keys_slate() {
    let mut bench = Bench::new();
    bench.unavailable(7);
    bench.succeed(7);
    bench.succeed(1);
    assert!(!bench.unavailable(7), "it is as if it failed for the first time");
}

#[test]
fn an_outage_charges_nobody_from_beginning_to_end() {
    let mut bench = Bench::new();
    let mut rounds = 0;
    (0..50).for_each(|key| bench.succeed(key));
    for key in 0..400 {
        assert!(!bench.unavailable(key % 50));
        bench.admitted();
        rounds += usize::from(bench.state() == BreakerPhase::Open);
    }
    assert!(rounds > 380, "open for {rounds} of 400");
    bench.succeed(1);
    for key in 0..50 {
        bench.succeed(key);
    }
    bench.goes(0);
    assert_eq!(bench.state(), BreakerPhase::Closed);
    assert!(!bench.unavailable(2), "failures of the outage are forgotten");
}

#[test]
fn open_it_lets_one_probe_through_at_a_time_and_ever_more_seldom() {
    let mut bench = Bench::open(BreakerCause::Dependency);
    let mut last = bench.now;
    let mut waits = Vec::new();
    for key in 10..16 {
        let admitted = bench.admitted();
        waits.push(admitted.duration_since(last).as_millis());
        assert!(!bench.goes(0), "one at a time");
        assert!(!bench.unavailable(key));
        bench.breaker.given_back(admitted, bench.now);
        last = bench.now;
    }
    assert_eq!(waits, [250, 500, 1_000, 2_000, 2_000, 2_000]);
}

#[test]
fn what_was_under_way_when_it_opened_does_not_delay_the_probe() {
    let mut bench = Bench::new();
    let early: Vec<_> = (0..10).map(|key| Attempt { key, began: bench.now }).collect();
    bench.pass(MS);
    bench.breaker.database_lost(bench.now);
    let opened = bench.now;
    for attempt in early {
        bench.breaker.database_lost(bench.now);
        bench.breaker.ended(attempt, Outcome::Succeeded, bench.now);
        bench.breaker.database_answered(attempt.began, bench.now);
    }
    assert!(bench.is_open_for(BreakerCause::Database), "what began before closes nothing");
    assert_eq!(bench.admitted().duration_since(opened), PROBE_WAIT.0);
}

#[test]
fn a_probe_that_says_nothing_makes_room_for_the_next() {
    let mut bench = Bench::open(BreakerCause::Dependency);
    let admitted = bench.admitted();
    bench.breaker.given_back(admitted, bench.now);
    assert!(bench.goes(0), "its message was a duplicate, perhaps");
}

#[test]
fn a_probe_that_hangs_does_not_stop_the_others() {
    let mut bench = Bench::open(BreakerCause::Database);
    let first = bench.admitted();
    let second = bench.admitted();
    assert_eq!(second.duration_since(first), PROBE_PATIENCE);
    bench.breaker.given_back(first, bench.now);
    assert!(!bench.goes(0), "the slow one is not the probe any more");
}

#[test]
fn a_database_that_answers_begins_to_close_it() {
    let mut bench = Bench::open(BreakerCause::Database);
    let asked = bench.admitted();
    bench.breaker.database_answered(asked, bench.now);
    assert_eq!(bench.state(), BreakerPhase::Closing);
    bench.breaker.database_lost(bench.now);
    assert!(bench.is_open_for(BreakerCause::Database), "and it may be lost again");
}

#[test]
fn a_database_that_is_back_while_the_dependency_is_down() {
    let mut bench = Bench::open(BreakerCause::Database);
    bench.admitted();
    assert!(!bench.unavailable(1));
    assert!(bench.is_open_for(BreakerCause::Dependency));
    bench.breaker.database_lost(bench.now);
    assert!(bench.is_open_for(BreakerCause::Database), "and the other way round");
}

#[test]
fn it_closes_by_degrees_with_each_success() {
    let mut bench = Bench::open(BreakerCause::Dependency);
    bench.admitted();
    bench.succeed(1);
    assert_eq!(bench.state(), BreakerPhase::Closing);
    for at_once in 1..16 {
        assert!(bench.goes(at_once - 1) && !bench.goes(at_once), "{at_once} at once");
        bench.succeed(at_once as u64);
    }
    assert!(bench.goes(1_000));
    assert_eq!(bench.state(), BreakerPhase::Closed);
}

#[test]
fn it_closes_with_time_where_there_is_little_to_do() {
    let mut bench = Bench::open(BreakerCause::Database);
    bench.breaker.force_close(bench.now);
    for at_once in [1, 2, 4, 8] {
        assert_eq!(bench.state(), BreakerPhase::Closing);
        assert!(bench.goes(at_once - 1) && !bench.goes(at_once), "{at_once} at once");
        bench.pass(DOUBLING);
    }
    bench.breaker.tick(bench.now);
    assert_eq!(bench.state(), BreakerPhase::Closed);
}

#[test]
fn a_relapse_opens_it_again_and_a_single_message_does_not() {
    let mut bench = Bench::open(BreakerCause::Dependency);
    bench.admitted();
    bench.succeed(1);
    for _ in 0..50 {
        assert!(!bench.unavailable(7), "nothing is charged while it closes");
    }
    assert_eq!(bench.state(), BreakerPhase::Closing, "one key");
    assert!(!bench.unavailable(8));
    assert!(bench.is_open_for(BreakerCause::Dependency));
}

#[test]
fn a_probe_that_fails_otherwise_has_found_an_answer() {
    let mut bench = Bench::open(BreakerCause::Dependency);
    bench.admitted();
    assert!(!bench.attempt(1, Outcome::Failed));
    assert_eq!(bench.state(), BreakerPhase::Closing);
}

#[test]
fn opened_by_hand_it_stays_open_until_it_is_closed_by_hand() {
    let mut bench = Bench::open(BreakerCause::Operator);
    bench.pass(SECOND * 3_600);
    assert_eq!(bench.breaker.admit(0, bench.now), Admission::Wait(None), "not even probes");
    bench.succeed(1);
    bench.unavailable(2);
    bench.breaker.database_lost(bench.now);
    bench.breaker.database_answered(bench.now, bench.now);
    assert!(bench.is_open_for(BreakerCause::Operator));
    bench.breaker.force_close(bench.now);
    assert_eq!(bench.state(), BreakerPhase::Closing);
    bench.breaker.force_close(bench.now);
    bench.pass(DOUBLING * 4).goes(0);
    assert_eq!(bench.state(), BreakerPhase::Closed);
}

#[test]
fn what_it_remembers_is_bounded() {
    let mut bench = Bench::new();
    for key in 0..3 * MARKS as u64 {
        bench.succeed(1);
        bench.succeed(2);
        bench.succeed(3);
        bench.unavailable(key + 10);
    }
    assert_eq!((bench.breaker.marks.len(), bench.breaker.window.len()), (MARKS, WINDOW));
    let last = 3 * MARKS as u64 + 9;
    bench.succeed(last);
    assert_eq!(bench.breaker.marks.len(), MARKS - 1, "the latest are the ones that are remembered");
}
