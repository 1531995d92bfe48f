//! `ordered()`: the order of a key holds through quarantine and redrive, whoever dies on the way.

use std::time::Duration;

use backstop::command::Command;
use backstop::dead_letter::door_of_letters;
use backstop::held_keys::Ending;
use backstop::{MessageKey, names};
use backstop_tests::apply::Fail;
use backstop_tests::database::Database;
use backstop_tests::program::{Broker, ConsumerConfig, RelayConfig};
use backstop_tests::workload::{self, Placed, Publisher};
use backstop_tests::{letters, servers, wait};

const PATIENCE: Duration = Duration::from_secs(120);
const KEYS: usize = 20;
const COUNT: usize = 400;

/// Of half of the keys, an event in the middle fails until the handler is mended.
fn events() -> Vec<Placed> {
    workload::events(COUNT, KEYS, |n| match (n % KEYS, n / KEYS) {
        (key, 7) if key % 4 == 0 => Some(Fail::Permanent),
        (key, 7) if key % 4 == 2 => Some(Fail::Always),
        _ => None,
    })
}

const WAITING_KEYS: usize = KEYS / 2;
/// What comes before the failures, and all of the other keys.
const FREE: usize = COUNT - WAITING_KEYS * (COUNT / KEYS - 7);

struct Scene {
    database: Database,
    config: ConsumerConfig,
}

impl Scene {
    async fn new(broker: Broker) -> Self {
        let database = Database::fresh("ordered").await;
        let place = servers::unique("ordered");
        workload::create_ordered_place(broker, &place, 4).await;
        let mut config = ConsumerConfig::new(broker, &place, &servers::unique("group"), &database.schema);
        config.ordered = true;
        let publisher = Publisher::new(broker);
        workload::publish(&database, &publisher, &place, &events()).await;
        Self { database, config }
    }

    /// Whoever dies must leave enough for the next to die of: with many at work, all keys may be past a point when one
    /// stops there.
    fn few_at_work(&mut self) {
        self.config.concurrency = 2;
    }

    /// Waits until nothing is done any more but for the keys that wait.
    async fn stands(&self) {
        wait::until("the keys wait", PATIENCE, || async {
            self.database.applied(&self.config.group).await == FREE as i64
                && self.database.held().await == (COUNT - FREE) as i64
                && self.quarantined().await == WAITING_KEYS as i64
        })
        .await;
    }

    async fn quarantined(&self) -> i64 {
        let rows = "SELECT count(*) FROM backstop_held WHERE state = 'waiting' AND condemned IS NOT NULL";
        self.database.number(rows).await
    }

    /// Mends the handler, redrives all letters, and waits until all is applied.
    async fn redrive(&self, relay: &RelayConfig) {
        let open = "SELECT count(*) FROM backstop_letter WHERE status = 'open'";
        wait::until("the ledger has the letters", PATIENCE, || async {
            self.database.number(open).await == WAITING_KEYS as i64
        })
        .await;
        self.database.mend().await;
        let arguments = ["dead-letters", "redrive", "--consumer", &self.config.group, "--yes"];
        let (code, output) = tokio::task::block_in_place(|| relay.command(&arguments));
        assert_eq!(code, 0, "{output}");
        self.drained(COUNT).await;
    }

    async fn drained(&self, applied: usize) {
        wait::until("all is applied", PATIENCE, || async {
            self.database.applied(&self.config.group).await == applied as i64
                && self.database.held().await == 0
        })
        .await;
    }

    fn relay(&self) -> RelayConfig {
        RelayConfig::new(self.config.broker, &self.database.schema, &[letters::place(&self.config)])
    }
}

/// Nothing is lost, nothing is applied twice, and no key is out of order, although events of it were dead.
async fn order_is_kept(broker: Broker) {
    let scene = Scene::new(broker).await;
    let run = scene.config.start();
    let relay = scene.relay();
    let _relay = relay.spawn(None);
    scene.stands().await;
    scene.redrive(&relay).await;
    let report = run.stop().await;
    assert_eq!((report.quarantined, report.redriven), (WAITING_KEYS as u64, WAITING_KEYS as u64));
    scene.database.assert_balanced(&scene.config.group).await;
    scene.database.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_order_of_a_key_holds_through_a_redrive_on_kafka() {
    order_is_kept(Broker::Kafka).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_order_of_a_key_holds_through_a_redrive_on_rabbitmq() {
    order_is_kept(Broker::RabbitMq).await;
}

/// The same when the consumer dies at that point again and again, before and during the redrive.
async fn order_is_kept_through_crashes(points: &[&str]) {
    let mut scene = Scene::new(Broker::Kafka).await;
    scene.few_at_work();
    for point in points {
        scene.config.spawn(Some(point)).ended(PATIENCE).await;
    }
    let run = scene.config.start();
    scene.stands().await;
    run.stop().await;
    let relay = scene.relay();
    let _relay = relay.spawn(None);
    let dying = scene.config.spawn(Some("consumer.held:3"));
    let ((), ()) = tokio::join!(scene.redrive(&relay), async {
        dying.ended(PATIENCE).await;
        let run = scene.config.start();
        scene.drained(COUNT).await;
        run.stop().await;
    });
    scene.database.assert_balanced(&scene.config.group).await;
    scene.database.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn consumer_dies_when_a_letter_is_published_and_its_key_does_not_wait_yet() {
    order_is_kept_through_crashes(&["consumer.held.quarantined:1", "consumer.held.quarantined:3"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn consumer_dies_when_a_key_waits_before_its_source_is_settled() {
    order_is_kept_through_crashes(&["consumer.held.parked:1", "consumer.held.parked:3"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn consumer_dies_when_a_failure_is_written_down_before_its_letter() {
    order_is_kept_through_crashes(&["consumer.held:1", "consumer.held:3"]).await;
}

/// The relay's command on the consumer's database lets keys go on, and a message that is skipped is never run.
#[tokio::test(flavor = "multi_thread")]
async fn keys_are_released_and_skipped_while_the_consumer_runs() {
    let scene = Scene::new(Broker::Kafka).await;
    let run = scene.config.start();
    let relay = scene.relay();
    scene.stands().await;
    let (code, listed) = tokio::task::block_in_place(|| relay.command(&["held", "list", "--output", "json"]));
    assert_eq!(code, 0, "{listed}");
    let keys: serde_json::Value = serde_json::from_str(&listed).expect("JSON");
    let numbers: Vec<String> =
        keys.as_array().expect("a list").iter().map(|key| key["n"].to_string()).collect();
    assert_eq!(numbers.len(), WAITING_KEYS, "{listed}");
    let (released, skipped) = numbers.split_at(WAITING_KEYS / 2);
    for (what, numbers) in [("release", released), ("skip", skipped)] {
        let mut arguments = vec!["held", what, "--yes", "--because", "tested"];
        arguments.extend(numbers.iter().map(String::as_str));
        let (code, output) = tokio::task::block_in_place(|| relay.command(&arguments));
        assert_eq!(code, 0, "{output}");
    }
    scene.drained(COUNT - WAITING_KEYS).await;
    let handled = "SELECT count(*) FROM backstop_inbox";
    assert_eq!(scene.database.number(handled).await, (COUNT - released.len()) as i64);
    run.stop().await;
    scene.database.drop().await;
}

/// The relay asks the consumer through its door, and the receipts say what became of each letter.
#[tokio::test(flavor = "multi_thread")]
async fn the_relay_asks_and_the_consumer_answers() {
    let mut scene = Scene::new(Broker::Kafka).await;
    let (told, place) = (servers::unique("told"), letters::place(&scene.config));
    workload::create_place(Broker::Kafka, &told, 1).await;
    scene.config.receipts = Some(told.clone());
    let relay = RelayConfig::with_receipts(Broker::Kafka, &scene.database.schema, &place, &told);
    let (run, _relay) = (scene.config.start(), relay.spawn(None));
    scene.stands().await;
    let count = async |query: &str, number: usize| {
        wait::until(query, PATIENCE, || async { scene.database.number(query).await == number as i64 }).await;
    };
    count("SELECT count(*) FROM backstop_letter WHERE status = 'open'", WAITING_KEYS).await;
    let list = ["dead-letters", "list", "--output", "json"];
    let (code, listed) = tokio::task::block_in_place(|| relay.command(&list));
    assert_eq!(code, 0, "{listed}");
    let listed: serde_json::Value = serde_json::from_str(&listed).expect("JSON");
    let ids = listed["letters"].as_array().expect("a list").iter();
    let ids: Vec<&str> = ids.map(|letter| letter["id"].as_str().expect("an id")).collect();
    let (released, rest) = ids.split_at(4);
    let (skipped, resolved) = rest.split_at(3);
    for (ending, ids) in [("release", released), ("skip", skipped), ("resolve", resolved)] {
        let arguments = [&["held", "ask", ending, "--because", "tested", "--yes"], ids].concat();
        let (code, output) = tokio::task::block_in_place(|| relay.command(&arguments));
        assert_eq!(code, 0, "{output}");
    }
    scene.drained(COUNT - WAITING_KEYS).await;
    let asked = "SELECT count(*) FROM backstop_letter_event WHERE what LIKE '%-asked' AND detail = 'tested'";
    count(asked, WAITING_KEYS).await;
    count("SELECT count(*) FROM backstop_letter_event WHERE what = 'key-released'", released.len()).await;
    count("SELECT count(*) FROM backstop_letter WHERE status = 'open'", released.len()).await;
    count("SELECT count(*) FROM backstop_letter WHERE status = 'discarded'", skipped.len()).await;
    count("SELECT count(*) FROM backstop_letter WHERE status = 'resolved'", resolved.len()).await;
    count("SELECT count(*) FROM backstop_inbox", COUNT - released.len()).await;
    count("SELECT count(*) FROM backstop_audit WHERE action LIKE 'held ask %' AND step = 'done'", 3).await;
    run.stop().await;
    scene.database.drop().await;
}

/// Commands through the door end the wait of each key once, although the consumer dies between obeying one and settling it.
async fn commands_are_obeyed(broker: Broker) {
    let mut scene = Scene::new(broker).await;
    scene.few_at_work();
    let run = scene.config.start();
    scene.stands().await;
    run.stop().await;
    let door = door_of_letters(&letters::place(&scene.config)).expect("letters have a door");
    let publisher = Publisher::new(broker);
    let mut released = 0;
    for (at, letter) in letters::read_distinct(&scene.config, WAITING_KEYS).await.iter().enumerate() {
        let key = letter.headers.get_str(names::MESSAGE_KEY).and_then(MessageKey::parse).expect("a letter");
        let ending = Ending::ALL[at % 3];
        released += usize::from(ending == Ending::Release);
        let command = Command { ending, generation: Some(0) };
        publisher.envelope(&door, command.envelope(&key, letter.key.clone())).await;
    }
    scene.config.spawn(Some("consumer.door.obeyed:1")).ended(PATIENCE).await;
    scene.config.spawn(Some("consumer.door.obeyed:3")).ended(PATIENCE).await;
    let run = scene.config.start();
    scene.drained(COUNT - WAITING_KEYS).await;
    run.stop().await;
    let handled = "SELECT count(*) FROM backstop_inbox";
    assert_eq!(scene.database.number(handled).await, (COUNT - released) as i64);
    scene.database.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_come_through_the_door_on_kafka() {
    commands_are_obeyed(Broker::Kafka).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_come_through_the_door_on_rabbitmq() {
    commands_are_obeyed(Broker::RabbitMq).await;
}
