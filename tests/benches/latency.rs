//! From commit to broker and to effect, under steady load and on an idle system.

use std::ops::Range;
use std::time::Duration;

use backstop::GroupCommit;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use crate::broker::Broker;
use crate::clock::{Times, between};
use crate::database::Database;
use crate::effects::Effects;
use crate::event;
use crate::outbox::{Backlog, Outbox as _};
use crate::relay::Relay;
use crate::report::{Figure, quantile};
use crate::servers::unique;
use crate::{Bench, Outcome, kafka};

/// Share the steady load. Each key has one of them.
const WRITERS: usize = 8;
const _: () = assert!(event::KEYS.is_multiple_of(WRITERS));
/// How long the load lasts before it is measured, in seconds.
const WARM: usize = 1;
/// Between two single messages; longer than any poll interval or batch.
const PAUSE: Duration = Duration::from_millis(700);

/// Where a message is to arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum There {
    Broker,
    Effect,
}

/// Which events were committed how.
#[derive(Debug, Clone)]
struct Load {
    steady: Range<usize>,
    singles: Range<usize>,
    /// Commits a second that were reached.
    rate: f64,
}

/// Measures the way to the broker without any consumer, then the whole way.
pub(crate) async fn run(bench: &mut Bench) -> Outcome<()> {
    for there in [There::Broker, There::Effect] {
        let database = Database::fresh(&bench.servers, "latency").await?;
        let figures = measure(bench, &database, there).await;
        database.drop().await?;
        figures?.into_iter().for_each(|figure| bench.push(figure));
    }
    Ok(())
}

async fn measure(bench: &Bench, database: &Database, there: There) -> Outcome<Vec<Figure>> {
    let servers = &bench.servers;
    let (topic, committed) = (unique("latency"), Times::default());
    kafka::create_timed_topic(servers, &topic).await?;
    let effects = match there {
        There::Broker => None,
        There::Effect => Some(Effects::start(servers, database, &topic, GroupCommit::up_to(1)).await?),
    };
    let relay = Relay::start(servers, database.store(), Broker::Kafka)?;
    let load = write(bench, database, &topic, &committed).await?;
    database.gone(database.last_seq().await?).await?;
    let arrived = match effects {
        None => kafka::arrivals(servers, &topic).await?,
        Some(effects) => effects.all(load.singles.end).await?,
    };
    relay.stop().await?;
    let all = Backlog::to(&topic, 0..load.singles.end).check();
    Broker::Kafka.read_back(servers, &topic, all).await?.once()?;
    Broker::Kafka.delete(servers, &topic).await?;
    let steady = between(&committed, &arrived, load.steady);
    let singles = between(&committed, &arrived, load.singles);
    Ok(figures(there, bench.sizes.rate, load.rate, &steady, &singles))
}

fn figures(there: There, asked: usize, reached: f64, steady: &[f64], singles: &[f64]) -> Vec<Figure> {
    let (name, limits) = match there {
        There::Broker => ("broker", [Some(4.0), Some(12.0), Some(50.0)]),
        There::Effect => ("effect", [None; 3]),
    };
    let figure = |what: String, times: &[f64], share, limit: Option<f64>| {
        let figure = Figure::new(format!("commit -> {name} {what}"), quantile(times, share), "ms");
        limit.into_iter().fold(figure, Figure::at_most)
    };
    let at = |label: &str| format!("at {asked}/s, {label}");
    vec![
        Figure::new(format!("commits while to {name}"), reached, "commits/s"),
        figure(at("p50"), steady, 0.5, limits[0]),
        figure(at("p95"), steady, 0.95, None),
        figure(at("p99"), steady, 0.99, limits[1]),
        figure("idle, p50".to_owned(), singles, 0.5, None),
        figure("idle, longest".to_owned(), singles, 1.0, limits[2]),
    ]
}

/// Commits events at a steady rate, and then one now and then.
async fn write(bench: &Bench, database: &Database, topic: &str, committed: &Times) -> Outcome<Load> {
    let (rate, time) = (bench.sizes.rate, bench.sizes.steady);
    let warm = 0..rate * WARM;
    let steady = warm.end..warm.end + (rate as f64 * time.as_secs_f64()) as usize;
    let singles = steady.end..steady.end + bench.sizes.singles;
    eprintln!("latency, {rate} commits/s for {time:?}");
    write_steadily(database, topic, committed, rate, warm).await?;
    let began = Instant::now();
    write_steadily(database, topic, committed, rate, steady.clone()).await?;
    let reached = steady.len() as f64 / began.elapsed().as_secs_f64();
    eprintln!("latency, {} single messages", singles.len());
    for n in singles.clone() {
        sleep(PAUSE).await;
        commit(database, topic, committed, n).await?;
    }
    Ok(Load { steady, singles, rate: reached })
}

async fn write_steadily(
    database: &Database,
    topic: &str,
    committed: &Times,
    rate: usize,
    events: Range<usize>,
) -> Outcome<()> {
    let writer = async |first: usize| -> Outcome<()> {
        sleep(Duration::from_secs_f64(first as f64 / rate as f64)).await;
        let mut ticks = interval(Duration::from_secs_f64(WRITERS as f64 / rate as f64));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        for n in events.clone().filter(|n| n % WRITERS == first) {
            ticks.tick().await;
            commit(database, topic, committed, n).await?;
        }
        Ok(())
    };
    futures_util::future::try_join_all((0..WRITERS).map(writer)).await?;
    Ok(())
}

/// One business transaction with one event. Its time is taken when the answer to COMMIT is here.
async fn commit(database: &Database, topic: &str, committed: &Times, n: usize) -> Outcome<()> {
    let mut tx = database.pool.begin().await?;
    database.enqueue(&mut tx, topic, n).await?;
    tx.commit().await?;
    committed.note(n);
    Ok(())
}
