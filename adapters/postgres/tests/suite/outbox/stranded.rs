//! The server ends what a client began that it no longer hears of.

use std::time::Duration;

use backstop_core::lease::Leases;
use backstop_core::outbox::OutboxStore;
use backstop_postgres::{PgOutboxStore, PgTables};
use backstop_testkit::fault::Proxy;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, PgConnection};

use super::{MEGA, insert};
use crate::support::{Db, until, url};

/// A store whose connections pass through a proxy.
async fn behind_a_proxy(db: &Db) -> (Proxy, PgOutboxStore) {
    let direct: PgConnectOptions = url().parse().expect("a URL");
    let proxy = Proxy::start(format!("{}:{}", direct.get_host(), direct.get_port())).await.expect("a port");
    let through = direct.host("127.0.0.1").port(proxy.address().port());
    let pool = PgPoolOptions::new().connect_with(through).await.expect("PostgreSQL");
    (proxy, PgOutboxStore::new(pool, PgTables::in_schema(&db.schema).expect("a name")).full_scan(None))
}

async fn lock(tx: &mut PgConnection, table: &str) {
    let lock = format!("LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE");
    sqlx::raw_sql(AssertSqlSafe(lock)).execute(tx).await.expect("locked");
}

/// Other sessions that have locks on a table, or wait for one.
async fn sessions(db: &Db, table: &str, granted: bool) -> i64 {
    db.number(&format!(
        "SELECT count(*) FROM pg_locks WHERE relation = '{}.{table}'::regclass AND pid <> pg_backend_pid() \
         AND granted = {granted} AND mode <> 'AccessExclusiveLock'",
        db.schema
    ))
    .await
}

/// F45: the transaction of a read would keep its locks and its snapshot for as long as TCP hopes.
#[tokio::test(flavor = "multi_thread")]
async fn a_read_whose_client_is_gone_ends_by_itself() {
    let db = Db::new().await;
    db.run(&insert("a")).await;
    let (proxy, store) = behind_a_proxy(&db).await;
    let mut blocking = db.pool.begin().await.expect("begun");
    lock(&mut blocking, "backstop_outbox").await;
    let mut reader = store.reader();
    let reading = tokio::spawn(async move { reader.read(10, MEGA).await });
    until("the read waits", || async { sessions(&db, "backstop_outbox", false).await == 1 }).await;
    proxy.strand();
    blocking.rollback().await.expect("rolled back");
    until("the read's transaction is left open", || async {
        sessions(&db, "backstop_outbox", true).await == 1
    })
    .await;
    until("the server ends it", || async { sessions(&db, "backstop_outbox", true).await == 0 }).await;
    reading.abort();
    db.drop().await;
}

/// Each try would leave one session behind, until the server takes no more.
#[tokio::test(flavor = "multi_thread")]
async fn tries_for_a_lease_that_is_locked_do_not_pile_up() {
    let db = Db::new().await;
    let (_proxy, store) = behind_a_proxy(&db).await;
    let mut blocking = db.pool.begin().await.expect("begun");
    lock(&mut blocking, "backstop_lease").await;
    let ttl = Duration::from_secs(3);
    for _ in 0..3 {
        let asking = store.acquire("outbox", "me", ttl);
        tokio::time::timeout(Duration::from_millis(100), asking).await.expect_err("nobody answers");
    }
    assert!(sessions(&db, "backstop_lease", false).await > 0, "the lock is still there");
    until("nobody waits any more", || async { sessions(&db, "backstop_lease", false).await == 0 }).await;
    let refused = store.acquire("outbox", "me", ttl).await.expect_err("the lock is still there");
    assert_eq!(refused.kind(), backstop_core::FaultKind::Conflict);
    blocking.rollback().await.expect("rolled back");
    store.acquire("outbox", "me", ttl).await.expect("asked").expect("granted");
    db.drop().await;
}
