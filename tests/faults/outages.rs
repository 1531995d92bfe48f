//! A broker that is away for long.
//!
//! `BACKSTOP_OUTAGE_SECONDS` and `BACKSTOP_OUTAGE_ROWS` size it: 600 and 1,000,000 are what F11 names.

use std::time::Duration;

use backstop_tests::program::Broker;
use backstop_tests::scene::{PATIENCE, Scene};
use backstop_tests::{servers, size, wait};
use tokio::time::Instant;

/// What the relay may hold in memory at most, in bytes; its buffers are bounded to about 100 MiB.
const MEMORY: u64 = 400 << 20;

async fn away(broker: Broker) {
    let _turn = servers::together().await;
    let scene = Scene::new(broker, "away").await;
    let relay = scene.ready_relay().await;
    scene.commit(100).await;
    scene.drained().await;

    scene.network.broker.cut();
    let end =
        Instant::now() + Duration::from_secs(size::asked("BACKSTOP_OUTAGE_SECONDS").unwrap_or(12) as u64);
    let rows = size::asked("BACKSTOP_OUTAGE_ROWS").unwrap_or(4_000);
    for _ in 0..rows.div_ceil(1_000) {
        scene.commit(1_000.min(rows)).await;
    }
    wait::until("the relay is not ready", PATIENCE, || async { !relay.is_ready().await }).await;
    let mut most = 0;
    while Instant::now() < end {
        most = most.max(relay.program.memory());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert_eq!(scene.backlog().await, Some(rows as i64), "nothing is taken for sent");
    assert!(most < MEMORY, "{most} bytes in memory");

    scene.network.broker.resume();
    let paused = scene.flows_again().await;
    // Kafka's client waits up to 10 s before it connects again, and the relay up to 10 s before it begins again.
    assert!(paused < Duration::from_secs(20), "rows stood still for {paused:?}");
    wait::until("the relay is ready", PATIENCE, || relay.is_ready()).await;
    scene.settle().await;
}

/// F11: nothing is charged or dies, memory is bounded, readiness tells, and rows flow by themselves afterwards. Kafka's
/// client waits in silence, so that readiness tells after the 30 s in which nothing was confirmed.
#[tokio::test(flavor = "multi_thread")]
async fn kafka_is_away() {
    away(Broker::Kafka).await;
}

/// F11: nothing is charged or dies, memory is bounded, readiness tells, and rows flow by themselves afterwards.
#[tokio::test(flavor = "multi_thread")]
async fn rabbitmq_is_away() {
    away(Broker::RabbitMq).await;
}
