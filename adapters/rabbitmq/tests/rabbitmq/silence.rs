//! A broker that does not answer, and does not say so: a lost route, or a confirm that never comes.

use std::time::Duration;

use backstop_core::message::Destination;
use backstop_core::sink::{Publisher, Scope, Sink};
use backstop_core::source::{Settlement, Source};
use backstop_rabbitmq::{RabbitPublisher, RabbitSink, RabbitSource, declare_queue, delete_queue};

use crate::support::{
    Client, LIMIT, confirmed, envelope, proxied, receive, settings, submit, text, unique, within,
};

/// Submits one message after the other until one is stored.
async fn comes_back(publisher: &mut RabbitPublisher, to: &Destination) {
    within("the publisher to come back", async {
        for ticket in 1_000.. {
            submit(publisher, ticket, to, Some("k"));
            match confirmed(publisher, 1).await[&ticket] {
                None => return,
                Some(scope) => assert_eq!(scope, Scope::Broker),
            }
        }
    })
    .await;
}

/// F45: by heartbeats, on a connection that is half open.
#[tokio::test]
async fn a_publisher_notices_that_its_peer_is_gone() {
    let queue = unique("silence");
    declare_queue(&settings(), &queue).await.unwrap();
    let (proxy, settings) = proxied().await;
    let mut publisher = RabbitPublisher::builder(settings).channels(2).start().unwrap();
    let to = Destination::new(&queue);
    submit(&mut publisher, 0, &to, None);
    assert_eq!(confirmed(&mut publisher, 1).await[&0], None);
    proxy.freeze();
    for ticket in 1..=50 {
        submit(&mut publisher, ticket, &to, Some(&format!("k{}", ticket % 7)));
    }
    assert!(confirmed(&mut publisher, 50).await.values().all(|scope| *scope == Some(Scope::Broker)));
    proxy.resume();
    comes_back(&mut publisher, &to).await;
    delete_queue(&crate::support::settings(), &queue).await.unwrap();
}

#[tokio::test]
async fn a_source_notices_that_its_peer_is_gone() {
    let queue = unique("silence");
    declare_queue(&settings(), &queue).await.unwrap();
    RabbitSink::new(settings()).publish(&Destination::new(&queue), envelope("1", None, "1")).await.unwrap();
    let (proxy, through) = proxied().await;
    let mut source = RabbitSource::with_settings(through, &queue).door(false).build().unwrap();
    let mut held = receive(&mut source, 1).await.remove(0);
    assert!(held.settlement.begin());
    proxy.freeze();
    within("the loss to be noticed", async {
        while held.settlement.begin() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    proxy.resume();
    let again = receive(&mut source, 1).await.remove(0);
    assert_eq!(text(&again), "1");
    held.settlement.settle();
    again.settlement.settle();
    source.close().await.unwrap();
    assert!(Client::connect().await.try_take(&queue).await.is_none());
    delete_queue(&settings(), &queue).await.unwrap();
}

/// F45: the same for single messages.
#[tokio::test]
async fn a_sink_notices_that_its_peer_is_gone() {
    let queue = unique("silence");
    declare_queue(&settings(), &queue).await.unwrap();
    let (proxy, through) = proxied().await;
    // its own time limit must not be what ends it
    let sink = RabbitSink::new(through).publish_timeout(2 * LIMIT);
    let to = Destination::new(&queue);
    sink.publish(&to, envelope("1", None, "1")).await.unwrap();
    proxy.freeze();
    let failed = within("the loss to be noticed", sink.publish(&to, envelope("2", None, "2"))).await;
    assert_eq!(failed.unwrap_err().scope(), Scope::Broker);
    proxy.resume();
    within("the sink to come back", async {
        while let Err(error) = sink.publish(&to, envelope("3", None, "3")).await {
            assert_eq!(error.scope(), Scope::Broker, "{error}");
        }
    })
    .await;
    delete_queue(&settings(), &queue).await.unwrap();
}

/// Long enough for everything but a time limit of the broker's or of the network's.
const AT_ONCE: Duration = Duration::from_secs(10);

#[tokio::test]
async fn what_stays_unconfirmed_is_given_up_when_told_so() {
    let queue = unique("silence");
    declare_queue(&settings(), &queue).await.unwrap();
    let (proxy, settings) = proxied().await;
    let settings = settings.heartbeat(LIMIT);
    let mut publisher = RabbitPublisher::builder(settings).channels(2).start().unwrap();
    let to = Destination::new(&queue);
    submit(&mut publisher, 0, &to, None);
    assert_eq!(confirmed(&mut publisher, 1).await[&0], None);
    proxy.freeze();
    for ticket in 1..=100 {
        submit(&mut publisher, ticket, &to, Some(&format!("k{}", ticket % 7)));
    }
    publisher.abandon().await;
    let given_up = tokio::time::timeout(AT_ONCE, confirmed(&mut publisher, 100)).await;
    assert!(given_up.expect("given up at once").values().all(|scope| *scope == Some(Scope::Broker)));
    proxy.resume();
    comes_back(&mut publisher, &to).await;
    delete_queue(&crate::support::settings(), &queue).await.unwrap();
}

#[tokio::test]
async fn what_waits_for_a_connection_is_given_up_when_told_so() {
    let queue = unique("silence");
    declare_queue(&settings(), &queue).await.unwrap();
    let (proxy, settings) = proxied().await;
    proxy.freeze();
    let settings = settings.connect_timeout(LIMIT);
    let mut publisher = RabbitPublisher::builder(settings).channels(2).start().unwrap();
    let to = Destination::new(&queue);
    for ticket in 0..10 {
        submit(&mut publisher, ticket, &to, Some(&format!("k{ticket}")));
    }
    publisher.abandon().await;
    let given_up = tokio::time::timeout(AT_ONCE, confirmed(&mut publisher, 10)).await;
    assert!(given_up.expect("given up at once").values().all(|scope| *scope == Some(Scope::Broker)));
    proxy.resume();
    comes_back(&mut publisher, &to).await;
    delete_queue(&crate::support::settings(), &queue).await.unwrap();
}
