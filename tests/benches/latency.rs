//! From commit to broker and to effect, under steady load and on an idle system.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use backstop::{Consumer, Delivery, Handler, HandlerError, Message, Outgoing, StopPartition};
use backstop_kafka::{KafkaPublisher, KafkaSettings, KafkaSource};
use backstop_postgres::{PgInbox, PgOutbox, PgTx};
use rdkafka::{Message as _, Offset};
use sqlx::postgres::PgListener;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;

use crate::event;
use crate::relay::Relay;
use crate::report::{Figure, quantile};
use crate::servers::unique;
use crate::{Bench, Outcome, kafka};

/// Commits a second of the steady load, shared by the writers.
const RATE: usize = 500;
const WRITERS: usize = 4;
/// Between two single messages; longer than any poll interval or batch.
const PAUSE: Duration = Duration::from_millis(700);
const PATIENCE: Duration = Duration::from_secs(30);

/// When each event was where.
#[derive(Debug, Default)]
struct Times(Mutex<HashMap<usize, Instant>>);

impl Times {
    fn note(&self, n: usize) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(n).or_insert_with(Instant::now);
    }

    fn count(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    fn of(&self, n: usize) -> Option<Instant> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&n).copied()
    }
}

#[derive(Debug, Default, Clone)]
struct Clock {
    committed: Arc<Times>,
    on_broker: Arc<Times>,
    applied: Arc<Times>,
    over: Arc<AtomicBool>,
}

/// Measures all of it, through one relay and one consumer.
pub(crate) async fn run(bench: &mut Bench) -> Outcome<()> {
    let topic = unique("latency");
    kafka::create_topic(&bench.servers, &topic).await?;
    bench.database.fill(&topic, 0).await?;
    sqlx::query("CREATE TABLE tally (key text PRIMARY KEY, n bigint NOT NULL) WITH (fillfactor = 50)")
        .execute(&bench.database.pool)
        .await?;
    sqlx::query("INSERT INTO tally SELECT 'key-' || n, 0 FROM generate_series(0, $1 - 1) AS n")
        .bind(i32::try_from(event::KEYS)?)
        .execute(&bench.database.pool)
        .await?;
    let clock = Clock::default();
    let watcher = watch_broker(bench, &topic, &clock)?;
    watch_effects(bench, &clock).await?;
    let publisher = KafkaPublisher::new(KafkaSettings::new(&bench.servers.kafka));
    let relay = Relay::start(&bench.database, Box::new(publisher))?;
    let consumer = start_consumer(bench, &topic).await?;
    let figures = measure(bench, &topic, &clock).await;
    clock.over.store(true, Ordering::Relaxed);
    consumer.cancel();
    relay.stop().await?;
    watcher.await??;
    kafka::delete_topics(&bench.servers, &[&topic]).await?;
    figures?.into_iter().for_each(|figure| bench.push(figure));
    Ok(())
}

async fn measure(bench: &Bench, topic: &str, clock: &Clock) -> Outcome<Vec<Figure>> {
    eprintln!("latency, warming up");
    let warm = 0..RATE * 2;
    write_steadily(bench, topic, clock, warm.clone()).await?;
    arrived(clock, warm.end).await?;
    eprintln!("latency, {RATE} commits/s for {:?}", bench.sizes.steady);
    let steady = warm.end..warm.end + RATE * usize::try_from(bench.sizes.steady.as_secs())?;
    let began = Instant::now();
    write_steadily(bench, topic, clock, steady.clone()).await?;
    let rate = steady.len() as f64 / began.elapsed().as_secs_f64();
    arrived(clock, steady.end).await?;
    eprintln!("latency, {} single messages", bench.sizes.singles);
    let singles = steady.end..steady.end + bench.sizes.singles;
    let outbox = PgOutbox::with_tables(&bench.database.tables()?);
    for n in singles.clone() {
        sleep(PAUSE).await;
        commit(bench, &outbox, topic, clock, n).await?;
    }
    arrived(clock, singles.end).await?;
    let mut figures = vec![Figure::new("commits under steady load", rate, "commits/s")];
    let name = |path: &str| format!("commit -> {path} at {RATE}/s");
    figures.extend(quantiles(&name("broker"), &clock.between(&clock.on_broker, steady.clone()), Some(15.0)));
    figures.extend(quantiles(&name("effect"), &clock.between(&clock.applied, steady), None));
    figures.extend(extremes(
        "idle, commit -> broker",
        &clock.between(&clock.on_broker, singles.clone()),
        Some(60.0),
    ));
    figures.extend(extremes("idle, commit -> effect", &clock.between(&clock.applied, singles), None));
    Ok(figures)
}

fn quantiles(name: &str, times: &[f64], median_at_most: Option<f64>) -> Vec<Figure> {
    let figure = |label: &str, share| Figure::new(format!("{name}, {label}"), quantile(times, share), "ms");
    let median = figure("p50", 0.5);
    let median = median_at_most.into_iter().fold(median, Figure::at_most);
    vec![median, figure("p95", 0.95), figure("p99", 0.99)]
}

fn extremes(name: &str, times: &[f64], at_most: Option<f64>) -> Vec<Figure> {
    let longest = Figure::new(format!("{name}, longest"), quantile(times, 1.0), "ms");
    let longest = at_most.into_iter().fold(longest, Figure::at_most);
    vec![Figure::new(format!("{name}, p50"), quantile(times, 0.5), "ms"), longest]
}

impl Clock {
    /// Milliseconds from the commit to there.
    fn between(&self, there: &Times, events: std::ops::Range<usize>) -> Vec<f64> {
        let taken = |n| {
            let (committed, there) = (self.committed.of(n)?, there.of(n)?);
            Some(there.saturating_duration_since(committed).as_secs_f64() * 1_000.0)
        };
        events.filter_map(taken).collect()
    }
}

async fn write_steadily(
    bench: &Bench,
    topic: &str,
    clock: &Clock,
    events: std::ops::Range<usize>,
) -> Outcome<()> {
    let outbox = PgOutbox::with_tables(&bench.database.tables()?);
    let writer = async |first: usize| -> Outcome<()> {
        sleep(Duration::from_secs_f64(first as f64 / RATE as f64)).await;
        let mut ticks = interval(Duration::from_secs_f64(WRITERS as f64 / RATE as f64));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        for n in events.clone().skip(first).step_by(WRITERS) {
            ticks.tick().await;
            commit(bench, &outbox, topic, clock, n).await?;
        }
        Ok(())
    };
    futures_util::future::try_join_all((0..WRITERS).map(writer)).await?;
    Ok(())
}

/// One business transaction with one event. Its time is taken when the answer to COMMIT is here.
async fn commit(bench: &Bench, outbox: &PgOutbox, topic: &str, clock: &Clock, n: usize) -> Outcome<()> {
    let message = Message::new("bench.event")
        .source("/bench")
        .key(event::key(n))
        .body("application/json", event::payload(n));
    let mut tx = bench.database.pool.begin().await?;
    outbox.enqueue(&mut tx, Outgoing::to(topic, message)).await?;
    tx.commit().await?;
    clock.committed.note(n);
    Ok(())
}

/// Waits until so many events have had their effect.
async fn arrived(clock: &Clock, events: usize) -> Outcome<()> {
    let until = Instant::now() + PATIENCE;
    while clock.applied.count() < events || clock.on_broker.count() < events {
        if Instant::now() > until {
            let (broker, applied) = (clock.on_broker.count(), clock.applied.count());
            return Err(format!("of {events} events {broker} are on the broker, {applied} applied").into());
        }
        sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

type Watcher = tokio::task::JoinHandle<Outcome<()>>;

/// Reads the topic on a thread of its own.
fn watch_broker(bench: &Bench, topic: &str, clock: &Clock) -> Outcome<Watcher> {
    let reader = kafka::reader(&bench.servers, topic, Offset::Beginning)?;
    let clock = clock.clone();
    Ok(tokio::task::spawn_blocking(move || {
        while !clock.over.load(Ordering::Relaxed) {
            if let Some(message) = reader.poll(Duration::from_millis(100)) {
                clock
                    .on_broker
                    .note(event::number(message?.payload().unwrap_or_default()).ok_or("not ours")?);
            }
        }
        Ok(())
    }))
}

/// Listens for the notification that becomes visible together with each effect.
async fn watch_effects(bench: &Bench, clock: &Clock) -> Outcome<()> {
    let mut listener = PgListener::connect_with(&bench.database.pool).await?;
    listener.listen(&bench.database.schema).await?;
    let clock = clock.clone();
    tokio::spawn(async move {
        while !clock.over.load(Ordering::Relaxed) {
            let Ok(notification) = listener.recv().await else { return };
            if let Ok(n) = notification.payload().parse() {
                clock.applied.note(n);
            }
        }
    });
    Ok(())
}

/// Applies a message and tells the listener.
struct Tally {
    channel: String,
}

impl Handler<PgTx> for Tally {
    type Message = event::Body;

    async fn handle(&self, delivery: &Delivery<event::Body>, tx: &mut PgTx) -> Result<(), HandlerError> {
        let n = delivery.body().number()?;
        sqlx::query("UPDATE tally SET n = n + 1 WHERE key = $1 RETURNING pg_notify($2, $3)")
            .bind(event::key(n))
            .bind(&self.channel)
            .bind(n.to_string())
            .execute(&mut **tx)
            .await?;
        Ok(())
    }
}

async fn start_consumer(bench: &Bench, topic: &str) -> Outcome<CancellationToken> {
    let pool = bench.database.pool_of(16).await?;
    let source = KafkaSource::subscribe(&bench.servers.kafka, unique("group"), &[topic]).door(false);
    let inbox = PgInbox::with_tables(pool, bench.database.tables()?);
    let handler = Tally { channel: bench.database.schema.clone() };
    let consumer = Consumer::transactional("latency", source, inbox, handler).dead_letter(StopPartition);
    let stop = CancellationToken::new();
    let running = consumer.run(stop.clone().cancelled_owned());
    tokio::spawn(async move {
        if let Err(error) = running.await {
            eprintln!("the consumer has ended: {error}");
        }
    });
    Ok(stop)
}
