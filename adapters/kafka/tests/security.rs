//! TLS, client certificates and every SASL mechanism against a real Kafka: what gets in, and what is told of what does
//! not.

mod common;

use std::error::Error;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use backstop_core::dead_letter::{DeadLetters, kafka_door, kafka_letters};
use backstop_core::message::Destination;
use backstop_core::sink::{Confirmation, Publisher, Scope, Sink};
use backstop_core::source::{Source, SourceInfo};
use backstop_core::{AdapterError, FaultKind};
use backstop_kafka::{KafkaDeadLetters, KafkaPublisher, KafkaSettings, KafkaSink, KafkaSource};
use tokio::net::{TcpListener, TcpStream};

use common::{Topic, body, envelope, read, settle, unique, variable, within};

/// How soon a refusal must be told. The limit on a publish is 30 s.
const PROMPT: Duration = Duration::from_secs(15);
const PASSWORD: &str = "not-the-passw0rd";

fn file(name: &str) -> String {
    format!("{}/{name}", variable("BACKSTOP_TEST_TLS"))
}

/// TLS with our own authority and that client certificate, if any.
fn tls(brokers: &str, certificate: Option<&str>) -> KafkaSettings {
    let settings = KafkaSettings::new(brokers)
        .property("security.protocol", "SSL")
        .property("ssl.ca.location", file("ca.pem"));
    match certificate {
        None => settings,
        Some(name) => settings
            .property("ssl.certificate.location", file(&format!("{name}.pem")))
            .property("ssl.key.location", file(&format!("{name}.key"))),
    }
}

fn mutual(certificate: Option<&str>) -> KafkaSettings {
    tls(&variable("BACKSTOP_TEST_KAFKA_SSL"), certificate)
}

/// A login over TLS.
fn sasl(mechanism: &str) -> KafkaSettings {
    tls(&variable("BACKSTOP_TEST_KAFKA_SASL"), None)
        .property("security.protocol", "SASL_SSL")
        .property("sasl.mechanism", mechanism)
}

fn login(mechanism: &str, password: &str) -> KafkaSettings {
    sasl(mechanism)
        .property("sasl.username", variable("BACKSTOP_TEST_TLS_USER"))
        .property("sasl.password", password)
}

fn right(mechanism: &str) -> KafkaSettings {
    login(mechanism, &variable("BACKSTOP_TEST_TLS_PASSWORD"))
}

/// Publishes and consumes one message; answers whether the door could be made.
async fn goes_round(settings: KafkaSettings) -> bool {
    let (topic, group) = (unique("tls"), unique("group"));
    let door = kafka_door(&topic, &group);
    let topic = Topic::with(&topic, 1, &[]).await.and(door.clone());
    let sink = KafkaSink::new(settings.clone());
    let destination = Destination::new(&topic.name);
    let sent = within("confirmation", sink.publish(&destination, envelope("k", "over TLS"))).await;
    sent.unwrap_or_else(|error| panic!("{error:?}"));
    let mut source = KafkaSource::subscribe("", &group, &[&topic.name]).settings(settings);
    let received = read(&mut source, 1).await.remove(0);
    assert_eq!(body(&received), "over TLS");
    assert!(settle(received));
    source.close().await.expect("closed");
    common::partitions(&door) > 0
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

/// All that connects is denied soon, with that hint and without a secret.
async fn refused(settings: KafkaSettings, hint: &str) {
    let topic = Topic::new("refused", 1).await;
    let check = |who: &str, begun: Instant, error: &AdapterError| {
        let told = told(error);
        assert_eq!(error.kind(), FaultKind::Denied, "{who}: {told}");
        assert!(error.hint().is_some_and(|told| told.contains(hint)), "{who}: {told}");
        assert!(!told.contains(PASSWORD), "{who}: {told}");
        assert!(begun.elapsed() < PROMPT, "{who}: {:?}", begun.elapsed());
    };
    let destination = Destination::new(&topic.name);
    let begun = Instant::now();
    let sink = KafkaSink::new(settings.clone());
    let error = within("sink", sink.publish(&destination, envelope("k", "x"))).await.expect_err("refused");
    assert_eq!(error.scope(), Scope::Broker);
    check("sink", begun, error.error());

    let begun = Instant::now();
    let mut publisher = KafkaPublisher::new(settings.clone());
    publisher.submit(1, &destination, envelope("k", "x")).expect("queued");
    let mut confirmations: Vec<Confirmation> = Vec::new();
    within("publisher", publisher.confirmations(&mut confirmations)).await;
    check("publisher", begun, confirmations.remove(0).result.expect_err("refused").error());

    let begun = Instant::now();
    let errors = within("probe", publisher.probe(std::slice::from_ref(&destination))).await;
    check("probe", begun, errors[0].error());

    let begun = Instant::now();
    let mut source = KafkaSource::subscribe("", unique("group"), &[&topic.name]).settings(settings);
    let Err(error) = within("source", source.next()).await else { panic!("refused") };
    check("source", begun, &error);
}

#[tokio::test]
async fn a_client_certificate_of_our_own_authority_gets_in() {
    assert!(goes_round(mutual(Some("client"))).await);
}

#[tokio::test]
async fn a_password_over_tls_gets_in() {
    assert!(goes_round(right("PLAIN")).await);
}

#[tokio::test]
async fn a_scram_login_over_tls_gets_in() {
    assert!(goes_round(right("SCRAM-SHA-512")).await);
}

#[tokio::test]
async fn s30_an_authority_that_signed_nothing_is_refused() {
    let settings = mutual(Some("client")).property("ssl.ca.location", file("stranger-ca.pem"));
    refused(settings, "ssl.ca.location").await;
}

#[tokio::test]
async fn s30_a_host_that_the_certificate_does_not_name_is_refused() {
    let address = elsewhere(variable("BACKSTOP_TEST_KAFKA_SSL")).await;
    refused(tls(&address, Some("client")), "name the hosts").await;
}

#[tokio::test]
async fn s31_a_missing_client_certificate_is_refused() {
    refused(mutual(None), "ssl.certificate.location").await;
}

#[tokio::test]
async fn s31_an_expired_client_certificate_is_refused() {
    refused(mutual(Some("expired")), "valid now").await;
}

#[tokio::test]
async fn s31_a_client_certificate_of_a_stranger_is_refused() {
    refused(mutual(Some("stranger")), "authority that the brokers know").await;
}

#[tokio::test]
async fn a_wrong_password_is_refused() {
    refused(login("PLAIN", PASSWORD), "password").await;
}

#[tokio::test]
async fn a_wrong_scram_password_is_refused() {
    refused(login("SCRAM-SHA-512", PASSWORD), "password").await;
}

#[tokio::test]
async fn a_mechanism_that_the_brokers_do_not_have_is_refused() {
    refused(login("SCRAM-SHA-256", PASSWORD), "sasl.mechanism").await;
}

#[tokio::test]
async fn tls_and_plaintext_that_meet_are_told_apart_from_an_outage() {
    let topic = Topic::new("tls", 1).await;
    let plain = right("PLAIN").property("security.protocol", "SASL_PLAINTEXT");
    for settings in [tls(&variable("BACKSTOP_TEST_KAFKA"), None), plain] {
        let sink = KafkaSink::new(settings).publish_timeout(Duration::from_secs(3));
        let sent = sink.publish(&Destination::new(&topic.name), envelope("k", "x")).await;
        let error = sent.expect_err("nobody answers");
        assert_eq!(error.error().kind(), FaultKind::Unreachable);
        let hint = error.error().hint().expect("a hint");
        assert!(hint.contains("security.protocol"), "{}", told(error.error()));
    }
}

#[tokio::test]
async fn s33_a_password_without_tls_to_another_machine_is_never_sent() {
    // Nothing listens there: settings are looked at first.
    let settings = KafkaSettings::new("192.0.2.1:9092")
        .property("security.protocol", "SASL_PLAINTEXT")
        .property("sasl.mechanism", "PLAIN")
        .property("sasl.password", PASSWORD);
    let begun = Instant::now();
    let sent = KafkaSink::new(settings.clone()).publish(&Destination::new("t"), envelope("k", "x")).await;
    let sent = sent.expect_err("refused");
    let Err(read) = KafkaSource::subscribe("", "g", &["t"]).settings(settings).next().await else {
        panic!("refused")
    };
    for error in [sent.error(), &read] {
        assert_eq!(error.kind(), FaultKind::Invalid);
        assert!(error.hint().is_some_and(|hint| hint.contains("SASL_SSL")), "{}", told(error));
        assert!(!told(error).contains(PASSWORD));
    }
    assert!(begun.elapsed() < PROMPT);
}

/// A file with a token, removed at the end.
struct Token(PathBuf);

impl Token {
    fn new(text: &str) -> Self {
        let path = std::env::temp_dir().join(unique("token"));
        std::fs::write(&path, text).expect("written");
        Self(path)
    }

    /// As a sidecar does it: at once, for whoever reads meanwhile.
    fn replace(&self, text: &str) {
        let fresh = self.0.with_extension("fresh");
        std::fs::write(&fresh, text).expect("written");
        std::fs::rename(&fresh, &self.0).expect("renamed");
    }

    fn settings(&self) -> KafkaSettings {
        sasl("OAUTHBEARER").property("backstop.oauthbearer.token.location", self.0.to_str().expect("text"))
    }
}

impl Drop for Token {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A token that nobody signed, which the test broker takes, valid for that long from now.
fn unsigned(valid: i64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    let now = i64::try_from(now).expect("seconds");
    let claims = format!(
        r#"{{"sub":"{}","iat":{},"exp":{}}}"#,
        variable("BACKSTOP_TEST_TLS_USER"),
        now.min(now + valid - 1),
        now + valid
    );
    format!("{}.{}.", base64(br#"{"alg":"none"}"#), base64(claims.as_bytes()))
}

/// For URLs, without padding.
fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let group = |group: &[u8]| {
        let bits = group.iter().fold(0_usize, |bits, byte| bits << 8 | usize::from(*byte))
            << (8 * (3 - group.len()));
        (0..=group.len()).map(move |n| char::from(LETTERS[bits >> (18 - 6 * n) & 63])).collect::<String>()
    };
    bytes.chunks(3).map(group).collect()
}

#[tokio::test]
async fn a_token_from_a_file_gets_in_and_makes_no_topics() {
    let token = Token::new(&unsigned(3_600));
    assert!(!goes_round(token.settings()).await, "no door was made");

    let (topic, group) = (Topic::new("tls", 1).await, unique("group"));
    let source = SourceInfo { system: "kafka", group: group.clone(), places: vec![topic.name.clone()] };
    let letters = KafkaDeadLetters::new(token.settings());
    let error = within("prepare", letters.prepare(&source)).await.expect_err("there is no such topic");
    assert_eq!(error.kind(), FaultKind::Denied);
    assert!(error.hint().is_some_and(|hint| hint.contains("create topic")), "{}", told(&error));
    let _there = Topic::with(&kafka_letters(&topic.name, &group), 1, &[]).await;
    within("prepare", letters.prepare(&source)).await.unwrap_or_else(|error| panic!("{}", told(&error)));
}

/// How long the first token is valid, in seconds.
const SHORT: i64 = 20;

#[tokio::test]
async fn a_token_that_is_replaced_in_time_keeps_a_client_going() {
    let topic = Topic::new("tls", 1).await;
    let token = Token::new(&unsigned(SHORT));
    let sink = KafkaSink::new(token.settings());
    let mut source =
        KafkaSource::subscribe("", unique("group"), &[&topic.name]).settings(token.settings()).door(false);
    let destination = Destination::new(&topic.name);
    within("confirmation", sink.publish(&destination, envelope("k", "1"))).await.expect("confirmed");
    assert!(settle(read(&mut source, 1).await.remove(0)));
    token.replace(&unsigned(3_600));
    // Time itself is the event here: the broker hangs up on who does not show another token by then. A source ends
    // with the first refusal.
    tokio::time::sleep(Duration::from_secs(SHORT.unsigned_abs() + 2)).await;
    within("confirmation", sink.publish(&destination, envelope("k", "2"))).await.expect("confirmed");
    assert_eq!(body(&read(&mut source, 1).await[0]), "2");
    source.close().await.expect("closed");
}

#[tokio::test]
async fn an_absent_or_expired_token_is_refused() {
    refused(sasl("OAUTHBEARER"), "backstop.oauthbearer.token.location").await;
    let token = Token::new(&unsigned(-5));
    refused(token.settings(), "valid now").await;
}

#[tokio::test]
async fn a_token_that_the_brokers_do_not_take_is_refused() {
    let token = Token::new(PASSWORD);
    refused(token.settings(), "token").await;
}
