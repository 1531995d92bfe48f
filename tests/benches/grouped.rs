//! Group commit: the handler is called for each message, and messages share a transaction; beside the same statements
//! without a framework.

use std::time::Instant;

use backstop::GroupCommit;
use rdkafka::Offset;
use sqlx::pool::PoolConnection;
use sqlx::{Connection as _, Postgres};
use tokio::sync::mpsc;

use crate::consumer::{CONNECTIONS, CREDIT, Item, Work, check, consume, create_account, feed, reset};
use crate::event;
use crate::report::{Figure, median};
use crate::servers::unique;
use crate::{Bench, Outcome, kafka};

/// Messages of one transaction, at most.
const GROUP: usize = 64;

/// The inbox rows of a group in one statement; returned are those that are new.
const ADMIT: &str = "INSERT INTO backstop_inbox (consumer, message_key) SELECT 'bench', id FROM unnest($1::text[]) AS id \
                     ORDER BY id ON CONFLICT DO NOTHING RETURNING message_key";

/// Measures it. One message of a hundred comes twice.
pub(crate) async fn run(bench: &mut Bench) -> Outcome<()> {
    create_account(bench).await?;
    let work = Work {
        messages: bench.sizes.grouped,
        duplicates: bench.sizes.grouped / 100,
        groups: GroupCommit::up_to(GROUP),
    };
    let topic = unique("grouped");
    kafka::create_topic(&bench.servers, &topic).await?;
    kafka::produce(&bench.servers, &topic, work.messages).await?;
    kafka::produce(&bench.servers, &topic, work.duplicates).await?;
    let mut rates: [Vec<f64>; 2] = Default::default();
    for round in 1..=bench.sizes.rounds {
        eprintln!("group commit, round {round} of {}", bench.sizes.rounds);
        rates[0].push(by_hand(bench, &topic, work).await?);
        rates[1].push(consume(bench, &topic, work).await?);
    }
    kafka::delete_topics(&bench.servers, &[&topic]).await?;
    let [by_hand, consumer] = rates.map(|rates| median(&rates));
    bench.push(Figure::new("groups by hand", by_hand, "messages/s"));
    let consumer = Figure::new("consumer, group commit", consumer, "messages/s");
    bench.push(consumer.at_least(28_000.0).beside("groups by hand", by_hand).ratio_at_least(0.85));
    Ok(())
}

/// Workers that each have their share of the keys and keep a connection; a group is what waits. Messages a second.
async fn by_hand(bench: &Bench, topic: &str, work: Work) -> Outcome<f64> {
    reset(bench).await?;
    let pool = bench.database.pool_of(u32::try_from(CONNECTIONS)?).await?;
    let mut queues = Vec::new();
    let mut workers = Vec::new();
    for _ in 0..CONNECTIONS {
        let (queue, messages) = mpsc::channel(1_000);
        queues.push(queue);
        workers.push(tokio::spawn(worker(pool.acquire().await?, messages)));
    }
    let reader = kafka::reader(&bench.servers, topic, Offset::Beginning)?;
    let count = work.messages + work.duplicates;
    let began: Instant = tokio::task::spawn_blocking(move || feed(&reader, count, &queues)).await??;
    for worker in workers {
        worker.await??;
    }
    let elapsed = began.elapsed();
    pool.close().await;
    check(bench, work.messages).await?;
    Ok(count as f64 / elapsed.as_secs_f64())
}

async fn worker(mut connection: PoolConnection<Postgres>, mut messages: mpsc::Receiver<Item>) -> Outcome<()> {
    let mut group: Vec<Item> = Vec::with_capacity(GROUP);
    while messages.recv_many(&mut group, GROUP).await > 0 {
        let mut tx = connection.begin().await?;
        let ids: Vec<&str> = group.iter().map(|(_, id)| id.as_str()).collect();
        let mut fresh: std::collections::HashSet<String> =
            sqlx::query_scalar(ADMIT).bind(ids).fetch_all(&mut *tx).await?.into_iter().collect();
        for (n, id) in &group {
            if fresh.remove(id) {
                sqlx::query(CREDIT).bind(event::key(*n)).execute(&mut *tx).await?;
            }
        }
        tx.commit().await?;
        group.clear();
    }
    Ok(())
}
