//! From a message that is produced to its effect in the database, at a steady rate with nothing else going on.

use std::time::Duration;

use backstop::GroupCommit;
use rdkafka::Offset;
use sqlx::{Connection as _, PgPool};
use tokio::sync::mpsc;

use crate::clock::between;
use crate::consumer::{CONNECTIONS, Item, feed};
use crate::database::Database;
use crate::effects::{Effects, TALLY, Watched};
use crate::report::{Figure, quantile};
use crate::servers::unique;
use crate::{Bench, Outcome, event, kafka};

/// Messages a second.
const RATE: usize = 500;
/// Messages of one transaction, at most, where they share one.
const GROUP: usize = 64;
/// How long both sides are given to find each other, before the first message.
const SETTLED: Duration = Duration::from_secs(3);

/// Who applies the messages.
#[derive(Debug, Clone, Copy)]
enum By {
    /// The same statements without a framework.
    Hand,
    /// The consumer, with so many messages in one transaction at most.
    Consumer(usize),
}

/// Measures it: by hand, with a transaction for each message, and with group commit.
pub(crate) async fn run(bench: &mut Bench) -> Outcome<()> {
    for (name, by) in [
        ("by hand", By::Hand),
        ("consumer", By::Consumer(1)),
        ("consumer, group commit", By::Consumer(GROUP)),
    ] {
        let database = Database::fresh(&bench.servers, "effect").await?;
        let times = measure(bench, &database, by).await;
        database.drop().await?;
        let times = times?;
        let figure = |share, label: &str| {
            Figure::new(
                format!("produce -> effect at {RATE}/s, {name}, {label}"),
                quantile(&times, share),
                "ms",
            )
        };
        let (half, slow) = (figure(0.5, "p50"), figure(0.99, "p99"));
        match by {
            By::Hand => [half, slow],
            By::Consumer(_) => [half.at_most(1.2), slow.at_most(5.0)],
        }
        .into_iter()
        .for_each(|figure| bench.push(figure));
    }
    Ok(())
}

/// Milliseconds of each message.
async fn measure(bench: &Bench, database: &Database, by: By) -> Outcome<Vec<f64>> {
    let (servers, topic) = (&bench.servers, unique("effect"));
    let seconds = usize::try_from(bench.sizes.steady.as_secs())?.max(1);
    let (warm, all) = (RATE, RATE * (1 + seconds));
    kafka::create_topic(servers, &topic).await?;
    eprintln!("effect, {by:?}, {RATE} messages/s for {seconds} s");
    let applied = match by {
        By::Consumer(most) => {
            let effects = Effects::start(servers, database, &topic, GroupCommit::up_to(most)).await?;
            Applied::ByConsumer(effects)
        }
        By::Hand => Applied::ByHand(by_hand(bench, database, &topic, all).await?),
    };
    tokio::time::sleep(SETTLED).await;
    let produced = kafka::produce_steadily(servers, &topic, RATE, all).await?;
    let applied = match applied {
        Applied::ByConsumer(effects) => effects.all(all).await?,
        Applied::ByHand(watched) => watched.all(all).await?,
    };
    kafka::delete_topics(servers, &[&topic]).await?;
    Ok(between(&produced, &applied, warm..all))
}

enum Applied {
    ByConsumer(Effects),
    ByHand(Watched),
}

/// Workers that each have their share of the keys and keep a connection.
async fn by_hand(bench: &Bench, database: &Database, topic: &str, messages: usize) -> Outcome<Watched> {
    let watched = Watched::start(database).await?;
    let pool = database.pool_of(u32::try_from(CONNECTIONS)?).await?;
    let mut queues = Vec::new();
    for _ in 0..CONNECTIONS {
        let (queue, items) = mpsc::channel(1_000);
        queues.push(queue);
        let pool = pool.clone();
        tokio::spawn(async move {
            if let Err(error) = worker(pool, items).await {
                eprintln!("a worker has ended: {error}");
            }
        });
    }
    let reader = kafka::reader(&bench.servers, topic, Offset::Beginning)?;
    tokio::task::spawn_blocking(move || feed(&reader, messages, &queues).map(drop));
    Ok(watched)
}

async fn worker(pool: PgPool, mut items: mpsc::Receiver<Item>) -> Outcome<()> {
    let mut connection = pool.acquire().await?;
    while let Some((n, id)) = items.recv().await {
        let mut tx = connection.begin().await?;
        sqlx::query(
            "INSERT INTO backstop_inbox (consumer, message_key) VALUES ($1, $2) ON CONFLICT DO NOTHING",
        )
        .bind("bench")
        .bind(id)
        .execute(&mut *tx)
        .await?;
        sqlx::query(TALLY).bind(event::key(n)).bind(n.to_string()).execute(&mut *tx).await?;
        tx.commit().await?;
    }
    Ok(())
}
