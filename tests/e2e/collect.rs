//! Dead letters in numbers, from several queues into the ledger, under a relay that is killed again and again.
//!
//! `BACKSTOP_E2E_LETTERS` and `BACKSTOP_E2E_KILL_EVERY_MS` size the runs; `tests/long` sets what the promises name.

use std::collections::BTreeSet;
use std::ops::Range;
use std::time::Duration;

use backstop_tests::database::Database;
use backstop_tests::program::{Broker, Program, RelayConfig};
use backstop_tests::{dead, letters, servers, size, wait, workload};
use futures_util::future::join_all;

const PATIENCE: Duration = Duration::from_secs(180);
/// Groups of letters.
const GROUPS: usize = 12;
/// Topics or queues with letters.
const PLACES: usize = 3;
/// The relay must do with so much memory, whatever waits.
const MEMORY: u64 = 256 << 20;

struct Scene {
    broker: Broker,
    database: Database,
    places: Vec<String>,
    relay: RelayConfig,
}

impl Scene {
    /// The relay knows its topics or queues by pattern; only the first of them is there.
    async fn new(broker: Broker) -> Self {
        let database = Database::fresh("collect").await;
        let stem = servers::unique("collect");
        let places: Vec<String> = (0..PLACES).map(|n| format!("{stem}-{n}.dlq")).collect();
        let section = match broker {
            Broker::RabbitMq => format!(
                "kind = \"rabbitmq\"\nurl = \"{}\"\nmanagement = \"{}\"",
                servers::amqp_url(),
                servers::required("BACKSTOP_TEST_RABBITMQ_API")
            ),
            _ => format!("kind = \"kafka\"\nbrokers = \"{}\"", servers::kafka()),
        };
        let relay = RelayConfig::of(&format!(
            "[database]\nurl = \"{}\"\nschema = \"{schema}\"\n[broker]\n{section}\n[outbox]\nenabled = false\n\
             [dead_letters]\nenabled = true\nname = \"{schema}\"\nlease_ttl = \"1s\"\n\
             sources = ['^{stem}-[0-9]\\.dlq$']\n",
            servers::postgres_url(),
            schema = database.schema,
        ));
        let scene = Self { broker, database, places, relay };
        scene.create(0).await;
        scene
    }

    async fn create(&self, place: usize) {
        workload::create_place(self.broker, &self.places[place], 4).await;
    }

    /// Publishes the letters of these numbers; every fiftieth comes twice.
    async fn publish(&self, numbers: Range<usize>, place: impl Fn(usize) -> usize) {
        let numbers = numbers.flat_map(|n| std::iter::repeat_n(n, if n % 50 == 0 { 2 } else { 1 }));
        let letters = numbers.map(|n| (self.places[place(n)].clone(), dead::letter(n, n % GROUPS)));
        dead::publish(self.broker, letters).await;
    }

    async fn collected(&self) -> usize {
        let collected = self.database.number("SELECT count(*) FROM backstop_letter").await;
        usize::try_from(collected).expect("a count")
    }

    async fn until_collected(&self, letters: usize) {
        let what = format!("{letters} letters are in the ledger");
        wait::until(&what, PATIENCE, || async { self.collected().await >= letters }).await;
    }

    /// SIGKILL for the relay, and another in its place.
    fn replaced(&self, relay: Program) -> Program {
        assert!(relay.peak_memory() < MEMORY, "the relay has held {} bytes", relay.peak_memory());
        relay.kill();
        self.relay.spawn(None)
    }

    /// Topics or queues are made and filled one after another, and as soon as the first letters of each are there, the
    /// relay is killed: what it has recorded last is not settled then.
    async fn killed_in_the_act(&self, letters: usize) -> Program {
        let mut relay = self.relay.spawn(None);
        for part in 0..PLACES {
            if part > 0 {
                self.create(part).await;
            }
            let numbers = letters * part / PLACES..letters * (part + 1) / PLACES;
            self.publish(numbers.clone(), |_| part).await;
            self.until_collected(numbers.start + 1).await;
            relay = self.replaced(relay);
        }
        relay
    }

    async fn killed_by_the_clock(&self, letters: usize, every: Duration) -> Program {
        for place in 1..PLACES {
            self.create(place).await;
        }
        let kill = async {
            let mut relay = self.relay.spawn(None);
            let mut kills = 0;
            loop {
                tokio::time::sleep(every).await;
                let collected = self.collected().await;
                println!("{collected} letters after {kills} kills");
                if collected >= letters {
                    return relay;
                }
                relay = self.replaced(relay);
                kills += 1;
            }
        };
        tokio::join!(kill, self.publish(0..letters, |n| n % PLACES)).0
    }

    /// Ends the relay in order, and looks at everything.
    async fn settle(self, relay: Program, letters: usize) {
        self.until_collected(letters).await;
        assert!(relay.peak_memory() < MEMORY, "the relay has held {} bytes", relay.peak_memory());
        relay.signal("TERM");
        relay.ended(PATIENCE).await;
        self.settle_copies().await;
        let ids = sqlx::query_scalar("SELECT id FROM backstop_letter").fetch_all(&self.database.pool).await;
        let ids: Vec<String> = ids.expect("PostgreSQL answers");
        assert_eq!(ids.len(), letters, "each letter is in the ledger once");
        let expected: BTreeSet<String> = (0..letters).map(dead::id).collect();
        assert_eq!(BTreeSet::from_iter(ids), expected);
        let numbers = [
            ("SELECT count(*) FROM backstop_letter_group", GROUPS),
            ("SELECT coalesce(sum(letters), 0)::bigint FROM backstop_letter_count", letters),
        ];
        for (query, expected) in numbers {
            assert_eq!(self.database.number(query).await, expected as i64, "{query}");
        }
        self.database.drop().await;
    }

    /// Second copies of letters may be on their way still when the first ones are all in the ledger: they go back when
    /// the relay ends, and the next one settles them.
    async fn settle_copies(&self) {
        if self.broker != Broker::RabbitMq {
            return;
        }
        wait::until("what is in the ledger is settled", PATIENCE, || async {
            let left: usize =
                join_all(self.places.iter().map(|place| letters::ready(place))).await.iter().sum();
            if left > 0 {
                let relay = self.relay.spawn(None);
                tokio::time::sleep(Duration::from_secs(2)).await;
                relay.signal("TERM");
                relay.ended(PATIENCE).await;
            }
            left == 0
        })
        .await;
    }
}

async fn collected_while_killed(broker: Broker) {
    let scene = Scene::new(broker).await;
    let letters = size::asked("BACKSTOP_E2E_LETTERS").unwrap_or(3_000);
    let relay = match size::asked("BACKSTOP_E2E_KILL_EVERY_MS") {
        Some(every) => scene.killed_by_the_clock(letters, Duration::from_millis(every as u64)).await,
        None => scene.killed_in_the_act(letters).await,
    };
    scene.settle(relay, letters).await;
}

/// From topics that the collector finds by pattern, one after another.
#[tokio::test(flavor = "multi_thread")]
async fn each_letter_is_collected_once_from_kafka_under_kills() {
    collected_while_killed(Broker::Kafka).await;
}

/// From queues that the collector finds by pattern, one after another.
#[tokio::test(flavor = "multi_thread")]
async fn each_letter_is_collected_once_from_rabbitmq_under_kills() {
    collected_while_killed(Broker::RabbitMq).await;
}
