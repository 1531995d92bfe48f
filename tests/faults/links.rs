//! Networks that are slow, silent, or cut in the middle of a frame.

use std::time::Duration;

use backstop_testkit::fault::Proxy;
use backstop_tests::program::{Broker, Relay};
use backstop_tests::scene::{Network, PATIENCE, Scene};
use backstop_tests::{servers, wait};

/// Which of the relay's two links.
type Link = fn(&Network) -> &Proxy;

const DATABASE: Link = |network| &network.database;
const TO_BROKER: Link = |network| &network.broker;

/// Rows flow under a writer, `fault` happens and is over when it ends, and rows flow again within `limit`.
async fn survives(broker: Broker, link: Link, limit: Duration, fault: impl AsyncFn(&Proxy, &Scene, &Relay)) {
    let _turn = servers::together().await;
    let scene = Scene::new(broker, "link").await;
    let mut relay = scene.ready_relay().await;
    let writing = scene.write();
    flows(&relay, 50.0).await;
    fault(link(&scene.network), &scene, &relay).await;
    let paused = scene.flows_again().await;
    writing.stop().await;
    assert!(paused < limit, "rows stood still for {paused:?}");
    assert!(relay.program.is_running(), "nobody had to start it again");
    scene.settle().await;
}

/// Waits until so many rows more are published.
async fn flows(relay: &Relay, more: f64) {
    let published = relay.metric("backstop_outbox_published_total").await.unwrap_or(0.0);
    wait::until("rows flow", PATIENCE, || async {
        relay.metric("backstop_outbox_published_total").await > Some(published + more)
    })
    .await;
}

/// Connections end inside a frame, again and again, and work when that is over.
async fn cut_within_a_frame(broker: Broker, link: Link) {
    survives(broker, link, Duration::from_secs(10), async |proxy, _, _| {
        for bytes in [700, 4_001, 20_003] {
            proxy.cut_after(bytes);
            // as long as a client needs to come back and be cut once more
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
        proxy.resume();
    })
    .await;
}

/// F45: to Kafka.
#[tokio::test(flavor = "multi_thread")]
async fn kafka_is_cut_off_within_a_frame() {
    cut_within_a_frame(Broker::Kafka, TO_BROKER).await;
}

/// F45: to RabbitMQ.
#[tokio::test(flavor = "multi_thread")]
async fn rabbitmq_is_cut_off_within_a_frame() {
    cut_within_a_frame(Broker::RabbitMq, TO_BROKER).await;
}

/// F22, F45: reads, renewals and deletes end anywhere, with the server's answer unknown.
#[tokio::test(flavor = "multi_thread")]
async fn postgresql_is_cut_off_within_a_frame() {
    cut_within_a_frame(Broker::Kafka, DATABASE).await;
}

/// Every piece takes `latency` each way, and 20,000 bytes pass in a second: rows flow meanwhile.
async fn slow(broker: Broker, link: Link, latency: Duration) {
    survives(broker, link, Duration::from_secs(10), async |proxy, _, relay| {
        proxy.slow(latency, 20_000);
        flows(relay, 5.0).await;
        proxy.resume();
    })
    .await;
}

/// F6, F45: to Kafka.
#[tokio::test(flavor = "multi_thread")]
async fn kafka_is_behind_a_slow_link() {
    slow(Broker::Kafka, TO_BROKER, Duration::from_secs(1)).await;
}

/// F6, F45: to RabbitMQ.
#[tokio::test(flavor = "multi_thread")]
async fn rabbitmq_is_behind_a_slow_link() {
    slow(Broker::RabbitMq, TO_BROKER, Duration::from_secs(1)).await;
}

/// F45: the lease is renewed in time all the same, as long as a third of its time is enough for two round trips.
#[tokio::test(flavor = "multi_thread")]
async fn postgresql_is_behind_a_slow_link() {
    slow(Broker::Kafka, DATABASE, Duration::from_millis(300)).await;
}

/// Connections that there are never say anything again and do not end; new ones work.
async fn half_open(broker: Broker, link: Link) {
    // The relay waits 30 s for the database, and as long for confirmations.
    survives(broker, link, Duration::from_secs(75), async |proxy, _, _| proxy.strand()).await;
}

/// F39, F45: to Kafka; what was confirmed and not heard of comes again under its id.
#[tokio::test(flavor = "multi_thread")]
async fn connections_to_kafka_are_half_open() {
    half_open(Broker::Kafka, TO_BROKER).await;
}

/// F45: to RabbitMQ.
#[tokio::test(flavor = "multi_thread")]
async fn connections_to_rabbitmq_are_half_open() {
    half_open(Broker::RabbitMq, TO_BROKER).await;
}

/// F45: to PostgreSQL, with reads, deletes and a renewal of the lease under way.
#[tokio::test(flavor = "multi_thread")]
async fn connections_to_postgresql_are_half_open() {
    half_open(Broker::Kafka, DATABASE).await;
}

/// The network is silent for five seconds, and then everything arrives that was sent.
async fn silent(broker: Broker, link: Link) {
    survives(broker, link, Duration::from_secs(10), async |proxy, _, _| {
        proxy.freeze();
        tokio::time::sleep(Duration::from_secs(5)).await;
        proxy.resume();
    })
    .await;
}

/// F39: late success: confirmations arrive after a silence.
#[tokio::test(flavor = "multi_thread")]
async fn the_link_to_kafka_is_silent_for_a_while() {
    silent(Broker::Kafka, TO_BROKER).await;
}

/// F35: confirmations arrive after a silence.
#[tokio::test(flavor = "multi_thread")]
async fn the_link_to_rabbitmq_is_silent_for_a_while() {
    silent(Broker::RabbitMq, TO_BROKER).await;
}

/// F45: the database answers after a silence that is shorter than the lease.
#[tokio::test(flavor = "multi_thread")]
async fn the_link_to_postgresql_is_silent_for_a_while() {
    silent(Broker::RabbitMq, DATABASE).await;
}
