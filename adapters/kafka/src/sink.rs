//! One confirmed publish at a time.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use backstop_core::cloudevents::Binding;
use backstop_core::message::{Destination, Envelope};
use backstop_core::sink::{PublishError, Scope, Sink};
use backstop_core::{AdapterError, FaultKind};
use tokio::sync::oneshot::error::TryRecvError;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use crate::context::lock;
use crate::fault::hangs_up_at_once;
use crate::line::{Line, LineOptions, Outbox, Unsent};
use crate::settings::KafkaSettings;

/// Publishes that may wait for their confirmation at once.
const WINDOW: usize = 10_000;

/// A message that nobody waits for any more stays in the queue for so long. Brokers that take messages take it sooner; what
/// is dropped in a hurry, as at a shutdown, is no reason to take its neighbours back.
const PATIENCE: Duration = Duration::from_secs(5);

/// Publishes a message and waits until the brokers have stored it.
///
/// Idempotent, confirmed by all in-sync replicas, partitioned by key as the Java clients do. A destination's routing
/// key means nothing on Kafka and is not looked at. Connects at the first publish.
///
/// A publish may be dropped before its confirmation; its message may be stored all the same. Where brokers take nothing,
/// whoever drops it will try again, and the copies would all be stored in the end. So everything that still waits in
/// the queue is taken back when a publish is dropped and a message that nobody waits for has been there for 5 s, as when
/// one is not confirmed [in time](KafkaSink::publish_timeout): other publishes then fail with an unknown outcome.
///
/// ```no_run
/// use backstop_core::message::{Destination, Envelope};
/// use backstop_core::sink::Sink;
/// use backstop_kafka::{KafkaSettings, KafkaSink};
///
/// # async fn example() -> Result<(), backstop_core::sink::PublishError> {
/// let sink = KafkaSink::new(KafkaSettings::new("localhost:9092"));
/// sink.publish(&Destination::new("orders"), Envelope::default()).await
/// # }
/// ```
pub struct KafkaSink {
    line: Line<Waiters>,
    publish_timeout: Duration,
}

/// Those who wait are told through their own channel.
#[derive(Default)]
struct Waiters {
    broken: Notify,
    numbers: AtomicU64,
    /// Messages under way that nobody waits for any more, by their numbers, and since when they are under way.
    orphans: Mutex<BTreeMap<u64, Instant>>,
}

/// How one who waits is told.
struct Ticket {
    number: u64,
    waiter: oneshot::Sender<Result<(), PublishError>>,
}

impl Outbox for Waiters {
    type Ticket = Ticket;

    fn confirmed(&self, ticket: Ticket, result: Result<(), PublishError>) {
        // The waiter may have gone: its publish was cancelled or timed out.
        if ticket.waiter.send(result).is_err() {
            lock(&self.orphans).remove(&ticket.number);
        }
    }

    fn broken(&self) {
        self.broken.notify_waiters();
    }
}

/// One who waits for a confirmation.
struct Waiter<'a> {
    line: &'a Line<Waiters>,
    number: u64,
    since: Instant,
    confirmed: oneshot::Receiver<Result<(), PublishError>>,
}

impl<'a> Waiter<'a> {
    fn new(line: &'a Line<Waiters>) -> (Self, Ticket) {
        let (waiter, confirmed) = oneshot::channel();
        let number = line.out().numbers.fetch_add(1, Ordering::Relaxed);
        (Self { line, number, since: Instant::now(), confirmed }, Ticket { number, waiter })
    }

    /// Whether the message is under way, and will be told to nobody.
    fn leaves_orphan(&mut self) -> bool {
        if self.confirmed.try_recv().err() != Some(TryRecvError::Empty) {
            return false;
        }
        self.confirmed.close();
        // It may have come in between.
        self.confirmed.try_recv().is_err()
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        // Locked first: whoever finds that this one has gone looks for the orphan.
        let mut orphans = lock(&self.line.out().orphans);
        if !self.leaves_orphan() {
            return;
        }
        orphans.insert(self.number, self.since);
        let oldest = orphans.first_key_value().map(|(_, since)| *since);
        drop(orphans);
        if oldest.is_some_and(|since| since.elapsed() >= PATIENCE) {
            self.line.purge_queue();
        }
    }
}

impl KafkaSink {
    /// A sink to these brokers.
    pub fn new(settings: KafkaSettings) -> Self {
        Self::with(LineOptions {
            settings,
            linger: Duration::ZERO,
            batch: 10_000,
            window: WINDOW,
            max_message_bytes: 1_000_000,
        })
    }

    pub(crate) fn with(options: LineOptions) -> Self {
        Self { line: Line::new(options, Waiters::default()), publish_timeout: Duration::from_secs(30) }
    }

    /// Sets how long a publish waits for its confirmation; after that its outcome is unknown, and what still waits in the
    /// queue is taken back. Defaults to 30 s.
    #[must_use]
    pub fn publish_timeout(mut self, timeout: Duration) -> Self {
        self.publish_timeout = timeout;
        self
    }

    /// Sets how long a batch waits for company. Defaults to none.
    #[must_use]
    pub fn linger(self, linger: Duration) -> Self {
        self.change(|options| options.linger = linger)
    }

    /// Sets the largest message in bytes before compression, which must not be over `max.message.bytes` of the
    /// topics. Defaults to 1,000,000.
    #[must_use]
    pub fn max_message_bytes(self, bytes: usize) -> Self {
        self.change(|options| options.max_message_bytes = bytes)
    }

    fn change(self, change: impl FnOnce(&mut LineOptions)) -> Self {
        let mut options = self.line.options().clone();
        change(&mut options);
        Self { line: Line::new(options, Waiters::default()), publish_timeout: self.publish_timeout }
    }

    fn unknown(&self) -> PublishError {
        let error = AdapterError::new(
            FaultKind::Unreachable,
            format!(
                "Kafka did not confirm a message within {:?}: its outcome is unknown",
                self.publish_timeout
            ),
        );
        let complaint = self.line.complaint();
        let error = error.with_hint(if hangs_up_at_once(&complaint) {
            "check security.protocol: the brokers hang up before a word is said, as a TLS port does without TLS, and the reverse"
        } else {
            "check that the brokers run and that the topic has a leader"
        });
        PublishError::new(
            Scope::Broker,
            if complaint.is_empty() { error } else { error.with_source(complaint) },
        )
    }
}

impl Sink for KafkaSink {
    fn binding(&self) -> Binding {
        Binding::Kafka
    }

    async fn publish(&self, destination: &Destination, envelope: Envelope) -> Result<(), PublishError> {
        let (mut waiter, ticket) = Waiter::new(&self.line);
        let broken = self.line.out().broken.notified();
        match self.line.send(ticket, &destination.name, &envelope) {
            Ok(()) => {}
            Err(Unsent::Failed(error)) => return Err(error),
            Err(Unsent::Full) => {
                let error = AdapterError::new(
                    FaultKind::Unreachable,
                    "too many messages wait for Kafka's confirmation",
                )
                .with_hint("publish fewer at once, or check that the brokers run");
                return Err(PublishError::new(Scope::Broker, error));
            }
        }
        let outcome = async {
            tokio::select! {
                biased;
                outcome = &mut waiter.confirmed => return outcome,
                // Everything under way in it is told about while it is let go.
                () = broken => self.line.mend(),
            }
            (&mut waiter.confirmed).await
        };
        match tokio::time::timeout(self.publish_timeout, outcome).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(self.unknown()),
            Err(_) => {
                // Who tries again adds another copy to the queue; without this an outage would pile them up.
                self.line.purge_queue();
                Err(self.unknown())
            }
        }
    }
}

impl std::fmt::Debug for KafkaSink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KafkaSink").field("options", self.line.options()).finish_non_exhaustive()
    }
}
