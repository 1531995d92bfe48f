use backstop_core::message::Destination;
use backstop_core::sink::Sink;
use backstop_core::source::{Settlement, Source};
use backstop_core::{FaultKind, Identity, MessageKey, Origin, Via, names};
use backstop_rabbitmq::{RabbitSink, RabbitSource, declare_queue, delete_queue};
use lapin::types::AMQPValue;

use crate::logged::logged;
use crate::support::{Client, envelope, receive, settings, text, unique, url, within};

fn source(queue: &str) -> RabbitSource {
    RabbitSource::consume(&url(), queue).door(false).build().unwrap()
}

async fn fill(queue: &str, count: u64) {
    declare_queue(&settings(), queue).await.unwrap();
    let sink = RabbitSink::new(settings());
    for n in 0..count {
        let body = n.to_string();
        sink.publish(&Destination::new(queue), envelope(&body, None, &body)).await.unwrap();
    }
}

/// F71: a prefetch of zero among them.
#[test]
fn settings_that_cannot_work_are_refused() {
    let kind = |built: Result<RabbitSource, backstop_core::AdapterError>| built.unwrap_err().kind();
    let at = "amqp://localhost/%2f";
    assert_eq!(kind(RabbitSource::consume(at, "q").prefetch(0).build()), FaultKind::Invalid);
    assert_eq!(kind(RabbitSource::consume(at, "").build()), FaultKind::Invalid);
    assert_eq!(kind(RabbitSource::consume(at, "q".repeat(250)).build()), FaultKind::Invalid);
    assert_eq!(kind(RabbitSource::consume("localhost", "q").build()), FaultKind::Invalid);
}

#[tokio::test]
async fn messages_come_in_order_with_origin_and_identity() {
    let queue = unique("source");
    fill(&queue, 3).await;
    let mut source = source(&queue);
    let received = receive(&mut source, 3).await;
    assert_eq!(received.iter().map(text).collect::<Vec<_>>(), ["0", "1", "2"]);
    let own = Origin::RabbitMq {
        exchange: String::new(),
        routing_key: queue.clone(),
        queue: queue.clone(),
        redelivered: false,
    };
    assert_eq!((&received[0].origin, received[0].via), (&own, Via::Live));
    assert_eq!(received[1].identity, Identity::Declared(MessageKey::new("", b"1")));
    assert_eq!(source.describe().places, [queue.as_str()]);
    drop(received);
    source.close().await.unwrap();
    delete_queue(&settings(), &queue).await.unwrap();
}

/// F70: a later settlement says nothing of an earlier message.
#[tokio::test]
async fn only_what_is_settled_is_forgotten() {
    let queue = unique("source");
    fill(&queue, 4).await;
    let mut source = source(&queue);
    for received in receive(&mut source, 4).await {
        let mut settlement = received.settlement;
        assert!(settlement.begin());
        if received.message.id == "1" || received.message.id == "3" {
            settlement.settle();
        }
    }
    source.close().await.unwrap();
    let client = Client::connect().await;
    let mut left = client.drain(&queue, 2).await;
    left.sort();
    assert_eq!(left, ["0", "2"]);
    assert_eq!(client.count(&queue).await, 0);
    delete_queue(&settings(), &queue).await.unwrap();
}

/// F72: slower and slower.
#[tokio::test]
async fn what_is_dropped_unsettled_comes_again_and_not_in_a_busy_loop() {
    let queue = unique("source");
    fill(&queue, 1).await;
    let mut source = source(&queue);
    let begun = std::time::Instant::now();
    for round in 0..3 {
        let received = receive(&mut source, 1).await.remove(0);
        let Origin::RabbitMq { redelivered, .. } = received.origin else { panic!() };
        assert_eq!(redelivered, round > 0);
    }
    assert!(begun.elapsed() >= std::time::Duration::from_millis(900), "two requeues of half a second each");
    receive(&mut source, 1).await.remove(0).settlement.settle();
    source.close().await.unwrap();
    assert_eq!(Client::connect().await.count(&queue).await, 0);
    delete_queue(&settings(), &queue).await.unwrap();
}

#[tokio::test]
async fn a_source_that_is_dropped_gives_everything_back() {
    let queue = unique("source");
    fill(&queue, 5).await;
    let mut source = source(&queue);
    let received = receive(&mut source, 5).await;
    drop((source, received));
    assert_eq!(Client::connect().await.drain(&queue, 5).await.len(), 5);
    delete_queue(&settings(), &queue).await.unwrap();
}

#[tokio::test]
async fn the_prefetch_bounds_what_is_unsettled() {
    let queue = unique("source");
    fill(&queue, 5).await;
    let mut source = RabbitSource::consume(&url(), &queue).door(false).prefetch(2).build().unwrap();
    let mut received = receive(&mut source, 2).await;
    assert_eq!(Client::connect().await.count(&queue).await, 3);
    received.remove(0).settlement.settle();
    assert_eq!(text(&receive(&mut source, 1).await[0]), "2");
    drop(received);
    source.close().await.unwrap();
    delete_queue(&settings(), &queue).await.unwrap();
}

/// F67: with its queue.
#[tokio::test]
async fn a_queue_that_is_deleted_is_read_again_once_it_is_back() {
    let queue = unique("source");
    fill(&queue, 2).await;
    let mut source = source(&queue);
    let held = receive(&mut source, 2).await;
    let (complaint, _listening) = logged("cannot read the queue");
    delete_queue(&settings(), &queue).await.unwrap();
    let again = async {
        let reading = receive(&mut source, 1);
        let refilling = async {
            // the source must see the queue missing, and not declare it
            complaint.await;
            fill(&queue, 1).await;
        };
        tokio::join!(reading, refilling).0
    };
    let again = within("the queue to be read again", again).await.remove(0);
    assert_eq!(text(&again), "0");
    for received in held {
        received.settlement.settle();
    }
    again.settlement.settle();
    source.close().await.unwrap();
    assert_eq!(Client::connect().await.count(&queue).await, 0);
    delete_queue(&settings(), &queue).await.unwrap();
}

#[tokio::test]
async fn a_missing_queue_is_declared_as_a_quorum_queue_with_its_door() {
    let queue = unique("source");
    let mut source = RabbitSource::consume(&url(), &queue).build().unwrap();
    let waiting = tokio::time::timeout(std::time::Duration::from_millis(1), source.next()).await;
    assert!(waiting.is_err(), "nothing is there yet");
    // dropped calls of `next` do not start over
    let sink = RabbitSink::new(settings());
    let client = Client::connect().await;
    let door = format!("{queue}.redrive");
    let sent = async {
        while sink.publish(&Destination::new(&door), envelope("1", None, "through the door")).await.is_err() {
        }
    };
    let received = tokio::join!(sent, receive(&mut source, 1)).1.remove(0);
    assert_eq!(received.via, Via::Door);
    assert_eq!(received.origin.place(), queue, "the door stands for its queue");
    // a quorum queue refuses to be declared as a classic one
    let other = client.channel.queue_declare(
        queue.as_str().into(),
        lapin::options::QueueDeclareOptions::durable(),
        lapin::types::FieldTable::default(),
    );
    assert!(other.await.is_err());
    received.settlement.settle();
    source.close().await.unwrap();
    delete_queue(&settings(), &queue).await.unwrap();
    delete_queue(&settings(), &door).await.unwrap();
}

#[tokio::test]
async fn a_queue_that_exists_is_left_as_it_is() {
    let queue = unique("source");
    Client::connect().await.declare(&queue, &[("x-max-length", AMQPValue::LongInt(7))]).await;
    let sink = RabbitSink::new(settings());
    sink.publish(&Destination::new(&queue), envelope("1", None, "x")).await.unwrap();
    let mut source = source(&queue);
    receive(&mut source, 1).await.remove(0).settlement.settle();
    source.close().await.unwrap();
    delete_queue(&settings(), &queue).await.unwrap();
}

#[tokio::test]
async fn without_declaring_a_missing_queue_is_an_error() {
    let queue = unique("source");
    let mut source = RabbitSource::consume(&url(), &queue).door(false).declare(false).build().unwrap();
    let error = within("the error", source.next()).await.unwrap_err();
    assert_eq!(error.kind(), FaultKind::Missing, "{error}");
    assert!(error.to_string().contains(&queue) && error.hint().is_some(), "{error}");
}

#[tokio::test]
async fn refused_credentials_end_the_source_and_are_not_shown() {
    let url = url().replace("guest:guest@", "guest:s3cret-of-mine@");
    let mut source = RabbitSource::consume(&url, unique("source")).build().unwrap();
    let error = within("the error", source.next()).await.unwrap_err();
    assert_eq!(error.kind(), FaultKind::Denied, "{error}");
    assert!(!format!("{error} {error:?} {:?} {source:?}", error.hint()).contains("s3cret"));
}

#[tokio::test]
async fn through_the_door_the_origin_is_the_original_one() {
    let queue = unique("source");
    let mut source = RabbitSource::consume(&url(), &queue).build().unwrap();
    let mut redriven = envelope("1", None, "x");
    redriven.headers.set(names::ORIGINAL_QUEUE, queue.clone());
    redriven.headers.set(names::ORIGINAL_EXCHANGE, "shop");
    redriven.headers.set(names::ORIGINAL_ROUTING_KEY, "order.placed");
    redriven.headers.set(names::MESSAGE_KEY, "/orders|77");
    let door = format!("{queue}.redrive");
    declare_queue(&settings(), &door).await.unwrap();
    RabbitSink::new(settings()).publish(&Destination::new(&door), redriven).await.unwrap();
    let received = receive(&mut source, 1).await.remove(0);
    let original = Origin::RabbitMq {
        exchange: "shop".into(),
        routing_key: "order.placed".into(),
        queue: queue.clone(),
        redelivered: false,
    };
    assert_eq!(received.origin, original);
    assert_eq!(received.identity.key().unwrap().as_str(), "/orders|77");
    received.settlement.settle();
    source.close().await.unwrap();
    for queue in [queue, door] {
        delete_queue(&settings(), &queue).await.unwrap();
    }
}
