use std::collections::BTreeMap;

use backstop_core::dead_letter::{DeadLetter, DeadLetters, redrive_envelope};
use backstop_core::message::Destination;
use backstop_core::sink::{Scope, Sink};
use backstop_core::source::{Received, Source};
use backstop_core::{DeadReason, Envelope, ErrorClass, ErrorReport, Origin, Via, names};
use backstop_rabbitmq::{
    RabbitDeadLetters, RabbitSettlement, RabbitSink, RabbitSource, declare_queue, delete_queue,
};
use chrono::Utc;
use lapin::BasicProperties;
use lapin::options::{BasicPublishOptions, ExchangeDeleteOptions};
use lapin::types::{AMQPValue, DecimalValue, FieldTable};

use crate::support::{Client, envelope, receive, settings, unique, url};
use backstop_core::source::Settlement;

fn letter(queue: &str, envelope: Envelope, origin: Origin) -> DeadLetter {
    let error = std::io::Error::other("no stock");
    DeadLetter {
        envelope,
        origin,
        message_key: None,
        generation: 0,
        consumer: "stock".into(),
        group: queue.into(),
        reason: DeadReason::Exhausted,
        class: ErrorClass::Transient,
        report: ErrorReport::new("stock", "E", &error, None, str::to_owned),
        attempts: 6,
        first_failed_at: Utc::now(),
        dead_at: Utc::now(),
        host: "host".into(),
        consumer_version: "1".into(),
    }
}

fn origin(queue: &str) -> Origin {
    Origin::RabbitMq {
        exchange: String::new(),
        routing_key: queue.into(),
        queue: queue.into(),
        redelivered: false,
    }
}

fn as_envelope(received: &Received<RabbitSettlement>) -> Envelope {
    let message = &received.message;
    Envelope { key: message.key.clone(), headers: message.headers.clone(), body: message.body.clone() }
}

/// A header table with every type that RabbitMQ delivers as it was published.
fn table() -> FieldTable {
    let mut inner = FieldTable::default();
    inner.insert("n".into(), AMQPValue::LongLongInt(-1));
    inner.insert("raw".into(), AMQPValue::LongString(vec![0xff, 0xfe].into()));
    let strings = ["a", "b"].map(|text| AMQPValue::LongString(text.into())).to_vec();
    let values = [
        AMQPValue::Boolean(true),
        AMQPValue::ShortShortInt(-3),
        AMQPValue::ShortInt(-300),
        AMQPValue::LongInt(-70_000),
        AMQPValue::LongLongInt(i64::MIN),
        AMQPValue::ShortShortUInt(200),
        AMQPValue::ShortUInt(60_000),
        AMQPValue::LongUInt(4_000_000_000),
        AMQPValue::Float(1.25),
        AMQPValue::Double(-2.5),
        AMQPValue::DecimalValue(DecimalValue { scale: 2, value: 1999 }),
        AMQPValue::Timestamp(1_700_000_000),
        AMQPValue::ByteArray(vec![0, 1, 255].into()),
        AMQPValue::Void,
        AMQPValue::FieldArray(vec![AMQPValue::FieldTable(inner.clone()), AMQPValue::Boolean(false)].into()),
        AMQPValue::FieldArray(strings.into()),
        AMQPValue::FieldTable(inner),
        AMQPValue::LongString("text".into()),
        AMQPValue::LongString(vec![0xde, 0xad].into()),
    ];
    let named = values.into_iter().enumerate().map(|(n, value)| (format!("h{n:02}").into(), value));
    named.collect::<BTreeMap<_, _>>().into()
}

fn properties() -> BasicProperties {
    BasicProperties::default()
        .with_message_id("order-7".into())
        .with_type("order.placed".into())
        .with_content_type("application/json".into())
        .with_content_encoding("identity".into())
        .with_correlation_id("c-1".into())
        .with_reply_to("answers".into())
        .with_app_id("shop".into())
        .with_priority(4)
        .with_timestamp(1_700_000_000)
        .with_delivery_mode(2)
        .with_headers(table())
}

#[tokio::test]
async fn typed_headers_and_properties_survive_quarantine_and_redrive() {
    let queue = unique("letters");
    let client = Client::connect().await;
    let mut source = RabbitSource::consume(&url(), &queue).build().unwrap();
    let letters = RabbitDeadLetters::new(settings());
    letters.prepare(&source.describe()).await.unwrap();
    declare_queue(&settings(), &queue).await.unwrap();
    let sent = properties().with_user_id("guest".into()).with_expiration("600000".into());
    let options = BasicPublishOptions::default();
    let published = client.channel.basic_publish("".into(), queue.as_str().into(), options, b"{}", sent);
    published.await.unwrap().await.unwrap();

    let live = receive(&mut source, 1).await.remove(0);
    assert_eq!(live.message.headers.get_str("amqp:user-id"), Some("guest"));
    assert_eq!(live.message.headers.get_str("h03"), Some("-70000"));
    let original = as_envelope(&live);
    letters.quarantine(&letter(&queue, original.clone(), live.origin.clone())).await.unwrap();
    live.settlement.settle();

    let mut collector =
        RabbitSource::consume(&url(), format!("{queue}.dlq")).door(false).declare(false).build().unwrap();
    let dead = receive(&mut collector, 1).await.remove(0);
    assert_eq!(dead.message.headers.get_str(names::REASON), Some("exhausted"));
    assert_eq!(dead.message.headers.get_str(names::ORIGINAL_QUEUE), Some(queue.as_str()));
    let redriven = redrive_envelope(&as_envelope(&dead));
    dead.settlement.settle();
    let door = Destination::new(format!("{queue}.redrive"));
    RabbitSink::new(settings()).publish(&door, redriven).await.unwrap();

    let again = receive(&mut source, 1).await.remove(0);
    assert_eq!((again.via, again.origin.place()), (Via::Door, queue.as_str()));
    let mut headers = as_envelope(&again).headers;
    headers.remove_if(|name| name.starts_with("backstop-") || name == "amqp:original-user-id");
    let mut expected = original.headers;
    expected.remove_if(|name| name == "amqp:user-id");
    let sorted = |headers: &backstop_core::Headers| {
        let mut pairs: Vec<_> =
            headers.iter().map(|(name, value)| (name.to_owned(), value.cloned())).collect();
        pairs.sort();
        pairs
    };
    assert_eq!(sorted(&headers), sorted(&expected));
    assert_eq!(again.message.body, original.body);
    again.settlement.settle();
    source.close().await.unwrap();
    collector.close().await.unwrap();
    clean_up(&queue).await;
}

#[tokio::test]
async fn on_the_wire_a_dead_letter_has_the_original_types_and_never_expires() {
    let queue = unique("letters");
    let letters = RabbitDeadLetters::new(settings());
    let mut source = RabbitSource::consume(&url(), &queue).door(false).build().unwrap();
    letters.prepare(&source.describe()).await.unwrap();
    let client = Client::connect().await;
    declare_queue(&settings(), &queue).await.unwrap();
    let sent = properties().with_expiration("600000".into());
    let options = BasicPublishOptions::default();
    client.channel.basic_publish("".into(), queue.as_str().into(), options, b"{}", sent).await.unwrap();
    let live = receive(&mut source, 1).await.remove(0);
    letters.quarantine(&letter(&queue, as_envelope(&live), live.origin.clone())).await.unwrap();
    live.settlement.settle();
    source.close().await.unwrap();
    let dead = client.take(&format!("{queue}.dlq")).await;
    let headers = dead.delivery.properties.headers().as_ref().unwrap().inner();
    for (name, value) in table().inner() {
        assert_eq!(headers.get(name.as_str()), Some(value), "{name}");
    }
    assert!(!headers.contains_key("amqp:typed"));
    let bare = |properties: &BasicProperties| properties.clone().with_headers(FieldTable::default());
    assert_eq!(bare(&dead.delivery.properties), bare(&properties()));
    clean_up(&queue).await;
}

#[tokio::test]
async fn what_an_operator_deletes_is_not_mended_behind_his_back() {
    let queue = unique("letters");
    let letters = RabbitDeadLetters::new(settings());
    let source = RabbitSource::consume(&url(), &queue).build().unwrap();
    letters.prepare(&source.describe()).await.unwrap();
    letters.prepare(&source.describe()).await.unwrap();
    let dead = || letter(&queue, envelope("1", None, "x"), origin(&queue));
    letters.quarantine(&dead()).await.unwrap();
    // the queue, so that nothing takes the letter; then the exchange as well
    delete_queue(&settings(), &format!("{queue}.dlq")).await.unwrap();
    assert_eq!(letters.quarantine(&dead()).await.unwrap_err().scope(), Scope::Destination);
    let exchange = format!("{queue}.dlx");
    let client = Client::connect().await;
    client.channel.exchange_delete(exchange.as_str().into(), ExchangeDeleteOptions::default()).await.unwrap();
    let error = letters.quarantine(&dead()).await.unwrap_err();
    assert_eq!(error.scope(), Scope::Destination);
    assert!(error.to_string().contains(&exchange), "{error}");
    letters.prepare(&source.describe()).await.unwrap();
    letters.quarantine(&dead()).await.unwrap();
    clean_up(&queue).await;
}

#[tokio::test]
async fn a_letter_with_too_many_headers_keeps_the_message() {
    let queue = unique("letters");
    let letters = RabbitDeadLetters::new(settings());
    let source = RabbitSource::consume(&url(), &queue).build().unwrap();
    letters.prepare(&source.describe()).await.unwrap();
    let mut large = envelope("1", None, "body");
    for n in 0..64 {
        large.headers.append(format!("h{n}"), "v".repeat(1_990));
    }
    letters.quarantine(&letter(&queue, large, origin(&queue))).await.unwrap();
    let dead = Client::connect().await.take(&format!("{queue}.dlq")).await;
    assert_eq!(dead.delivery.data, b"body");
    assert!(dead.delivery.properties.headers().as_ref().unwrap().contains_key(names::REASON));
    clean_up(&queue).await;
}

async fn clean_up(queue: &str) {
    for name in [queue.to_owned(), format!("{queue}.dlq"), format!("{queue}.redrive")] {
        delete_queue(&settings(), &name).await.unwrap();
    }
    let exchange = format!("{queue}.dlx");
    let client = Client::connect().await;
    client.channel.exchange_delete(exchange.as_str().into(), ExchangeDeleteOptions::default()).await.unwrap();
}
