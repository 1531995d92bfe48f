//! Passwords that stop being valid while a relay is connected.

use std::time::Duration;

use backstop_tests::program::{Broker, Relay};
use backstop_tests::scene::{PATIENCE, Scene};
use backstop_tests::{servers, wait};
use sqlx::AssertSqlSafe;

/// F47: the database's password changes, and the relay has to connect again: it waits, says why, is not ready, shows
/// no password, and goes on when the password is valid again.
#[tokio::test(flavor = "multi_thread")]
async fn the_password_of_the_database_is_refused_for_a_while() {
    let _turn = servers::alone().await;
    let scene = Scene::new(Broker::RabbitMq, "password").await;
    let mut relay = scene.ready_relay().await;
    scene.commit(100).await;
    scene.drained().await;
    scene.commit(500).await;

    let url = servers::postgres_url();
    let password = url.split([':', '@']).nth(2).expect("a password in the URL").to_owned();
    // One connection sees it through; everybody else's end.
    let mut administrator = scene.database.pool.acquire().await.expect("PostgreSQL answers");
    let set = |password: &str| format!("ALTER ROLE CURRENT_USER PASSWORD '{password}'");
    let terminate = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                     WHERE usename = current_user AND pid <> pg_backend_pid()";
    let expire = format!("{}; {terminate}", set("another"));
    sqlx::raw_sql(AssertSqlSafe(expire)).execute(&mut *administrator).await.expect("altered");
    let told = tokio::time::timeout(PATIENCE, told(&relay)).await;
    sqlx::raw_sql(AssertSqlSafe(set(&password))).execute(&mut *administrator).await.expect("altered");
    drop(administrator);
    assert!(told.is_ok(), "{}", relay.log());

    let paused = scene.flows_again().await;
    assert!(paused < Duration::from_secs(20), "rows stood still for {paused:?}");
    wait::until("the relay is ready", PATIENCE, || relay.is_ready()).await;
    assert!(relay.program.is_running(), "nobody had to start it again");
    let shown = format!(":{password}@");
    assert!(!relay.log().contains(&shown), "the password is in the log");
    scene.settle().await;
}

/// Waits until the relay is not ready and its log names the cause.
async fn told(relay: &Relay) {
    while relay.is_ready().await || !relay.log().contains("password authentication failed") {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
