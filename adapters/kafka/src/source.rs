//! What a consumer reads from Kafka.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use backstop_core::source::{Received, Source, SourceInfo, SourceProgress};
use backstop_core::{AdapterError, FaultKind};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;

use crate::assignment::KafkaSettlement;
use crate::exchange::Exchange;
use crate::flow::Flow;
use crate::options::{Options, OutOfRange, RebalanceProtocol, StartFrom, Window};
use crate::poller::{Batch, Poller};
use crate::progress::Progress;
use crate::settings::KafkaSettings;
use crate::start::start;

/// How long leaving the group may take beyond the wait for work that has begun.
const LEAVE: Duration = Duration::from_secs(15);

/// Reads topics as a member of a consumer group.
///
/// Beside each topic it reads that topic's door, `<topic>.<group>.redrive`, through which redriven messages come in;
/// a door that is missing is made at start-up, and where that is not allowed the source warns and goes on without.
/// A name that begins with `^` is a regular expression over topic names, and has no door; it does not match letters
/// and doors, unless [`own_topics`](KafkaSource::own_topics) says so. End it with `.*` or `$`: under
/// [`RebalanceProtocol::Kip848`] brokers compare it with the whole name, otherwise with its beginning.
///
/// A thread of its own polls the brokers, so that slow handlers never cost group membership. Nothing connects before
/// the first [`next`](Source::next). Brokers that cannot be reached are waited for; refused credentials, a missing
/// topic and, unless told otherwise, an offset that is out of range end the source.
///
/// ```
/// use backstop_kafka::{KafkaSource, StartFrom};
///
/// let orders = KafkaSource::subscribe("localhost:9092", "stock", &["orders"]).start_from(StartFrom::Earliest);
/// ```
#[derive(Debug)]
pub struct KafkaSource {
    options: Options,
    progress: Progress,
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    batches: UnboundedReceiver<Batch>,
    flow: Arc<Flow>,
    left: oneshot::Receiver<Result<(), AdapterError>>,
    exchange: Option<Arc<Exchange>>,
}

impl Drop for Running {
    /// The thread gives everything back by itself; nobody waits for it here.
    fn drop(&mut self) {
        self.flow.close();
    }
}

impl KafkaSource {
    /// A source of these topics for this group. `brokers` are `host:port`, separated by commas.
    pub fn subscribe(brokers: impl Into<String>, group: impl Into<String>, topics: &[&str]) -> Self {
        let options = Options {
            settings: KafkaSettings::new(brokers),
            group: group.into(),
            topics: topics.iter().map(|topic| (*topic).to_owned()).collect(),
            start_from: StartFrom::default(),
            out_of_range: OutOfRange::default(),
            protocol: RebalanceProtocol::default(),
            id_header: None,
            partition_window: Window { messages: 2_000, bytes: 16 << 20 },
            total_window: Window { messages: 20_000, bytes: 64 << 20 },
            commit_interval: Duration::from_secs(1),
            revoke_wait: Duration::from_secs(10),
            door: true,
            own_topics: None,
            static_member: None,
            transactions: None,
        };
        Self { options, progress: Progress::default(), running: None }
    }

    /// Replaces brokers, client id and properties.
    #[must_use]
    pub fn settings(mut self, settings: KafkaSettings) -> Self {
        self.options.settings = settings;
        self
    }

    /// Sets one property of librdkafka.
    #[must_use]
    pub fn property(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.options.settings = self.options.settings.property(name, value);
        self
    }

    /// Sets where to begin in a partition without a committed offset. Defaults to the oldest message.
    #[must_use]
    pub fn start_from(mut self, start_from: StartFrom) -> Self {
        self.options.start_from = start_from;
        self
    }

    /// Sets what to do when a committed offset is gone. Defaults to [`OutOfRange::Stop`].
    #[must_use]
    pub fn out_of_range(mut self, out_of_range: OutOfRange) -> Self {
        self.options.out_of_range = out_of_range;
        self
    }

    /// Sets how the group shares partitions. Defaults to [`RebalanceProtocol::CooperativeSticky`], with heartbeats
    /// every second and a session of 6 s.
    #[must_use]
    pub fn rebalance_protocol(mut self, protocol: RebalanceProtocol) -> Self {
        self.options.protocol = protocol;
        self
    }

    /// Makes it a static member of its group, `group.instance.id`: one that takes the place of another of that name has its
    /// partitions at once, where it would wait until the brokers miss the dead one. Only one of a name may read at a time;
    /// the older one ends with an error. Partitions are not shared, so that the protocol becomes
    /// [`RebalanceProtocol::Eager`]. Defaults to none.
    #[must_use]
    pub fn static_member(mut self, name: impl Into<String>) -> Self {
        self.options.static_member = Some(name.into());
        // Under the cooperative one librdkafka does not ask the group again for a subscription that is the same.
        self.options.protocol = RebalanceProtocol::Eager;
        self
    }

    /// Names a header that carries the message id where CloudEvents' and Debezium's are absent. Defaults to none.
    #[must_use]
    pub fn id_header(mut self, name: impl Into<String>) -> Self {
        self.options.id_header = Some(name.into());
        self
    }

    /// Bounds what one partition may have under way: handed over and neither settled nor dropped. At the bound it
    /// waits, the others go on; it continues when a tenth is free, or after 10 ms with what is. Defaults to 2,000 messages
    /// and 16 MiB; zero counts as one.
    ///
    /// Beside that librdkafka keeps what it has fetched of each partition: it fetches no more from 10,000 messages or
    /// 2 MiB on, `queued.min.messages` and `queued.max.messages.kbytes`, and 1 MiB at once, `fetch.message.max.bytes`.
    #[must_use]
    pub fn window(mut self, messages: usize, bytes: usize) -> Self {
        self.options.partition_window = Window { messages: messages.max(1), bytes: bytes.max(1) };
        self
    }

    /// Bounds what all partitions together may have under way. Defaults to 20,000 messages and 64 MiB; zero counts
    /// as one.
    #[must_use]
    pub fn total_window(mut self, messages: usize, bytes: usize) -> Self {
        self.options.total_window = Window { messages: messages.max(1), bytes: bytes.max(1) };
        self
    }

    /// Sets how often settled offsets are committed. Defaults to 1 s.
    #[must_use]
    pub fn commit_interval(mut self, interval: Duration) -> Self {
        self.options.commit_interval = interval;
        self
    }

    /// Sets how long a partition that is taken away is kept for work that has begun. Defaults to 10 s; keep it well
    /// below `max.poll.interval.ms`.
    #[must_use]
    pub fn revoke_wait(mut self, wait: Duration) -> Self {
        self.options.revoke_wait = wait;
        self
    }

    /// Sets whether the doors of the topics are read too. Those that are missing are made, with one partition. Defaults
    /// to yes.
    #[must_use]
    pub fn door(mut self, door: bool) -> Self {
        self.options.door = door;
        self
    }

    /// Sets whether patterns match letters and doors too: topics that end in `.dlq` or `.redrive`, of whichever
    /// consumer. A consumer that read its own letters would handle each of its failures again and again, so that by
    /// default they match only for a source that reads no doors, as a collector of letters does. Topics that are
    /// named in full are read in any case.
    ///
    /// Under [`RebalanceProtocol::Kip848`] brokers do the matching: partitions of topics that are not to be read are
    /// assigned all the same, and left alone. There, or beside topics that are named, let patterns leave them out
    /// where an even share of the load matters.
    #[must_use]
    pub fn own_topics(mut self, own_topics: bool) -> Self {
        self.options.own_topics = Some(own_topics);
        self
    }

    #[cfg(test)]
    pub(crate) fn options(&self) -> &Options {
        &self.options
    }

    pub(crate) fn options_mut(&mut self) -> &mut Options {
        &mut self.options
    }

    /// Where the messages of a pipeline are handed over.
    pub(crate) fn exchange(&mut self) -> Result<Arc<Exchange>, AdapterError> {
        let exchange = self.running()?.exchange.clone();
        Ok(exchange.expect("a pipeline has transactions"))
    }

    fn running(&mut self) -> Result<&mut Running, AdapterError> {
        if self.running.is_none() {
            self.running = Some(Running::spawn(self.options.clone(), self.progress.clone())?);
        }
        Ok(self.running.as_mut().expect("set just above"))
    }
}

impl Running {
    fn spawn(options: Options, progress: Progress) -> Result<Self, AdapterError> {
        let options = Arc::new(options);
        let flow = Arc::new(Flow::new(options.partition_window, options.total_window));
        let (out, batches) = unbounded_channel();
        let (leave, left) = oneshot::channel();
        let transactions = options.transactions.as_ref().map(|_| Exchange::start(&options)).transpose()?;
        let (exchange, transactor) = transactions.unzip();
        let (shared, handed_over) = (flow.clone(), exchange.clone());
        thread::Builder::new()
            .name("backstop-kafka".to_owned())
            .spawn(move || {
                let left = poll(options, shared, progress, out, handed_over.clone());
                if let (Some(exchange), Some(transactor)) = (handed_over, transactor) {
                    exchange.end();
                    // A panic over there has been printed already.
                    let _ = transactor.join();
                }
                // Nobody listens when the source was dropped without a close.
                let _ = leave.send(left);
            })
            .map_err(|error| {
                exchange.iter().for_each(|exchange| exchange.end());
                AdapterError::new(FaultKind::Other, "the polling thread could not be started")
                    .with_source(error)
            })?;
        Ok(Self { batches, flow, left, exchange })
    }
}

/// The life of the polling thread: the member is closed on it too, because that can block.
fn poll(
    options: Arc<Options>,
    flow: Arc<Flow>,
    progress: Progress,
    out: UnboundedSender<Batch>,
    exchange: Option<Arc<Exchange>>,
) -> Result<(), AdapterError> {
    match start(&options, &flow, progress, exchange) {
        Ok(Some(member)) => Poller::new(member, options, flow, out).run(),
        Ok(None) => Ok(()),
        Err(error) => {
            let _ = out.send(Err(error));
            Ok(())
        }
    }
}

impl Source for KafkaSource {
    type Settlement = KafkaSettlement;

    fn describe(&self) -> SourceInfo {
        SourceInfo { system: "kafka", group: self.options.group.clone(), places: self.options.topics.clone() }
    }

    fn progress(&self) -> Option<Arc<dyn SourceProgress>> {
        Some(Arc::new(self.progress.clone()))
    }

    async fn next(&mut self) -> Result<Option<Vec<Received<Self::Settlement>>>, AdapterError> {
        self.running()?.batches.recv().await.transpose()
    }

    async fn close(mut self) -> Result<(), AdapterError> {
        let Some(mut running) = self.running.take() else { return Ok(()) };
        running.flow.close();
        running.batches.close();
        // What was never looked at is given up now, so that nobody waits for it.
        while running.batches.try_recv().is_ok() {}
        match tokio::time::timeout(self.options.revoke_wait + LEAVE, &mut running.left).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => {
                Err(AdapterError::new(FaultKind::Other, "the polling thread ended before its time"))
            }
            Err(_) => {
                Err(AdapterError::new(FaultKind::Unreachable, "leaving the consumer group took too long")
                    .with_hint("the last settlements may not be stored; their messages come again"))
            }
        }
    }
}
