//! When a consumer stops asking for what is down, and how it begins again: a state machine without a clock of its own.
//!
//! Closed, everything passes. The loss of the inbox's database opens it at once; a handler's `Unavailable` opens it when
//! half of the last attempts say so, over several keys. Open, one probe at a time passes. A probe that gets through
//! closes it by degrees: one attempt at a time at first, one more with each that succeeds.
//!
//! A message that says `Unavailable` for ever must not count as an outage: it is *charged* as soon as messages of other
//! keys succeed that began after its last failure, and most of them do. Several keys at once are an outage of what only some
//! messages need, and none of them is charged for as long as such an outage may take.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt;
use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

/// Attempts that are looked at, at most.
const WINDOW: usize = 20;
/// For how long an attempt is looked at.
const WINDOW_AGE: Duration = Duration::from_secs(10);
/// Keys that must be unavailable for an outage.
const KEYS: usize = 3;
/// Keys that must be unavailable for it to go on, just after it seemed to be over.
const KEYS_AGAIN: usize = 2;
/// The first probe comes after the first of these; the times between probes double up to the second.
const PROBE_WAIT: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(2));
/// How long a probe may take before another one is let through beside it.
const PROBE_PATIENCE: Duration = Duration::from_secs(2);
/// How often the number of attempts doubles while it closes, if nothing speaks against it.
const DOUBLING: Duration = Duration::from_secs(1);
/// For how long a key is not charged because other keys are unavailable too. What is gone for longer, while others succeed,
/// is taken to be gone for good.
const PATIENCE: Duration = Duration::from_secs(15 * 60);
/// A key that was not tried for so long begins anew: nobody knows what became of it meanwhile.
const FORGOTTEN: Duration = Duration::from_secs(60);
/// Keys whose last failure is remembered, at most.
const MARKS: usize = 1_024;

/// How the breaker of a consumer stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum BreakerPhase {
    /// Everything passes.
    Closed,
    /// What was down answers again; handlers are let through by degrees.
    Closing,
    /// Something is down: only single probes pass.
    Open,
}

/// Why the breaker of a consumer is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum BreakerCause {
    /// The inbox's database does not answer.
    Database,
    /// Handlers say that something they need is unavailable.
    Dependency,
    /// Somebody opened it; nothing passes until somebody closes it.
    Operator,
}

impl fmt::Display for BreakerCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Database => "the database is down",
            Self::Dependency => "handlers say that something is unavailable",
            Self::Operator => "somebody opened it",
        })
    }
}

/// One attempt to handle a message.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attempt {
    /// Whom it is charged to: a hash of the place and the ordering key.
    pub(crate) key: u64,
    pub(crate) began: Instant,
}

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Succeeded,
    Unavailable,
    /// It failed in a way that says nothing of an outage.
    Failed,
}

/// Whether an attempt may begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Admission {
    Go,
    /// Not now; perhaps then, or when something changes.
    Wait(Option<Instant>),
}

/// The state machine.
#[derive(Debug)]
pub(crate) struct Breaker {
    workers: usize,
    state: State,
    window: VecDeque<Ended>,
    marks: HashMap<u64, Mark>,
    succeeded: u64,
    unavailable: u64,
    /// When that attempt began that succeeded and began last.
    last_success: Option<Instant>,
}

#[derive(Debug)]
enum State {
    Closed,
    Closing(Closing),
    Open(Open),
}

#[derive(Debug)]
struct Closing {
    since: Instant,
    answered: usize,
    failures: usize,
    failed: HashSet<u64>,
}

#[derive(Debug)]
struct Open {
    cause: BreakerCause,
    since: Instant,
    wait: Duration,
    probe_at: Instant,
    /// When the probe was admitted that has not come back.
    probing: Option<Instant>,
}

#[derive(Debug)]
struct Ended {
    at: Instant,
    key: u64,
    unavailable: bool,
}

/// What was counted when a key was unavailable last, and since when it has been.
#[derive(Debug, Clone, Copy)]
struct Mark {
    since: Instant,
    at: Instant,
    succeeded: u64,
    unavailable: u64,
}

impl Breaker {
    /// Closed; `workers` is how many attempts there are at once when nothing is down.
    pub(crate) fn new(workers: usize) -> Self {
        Self {
            workers,
            state: State::Closed,
            window: VecDeque::with_capacity(WINDOW),
            marks: HashMap::new(),
            succeeded: 0,
            unavailable: 0,
            last_success: None,
        }
    }

    /// Sets how many attempts there are at once when nothing is down.
    pub(crate) fn set_workers(&mut self, workers: usize) {
        self.workers = workers;
    }

    /// How it stands, and since when and why where it is open.
    pub(crate) fn state(&self) -> (BreakerPhase, Option<(BreakerCause, Instant)>) {
        match &self.state {
            State::Closed => (BreakerPhase::Closed, None),
            State::Closing(_) => (BreakerPhase::Closing, None),
            State::Open(open) => (BreakerPhase::Open, Some((open.cause, open.since))),
        }
    }

    /// Lets time pass.
    pub(crate) fn tick(&mut self, now: Instant) {
        if let State::Closing(closing) = &self.state
            && closing.limit(now) >= self.workers
        {
            self.enter(State::Closed);
        }
    }

    /// Asks for one more attempt while `at_work` are under way. Who is told to go is under way from `now` on.
    pub(crate) fn admit(&mut self, at_work: usize, now: Instant) -> Admission {
        self.tick(now);
        match &mut self.state {
            State::Closed => Admission::Go,
            State::Closing(closing) if at_work < closing.limit(now) => Admission::Go,
            State::Closing(closing) => Admission::Wait(Some(closing.next_doubling(now))),
            State::Open(open) => open.admit(now),
        }
    }

    /// Who was admitted then is under way no more. A probe that said nothing makes room for the next one.
    pub(crate) fn given_back(&mut self, admitted: Instant, now: Instant) {
        if let State::Open(open) = &mut self.state
            && open.probing == Some(admitted)
        {
            (open.probing, open.probe_at) = (None, now);
        }
    }

    /// The database cannot be reached.
    pub(crate) fn database_lost(&mut self, now: Instant) {
        match &mut self.state {
            State::Open(open) if open.cause == BreakerCause::Operator => {}
            State::Open(open) => {
                open.cause = BreakerCause::Database;
                open.probe_failed(now);
            }
            State::Closed | State::Closing(_) => self.open(BreakerCause::Database, now),
        }
    }

    /// The database has answered a question that was asked then.
    pub(crate) fn database_answered(&mut self, asked: Instant, now: Instant) {
        let answers = |open: &Open| open.cause == BreakerCause::Database && asked >= open.since;
        if matches!(&self.state, State::Open(open) if answers(open)) {
            self.begin_closing(now);
        }
    }

    /// An attempt has ended; whether it is charged although it was unavailable.
    pub(crate) fn ended(&mut self, attempt: Attempt, outcome: Outcome, now: Instant) -> bool {
        self.tick(now);
        match &mut self.state {
            State::Closed => return self.ended_closed(attempt, outcome, now),
            State::Closing(closing) if attempt.began >= closing.since => {
                if closing.is_open_again(attempt, outcome) {
                    self.open(BreakerCause::Dependency, now);
                }
            }
            State::Open(open) if open.cause != BreakerCause::Operator && attempt.began >= open.since => {
                if outcome == Outcome::Unavailable {
                    open.cause = BreakerCause::Dependency;
                    open.probe_failed(now);
                } else {
                    self.begin_closing(now);
                }
            }
            // It began before things changed, and says nothing of how they are.
            State::Closing(_) | State::Open(_) => {}
        }
        false
    }

    /// Opens it by hand.
    pub(crate) fn force_open(&mut self, now: Instant) {
        self.open(BreakerCause::Operator, now);
    }

    /// Closes it by hand, whatever opened it.
    pub(crate) fn force_close(&mut self, now: Instant) {
        if matches!(self.state, State::Open(_)) {
            self.begin_closing(now);
        }
    }

    fn ended_closed(&mut self, attempt: Attempt, outcome: Outcome, now: Instant) -> bool {
        if self.window.len() == WINDOW {
            self.window.pop_front();
        }
        let unavailable = outcome == Outcome::Unavailable;
        self.window.push_back(Ended { at: now, key: attempt.key, unavailable });
        match outcome {
            Outcome::Failed => {
                if let Some(mark) = self.marks.get_mut(&attempt.key) {
                    mark.since = now;
                }
            }
            Outcome::Succeeded => {
                self.succeeded += 1;
                self.last_success = self.last_success.max(Some(attempt.began));
                if !self.marks.is_empty() {
                    self.marks.remove(&attempt.key);
                }
            }
            Outcome::Unavailable if self.is_outage(now) => self.open(BreakerCause::Dependency, now),
            Outcome::Unavailable => return self.charge(attempt.key, now),
        }
        false
    }

    /// Whether the last attempts are an outage: at least half of them, and at least half of their keys by what they
    /// said last, so that a few keys that are tried again and again do not outweigh the others.
    fn is_outage(&mut self, now: Instant) -> bool {
        while self.window.front().is_some_and(|ended| now.saturating_duration_since(ended.at) > WINDOW_AGE) {
            self.window.pop_front();
        }
        let unavailable = self.window.iter().filter(|ended| ended.unavailable).count();
        let last: HashMap<u64, bool> =
            self.window.iter().map(|ended| (ended.key, ended.unavailable)).collect();
        let keys = last.values().filter(|unavailable| **unavailable).count();
        unavailable * 2 >= self.window.len() && keys >= KEYS && keys * 2 >= last.len()
    }

    /// Whether others succeed while this key does not, and hardly another one.
    fn charge(&mut self, key: u64, now: Instant) -> bool {
        let charged = self.marks.get(&key).is_some_and(|mark| {
            let (succeeded, unavailable) =
                (self.succeeded - mark.succeeded, self.unavailable - mark.unavailable);
            self.last_success.is_some_and(|began| began > mark.at) && succeeded >= unavailable
        });
        self.unavailable += 1;
        let last = self.marks.get(&key).filter(|mark| now.saturating_duration_since(mark.at) < FORGOTTEN);
        let since = last.map_or(now, |mark| mark.since);
        self.forget_oldest();
        let mark = Mark { since, at: now, succeeded: self.succeeded, unavailable: self.unavailable };
        self.marks.insert(key, mark);
        charged && (mark.is_gone(now) || self.lately_unavailable(now) < KEYS)
    }

    /// Keys that said so lately, and nothing else since. Those that are gone say nothing of the others.
    fn lately_unavailable(&self, now: Instant) -> usize {
        let is_late =
            |mark: &&Mark| now.saturating_duration_since(mark.at) <= WINDOW_AGE && !mark.is_gone(now);
        self.marks.values().filter(is_late).count()
    }

    /// Makes room for one more key.
    fn forget_oldest(&mut self) {
        if self.marks.len() >= MARKS
            && let Some(oldest) = self.marks.iter().min_by_key(|(_, mark)| mark.at).map(|(key, _)| *key)
        {
            self.marks.remove(&oldest);
        }
    }

    fn open(&mut self, cause: BreakerCause, now: Instant) {
        let wait = PROBE_WAIT.0;
        self.enter(State::Open(Open { cause, since: now, wait, probe_at: now + wait, probing: None }));
    }

    fn begin_closing(&mut self, now: Instant) {
        let closing = Closing { since: now, answered: 0, failures: 0, failed: HashSet::new() };
        self.enter(State::Closing(closing));
    }

    /// What was counted before a change says nothing of what comes after it.
    fn enter(&mut self, state: State) {
        self.state = state;
        self.window.clear();
        self.marks.clear();
    }
}

impl Mark {
    fn is_gone(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.since) >= PATIENCE
    }
}

impl Closing {
    fn limit(&self, now: Instant) -> usize {
        let doublings = now.saturating_duration_since(self.since).as_secs() / DOUBLING.as_secs();
        let by_time = 1_usize.checked_shl(doublings.min(31) as u32).unwrap_or(usize::MAX);
        by_time.max(1 + self.answered)
    }

    fn next_doubling(&self, now: Instant) -> Instant {
        let doublings = now.saturating_duration_since(self.since).as_secs() / DOUBLING.as_secs();
        self.since + DOUBLING * (doublings.min(31) as u32 + 1)
    }

    fn is_open_again(&mut self, attempt: Attempt, outcome: Outcome) -> bool {
        if outcome != Outcome::Unavailable {
            self.answered += 1;
            return false;
        }
        self.failures += 1;
        self.failed.insert(attempt.key);
        self.failed.len() >= KEYS_AGAIN && self.failures > self.answered
    }
}

impl Open {
    fn admit(&mut self, now: Instant) -> Admission {
        if self.cause == BreakerCause::Operator {
            return Admission::Wait(None);
        }
        let next = match self.probing {
            Some(admitted) => admitted + PROBE_PATIENCE,
            None => self.probe_at,
        };
        if now < next {
            return Admission::Wait(Some(next));
        }
        self.probing = Some(now);
        Admission::Go
    }

    /// Only of a probe: what was under way when it opened fails too, and says nothing new.
    fn probe_failed(&mut self, now: Instant) {
        if self.probing.take().is_some() {
            self.wait = (self.wait * 2).min(PROBE_WAIT.1);
            self.probe_at = now + self.wait;
        }
    }
}

#[cfg(test)]
mod tests;
