//! Servers that are killed, restarted, or forget their clients.

use std::time::Duration;

use backstop_tests::program::Broker;
use backstop_tests::scene::{PATIENCE, Scene};
use backstop_tests::{servers, wait};

/// Rows flow again this soon after a server is back.
const PROMISED: Duration = Duration::from_secs(10);

/// What `fault` does to the servers is over when it ends; rows flow again soon, and all of them arrive.
async fn survives(broker: Broker, times: usize, fault: impl AsyncFn(&Scene)) {
    let _turn = servers::alone().await;
    let scene = Scene::new(broker, "restart").await;
    let mut relay = scene.ready_relay().await;
    let writing = scene.write();
    for _ in 0..times {
        let published = relay.metric("backstop_outbox_published_total").await.unwrap_or(0.0);
        wait::until("rows flow", PATIENCE, || async {
            relay.metric("backstop_outbox_published_total").await > Some(published + 20.0)
        })
        .await;
        fault(&scene).await;
        let paused = scene.flows_again().await;
        assert!(paused < PROMISED, "rows stood still for {paused:?}");
    }
    wait::until("the relay is ready", PATIENCE, || relay.is_ready()).await;
    writing.stop().await;
    assert!(relay.program.is_running(), "nobody had to start it again");
    scene.settle().await;
}

/// F16: every connection of the relay, of writers and of consumers ends at once, several times.
#[tokio::test(flavor = "multi_thread")]
async fn all_backends_of_postgresql_are_terminated() {
    survives(Broker::Kafka, 3, async |scene| {
        let terminate = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
                         WHERE usename = current_user AND pid <> pg_backend_pid()";
        assert!(scene.database.number(terminate).await > 0, "there was somebody");
    })
    .await;
}

/// F16: an orderly restart of PostgreSQL.
#[tokio::test(flavor = "multi_thread")]
async fn postgresql_is_restarted() {
    survives(Broker::RabbitMq, 1, async |_| servers::controlled(&["restart", "postgres"]).await).await;
}

/// F16: PostgreSQL dies as the out-of-memory killer ends it, and recovers.
#[tokio::test(flavor = "multi_thread")]
async fn postgresql_is_killed() {
    survives(Broker::Kafka, 1, async |_| {
        servers::controlled(&["kill", "postgres"]).await;
        servers::controlled(&["start", "postgres"]).await;
    })
    .await;
}

/// F41: the only leader of every partition dies and comes back.
#[tokio::test(flavor = "multi_thread")]
async fn kafka_is_killed() {
    survives(Broker::Kafka, 1, async |_| {
        servers::controlled(&["kill", "kafka"]).await;
        servers::controlled(&["start", "kafka"]).await;
    })
    .await;
}

/// F35: RabbitMQ dies with messages unconfirmed, and comes back with what it had confirmed.
#[tokio::test(flavor = "multi_thread")]
async fn rabbitmq_is_killed() {
    survives(Broker::RabbitMq, 1, async |_| {
        servers::controlled(&["kill", "rabbitmq"]).await;
        servers::controlled(&["start", "rabbitmq"]).await;
    })
    .await;
}
