//! What a row costs by how many wait.

use std::time::Duration;

use crate::broker::Broker;
use crate::database::Database;
use crate::outbox::{Backlog, Outbox as _};
use crate::relay::Relay;
use crate::report::{Figure, median};
use crate::servers::unique;
use crate::waves::wave;
use crate::{Bench, Outcome};

/// Backlogs; those beyond what is asked for are left out.
const PENDING: [usize; 5] = [1_000, 10_000, 100_000, 1_000_000, 5_000_000];
/// A small backlog comes so often that as many rows are measured, or as many as the largest has.
const AT_LEAST: usize = 50_000;
/// Rows before the clock starts, so that the relay is connected.
const WARM: usize = 1_000;
/// What is taken for flat: a row's cost beside that of the cheapest smaller backlog.
const FLAT: f64 = 1.25;

/// Measures each size in turn.
pub(crate) async fn run(bench: &mut Bench) -> Outcome<()> {
    let (mut cheapest, largest) = (f64::INFINITY, bench.sizes.pending);
    for pending in PENDING.into_iter().filter(|pending| *pending <= largest) {
        let mut costs = Vec::new();
        for round in 1..=bench.sizes.rounds {
            eprintln!("growth, {pending} rows pending, round {round} of {}", bench.sizes.rounds);
            let database = Database::fresh(&bench.servers, "growth").await?;
            let cost = cost(bench, &database, pending).await;
            database.drop().await?;
            costs.push(cost?);
        }
        let cost = median(&costs);
        cheapest = cheapest.min(cost);
        let figure = Figure::new(format!("cost with {pending} rows pending"), cost, "us/row");
        bench.push(figure.beside("cheapest so far", cheapest).ratio_at_most(FLAT));
    }
    Ok(())
}

/// Microseconds for each row of a backlog that a relay finds from one moment to the next.
async fn cost(bench: &Bench, database: &Database, pending: usize) -> Outcome<f64> {
    let topic = unique("growth");
    Broker::Kafka.create(&bench.servers, &topic).await?;
    let relay = Relay::start(&bench.servers, database.store(), Broker::Kafka)?;
    wave(database, &Backlog::to(&topic, 0..WARM)).await?;
    let end = WARM + pending * (AT_LEAST.min(bench.sizes.pending) / pending).max(1);
    let mut taken = Duration::ZERO;
    for first in (WARM..end).step_by(pending) {
        taken += wave(database, &Backlog::to(&topic, first..first + pending)).await?;
    }
    relay.stop().await?;
    Broker::Kafka.read_back(&bench.servers, &topic, Backlog::to(&topic, 0..end).check()).await?.once()?;
    Broker::Kafka.delete(&bench.servers, &topic).await?;
    Ok(taken.as_secs_f64() * 1e6 / (end - WARM) as f64)
}
