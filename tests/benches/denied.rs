//! Ten destinations of which one refuses what it is sent.

use std::time::{Duration, Instant};

use backstop_tests::servers::control;
use tokio::time::sleep;

use crate::broker::Broker;
use crate::database::Database;
use crate::event;
use crate::outbox::{Backlog, Outbox as _};
use crate::relay::Relay;
use crate::report::Figure;
use crate::servers::{Servers, unique};
use crate::waves::rate;
use crate::{Bench, Outcome, rabbitmq};

/// Destinations; the last one is denied. Each key has one of them.
const PLACES: usize = 10;
const _: () = assert!(event::KEYS.is_multiple_of(PLACES));
/// The rows come in so many waves, spread over the time of the denial.
const WAVES: usize = 10;
/// How long to wait for rows to be deleted.
const PATIENCE: Duration = Duration::from_secs(60);
/// What is taken for full rate: the share of the rate without the tenth destination.
const ASKED: f64 = 0.9;

/// Measures nine destinations without the tenth and beside it.
pub(crate) async fn run(bench: &mut Bench) -> Outcome<()> {
    for broker in Broker::ALL {
        let without = nine(bench, broker, Duration::ZERO, false).await?;
        eprintln!(
            "outage, one of {PLACES} destinations denied for {:?}, {}",
            bench.sizes.denied,
            broker.name()
        );
        let beside = nine(bench, broker, bench.sizes.denied, true).await?;
        let figure = Figure::new(format!("nine beside a denied one, {}", broker.name()), beside, "rows/s");
        bench.push(figure.beside("without it", without).ratio_at_least(ASKED));
    }
    Ok(())
}

async fn nine(bench: &Bench, broker: Broker, time: Duration, tenth: bool) -> Outcome<f64> {
    let database = Database::fresh(&bench.servers, "denied").await?;
    let rate = waves(bench, &database, broker, time, tenth).await;
    database.drop().await?;
    rate
}

/// The rate of the nine. With the tenth, it is denied meanwhile, and gets all of its rows once it no longer is.
async fn waves(
    bench: &Bench,
    database: &Database,
    broker: Broker,
    time: Duration,
    tenth: bool,
) -> Outcome<f64> {
    let servers = &bench.servers;
    let rows = (bench.sizes.waiting / WAVES).next_multiple_of(PLACES);
    let mut places: Vec<Option<String>> = (0..PLACES).map(|n| Some(unique(&format!("place{n}")))).collect();
    let denied = places[PLACES - 1].take().filter(|_| tenth);
    for place in places.iter().flatten() {
        broker.create(servers, place).await?;
    }
    if let Some(denied) = &denied {
        deny(servers, broker, denied).await?;
        places[PLACES - 1] = Some(denied.clone());
    }
    let relay = Relay::start(servers, database.store(), broker)?;
    let mut taken = Vec::new();
    for first in (0..rows * WAVES).step_by(rows) {
        database.fill(&Backlog::spread(&places, first..first + rows)).await?;
        let committed = Instant::now();
        // The last row of a wave is the tenth's.
        database.gone(database.last_seq().await? - i64::from(tenth)).await?;
        taken.push(committed.elapsed());
        sleep(time / WAVES as u32).await;
    }
    if let Some(denied) = &denied {
        let expected = (rows / PLACES * WAVES) as u64;
        let waiting = waiting(database, expected).await?;
        if waiting != expected {
            return Err(
                format!("{waiting} rows wait, of which {expected} are the denied destination's").into()
            );
        }
        allow(servers, broker, denied).await?;
        database.gone(database.last_seq().await?).await?;
    }
    relay.stop().await?;
    let mut check = Backlog::spread(&places, 0..rows * WAVES).check();
    for place in places.iter().flatten() {
        check = broker.read_back(servers, place, check).await?;
        broker.delete(servers, place).await?;
    }
    check.once()?;
    Ok(rate(rows - rows / PLACES, &taken))
}

/// How many rows wait, once there are no more than expected: those of the nine are deleted a moment after the last is.
async fn waiting(database: &Database, expected: u64) -> Outcome<u64> {
    let until = Instant::now() + PATIENCE;
    loop {
        let pending = database.store().status().await?.pending;
        if pending <= expected || Instant::now() > until {
            return Ok(pending);
        }
        sleep(Duration::from_millis(10)).await;
    }
}

/// Kafka: nobody may write to the topic. RabbitMQ: a queue that refuses everything.
async fn deny(servers: &Servers, broker: Broker, place: &str) -> Outcome<()> {
    match broker {
        Broker::Kafka => {
            broker.create(servers, place).await?;
            acl("deny-write", place).await
        }
        Broker::RabbitMq => rabbitmq::create_full_queue(servers, place).await,
    }
}

async fn allow(servers: &Servers, broker: Broker, place: &str) -> Outcome<()> {
    match broker {
        Broker::Kafka => acl("allow-write", place).await,
        Broker::RabbitMq => {
            broker.delete(servers, place).await?;
            broker.create(servers, place).await
        }
    }
}

async fn acl(command: &'static str, topic: &str) -> Outcome<()> {
    let topic = topic.to_owned();
    Ok(tokio::task::spawn_blocking(move || control(&["kafka-acl", command, &topic])).await?)
}
