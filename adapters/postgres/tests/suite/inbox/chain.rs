//! Transactions that are begun by the commit before them: what one message leaves behind, the next must not find.

use std::time::Duration;

use backstop_core::FaultKind;
use backstop_core::inbox::{Admission, Inbox, Limits};
use backstop_postgres::{PgInbox, PgTx};
use sqlx::postgres::PgPoolOptions;
use sqlx::{Executor, PgPool};

use crate::support::{CONSUMER, Db, fresh, key, limits, unit, url};

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

/// Handles so many messages in a row; from the third on the session itself enforces the limits.
async fn busy(inbox: &PgInbox, name: &str, messages: usize) {
    for n in 0..messages {
        let tx = fresh(inbox, &format!("{name}-{n}")).await;
        inbox.commit(tx).await.expect("committed");
    }
}

async fn shown(pool: &PgPool, name: &str) -> String {
    sqlx::query_scalar("SELECT current_setting($1)").bind(name).fetch_one(pool).await.expect(name)
}

#[tokio::test]
async fn a_busy_connection_goes_back_with_the_settings_of_its_session() {
    let db = Db::new().await;
    let pool = single(&db).await;
    let inbox = PgInbox::with_tables(pool.clone(), db.tables.clone());
    pool.execute("SET statement_timeout = '77s'; SET idle_in_transaction_session_timeout = '78s'")
        .await
        .expect("set");
    for messages in [1, 2, 3, 9, 40] {
        busy(&inbox, &format!("of {messages}"), messages).await;
        let mut tx = fresh(&inbox, &format!("last of {messages}")).await;
        assert_eq!(setting(&mut tx, "statement_timeout").await, "10s");
        assert_eq!(setting(&mut tx, "idle_in_transaction_session_timeout").await, "10s");
        if messages % 2 == 0 {
            inbox.commit(tx).await.expect("committed");
        } else {
            inbox.rollback(tx).await;
        }
        assert_eq!(shown(&pool, "statement_timeout").await, "77s", "after {messages}");
        assert_eq!(shown(&pool, "idle_in_transaction_session_timeout").await, "78s", "after {messages}");
    }
    db.drop().await;
}

#[tokio::test]
async fn a_handler_that_changes_its_session_changes_no_limit_of_the_next() {
    let db = Db::new().await;
    let pool = single(&db).await;
    let inbox = PgInbox::with_tables(pool.clone(), db.tables.clone());
    for name in ["statement_timeout", "idle_in_transaction_session_timeout"] {
        let before = shown(&pool, name).await;
        busy(&inbox, name, 4).await;
        let mut tx = fresh(&inbox, &format!("rude to {name}")).await;
        let backend = setting(&mut tx, "backstop.statement").await;
        assert_ne!(backend, "", "the session enforces the limits");
        sqlx::query("SELECT set_config($1, '0', false)").bind(name).execute(&mut *tx).await.expect("set");
        inbox.commit(tx).await.expect("committed");
        let mut next = fresh(&inbox, &format!("after {name}")).await;
        assert_eq!(setting(&mut next, name).await, "10s");
        inbox.commit(next).await.expect("committed");
        assert_eq!(shown(&pool, name).await, before);
    }
    db.drop().await;
}

#[tokio::test]
async fn a_chained_transaction_waits_for_another_instance_as_long_as_it_may() {
    let db = Db::new().await;
    let inbox = PgInbox::with_tables(single(&db).await, db.tables.clone());
    let other = fresh(&db.inbox(), "contested").await;
    busy(&inbox, "busy", 4).await;
    let contested = key("contested");
    let answer = inbox.begin(unit("k", &contested), limits());
    let answer =
        tokio::time::timeout(Duration::from_secs(5), answer).await.expect("it does not wait for ever");
    assert!(matches!(answer.expect("asked"), Admission::Busy));
    db.inbox().commit(other).await.expect("the other is not hurt");
    busy(&inbox, "busy again", 4).await;
    let answer = inbox.begin(unit("k", &contested), limits()).await.expect("asked");
    assert!(matches!(answer, Admission::Duplicate), "{answer:?}");
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
            Limits { lock: Duration::from_secs(300), handler: Duration::from_secs(300) },
            backstop_core::held::Heads::Sound
        ),
        inbox.ready(),
    );
    assert_eq!(known.expect_err("no answer").kind(), FaultKind::Unreachable);
    assert_eq!(pruned.expect_err("no answer").kind(), FaultKind::Unreachable);
    assert_eq!(claimed.expect_err("no answer").error.kind(), FaultKind::Unreachable);
    assert_eq!(ready.expect_err("no answer").kind(), FaultKind::Unreachable);
    lock.rollback().await.expect("unlocked");
    assert!(!inbox.is_handled(CONSUMER, &of_1).await.expect("it answers again"));
    db.drop().await;
}
