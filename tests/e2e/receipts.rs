//! Receipts of redriven messages: whoever dies, wherever, each message is acknowledged, and what the ledger says is true.

use std::collections::BTreeMap;
use std::time::Duration;

use backstop::dead_letter::{kafka_door, rabbitmq_door, redrive_envelope};
use backstop::sink::Sink;
use backstop::{ConsumerReport, Destination, Envelope, Receipt, ReceiptOutcome, names};
use backstop_kafka::{KafkaSettings, KafkaSink};
use backstop_rabbitmq::{RabbitSettings, RabbitSink};
use backstop_testkit::oracle::Books;
use backstop_tests::apply::Fail;
use backstop_tests::database::Database;
use backstop_tests::program::{Broker, ConsumerConfig, RelayConfig};
use backstop_tests::workload::{self, Placed, Publisher};
use backstop_tests::{letters, servers, wait};

const PATIENCE: Duration = Duration::from_secs(120);
const DEAD: usize = 60;
const ALL: usize = 240;

/// A consumer with letters that would be handled now, and a place for its receipts.
struct Scene {
    database: Database,
    consumer: ConsumerConfig,
    receipts: String,
    events: Vec<Placed>,
}

impl Scene {
    async fn new(broker: Broker) -> Self {
        let database = Database::fresh("receipts").await;
        let (place, receipts) = (servers::unique("receipts"), servers::unique("told"));
        workload::create_place(broker, &place, 2).await;
        workload::create_place(broker, &receipts, 2).await;
        let mut consumer = ConsumerConfig::new(broker, &place, &servers::unique("group"), &database.schema);
        let run = consumer.start();
        let events = workload::events(ALL, 20, |n| (n % 4 == 1).then_some(Fail::Permanent));
        workload::publish(&database, &Publisher::new(broker), &place, &events).await;
        let alive = (ALL - DEAD) as i64;
        wait::until("all but the letters is applied", PATIENCE, || async {
            database.applied(&consumer.group).await == alive && database.held().await == 0
        })
        .await;
        // The letters may be the last ones to be done.
        letters::arrived(&consumer, DEAD, PATIENCE).await;
        run.stop().await;
        database.mend().await;
        consumer.receipts = Some(receipts.clone());
        Self { database, consumer, receipts, events }
    }

    /// Sends every letter through the door, each in two copies, as a relay does that dies before it writes down what
    /// it has sent.
    async fn redrive(&self) {
        let letters = letters::read_distinct(&self.consumer, DEAD).await;
        assert_eq!(letters.len(), DEAD);
        let ConsumerConfig { broker, place, group, .. } = &self.consumer;
        if *broker == Broker::RabbitMq {
            let settings = RabbitSettings::parse(&servers::amqp_url()).expect("an AMQP URL");
            send(&RabbitSink::new(settings), &rabbitmq_door(place), &letters).await;
        } else {
            let sink = KafkaSink::new(KafkaSettings::new(servers::kafka()));
            send(&sink, &kafka_door(place, group), &letters).await;
        }
    }

    async fn all_applied(&self) {
        wait::until("all is applied", PATIENCE, || async {
            self.database.applied(&self.consumer.group).await == ALL as i64 && self.database.held().await == 0
        })
        .await;
    }

    async fn nothing_is_owed(&self) {
        wait::until("no receipt is owed", PATIENCE, || async {
            self.database.number("SELECT count(*) FROM backstop_receipt").await == 0
        })
        .await;
    }

    /// Nothing is lost, nothing applied twice.
    async fn assert_balanced(&self) {
        let books = self.database.books(&self.consumer.group).await;
        let parked = self.events.iter().filter(|placed| placed.ends_dead()).map(|placed| placed.id.clone());
        Books { parked: parked.collect(), ..books }.audit().assert_balanced();
    }
}

async fn send(sink: &impl Sink, door: &str, letters: &[Envelope]) {
    let door = Destination::new(door);
    for letter in letters.iter().chain(letters) {
        let mut envelope = redrive_envelope(letter);
        envelope.headers.set(names::REDRIVE_ID, "job-1");
        sink.publish(&door, envelope).await.expect("the door is there");
    }
}

/// The consumer dies at that point again and again. Afterwards every redriven message has a receipt.
async fn dies(broker: Broker, point: &str) {
    let scene = Scene::new(broker).await;
    scene.redrive().await;
    for pass in [1, 2] {
        scene.consumer.spawn(Some(&format!("{point}:{pass}"))).ended(PATIENCE).await;
    }
    let run = scene.consumer.start();
    scene.all_applied().await;
    scene.nothing_is_owed().await;
    // The copies have been taken in by then, or come in now.
    run.stop().await;
    let told = letters::messages(broker, &scene.receipts, DEAD).await;
    let mut outcomes = BTreeMap::<String, Vec<ReceiptOutcome>>::new();
    for receipt in told.iter().filter_map(|message| Receipt::from_message(message).ok()) {
        assert_eq!((receipt.generation, receipt.redrive.as_deref()), (1, Some("job-1")));
        assert_eq!(receipt.consumer, scene.consumer.group);
        outcomes.entry(receipt.letter.expect("every letter has an id")).or_default().push(receipt.outcome);
    }
    assert_eq!(outcomes.len(), DEAD, "every letter has a receipt");
    for (letter, outcomes) in &outcomes {
        let handled = outcomes.contains(&ReceiptOutcome::Handled);
        assert!(handled, "{letter} was handled once, and all that was told is {outcomes:?}");
    }
    scene.assert_balanced().await;
    scene.database.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn consumer_dies_after_commit_before_its_receipt_on_kafka() {
    dies(Broker::Kafka, "consumer.held.finished").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn consumer_dies_after_commit_before_its_receipt_on_rabbitmq() {
    dies(Broker::RabbitMq, "consumer.held.finished").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn consumer_dies_before_receipts_are_published() {
    dies(Broker::Kafka, "consumer.receipt.due").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn consumer_dies_after_receipts_are_published_on_kafka() {
    dies(Broker::Kafka, "consumer.receipt.published").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn consumer_dies_after_receipts_are_published_on_rabbitmq() {
    dies(Broker::RabbitMq, "consumer.receipt.published").await;
}

/// From the letter to `resolved` in the ledger, by the relay alone, and the consumer is known there.
async fn resolved(broker: Broker) {
    let scene = Scene::new(broker).await;
    let ConsumerConfig { group, .. } = &scene.consumer;
    let relay = RelayConfig::with_receipts(
        broker,
        &scene.database.schema,
        &letters::place(&scene.consumer),
        &scene.receipts,
    );
    let _relay = relay.spawn(None);
    let count = async |status: &str| {
        let query = format!("SELECT count(*) FROM backstop_letter WHERE status = '{status}'");
        scene.database.number(&query).await
    };
    wait::until("the ledger has the letters", PATIENCE, || async { count("open").await == DEAD as i64 })
        .await;
    let run = scene.consumer.start();
    let known = format!(
        "SELECT count(*) FROM backstop_consumer WHERE consumer = '{group}' AND report::json ->> 'state' = 'running'"
    );
    wait::until("the consumer is known", PATIENCE, || async { scene.database.number(&known).await == 1 })
        .await;

    let arguments = ["dead-letters", "redrive", "--consumer", group, "--yes"];
    let (code, output) = tokio::task::block_in_place(|| relay.command(&arguments));
    assert_eq!(code, 0, "{output}");
    wait::until("all letters are resolved", PATIENCE, || async { count("resolved").await == DEAD as i64 })
        .await;
    scene.all_applied().await;
    run.stop().await;
    let stopped = known.replace("running", "stopped");
    wait::until("its goodbye is known", PATIENCE, || async { scene.database.number(&stopped).await == 1 })
        .await;
    let (code, output) = tokio::task::block_in_place(|| relay.command(&["check"]));
    assert!(output.contains("1 consumer reported in"), "{code} {output}");
    scene.assert_balanced().await;
    scene.database.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redriven_letter_is_resolved_by_its_receipt_on_kafka() {
    resolved(Broker::Kafka).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redriven_letter_is_resolved_by_its_receipt_on_rabbitmq() {
    resolved(Broker::RabbitMq).await;
}

/// What a consumer says of itself names what it holds.
#[tokio::test(flavor = "multi_thread")]
async fn a_report_tells_what_is_held() {
    let database = Database::fresh("report").await;
    let (place, receipts) = (servers::unique("report"), servers::unique("told"));
    workload::create_place(Broker::Kafka, &place, 1).await;
    workload::create_place(Broker::Kafka, &receipts, 1).await;
    let mut config = ConsumerConfig::new(Broker::Kafka, &place, &servers::unique("group"), &database.schema);
    config.receipts = Some(receipts.clone());
    let run = config.start();
    let reports = letters::messages(Broker::Kafka, &receipts, 1).await;
    run.stop().await;
    let report = ConsumerReport::from_message(&reports[0]).expect("a report");
    assert_eq!((report.consumer.as_str(), report.held), (config.group.as_str(), Some(0)));
    assert_eq!(report.inbox_retention_seconds, Some(7 * 24 * 60 * 60));
    database.drop().await;
}
