//! A consumer whose dead letters are in a relay's ledger, ready to be redriven, and live events of the same keys.

use std::time::Duration;

use crate::apply::Fail;
use crate::database::Database;
use crate::program::{Broker, ConsumerConfig, Program, RelayConfig, broker_section};
use crate::workload::{self, Placed, Publisher};
use crate::{letters, servers, wait};

/// The longest wait for anything. Far above what is promised: it only ends runs that hang.
pub const PATIENCE: Duration = Duration::from_secs(600);
/// Letters that a redrive sends first.
pub const CANARY: usize = 10;
const KEYS: usize = 200;

/// Letters that died of a fault that is mended since, and what tells of them.
#[derive(Debug)]
pub struct Scene {
    /// How many letters there are.
    pub letters: usize,
    /// What the consumer writes into, with the ledger.
    pub database: Database,
    /// Whose letters they are.
    pub consumer: ConsumerConfig,
    /// Collects them, and redrives them.
    pub relay: RelayConfig,
    /// Those that died, and behind them a fifth as many that come in during the redrive.
    pub events: Vec<Placed>,
    publisher: Publisher,
}

impl Scene {
    /// All letters are in the ledger, and the handler is mended, but for those events that are `hopeless`. The relay that
    /// has collected them runs, the consumer does not.
    ///
    /// # Panics
    /// When a server cannot be used, or takes longer than [`PATIENCE`].
    pub async fn new(broker: Broker, letters: usize, hopeless: impl Fn(usize) -> bool) -> (Self, Program) {
        let database = Database::fresh("redriven").await;
        let (place, told) = (servers::unique("redriven"), servers::unique("told"));
        workload::create_place(broker, &place, 6).await;
        workload::create_place(broker, &told, 1).await;
        let mut consumer = ConsumerConfig::new(broker, &place, &servers::unique("group"), &database.schema);
        consumer.receipts = Some(told.clone());
        consumer.shared = 64;
        let relay = relay(broker, &database.schema, &letters::place(&consumer), &told);
        let events = workload::events(letters + letters / 5, KEYS, |n| match n {
            n if n >= letters => None,
            n if hopeless(n) => Some(Fail::Hopeless),
            _ => Some(Fail::Permanent),
        });
        let scene = Self { letters, database, publisher: Publisher::new(broker), consumer, relay, events };
        let (running, consuming) = (scene.relay.spawn(None), scene.consumer.start());
        scene.publish(0..letters).await;
        scene
            .until_count("the ledger has the letters", "backstop_letter WHERE status = 'open'", letters)
            .await;
        consuming.stop().await;
        scene.database.mend().await;
        (scene, running)
    }

    /// Redrives all of them by the relay's command, which ends when they are sent.
    pub fn redrive(&self, rate: usize) -> Program {
        let (canary, rate) = (CANARY.to_string(), rate.to_string());
        let which = ["dead-letters", "redrive", "--consumer", &self.consumer.group];
        self.relay.start(&[&which[..], &["--canary", &canary, "--rate", &rate, "--yes"]].concat())
    }

    async fn publish(&self, events: std::ops::Range<usize>) {
        workload::publish(&self.database, &self.publisher, &self.consumer.place, &self.events[events]).await;
    }

    /// When this turn's part of the letters is taken to be sent, `between` happens, and its part of the live events comes
    /// in.
    pub async fn turn(&self, turn: usize, turns: usize, between: impl FnOnce()) {
        let (taken, live) = (self.letters * (turn + 1) / (turns + 1), self.events.len() - self.letters);
        wait::until("some more are sent", PATIENCE, || async { self.taken().await >= taken }).await;
        between();
        self.publish(self.letters + live * turn / turns..self.letters + live * (turn + 1) / turns).await;
    }

    /// How many letters of the redrive were taken to be sent, by the counts: to count rows would slow down what is measured.
    async fn taken(&self) -> usize {
        let taken =
            "SELECT coalesce(sum(letters), 0)::bigint FROM backstop_redrive_count WHERE step <> 'pending'";
        usize::try_from(self.database.number(taken).await).expect("a count")
    }

    /// How many rows that is.
    ///
    /// # Panics
    /// When it cannot be asked.
    pub async fn count(&self, rows: &str) -> usize {
        let count = self.database.number(&format!("SELECT count(*) FROM {rows}")).await;
        usize::try_from(count).expect("a count")
    }

    /// Waits until there are so many rows.
    ///
    /// # Panics
    /// When that takes longer than [`PATIENCE`].
    pub async fn until_count(&self, what: &str, rows: &str, expected: usize) {
        wait::until(what, PATIENCE, || async { self.count(rows).await >= expected }).await;
    }

    /// Letters a second behind the canary: the middle of the seconds, so that those in which somebody was killed do not
    /// count.
    pub async fn rate(&self) -> i64 {
        let seconds = "SELECT count(*) AS sent FROM backstop_redrive_letter WHERE NOT canary GROUP BY date_trunc('second', sent_at)";
        let middle = format!(
            "SELECT round(percentile_cont(0.5) WITHIN GROUP (ORDER BY sent))::bigint FROM ({seconds}) AS s"
        );
        self.database.number(&middle).await
    }
}

fn relay(broker: Broker, schema: &str, dead: &str, told: &str) -> RelayConfig {
    let section = broker_section(broker);
    RelayConfig::of(&format!(
        "[database]\nurl = \"{}\"\nschema = \"{schema}\"\n[broker]\n{section}\n[outbox]\nenabled = false\n\
         [dead_letters]\nenabled = true\nname = \"{schema}\"\nlease_ttl = \"1s\"\n\
         sources = [\"{dead}\"]\nreceipts = [\"{told}\"]\n",
        servers::postgres_url(),
    ))
}
