//! librdkafka's mock cluster, for quick starts and tests.

use std::fmt;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use backstop_core::dead_letter::{kafka_door, kafka_letters};
use backstop_core::{AdapterError, FaultKind};
use rdkafka::error::KafkaError;
use rdkafka::mocking::MockCluster;

use crate::fault::fault;
use crate::start::DOOR_PARTITIONS;

/// A Kafka broker inside this process, reachable at a port of 127.0.0.1 until it is dropped.
///
/// Good for trying things out and for tests of at-least-once delivery. It is not Kafka:
///
/// * topics cannot be created by clients: a request for it is answered only by its timeout, so that what a consumer
///   owns is made here, with [`create_owned_topics`](MockBroker::create_owned_topics);
/// * a partition keeps 5 MiB or 100,000 batches, and silently drops the oldest;
/// * nothing is stored when it is dropped;
/// * transactions are accepted and mean nothing; there is no TLS and no SASL.
///
/// ```
/// use backstop_kafka::MockBroker;
///
/// let broker = MockBroker::start()?;
/// broker.create_topic("orders", 4)?;
/// assert!(broker.bootstrap_servers().starts_with("127.0.0.1:"));
/// # Ok::<(), backstop_core::AdapterError>(())
/// ```
pub struct MockBroker {
    bootstrap_servers: String,
    orders: Option<mpsc::Sender<Order>>,
    thread: Option<JoinHandle<()>>,
}

/// The cluster is bound to its thread, so that it takes orders.
struct Order {
    topic: String,
    partitions: i32,
    done: mpsc::Sender<Result<(), KafkaError>>,
}

impl MockBroker {
    /// Starts a cluster of one broker.
    ///
    /// # Errors
    /// When the thread, the listener or librdkafka cannot be had.
    pub fn start() -> Result<Self, AdapterError> {
        let (orders, todo) = mpsc::channel();
        let (told, started) = mpsc::channel();
        let thread = thread::Builder::new()
            .name("backstop-mock".to_owned())
            .spawn(move || serve(&told, &todo))
            .map_err(|error| {
                AdapterError::new(FaultKind::Other, "no thread for the mock broker").with_source(error)
            })?;
        let bootstrap_servers = started
            .recv()
            .map_err(|_| gone())?
            .map_err(|error| fault("the mock broker could not be started", &error))?;
        Ok(Self { bootstrap_servers, orders: Some(orders), thread: Some(thread) })
    }

    /// Where clients reach it: `host:port`.
    pub fn bootstrap_servers(&self) -> &str {
        &self.bootstrap_servers
    }

    /// Makes a topic.
    ///
    /// # Errors
    /// When it is there already or the name is not legal.
    pub fn create_topic(&self, topic: &str, partitions: i32) -> Result<(), AdapterError> {
        let (done, answer) = mpsc::channel();
        let order = Order { topic: topic.to_owned(), partitions, done };
        self.orders.as_ref().ok_or_else(gone)?.send(order).map_err(|_| gone())?;
        answer
            .recv()
            .map_err(|_| gone())?
            .map_err(|error| fault(format!("topic {topic} could not be made on the mock broker"), &error))
    }

    /// Makes what the consumer of a topic owns: its dead-letter topic with so many partitions, and its door with one.
    ///
    /// # Errors
    /// As [`create_topic`](MockBroker::create_topic).
    pub fn create_owned_topics(&self, topic: &str, group: &str, partitions: i32) -> Result<(), AdapterError> {
        self.create_topic(&kafka_letters(topic, group), partitions)?;
        self.create_topic(&kafka_door(topic, group), DOOR_PARTITIONS)
    }
}

fn serve(told: &mpsc::Sender<Result<String, KafkaError>>, todo: &mpsc::Receiver<Order>) {
    let cluster = match MockCluster::new(1) {
        Ok(cluster) => cluster,
        Err(error) => {
            let _ = told.send(Err(error));
            return;
        }
    };
    if told.send(Ok(cluster.bootstrap_servers())).is_err() {
        return;
    }
    while let Ok(order) = todo.recv() {
        let _ = order.done.send(cluster.create_topic(&order.topic, order.partitions, 1));
    }
}

fn gone() -> AdapterError {
    AdapterError::new(FaultKind::Unreachable, "the mock broker has ended")
}

impl Drop for MockBroker {
    fn drop(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            // A panic over there has been printed already.
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for MockBroker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MockBroker")
            .field("bootstrap_servers", &self.bootstrap_servers)
            .finish_non_exhaustive()
    }
}
