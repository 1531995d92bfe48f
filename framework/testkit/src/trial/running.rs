//! A consumer under test at work: its world, and the process in it, which may die and begin anew.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use backstop::held::HeldMessages;
use backstop::inbox::Inbox;
use backstop::{Codec, Consumer, Envelope, Handler, Message, MessageKey, RunError, Snapshot};
use chrono::{DateTime, Utc};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::TestConsumer;
use super::database::{Database, InMemory, TestInbox};
use super::life::{Life, Plan, Point, Struck, Tie};
use super::outside::{Beyond, Effect, Outside};
use super::parts::{TestHandler, TestLetters, TestSource};
use crate::memory::Broker;

/// The topic that events are delivered by.
pub const TOPIC: &str = "events";
/// The name of the consumer under test, and of its group.
pub const CONSUMER: &str = "tested";

/// How often it is looked whether everything is done: at first, and at last.
const LOOK_EVERY: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(20));
/// How often tasks of a dead process are given a turn to end.
const TURNS: u32 = 10_000;

/// A consumer under test, at work.
pub struct Running<H, D: Database = InMemory, C = backstop::Json> {
    test: TestConsumer<H, D, C>,
    world: World<D>,
    process: Process,
    struck: Option<Struck>,
}

/// What outlives a process.
struct World<D: Database> {
    broker: Broker,
    inbox: D::Inbox,
    beyond: Arc<Beyond>,
    letters: Arc<Mutex<Vec<MessageKey>>>,
}

struct Process {
    life: Arc<Life>,
    parts: Arc<()>,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<Result<Snapshot, RunError>>,
}

/// What has come of it all.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) inside: Vec<Effect>,
    pub(super) outside: Vec<Effect>,
    pub(super) state: BTreeMap<String, String>,
    pub(super) letters: Vec<MessageKey>,
    pub(super) backlog: u64,
    pub(super) ended: Option<String>,
}

/// Why a consumer under test did not get to its end.
#[derive(Debug)]
#[non_exhaustive]
pub enum NotDone {
    /// Messages still wait after the time that [`patience`](TestConsumer::patience) sets.
    StillWaiting,
    /// The consumer ended by itself.
    Ended(String),
}

impl fmt::Display for NotDone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::StillWaiting => f.write_str("messages still wait"),
            Self::Ended(why) => write!(f, "the consumer ended by itself: {why}"),
        }
    }
}

impl std::error::Error for NotDone {}

impl<H, D, C> Running<H, D, C>
where
    H: Handler<<D::Inbox as Inbox>::Tx>,
    D: Database,
    C: Codec<H::Message>,
{
    pub(super) async fn start(test: TestConsumer<H, D, C>, plan: Option<Plan>) -> Self {
        let broker = Broker::new();
        // One partition: events come in the order in which they were delivered.
        broker.create(TOPIC, 1);
        let world = World {
            broker,
            inbox: test.database.open().await,
            beyond: Arc::new(Beyond::new(test.clock)),
            letters: Arc::default(),
        };
        let process = begin(&test, &world, plan);
        Self { test, world, process, struck: None }
    }

    /// Delivers an event.
    pub fn deliver(&self, event: Message) {
        self.world.broker.publish(TOPIC, event);
    }

    /// Waits until everything that was delivered is handled or given up, whatever befalls the process meanwhile.
    ///
    /// # Errors
    /// When it does not come to that.
    pub async fn done(&mut self) -> Result<(), NotDone> {
        let deadline = tokio::time::Instant::now() + self.test.patience;
        loop {
            let life = self.process.life.clone();
            tokio::select! {
                biased;
                () = life.died() => self.restart().await,
                ended = &mut self.process.task => {
                    return Err(NotDone::Ended(match ended {
                        Ok(Ok(_)) => "without a reason".to_owned(),
                        Ok(Err(error)) => error.to_string(),
                        Err(error) => error.to_string(),
                    }));
                }
                () = self.world.quiet(self.test.linger) => {
                    if !self.process.life.is_dead() {
                        return Ok(());
                    }
                }
                () = tokio::time::sleep_until(deadline) => return Err(NotDone::StillWaiting),
            }
        }
    }

    /// Lets time pass: with tokio's clock paused at once, and with all that falls due meanwhile.
    pub async fn advance(&self, by: Duration) {
        tokio::time::sleep(by).await;
    }

    /// The time, as [`Outside::now`] has it.
    pub fn now(&self) -> DateTime<Utc> {
        self.world.beyond.now()
    }

    /// Kills the process where it stands and begins another over the same broker and database.
    pub async fn crash(&mut self) {
        self.process.life.die();
        self.restart().await;
    }

    /// Effects in the database, in their order.
    pub async fn effects(&self) -> Vec<Effect> {
        self.test.database.effects(&self.world.inbox).await
    }

    /// Effects [outside](Outside) of it, in their order.
    pub fn outside(&self) -> Vec<Effect> {
        self.world.beyond.effects()
    }

    /// Published dead letters.
    pub fn letters(&self) -> Vec<Envelope> {
        self.world.broker.published(&backstop::dead_letter::kafka_letters(TOPIC, CONSUMER))
    }

    /// The database.
    pub fn database(&self) -> &D::Inbox {
        &self.world.inbox
    }

    /// The broker.
    pub fn broker(&self) -> &Broker {
        &self.world.broker
    }

    /// Ends the process in an orderly way, and tells what it has done since its last start.
    ///
    /// # Errors
    /// As [`Consumer::run`].
    ///
    /// # Panics
    /// When the consumer has panicked.
    pub async fn stop(mut self) -> Result<Snapshot, RunError> {
        drop(self.process.stop.take());
        self.process.task.await.expect("the consumer does not panic")
    }

    /// Every point that the process has passed since it began.
    pub fn points(&self) -> Vec<Point> {
        self.process.life.points()
    }

    /// What has come of it, when `done` says so.
    pub(super) async fn outcome(mut self, done: Result<(), NotDone>) -> Outcome {
        let backlog = self.world.backlog().await;
        let mut outcome = Outcome {
            inside: self.effects().await,
            outside: self.outside(),
            state: self.test.database.state(&self.world.inbox).await,
            letters: self.world.letters.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            backlog,
            ended: done.err().map(|why| why.to_string()),
        };
        if outcome.ended.is_none() {
            outcome.ended = self.process.leave().await;
        }
        self.process.end().await;
        outcome
    }

    async fn restart(&mut self) {
        self.process.end().await;
        self.struck = self.struck();
        self.process = begin(&self.test, &self.world, None);
    }
}

fn begin<H, D, C>(test: &TestConsumer<H, D, C>, world: &World<D>, plan: Option<Plan>) -> Process
where
    H: Handler<<D::Inbox as Inbox>::Tx>,
    D: Database,
    C: Codec<H::Message>,
{
    let (life, parts) = (Arc::new(Life::new(plan)), Arc::new(()));
    let tie = || Tie::new(life.clone(), &parts);
    let outside = Outside { life: life.clone(), world: world.beyond.clone() };
    let handler = TestHandler { tie: tie(), handler: (test.start)(outside), database: test.database.clone() };
    let source = TestSource { tie: tie(), source: world.broker.source(CONSUMER, [TOPIC]) };
    let inbox = TestInbox { tie: tie(), inbox: world.inbox.clone() };
    let letters =
        TestLetters { tie: tie(), letters: world.broker.dead_letters(), published: world.letters.clone() };
    let consumer = Consumer::transactional(CONSUMER, source, inbox, handler)
        .dead_letter(letters)
        // One at a time, so that a run can be repeated.
        .concurrency(1);
    let consumer = (test.configure)(consumer);
    let (stop, stopped) = oneshot::channel::<()>();
    let task = tokio::spawn(consumer.run(async {
        let _ = stopped.await;
    }));
    Process { life, parts, stop: Some(stop), task }
}

impl Process {
    /// Ends it in an orderly way; what is wrong, if anything.
    async fn leave(&mut self) -> Option<String> {
        drop(self.stop.take());
        tokio::select! {
            ended = &mut self.task => match ended {
                Ok(Ok(_)) => None,
                Ok(Err(error)) => Some(error.to_string()),
                Err(error) => Some(error.to_string()),
            },
            // A task that the handler left behind has passed the point at which it was to die.
            () = self.life.died() => None,
        }
    }

    /// Waits until nothing is left of it but tasks that its handler has spawned.
    async fn end(&mut self) {
        self.life.die();
        self.task.abort();
        // It may have ended before.
        if !self.task.is_finished() {
            let _ = (&mut self.task).await;
        }
        for _ in 0..TURNS {
            if Arc::strong_count(&self.parts) == 1 {
                return;
            }
            tokio::task::yield_now().await;
        }
    }
}

impl<D: Database> World<D> {
    /// Waits until nothing is left to do, and nothing has come of it for a while.
    async fn quiet(&self, linger: Duration) {
        let (mut rest, longest) = LOOK_EVERY;
        loop {
            if self.backlog().await == 0 {
                tokio::time::sleep(linger).await;
                if self.backlog().await == 0 {
                    return;
                }
            }
            tokio::time::sleep(rest).await;
            rest = (rest * 2).min(longest);
        }
    }

    /// Messages that are not done.
    async fn backlog(&self) -> u64 {
        let held = self.inbox.summary(CONSUMER).await.map_or(0, |summary| summary.messages);
        self.broker.unsettled(CONSUMER) + held
    }
}

impl<H, D, C> Running<H, D, C>
where
    D: Database,
{
    /// Where what was planned came true.
    pub(super) fn struck(&self) -> Option<Struck> {
        self.process.life.struck().or_else(|| self.struck.clone())
    }
}

impl<H, D: Database, C> fmt::Debug for Running<H, D, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Running").field("life", &self.process.life).finish_non_exhaustive()
    }
}
