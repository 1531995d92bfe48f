//! A handler that gets into the trouble that its messages ask for, and a consumer around it.

pub(crate) mod warm;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use backstop::dead_letter::generation;
use backstop::{
    AdapterError, Consumer, Delivery, ErrorClass, FaultKind, GroupCommit, Handler, HandlerError, Message,
    RetryPolicy, RunError, Snapshot, Via,
};
use backstop_testkit::memory::{Broker, MemoryTx, Store};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) trouble: Trouble,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(crate) enum Trouble {
    #[default]
    None,
    Transient(u32),
    Unavailable(u32),
    Permanent,
    Panic,
    Slow(u32),
    Swallow(u32),
    RawCommit,
    RawRollback,
    /// Commits by itself, and then fails with a conflict.
    RawCommitAndConflict,
    Conflict(u32),
    UntilRedriven(u32),
}

/// Applies the order's name, or gets into the trouble that it asks for; counts its calls.
#[derive(Clone, Default)]
pub(crate) struct Apply(pub(crate) Arc<AtomicU32>);

#[derive(Debug, thiserror::Error)]
#[error("in trouble")]
pub(crate) struct InTrouble;

impl Handler<MemoryTx> for Apply {
    type Message = Order;

    async fn handle(&self, delivery: &Delivery<Order>, tx: &mut MemoryTx) -> Result<(), HandlerError> {
        self.0.fetch_add(1, Ordering::SeqCst);
        let order = delivery.body();
        let early = |times| delivery.attempt() <= times;
        match order.trouble {
            Trouble::Transient(times) if early(times) => return Err(InTrouble.into()),
            Trouble::Unavailable(times) if self.0.load(Ordering::SeqCst) <= times => {
                return Err(HandlerError::unavailable(InTrouble));
            }
            Trouble::Conflict(times) if self.0.load(Ordering::SeqCst) <= times => {
                return Err(AdapterError::new(FaultKind::Conflict, "a deadlock").into());
            }
            Trouble::Permanent => return Err(HandlerError::permanent(InTrouble)),
            Trouble::UntilRedriven(times) if redriven(delivery) < times => {
                return Err(HandlerError::permanent(InTrouble));
            }
            Trouble::Panic => panic!("in trouble"),
            Trouble::Slow(times) if early(times) => tokio::time::sleep(Duration::from_secs(3_600)).await,
            _ => {}
        }
        tx.apply(&order.name);
        match order.trouble {
            Trouble::Swallow(times) if early(times) => tx.fail_statement(),
            Trouble::RawCommit => tx.commit_raw(),
            Trouble::RawRollback => tx.rollback_raw(),
            Trouble::RawCommitAndConflict => {
                tx.commit_raw();
                return Err(AdapterError::new(FaultKind::Conflict, "busy").into());
            }
            _ => {}
        }
        Ok(())
    }
}

/// How often a message was redriven; live ones never were.
fn redriven(delivery: &Delivery<Order>) -> u32 {
    match delivery.via() {
        Via::Live => 0,
        Via::Door => generation(&delivery.message().headers),
    }
}

pub(crate) fn order(key: &str, name: &str, trouble: Trouble) -> Message {
    let order = Order { name: name.to_owned(), trouble };
    Message::new("order").id(name).source("/tests").key(key.to_owned()).json(&order).expect("plain data")
}

pub(crate) struct Scene {
    pub(crate) broker: Broker,
    pub(crate) store: Store,
    pub(crate) handler: Apply,
    pub(crate) groups: GroupCommit,
    pub(crate) concurrency: usize,
    pub(crate) ordered: bool,
}

impl Scene {
    pub(crate) fn new() -> Self {
        let broker = Broker::new();
        broker.create("orders", 2);
        Self {
            broker,
            store: Store::new(),
            handler: Apply::default(),
            groups: GroupCommit::up_to(1),
            concurrency: 4,
            ordered: false,
        }
    }

    pub(crate) fn publish(&self, key: &str, name: &str, trouble: Trouble) {
        self.broker.publish("orders", order(key, name, trouble));
    }

    /// Runs the consumer until `done` says so, or fails after an hour of the test's clock.
    pub(crate) async fn run_until(&self, done: impl Fn(&Self) -> bool) -> Snapshot {
        let consumer = Consumer::transactional(
            "stock",
            self.broker.source("stock", ["orders"]),
            self.store.clone(),
            self.handler.clone(),
        )
        .dead_letter(self.broker.dead_letters())
        .retry(ErrorClass::Transient, RetryPolicy::fixed(Duration::from_secs(1)).max_attempts(3))
        .handler_timeout(Duration::from_secs(10))
        .group_commit(self.groups)
        .concurrency(self.concurrency);
        let consumer = if self.ordered { consumer.ordered() } else { consumer };
        let run = |stopped: oneshot::Receiver<()>| {
            consumer.run(async {
                let _ = stopped.await;
            })
        };
        self.drive(run, done).await
    }

    /// Runs a consumer until `done` says so, or fails after an hour of the test's clock.
    pub(crate) async fn drive<F>(
        &self,
        run: impl FnOnce(oneshot::Receiver<()>) -> F,
        done: impl Fn(&Self) -> bool,
    ) -> Snapshot
    where
        F: Future<Output = Result<Snapshot, RunError>> + Send + 'static,
    {
        let (stop, stopped) = oneshot::channel::<()>();
        let run = tokio::spawn(run(stopped));
        let patience = tokio::time::Instant::now() + Duration::from_secs(3_600);
        while !done(self) {
            assert!(tokio::time::Instant::now() < patience, "applied {:?}", self.store.applied());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        stop.send(()).expect("the consumer runs");
        run.await.expect("no panic").expect("an orderly end")
    }

    pub(crate) fn letters(&self) -> Vec<backstop::Envelope> {
        self.broker.published("orders.stock.dlq")
    }

    pub(crate) fn settled(&self) -> bool {
        self.broker.unsettled("stock") == 0
    }
}
