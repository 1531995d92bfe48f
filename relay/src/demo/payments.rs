//! The consumer of the demo: a payment service whose gateway times out, and which knows no tax rate for gift cards.

use std::time::Duration;

use backstop::{
    Consumer, Delivery, Destination, ErrorClass, Handler, HandlerError, RetryPolicy, Snapshot, Via,
};
use backstop_kafka::{KafkaDeadLetters, KafkaSettings, KafkaSink, KafkaSource};
use backstop_sqlite::{SqliteInbox, SqliteTx};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio_util::sync::CancellationToken;

use crate::commands::database;
use crate::demo::shop::{FLAKY, OrderPlaced, TOPIC};
use crate::exit::{Exit, Failure, with_cause};
use crate::supervise::Supervisor;

/// The consumer's name and its Kafka group.
pub(super) const CONSUMER: &str = "payments";
/// Where it tells what became of redriven messages, and how it stands.
pub(super) const RECEIPTS: &str = "backstop.receipts";
/// Attempts that a message has in all.
pub(super) const ATTEMPTS: u32 = 5;
/// How long a failed message waits for its next attempt.
pub(super) const RETRY_AFTER: Duration = Duration::from_millis(50);
/// Messages at once. The file has one writer at a time, and a pool has 8 connections for these and the retries.
const CONCURRENCY: usize = 4;
/// How long a message waits for its turn to write, which on a busy machine comes late: shop and relay write to the
/// same file.
const TURN: Duration = Duration::from_secs(30);
/// How many attempts to pay the flaky order fail.
const FAILURES: u32 = 3;

/// A failed attempt that will be followed by another one.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) order: String,
    pub(super) customer: String,
    pub(super) attempt: u32,
    pub(super) error: &'static str,
}

/// What can be seen of the running consumer.
#[derive(Debug)]
pub(super) struct Payments {
    /// Failed attempts as they happen.
    pub(super) failures: UnboundedReceiver<Failed>,
    stats: std::sync::Arc<backstop::Stats>,
}

impl Payments {
    /// Starts the consumer; it runs until `stop` is cancelled.
    pub(super) async fn start(
        brokers: &str,
        file: &str,
        supervisor: &mut Supervisor,
        stop: &CancellationToken,
    ) -> Result<Self, Failure> {
        let pool = backstop_sqlite::open(file).await.map_err(database)?;
        let (notes, failures) = unbounded_channel();
        let consumer = Consumer::transactional(
            CONSUMER,
            KafkaSource::subscribe(brokers, CONSUMER, &[TOPIC]),
            SqliteInbox::new(pool),
            TakePayment { notes },
        )
        .retry(ErrorClass::Transient, RetryPolicy::fixed(RETRY_AFTER).max_attempts(ATTEMPTS))
        .concurrency(CONCURRENCY)
        .lock_timeout(TURN)
        .dead_letter(KafkaDeadLetters::new(KafkaSettings::new(brokers)))
        .receipts(KafkaSink::new(KafkaSettings::new(brokers)), Destination::new(RECEIPTS));
        let stats = consumer.stats();
        let stopped = stop.clone().cancelled_owned();
        supervisor.spawn("the payment service", async move {
            let ran = Box::pin(consumer.run(stopped)).await;
            ran.map(drop).map_err(|error| {
                let hint = error.hint().unwrap_or("run it again with --log info").to_owned();
                Failure::new(Exit::Failed, format!("the payment service ended: {}", with_cause(&error)), hint)
            })
        });
        Ok(Self { failures, stats })
    }

    /// The consumer's own counters.
    pub(super) fn counters(&self) -> Snapshot {
        self.stats.snapshot()
    }
}

/// Takes the money for an order, in the transaction that also marks the event as handled.
struct TakePayment {
    notes: UnboundedSender<Failed>,
}

impl Handler<SqliteTx> for TakePayment {
    type Message = OrderPlaced;

    async fn handle(&self, delivery: &Delivery<OrderPlaced>, tx: &mut SqliteTx) -> Result<(), HandlerError> {
        let OrderPlaced { order, customer, item, cents } = delivery.body();
        let rate: Option<i64> = sqlx::query_scalar("SELECT percent FROM tax_rates WHERE item = ?")
            .bind(item)
            .fetch_optional(&mut **tx)
            .await?;
        let Some(percent) = rate else {
            return Err(HandlerError::permanent(format!("no tax rate for a {item}")));
        };
        if *order == FLAKY.id() && delivery.attempt() <= FAILURES {
            return Err(self.gateway_timed_out(delivery));
        }
        sqlx::query("INSERT INTO payments (order_id, customer, cents, attempt, via) VALUES (?, ?, ?, ?, ?)")
            .bind(order)
            .bind(customer)
            .bind(cents * (100 + percent) / 100)
            .bind(delivery.attempt())
            .bind(if delivery.via() == Via::Door { "door" } else { "live" })
            .execute(&mut **tx)
            .await?;
        Ok(())
    }
}

impl TakePayment {
    fn gateway_timed_out(&self, delivery: &Delivery<OrderPlaced>) -> HandlerError {
        const ERROR: &str = "payment gateway timed out";
        let OrderPlaced { order, customer, .. } = delivery.body();
        let failed = Failed {
            order: order.clone(),
            customer: customer.clone(),
            attempt: delivery.attempt(),
            error: ERROR,
        };
        // Nobody listens any more once the story is told.
        let _ = self.notes.send(failed);
        HandlerError::transient(ERROR)
    }
}
