//! The lease, over a link that is slow, after connections were lost, and with a clock that was set back.

use std::time::{Duration, Instant};

use backstop_core::lease::Leases;
use backstop_postgres::{PgOutboxStore, PgTables};
use backstop_testkit::fault::Proxy;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

use super::{lease, store};
use crate::support::{Db, url};

const TTL: Duration = Duration::from_secs(30);

/// F45: round trips of 2 s.
#[tokio::test]
async fn a_renewal_is_one_round_trip() {
    let db = Db::new().await;
    let direct: PgConnectOptions = url().parse().expect("a URL");
    let proxy = Proxy::start(format!("{}:{}", direct.get_host(), direct.get_port())).await.expect("a port");
    let slow = direct.host("127.0.0.1").port(proxy.address().port());
    let pool = PgPoolOptions::new().connect_with(slow).await.expect("PostgreSQL");
    let store = PgOutboxStore::new(pool, PgTables::in_schema(&db.schema).expect("a name"));
    let granted = lease(&store, "a").await.expect("granted");
    proxy.slow(Duration::from_secs(1), u32::MAX);
    let begun = Instant::now();
    assert_eq!(lease(&store, "a").await, Some(granted));
    let took = begun.elapsed();
    assert!(took >= Duration::from_secs(2) && took < Duration::from_millis(3_900), "took {took:?}");
    db.drop().await;
}

#[tokio::test]
async fn a_connection_that_was_lost_meanwhile_costs_no_renewal() {
    let db = Db::new().await;
    let store = store(&db);
    let granted = lease(&store, "a").await.expect("granted");
    let others = format!(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND query LIKE \
         '%{}%'",
        db.schema
    );
    db.run(&others).await;
    assert_eq!(lease(&store, "a").await, Some(granted));
    db.drop().await;
}

/// A lease is not for ever because a clock was.
#[tokio::test]
async fn a_lease_that_reaches_too_far_has_ended() {
    let db = Db::new().await;
    let store = store(&db);
    let longest = backstop_core::lease::LONGEST;
    let first = store.acquire("outbox", "a", longest * 9).await.expect("asked").expect("granted");
    assert_eq!(lease(&store, "b").await, None, "granted for the longest time and no longer");
    db.run("UPDATE backstop_lease SET expires_at = now() + interval '1 hour'").await;
    let renewed = store.acquire("outbox", "a", TTL).await.expect("asked").expect("granted");
    assert_eq!(renewed.token, first.token + 1, "the owner's own has ended as well");
    db.run("UPDATE backstop_lease SET expires_at = 'infinity'").await;
    assert_eq!(lease(&store, "b").await.expect("granted").token, first.token + 2);
    db.drop().await;
}

#[tokio::test]
async fn names_are_taken_to_the_letter() {
    let db = Db::new().await;
    let store = store(&db);
    for name in ["it's", "\\x'; DROP TABLE backstop_lease; --", "{lease}", "\u{e4}"] {
        let granted = store.acquire(name, name, TTL).await.expect("asked").expect("granted");
        let holder = store.holder(name).await.expect("asked").expect("held").lease;
        assert_eq!((&granted, granted.token), (&holder, 1), "{name}");
        assert_eq!(store.acquire(name, "another", TTL).await.expect("asked"), None);
    }
    db.drop().await;
}
