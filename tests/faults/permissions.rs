//! A database that lets the relay do less than it needs.

use std::time::Duration;

use backstop_tests::program::Broker;
use backstop_tests::scene::{PATIENCE, Scene};
use backstop_tests::{servers, wait};
use sqlx::AssertSqlSafe;

/// While `breaks` is in force nothing is lost and readiness is gone; after `mends` rows flow again.
async fn mended(breaks: &str, mends: &str, complaint: &str) {
    let _turn = servers::together().await;
    let scene = Scene::new(Broker::Kafka, "permission").await;
    let mut relay = scene.ready_relay().await;
    scene.commit(100).await;
    scene.drained().await;

    scene.commit(2_000).await;
    run(&scene, breaks).await;
    wait::until("the relay is not ready", PATIENCE, || async { !relay.is_ready().await }).await;
    wait::until("its log says why", PATIENCE, || {
        let said = relay.log().contains(complaint);
        std::future::ready(said)
    })
    .await;
    run(&scene, mends).await;
    let paused = scene.flows_again().await;
    // The longest pause between two attempts is 10 s.
    assert!(paused < Duration::from_secs(15), "rows stood still for {paused:?}");
    wait::until("the relay is ready", PATIENCE, || relay.is_ready()).await;
    assert!(relay.program.is_running(), "nobody had to start it again");
    scene.settle().await;
}

async fn run(scene: &Scene, statements: &str) {
    sqlx::raw_sql(AssertSqlSafe(statements.to_owned())).execute(&scene.database.pool).await.expect("run");
}

/// F29: a permission is revoked while rows flow.
#[tokio::test(flavor = "multi_thread")]
async fn rows_may_not_be_deleted_for_a_while() {
    let breaks = "REVOKE DELETE ON backstop_outbox FROM CURRENT_USER";
    mended(breaks, "GRANT DELETE ON backstop_outbox TO CURRENT_USER", "permission denied").await;
}

/// F29: another permission, without which nothing can be read.
#[tokio::test(flavor = "multi_thread")]
async fn rows_may_not_be_read_for_a_while() {
    let breaks = "REVOKE SELECT ON backstop_outbox FROM CURRENT_USER";
    mended(breaks, "GRANT SELECT ON backstop_outbox TO CURRENT_USER", "permission denied").await;
}

/// F29: a column is renamed under the relay's hands.
#[tokio::test(flavor = "multi_thread")]
async fn a_column_is_missing_for_a_while() {
    let breaks = "ALTER TABLE backstop_outbox RENAME COLUMN headers TO mislaid";
    let mends = "ALTER TABLE backstop_outbox RENAME COLUMN mislaid TO headers";
    mended(breaks, mends, "headers").await;
}

/// F29: the table of the lease is gone for a while, and with it the right to send anything.
#[tokio::test(flavor = "multi_thread")]
async fn the_table_of_the_lease_is_missing_for_a_while() {
    let breaks = "ALTER TABLE backstop_lease RENAME TO mislaid";
    mended(breaks, "ALTER TABLE mislaid RENAME TO backstop_lease", "backstop_lease").await;
}

/// F21, F22: every write fails, as after a fail-over to a standby or on a full disk; reads work.
#[tokio::test(flavor = "multi_thread")]
async fn the_database_is_read_only_for_a_while() {
    let _turn = servers::alone().await;
    let scene = Scene::new(Broker::RabbitMq, "readonly").await;
    let mut relay = scene.ready_relay().await;
    scene.commit(100).await;
    scene.drained().await;
    scene.commit(1_000).await;
    let others = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
                  WHERE usename = current_user AND pid <> pg_backend_pid()";
    run(&scene, "ALTER ROLE CURRENT_USER SET default_transaction_read_only = on").await;
    let ended = scene.database.number(others).await;
    let not_ready = tokio::time::timeout(PATIENCE, async {
        while relay.is_ready().await {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    let mends = "SET default_transaction_read_only = off; ALTER ROLE CURRENT_USER RESET default_transaction_read_only";
    run(&scene, mends).await;
    assert!(ended > 0 && not_ready.is_ok(), "readiness tells that nothing can be written");
    // Connections that were made meanwhile stay read-only: a fail-over ends them, too.
    scene.database.number(others).await;
    let paused = scene.flows_again().await;
    assert!(paused < Duration::from_secs(15), "rows stood still for {paused:?}");
    assert!(relay.program.is_running(), "nobody had to start it again");
    scene.settle().await;
}
