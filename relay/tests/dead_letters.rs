//! Dead letters all the way, on real brokers: from the broker into the ledger, and back through the door.

use std::sync::Arc;
use std::time::Duration;

use backstop_core::ledger::{Guard, Ledger, LetterFilter, LetterStatus};
use backstop_core::schema::Schema;
use backstop_core::sink::Sink;
use backstop_core::source::{Received, Settlement, Source};
use backstop_core::{Destination, Envelope, names};
use backstop_rabbitmq::{RabbitSettings, declare_queue, delete_queue};
use backstop_relay::collector::Collector;
use backstop_relay::config::{Config, Environment};
use backstop_relay::encryption::Keyring;
use backstop_relay::owner::OwnerSettings;
use backstop_relay::redrive::{Plan, new_redrive, send_all};
use backstop_relay::{broker, database::Database};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

const LIMIT: Duration = Duration::from_secs(60);

struct Setup {
    config: Config,
    ledger: Arc<dyn Ledger>,
    _directory: TempDir,
}

async fn setup(broker: &str, letters: &str) -> Setup {
    let directory = tempfile::tempdir().expect("a directory");
    let text = format!(
        "[database]\nurl = \"sqlite:{}/x.db\"\n[broker]\n{broker}\n[dead_letters]\nenabled = true\nname = \"{letters}\"\n\
         sources = [\"{letters}\"]\n",
        directory.path().display()
    );
    let config = Config::parse(&text, &Environment::default()).expect("sound");
    let database = Database::create(&config.database).await.expect("created");
    Schema::migrate(&*database.schema).await.expect("migrated");
    Setup { config, ledger: database.ledger().expect("a ledger"), _directory: directory }
}

impl Setup {
    /// Runs the collector until the ledger has that many letters, and a little longer for what must not come.
    async fn collect(&self, letters: u64) {
        let broker = self.config.broker.as_ref().expect("a broker");
        let sources = broker::sources(broker, &self.config.dead_letters).expect("sources");
        let owner = OwnerSettings { lease: "letters".into(), ..OwnerSettings::default() };
        let stop = CancellationToken::new();
        let running = tokio::spawn(Collector::new(self.ledger.clone(), sources, owner).run(stop.clone()));
        let arrived = async {
            while self.count(None).await < letters {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(LIMIT, arrived).await.expect("collected in time");
        stop.cancel();
        running.await.expect("no panic");
    }

    async fn count(&self, status: Option<LetterStatus>) -> u64 {
        self.ledger.count(&LetterFilter { status, ..LetterFilter::default() }).await.expect("counted")
    }

    async fn publish(&self, place: &str, envelope: Envelope) {
        let sink = broker::sink(self.config.broker.as_ref().expect("a broker")).expect("a sink");
        sink.publish(&Destination::new(place), envelope).await.expect("published");
    }

    async fn redrive(&self) {
        let sink = broker::sink(self.config.broker.as_ref().expect("a broker")).expect("a sink");
        let filter = LetterFilter { status: Some(LetterStatus::Open), ..LetterFilter::default() };
        let (guard, keys) = (Guard::default(), Keyring::default());
        let plan = Plan::make(&*self.ledger, &filter, &guard, &keys).await.expect("a plan");
        assert_eq!((plan.matching, plan.to_send, plan.without_target), (3, 2, 1));
        let new = new_redrive(filter, Guard::default());
        let owner = OwnerSettings { lease: "redrive".into(), ..OwnerSettings::default() };
        let redrive = send_all(self.ledger.clone(), sink, &new, owner).await.expect("sent");
        assert_eq!(redrive.letters().waiting, 2);
        assert_eq!(self.count(Some(LetterStatus::Redriving)).await, 2);
        assert_eq!(self.count(Some(LetterStatus::Open)).await, 1);
    }

    /// Two of Backstop's letters of one key, one of them twice, and a stranger's.
    async fn fill(&self, place: &str) {
        let twice = ours("1");
        for envelope in [twice.clone(), ours("2"), twice, stranger()] {
            self.publish(place, envelope).await;
        }
    }
}

fn ours(body: &str) -> Envelope {
    let id = Uuid::new_v5(&Uuid::NAMESPACE_OID, body.as_bytes()).to_string();
    let key = format!("/orders|{body}");
    let headers = [
        (names::DEAD_LETTER_ID, Some(id)),
        (names::MESSAGE_KEY, Some(key)),
        (names::REASON, Some("exhausted".to_owned())),
        ("tenant", Some("a".to_owned())),
    ];
    Envelope {
        key: Some("k".into()),
        headers: headers.into_iter().collect(),
        body: Some(body.to_owned().into()),
    }
}

fn stranger() -> Envelope {
    let headers = [("x-first-death-queue", Some("orders"))];
    Envelope { key: None, headers: headers.into_iter().collect(), body: Some("odd".into()) }
}

/// Reads and settles that many messages, in order.
async fn read<S: Source>(mut source: S, count: usize) -> Vec<Received<()>> {
    let mut found = Vec::new();
    while found.len() < count {
        let batch = tokio::time::timeout(LIMIT, source.next()).await.expect("in time").expect("readable");
        for mut received in batch.expect("not ended") {
            assert!(received.settlement.begin());
            received.settlement.settle();
            let Received { message, identity, origin, via, .. } = received;
            found.push(Received { message, identity, origin, via, settlement: () });
        }
    }
    source.close().await.expect("closed");
    found
}

fn check_redriven(found: &[Received<()>]) {
    let bodies: Vec<_> = found.iter().map(|received| received.message.body.as_deref()).collect();
    assert_eq!(bodies, [Some(&b"1"[..]), Some(&b"2"[..])]);
    let headers = &found[0].message.headers;
    assert_eq!(headers.get_str(names::MESSAGE_KEY), Some("/orders|1"));
    assert_eq!(headers.get_str(names::REDRIVE_GENERATION), Some("1"));
    assert_eq!((headers.get_str("tenant"), headers.get_str(names::REASON)), (Some("a"), None));
    assert_eq!(found[0].message.key.as_deref(), Some(&b"k"[..]));
}

#[tokio::test(flavor = "multi_thread")]
async fn rabbitmq_letters_are_collected_once_and_come_back_through_the_door() {
    let url = required("BACKSTOP_TEST_AMQP_URL");
    let name = format!("relay-{}", Uuid::new_v4().simple());
    let (letters, door) = (format!("{name}.dlq"), format!("{name}.redrive"));
    let settings = RabbitSettings::parse(&url).expect("a URL");
    for queue in [&letters, &door] {
        declare_queue(&settings, queue).await.expect("declared");
    }
    let setup = setup(&format!("kind = \"rabbitmq\"\nurl = \"{url}\""), &letters).await;
    setup.fill(&letters).await;
    setup.collect(3).await;
    setup.redrive().await;
    let source = backstop_rabbitmq::RabbitSource::consume(&url, door.clone()).door(false).declare(false);
    check_redriven(&read(source.build().expect("sound"), 2).await);
    for queue in [&letters, &door] {
        delete_queue(&settings, queue).await.expect("deleted");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kafka_letters_are_collected_once_and_come_back_through_the_door() {
    let brokers = backstop_kafka::MockBroker::start().expect("a mock broker");
    let address = brokers.bootstrap_servers().to_owned();
    for topic in ["orders.stock.dlq", "orders.stock.redrive"] {
        brokers.create_topic(topic, 3).expect("created");
    }
    let setup = setup(&format!("kind = \"kafka\"\nbrokers = \"{address}\""), "orders.stock.dlq").await;
    setup.fill("orders.stock.dlq").await;
    setup.collect(3).await;
    setup.redrive().await;
    let source =
        backstop_kafka::KafkaSource::subscribe(address, "reader", &["orders.stock.redrive"]).door(false);
    check_redriven(&read(source, 2).await);
}

fn required(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set; run: eval \"$(tests/servers env)\""))
}
