//! The program's memory while it drains and while it is idle, and what it asks the database when there is nothing.

use std::time::Duration;

use tokio::time::sleep;

use crate::broker::Broker;
use crate::database::Database;
use crate::outbox::{Backlog, Outbox as _};
use crate::report::Figure;
use crate::servers::unique;
use crate::waves::wave;
use crate::{Bench, Outcome, relay};

const MIB: f64 = 1_048_576.0;
/// Within this time a session has told the server what it did, also one that is idle since.
const REPORTED: Duration = Duration::from_secs(11);

/// Watches a program that has done next to nothing, and another one that finds a backlog.
pub(crate) async fn run(bench: &mut Bench) -> Outcome<()> {
    for broker in Broker::ALL {
        let database = Database::fresh(&bench.servers, "memory").await?;
        let figures = watch(bench, &database, broker).await;
        database.drop().await?;
        figures?.into_iter().for_each(|figure| bench.push(figure));
    }
    Ok(())
}

async fn watch(bench: &Bench, database: &Database, broker: Broker) -> Outcome<Vec<Figure>> {
    let (servers, rows, name) = (&bench.servers, bench.sizes.watched, broker.name());
    let config = relay::config(servers, database, broker);
    let place = unique("memory");
    broker.create(servers, &place).await?;

    eprintln!("memory, idle towards {name} for {:?}", bench.sizes.idle);
    let program = relay::ready(&config).await?;
    wave(database, &Backlog::to(&place, 0..1)).await?;
    // Otherwise the server would do it by itself meanwhile, in transactions that are counted too.
    sqlx::query("VACUUM (ANALYZE)").execute(&database.pool).await?;
    sleep(REPORTED.min(bench.sizes.idle)).await;
    let asked = transactions(database).await?;
    sleep(bench.sizes.idle).await;
    let asked = (transactions(database).await? - asked) / bench.sizes.idle.as_secs_f64();
    let idle = program.program.memory() as f64 / MIB;
    relay::terminate(program).await;

    eprintln!("memory, draining {rows} rows into {name}");
    database.fill(&Backlog::to(&place, 1..rows + 1)).await?;
    let program = relay::ready(&config).await?;
    database.gone(database.last_seq().await?).await?;
    let peak = program.program.peak_memory() as f64 / MIB;
    relay::terminate(program).await;
    broker.read_back(servers, &place, Backlog::to(&place, 0..rows + 1).check()).await?.once()?;
    broker.delete(servers, &place).await?;
    Ok(vec![
        Figure::new(format!("peak memory, draining into {name}"), peak, "MiB").at_most(96.0),
        Figure::new(format!("idle memory, {name}"), idle, "MiB").at_most(40.0),
        Figure::new(format!("idle queries, {name}"), asked, "a second").at_most(25.0),
    ])
}

/// Transactions of this database so far, by which the server counts queries without any extension: each query of an
/// idle relay is one.
async fn transactions(database: &Database) -> Outcome<f64> {
    let counted = "SELECT (xact_commit + xact_rollback)::float8 FROM pg_stat_database \
                   WHERE datname = current_database()";
    Ok(sqlx::query_scalar(counted).fetch_one(&database.pool).await?)
}
