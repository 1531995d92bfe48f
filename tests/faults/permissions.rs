//! A database that lets the relay do less than it needs.

use std::time::Duration;

use backstop_tests::program::Broker;
use backstop_tests::scene::{PATIENCE, Scene};
use backstop_tests::{servers, wait};
use sqlx::AssertSqlSafe;

/// What is broken for a while.
struct Broken {
    breaks: &'static str,
    mends: &'static str,
    /// What the log advises.
    advice: &'static str,
    /// Whether readiness is gone meanwhile.
    not_ready: bool,
}

/// While it is broken nothing is lost and the log says what to do; once it is mended rows flow again.
async fn mended(Broken { breaks, mends, advice, not_ready }: Broken) {
    let _turn = servers::together().await;
    let scene = Scene::new(Broker::Kafka, "permission").await;
    let mut relay = scene.ready_relay().await;
    scene.commit(100).await;
    scene.drained().await;

    scene.commit(2_000).await;
    run(&scene, breaks).await;
    if !not_ready {
        scene.commit(100).await;
    }
    wait::until("its log says what to do", PATIENCE, || {
        let said = relay.log().contains(advice);
        std::future::ready(said)
    })
    .await;
    if not_ready {
        wait::until("the relay is not ready", PATIENCE, || async { !relay.is_ready().await }).await;
    }
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

/// What the log advises where a permission is missing.
const GRANT: &str = "grant the user its permissions";
/// What it advises where a table or column is missing.
const MIGRATE: &str = "run `backstop-relay migrate`";

/// F29: a permission is revoked while rows flow. What is published is deleted later, and not published again; the relay
/// stays ready for the first 30 s, because rows still flow.
#[tokio::test(flavor = "multi_thread")]
async fn rows_may_not_be_deleted_for_a_while() {
    mended(Broken {
        breaks: "REVOKE DELETE ON backstop_outbox FROM CURRENT_USER",
        mends: "GRANT DELETE ON backstop_outbox TO CURRENT_USER",
        advice: GRANT,
        not_ready: false,
    })
    .await;
}

/// F29: another permission, without which nothing can be read.
#[tokio::test(flavor = "multi_thread")]
async fn rows_may_not_be_read_for_a_while() {
    mended(Broken {
        breaks: "REVOKE SELECT ON backstop_outbox FROM CURRENT_USER",
        mends: "GRANT SELECT ON backstop_outbox TO CURRENT_USER",
        advice: GRANT,
        not_ready: true,
    })
    .await;
}

/// F29: a column is renamed under the relay's hands.
#[tokio::test(flavor = "multi_thread")]
async fn a_column_is_missing_for_a_while() {
    mended(Broken {
        breaks: "ALTER TABLE backstop_outbox RENAME COLUMN headers TO mislaid",
        mends: "ALTER TABLE backstop_outbox RENAME COLUMN mislaid TO headers",
        advice: MIGRATE,
        not_ready: true,
    })
    .await;
}

/// F29: the table of the lease is gone for a while, and with it the right to send anything.
#[tokio::test(flavor = "multi_thread")]
async fn the_table_of_the_lease_is_missing_for_a_while() {
    mended(Broken {
        breaks: "ALTER TABLE backstop_lease RENAME TO mislaid",
        mends: "ALTER TABLE mislaid RENAME TO backstop_lease",
        advice: MIGRATE,
        not_ready: true,
    })
    .await;
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
    // A setting of the role counts for sessions that begin later: this one stays as it is, the others are ended.
    let mut administrator = scene.database.pool.acquire().await.expect("PostgreSQL answers");
    let end_others = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
                      WHERE usename = current_user AND pid <> pg_backend_pid()";
    let set = "ALTER ROLE CURRENT_USER SET default_transaction_read_only = on";
    sqlx::query(set).execute(&mut *administrator).await.expect("a role may alter itself");
    sqlx::query(end_others).execute(&mut *administrator).await.expect("they are its own");
    let told = tokio::time::timeout(PATIENCE, async {
        while relay.is_ready().await || !relay.log().contains("this server is read-only") {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    let reset = "ALTER ROLE CURRENT_USER RESET default_transaction_read_only";
    sqlx::query(reset).execute(&mut *administrator).await.expect("this session may still write");
    // Sessions that began meanwhile stay read-only. A fail-over ends them, too.
    sqlx::query(end_others).execute(&mut *administrator).await.expect("they are its own");
    drop(administrator);
    assert!(told.is_ok(), "readiness and the log tell that nothing can be written");
    let paused = scene.flows_again().await;
    assert!(paused < Duration::from_secs(15), "rows stood still for {paused:?}");
    assert!(relay.program.is_running(), "nobody had to start it again");
    scene.settle().await;
}
