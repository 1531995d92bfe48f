//! Dead letters that RabbitMQ and Kafka Connect have made themselves: read from the live broker, kept with what they say,
//! and sent back to where they came from.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use backstop::Message;
use backstop_tests::database::Database;
use backstop_tests::program::{Broker, RelayConfig};
use backstop_tests::workload::{self, Publisher};
use backstop_tests::{letters, servers, wait};
use lapin::options::{
    BasicGetOptions, BasicNackOptions, BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use sqlx::Row;

const PATIENCE: Duration = Duration::from_secs(180);

/// The ways, as the broker names them, and the settings of a queue in which messages die so.
fn ways() -> [(&'static str, Vec<(&'static str, AMQPValue)>); 4] {
    let text = |text: &str| AMQPValue::LongString(text.into());
    [
        ("rejected", vec![("x-queue-type", text("quorum"))]),
        ("expired", vec![("x-message-ttl", AMQPValue::LongInt(1))]),
        ("maxlen", vec![("x-max-length", AMQPValue::LongInt(1))]),
        (
            "delivery_limit",
            vec![("x-queue-type", text("quorum")), ("x-delivery-limit", AMQPValue::LongInt(1))],
        ),
    ]
}

async fn declare(channel: &Channel, queue: &str, settings: Vec<(&'static str, AMQPValue)>) {
    let mut table = FieldTable::default();
    for (name, value) in settings {
        table.insert(name.into(), value);
    }
    channel.queue_declare(queue.into(), QueueDeclareOptions::durable(), table).await.expect("declared");
}

async fn publish(channel: &Channel, queue: &str, body: &str) {
    let options = BasicPublishOptions::default();
    let properties = BasicProperties::default().with_delivery_mode(2);
    let confirmed =
        channel.basic_publish("".into(), queue.into(), options, body.as_bytes(), properties).await;
    confirmed.expect("published").await.expect("confirmed");
}

/// Takes the message of a queue and gives it back, to be delivered again or not.
async fn refuse(channel: &Channel, queue: &str, requeue: bool) {
    let options = BasicGetOptions::default();
    let message = channel.basic_get(queue.into(), options).await.expect("answered").expect("a message");
    message
        .delivery
        .nack(BasicNackOptions { requeue, ..BasicNackOptions::default() })
        .await
        .expect("answered");
}

/// Lets a message with the body `body` die in that way.
async fn die(channel: &Channel, queue: &str, way: &str, body: &str) {
    publish(channel, queue, body).await;
    match way {
        "rejected" => refuse(channel, queue, false).await,
        // The older one makes room.
        "maxlen" => publish(channel, queue, "stays").await,
        "delivery_limit" => {
            refuse(channel, queue, true).await;
            refuse(channel, queue, true).await;
        }
        _ => {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn letters_that_rabbitmq_has_made_are_read_and_go_back_to_where_they_came_from() {
    let database = Database::fresh("xdeath").await;
    let (stem, url) = (servers::unique("xdeath"), servers::amqp_url());
    let connection =
        Connection::connect(&url, ConnectionProperties::default()).await.expect("RabbitMQ answers");
    let channel = connection.create_channel().await.expect("a channel");
    channel.confirm_select(ConfirmSelectOptions::default()).await.expect("confirms");
    let dlq = format!("{stem}.letters");
    declare(&channel, &dlq, vec![("x-queue-type", AMQPValue::LongString("quorum".into()))]).await;
    for (way, mut settings) in ways() {
        let queue = format!("{stem}.{way}");
        settings.push(("x-dead-letter-exchange", AMQPValue::LongString("".into())));
        settings.push(("x-dead-letter-routing-key", AMQPValue::LongString(dlq.as_str().into())));
        declare(&channel, &queue, settings).await;
        die(&channel, &queue, way, &format!("died of {way}")).await;
    }
    let relay = RelayConfig::of(&format!(
        "[database]\nurl = \"{}\"\nschema = \"{schema}\"\n[broker]\nkind = \"rabbitmq\"\nurl = \"{url}\"\n\
         [outbox]\nenabled = false\n[dead_letters]\nenabled = true\nname = \"{schema}\"\nsources = [\"{dlq}\"]\n\
         [dead_letters.redrive]\ntargets = [\"{stem}.rejected\"]\n",
        servers::postgres_url(),
        schema = database.schema,
    ));
    let running = relay.spawn(None);
    wait::until("all are collected", PATIENCE, || async {
        database.number("SELECT count(*) FROM backstop_letter").await == 4
    })
    .await;
    let query = "SELECT reason, place, error, convert_from(body, 'UTF8') FROM backstop_letter";
    let rows = sqlx::query(query).fetch_all(&database.pool).await.expect("PostgreSQL answers");
    let mut found: Vec<[String; 4]> =
        rows.iter().map(|row| [0, 1, 2, 3].map(|column| row.get(column))).collect();
    found.sort();
    let told = [
        ("delivery_limit", "delivered too often"),
        ("expired", "its time to live ended"),
        ("maxlen", "its queue was full"),
        ("rejected", "rejected by its consumer"),
    ];
    let expected = told.map(|(way, error)| {
        [way.to_owned(), format!("{stem}.{way}"), error.to_owned(), format!("died of {way}")]
    });
    assert_eq!(found, expected);

    let arguments = ["dead-letters", "redrive", "--reason", "rejected", "--accept-fanout", "--yes"];
    let (code, output) = tokio::task::block_in_place(|| relay.command(&arguments));
    assert_eq!(code, 0, "{output}");
    let back = letters::messages(Broker::RabbitMq, &format!("{stem}.rejected"), 1).await;
    let bodies: Vec<_> = back.iter().map(|message| message.body.as_deref()).collect();
    assert_eq!(bodies, [Some(&b"died of rejected"[..])]);
    drop(running);
    database.drop().await;
}

/// A worker of Kafka Connect with one sink, which wants JSON and sends what is none to its dead letters.
struct Connect(Child);

impl Connect {
    fn start(folder: &Path, name: &str, topic: &str, letters: &str) -> Self {
        let libs = servers::required("BACKSTOP_TEST_KAFKA_LIBS");
        let at = |file: &str| folder.join(file).display().to_string();
        let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let worker = format!(
            "bootstrap.servers={}\nlisteners=http://{}\nplugin.discovery=service_load\n\
             key.converter=org.apache.kafka.connect.storage.StringConverter\n\
             value.converter=org.apache.kafka.connect.json.JsonConverter\nvalue.converter.schemas.enable=false\n\
             offset.storage.file.filename={}\n",
            servers::kafka(),
            port.expect("a free port"),
            at("offsets")
        );
        let sink = format!(
            "name={name}\nconnector.class=org.apache.kafka.connect.file.FileStreamSinkConnector\ntasks.max=1\n\
             topics={topic}\nfile={}\nerrors.tolerance=all\nerrors.deadletterqueue.topic.name={letters}\n\
             errors.deadletterqueue.topic.replication.factor=1\nerrors.deadletterqueue.context.headers.enable=true\n",
            at("out")
        );
        let (worker_file, sink_file) = (at("worker.properties"), at("sink.properties"));
        std::fs::write(&worker_file, worker).expect("a temporary file");
        std::fs::write(&sink_file, sink).expect("a temporary file");
        let mut java = Command::new("java");
        java.args(["-Xmx256m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-cp", &format!("{libs}/*")]);
        java.args(["org.apache.kafka.connect.cli.ConnectStandalone", &worker_file, &sink_file]);
        java.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Self(java.spawn().expect("Java is there, for Kafka"))
    }
}

impl Drop for Connect {
    fn drop(&mut self) {
        // Fails only where it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn letters_that_kafka_connect_has_made_are_read_and_go_back_to_where_they_came_from() {
    let (database, folder) = (Database::fresh("connect").await, tempfile::tempdir().expect("a folder"));
    let (topic, dlq, name) = (servers::unique("sunk"), servers::unique("sunk-dlq"), servers::unique("sink"));
    workload::create_place(Broker::Kafka, &topic, 1).await;
    workload::create_place(Broker::Kafka, &dlq, 1).await;
    let publisher = Publisher::new(Broker::Kafka);
    let message = |body: &'static str| {
        let mut message = Message::new("event").key("tea");
        message.body = Some(body.into());
        message
    };
    for body in ["{\"n\": 1}", "this is no JSON"] {
        publisher.message(&topic, message(body)).await;
    }
    let connect = Connect::start(folder.path(), &name, &topic, &dlq);
    let relay = RelayConfig::of(&format!(
        "[database]\nurl = \"{}\"\nschema = \"{schema}\"\n[broker]\nkind = \"kafka\"\nbrokers = \"{}\"\n\
         [outbox]\nenabled = false\n[dead_letters]\nenabled = true\nname = \"{schema}\"\nsources = [\"{dlq}\"]\n\
         [dead_letters.redrive]\ntargets = [\"{topic}\"]\n",
        servers::postgres_url(),
        servers::kafka(),
        schema = database.schema,
    ));
    let running = relay.spawn(None);
    wait::until("it is collected", PATIENCE, || async {
        database.number("SELECT count(*) FROM backstop_letter").await == 1
    })
    .await;
    let query = "SELECT place, consumer, reason, error_type, error, convert_from(body, 'UTF8'), \
                 convert_from(msg_key, 'UTF8') FROM backstop_letter";
    let row = sqlx::query(query).fetch_one(&database.pool).await.expect("PostgreSQL answers");
    let told: [Option<String>; 7] = [0, 1, 2, 3, 4, 5, 6].map(|column| row.get(column));
    let told = told.map(Option::unwrap_or_default);
    let [place, consumer, reason, error_type, error, body, key] = &told;
    assert_eq!([place, consumer, reason], [&topic, &name, "VALUE_CONVERTER"], "{told:?}");
    assert_eq!(error_type, "org.apache.kafka.connect.errors.DataException");
    assert!(error.contains("serialization error"), "{error}");
    assert_eq!((&**body, &**key), ("this is no JSON", "tea"));

    // Otherwise what goes back would be a letter once more.
    drop(connect);
    let arguments = ["dead-letters", "redrive", "--consumer", &name, "--accept-fanout", "--yes"];
    let (code, output) = tokio::task::block_in_place(|| relay.command(&arguments));
    assert_eq!(code, 0, "{output}");
    let back = letters::messages(Broker::Kafka, &topic, 3).await;
    let bodies: Vec<_> = back.iter().map(|message| message.body.as_deref().unwrap_or_default()).collect();
    assert_eq!(bodies, [&b"{\"n\": 1}"[..], b"this is no JSON", b"this is no JSON"]);
    drop(running);
    database.drop().await;
}
