//! Transactions that are begun by the commit before them: what one message leaves behind, the next must not find.

mod support;

use std::time::Duration;

use backstop_core::FaultKind;
use backstop_core::inbox::{Inbox, Limits};
use backstop_postgres::{PgInbox, PgTx};
use sqlx::postgres::PgPoolOptions;
use sqlx::{Executor, PgPool};
use support::{CONSUMER, Db, fresh, key, url};

/// A pool of one connection, so that every message is handled on the same one.
async fn single(db: &Db) -> PgPool {
    let pool = PgPoolOptions::new().max_connections(1).acquire_timeout(Duration::from_secs(10));
    let options: sqlx::postgres::PgConnectOptions = url().parse().expect("a URL");
    pool.connect_with(options.options([("search_path", db.schema.as_str())])).await.expect("PostgreSQL")
}

async fn setting(tx: &mut PgTx, name: &str) -> String {
    sqlx::query_scalar("SELECT current_setting($1)").bind(name).fetch_one(&mut **tx).await.expect(name)
}

#[tokio::test]
async fn a_message_finds_its_own_limits_and_nothing_of_its_predecessor() {
    let db = Db::new().await;
    let inbox = PgInbox::with_tables(single(&db).await, db.tables.clone());
    let mut first = fresh(&inbox, "1").await;
    first.execute("SET LOCAL lock_timeout = '7s'; SET LOCAL work_mem = '1MB'").await.expect("set");
    let backend = setting(&mut first, "backstop.lock_timeout").await;
    inbox.commit(first).await.expect("committed");
    let mut second = fresh(&inbox, "2").await;
    assert_eq!(setting(&mut second, "lock_timeout").await, backend, "the session's own, not the short one");
    assert_eq!(setting(&mut second, "statement_timeout").await, "10s");
    assert_ne!(setting(&mut second, "work_mem").await, "1MB");
    inbox.commit(second).await.expect("committed");
    db.drop().await;
}

#[tokio::test]
async fn a_read_only_predecessor_makes_nobody_else_read_only() {
    let db = Db::new().await;
    let inbox = PgInbox::with_tables(single(&db).await, db.tables.clone());
    let mut first = fresh(&inbox, "1").await;
    first.execute("SET TRANSACTION READ ONLY").await.expect("set");
    inbox.commit(first).await.expect("committed");
    let second = fresh(&inbox, "2").await;
    inbox.commit(second).await.expect("committed");
    assert_eq!(db.number("SELECT count(*) FROM backstop_inbox").await, 2);
    db.drop().await;
}

/// Messages without an end leave the pool to others now and then.
#[tokio::test]
async fn whoever_waits_for_a_connection_gets_one() {
    let db = Db::new().await;
    let pool = single(&db).await;
    let inbox = PgInbox::with_tables(pool.clone(), db.tables.clone());
    let first = fresh(&inbox, "first").await;
    let busy = async {
        inbox.commit(first).await.expect("committed");
        for n in 0.. {
            let tx = fresh(&inbox, &format!("{n}")).await;
            inbox.commit(tx).await.expect("committed");
        }
    };
    let other = sqlx::query_scalar::<_, i32>("SELECT 1").fetch_one(&pool);
    tokio::select! {
        () = busy => unreachable!("it goes on for ever"),
        answer = other => assert_eq!(answer.expect("a connection within the pool's patience"), 1),
    }
    db.drop().await;
}

/// A server that keeps silent, here behind a lock, is an outage and not a wait for ever.
///
/// F45: the database is silent.
#[tokio::test]
async fn a_server_that_does_not_answer_is_given_up() {
    let db = Db::new().await;
    let mut lock = db.pool.begin().await.expect("begun");
    lock.execute("LOCK TABLE backstop_inbox, backstop_held IN ACCESS EXCLUSIVE MODE").await.expect("locked");
    let (inbox, of_1) = (db.inbox(), key("1"));
    let (known, pruned, claimed, ready) = tokio::join!(
        inbox.is_handled(CONSUMER, &of_1),
        inbox.prune(CONSUMER, Duration::ZERO, 1),
        backstop_core::held::HeldMessages::claim(
            &inbox,
            CONSUMER,
            Limits { lock: Duration::from_secs(300), handler: Duration::from_secs(300) }
        ),
        inbox.ready(),
    );
    assert_eq!(known.expect_err("no answer").kind(), FaultKind::Unreachable);
    assert_eq!(pruned.expect_err("no answer").kind(), FaultKind::Unreachable);
    assert_eq!(claimed.expect_err("no answer").kind(), FaultKind::Unreachable);
    assert_eq!(ready.expect_err("no answer").kind(), FaultKind::Unreachable);
    lock.rollback().await.expect("unlocked");
    assert!(!inbox.is_handled(CONSUMER, &of_1).await.expect("it answers again"));
    db.drop().await;
}
