//! Messages that share a transaction: the handler is called for each of them, or once for all; each beside the same
//! statements without a framework.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use backstop::{BatchHandler, Consumer, Delivery, GroupCommit, HandlerError, Outcomes, StopPartition};
use backstop_postgres::{PgInbox, PgTx};
use rdkafka::Offset;
use sqlx::pool::PoolConnection;
use sqlx::{Connection as _, Postgres};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::consumer::{
    Began, CONNECTIONS, CREDIT, Item, Work, check, consume, create_account, feed, queues, reset, source,
    until_handled,
};
use crate::event;
use crate::report::{Figure, median};
use crate::servers::unique;
use crate::{Bench, Outcome, kafka};

/// Messages of one transaction, at most, where the handler is called for each.
pub(crate) const GROUP: usize = 64;
/// The same where it is called for all.
pub(crate) const BATCH: usize = 500;

/// Adds to the accounts of all keys at once.
const CREDIT_ALL: &str = "UPDATE account SET n = account.n + more.n \
                          FROM (SELECT key, count(*) AS n FROM unnest($1::text[]) AS key GROUP BY key) AS more \
                          WHERE account.key = more.key";

/// The inbox rows of a group in one statement; returned are those that are new.
const ADMIT: &str = "INSERT INTO backstop_inbox (consumer, message_key) SELECT 'bench', id FROM unnest($1::text[]) AS id \
                     ORDER BY id ON CONFLICT DO NOTHING RETURNING message_key";

/// Messages for groups, of which one in a hundred comes again.
pub(crate) fn work(bench: &Bench) -> Work {
    let messages = bench.sizes.grouped;
    Work { messages, duplicates: messages / 100, groups: GroupCommit::up_to(GROUP) }
}

/// Measures it.
pub(crate) async fn run(bench: &mut Bench) -> Outcome<()> {
    create_account(bench).await?;
    let work = work(bench);
    let topic = fill(bench, work).await?;
    let batches = Work { groups: GroupCommit::up_to(BATCH), ..work };
    let mut rates: [Vec<f64>; 4] = Default::default();
    for round in 1..=bench.sizes.rounds {
        eprintln!("group commit, round {round} of {}", bench.sizes.rounds);
        rates[0].push(by_hand(bench, &topic, work, Statements::ForEach).await?);
        rates[1].push(consume(bench, &topic, work).await?);
        rates[2].push(by_hand(bench, &topic, batches, Statements::ForAll).await?);
        rates[3].push(consume_batches(bench, &topic, batches).await?);
    }
    kafka::delete_topics(&bench.servers, &[&topic]).await?;
    let [by_hand, consumer, batches_by_hand, batches] = rates.map(|rates| median(&rates));
    bench.push(Figure::new("groups by hand", by_hand, "messages/s"));
    let consumer = Figure::new("consumer, group commit", consumer, "messages/s");
    bench.push(consumer.at_least(28_000.0).beside("groups by hand", by_hand).ratio_at_least(0.85));
    bench.push(Figure::new("batches by hand", batches_by_hand, "messages/s"));
    let batches = Figure::new("consumer, batches", batches, "messages/s");
    bench.push(batches.at_least(90_000.0).beside("batches by hand", batches_by_hand).ratio_at_least(0.75));
    Ok(())
}

/// A topic with all of the work.
pub(crate) async fn fill(bench: &Bench, work: Work) -> Outcome<String> {
    let topic = unique("grouped");
    kafka::create_topic(&bench.servers, &topic).await?;
    kafka::produce(&bench.servers, &topic, work.messages).await?;
    kafka::produce(&bench.servers, &topic, work.duplicates).await?;
    Ok(topic)
}

/// Adds to the accounts of its messages' keys with one statement.
struct CreditAll {
    began: Began,
}

impl BatchHandler<PgTx> for CreditAll {
    type Message = event::Body;

    async fn handle(
        &self,
        batch: &[&Delivery<event::Body>],
        tx: &mut PgTx,
    ) -> Result<Outcomes, HandlerError> {
        self.began.get_or_init(Instant::now);
        let keys: Result<Vec<String>, _> =
            batch.iter().map(|delivery| delivery.body().number().map(event::key)).collect();
        sqlx::query(CREDIT_ALL).bind(keys?).execute(&mut **tx).await?;
        Ok(Outcomes::handled())
    }
}

/// The consumer reads the whole topic in batches; messages a second.
pub(crate) async fn consume_batches(bench: &Bench, topic: &str, work: Work) -> Outcome<f64> {
    reset(bench).await?;
    let pool = bench.database.pool_of(u32::try_from(CONNECTIONS)?).await?;
    let began = Began::default();
    let handler = CreditAll { began: Arc::clone(&began) };
    let consumer = Consumer::batch("bench", source(bench, topic), PgInbox::new(pool.clone()), handler)
        .dead_letter(StopPartition)
        .group_commit(work.groups)
        .concurrency(CONNECTIONS);
    let (stats, stop) = (consumer.stats(), CancellationToken::new());
    let running = tokio::spawn(consumer.run(stop.clone().cancelled_owned()));
    let rate = until_handled(work, &stats, &began, running, stop).await?;
    pool.close().await;
    check(bench, work.messages).await?;
    Ok(rate)
}

/// How a group's effects are written.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Statements {
    /// By one for each message.
    ForEach,
    /// By one for all.
    ForAll,
}

/// Workers that each have their share of the keys and keep a connection; a group is what waits. Messages a second.
async fn by_hand(bench: &Bench, topic: &str, work: Work, statements: Statements) -> Outcome<f64> {
    reset(bench).await?;
    let pool = bench.database.pool_of(u32::try_from(CONNECTIONS)?).await?;
    let (queues, receivers) = queues();
    let mut workers = Vec::new();
    for messages in receivers {
        workers.push(tokio::spawn(worker(pool.acquire().await?, messages, statements)));
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

async fn worker(
    mut connection: PoolConnection<Postgres>,
    mut messages: mpsc::Receiver<Item>,
    statements: Statements,
) -> Outcome<()> {
    let most = match statements {
        Statements::ForEach => GROUP,
        Statements::ForAll => BATCH,
    };
    let mut group: Vec<Item> = Vec::with_capacity(most);
    while messages.recv_many(&mut group, most).await > 0 {
        write(&mut connection, &group, statements).await?;
        group.clear();
    }
    Ok(())
}

/// Inbox rows and effects of a group, in one transaction.
pub(crate) async fn write(
    connection: &mut PoolConnection<Postgres>,
    group: &[Item],
    statements: Statements,
) -> Outcome<()> {
    let mut tx = connection.begin().await?;
    let ids: Vec<&str> = group.iter().map(|(_, id)| id.as_str()).collect();
    let mut fresh: HashSet<String> =
        sqlx::query_scalar(ADMIT).bind(ids).fetch_all(&mut *tx).await?.into_iter().collect();
    let keys: Vec<String> =
        group.iter().filter(|(_, id)| fresh.remove(id)).map(|(n, _)| event::key(*n)).collect();
    match statements {
        Statements::ForEach => {
            for key in keys {
                sqlx::query(CREDIT).bind(key).execute(&mut *tx).await?;
            }
        }
        Statements::ForAll => {
            sqlx::query(CREDIT_ALL).bind(keys).execute(&mut *tx).await?;
        }
    }
    Ok(tx.commit().await?)
}
