//! A consumer without a database, beside what it is made of: the driver's poll loop, and a loop by hand that keeps the
//! order of keys.

use std::sync::Arc;
use std::time::{Duration, Instant};

use backstop::{Consumer, Delivery, Handler, HandlerError, StopPartition};
use rdkafka::consumer::BaseConsumer;
use tokio::sync::mpsc;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::consumer::{Began, Item, Work, feed, source, until_handled};
use crate::event::{self, KEYS};
use crate::order::Order;
use crate::report::{Figure, median};
use crate::servers::unique;
use crate::{Bench, Outcome, kafka};

/// What a handler does, and how many do it at once.
#[derive(Debug, Clone, Copy)]
struct Pace {
    wait: Duration,
    concurrency: usize,
}

/// No work, with the consumer's default concurrency.
const IDLE: Pace = Pace { wait: Duration::ZERO, concurrency: 16 };

/// Handlers that wait, and do nothing else.
const WAITS: [Pace; 4] = [
    Pace { wait: Duration::from_millis(1), concurrency: 64 },
    Pace { wait: Duration::from_millis(1), concurrency: 256 },
    Pace { wait: Duration::from_millis(10), concurrency: 64 },
    Pace { wait: Duration::from_millis(10), concurrency: 256 },
];

/// Measures both: without work, and with handlers that wait.
pub(crate) async fn run(bench: &mut Bench) -> Outcome<()> {
    without_work(bench).await?;
    for pace in WAITS {
        waiting(bench, pace).await?;
    }
    Ok(())
}

async fn without_work(bench: &mut Bench) -> Outcome<()> {
    let (rounds, messages) = (bench.sizes.rounds, bench.sizes.polled);
    let topic = fill(bench, messages).await?;
    let (mut polled, mut handled) = (Vec::new(), Vec::new());
    for round in 1..=rounds {
        eprintln!("plain, round {round} of {rounds}");
        polled.push(poll(bench, &topic, messages).await?);
        handled.push(consume(bench, &topic, messages, IDLE).await?);
    }
    kafka::delete_topics(&bench.servers, &[&topic]).await?;
    let (polled, handled) = (median(&polled), median(&handled));
    bench.push(Figure::new("poll loop, only reading", polled, "messages/s"));
    let handled = Figure::new("plain consumer, no work", handled, "messages/s");
    bench.push(handled.beside("poll loop", polled).ratio_at_least(0.4));
    Ok(())
}

async fn waiting(bench: &mut Bench, pace: Pace) -> Outcome<()> {
    let (rounds, messages) = (bench.sizes.rounds, pace.messages(bench.sizes.waited));
    let name = format!("{:?} each, {} at once", pace.wait, pace.concurrency);
    let topic = fill(bench, messages).await?;
    let (mut alone, mut handled) = (Vec::new(), Vec::new());
    for round in 1..=rounds {
        eprintln!("plain, {name}, round {round} of {rounds}");
        alone.push(by_hand(bench, &topic, messages, pace).await?);
        handled.push(consume(bench, &topic, messages, pace).await?);
    }
    kafka::delete_topics(&bench.servers, &[&topic]).await?;
    let (alone, handled) = (median(&alone), median(&handled));
    let handled = Figure::new(format!("plain consumer, {name}"), handled, "messages/s");
    bench.push(handled.beside("by hand", alone).ratio_at_least(0.85));
    Ok(())
}

impl Pace {
    /// As many messages as take as long as `fastest` with 1 ms and 256 at once. The timer rounds up, by up to 1 ms.
    fn messages(self, fastest: usize) -> usize {
        let share = self.concurrency as f64 / 256.0 * 2.0 / (self.wait.as_secs_f64() * 1e3 + 1.0);
        (fastest as f64 * share).ceil() as usize
    }
}

/// A topic with so many messages.
async fn fill(bench: &Bench, messages: usize) -> Outcome<String> {
    let topic = unique("plain");
    kafka::create_topic(&bench.servers, &topic).await?;
    kafka::produce(&bench.servers, &topic, messages).await?;
    Ok(topic)
}

/// The driver alone reads the topic; messages a second.
async fn poll(bench: &Bench, topic: &str, messages: usize) -> Outcome<f64> {
    let reader = kafka::member(&bench.servers, topic)?;
    tokio::task::spawn_blocking(move || poll_all(&reader, messages)).await?
}

fn poll_all(reader: &BaseConsumer, messages: usize) -> Outcome<f64> {
    kafka::next(reader)?;
    let began = Instant::now();
    for _ in 1..messages {
        kafka::next(reader)?;
    }
    Ok(messages as f64 / began.elapsed().as_secs_f64())
}

/// Waits, and does nothing else.
struct Wait {
    wait: Duration,
    order: Arc<Order>,
    began: Began,
}

impl Handler<()> for Wait {
    type Message = event::Body;

    async fn handle(&self, delivery: &Delivery<event::Body>, (): &mut ()) -> Result<(), HandlerError> {
        self.began.get_or_init(Instant::now);
        handle(delivery.body().number()?, self.wait, &self.order).await;
        Ok(())
    }
}

/// What becomes of a message, by the consumer and by hand.
async fn handle(n: usize, wait: Duration, order: &Order) {
    order.begin(n % KEYS, n);
    if !wait.is_zero() {
        sleep(wait).await;
    }
    order.end(n % KEYS, n);
}

/// The consumer reads the whole topic; messages a second from the first handler's start to the last settlement.
async fn consume(bench: &Bench, topic: &str, messages: usize, pace: Pace) -> Outcome<f64> {
    let (began, order) = (Began::default(), Arc::new(Order::default()));
    let handler = Wait { wait: pace.wait, order: Arc::clone(&order), began: Arc::clone(&began) };
    let consumer = Consumer::plain("bench", source(bench, topic), handler)
        .dead_letter(StopPartition)
        .concurrency(pace.concurrency);
    let (stats, stop) = (consumer.stats(), CancellationToken::new());
    let running = tokio::spawn(consumer.run(stop.clone().cancelled_owned()));
    let rate = until_handled(Work::of(messages), &stats, &began, running, stop).await?;
    order.check(messages)?;
    Ok(rate)
}

/// As many tasks as the consumer has at once, each with its share of the keys and a queue; messages a second.
async fn by_hand(bench: &Bench, topic: &str, messages: usize, pace: Pace) -> Outcome<f64> {
    let order = Arc::new(Order::default());
    let mut queues = Vec::new();
    let mut workers = Vec::new();
    for _ in 0..pace.concurrency {
        let (queue, items) = mpsc::channel(1_000);
        queues.push(queue);
        workers.push(tokio::spawn(worker(items, pace.wait, Arc::clone(&order))));
    }
    let reader = kafka::member(&bench.servers, topic)?;
    let feeding = tokio::task::spawn_blocking(move || {
        let began = feed(&reader, messages, &queues);
        // The reader comes back too: that it leaves its group is not part of the work.
        (began, reader)
    });
    let (began, _reader) = feeding.await?;
    for worker in workers {
        worker.await?;
    }
    let elapsed = began?.elapsed();
    order.check(messages)?;
    Ok(messages as f64 / elapsed.as_secs_f64())
}

async fn worker(mut items: mpsc::Receiver<Item>, wait: Duration, order: Arc<Order>) {
    while let Some((n, _)) = items.recv().await {
        handle(n, wait, &order).await;
    }
}
