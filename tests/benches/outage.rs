//! A broker that is away while rows wait for it.

use std::time::{Duration, Instant};

use backstop_tests::scene::before_broker;
use tokio::time::sleep;

use crate::broker::Broker;
use crate::database::Database;
use crate::outbox::{Backlog, Outbox as _};
use crate::report::Figure;
use crate::servers::unique;
use crate::{Bench, Outcome, relay};

/// Rows that are sent before the broker goes away.
const BEFORE: usize = 1_000;
/// Seconds after which rows should flow again.
const ASKED: f64 = 10.0;
/// How long the rows before the outage may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Takes each broker away from a program.
pub(crate) async fn run(bench: &mut Bench) -> Outcome<()> {
    for broker in Broker::ALL {
        eprintln!("outage, {} is away for {:?}", broker.name(), bench.sizes.away);
        let database = Database::fresh(&bench.servers, "outage").await?;
        let figures = away(bench, &database, broker).await;
        database.drop().await?;
        figures?.into_iter().for_each(|figure| bench.push(figure));
    }
    Ok(())
}

/// Waits until no row is pending. The row written last need not be the last that is confirmed.
async fn drained(database: &Database) -> Outcome<()> {
    let until = Instant::now() + PATIENCE;
    while database.store().status().await?.pending > 0 {
        if Instant::now() > until {
            return Err("the relay does not drain what came before the outage".into());
        }
        sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

async fn away(bench: &Bench, database: &Database, broker: Broker) -> Outcome<Vec<Figure>> {
    let (servers, rows) = (&bench.servers, bench.sizes.waiting);
    let (proxy, address) = before_broker(broker.into(), &servers.amqp).await;
    let config = relay::config_through(database, broker, &address);
    let place = unique("outage");
    broker.create(servers, &place).await?;
    let program = relay::ready(&config).await?;
    database.fill(&Backlog::to(&place, 0..BEFORE)).await?;
    drained(database).await?;
    let first = database.last_seq().await? + 1;

    proxy.cut();
    database.fill(&Backlog::to(&place, BEFORE..BEFORE + rows)).await?;
    sleep(bench.sizes.away).await;
    let waiting = database.store().status().await?.pending;
    if waiting != rows as u64 {
        return Err(format!("{waiting} of {rows} rows wait for a broker that is away").into());
    }
    proxy.resume();
    let back = Instant::now();
    database.gone(first).await?;
    let flowing = back.elapsed();
    database.gone(database.last_seq().await?).await?;
    let rate = rows as f64 / (back.elapsed() - flowing).as_secs_f64();
    let blocked = program.metric("backstop_outbox_blocked_keys").await.ok_or("the relay tells no metrics")?;
    relay::terminate(program).await;

    let dead = database.store().status().await?.dead;
    let all = Backlog::to(&place, 0..BEFORE + rows).check();
    let twice = broker.read_back(servers, &place, all).await?.at_least_once()?;
    broker.delete(servers, &place).await?;
    let name = |what: &str| format!("{} away, {what}", broker.name());
    Ok(vec![
        Figure::new(name("flows again after"), flowing.as_secs_f64(), "s").at_most(ASKED),
        Figure::new(name("rate afterwards"), rate, "rows/s"),
        Figure::new(name("keys blocked"), blocked, "keys").at_most(0.0),
        Figure::new(name("dead"), dead as f64, "rows").at_most(0.0),
        Figure::new(name("sent twice"), twice as f64, "rows"),
    ])
}
