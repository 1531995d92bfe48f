//! What the tests share: addresses, names, a plain client to look at queues with, and a way to cut connections.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use backstop_core::Envelope;
use backstop_core::message::Destination;
use backstop_core::sink::{Confirmation, Publisher, Refused, Scope};
use backstop_core::source::{Received, Source};
use backstop_rabbitmq::{RabbitPublisher, RabbitSettings, RabbitSettlement, RabbitSource};
use backstop_testkit::fault::Proxy;
use lapin::message::BasicGetMessage;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicGetOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Connection, ConnectionProperties, Consumer};
use uuid::Uuid;

/// A bound on waiting, never a wait.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set; run: eval \"$(tests/servers env)\""))
}

pub(crate) fn url() -> String {
    variable("BACKSTOP_TEST_AMQP_URL")
}

pub(crate) fn settings() -> RabbitSettings {
    RabbitSettings::parse(&url()).unwrap()
}

/// Where the management API is.
pub(crate) fn api() -> String {
    variable("BACKSTOP_TEST_RABBITMQ_API").trim_end_matches('/').to_owned()
}

/// A proxy before the broker, and settings that lead through it. A lost peer is noticed after two seconds.
pub(crate) async fn proxied() -> (Proxy, RabbitSettings) {
    let proxy = Proxy::start(broker()).await.unwrap();
    let settings = settings_through(proxy.address());
    (proxy, settings.heartbeat(Duration::from_secs(1)).connect_timeout(Duration::from_secs(2)))
}

/// Host and port of the broker.
pub(crate) fn broker() -> String {
    let url = url();
    let (_, rest) = url.rsplit_once('@').expect("the URL names a user");
    rest.split_once('/').map_or(rest, |(broker, _)| broker).to_owned()
}

/// Settings that lead to the broker through another address.
pub(crate) fn settings_through(address: SocketAddr) -> RabbitSettings {
    RabbitSettings::parse(&url().replace(&broker(), &address.to_string())).unwrap()
}

/// A name that no other test uses.
pub(crate) fn unique(stem: &str) -> String {
    format!("backstop-test-{stem}-{}", Uuid::now_v7().simple())
}

/// A plain client.
pub(crate) struct Client {
    _connection: Connection,
    pub(crate) channel: Channel,
}

impl Client {
    pub(crate) async fn connect() -> Self {
        let connection = Connection::connect(&url(), ConnectionProperties::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        Self { _connection: connection, channel }
    }

    pub(crate) async fn declare(&self, queue: &str, arguments: &[(&str, AMQPValue)]) {
        let arguments: BTreeMap<_, _> =
            arguments.iter().map(|(name, value)| ((*name).into(), value.clone())).collect();
        let options = QueueDeclareOptions::durable();
        self.channel.queue_declare(queue.into(), options, arguments.into()).await.unwrap();
    }

    /// Takes one message out of the queue, waiting for it.
    pub(crate) async fn take(&self, queue: &str) -> BasicGetMessage {
        within("a message in the queue", async {
            loop {
                if let Some(message) = self.try_take(queue).await {
                    return message;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await
    }

    pub(crate) async fn try_take(&self, queue: &str) -> Option<BasicGetMessage> {
        let message = self.channel.basic_get(queue.into(), BasicGetOptions::default()).await.unwrap()?;
        message.delivery.ack(BasicAckOptions::default()).await.unwrap();
        Some(message)
    }

    /// Messages that are ready in the queue.
    pub(crate) async fn count(&self, queue: &str) -> u32 {
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let queue = self.channel.queue_declare(queue.into(), options, FieldTable::default()).await.unwrap();
        queue.message_count()
    }

    /// Waits until that many messages are ready in the queue.
    pub(crate) async fn ready(&self, queue: &str, messages: u32) {
        within("messages in the queue", async {
            while self.count(queue).await != messages {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
    }

    /// Subscribes to the queue, whose next messages come as soon as they may.
    pub(crate) async fn subscribe(&self, queue: &str) -> Consumer {
        let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
        self.channel.basic_consume(queue.into(), "".into(), options, FieldTable::default()).await.unwrap()
    }

    /// Bodies of everything in the queue.
    pub(crate) async fn drain(&self, queue: &str, count: usize) -> Vec<String> {
        let mut bodies = Vec::new();
        for _ in 0..count {
            bodies.push(String::from_utf8(self.take(queue).await.delivery.data.clone()).unwrap());
        }
        bodies
    }
}

/// The result, or a panic that says what did not happen.
pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, future).await.unwrap_or_else(|_| panic!("timed out waiting for {what}"))
}

pub(crate) fn envelope(id: &str, key: Option<&str>, body: &str) -> Envelope {
    Envelope {
        key: key.map(|key| key.to_owned().into()),
        headers: [("amqp:message-id", Some(id.to_owned()))].into_iter().collect(),
        body: Some(body.to_owned().into()),
    }
}

pub(crate) fn submit(publisher: &mut RabbitPublisher, ticket: u64, to: &Destination, key: Option<&str>) {
    let text = ticket.to_string();
    match publisher.submit(ticket, to, envelope(&text, key, &text)) {
        Ok(()) => {}
        Err(Refused::Full(_)) => panic!("the window is full"),
        Err(Refused::Failed(error)) => panic!("refused: {error}"),
    }
}

/// The confirmations of `count` messages, by ticket.
pub(crate) async fn confirmed(publisher: &mut RabbitPublisher, count: usize) -> BTreeMap<u64, Option<Scope>> {
    let mut confirmations: Vec<Confirmation> = Vec::new();
    while confirmations.len() < count {
        within("confirmations", publisher.confirmations(&mut confirmations)).await;
    }
    assert_eq!(confirmations.len(), count);
    let scope =
        |result: Result<(), backstop_core::sink::PublishError>| result.err().map(|error| error.scope());
    confirmations.into_iter().map(|confirmation| (confirmation.ticket, scope(confirmation.result))).collect()
}

/// The next `count` messages of a source.
pub(crate) async fn receive(source: &mut RabbitSource, count: usize) -> Vec<Received<RabbitSettlement>> {
    let mut received = Vec::new();
    while received.len() < count {
        received.extend(within("messages", source.next()).await.unwrap().unwrap());
    }
    received
}

pub(crate) fn text(received: &Received<RabbitSettlement>) -> String {
    String::from_utf8(received.message.body.as_ref().unwrap().to_vec()).unwrap()
}

/// Cuts the connections of that name, which the application gave them, as an operator would. Waits until there are
/// some.
pub(crate) async fn cut_connections(name: &str) {
    let name = name.to_owned();
    let cut = async {
        loop {
            let wanted = name.clone();
            if tokio::task::spawn_blocking(move || cut_those_there(&wanted)).await.unwrap() > 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    within("the connection to be listed", cut).await;
}

fn cut_those_there(name: &str) -> usize {
    let listed: serde_json::Value = serde_json::from_str(&ask("GET", "/api/connections", "")).unwrap();
    let of_ours =
        |connection: &&serde_json::Value| connection["client_properties"]["connection_name"] == name;
    let mut cut = 0;
    for connection in listed.as_array().unwrap().iter().filter(of_ours) {
        let name = connection["name"].as_str().unwrap();
        let escaped: String = name.bytes().map(|byte| format!("%{byte:02X}")).collect();
        // A connection that has just ended by itself is not there any more.
        let (code, answer) = exchange("DELETE", &format!("/api/connections/{escaped}"), "");
        assert!(code.starts_with('2') || code == "404", "{name}: {answer}");
        cut += usize::from(code != "404");
    }
    cut
}

/// A request to the management API; answers the body.
pub(crate) fn ask(method: &str, path: &str, body: &str) -> String {
    let (code, answer) = exchange(method, path, body);
    assert!(code.starts_with('2'), "{method} {path}: {answer}");
    answer.split_once("\r\n\r\n").unwrap_or_default().1.to_owned()
}

/// A request to the management API; answers the status and all that came.
fn exchange(method: &str, path: &str, body: &str) -> (String, String) {
    let api = api();
    let host = api.trim_start_matches("http://");
    let mut stream = TcpStream::connect(host).unwrap();
    let login = "Authorization: Basic Z3Vlc3Q6Z3Vlc3Q=";
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.0\r\nHost: {host}\r\n{login}\r\nContent-Length: {length}\r\n\r\n{body}"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    (answer.split(' ').nth(1).unwrap_or_default().to_owned(), answer)
}
