//! The relay drains a backlog, beside the bare driver and beside the loop that only claims and deletes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use backstop::sink::Publisher;
use backstop_kafka::{KafkaPublisher, KafkaSettings};
use backstop_postgres::PgOutboxStore;
use backstop_rabbitmq::{RabbitPublisher, RabbitSettings};
use backstop_relay::pump::{Pump, PumpReport, PumpSettings};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::database::{Database, claim_and_delete};
use crate::report::{Figure, median};
use crate::servers::unique;
use crate::{Bench, Outcome, kafka, rabbitmq};

const PATIENCE: Duration = Duration::from_secs(300);

/// Rates of one round after the other.
#[derive(Debug, Default)]
struct Rates {
    claims: Vec<f64>,
    raw_kafka: Vec<f64>,
    raw_rabbitmq: Vec<f64>,
    kafka: Vec<f64>,
    rabbitmq: Vec<f64>,
}

/// Measures everything in turn, round by round, so that a slow minute of the machine meets all of them.
pub(crate) async fn run(bench: &mut Bench) -> Outcome<()> {
    let mut rates = Rates::default();
    for round in 1..=bench.sizes.rounds {
        eprintln!("relay, round {round} of {}", bench.sizes.rounds);
        bench.database.fill("nowhere", bench.sizes.backlog).await?;
        let batch = PumpSettings::default().read_rows;
        rates.claims.push(claim_and_delete(&bench.database, batch).await?);
        with_kafka(bench, &mut rates).await?;
        with_rabbitmq(bench, &mut rates).await?;
    }
    let claims = median(&rates.claims);
    let raw_kafka = median(&rates.raw_kafka);
    let raw_rabbitmq = median(&rates.raw_rabbitmq);
    bench.push(Figure::new("claim and delete alone", claims, "rows/s"));
    bench.push(Figure::new("producer alone, Kafka", raw_kafka, "rows/s"));
    bench.push(Figure::new("confirms alone, RabbitMQ", raw_rabbitmq, "rows/s"));
    let (name, reference) = match raw_kafka < claims {
        true => ("producer", raw_kafka),
        false => ("claims", claims),
    };
    let relay = Figure::new("relay -> Kafka", median(&rates.kafka), "rows/s");
    bench.push(relay.beside(name, reference).ratio_at_least(0.2).at_least(50_000.0));
    let relay = Figure::new("relay -> RabbitMQ", median(&rates.rabbitmq), "rows/s");
    bench.push(relay.beside("confirms", raw_rabbitmq).ratio_at_least(0.3).at_least(15_000.0));
    Ok(())
}

async fn with_kafka(bench: &Bench, rates: &mut Rates) -> Outcome<()> {
    let (servers, rows) = (&bench.servers, bench.sizes.backlog);
    let (bare, relayed) = (unique("bare"), unique("relayed"));
    kafka::create_topic(servers, &bare).await?;
    kafka::create_topic(servers, &relayed).await?;
    rates.raw_kafka.push(kafka::produce(servers, &bare, rows).await?);
    bench.database.fill(&relayed, rows).await?;
    let publisher = KafkaPublisher::new(KafkaSettings::new(&servers.kafka));
    rates.kafka.push(drain(&bench.database, Box::new(publisher), rows).await?);
    for topic in [&bare, &relayed] {
        eprintln!("  {topic}: {}", kafka::check(servers, topic, rows).await?);
    }
    kafka::delete_topics(servers, &[&bare, &relayed]).await
}

async fn with_rabbitmq(bench: &Bench, rates: &mut Rates) -> Outcome<()> {
    let (servers, rows) = (&bench.servers, bench.sizes.backlog);
    let (bare, relayed) = (unique("bare"), unique("relayed"));
    rabbitmq::create_queue(servers, &bare).await?;
    rabbitmq::create_queue(servers, &relayed).await?;
    rates.raw_rabbitmq.push(rabbitmq::publish(servers, &bare, rows).await?);
    eprintln!("  {bare}: {}", rabbitmq::check(servers, &bare, rows).await?);
    bench.database.fill(&relayed, rows).await?;
    let publisher = RabbitPublisher::builder(RabbitSettings::parse(&servers.amqp)?).start()?;
    rates.rabbitmq.push(drain(&bench.database, Box::new(publisher), rows).await?);
    eprintln!("  {relayed}: {}", rabbitmq::check(servers, &relayed, rows).await?);
    rabbitmq::delete_queue(servers, &bare).await?;
    rabbitmq::delete_queue(servers, &relayed).await
}

/// Drains the backlog with a relay that has just started; rows a second from its start to the last delete.
async fn drain(database: &Database, publisher: Box<dyn Publisher>, rows: usize) -> Outcome<f64> {
    let began = Instant::now();
    let relay = Relay::start(database, publisher)?;
    let mut status = relay.status.clone();
    let deleted = status.wait_for(|status| status.deleted >= rows as u64);
    tokio::time::timeout(PATIENCE, deleted).await.map_err(|_| "the relay does not drain its backlog")??;
    let rate = rows as f64 / began.elapsed().as_secs_f64();
    let report = relay.stop().await?;
    match database.backlog().await? {
        0 => Ok(rate),
        left => Err(format!("{left} rows are left in the outbox: {report:?}").into()),
    }
}

/// A relay that runs.
#[derive(Debug)]
pub(crate) struct Relay {
    status: tokio::sync::watch::Receiver<backstop_relay::pump::PumpStatus>,
    stop: CancellationToken,
    task: JoinHandle<Result<PumpReport, backstop_relay::pump::PumpError>>,
}

impl Relay {
    /// Starts a relay with default settings on the schema's outbox.
    pub(crate) fn start(database: &Database, publisher: Box<dyn Publisher>) -> Outcome<Self> {
        let store = PgOutboxStore::new(database.pool.clone(), database.tables()?);
        let pump = Pump::new(Arc::new(store), publisher, PumpSettings::default());
        let (status, stop) = (pump.status(), CancellationToken::new());
        let task = tokio::spawn(pump.run(stop.clone()));
        Ok(Self { status, stop, task })
    }

    /// Ends it in order.
    pub(crate) async fn stop(self) -> Outcome<PumpReport> {
        self.stop.cancel();
        Ok(self.task.await??)
    }
}
