//! A consumer with a handle, and a handler whose dependency can be taken away.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use backstop::{
    Consumer, ConsumerHandle, Delivery, GroupCommit, Handler, HandlerError, Message, RunError, Snapshot,
};
use backstop_testkit::memory::{Broker, MemoryTx, Store};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

/// How long handlers may take.
pub(crate) const HANDLER_LIMIT: Duration = Duration::from_secs(600);

/// Messages that the source hands over at most.
pub(crate) const WINDOW: usize = 64;

pub(crate) fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

/// Something that is so or not.
#[derive(Clone, Default)]
pub(crate) struct Switch(Arc<AtomicBool>);

impl Switch {
    pub(crate) fn set(&self, on: bool) {
        self.0.store(on, Ordering::SeqCst);
    }

    pub(crate) fn is_on(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Mode {
    /// With so many messages in a transaction.
    Transactional(usize),
    Plain,
}

pub(crate) struct Scene {
    pub(crate) broker: Broker,
    pub(crate) store: Store,
    /// Whether the handler's dependency is down.
    pub(crate) down: Switch,
    pub(crate) seen: Arc<Mutex<Seen>>,
}

/// What handlers have seen.
#[derive(Default)]
pub(crate) struct Seen {
    tries: usize,
    highest_attempt: u32,
    /// The first message of this key never gets through.
    poison: Option<(String, Option<u64>)>,
    /// What was applied without a database.
    applied: Vec<(String, u64)>,
    /// This message is never done with.
    hangs: Option<u64>,
}

/// Calls its dependency, and records what it did.
#[derive(Clone)]
pub(crate) struct Caller {
    down: Switch,
    seen: Arc<Mutex<Seen>>,
}

#[derive(Debug, thiserror::Error)]
#[error("the dependency is down")]
struct Down;

/// The handler of a scene.
pub(crate) fn apply(scene: &Scene) -> Caller {
    Caller { down: scene.down.clone(), seen: scene.seen.clone() }
}

impl Caller {
    /// The key and number of the message, if its dependency answers.
    async fn call(&self, delivery: &Delivery<u64>) -> Result<(String, u64), HandlerError> {
        // It takes a while, so that several are under way.
        sleep(Duration::from_millis(2)).await;
        let key = delivery.message().key.clone().unwrap_or_default();
        let (key, number) = (String::from_utf8_lossy(&key).into_owned(), *delivery.body());
        let (refused, hangs) = {
            let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            seen.tries += 1;
            seen.highest_attempt = seen.highest_attempt.max(delivery.attempt());
            let refused = match &mut seen.poison {
                Some((poison, first)) if *poison == key => *first.get_or_insert(number) == number,
                _ => false,
            };
            (refused, seen.hangs == Some(number))
        };
        if hangs {
            std::future::pending::<()>().await;
        }
        if refused || self.down.is_on() {
            return Err(HandlerError::unavailable(Down));
        }
        Ok((key, number))
    }
}

impl Handler<MemoryTx> for Caller {
    type Message = u64;

    async fn handle(&self, delivery: &Delivery<u64>, tx: &mut MemoryTx) -> Result<(), HandlerError> {
        let (key, number) = self.call(delivery).await?;
        tx.apply(format!("{key}/{number}"));
        Ok(())
    }
}

impl Handler<()> for Caller {
    type Message = u64;

    async fn handle(&self, delivery: &Delivery<u64>, _: &mut ()) -> Result<(), HandlerError> {
        let applied = self.call(delivery).await?;
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).applied.push(applied);
        Ok(())
    }
}

/// A consumer that runs.
pub(crate) struct Run {
    pub(crate) handle: ConsumerHandle,
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<Snapshot, RunError>>,
}

impl Run {
    pub(crate) async fn stop(self) -> Snapshot {
        // It may have ended by itself.
        let _ = self.stop.send(());
        self.task.await.expect("no panic").expect("an orderly end")
    }
}

impl Scene {
    pub(crate) fn new() -> Self {
        let broker = Broker::new();
        broker.create("orders", 2);
        Self { broker, store: Store::new(), down: Switch::default(), seen: Arc::default() }
    }

    pub(crate) fn start(&self, mode: Mode) -> Run {
        self.start_stalled_after(mode, seconds(60))
    }

    pub(crate) fn start_stalled_after(&self, mode: Mode, limit: Duration) -> Run {
        let handler = apply(self);
        let source = self.broker.source("stock", ["orders"]).window(WINDOW);
        let (stop, stopped) = oneshot::channel::<()>();
        let shutdown = async {
            let _ = stopped.await;
        };
        let letters = self.broker.dead_letters();
        let (handle, task) = match mode {
            Mode::Transactional(shared) => {
                let consumer = Consumer::transactional("stock", source, self.store.clone(), handler);
                let consumer = consumer.dead_letter(letters).group_commit(GroupCommit::up_to(shared));
                let consumer = consumer.handler_timeout(HANDLER_LIMIT).stalled_after(limit);
                (consumer.handle(), tokio::spawn(consumer.run(shutdown)))
            }
            Mode::Plain => {
                let consumer = Consumer::plain("stock", source, handler).dead_letter(letters);
                let consumer = consumer.handler_timeout(HANDLER_LIMIT).stalled_after(limit);
                (consumer.handle(), tokio::spawn(consumer.run(shutdown)))
            }
        };
        Run { handle, stop, task }
    }

    /// Publishes messages with these numbers over so many keys.
    pub(crate) fn publish_over(&self, keys: u64, numbers: Range<u64>) {
        for number in numbers {
            let message = Message::new("order").id(number.to_string()).source("/tests");
            let message = message.key(format!("key-{}", number % keys)).json(&number).expect("plain data");
            self.broker.publish("orders", message);
        }
    }

    /// Makes the next message of that key one that is always unavailable.
    pub(crate) fn poison(&self, key: &str) {
        self.seen().poison = Some((key.to_owned(), None));
    }

    pub(crate) fn heal(&self) {
        self.seen().poison = None;
    }

    /// Makes the handler of this message hang.
    pub(crate) fn hang(&self, number: u64) {
        self.seen().hangs = Some(number);
    }

    pub(crate) fn tries(&self) -> usize {
        self.seen().tries
    }

    pub(crate) fn highest_attempt(&self) -> u32 {
        self.seen().highest_attempt
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was applied, in order.
    fn effects(&self) -> Vec<(String, u64)> {
        let parse = |effect: &String| {
            let (key, number) = effect.split_once('/').expect("a key and a number");
            (key.to_owned(), number.parse().expect("a number"))
        };
        let mut effects: Vec<_> = self.store.applied().iter().map(parse).collect();
        effects.extend(self.seen().applied.clone());
        effects
    }

    /// How many messages were applied.
    pub(crate) fn applied(&self) -> usize {
        self.effects().into_iter().collect::<BTreeSet<_>>().len()
    }

    /// Nothing twice, and the messages of each key in their order.
    pub(crate) fn assert_order_of_keys(&self) {
        let mut last: BTreeMap<String, u64> = BTreeMap::new();
        for (key, number) in self.effects() {
            let before = last.insert(key.clone(), number);
            assert!(before.is_none_or(|before| before < number), "{key}: {number} after {before:?}");
        }
    }

    pub(crate) fn letters(&self) -> Vec<backstop::Envelope> {
        self.broker.published("orders.stock.dlq")
    }

    pub(crate) fn is_settled(&self) -> bool {
        self.broker.unsettled("stock") == 0
    }

    /// Waits, for an hour of the test's clock at most.
    pub(crate) async fn until(&self, what: &str, done: impl Fn() -> bool) {
        let patience = Instant::now() + seconds(3_600);
        while !done() {
            assert!(Instant::now() < patience, "waited in vain: {what}; {} applied", self.applied());
            sleep(Duration::from_millis(20)).await;
        }
    }
}
