//! What a transaction that stays open elsewhere costs the relay.
//!
//! While one is open, no row that was deleted since can be cleared away, and where it is a writer of the outbox, the
//! number that it took stays missing.

use sqlx::{Postgres, Transaction};

use crate::broker::Broker;
use crate::database::Database;
use crate::outbox::{Backlog, Outbox as _};
use crate::relay::Relay;
use crate::report::{Figure, median};
use crate::servers::unique;
use crate::waves::{rate, wave};
use crate::{Bench, Outcome};

/// Every so many rows are committed at once and drained before the next.
const WAVES: usize = 10;
/// What is asked: a share of the rate without anything held.
const ASKED: f64 = 0.75;

/// What is held open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hold {
    Nothing,
    Snapshot,
    Writer,
}

const HOLDS: [Hold; 3] = [Hold::Nothing, Hold::Snapshot, Hold::Writer];

/// Measures with and without, round by round.
pub(crate) async fn run(bench: &mut Bench) -> Outcome<()> {
    let rounds = bench.sizes.rounds;
    let mut rates: [Vec<f64>; 3] = Default::default();
    for round in 1..=rounds {
        eprintln!("held, round {round} of {rounds}");
        for (hold, rates) in HOLDS.into_iter().zip(&mut rates) {
            let database = Database::fresh(&bench.servers, "held").await?;
            let rate = churn(bench, &database, hold).await;
            database.drop().await?;
            rates.push(rate?);
        }
    }
    let [without, snapshot, writer] = rates.map(|rates| median(&rates));
    bench.push(Figure::new("churn, nothing held open", without, "rows/s"));
    for (name, rate) in [("snapshot", snapshot), ("writer", writer)] {
        let figure = Figure::new(format!("churn, {name} held open"), rate, "rows/s");
        bench.push(figure.beside("nothing", without).ratio_at_least(ASKED));
    }
    Ok(())
}

/// Rows come in waves, and the relay drains each; rows a second of its work.
async fn churn(bench: &Bench, database: &Database, hold: Hold) -> Outcome<f64> {
    let (servers, rows) = (&bench.servers, bench.sizes.churn.next_multiple_of(WAVES));
    let topic = unique("churn");
    Broker::Kafka.create(servers, &topic).await?;
    // The writer's event comes after all others of its key.
    let held = open(database, hold, &topic, rows).await?;
    let relay = Relay::start(servers, database.store(), Broker::Kafka)?;
    let mut taken = Vec::new();
    for first in (0..rows).step_by(rows / WAVES) {
        taken.push(wave(database, &Backlog::to(&topic, first..first + rows / WAVES)).await?);
    }
    close(database, held, hold).await?;
    relay.stop().await?;
    let (whole, last) = (rate(rows / WAVES, &taken), rate(rows / WAVES, &taken[WAVES - 1..]));
    eprintln!("  {hold:?}: {whole:.0} rows/s, {last:.0} in the last wave");
    let late = usize::from(hold == Hold::Writer);
    let check = Backlog::to(&topic, 0..rows + late).check();
    Broker::Kafka.read_back(servers, &topic, check).await?.once()?;
    Broker::Kafka.delete(servers, &topic).await?;
    Ok(whole)
}

async fn open(
    database: &Database,
    hold: Hold,
    topic: &str,
    n: usize,
) -> Outcome<Option<Transaction<'static, Postgres>>> {
    let begin = match hold {
        Hold::Nothing => return Ok(None),
        Hold::Snapshot => "BEGIN ISOLATION LEVEL REPEATABLE READ",
        Hold::Writer => "BEGIN",
    };
    let mut tx = database.pool.begin_with(begin).await?;
    match hold {
        Hold::Writer => database.enqueue(&mut tx, topic, n).await?,
        // A snapshot is taken by the first query.
        _ => drop(seen(&mut tx).await?),
    }
    Ok(Some(tx))
}

/// Ends what was held, which must have been alive until now, and waits until all is published.
async fn close(database: &Database, held: Option<Transaction<'static, Postgres>>, hold: Hold) -> Outcome<()> {
    let Some(mut tx) = held else { return Ok(()) };
    if hold == Hold::Snapshot {
        let seen = seen(&mut tx).await?;
        tx.rollback().await?;
        return if seen == 0 { Ok(()) } else { Err("the snapshot was not held".into()) };
    }
    let seq = sqlx::query_scalar("SELECT min(seq) FROM backstop_outbox").fetch_one(&mut *tx).await?;
    tx.commit().await?;
    database.gone(seq).await
}

async fn seen(tx: &mut Transaction<'static, Postgres>) -> Outcome<i64> {
    Ok(sqlx::query_scalar("SELECT count(*) FROM backstop_outbox").fetch_one(&mut **tx).await?)
}
