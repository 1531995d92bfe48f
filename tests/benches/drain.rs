//! The relay drains a backlog, beside the bare driver and beside the loop that only claims and deletes.

use std::time::{Duration, Instant};

use backstop_relay::pump::PumpSettings;

use crate::broker::Broker;
use crate::database::claim_and_delete;
use crate::outbox::{Backlog, Outbox};
use crate::relay::Relay;
use crate::report::{Figure, median};
use crate::servers::{Servers, unique};
use crate::{Bench, Outcome};

const PATIENCE: Duration = Duration::from_secs(1_200);

/// What is asked of the relay: rows a second, and the share of its reference.
const ASKED: [(f64, f64); 2] = [(140_000.0, 0.45), (35_000.0, 0.65)];

/// Measures everything in turn, round by round, so that a slow minute of the machine meets all of them.
pub(crate) async fn run(bench: &mut Bench) -> Outcome<()> {
    let (rounds, rows) = (bench.sizes.rounds, bench.sizes.backlog);
    let mut claims = Vec::new();
    let (mut alone, mut relayed): ([Vec<f64>; 2], [Vec<f64>; 2]) = Default::default();
    for round in 1..=rounds {
        eprintln!("drain, round {round} of {rounds}");
        bench.database.clear().await?;
        bench.database.fill(&Backlog::to("nowhere", 0..rows)).await?;
        claims.push(claim_and_delete(&bench.database, PumpSettings::default().read_rows).await?);
        for (broker, (alone, relayed)) in Broker::ALL.into_iter().zip(alone.iter_mut().zip(&mut relayed)) {
            alone.push(by_driver(&bench.servers, broker, rows).await?);
            bench.database.clear().await?;
            relayed.push(by_relay(&bench.servers, &bench.database, broker, rows).await?);
        }
    }
    let claims = median(&claims);
    let [producer, confirms] = alone.map(|rates| median(&rates));
    bench.push(Figure::new("claim and delete alone", claims, "rows/s"));
    bench.push(Figure::new("producer alone, Kafka", producer, "rows/s"));
    bench.push(Figure::new("confirms alone, RabbitMQ", confirms, "rows/s"));
    let kafka = if producer < claims { ("producer", producer) } else { ("claims", claims) };
    let references = [kafka, ("confirms", confirms)];
    for (n, broker) in Broker::ALL.into_iter().enumerate() {
        let ((name, reference), (rate, ratio)) = (references[n], ASKED[n]);
        let figure = Figure::new(format!("relay -> {}", broker.name()), median(&relayed[n]), "rows/s");
        bench.push(figure.beside(name, reference).ratio_at_least(ratio).at_least(rate));
    }
    Ok(())
}

/// The driver alone sends as much; rows a second.
async fn by_driver(servers: &Servers, broker: Broker, rows: usize) -> Outcome<f64> {
    let place = unique("bare");
    broker.create(servers, &place).await?;
    let rate = broker.send_alone(servers, &place, rows).await?;
    let expected = Backlog::to(&place, 0..rows).check();
    broker.read_back(servers, &place, expected).await?.once()?;
    broker.delete(servers, &place).await?;
    Ok(rate)
}

/// A relay that has just started drains an outbox that was empty; rows a second from its start to the last delete.
pub(crate) async fn by_relay(
    servers: &Servers,
    outbox: &impl Outbox,
    broker: Broker,
    rows: usize,
) -> Outcome<f64> {
    let place = unique("relayed");
    broker.create(servers, &place).await?;
    let backlog = Backlog::to(&place, 0..rows);
    outbox.fill(&backlog).await?;
    let store = outbox.store();
    let began = Instant::now();
    let mut relay = Relay::start(servers, store.clone(), broker)?;
    relay.has_deleted(rows, PATIENCE).await?;
    let rate = rows as f64 / began.elapsed().as_secs_f64();
    let report = relay.stop().await?;
    let left = store.status().await?.pending;
    if left > 0 {
        return Err(format!("{left} rows are left in the outbox: {report:?}").into());
    }
    broker.read_back(servers, &place, backlog.check()).await?.once()?;
    broker.delete(servers, &place).await?;
    Ok(rate)
}
