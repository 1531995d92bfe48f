//! A consumer handles messages from Kafka, one transaction each, beside the same statements without it.
//!
//! What groups share a transaction is in `grouped`.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use backstop::inbox::{Admission, Inbox as _, Limits, Unit};
use backstop::source::Source;
use backstop::{
    Consumer, Delivery, GroupCommit, Handler, HandlerError, MessageKey, RunError, Snapshot, Stats,
    StopPartition,
};
use backstop_kafka::KafkaSource;
use backstop_postgres::{PgInbox, PgTx};
use rdkafka::Offset;
use rdkafka::consumer::BaseConsumer;
use rdkafka::message::{Headers as _, Message as _};
use sqlx::PgPool;
use sqlx::pool::PoolConnection;
use sqlx::{Connection as _, Postgres};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::event::{self, KEYS};
use crate::report::{Figure, median};
use crate::servers::unique;
use crate::{Bench, Outcome, kafka};

/// Connections, and messages handled at once.
pub(crate) const CONNECTIONS: usize = 16;
/// The longest wait for the next message to be handled.
const PATIENCE: Duration = Duration::from_secs(300);
pub(crate) const CREDIT: &str = "UPDATE account SET n = n + 1 WHERE key = $1";

/// Messages in the inbox, and those that were overtaken within their key. Transactions are numbered when they first
/// write something, which the inbox's row is; an id ends in the message's number.
const IN_ORDER: &str = "SELECT count(*), count(*) FILTER (WHERE tx < before) FROM ( \
                        SELECT tx, lag(tx) OVER (PARTITION BY n % $1 ORDER BY n) AS before FROM ( \
                        SELECT xmin::text::bigint AS tx, right(message_key, 12)::bigint AS n \
                        FROM backstop_inbox) AS handled) AS of_key";

/// Measures all of it.
pub(crate) async fn run(bench: &mut Bench) -> Outcome<()> {
    create_account(bench).await?;
    let topic = unique("handled");
    kafka::create_topic(&bench.servers, &topic).await?;
    kafka::produce(&bench.servers, &topic, bench.sizes.messages).await?;
    let mut rates: [Vec<f64>; 5] = Default::default();
    for round in 1..=bench.sizes.rounds {
        eprintln!("consumer, round {round} of {}", bench.sizes.rounds);
        rates[0].push(bare(bench, Lending::Kept, None).await?);
        rates[1].push(bare(bench, Lending::Kept, Some(&topic)).await?);
        rates[2].push(consume(bench, &topic, Work::of(bench.sizes.messages)).await?);
        rates[3].push(bare(bench, Lending::ForEach, Some(&topic)).await?);
        rates[4].push(bare(bench, Lending::Inbox, Some(&topic)).await?);
    }
    kafka::delete_topics(&bench.servers, &[&topic]).await?;
    let [alone, kept, consumer, pooled, inbox] = rates.map(|rates| median(&rates));
    bench.push(Figure::new("statements alone, no Kafka", alone, "messages/s"));
    bench.push(Figure::new("by hand, kept connections", kept, "messages/s"));
    bench.push(Figure::new("by hand, pool.begin()", pooled, "messages/s").beside("kept connections", kept));
    bench.push(Figure::new("by hand, with the inbox", inbox, "messages/s").beside("kept connections", kept));
    let consumer = Figure::new("consumer", consumer, "messages/s");
    bench.push(consumer.clone().beside("statements alone, no Kafka", alone));
    bench.push(consumer.clone().beside("by hand, pool.begin()", pooled));
    bench.push(consumer.beside("by hand, kept connections", kept).ratio_at_least(0.9));
    Ok(())
}

/// Makes the table that handlers write to.
pub(crate) async fn create_account(bench: &Bench) -> Outcome<()> {
    let table =
        "CREATE TABLE IF NOT EXISTS account (key text PRIMARY KEY, n bigint NOT NULL) WITH (fillfactor = 50)";
    sqlx::query(table).execute(&bench.database.pool).await?;
    Ok(())
}

/// What a topic holds, and how it is handled.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Work {
    /// Messages with an id of their own.
    pub(crate) messages: usize,
    /// And so many that come again.
    pub(crate) duplicates: usize,
    /// Messages of one transaction.
    pub(crate) groups: GroupCommit,
}

impl Work {
    /// Each once, each in a transaction of its own.
    pub(crate) fn of(messages: usize) -> Self {
        Self { messages, duplicates: 0, groups: GroupCommit::up_to(1) }
    }
}

/// Empties the tables.
pub(crate) async fn reset(bench: &Bench) -> Outcome<()> {
    sqlx::raw_sql("TRUNCATE backstop_inbox, account").execute(&bench.database.pool).await?;
    sqlx::query("INSERT INTO account SELECT 'key-' || n, 0 FROM generate_series(0, $1 - 1) AS n")
        .bind(i32::try_from(KEYS)?)
        .execute(&bench.database.pool)
        .await?;
    sqlx::raw_sql("ANALYZE backstop_inbox; ANALYZE account").execute(&bench.database.pool).await?;
    Ok(())
}

/// Every message has had its effect once, in the order of its key.
pub(crate) async fn check(bench: &Bench, expected: usize) -> Outcome<()> {
    let applied: i64 =
        sqlx::query_scalar("SELECT sum(n)::bigint FROM account").fetch_one(&bench.database.pool).await?;
    match usize::try_from(applied) {
        Ok(applied) if applied == expected => check_order(bench, expected).await,
        _ => Err(format!("{applied} effects of {expected} messages").into()),
    }
}

/// Every message is in the inbox, and none was written there by an earlier transaction than one that it comes after.
pub(crate) async fn check_order(bench: &Bench, expected: usize) -> Outcome<()> {
    let (handled, overtaken): (i64, i64) =
        sqlx::query_as(IN_ORDER).bind(i32::try_from(KEYS)?).fetch_one(&bench.database.pool).await?;
    match usize::try_from(handled) {
        Ok(handled) if handled == expected && overtaken == 0 => Ok(()),
        _ => Err(format!("of {expected} messages {handled} are handled, {overtaken} out of order").into()),
    }
}

/// Adds one to the account of the message's key.
struct Credit {
    began: Began,
}

/// When the first handler started.
pub(crate) type Began = Arc<OnceLock<Instant>>;

impl Handler<PgTx> for Credit {
    type Message = event::Body;

    async fn handle(&self, delivery: &Delivery<event::Body>, tx: &mut PgTx) -> Result<(), HandlerError> {
        self.began.get_or_init(Instant::now);
        sqlx::query(CREDIT).bind(event::key(delivery.body().number()?)).execute(&mut **tx).await?;
        Ok(())
    }
}

/// The consumer reads the whole topic; messages a second from the first handler's start to the last settlement.
pub(crate) async fn consume(bench: &Bench, topic: &str, work: Work) -> Outcome<f64> {
    consume_from(bench, source(bench, topic), work).await
}

/// The same from any source.
pub(crate) async fn consume_from(bench: &Bench, source: impl Source, work: Work) -> Outcome<f64> {
    let began = Began::default();
    let rate = handle_all(bench, source, Credit { began: Arc::clone(&began) }, &began, work).await?;
    check(bench, work.messages).await?;
    Ok(rate)
}

/// The same with any handler, one that says when it began. What it has done is to be checked afterwards.
pub(crate) async fn handle_all(
    bench: &Bench,
    source: impl Source,
    handler: impl Handler<PgTx, Message = event::Body>,
    began: &Began,
    work: Work,
) -> Outcome<f64> {
    reset(bench).await?;
    let pool = bench.database.pool_of(u32::try_from(CONNECTIONS)?).await?;
    let consumer = Consumer::transactional("bench", source, PgInbox::new(pool.clone()), handler)
        .dead_letter(StopPartition)
        .group_commit(work.groups)
        .concurrency(CONNECTIONS);
    let (stats, stop) = (consumer.stats(), CancellationToken::new());
    let running = tokio::spawn(consumer.run(stop.clone().cancelled_owned()));
    let rate = until_handled(work, &stats, began, running, stop).await?;
    pool.close().await;
    Ok(rate)
}

/// The topic from its beginning, for a group that has never read it.
pub(crate) fn source(bench: &Bench, topic: &str) -> KafkaSource {
    KafkaSource::subscribe(&bench.servers.kafka, unique("group"), &[topic]).door(false)
}

/// Waits until a consumer has handled everything, and ends it; messages a second since its first handler began.
pub(crate) async fn until_handled(
    work: Work,
    stats: &Stats,
    began: &Began,
    running: JoinHandle<Result<Snapshot, RunError>>,
    stop: CancellationToken,
) -> Outcome<f64> {
    let done = (work.messages + work.duplicates) as u64;
    let (mut handled, mut moved) = (0, Instant::now());
    while handled < done {
        tokio::time::sleep(Duration::from_millis(5)).await;
        let snapshot = stats.snapshot();
        if snapshot.handled + snapshot.duplicates > handled {
            (handled, moved) = (snapshot.handled + snapshot.duplicates, Instant::now());
        } else if running.is_finished() || moved.elapsed() > PATIENCE {
            return Err(format!("the consumer has stopped at {snapshot:?}").into());
        }
    }
    let elapsed = began.get().ok_or("nothing was handled")?.elapsed();
    stop.cancel();
    let Snapshot { regrouped, failures, held, .. } = running.await??;
    if regrouped + failures > 0 {
        eprintln!("  {regrouped} groups and {failures} messages were tried again, {held} messages were held");
    }
    Ok(done as f64 / elapsed.as_secs_f64())
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

/// A message as the bare loop has it: its number and its id.
pub(crate) type Item = (usize, String);

/// A queue for each connection's worker.
pub(crate) fn queues<T>() -> (Vec<mpsc::Sender<T>>, Vec<mpsc::Receiver<T>>) {
    (0..CONNECTIONS).map(|_| mpsc::channel(1_000)).unzip()
}

/// The same statements from as many workers, each with its share of the keys: of messages that are read from the
/// topic, or are only counted. Messages a second.
async fn bare(bench: &Bench, lending: Lending, topic: Option<&str>) -> Outcome<f64> {
    reset(bench).await?;
    let pool = bench.database.pool_of(u32::try_from(CONNECTIONS)?).await?;
    let (queues, receivers) = queues();
    let mut workers = Vec::new();
    for messages in receivers {
        workers.push(match lending {
            Lending::Inbox => {
                let inbox = PgInbox::new(pool.clone());
                tokio::spawn(inbox_worker(inbox, messages))
            }
            Lending::Kept | Lending::ForEach => tokio::spawn(worker(pool.clone(), messages, lending)),
        });
    }
    let messages = bench.sizes.messages;
    let began = match topic {
        None => {
            let began = Instant::now();
            for n in 0..messages {
                queues[n % KEYS % CONNECTIONS].send((n, event::id(n))).await?;
            }
            drop(queues);
            began
        }
        Some(topic) => {
            let reader = kafka::reader(&bench.servers, topic, Offset::Beginning)?;
            tokio::task::spawn_blocking(move || feed(&reader, messages, &queues)).await??
        }
    };
    for worker in workers {
        worker.await??;
    }
    let elapsed = began.elapsed();
    pool.close().await;
    check(bench, bench.sizes.messages).await?;
    Ok(bench.sizes.messages as f64 / elapsed.as_secs_f64())
}

/// Reads so many messages, decodes them as the consumer does, and hands them out by key. When the first had come.
pub(crate) fn feed(
    reader: &BaseConsumer,
    messages: usize,
    queues: &[mpsc::Sender<Item>],
) -> Outcome<Instant> {
    let mut began = None;
    for _ in 0..messages {
        let message = kafka::next(reader)?;
        began.get_or_insert_with(Instant::now);
        let body: event::Body = serde_json::from_slice(message.payload().unwrap_or_default())?;
        let headers = message.headers().ok_or("a message has no headers")?;
        let id = headers.iter().find(|header| header.key == "ce_id").and_then(|header| header.value);
        let id = String::from_utf8(id.ok_or("a message has no id")?.to_vec())?;
        let n = body.number()?;
        queues[n % KEYS % queues.len()].blocking_send((n, id))?;
    }
    Ok(began.unwrap_or_else(Instant::now))
}

async fn worker(pool: PgPool, mut messages: mpsc::Receiver<Item>, lending: Lending) -> Outcome<()> {
    let mut kept: Option<PoolConnection<Postgres>> = match lending {
        Lending::Kept => Some(pool.acquire().await?),
        Lending::ForEach | Lending::Inbox => None,
    };
    while let Some((n, id)) = messages.recv().await {
        let mut tx = match &mut kept {
            Some(connection) => connection.begin().await?,
            None => pool.begin().await?,
        };
        let fresh = sqlx::query(
            "INSERT INTO backstop_inbox (consumer, message_key) VALUES ($1, $2) ON CONFLICT DO NOTHING",
        )
        .bind("bench")
        .bind(id)
        .execute(&mut *tx)
        .await?;
        if fresh.rows_affected() == 1 {
            sqlx::query(CREDIT).bind(event::key(n)).execute(&mut *tx).await?;
        }
        tx.commit().await?;
    }
    Ok(())
}

async fn inbox_worker(inbox: PgInbox, mut messages: mpsc::Receiver<Item>) -> Outcome<()> {
    while let Some((n, id)) = messages.recv().await {
        let key = event::key(n);
        let message_key = MessageKey::new("/bench", id.as_bytes());
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
