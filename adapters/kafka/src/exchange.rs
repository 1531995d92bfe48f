//! What the polling thread and the thread of transactions tell each other.

use std::sync::{Arc, Mutex, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use backstop_core::pipeline::{Aftermath, Output};
use backstop_core::{AdapterError, FaultKind};
use rdkafka::consumer::{Consumer as _, ConsumerGroupMetadata};

use crate::assignment::{Assigned, KafkaSettlement};
use crate::context::lock;
use crate::group::Member;
use crate::options::Options;
use crate::transactor::Transactor;

/// How long a transaction may go on that was under way when the source ended: as long as a call to brokers that answer.
const FAREWELL: Duration = Duration::from_secs(5);

/// A message that was handed over.
pub(crate) struct Entry {
    pub(crate) settlement: KafkaSettlement,
    pub(crate) outputs: Vec<Output>,
    pub(crate) aftermath: Box<dyn Aftermath>,
}

/// What the thread of transactions is told.
pub(crate) enum Order {
    /// A message is done.
    Commit(Entry),
    /// The place where reading a partition began is to be committed although nothing was read.
    Floor(Arc<Assigned>, i64),
    /// Partitions are being given back: look again.
    Look,
}

/// Shared by both threads and by every settlement.
pub(crate) struct Exchange {
    orders: mpsc::Sender<Order>,
    /// By what the brokers know that a commit comes from the present owner. Taken on the polling thread, where
    /// partitions come and go.
    standing: Mutex<Option<Arc<ConsumerGroupMetadata>>>,
    failure: Mutex<Option<AdapterError>>,
    ended: Mutex<Option<Instant>>,
}

impl Exchange {
    /// Starts the thread of transactions.
    ///
    /// # Errors
    /// When there is no thread.
    pub(crate) fn start(options: &Arc<Options>) -> Result<(Arc<Self>, JoinHandle<()>), AdapterError> {
        let (orders, todo) = mpsc::channel();
        let exchange = Arc::new(Self {
            orders,
            standing: Mutex::new(None),
            failure: Mutex::new(None),
            ended: Mutex::new(None),
        });
        let transactor = Transactor::new(exchange.clone(), options.clone(), todo);
        let thread = thread::Builder::new()
            .name("backstop-kafka-tx".to_owned())
            .spawn(move || transactor.run())
            .map_err(|error| {
                AdapterError::new(FaultKind::Other, "the thread of transactions could not be started")
                    .with_source(error)
            })?;
        Ok((exchange, thread))
    }

    pub(crate) fn order(&self, order: Order) {
        // Where the thread has ended, what it is told is dropped, and its messages come again; nobody may read on then.
        if self.orders.send(order).is_err() && !self.has_ended() {
            self.fail(AdapterError::new(
                FaultKind::Other,
                "the thread of transactions ended before its time",
            ));
        }
    }

    /// Renews the standing, on the polling thread alone. A member that has lost its partitions has none: it must not
    /// commit before it has noticed which.
    pub(crate) fn stand(&self, member: &Member) {
        // The loss is asked for last: one that comes in between has made a standing of nobody, which brokers would let
        // commit anything.
        let standing = member.group_metadata().filter(|_| !member.assignment_lost());
        *lock(&self.standing) = standing.map(Arc::new);
    }

    pub(crate) fn standing(&self) -> Option<Arc<ConsumerGroupMetadata>> {
        lock(&self.standing).clone()
    }

    /// Ends the source; the first error stays.
    pub(crate) fn fail(&self, error: AdapterError) {
        lock(&self.failure).get_or_insert(error);
    }

    pub(crate) fn take_failure(&self) -> Option<AdapterError> {
        lock(&self.failure).take()
    }

    /// Asks the thread of transactions to end.
    pub(crate) fn end(&self) {
        lock(&self.ended).get_or_insert_with(Instant::now);
        self.order(Order::Look);
    }

    pub(crate) fn has_ended(&self) -> bool {
        lock(&self.ended).is_some()
    }

    /// Whether brokers that do not answer are not to be waited for any longer.
    pub(crate) fn is_overdue(&self) -> bool {
        lock(&self.ended).is_some_and(|ended| ended.elapsed() >= FAREWELL)
    }
}

impl std::fmt::Debug for Exchange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Exchange").finish_non_exhaustive()
    }
}
