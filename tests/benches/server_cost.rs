//! What a message costs the database: bytes of its log and transactions, of writing and of relaying it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use backstop_postgres::{PgOutboxStore, PgTables};
use sqlx::PgPool;
use tokio::time::sleep;

use crate::broker::Broker;
use crate::database::Database;
use crate::outbox::Backlog;
use crate::relay::Relay;
use crate::report::Figure;
use crate::servers::unique;
use crate::{Bench, Outcome};

const WRITERS: usize = 8;
/// As many as the program opens.
const CONNECTIONS: u32 = 24;
const PATIENCE: Duration = Duration::from_secs(600);

/// What the server has counted.
#[derive(Debug, Clone, Copy)]
struct Meter {
    /// Of the whole server: nothing else may run.
    log_bytes: f64,
    /// Of the one database, and so of nobody else but its vacuum.
    transactions: f64,
}

/// Measures both in a database of its own.
pub(crate) async fn run(bench: &mut Bench) -> Outcome<()> {
    let database = Database::fresh(&bench.servers, "cost").await?;
    let figures = measure(bench, &database).await;
    database.drop().await?;
    figures?.into_iter().for_each(|figure| bench.push(figure));
    Ok(())
}

async fn measure(bench: &Bench, database: &Database) -> Outcome<Vec<Figure>> {
    let (servers, messages) = (&bench.servers, bench.sizes.transactions);
    eprintln!("growth, {messages} transactions of one row each");
    let topic = unique("cost");
    Broker::Kafka.create(servers, &topic).await?;
    let idle = Meter::read(database).await?;
    let pool = database.pool_of(u32::try_from(WRITERS)?).await?;
    write(database, &pool, &topic, messages).await?;
    let written = Meter::after(database, pool).await?;
    let pool = database.pool_of(CONNECTIONS).await?;
    let store = Arc::new(PgOutboxStore::new(pool.clone(), PgTables::default()));
    let mut relay = Relay::start(servers, store, Broker::Kafka)?;
    relay.has_deleted(messages, PATIENCE).await?;
    relay.stop().await?;
    let relayed = Meter::after(database, pool).await?;
    Broker::Kafka.read_back(servers, &topic, Backlog::to(&topic, 0..messages).check()).await?.once()?;
    Broker::Kafka.delete(servers, &topic).await?;
    let steps = [("enqueue", idle, written), ("relay", written, relayed)];
    Ok(steps.into_iter().flat_map(|(name, from, to)| to.since(from, name, messages as f64)).collect())
}

/// Each event in a transaction of its own, as services write them. A key has one writer.
async fn write(database: &Database, pool: &PgPool, topic: &str, messages: usize) -> Outcome<()> {
    let writer = async |first: usize| -> Outcome<()> {
        for n in (first..messages).step_by(WRITERS) {
            let mut tx = pool.begin().await?;
            database.enqueue(&mut tx, topic, n).await?;
            tx.commit().await?;
        }
        Ok(())
    };
    futures_util::future::try_join_all((0..WRITERS).map(writer)).await?;
    Ok(())
}

impl Meter {
    async fn read(database: &Database) -> Outcome<Self> {
        let counted = "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::float8, xact_commit::float8
                       FROM pg_stat_database WHERE datname = current_database()";
        let (log_bytes, transactions) = sqlx::query_as(counted).fetch_one(&database.pool).await?;
        Ok(Self { log_bytes, transactions })
    }

    /// Ends the pool and reads. A session tells the server what it did once a second, and at its end.
    async fn after(database: &Database, pool: PgPool) -> Outcome<Self> {
        let sessions = database.sessions().await?;
        let open = i64::from(pool.size());
        pool.close().await;
        let until = Instant::now() + PATIENCE;
        while database.sessions().await? > sessions - open {
            if Instant::now() > until {
                return Err("the sessions of a pool that is closed do not end".into());
            }
            sleep(Duration::from_millis(10)).await;
        }
        Self::read(database).await
    }

    fn since(self, earlier: Self, step: &str, messages: f64) -> [Figure; 2] {
        let bytes = (self.log_bytes - earlier.log_bytes) / messages;
        let transactions = (self.transactions - earlier.transactions) / messages;
        [
            Figure::new(format!("{step}, log for each message"), bytes, "bytes"),
            Figure::new(
                format!("{step}, transactions for 1,000 messages"),
                transactions * 1e3,
                "transactions",
            ),
        ]
    }
}
