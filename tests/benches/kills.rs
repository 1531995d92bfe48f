//! Rows that are sent twice because the program was ended at full rate.

use std::time::Duration;

use backstop_tests::wait;

use crate::broker::Broker;
use crate::database::Database;
use crate::outbox::{Backlog, Outbox as _};
use crate::report::{Figure, quantile};
use crate::servers::unique;
use crate::{Bench, Outcome, relay};

/// The program is ended when it has sent this share of the backlog.
const SHARE: usize = 4;
const PATIENCE: Duration = Duration::from_secs(300);
/// Rows that may be sent twice after SIGKILL: those under way.
const ASKED: f64 = 4_000.0;

/// How the program is ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Killed,
    Terminated,
}

/// Ends a program in each way, round by round; the worst round counts.
pub(crate) async fn run(bench: &mut Bench) -> Outcome<()> {
    for broker in Broker::ALL {
        let (mut killed, mut terminated) = (Vec::new(), Vec::new());
        for round in 1..=bench.sizes.rounds {
            eprintln!("kills, {}, round {round} of {}", broker.name(), bench.sizes.rounds);
            killed.push(twice(bench, broker, End::Killed).await? as f64);
            terminated.push(twice(bench, broker, End::Terminated).await? as f64);
        }
        for (signal, twice, most) in [("KILL", killed, ASKED), ("TERM", terminated, 0.0)] {
            let name = format!("twice after SIG{signal}, {}", broker.name());
            bench.push(Figure::new(name, quantile(&twice, 1.0), "rows").at_most(most));
        }
    }
    Ok(())
}

async fn twice(bench: &Bench, broker: Broker, end: End) -> Outcome<usize> {
    let database = Database::fresh(&bench.servers, "killed").await?;
    let twice = ended(bench, &database, broker, end).await;
    database.drop().await?;
    twice
}

/// How many rows came twice because a program was ended so, and another one took over.
async fn ended(bench: &Bench, database: &Database, broker: Broker, end: End) -> Outcome<usize> {
    let (servers, rows) = (&bench.servers, bench.sizes.killed);
    let config = relay::config(servers, database, broker);
    let place = unique("killed");
    broker.create(servers, &place).await?;
    let backlog = Backlog::to(&place, 0..rows);
    database.fill(&backlog).await?;
    let first = config.watched();
    wait::until("the relay is at full rate", PATIENCE, || async {
        let published = first.metric("backstop_outbox_published_total").await;
        published.is_some_and(|published| published >= (rows / SHARE) as f64)
    })
    .await;
    match end {
        End::Killed => drop(first),
        End::Terminated => relay::terminate(first).await,
    }
    if database.store().status().await?.pending == 0 {
        eprintln!("  {rows} rows are too few: all were sent before the relay was ended");
    }
    let second = relay::ready(&config).await;
    database.gone(database.last_seq().await?).await?;
    relay::terminate(second).await;
    let check = broker.read_back(servers, &place, backlog.check()).await?;
    broker.delete(servers, &place).await?;
    match end {
        End::Killed => Ok(check.at_least_once()?),
        End::Terminated => check.once().map(|()| 0).map_err(Into::into),
    }
}
