//! One life of the process under test: the steps that it passes, and what befalls it at one of them.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use backstop::{AdapterError, FaultKind};
use tokio::sync::watch;
use tokio::time::Instant;

/// A step of the loop, named by what has just been done.
///
/// They are all the dealings that the loop has with the world. Between two of them nothing happens that outlives the
/// process, so that a crash after each of them is a crash anywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Step {
    /// The source has handed messages over.
    Received,
    /// The inbox has answered, and written its row where the message is new.
    Begun,
    /// Something was done [outside](super::Outside) of the database.
    Outside,
    /// The handler has returned.
    Handled,
    /// A transaction is committed.
    Committed,
    /// A transaction is rolled back, or what was written in it is.
    RolledBack,
    /// A message is held, or appended behind one that is.
    Held,
    /// A held message is claimed.
    Claimed,
    /// A failed attempt of a held message is written down.
    Rescheduled,
    /// A dead letter is published.
    Quarantined,
    /// A held message whose letter is published is taken out, or kept as the head of its key.
    GivenUp,
    /// The broker is told that a message is done.
    Settled,
}

impl Step {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Received => "messages were received",
            Self::Begun => "the inbox answered",
            Self::Outside => "something was done outside",
            Self::Handled => "the handler returned",
            Self::Committed => "the commit",
            Self::RolledBack => "the rollback",
            Self::Held => "the message was held",
            Self::Claimed => "a held message was claimed",
            Self::Rescheduled => "a failure was written down",
            Self::Quarantined => "the letter was published",
            Self::GivenUp => "a held message was given up",
            Self::Settled => "the message was settled",
        }
    }
}

/// One pass of a step: the first, the second, and so on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Point {
    /// The step.
    pub step: Step,
    /// From 1.
    pub pass: u32,
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "after {} (pass {})", self.step.as_str(), self.pass)
    }
}

/// What befalls the process at a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Blow {
    /// It dies.
    Crash,
    /// Its database is away for so long.
    Outage(Duration),
    /// Its next commit does not simply succeed.
    Commit(Fate),
}

/// What becomes of a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It is committed, and the answer is lost.
    Committed,
    /// It is not, and the answer is lost.
    Lost,
    /// The database says that it has rolled back.
    RolledBack,
}

impl fmt::Display for Blow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Crash => "killed",
            Self::Outage(_) => "database gone",
            Self::Commit(Fate::Committed) => "commit done, its answer lost",
            Self::Commit(Fate::Lost) => "commit not done, its answer lost",
            Self::Commit(Fate::RolledBack) => "commit rolled back",
        })
    }
}

/// A blow and its point.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plan {
    pub(super) at: Point,
    pub(super) blow: Blow,
}

#[derive(Debug, Default)]
struct Passed {
    times: BTreeMap<Step, u32>,
    points: Vec<Point>,
    struck: Option<Struck>,
    outage_until: Option<Instant>,
    next_commit: Option<Fate>,
}

/// Where a plan came true.
#[derive(Debug, Clone)]
pub(super) struct Struck {
    plan: Plan,
    /// What was being worked on.
    at_work: String,
}

impl fmt::Display for Struck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { plan, at_work } = self;
        write!(f, "{} {}", plan.blow, plan.at)?;
        if at_work.is_empty() { Ok(()) } else { write!(f, ", {at_work}") }
    }
}

#[derive(Debug)]
pub(super) struct Life {
    plan: Option<Plan>,
    passed: Mutex<Passed>,
    dead: watch::Sender<bool>,
}

impl Life {
    pub(super) fn new(plan: Option<Plan>) -> Self {
        Self { plan, passed: Mutex::default(), dead: watch::Sender::new(false) }
    }

    /// Notes a step, and lets happen what is planned for it.
    pub(super) fn pass(&self, step: Step, at_work: &str) {
        if self.is_dead() {
            return;
        }
        let mut passed = self.lock();
        let times = passed.times.entry(step).or_default();
        *times += 1;
        let point = Point { step, pass: *times };
        passed.points.push(point);
        let Some(plan) = self.plan.filter(|plan| plan.at == point) else { return };
        passed.struck = Some(Struck { plan, at_work: at_work.to_owned() });
        match plan.blow {
            Blow::Outage(time) => passed.outage_until = Some(Instant::now() + time),
            Blow::Commit(fate) => passed.next_commit = Some(fate),
            Blow::Crash => {
                drop(passed);
                self.die();
            }
        }
    }

    /// The process is gone: from now on the world hears nothing of it.
    pub(super) fn die(&self) {
        self.dead.send_replace(true);
    }

    pub(super) fn is_dead(&self) -> bool {
        *self.dead.borrow()
    }

    /// Waits until it dies.
    pub(super) async fn died(&self) {
        // The sender is `self`.
        let _ = self.dead.subscribe().wait_for(|dead| *dead).await;
    }

    /// Goes on while it lives, and never after that.
    pub(super) async fn alive(&self) {
        if self.is_dead() {
            std::future::pending::<()>().await;
        }
    }

    /// Notes a step, after which it may be dead.
    pub(super) async fn after(&self, step: Step, at_work: &str) {
        self.pass(step, at_work);
        self.alive().await;
    }

    /// Asks the database whether it is there.
    pub(super) async fn ask(&self) -> Result<(), AdapterError> {
        self.alive().await;
        let away = self.lock().outage_until.is_some_and(|until| Instant::now() < until);
        if away { Err(gone("the database is gone because the test wants it so")) } else { Ok(()) }
    }

    /// What becomes of the commit that begins now, unless it simply succeeds.
    pub(super) fn next_commit(&self) -> Option<Fate> {
        self.lock().next_commit.take()
    }

    /// Every point that was passed, in order.
    pub(super) fn points(&self) -> Vec<Point> {
        self.lock().points.clone()
    }

    /// Whether and where the plan came true.
    pub(super) fn struck(&self) -> Option<Struck> {
        self.lock().struck.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Passed> {
        self.passed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) fn gone(what: &str) -> AdapterError {
    AdapterError::new(FaultKind::Unreachable, what).with_hint("wait: the test brings it back")
}

/// What ties a part of the process to its life.
#[derive(Debug, Clone)]
pub(super) struct Tie {
    pub(super) life: Arc<Life>,
    /// Counted, so that it is known when the last part is gone.
    _part: Arc<()>,
}

impl Tie {
    pub(super) fn new(life: Arc<Life>, part: &Arc<()>) -> Self {
        Self { life, _part: part.clone() }
    }
}
