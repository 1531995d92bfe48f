//! The same backlog from each database into Kafka.

use crate::broker::Broker;
use crate::drain::by_relay;
use crate::mariadb::MariaDb;
use crate::report::{Figure, median};
use crate::sqlite::File;
use crate::{Bench, Outcome};

/// What is asked of MariaDB and SQLite: a share of PostgreSQL's rate.
const ASKED: f64 = 0.6;

/// Measures all of them in turn, each round in databases that are new.
pub(crate) async fn run(bench: &mut Bench) -> Outcome<()> {
    let (servers, rounds, rows) = (&bench.servers, bench.sizes.rounds, bench.sizes.backlog);
    let mut rates: [Vec<f64>; 3] = Default::default();
    for round in 1..=rounds {
        eprintln!("databases, round {round} of {rounds}");
        bench.database.clear().await?;
        rates[0].push(by_relay(servers, &bench.database, Broker::Kafka, rows).await?);
        let mariadb = MariaDb::fresh(servers).await?;
        let rate = by_relay(servers, &mariadb, Broker::Kafka, rows).await;
        mariadb.drop().await?;
        rates[1].push(rate?);
        let file = File::fresh().await?;
        let rate = by_relay(servers, &file, Broker::Kafka, rows).await;
        file.drop().await;
        rates[2].push(rate?);
    }
    let [postgres, mariadb, sqlite] = rates.map(|rates| median(&rates));
    bench.push(Figure::new("PostgreSQL -> Kafka", postgres, "rows/s"));
    for (name, rate) in [("MariaDB", mariadb), ("SQLite", sqlite)] {
        let figure = Figure::new(format!("{name} -> Kafka"), rate, "rows/s");
        bench.push(figure.beside("PostgreSQL", postgres).ratio_at_least(ASKED));
    }
    Ok(())
}
