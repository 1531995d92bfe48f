//! A relay that stands still for longer than its lease lasts.

use std::time::Duration;

use backstop_tests::program::Broker;
use backstop_tests::scene::{PATIENCE, Scene};
use backstop_tests::{servers, wait};

/// How many owners the lease has had.
const TOKEN: &str = "SELECT coalesce(max(token), 0) FROM backstop_lease";

async fn stopped_and_woken(broker: Broker) {
    let _turn = servers::together().await;
    let scene = Scene::new(broker, "paused").await;
    let first = scene.ready_relay().await;
    let second = scene.ready_relay().await;
    let writing = scene.write();
    wait::until("rows flow", PATIENCE, || async {
        first.metric("backstop_outbox_published_total").await > Some(50.0)
    })
    .await;

    let before = scene.database.number(TOKEN).await;
    first.program.signal("STOP");
    wait::until("the second relay owns the outbox", Duration::from_secs(30), || async {
        scene.database.number(TOKEN).await > before
    })
    .await;
    let took_over = scene.flows_again().await;
    first.program.signal("CONT");
    wait::until("the sleeper stands by", PATIENCE, || async {
        first.metric("backstop_relay_leader").await == Some(0.0)
    })
    .await;
    wait::until("the second one works", PATIENCE, || async {
        second.metric("backstop_outbox_published_total").await > Some(50.0)
    })
    .await;
    writing.stop().await;
    assert!(took_over < Duration::from_secs(10), "rows stood still for {took_over:?} under the new owner");
    scene.settle().await;
}

/// F5: a sleeper that wakes up as somebody else's predecessor changes nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_slept_through_its_lease_stands_by_on_kafka() {
    stopped_and_woken(Broker::Kafka).await;
}

/// F5: a sleeper that wakes up as somebody else's predecessor changes nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_slept_through_its_lease_stands_by_on_rabbitmq() {
    stopped_and_woken(Broker::RabbitMq).await;
}

/// F4: SIGTERM to the owner under load; it ends well, and the next one takes over without waiting for the lease to end.
#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_is_told_to_stop_hands_over_at_once() {
    let _turn = servers::together().await;
    let scene = Scene::new(Broker::Kafka, "handover").await;
    let mut first = scene.ready_relay().await;
    let second = scene.ready_relay().await;
    let writing = scene.write();
    wait::until("rows flow", PATIENCE, || async {
        first.metric("backstop_outbox_published_total").await > Some(50.0)
    })
    .await;
    first.program.signal("TERM");
    wait::until("the second one works", Duration::from_secs(8), || async {
        second.metric("backstop_outbox_published_total").await > Some(0.0)
    })
    .await;
    wait::until("the first one has ended", PATIENCE, || {
        let ended = !first.program.is_running();
        std::future::ready(ended)
    })
    .await;
    assert!(first.log().contains("lease released"), "{}", first.log());
    writing.stop().await;
    scene.settle().await;
}

/// F31: relays of two processes that know each other by nothing but the lease, replaced one after the other under load,
/// as in a rolling upgrade.
#[tokio::test(flavor = "multi_thread")]
async fn relays_are_replaced_one_after_the_other() {
    let _turn = servers::together().await;
    let scene = Scene::new(Broker::RabbitMq, "rolling").await;
    let mut old = vec![scene.ready_relay().await, scene.ready_relay().await];
    let writing = scene.write();
    let mut new = Vec::new();
    while let Some(mut relay) = old.pop() {
        new.push(scene.ready_relay().await);
        relay.program.signal("TERM");
        wait::until("it has ended", PATIENCE, || {
            let ended = !relay.program.is_running();
            std::future::ready(ended)
        })
        .await;
        let paused = scene.flows_again().await;
        assert!(paused < Duration::from_secs(10), "rows stood still for {paused:?}");
    }
    writing.stop().await;
    scene.settle().await;
}
