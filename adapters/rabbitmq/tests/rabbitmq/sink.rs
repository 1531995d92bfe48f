use std::time::Duration;

use backstop_core::FaultKind;
use backstop_core::message::Destination;
use backstop_core::sink::{Scope, Sink};
use backstop_rabbitmq::{RabbitSettings, RabbitSink, declare_exchange, declare_queue, delete_queue};
use lapin::types::AMQPValue;

use crate::support::{Client, envelope, settings, unique, url};

#[tokio::test]
async fn a_confirmed_message_is_in_the_queue_and_persistent() {
    let queue = unique("sink");
    declare_queue(&settings(), &queue).await.unwrap();
    let sink = RabbitSink::new(settings());
    sink.publish(&Destination::new(&queue), envelope("1", Some("k"), "hello")).await.unwrap();
    let message = Client::connect().await.take(&queue).await;
    assert_eq!(message.delivery.data, b"hello");
    assert_eq!(message.delivery.properties.delivery_mode(), &Some(2));
    let headers = message.delivery.properties.headers().as_ref().unwrap();
    assert_eq!(headers.inner()["cloudEvents:partitionkey"], AMQPValue::LongString("k".into()));
    delete_queue(&settings(), &queue).await.unwrap();
}

/// F33: nothing is published without `mandatory`.
#[tokio::test]
async fn what_no_queue_takes_is_the_destinations_fault() {
    let (queue, exchange) = (unique("sink"), unique("exchange"));
    declare_queue(&settings(), &queue).await.unwrap();
    declare_exchange(&settings(), &exchange, "direct", &queue, "bound").await.unwrap();
    let sink = RabbitSink::new(settings());
    for destination in [
        Destination::new(unique("missing-queue")),
        Destination::exchange(&exchange, "unbound"),
        Destination::exchange(unique("missing-exchange"), "x"),
    ] {
        let error = sink.publish(&destination, envelope("1", None, "x")).await.unwrap_err();
        assert_eq!(
            (error.scope(), error.error().kind()),
            (Scope::Destination, FaultKind::Missing),
            "{error}"
        );
        assert!(error.error().hint().is_some());
    }
    // the channels that were closed are of no consequence
    sink.publish(&Destination::exchange(&exchange, "bound"), envelope("2", None, "x")).await.unwrap();
    delete_queue(&settings(), &queue).await.unwrap();
}

/// F38: the nack of a queue that rejects is a failure, charged to nobody.
#[tokio::test]
async fn a_full_queue_is_the_destinations_fault() {
    let queue = unique("full");
    let client = Client::connect().await;
    let limit = ("x-max-length", AMQPValue::LongInt(1));
    let refuse = ("x-overflow", AMQPValue::LongString("reject-publish".into()));
    client.declare(&queue, &[limit, refuse]).await;
    let sink = RabbitSink::new(settings());
    let mut refused = None;
    for n in 0..10 {
        let sent = sink.publish(&Destination::new(&queue), envelope(&n.to_string(), None, "x")).await;
        refused = refused.or(sent.err());
    }
    let error = refused.expect("the queue holds one message");
    assert_eq!(error.scope(), Scope::Destination);
    assert!(error.to_string().contains("full"), "{error}");
    delete_queue(&settings(), &queue).await.unwrap();
}

/// F44: larger than the broker takes.
#[tokio::test]
async fn what_cannot_be_sent_is_the_messages_fault_and_harms_no_other() {
    let queue = unique("sink");
    declare_queue(&settings(), &queue).await.unwrap();
    let sink = RabbitSink::new(settings()).max_message_bytes(10);
    let to = Destination::new(&queue);
    let mut headers = envelope("1", None, "x");
    headers.headers.append("long", "v".repeat(200_000));
    for envelope in [envelope("1", None, "more than ten bytes"), headers] {
        assert_eq!(sink.publish(&to, envelope).await.unwrap_err().scope(), Scope::Message);
    }
    sink.publish(&to, envelope("2", None, "x")).await.unwrap();
    delete_queue(&settings(), &queue).await.unwrap();
}

#[tokio::test]
async fn large_headers_below_the_limit_pass() {
    let queue = unique("sink");
    declare_queue(&settings(), &queue).await.unwrap();
    let mut large = envelope("1", None, "x");
    for n in 0..100 {
        large.headers.append(format!("header-{n}"), "v".repeat(1_200));
    }
    RabbitSink::new(settings()).publish(&Destination::new(&queue), large).await.unwrap();
    delete_queue(&settings(), &queue).await.unwrap();
}

/// F47: told from an outage, and not shown.
#[tokio::test]
async fn a_wrong_password_is_denied_and_not_shown() {
    let url = url().replace("guest:guest@", "guest:s3cret-of-mine@");
    let sink = RabbitSink::new(RabbitSettings::parse(&url).unwrap());
    let error = sink.publish(&Destination::new("q"), envelope("1", None, "x")).await.unwrap_err();
    assert_eq!((error.scope(), error.error().kind()), (Scope::Broker, FaultKind::Denied), "{error}");
    assert!(!format!("{error} {error:?} {:?} {sink:?}", error.error().hint()).contains("s3cret"));
    assert!(error.error().hint().unwrap().contains("password"));
}

#[tokio::test]
async fn a_missing_vhost_is_named() {
    let url = url().replace("%2f", "no-such-vhost");
    let sink = RabbitSink::new(RabbitSettings::parse(&url).unwrap());
    let error = sink.publish(&Destination::new("q"), envelope("1", None, "x")).await.unwrap_err();
    assert_eq!(error.error().kind(), FaultKind::Missing, "{error}");
    assert!(error.to_string().contains("no-such-vhost"), "{error}");
}

#[tokio::test]
async fn a_broker_that_is_not_there_or_silent_is_unreachable() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let silent_port = silent.local_addr().unwrap().port();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let free_port = free.local_addr().unwrap().port();
    drop(free);
    for port in [silent_port, free_port] {
        let settings = RabbitSettings::parse(&format!("amqp://guest:guest@127.0.0.1:{port}/%2f")).unwrap();
        let sink = RabbitSink::new(settings.connect_timeout(Duration::from_millis(300)));
        let error = sink.publish(&Destination::new("q"), envelope("1", None, "x")).await.unwrap_err();
        assert_eq!((error.scope(), error.error().kind()), (Scope::Broker, FaultKind::Unreachable), "{error}");
    }
}
