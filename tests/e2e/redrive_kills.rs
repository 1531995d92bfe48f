//! A redrive by the relay while relay and consumer are killed again and again, and live events of the same keys come in.
//!
//! `BACKSTOP_E2E_REDRIVEN` sizes the run; `tests/long` sets what the promise names.

use std::collections::BTreeSet;
use std::time::Duration;

use backstop_testkit::oracle::Books;
use backstop_tests::apply::Fail;
use backstop_tests::database::Database;
use backstop_tests::program::{Broker, ConsumerConfig, Program, RelayConfig, broker_section};
use backstop_tests::workload::{self, Placed, Publisher};
use backstop_tests::{letters, servers, size, wait};

const PATIENCE: Duration = Duration::from_secs(600);
const KEYS: usize = 200;
/// One letter of so many fails again, whatever is mended; none of the canary does, for they are all in the second half.
const ONE_HOPELESS_OF: usize = 100;
const CANARY: usize = 10;

/// Letters; a second's share of them; how often each of relay and consumer is killed.
#[derive(Debug, Clone, Copy)]
struct Size {
    letters: usize,
    rate: usize,
    kills: usize,
}

impl Size {
    fn asked() -> Self {
        match size::asked("BACKSTOP_E2E_REDRIVEN") {
            Some(letters) => Self { letters, rate: 2_000, kills: 5 },
            None => Self { letters: 400, rate: 100, kills: 2 },
        }
    }

    fn hopeless(self) -> usize {
        self.letters / ONE_HOPELESS_OF
    }
}

struct Scene {
    size: Size,
    database: Database,
    publisher: Publisher,
    consumer: ConsumerConfig,
    relay: RelayConfig,
    /// Those that die, and behind them those that come in during the redrive.
    events: Vec<Placed>,
}

impl Scene {
    /// All letters are in the ledger, and the handler is mended.
    async fn new(broker: Broker) -> (Self, Program) {
        let (size, database) = (Size::asked(), Database::fresh("kills").await);
        let (place, told) = (servers::unique("redriven"), servers::unique("told"));
        workload::create_place(broker, &place, 6).await;
        workload::create_place(broker, &told, 1).await;
        let mut consumer = ConsumerConfig::new(broker, &place, &servers::unique("group"), &database.schema);
        consumer.receipts = Some(told.clone());
        let relay = relay(broker, &database.schema, &letters::place(&consumer), &told);
        let events = workload::events(size.letters + size.letters / 5, KEYS, |n| match n {
            n if n >= size.letters => None,
            n if n >= size.letters / 2 && n % (ONE_HOPELESS_OF / 2) == ONE_HOPELESS_OF / 2 - 1 => {
                Some(Fail::Hopeless)
            }
            _ => Some(Fail::Permanent),
        });
        let scene = Self { size, database, publisher: Publisher::new(broker), consumer, relay, events };
        let (running, consuming) = (scene.relay.spawn(None), scene.consumer.start());
        scene.publish(0..size.letters).await;
        scene
            .until_count("the ledger has the letters", "backstop_letter WHERE status = 'open'", size.letters)
            .await;
        consuming.stop().await;
        scene.database.mend().await;
        (scene, running)
    }

    async fn publish(&self, events: std::ops::Range<usize>) {
        let place = &self.consumer.place;
        workload::publish(&self.database, &self.publisher, place, &self.events[events]).await;
    }

    async fn count(&self, rows: &str) -> usize {
        let count = self.database.number(&format!("SELECT count(*) FROM {rows}")).await;
        usize::try_from(count).expect("a count")
    }

    async fn until_count(&self, what: &str, rows: &str, expected: usize) {
        wait::until(what, PATIENCE, || async { self.count(rows).await >= expected }).await;
    }

    /// Each time that another part of the letters is sent, some live events come in, and relay or consumer is replaced.
    async fn kill_by_turns(&self, mut relay: Program, mut consumer: Program) -> (Program, Program) {
        let Size { letters, kills, .. } = self.size;
        let (turns, live) = (2 * kills, self.events.len() - letters);
        for turn in 0..turns {
            let sent = letters * (turn + 1) / (turns + 1);
            self.until_count("some more are sent", "backstop_redrive_letter WHERE step <> 'pending'", sent)
                .await;
            if turn % 2 == 0 {
                relay.kill();
                relay = self.relay.spawn(None);
            } else {
                consumer.kill();
                consumer = self.consumer.spawn(None);
            }
            self.publish(letters + live * turn / turns..letters + live * (turn + 1) / turns).await;
        }
        (relay, consumer)
    }

    /// Letters a second, in the seconds in which nobody was killed: the middle of them.
    async fn rate(&self) -> i64 {
        let seconds = "SELECT count(*) AS sent FROM backstop_redrive_letter WHERE NOT canary GROUP BY date_trunc('second', sent_at)";
        let middle = format!(
            "SELECT round(percentile_cont(0.5) WITHIN GROUP (ORDER BY sent))::bigint FROM ({seconds}) AS s"
        );
        self.database.number(&middle).await
    }

    async fn assert_balanced(&self) {
        let of_event = "SELECT split_part(message_key, '|', 2) FROM backstop_letter WHERE status = 'open'";
        let open =
            sqlx::query_scalar(of_event).fetch_all(&self.database.pool).await.expect("PostgreSQL answers");
        let ids = |fail: Fail| -> BTreeSet<String> {
            let events = self.events.iter().filter(|placed| placed.event.fail.as_ref() == Some(&fail));
            events.map(|placed| placed.id.clone()).collect()
        };
        let books = self.database.books(&self.consumer.group).await;
        Books {
            injected: ids(Fail::Hopeless),
            dead_letters: open.into_iter().collect(),
            parked: ids(Fail::Permanent),
            ..books
        }
        .audit()
        .assert_balanced();
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

async fn redriven(broker: Broker) {
    let (scene, relay) = Scene::new(broker).await;
    let Size { letters, rate, .. } = scene.size;
    let consumer = scene.consumer.spawn(None);
    let (canary, per_second) = (CANARY.to_string(), rate.to_string());
    let asked = scene.relay.start(&[
        "dead-letters",
        "redrive",
        "--consumer",
        &scene.consumer.group,
        "--canary",
        &canary,
        "--rate",
        &per_second,
        "--yes",
    ]);
    let (relay, consumer) = scene.kill_by_turns(relay, consumer).await;
    asked.ended(PATIENCE).await;
    scene.until_count("the redrive is done", "backstop_redrive WHERE run = 'done'", 1).await;

    let hopeless = scene.size.hopeless();
    let step = |step: &str| format!("backstop_redrive_letter WHERE step = '{step}'");
    assert_eq!(scene.count(&step("resolved")).await, letters - hopeless);
    assert_eq!(scene.count(&step("failed-again")).await, hopeless);
    assert_eq!(scene.count("backstop_redrive_letter").await, letters, "none is silent, none was left out");
    let applied = (scene.events.len() - hopeless) as i64;
    wait::until("all is applied", PATIENCE, || async {
        scene.database.applied(&scene.consumer.group).await == applied && scene.database.held().await == 0
    })
    .await;
    // The second letter of each: the first is superseded.
    scene.until_count("they are letters again", "backstop_letter WHERE status = 'open'", hopeless).await;
    scene.assert_balanced().await;
    println!("{letters} letters, at {} a second where {rate} were asked for", scene.rate().await);
    drop((relay, consumer));
    scene.database.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn p3_a_redrive_survives_kills_of_relay_and_consumer_on_kafka() {
    redriven(Broker::Kafka).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn p3_a_redrive_survives_kills_of_relay_and_consumer_on_rabbitmq() {
    redriven(Broker::RabbitMq).await;
}
