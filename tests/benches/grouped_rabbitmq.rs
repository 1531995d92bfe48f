//! Messages from a RabbitMQ queue that share a transaction, beside the same statements and acks without a framework.

use std::time::{Duration, Instant};

use backstop_rabbitmq::RabbitSource;
use futures_util::StreamExt as _;
use futures_util::future::join_all;
use lapin::Acker;
use lapin::options::BasicAckOptions;
use sqlx::Postgres;
use sqlx::pool::PoolConnection;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::consumer::{CONNECTIONS, Item, Work, check, consume_from, create_account, queues, reset};
use crate::event::{self, KEYS};
use crate::grouped::{GROUP, Statements, work, write};
use crate::report::{Figure, median};
use crate::servers::unique;
use crate::{Bench, Outcome, rabbitmq};

const PATIENCE: Duration = Duration::from_secs(60);

/// Unacked messages at once, on both sides: a full group for each connection, and about as many that wait.
const PREFETCH: u16 = 2_000;

/// A message by hand, and how it is acked.
type Taken = (Item, Acker);

/// Measures it.
pub(crate) async fn run(bench: &mut Bench) -> Outcome<()> {
    create_account(bench).await?;
    let (work, rounds) = (work(bench), bench.sizes.rounds);
    let (mut alone, mut consumed) = (Vec::new(), Vec::new());
    for round in 1..=rounds {
        eprintln!("group commit from RabbitMQ, round {round} of {rounds}");
        let queue = fill(bench, work).await?;
        alone.push(by_hand(bench, &queue, work).await?);
        rabbitmq::delete_queue(&bench.servers, &queue).await?;
        let queue = fill(bench, work).await?;
        consumed.push(consume(bench, &queue, work).await?);
        rabbitmq::delete_queue(&bench.servers, &queue).await?;
    }
    let (alone, consumed) = (median(&alone), median(&consumed));
    bench.push(Figure::new("groups by hand, RabbitMQ", alone, "messages/s"));
    let consumer = Figure::new("consumer, group commit, RabbitMQ", consumed, "messages/s");
    bench.push(consumer.at_least(15_000.0).beside("groups by hand", alone).ratio_at_least(0.85));
    Ok(())
}

/// A quorum queue with all of the work.
async fn fill(bench: &Bench, work: Work) -> Outcome<String> {
    let queue = unique("grouped");
    rabbitmq::create_queue(&bench.servers, &queue).await?;
    rabbitmq::publish(&bench.servers, &queue, work.messages).await?;
    rabbitmq::publish(&bench.servers, &queue, work.duplicates).await?;
    Ok(queue)
}

/// The consumer empties the queue; messages a second.
async fn consume(bench: &Bench, queue: &str, work: Work) -> Outcome<f64> {
    let source =
        RabbitSource::consume(&bench.servers.amqp, queue).prefetch(PREFETCH).door(false).declare(false);
    consume_from(bench, source.build()?, work).await
}

/// Workers that each have their share of the keys and keep a connection; a group is what waits, and is acked when it is
/// committed. Messages a second.
async fn by_hand(bench: &Bench, queue: &str, work: Work) -> Outcome<f64> {
    reset(bench).await?;
    let pool = bench.database.pool_of(u32::try_from(CONNECTIONS)?).await?;
    let (queues, receivers) = queues();
    let mut workers = Vec::new();
    for messages in receivers {
        workers.push(tokio::spawn(worker(pool.acquire().await?, messages)));
    }
    let (connection, mut deliveries) = rabbitmq::reader(&bench.servers, queue, PREFETCH).await?;
    let count = work.messages + work.duplicates;
    let feeding = tokio::spawn(async move {
        let began = feed(&mut deliveries, count, queues).await;
        // They come back too: without them the channel is closed, on which workers still ack.
        (began, deliveries)
    });
    let (began, _deliveries) = feeding.await?;
    for worker in workers {
        worker.await??;
    }
    let elapsed = began?.elapsed();
    rabbitmq::close(&connection).await;
    pool.close().await;
    check(bench, work.messages).await?;
    Ok(count as f64 / elapsed.as_secs_f64())
}

/// Takes so many messages, decodes them as the consumer does, and hands them out by key. When the first had come.
async fn feed(
    deliveries: &mut lapin::Consumer,
    messages: usize,
    queues: Vec<mpsc::Sender<Taken>>,
) -> Outcome<Instant> {
    let mut began = None;
    for _ in 0..messages {
        let delivery = timeout(PATIENCE, deliveries.next()).await?;
        let delivery = delivery.ok_or("RabbitMQ has ended the reading of a queue")??;
        began.get_or_insert_with(Instant::now);
        let body: event::Body = serde_json::from_slice(&delivery.data)?;
        let id = delivery.properties.message_id().as_ref().ok_or("a message has no id")?;
        let (n, id) = (body.number()?, id.to_string());
        queues[n % KEYS % queues.len()].send(((n, id), delivery.acker)).await?;
    }
    Ok(began.unwrap_or_else(Instant::now))
}

async fn worker(
    mut connection: PoolConnection<Postgres>,
    mut messages: mpsc::Receiver<Taken>,
) -> Outcome<()> {
    let mut group = Vec::with_capacity(GROUP);
    while messages.recv_many(&mut group, GROUP).await > 0 {
        let (items, ackers): (Vec<Item>, Vec<Acker>) = group.drain(..).unzip();
        write(&mut connection, &items, Statements::ForEach).await?;
        let acks = ackers.iter().map(|acker| acker.ack(BasicAckOptions::default()));
        join_all(acks).await.into_iter().collect::<Result<Vec<_>, _>>()?;
    }
    Ok(())
}
