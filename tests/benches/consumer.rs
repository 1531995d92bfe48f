//! A consumer handles messages from Kafka, one transaction each, beside the same statements without it.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use backstop::inbox::{Admission, Inbox as _, Limits, Unit};
use backstop::{Consumer, Delivery, Handler, HandlerError, MessageKey, StopPartition};
use backstop_kafka::KafkaSource;
use backstop_postgres::{PgInbox, PgTx};
use sqlx::PgPool;
use sqlx::pool::PoolConnection;
use sqlx::{Connection as _, Postgres};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::event::{self, KEYS};
use crate::report::{Figure, median};
use crate::servers::unique;
use crate::{Bench, Outcome, kafka};

/// Connections, and messages handled at once.
const CONNECTIONS: usize = 16;
const PATIENCE: Duration = Duration::from_secs(300);
const CREDIT: &str = "UPDATE account SET n = n + 1 WHERE key = $1";

/// Measures all of it.
pub(crate) async fn run(bench: &mut Bench) -> Outcome<()> {
    sqlx::query("CREATE TABLE account (key text PRIMARY KEY, n bigint NOT NULL) WITH (fillfactor = 50)")
        .execute(&bench.database.pool)
        .await?;
    let topic = unique("handled");
    kafka::create_topic(&bench.servers, &topic).await?;
    kafka::produce(&bench.servers, &topic, bench.sizes.messages).await?;
    let (mut own, mut pooled, mut inbox, mut framework) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for round in 1..=bench.sizes.rounds {
        eprintln!("consumer, round {round} of {}", bench.sizes.rounds);
        own.push(bare(bench, Lending::Kept).await?);
        framework.push(consume(bench, &topic).await?);
        pooled.push(bare(bench, Lending::ForEach).await?);
        inbox.push(bare(bench, Lending::Inbox).await?);
    }
    kafka::delete_topics(&bench.servers, &[&topic]).await?;
    let (own, pooled, inbox) = (median(&own), median(&pooled), median(&inbox));
    bench.push(Figure::new("statements alone, pool.begin()", pooled, "messages/s"));
    bench.push(Figure::new("statements alone, kept connections", own, "messages/s"));
    bench.push(Figure::new("inbox without the loop", inbox, "messages/s").beside("kept connections", own));
    let consumer = Figure::new("consumer", median(&framework), "messages/s");
    bench.push(consumer.clone().beside("inbox without the loop", inbox));
    bench.push(consumer.clone().beside("pool.begin()", pooled));
    bench.push(consumer.beside("kept connections", own).ratio_at_least(0.8));
    Ok(())
}

async fn reset(bench: &Bench) -> Outcome<()> {
    sqlx::raw_sql("TRUNCATE backstop_inbox, account").execute(&bench.database.pool).await?;
    sqlx::query("INSERT INTO account SELECT 'key-' || n, 0 FROM generate_series(0, $1 - 1) AS n")
        .bind(i32::try_from(KEYS)?)
        .execute(&bench.database.pool)
        .await?;
    sqlx::raw_sql("ANALYZE backstop_inbox; ANALYZE account").execute(&bench.database.pool).await?;
    Ok(())
}

/// Every message has had its effect once.
async fn check(bench: &Bench) -> Outcome<()> {
    let applied: i64 =
        sqlx::query_scalar("SELECT sum(n)::bigint FROM account").fetch_one(&bench.database.pool).await?;
    let expected = bench.sizes.messages;
    match usize::try_from(applied) {
        Ok(applied) if applied == expected => Ok(()),
        _ => Err(format!("{applied} effects of {expected} messages").into()),
    }
}

/// Adds one to the account of the message's key.
struct Credit {
    began: std::sync::Arc<OnceLock<Instant>>,
}

impl Handler<PgTx> for Credit {
    type Message = event::Body;

    async fn handle(&self, delivery: &Delivery<event::Body>, tx: &mut PgTx) -> Result<(), HandlerError> {
        self.began.get_or_init(Instant::now);
        sqlx::query(CREDIT).bind(event::key(delivery.body().number()?)).execute(&mut **tx).await?;
        Ok(())
    }
}

/// The consumer reads the whole topic; messages a second from the first handler's start to the last settlement.
async fn consume(bench: &Bench, topic: &str) -> Outcome<f64> {
    reset(bench).await?;
    let pool = bench.database.pool_of(u32::try_from(CONNECTIONS)?).await?;
    let began = std::sync::Arc::new(OnceLock::new());
    let source = KafkaSource::subscribe(&bench.servers.kafka, unique("group"), &[topic]).door(false);
    let inbox = PgInbox::with_tables(pool.clone(), bench.database.tables()?);
    let consumer = Consumer::transactional("bench", source, inbox, Credit { began: began.clone() })
        .dead_letter(StopPartition)
        .concurrency(CONNECTIONS);
    let (stats, stop) = (consumer.stats(), CancellationToken::new());
    let running = tokio::spawn(consumer.run(stop.clone().cancelled_owned()));
    let until = Instant::now() + PATIENCE;
    while stats.snapshot().handled < bench.sizes.messages as u64 {
        if running.is_finished() || Instant::now() > until {
            return Err(format!("the consumer has stopped at {:?}", stats.snapshot()).into());
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let elapsed = began.get().ok_or("nothing was handled")?.elapsed();
    stop.cancel();
    running.await??;
    pool.close().await;
    check(bench).await?;
    Ok(bench.sizes.messages as f64 / elapsed.as_secs_f64())
}

/// How the bare loop comes by its connection.
#[derive(Debug, Clone, Copy)]
enum Lending {
    /// Each worker keeps one.
    Kept,
    /// `pool.begin()` for each message, as applications do.
    ForEach,
    /// [`PgInbox`] for each message: what the consumer does but for reading, lanes and settling.
    Inbox,
}

/// The same statements from as many workers, each with its share of the keys; messages a second.
async fn bare(bench: &Bench, lending: Lending) -> Outcome<f64> {
    reset(bench).await?;
    let pool = bench.database.pool_of(u32::try_from(CONNECTIONS)?).await?;
    let mut queues = Vec::new();
    let mut workers = Vec::new();
    for _ in 0..CONNECTIONS {
        let (queue, messages) = mpsc::channel(1_000);
        queues.push(queue);
        workers.push(match lending {
            Lending::Inbox => {
                let inbox = PgInbox::with_tables(pool.clone(), bench.database.tables()?);
                tokio::spawn(inbox_worker(inbox, messages))
            }
            Lending::Kept | Lending::ForEach => tokio::spawn(worker(pool.clone(), messages, lending)),
        });
    }
    let began = Instant::now();
    for n in 0..bench.sizes.messages {
        queues[n % KEYS % CONNECTIONS].send(n).await?;
    }
    drop(queues);
    for worker in workers {
        worker.await??;
    }
    let elapsed = began.elapsed();
    pool.close().await;
    check(bench).await?;
    Ok(bench.sizes.messages as f64 / elapsed.as_secs_f64())
}

async fn worker(pool: PgPool, mut messages: mpsc::Receiver<usize>, lending: Lending) -> Outcome<()> {
    let mut kept: Option<PoolConnection<Postgres>> = match lending {
        Lending::Kept => Some(pool.acquire().await?),
        Lending::ForEach | Lending::Inbox => None,
    };
    while let Some(n) = messages.recv().await {
        let mut tx = match &mut kept {
            Some(connection) => connection.begin().await?,
            None => pool.begin().await?,
        };
        let fresh = sqlx::query(
            "INSERT INTO backstop_inbox (consumer, message_key) VALUES ($1, $2) ON CONFLICT DO NOTHING",
        )
        .bind("bench")
        .bind(event::id(n))
        .execute(&mut *tx)
        .await?;
        if fresh.rows_affected() == 1 {
            sqlx::query(CREDIT).bind(event::key(n)).execute(&mut *tx).await?;
        }
        tx.commit().await?;
    }
    Ok(())
}

async fn inbox_worker(inbox: PgInbox, mut messages: mpsc::Receiver<usize>) -> Outcome<()> {
    while let Some(n) = messages.recv().await {
        let key = event::key(n);
        let message_key = MessageKey::new("/bench", event::id(n).as_bytes());
        let unit = Unit {
            consumer: "bench",
            place: "bench",
            ordering_key: key.as_bytes(),
            message_key: &message_key,
        };
        let Admission::Fresh(mut tx) = inbox.begin(unit, Limits::default()).await? else {
            return Err(format!("message {n} was not admitted").into());
        };
        sqlx::query(CREDIT).bind(&key).execute(&mut *tx).await?;
        inbox.commit(tx).await?;
    }
    Ok(())
}
