//! What a handler may do to its transaction, and what the inbox says of the commit.

use std::time::Duration;

use backstop_core::inbox::{Admission, CommitError, Inbox, Limits};
use backstop_core::{Disposition, ErrorClass, FaultKind};
use backstop_postgres::PgTx;
use sqlx::{Acquire, Executor};

use crate::support::{CONSUMER, Db, fresh, key, limits, unit, until};

const EFFECT: &str = "INSERT INTO effect VALUES (1)";
const FAILING: &str = "INSERT INTO effect VALUES (1/0)";

async fn db() -> Db {
    let db = Db::new().await;
    db.run(
        "CREATE TABLE effect (n int); CREATE TABLE parent (n int PRIMARY KEY);
            CREATE TABLE child (n int REFERENCES parent DEFERRABLE INITIALLY DEFERRED)",
    )
    .await;
    db
}

async fn outcome(db: &Db, tx: PgTx) -> (Result<(), CommitError>, i64, i64) {
    let result = db.inbox().commit(tx).await;
    (
        result,
        db.number("SELECT count(*) FROM backstop_inbox").await,
        db.number("SELECT count(*) FROM effect").await,
    )
}

async fn do_all(tx: &mut PgTx, statements: &[&'static str]) {
    for statement in statements {
        let _ = tx.execute(sqlx::raw_sql(*statement)).await;
    }
}

#[tokio::test]
async fn an_orderly_handler_commits() {
    let db = db().await;
    let mut tx = fresh(&db.inbox(), "1").await;
    sqlx::query(EFFECT).execute(&mut *tx).await.expect("written");
    let (result, inbox, effects) = outcome(&db, tx).await;
    assert!(result.is_ok(), "{result:?}");
    assert_eq!((inbox, effects), (1, 1));
    assert!(db.inbox().is_handled(CONSUMER, &key("1")).await.expect("asked"));
    let again = db.inbox().begin(unit("k", &key("1")), limits()).await.expect("begun");
    assert!(matches!(again, Admission::Duplicate));
    db.drop().await;
}

#[tokio::test]
async fn a_swallowed_failure_commits_nothing() {
    let db = db().await;
    let mut tx = fresh(&db.inbox(), "1").await;
    do_all(&mut tx, &[EFFECT, FAILING]).await;
    let (result, inbox, effects) = outcome(&db, tx).await;
    assert!(matches!(result, Err(CommitError::RolledBack(_))), "{result:?}");
    assert_eq!((inbox, effects), (0, 0));
    db.drop().await;
}

#[tokio::test]
async fn a_handler_that_ends_its_transaction_is_found_out() {
    let cases: [(&[&'static str], i64, i64); 7] = [
        (&[EFFECT, "COMMIT"], 1, 1),
        (&[EFFECT, "COMMIT", "BEGIN", EFFECT], 1, 1),
        (&[EFFECT, "COMMIT AND CHAIN", EFFECT], 1, 1),
        (&[EFFECT, "ROLLBACK"], 0, 0),
        (&[EFFECT, "ROLLBACK AND CHAIN", EFFECT], 0, 0),
        (&["ROLLBACK", EFFECT], 0, 1),
        (&["COMMIT", EFFECT], 1, 1),
    ];
    for (statements, inbox_rows, effects_written) in cases {
        let db = db().await;
        let mut tx = fresh(&db.inbox(), "1").await;
        do_all(&mut tx, statements).await;
        let (result, inbox, effects) = outcome(&db, tx).await;
        let Err(CommitError::EndedByHandler(error)) = result else { panic!("{statements:?}: {result:?}") };
        assert_eq!(error.kind(), FaultKind::TransactionEnded);
        assert_eq!((inbox, effects), (inbox_rows, effects_written), "{statements:?}");
        db.drop().await;
    }
}

#[tokio::test]
async fn savepoints_are_the_handlers_own() {
    let db = db().await;
    let mut tx = fresh(&db.inbox(), "1").await;
    let mut nested = tx.begin().await.expect("a savepoint");
    let _ = nested.execute(FAILING).await;
    nested.rollback().await.expect("rolled back");
    let mut nested = tx.begin().await.expect("a savepoint");
    nested.execute(EFFECT).await.expect("written");
    nested.commit().await.expect("released");
    assert_eq!(db.number("SELECT count(*) FROM effect").await, 0, "a nested commit must not commit");
    let mut dropped = tx.begin().await.expect("a savepoint");
    dropped.execute(EFFECT).await.expect("written");
    drop(dropped);
    let (result, inbox, effects) = outcome(&db, tx).await;
    assert!(result.is_ok(), "{result:?}");
    assert_eq!((inbox, effects), (1, 1));
    db.drop().await;
}

#[tokio::test]
async fn a_deferred_constraint_rolls_back_and_says_which() {
    let db = db().await;
    let inbox = db.inbox();
    let mut tx = fresh(&inbox, "1").await;
    tx.execute("INSERT INTO child VALUES (7)").await.expect("deferred");
    let (result, rows, _) = outcome(&db, tx).await;
    let Err(CommitError::RolledBack(error)) = result else { panic!("{result:?}") };
    let source = std::error::Error::source(&error).expect("the server's error");
    let explained = inbox.explain(source).expect("ours");
    assert_eq!(explained.disposition, Some(Disposition::Fail(ErrorClass::Transient)));
    assert!(explained.facts.expect("facts").contains("constraint=child_n_fkey"));
    assert_eq!(rows, 0);
    db.drop().await;
}

#[tokio::test]
async fn the_pool_is_given_back_clean() {
    let db = db().await;
    let inbox = db.inbox();
    for n in 0..60 {
        let mut tx = fresh(&inbox, &format!("{n}")).await;
        match n % 4 {
            0 => inbox.commit(tx).await.expect("committed"),
            1 => inbox.rollback(tx).await,
            2 => {
                do_all(&mut tx, &[FAILING]).await;
                inbox.commit(tx).await.expect_err("lost");
            }
            _ => drop(tx),
        }
    }
    let idle = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%' AND query LIKE '%{}%'",
        db.schema
    );
    until("no connection stays in a transaction", || async { db.number(&idle).await == 0 }).await;
    assert_eq!(db.number("SELECT count(*) FROM backstop_inbox").await, 15);
    db.drop().await;
}

/// F84: on PostgreSQL.
#[tokio::test]
async fn a_cancelled_handler_cannot_commit_late() {
    let db = db().await;
    let inbox = db.inbox();
    let mut tx = fresh(&inbox, "1").await;
    let pid: i32 = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut *tx).await.expect("a pid");
    let slow = tx.execute(sqlx::raw_sql("INSERT INTO effect VALUES (1); SELECT pg_sleep(0.5)"));
    assert!(tokio::time::timeout(Duration::from_millis(100), slow).await.is_err());
    drop(tx);
    let alive = format!("SELECT count(*) FROM pg_stat_activity WHERE pid = {pid}");
    until("its backend ends", || async { db.number(&alive).await == 0 }).await;
    assert_eq!(db.number("SELECT count(*) FROM effect").await, 0);
    assert_eq!(db.number("SELECT count(*) FROM backstop_inbox").await, 0);
    let tx = fresh(&inbox, "1").await;
    inbox.commit(tx).await.expect("the message is free again");
    db.drop().await;
}

#[tokio::test]
async fn the_server_enforces_the_limits() {
    let db = db().await;
    let inbox = db.inbox();
    let short = Limits { lock: Duration::from_millis(50), handler: Duration::from_millis(150) };
    let key = key("1");
    let Admission::Fresh(mut tx) = inbox.begin(unit("k", &key), short).await.expect("begun") else {
        panic!()
    };
    let lock: String = sqlx::query_scalar("SHOW lock_timeout").fetch_one(&mut *tx).await.expect("shown");
    assert_eq!(lock, "0", "the short wait is not for the handler's statements");
    let error = tx.execute("SELECT pg_sleep(5)").await.expect_err("cut short");
    assert_eq!(
        inbox.explain(&error).expect("ours").disposition,
        Some(Disposition::Fail(ErrorClass::Transient))
    );
    inbox.rollback(tx).await;
    let Admission::Fresh(mut idle) = inbox.begin(unit("k", &key), short).await.expect("begun") else {
        panic!()
    };
    let pid: i32 = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut *idle).await.expect("a pid");
    let alive = format!("SELECT count(*) FROM pg_stat_activity WHERE pid = {pid}");
    until("the idle transaction is ended", || async { db.number(&alive).await == 0 }).await;
    let error = inbox.commit(idle).await.expect_err("the connection is gone");
    assert!(matches!(error, CommitError::Unknown(_)), "{error:?}");
    db.drop().await;
}

/// F76: on PostgreSQL.
#[tokio::test]
async fn two_instances_at_one_message_make_one_effect() {
    let db = db().await;
    let inbox = db.inbox();
    let mut first = fresh(&inbox, "1").await;
    first.execute(EFFECT).await.expect("written");
    let second = inbox.begin(unit("k", &key("1")), limits()).await.expect("asked");
    assert!(matches!(second, Admission::Busy), "{second:?}");
    let waiting = tokio::spawn({
        let inbox = inbox.clone();
        async move {
            let long = Limits { lock: Duration::from_secs(10), handler: Duration::from_secs(10) };
            inbox.begin(unit("k", &key("1")), long).await.expect("asked")
        }
    });
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' \
                 AND query LIKE '%backstop_inbox%'";
    until("the second waits", || async { db.number(waits).await > 0 }).await;
    inbox.commit(first).await.expect("committed");
    assert!(matches!(waiting.await.expect("joined"), Admission::Duplicate));
    assert_eq!(db.number("SELECT count(*) FROM effect").await, 1);
    db.drop().await;
}

#[tokio::test]
async fn old_rows_are_pruned_a_few_at_a_time() {
    let db = db().await;
    db.run(
        "INSERT INTO backstop_inbox SELECT c, 'm' || n, now() - interval '8 days' \
            FROM generate_series(1, 5) n, unnest(ARRAY['stock', 'other']) c; \
            INSERT INTO backstop_inbox VALUES ('stock', 'young', now())",
    )
    .await;
    let week = Duration::from_secs(7 * 86_400);
    assert_eq!(db.inbox().prune(CONSUMER, week, 3).await.expect("pruned"), 3);
    assert_eq!(db.inbox().prune(CONSUMER, week, 3).await.expect("pruned"), 2);
    assert_eq!(db.inbox().prune(CONSUMER, week, 3).await.expect("pruned"), 0);
    assert_eq!(db.number("SELECT count(*) FROM backstop_inbox").await, 6);
    db.drop().await;
}

#[tokio::test]
async fn readiness_names_what_is_missing() {
    let db = Db::bare().await;
    let error = db.inbox().ready().await.expect_err("no tables");
    assert_eq!(error.kind(), FaultKind::Missing);
    assert!(error.hint().expect("a hint").contains("migrate"));
    let error = db.inbox().begin(unit("k", &key("1")), limits()).await.expect_err("no tables");
    assert_eq!(error.kind(), FaultKind::Missing);
    db.run(&format!("CREATE SCHEMA \"{}\"", db.schema)).await;
    db.drop().await;
    let db = Db::new().await;
    db.inbox().ready().await.expect("ready");
    db.drop().await;
}

#[tokio::test]
async fn no_secret_is_in_an_error() {
    let secret = "hunter2-%40-secret";
    let url = crate::support::url();
    let (scheme, rest) = url.split_once("://").expect("a URL");
    let (_, host) = rest.split_once('@').expect("a user");
    for host in [host, "127.0.0.1:1/none"] {
        let pool = sqlx::postgres::PgPoolOptions::new()
            .acquire_timeout(Duration::from_secs(3))
            .connect_lazy(&format!("{scheme}://nobody:{secret}@{host}"))
            .expect("a URL");
        let inbox = backstop_postgres::PgInbox::new(pool);
        let error = inbox.ready().await.expect_err("refused");
        let mut text = format!("{error} {error:?} {inbox:?}");
        let mut source = std::error::Error::source(&error);
        while let Some(error) = source {
            text += &format!("{error} {error:?}");
            source = error.source();
        }
        assert!(!text.contains("hunter2"), "{text}");
    }
}
