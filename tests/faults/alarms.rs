//! A broker that takes nothing for a while, by its own decision.

use std::time::Duration;

use backstop_tests::program::Broker;
use backstop_tests::scene::{PATIENCE, Scene};
use backstop_tests::{servers, wait};
use tokio::time::Instant;

/// F36: RabbitMQ's memory alarm blocks whoever publishes; rows wait, nothing dies, and they flow when it is over.
#[tokio::test(flavor = "multi_thread")]
async fn rabbitmq_blocks_publishers_for_a_while() {
    let _turn = servers::alone().await;
    let scene = Scene::new(Broker::RabbitMq, "alarm").await;
    let mut relay = scene.ready_relay().await;
    scene.commit(100).await;
    scene.drained().await;

    servers::controlled(&["rabbitmq-alarm", "on"]).await;
    scene.commit(3_000).await;
    // Longer than confirmations may stay out, so that what is under way is given up once.
    let end = Instant::now() + Duration::from_secs(40);
    let mut least = i64::MAX;
    while Instant::now() < end {
        least = least.min(scene.backlog().await.unwrap_or(i64::MAX));
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let alive = relay.program.is_running();
    servers::controlled(&["rabbitmq-alarm", "off"]).await;
    assert!(alive, "an alarm ends no relay");
    assert!(least > 0, "a broker under alarm took everything");
    let paused = scene.flows_again().await;
    assert!(paused < Duration::from_secs(20), "rows stood still for {paused:?}");
    wait::until("the relay is ready", PATIENCE, || relay.is_ready()).await;
    scene.settle().await;
}
