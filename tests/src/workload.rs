//! What producers do: business transactions with outbox rows, and messages published from outside.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::time::Duration;

use backstop::cloudevents::{self, Binding};
use backstop::sink::Sink as _;
use backstop::{Destination, Envelope, Message, Outgoing};
use backstop_kafka::{KafkaSettings, KafkaSink};
use backstop_postgres::PgOutbox;
use backstop_rabbitmq::{RabbitSettings, RabbitSink, declare_ordered_queue, declare_queue};
use chrono::{TimeDelta, Utc};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use sqlx::PgConnection;

use crate::apply::{Event, Fail};
use crate::database::Database;
use crate::program::Broker;
use crate::servers;

/// An event that is committed or published.
#[derive(Debug, Clone)]
pub struct Placed {
    /// Its id.
    pub id: String,
    /// The event.
    pub event: Event,
}

/// `count` events over `keys` keys, numbered per key; `fail` says which are to go wrong.
pub fn events(count: usize, keys: usize, fail: impl Fn(usize) -> Option<Fail>) -> Vec<Placed> {
    let mut next: BTreeMap<usize, i64> = BTreeMap::new();
    (0..count)
        .map(|n| {
            let seq = next.entry(n % keys).or_default();
            *seq += 1;
            let event = Event { key: format!("key-{}", n % keys), seq: *seq, fail: fail(n) };
            Placed { id: uuid::Uuid::now_v7().to_string(), event }
        })
        .collect()
}

impl Placed {
    /// Whether it ends as a dead letter, unless the handler is mended.
    pub fn ends_dead(&self) -> bool {
        let fail = self.event.fail.as_ref();
        fail.is_some_and(|fail| {
            matches!(fail, Fail::Permanent | Fail::Hopeless | Fail::Always | Fail::Panic | Fail::Abort(_))
        })
    }

    /// The message that carries it.
    ///
    /// # Panics
    /// Never: an event is plain data.
    pub fn message(&self, source: &str) -> Message {
        let message = Message::new("event").id(&self.id).source(source).key(self.event.key.clone());
        message.json(&self.event).expect("plain data")
    }
}

/// Makes the topic or queue.
///
/// # Panics
/// When the broker cannot be used.
pub async fn create_place(broker: Broker, place: &str, partitions: i32) {
    if broker == Broker::RabbitMq {
        let settings = RabbitSettings::parse(&servers::amqp_url()).expect("an AMQP URL");
        return declare_queue(&settings, place).await.expect("the queue can be declared");
    }
    let topic = NewTopic::new(place, partitions, TopicReplication::Fixed(1));
    let made = admin().create_topics(&[topic], &AdminOptions::new()).await.expect("Kafka answers");
    made.into_iter().for_each(|topic| {
        topic.expect("the topic can be made");
    });
}

/// Makes a topic, or a queue with a single active consumer: several instances on it keep the order of each key.
///
/// # Panics
/// When the broker cannot be used.
pub async fn create_ordered_place(broker: Broker, place: &str, partitions: i32) {
    if broker == Broker::RabbitMq {
        let settings = RabbitSettings::parse(&servers::amqp_url()).expect("an AMQP URL");
        return declare_ordered_queue(&settings, place).await.expect("the queue can be declared");
    }
    create_place(broker, place, partitions).await;
}

/// Gives a topic more partitions.
///
/// # Panics
/// When the broker cannot be used.
pub async fn grow_topic(topic: &str, partitions: usize) {
    let new = NewPartitions::new(topic, partitions);
    let made = admin().create_partitions(&[new], &AdminOptions::new()).await.expect("Kafka answers");
    made.into_iter().for_each(|topic| {
        topic.expect("the topic can grow");
    });
}

fn admin() -> AdminClient<DefaultClientContext> {
    ClientConfig::new().set("bootstrap.servers", servers::kafka()).create().expect("a plain configuration")
}

/// Commits events into the outbox, `per_transaction` at a time, and writes them into the ledger.
///
/// # Panics
/// When the database cannot be used.
pub async fn commit(database: &Database, place: &str, events: &[Placed], per_transaction: usize) {
    let outbox = PgOutbox::with_tables(&database.tables());
    for chunk in events.chunks(per_transaction) {
        let mut tx = database.pool.begin().await.expect("PostgreSQL answers");
        for placed in chunk {
            record(&mut tx, placed).await;
            outbox
                .enqueue(&mut tx, Outgoing::to(place, placed.message("/tests")))
                .await
                .expect("a sound message");
        }
        tx.commit().await.expect("PostgreSQL answers");
    }
}

/// Commits events whose time has come into the scheduled rows, the first of them the earliest, and writes them into the
/// ledger.
///
/// # Panics
/// When the database cannot be used.
pub async fn schedule(database: &Database, place: &str, events: &[Placed]) {
    let outbox = PgOutbox::with_tables(&database.tables());
    let begin = Utc::now() - TimeDelta::hours(1);
    let mut tx = database.pool.begin().await.expect("PostgreSQL answers");
    for (placed, n) in events.iter().zip(0..) {
        record(&mut tx, placed).await;
        let outgoing = Outgoing::to(place, placed.message("/tests"));
        let at = begin + TimeDelta::milliseconds(n);
        outbox.enqueue_at(&mut tx, outgoing, at).await.expect("a sound message");
    }
    tx.commit().await.expect("PostgreSQL answers");
}

/// Publishes events without an outbox, each after it was written into the ledger of what was committed, in their order.
///
/// # Panics
/// When a server cannot be used.
pub async fn publish(database: &Database, publisher: &Publisher, place: &str, events: &[Placed]) {
    for events in events.chunks(500) {
        let mut tx = database.pool.begin().await.expect("PostgreSQL answers");
        for placed in events {
            record(&mut tx, placed).await;
        }
        tx.commit().await.expect("PostgreSQL answers");
        for placed in events {
            publisher.message(place, placed.message("/tests")).await;
        }
    }
}

async fn record(connection: &mut PgConnection, placed: &Placed) {
    try_record(connection, placed).await.expect("a fresh id");
}

/// Writes an event into the ledger of what is committed.
///
/// # Errors
/// When the database cannot be used.
pub async fn try_record(connection: &mut PgConnection, placed: &Placed) -> Result<(), sqlx::Error> {
    sqlx::query("INSERT INTO committed (id, key, seq) VALUES ($1, $2, $3)")
        .bind(&placed.id)
        .bind(&placed.event.key)
        .bind(placed.event.seq)
        .execute(connection)
        .await
        .map(drop)
}

/// Publishes envelopes from outside, each confirmed.
#[derive(Debug)]
pub enum Publisher {
    /// To Kafka.
    Kafka(KafkaSink),
    /// To RabbitMQ.
    RabbitMq(RabbitSink),
}

impl Publisher {
    /// To that broker.
    ///
    /// # Panics
    /// When its address is unusable.
    pub fn new(broker: Broker) -> Self {
        match broker {
            Broker::RabbitMq => {
                let settings = RabbitSettings::parse(&servers::amqp_url()).expect("an AMQP URL");
                Self::RabbitMq(RabbitSink::new(settings))
            }
            _ => Self::Kafka(KafkaSink::new(KafkaSettings::new(servers::kafka()))),
        }
    }

    /// Publishes a message as CloudEvents has it.
    ///
    /// # Panics
    /// When the broker does not confirm it.
    pub async fn message(&self, place: &str, message: Message) {
        let binding = match self {
            Self::Kafka(_) => Binding::Kafka,
            Self::RabbitMq(_) => Binding::Amqp,
        };
        self.envelope(place, cloudevents::encode(message, binding)).await;
    }

    /// Publishes an envelope as it is.
    ///
    /// # Panics
    /// When the broker does not confirm it.
    pub async fn envelope(&self, place: &str, envelope: Envelope) {
        let destination = Destination::new(place);
        let published = match self {
            Self::Kafka(sink) => sink.publish(&destination, envelope).await,
            Self::RabbitMq(sink) => sink.publish(&destination, envelope).await,
        };
        published.unwrap_or_else(|error| panic!("publish to {place}: {error} {:?}", error.error().hint()));
    }
}

/// pgbench's own TPC-B transaction, an outbox row beside it (key = account, number = the account's version), and 5 %
/// rolled back.
const PGBENCH: &str = r"
\set aid random(1, 1000)
\set bid random(1, 10)
\set tid random(1, 100)
\set delta random(-5000, 5000)
\set abort random(1, 100) <= 5
BEGIN;
UPDATE pgbench_accounts SET abalance = abalance + :delta, version = version + 1 WHERE aid = :aid RETURNING version AS version \gset
SELECT abalance FROM pgbench_accounts WHERE aid = :aid;
UPDATE pgbench_tellers SET tbalance = tbalance + :delta WHERE tid = :tid;
UPDATE pgbench_branches SET bbalance = bbalance + :delta WHERE bid = :bid;
INSERT INTO pgbench_history (tid, bid, aid, delta, mtime) VALUES (:tid, :bid, :aid, :delta, CURRENT_TIMESTAMP);
WITH ledger AS (INSERT INTO committed (id, key, seq) VALUES (gen_random_uuid()::text, :aid::text, :version) RETURNING id)
INSERT INTO backstop_outbox (id, destination, key, kind, content_type, payload)
SELECT id, '{place}', :aid::text, 'event', 'application/json',
       convert_to(json_build_object('key', :aid::text, 'seq', :version)::text, 'UTF8') FROM ledger;
\if :abort
ROLLBACK;
\else
COMMIT;
\endif
";

/// pgbench's tables in a schema, and its script.
#[derive(Debug)]
pub struct Pgbench {
    schema: String,
    script: tempfile::NamedTempFile,
}

impl Pgbench {
    /// Makes the tables.
    ///
    /// # Panics
    /// When pgbench cannot be run, or fails.
    pub async fn prepare(database: &Database, place: &str) -> Self {
        let script = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(script.path(), PGBENCH.replace("{place}", place)).expect("a temporary file");
        let pgbench = Self { schema: database.schema.clone(), script };
        tokio::task::spawn_blocking(move || {
            pgbench.run(&["--initialize", "--quiet", "--scale=10"]).assert_success();
            alter_accounts(&servers::postgres_url(), &pgbench.schema);
            pgbench
        })
        .await
        .expect("pgbench does not panic")
    }

    /// Runs so many transactions with 16 clients.
    ///
    /// # Panics
    /// When pgbench fails.
    pub fn run_through(&self, transactions: usize) {
        let each = format!("--transactions={}", transactions / 16);
        let script = self.script();
        let arguments = ["--no-vacuum", "--client=16", "--jobs=2", &each, "--file", &script];
        self.run(&arguments).assert_success();
    }

    /// Runs with 8 clients for a while, or until the server goes away; `rate` is in transactions a second, of all
    /// clients together.
    ///
    /// # Panics
    /// When pgbench cannot be started.
    pub fn run_for(&self, time: Duration, rate: u32) {
        let (time, rate) = (format!("--time={}", time.as_secs()), format!("--rate={rate}"));
        let script = self.script();
        self.run(&["--no-vacuum", "--client=8", "--jobs=1", &time, &rate, "--file", &script]);
    }

    fn script(&self) -> String {
        self.script.path().to_str().expect("a temporary path is UTF-8").to_owned()
    }

    fn run(&self, arguments: &[&str]) -> Ran {
        let output = Command::new(servers::required("BACKSTOP_TEST_PGBENCH"))
            .args(arguments)
            .arg(servers::postgres_url())
            .env("PGOPTIONS", format!("-c search_path={} -c client_min_messages=warning", self.schema))
            .stdin(Stdio::null())
            .output();
        Ran(output.expect("pgbench can be started"))
    }
}

/// What a run of pgbench said.
struct Ran(std::process::Output);

impl Ran {
    fn assert_success(&self) {
        assert!(self.0.status.success(), "pgbench: {}", String::from_utf8_lossy(&self.0.stderr));
    }
}

/// pgbench with 16 clients, running in the background; waits for its end when awaited.
///
/// # Panics
/// When pgbench cannot be run, or fails.
pub async fn pgbench(database: &Database, place: &str, transactions: usize) {
    let pgbench = Pgbench::prepare(database, place).await;
    tokio::task::spawn_blocking(move || pgbench.run_through(transactions))
        .await
        .expect("pgbench does not panic");
}

fn alter_accounts(url: &str, schema: &str) {
    let statement = "ALTER TABLE pgbench_accounts ADD COLUMN version bigint NOT NULL DEFAULT 0";
    let output = Command::new("psql")
        .args([url, "--quiet", "--command", statement])
        .env("PGOPTIONS", format!("-c search_path={schema}"))
        .output()
        .expect("psql can be started");
    assert!(output.status.success(), "psql: {}", String::from_utf8_lossy(&output.stderr));
}
