//! Testing a handler of your own, in memory: whatever befalls the process around it, each event has its effects
//! exactly once, none is lost, and those of a key come in its order.
//!
//! The handler runs in the real loop, over a broker and a database in memory. A run is repeated once for each point
//! between two steps of the loop, and there the process is killed: its tasks are dropped, its handler with all that it
//! had in memory, and another begins over the same broker and database.
//!
//! ```
//! use backstop_testkit::trial::{Outside, TestConsumer};
//! use backstop_testkit::memory::MemoryTx;
//! use backstop::{Delivery, Handler, HandlerError, Message};
//!
//! struct Reserve;
//!
//! impl Handler<MemoryTx> for Reserve {
//!     type Message = String;
//!
//!     async fn handle(&self, delivery: &Delivery<String>, tx: &mut MemoryTx) -> Result<(), HandlerError> {
//!         tx.apply(format!("reserve {}", delivery.body()));
//!         Ok(())
//!     }
//! }
//!
//! # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
//! let test = TestConsumer::new(|_: Outside| Reserve)
//!     .event(Message::new("order.placed").id("o1").key("shelf-1").json(&"tea")?)
//!     .event(Message::new("order.placed").id("o2").key("shelf-1").json(&"coffee")?);
//! test.crash_everywhere().await.assert_exactly_once();
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! # })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What counts as an effect
//!
//! What a handler writes through its transaction, and what it does [`Outside`] of it. Which effects an event has is
//! learned from a run that nothing disturbs; there each event must have at least one, and the same one not twice.
//! Effects are told apart by their event and their text, so that texts must not differ from one attempt to the next.
//!
//! # Time
//!
//! Everything waits by tokio's clock. With `#[tokio::test(start_paused = true)]` retries, outages and
//! [`Running::advance`] take no time.
//!
//! # What it does not show
//!
//! One crash a run, one message at a time, one instance. What a real database does of its own (locks, isolation,
//! constraints) is not in memory: implement [`Database`] for it and run the same tests there. Batch handlers are not
//! run.

mod database;
mod life;
mod outside;
mod parts;
mod report;
mod running;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use backstop::inbox::Inbox;
use backstop::{Codec, Consumer, Handler, Json, Message, WithInbox};
use chrono::{DateTime, Utc};

pub use database::{Database, InMemory, TestInbox};
pub use life::{Point, Step};
pub use outside::{Effect, Outside};
pub use parts::{TestHandler, TestLetters, TestSettlement, TestSource};
pub use report::{Finding, Report};
pub use running::{CONSUMER, NotDone, Running, TOPIC};

use life::{Blow, Fate, Plan};
use report::Expected;
use running::Outcome;

/// How long the database is away in [`interrupt_everywhere`](TestConsumer::interrupt_everywhere).
pub const OUTAGE: Duration = Duration::from_secs(1);

/// The consumer that is run, for [`configure`](TestConsumer::configure).
pub type Tested<H, D = InMemory, C = Json> =
    Consumer<TestSource, WithInbox<TestInbox<<D as Database>::Inbox>>, TestHandler<H, D>, C, TestLetters>;

/// How a process begins: its handler.
type Start<H> = Arc<dyn Fn(Outside) -> H + Send + Sync>;
/// What is set of a consumer.
type Configure<H, D, C> = Arc<dyn Fn(Tested<H, D>) -> Tested<H, D, C> + Send + Sync>;

/// A handler, the events that it is given, and what befalls it.
#[must_use = "nothing is tested before it is run"]
pub struct TestConsumer<H, D: Database = InMemory, C = Json> {
    start: Start<H>,
    configure: Configure<H, D, C>,
    database: Arc<D>,
    events: Vec<Message>,
    dead: BTreeSet<String>,
    clock: DateTime<Utc>,
    linger: Duration,
    patience: Duration,
}

/// How events are delivered.
#[derive(Debug, Clone, Copy)]
enum Delivered {
    /// As they were given.
    Once,
    /// Each twice in a row.
    Twice,
    /// All of them, and when they are done all of them again.
    Again,
    /// One key after another, the last one first.
    KeysReversed,
}

impl<H: 'static> TestConsumer<H> {
    /// Tests a handler on the database in memory. `start` makes it, each time that a process begins: what it keeps in
    /// memory is lost with the process.
    pub fn new(start: impl Fn(Outside) -> H + Send + Sync + 'static) -> Self {
        Self::on(InMemory, start)
    }
}

impl<H: 'static, D: Database> TestConsumer<H, D> {
    /// Tests a handler on a database of your own.
    pub fn on(database: D, start: impl Fn(Outside) -> H + Send + Sync + 'static) -> Self {
        Self {
            start: Arc::new(start),
            configure: Arc::new(|consumer| consumer),
            database: Arc::new(database),
            events: Vec::new(),
            dead: BTreeSet::new(),
            clock: DateTime::UNIX_EPOCH,
            linger: Duration::from_millis(10),
            patience: Duration::from_secs(120),
        }
    }

    /// Sets the consumer as the application does: codec, retries, groups. By default it handles one message at a time,
    /// so that a run can be repeated. Its dead letters are the test's.
    pub fn configure<C>(
        self,
        configure: impl Fn(Tested<H, D>) -> Tested<H, D, C> + Send + Sync + 'static,
    ) -> TestConsumer<H, D, C> {
        let Self { start, database, events, dead, clock, linger, patience, .. } = self;
        let configure: Configure<H, D, C> = Arc::new(configure);
        TestConsumer { start, configure, database, events, dead, clock, linger, patience }
    }
}

impl<H, D: Database, C> TestConsumer<H, D, C> {
    /// An event, after those that were given before. Events that share a key are in this order; each needs an id of
    /// its own.
    pub fn event(mut self, event: Message) -> Self {
        self.events.push(event);
        self
    }

    /// Several events.
    pub fn events(mut self, events: impl IntoIterator<Item = Message>) -> Self {
        self.events.extend(events);
        self
    }

    /// An event that is to become a dead letter, by its id. By default none is.
    pub fn dead(mut self, event: impl Into<String>) -> Self {
        self.dead.insert(event.into());
        self
    }

    /// The time at which each run begins, for [`Outside::now`]. Defaults to 1970.
    pub fn clock(mut self, begins: DateTime<Utc>) -> Self {
        self.clock = begins;
        self
    }

    /// How long after the last message its effects may still come. Defaults to 10 ms.
    pub fn linger(mut self, time: Duration) -> Self {
        self.linger = time;
        self
    }

    /// How long a run may take. Defaults to 120 s; what still waits then is reported.
    pub fn patience(mut self, time: Duration) -> Self {
        self.patience = time;
        self
    }
}

impl<H, D, C> TestConsumer<H, D, C>
where
    H: Handler<<D::Inbox as Inbox>::Tx>,
    D: Database,
    C: Codec<H::Message>,
{
    /// Begins a process, with no event delivered, for tests that go step by step.
    pub async fn start(&self) -> Running<H, D, C> {
        Running::start(self.clone(), None).await
    }

    /// One run that nothing disturbs.
    pub async fn undisturbed(&self) -> Report {
        self.reference().await.0
    }

    /// A run for each point that an undisturbed run passes, in which the process is killed there and another begins.
    pub async fn crash_everywhere(&self) -> Report {
        self.strike(|_| vec![Blow::Crash]).await
    }

    /// A run for each point, from which on the database is away for [`OUTAGE`].
    pub async fn interrupt_everywhere(&self) -> Report {
        self.strike(|_| vec![Blow::Outage(OUTAGE)]).await
    }

    /// Three runs for each message that is handled: its commit is done and the answer is lost; it is not done and the
    /// answer is lost; it is rolled back.
    pub async fn lose_commits(&self) -> Report {
        let fates = [Fate::Committed, Fate::Lost, Fate::RolledBack];
        self.strike(|point| match point.step {
            Step::Handled => fates.map(Blow::Commit).to_vec(),
            _ => Vec::new(),
        })
        .await
    }

    /// Runs in which each event comes twice in a row, in which all come again when all are done, and in which keys come
    /// in another order.
    pub async fn redeliver(&self) -> Report {
        let (mut report, expected, _) = self.reference().await;
        if report.findings().is_empty() {
            for delivered in [Delivered::Twice, Delivered::Again, Delivered::KeysReversed] {
                let (_, outcome) = self.run(None, delivered).await;
                report.add(expected.compare(delivered.to_string(), outcome));
            }
        }
        report
    }

    /// All of it.
    pub async fn disturb(&self) -> Report {
        let mut report = self.crash_everywhere().await;
        report.absorb(self.interrupt_everywhere().await);
        report.absorb(self.lose_commits().await);
        report.absorb(self.redeliver().await);
        report
    }

    /// Nothing follows where the undisturbed run itself is wrong: there is nothing to compare with.
    async fn strike(&self, blows: impl Fn(Point) -> Vec<Blow>) -> Report {
        let (mut report, expected, points) = self.reference().await;
        if !report.findings().is_empty() {
            return report;
        }
        for at in points {
            for blow in blows(at) {
                let (running, outcome) = self.run(Some(Plan { at, blow }), Delivered::Once).await;
                let name = running.unwrap_or_else(|| format!("not {blow} {at}: it did not come to that"));
                report.add(expected.compare(name, outcome));
            }
        }
        report
    }

    async fn reference(&self) -> (Report, Expected, Vec<Point>) {
        let mut running = Running::start(self.clone(), None).await;
        self.events.iter().for_each(|event| running.deliver(event.clone()));
        let done = running.done().await;
        let points = running.points();
        let outcome = running.outcome(done).await;
        let expected = Expected::new(&self.events, self.dead.clone(), &outcome);
        let mut report = Report::default();
        report.add(expected.compare("undisturbed".to_owned(), outcome));
        (report, expected, points)
    }

    /// Where the plan came true, and what came of it all.
    async fn run(&self, plan: Option<Plan>, delivered: Delivered) -> (Option<String>, Outcome) {
        let mut running = Running::start(self.clone(), plan).await;
        delivered.order(&self.events).into_iter().for_each(|event| running.deliver(event.clone()));
        let mut done = running.done().await;
        if done.is_ok() && matches!(delivered, Delivered::Again) {
            self.events.iter().for_each(|event| running.deliver(event.clone()));
            done = running.done().await;
        }
        let struck = running.struck().map(|struck| struck.to_string());
        (struck, running.outcome(done).await)
    }
}

impl Delivered {
    fn order(self, events: &[Message]) -> Vec<&Message> {
        match self {
            Self::Once | Self::Again => events.iter().collect(),
            Self::Twice => events.iter().flat_map(|event| [event, event]).collect(),
            Self::KeysReversed => {
                let mut keys = Vec::new();
                for event in events.iter().rev() {
                    if !keys.contains(&&event.key) {
                        keys.push(&event.key);
                    }
                }
                keys.into_iter()
                    .flat_map(|key| events.iter().filter(move |event| event.key == *key))
                    .collect()
            }
        }
    }
}

impl fmt::Display for Delivered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Once => "each event once",
            Self::Twice => "each event twice in a row",
            Self::Again => "all events again when all were done",
            Self::KeysReversed => "keys in another order",
        })
    }
}

impl<H, D: Database, C> Clone for TestConsumer<H, D, C> {
    fn clone(&self) -> Self {
        Self {
            start: self.start.clone(),
            configure: self.configure.clone(),
            database: self.database.clone(),
            events: self.events.clone(),
            dead: self.dead.clone(),
            clock: self.clock,
            linger: self.linger,
            patience: self.patience,
        }
    }
}

impl<H, D: Database, C> fmt::Debug for TestConsumer<H, D, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TestConsumer").field("events", &self.events.len()).finish_non_exhaustive()
    }
}
