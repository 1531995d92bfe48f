//! TLS and client certificates against a real RabbitMQ: what gets in, and what is told of what does not.

use std::error::Error;
use std::time::{Duration, Instant};

use backstop_core::message::Destination;
use backstop_core::sink::{Confirmation, Publisher, Scope, Sink};
use backstop_core::source::{Settlement, Source};
use backstop_core::{AdapterError, Envelope, FaultKind};
use backstop_rabbitmq::{
    RabbitPublisher, RabbitSettings, RabbitSink, RabbitSource, declare_queue, delete_queue,
};
use tokio::net::{TcpListener, TcpStream};

/// How soon a refusal must be told.
const PROMPT: Duration = Duration::from_secs(10);
/// A bound on waiting, never a wait.
const LIMIT: Duration = Duration::from_secs(60);
const PASSWORD: &str = "not-the-passw0rd";

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set; run: eval \"$(tests/servers env)\""))
}

fn file(name: &str) -> String {
    format!("{}/{name}", variable("BACKSTOP_TEST_TLS"))
}

/// User, password and host of a URL whose authority is ours.
fn with_password(password: &str, server: &str) -> String {
    format!("amqps://guest:{password}@{server}/%2f?cacertfile={}", file("ca.pem"))
}

/// A login by that certificate.
fn with_certificate(name: &str) -> String {
    let (certificate, key) = (file(&format!("{name}.pem")), file(&format!("{name}.key")));
    let server = variable("BACKSTOP_TEST_AMQPS");
    format!(
        "amqps://{server}/%2f?{}&certfile={certificate}&keyfile={key}&auth_mechanism=external",
        authority()
    )
}

fn authority() -> String {
    format!("cacertfile={}", file("ca.pem"))
}

fn settings(url: &str) -> RabbitSettings {
    RabbitSettings::parse(url).expect("a URL")
}

fn unique() -> String {
    format!("backstop-test-tls-{}", uuid::Uuid::now_v7().simple())
}

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, future).await.unwrap_or_else(|_| panic!("timed out waiting for {what}"))
}

fn envelope() -> Envelope {
    Envelope {
        key: None,
        headers: [("amqp:message-id", Some("1".to_owned()))].into_iter().collect(),
        body: Some("over TLS".into()),
    }
}

async fn goes_round(url: &str) {
    let queue = unique();
    declare_queue(&settings(url), &queue).await.expect("declared");
    let sent = RabbitSink::new(settings(url)).publish(&Destination::new(&queue), envelope()).await;
    sent.expect("confirmed");
    let mut source = RabbitSource::consume(url, &queue).door(false).build().expect("a source");
    let batch = within("a message", source.next()).await.expect("read").expect("not ended");
    for received in batch {
        assert_eq!(received.message.body.as_deref(), Some(&b"over TLS"[..]));
        received.settlement.settle();
    }
    source.close().await.expect("closed");
    delete_queue(&settings(url), &queue).await.expect("deleted");
}

/// Forwards to `broker` from an address that its certificate does not name.
async fn elsewhere(broker: String) -> String {
    let listener = TcpListener::bind(("127.0.0.2", 0)).await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let broker = broker.clone();
            tokio::spawn(async move {
                let mut server = TcpStream::connect(broker).await?;
                tokio::io::copy_bidirectional(&mut client, &mut server).await
            });
        }
    });
    address.to_string()
}

/// Everything that an error tells.
fn told(error: &AdapterError) -> String {
    let mut text = format!("{error} | {:?} | {error:?}", error.hint());
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!(" | {error}");
        cause = error.source();
    }
    text
}

/// All that connects is refused soon, with that hint and without a secret.
async fn refused(url: &str, kind: FaultKind, hint: &str) {
    let check = |who: &str, begun: Instant, error: &AdapterError| {
        let told = told(error);
        assert_eq!(error.kind(), kind, "{who}: {told}");
        assert!(error.hint().is_some_and(|told| told.contains(hint)), "{who}: {told}");
        assert!(!told.contains(PASSWORD), "{who}: {told}");
        assert!(begun.elapsed() < PROMPT, "{who}: {:?}", begun.elapsed());
    };
    let destination = Destination::new(unique());
    let begun = Instant::now();
    let sent = RabbitSink::new(settings(url)).publish(&destination, envelope()).await;
    let error = sent.expect_err("refused");
    assert_eq!(error.scope(), Scope::Broker);
    check("sink", begun, error.error());

    let begun = Instant::now();
    let mut publisher = RabbitPublisher::builder(settings(url)).start().expect("started");
    publisher.submit(1, &destination, envelope()).expect("queued");
    let mut confirmations: Vec<Confirmation> = Vec::new();
    within("publisher", publisher.confirmations(&mut confirmations)).await;
    check("publisher", begun, confirmations.remove(0).result.expect_err("refused").error());

    let begun = Instant::now();
    let errors = within("probe", publisher.probe(std::slice::from_ref(&destination))).await;
    check("probe", begun, errors[0].error());

    let begun = Instant::now();
    let mut source = RabbitSource::consume(url, unique()).build().expect("a source");
    let Err(error) = within("source", source.next()).await else { panic!("refused") };
    check("source", begun, &error);
}

#[tokio::test]
async fn a_password_over_tls_gets_in() {
    goes_round(&with_password("guest", &variable("BACKSTOP_TEST_AMQPS"))).await;
}

#[tokio::test]
async fn a_client_certificate_gets_in_without_a_password() {
    goes_round(&with_certificate("client")).await;
}

#[tokio::test]
async fn s30_an_authority_that_signed_nothing_is_refused() {
    let url = with_password(PASSWORD, &variable("BACKSTOP_TEST_AMQPS"));
    refused(&url.replace("/ca.pem", "/stranger-ca.pem"), FaultKind::Denied, "cacertfile").await;
}

#[tokio::test]
async fn s30_without_an_authority_only_the_systems_are_trusted() {
    let url = format!("amqps://guest:{PASSWORD}@{}/%2f", variable("BACKSTOP_TEST_AMQPS"));
    refused(&url, FaultKind::Denied, "cacertfile").await;
}

#[tokio::test]
async fn s30_a_host_that_the_certificate_does_not_name_is_refused() {
    let address = elsewhere(variable("BACKSTOP_TEST_AMQPS")).await;
    refused(&with_password(PASSWORD, &address), FaultKind::Denied, "names the host").await;
}

#[tokio::test]
async fn s31_an_expired_client_certificate_is_refused() {
    refused(&with_certificate("expired"), FaultKind::Denied, "valid now").await;
}

#[tokio::test]
async fn s31_a_client_certificate_of_a_stranger_is_refused() {
    refused(&with_certificate("stranger"), FaultKind::Denied, "authority that the broker knows").await;
}

#[tokio::test]
async fn s31_a_missing_client_certificate_is_refused() {
    let server = variable("BACKSTOP_TEST_AMQPS");
    let url = format!("amqps://{server}/%2f?{}&auth_mechanism=external", authority());
    refused(&url, FaultKind::Denied, "certfile").await;
}

#[tokio::test]
async fn a_wrong_password_is_refused() {
    let url = with_password(PASSWORD, &variable("BACKSTOP_TEST_AMQPS"));
    refused(&url, FaultKind::Denied, "password").await;
}

#[tokio::test]
async fn s31_a_key_of_another_certificate_is_refused() {
    let url = with_certificate("client").replace("/client.key", "/stranger.key");
    refused(&url, FaultKind::Invalid, "belong together").await;
}

#[tokio::test]
async fn a_tls_client_at_the_plain_port_is_told_so() {
    let plain = variable("BACKSTOP_TEST_AMQP_URL");
    let server = plain.rsplit_once('@').and_then(|(_, rest)| rest.split('/').next()).expect("a server");
    refused(&with_password(PASSWORD, server), FaultKind::Invalid, "TLS port").await;
}
