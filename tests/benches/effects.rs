//! A consumer, and when each of its effects became visible.

use std::time::{Duration, Instant};

use backstop::{Consumer, Delivery, GroupCommit, Handler, HandlerError, StopPartition};
use backstop_kafka::KafkaSource;
use backstop_postgres::{PgInbox, PgTx};
use sqlx::postgres::PgListener;
use tokio::time::sleep;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::clock::Times;
use crate::database::Database;
use crate::servers::{Servers, unique};
use crate::{Outcome, event};

const CHANNEL: &str = "applied";
const PATIENCE: Duration = Duration::from_secs(60);

/// Counts a message and tells the listener: key and number are bound.
pub(crate) const TALLY: &str = "UPDATE tally SET n = n + 1 WHERE key = $1 RETURNING pg_notify('applied', $2)";

/// A tally in the database, and when each of its changes became visible.
#[derive(Debug)]
pub(crate) struct Watched {
    applied: Times,
    _stop: DropGuard,
}

impl Watched {
    /// Makes the tally, and listens until this is dropped.
    pub(crate) async fn start(database: &Database) -> Outcome<Self> {
        sqlx::raw_sql("CREATE TABLE tally (key text PRIMARY KEY, n bigint NOT NULL) WITH (fillfactor = 50)")
            .execute(&database.pool)
            .await?;
        sqlx::query("INSERT INTO tally SELECT 'key-' || n, 0 FROM generate_series(0, $1 - 1) AS n")
            .bind(i32::try_from(event::KEYS)?)
            .execute(&database.pool)
            .await?;
        let (applied, stop) = (Times::default(), CancellationToken::new());
        watch(database, applied.clone(), stop.clone()).await?;
        Ok(Self { applied, _stop: stop.drop_guard() })
    }

    /// When each became visible, once so many have.
    pub(crate) async fn all(self, events: usize) -> Outcome<Times> {
        let until = Instant::now() + PATIENCE;
        while self.applied.count() < events {
            if Instant::now() > until {
                return Err(format!("of {events} events {} are applied", self.applied.count()).into());
            }
            sleep(Duration::from_millis(20)).await;
        }
        Ok(self.applied)
    }
}

/// A consumer that runs until this is dropped.
#[derive(Debug)]
pub(crate) struct Effects {
    watched: Watched,
    _stop: DropGuard,
}

impl Effects {
    /// Starts a consumer of that topic, which adds to a tally in the same database, with that many messages in a
    /// transaction.
    pub(crate) async fn start(
        servers: &Servers,
        database: &Database,
        topic: &str,
        groups: GroupCommit,
    ) -> Outcome<Self> {
        let (watched, stop) = (Watched::start(database).await?, CancellationToken::new());
        let source = KafkaSource::subscribe(&servers.kafka, unique("group"), &[topic]).door(false);
        let inbox = PgInbox::new(database.pool_of(16).await?);
        let consumer = Consumer::transactional("latency", source, inbox, Tally)
            .group_commit(groups)
            .dead_letter(StopPartition);
        let running = consumer.run(stop.clone().cancelled_owned());
        tokio::spawn(async move {
            if let Err(error) = running.await {
                eprintln!("the consumer has ended: {error}");
            }
        });
        Ok(Self { watched, _stop: stop.drop_guard() })
    }

    /// When each became visible, once so many have.
    pub(crate) async fn all(self, events: usize) -> Outcome<Times> {
        self.watched.all(events).await
    }
}

/// Listens for the notification that becomes visible together with each effect.
async fn watch(database: &Database, applied: Times, stop: CancellationToken) -> Outcome<()> {
    let mut listener = PgListener::connect_with(&database.pool).await?;
    listener.listen(CHANNEL).await?;
    tokio::spawn(stop.run_until_cancelled_owned(async move {
        while let Ok(notification) = listener.recv().await {
            if let Ok(n) = notification.payload().parse() {
                applied.note(n);
            }
        }
    }));
    Ok(())
}

/// Applies a message and tells the listener.
struct Tally;

impl Handler<PgTx> for Tally {
    type Message = event::Body;

    async fn handle(&self, delivery: &Delivery<event::Body>, tx: &mut PgTx) -> Result<(), HandlerError> {
        let n = delivery.body().number()?;
        sqlx::query(TALLY).bind(event::key(n)).bind(n.to_string()).execute(&mut **tx).await?;
        Ok(())
    }
}
