//! One confirmed publish at a time.

use std::time::Duration;

use backstop_core::cloudevents::Binding;
use backstop_core::message::{Destination, Envelope};
use backstop_core::sink::{PublishError, Scope, Sink};
use backstop_core::{AdapterError, FaultKind};
use tokio::sync::{Notify, oneshot};

use crate::fault::hangs_up_at_once;
use crate::line::{Line, LineOptions, Outbox, Unsent};
use crate::settings::KafkaSettings;

/// Publishes that may wait for their confirmation at once.
const WINDOW: usize = 10_000;

/// Publishes a message and waits until the brokers have stored it.
///
/// Idempotent, confirmed by all in-sync replicas, partitioned by key as the Java clients do. A destination's routing
/// key means nothing on Kafka and is not looked at. Connects at the first publish.
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
}

impl Outbox for Waiters {
    type Ticket = oneshot::Sender<Result<(), PublishError>>;

    fn confirmed(&self, ticket: Self::Ticket, result: Result<(), PublishError>) {
        // The waiter may have gone: its publish was cancelled or timed out.
        let _ = ticket.send(result);
    }

    fn broken(&self) {
        self.broken.notify_waiters();
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

    /// Sets how long a publish waits for its confirmation; after that its outcome is unknown. Defaults to 30 s.
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
        let (ticket, mut confirmed) = oneshot::channel();
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
                outcome = &mut confirmed => return outcome,
                // Everything under way in it is told about while it is let go.
                () = broken => self.line.mend(),
            }
            confirmed.await
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
