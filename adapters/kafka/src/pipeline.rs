//! Read, process, write: a source whose messages are settled in the transaction that publishes what came of them.

use std::sync::Arc;
use std::time::Duration;

use backstop_core::AdapterError;
use backstop_core::cloudevents::Binding;
use backstop_core::pipeline::{Aftermath, Output, SettleWith};
use backstop_core::sink::{PublishError, Scope};
use backstop_core::source::{Received, Settlement, Source, SourceInfo, SourceProgress};

use crate::assignment::KafkaSettlement;
use crate::exchange::{Entry, Exchange, Order};
use crate::line::check_size;
use crate::options::Transactions;
use crate::source::KafkaSource;
use crate::topics::check_name;

/// Reads topics, and publishes what comes of their messages in the transactions that commit the group's offsets.
///
/// Whoever reads the outputs with `isolation.level=read_committed` sees those of each message exactly once. Offsets carry
/// the group's generation (KIP-447), so that one who has lost a partition, and has not noticed, commits nothing.
///
/// A transaction begins when messages have been handled, not before, and takes along all that wait: it lasts for as long
/// as it takes to send and commit. Within a partition nothing is committed before what is in front of it, so that
/// outputs of one key keep its order. Before a partition is given back, what has been handled of it is committed.
///
/// A transaction that fails is aborted, and the same outputs are sent again: handlers are not called for it. One that
/// holds an output which brokers refuse is repeated message by message. While a topic is missing or denied, the
/// partitions whose outputs go there wait.
///
/// ```
/// use backstop_kafka::{KafkaPipeline, KafkaSource};
///
/// let orders = KafkaSource::subscribe("localhost:9092", "invoices", &["orders"]);
/// let pipeline = KafkaPipeline::new(orders).transactional_id("invoices-0");
/// ```
#[derive(Debug)]
pub struct KafkaPipeline {
    source: KafkaSource,
    limit: usize,
}

impl KafkaPipeline {
    /// A pipeline from that source to topics of the same brokers. The source reads committed messages only, and its
    /// commit interval means nothing.
    pub fn new(source: KafkaSource) -> Self {
        Self { source, limit: 1_000_000 }.change(|_| {})
    }

    /// Sets the transactional id, which no two running instances may share: the later one fences the earlier, which
    /// ends with an error. Defaults to the group and a random part, new with each start.
    ///
    /// With an id that an instance keeps over restarts, such as the name of its pod, what a crash has left open is
    /// aborted as soon as the instance is back. Otherwise it keeps readers of committed messages, and the next owner of
    /// the partition, waiting until the [timeout](KafkaPipeline::transaction_timeout).
    #[must_use]
    pub fn transactional_id(self, id: impl Into<String>) -> Self {
        let id = id.into();
        self.change(|transactions| transactions.id = Some(id))
    }

    /// Sets after how long the brokers abort a transaction whose owner is silent. Defaults to 10 s.
    #[must_use]
    pub fn transaction_timeout(self, timeout: Duration) -> Self {
        self.change(|transactions| transactions.timeout = timeout)
    }

    /// Bounds one transaction: so many messages, and so many bytes of outputs (one message may exceed them alone).
    /// Defaults to 1,000 messages and 4 MiB; zero counts as one.
    #[must_use]
    pub fn group(self, messages: usize, bytes: usize) -> Self {
        self.change(|transactions| {
            (transactions.messages, transactions.bytes) = (messages.max(1), bytes.max(1));
        })
    }

    /// Sets how long a message that is done waits for company before its transaction begins. Defaults to 5 ms; under
    /// load messages gather while the transaction before theirs is committed.
    #[must_use]
    pub fn linger(self, linger: Duration) -> Self {
        self.change(|transactions| transactions.linger = linger)
    }

    /// Sets the largest output in bytes before compression, which must not be over `max.message.bytes` of the topics.
    /// A message with a larger one is quarantined. Defaults to 1,000,000.
    #[must_use]
    pub fn max_message_bytes(mut self, bytes: usize) -> Self {
        self.limit = bytes;
        self
    }

    fn change(mut self, change: impl FnOnce(&mut Transactions)) -> Self {
        change(self.source.options_mut().transactions.get_or_insert_default());
        self
    }
}

impl Source for KafkaPipeline {
    type Settlement = KafkaHandover;

    fn describe(&self) -> SourceInfo {
        self.source.describe()
    }

    fn progress(&self) -> Option<Arc<dyn SourceProgress>> {
        self.source.progress()
    }

    async fn next(&mut self) -> Result<Option<Vec<Received<Self::Settlement>>>, AdapterError> {
        let exchange = self.source.exchange()?;
        let batch = self.source.next().await?;
        let handover = |received: Received<KafkaSettlement>| {
            let Received { message, identity, origin, via, settlement } = received;
            let settlement = KafkaHandover { settlement, exchange: exchange.clone(), limit: self.limit };
            Received { message, identity, origin, via, settlement }
        };
        Ok(batch.map(|batch| batch.into_iter().map(handover).collect()))
    }

    async fn close(self) -> Result<(), AdapterError> {
        self.source.close().await
    }
}

/// Settles one message of a pipeline, with or without outputs.
///
/// A message that is dropped unsettled holds back what comes after it in its partition, outputs included, until another
/// owner, or this one after a restart, has read it again.
#[derive(Debug)]
pub struct KafkaHandover {
    settlement: KafkaSettlement,
    exchange: Arc<Exchange>,
    limit: usize,
}

impl Settlement for KafkaHandover {
    fn begin(&mut self) -> bool {
        self.settlement.begin()
    }

    fn epoch(&self) -> u64 {
        self.settlement.epoch()
    }

    fn settle(self) {
        self.settle_with(Vec::new(), Box::new(Nothing));
    }
}

impl SettleWith for KafkaHandover {
    const BINDING: Binding = Binding::Kafka;

    fn check(&self, output: &Output) -> Result<(), PublishError> {
        let topic = &output.destination.name;
        check_name(topic).map_err(|error| PublishError::new(Scope::Destination, error))?;
        check_size(topic, &output.envelope, self.limit)
    }

    fn settle_with(self, outputs: Vec<Output>, aftermath: Box<dyn Aftermath>) {
        self.exchange.order(Order::Commit(Entry { settlement: self.settlement, outputs, aftermath }));
    }
}

/// Of a message without outputs.
struct Nothing;

impl Aftermath for Nothing {
    fn refused(&mut self, _: &PublishError) -> Option<Vec<Output>> {
        None
    }

    fn committed(self: Box<Self>) {}
}
