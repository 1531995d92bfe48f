//! What a handler may do to its transaction, and what the inbox says of the commit.

use std::time::Duration;

use backstop_core::inbox::{Admission, CommitError, Inbox, Limits};
use backstop_core::{Disposition, ErrorClass, FaultKind};
use backstop_mysql::{MySqlInbox, MySqlTx};
use sqlx::{Acquire, Executor};

use crate::common::{CONSUMER, Db, fresh, key, limits, unit, until, url};

const EFFECT: &str = "INSERT INTO effect VALUES (1)";
const FAILING: &str = "INSERT INTO effect VALUES (NULL)";

async fn db() -> Db {
    let db = Db::new().await;
    db.run(
        "CREATE TABLE effect (n int NOT NULL) ENGINE = InnoDB; CREATE TABLE pair (n int PRIMARY KEY, v int); \
         INSERT INTO pair VALUES (1, 0), (2, 0)",
    )
    .await;
    db
}

async fn outcome(db: &Db, tx: MySqlTx) -> (Result<(), CommitError>, i64, i64) {
    let result = db.inbox().commit(tx).await;
    (
        result,
        db.number("SELECT COUNT(*) FROM backstop_inbox").await,
        db.number("SELECT COUNT(*) FROM effect").await,
    )
}

async fn do_all(tx: &mut MySqlTx, statements: &[&'static str]) {
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
async fn a_swallowed_failure_costs_only_its_statement() {
    let db = db().await;
    let mut tx = fresh(&db.inbox(), "1").await;
    do_all(&mut tx, &[EFFECT, FAILING]).await;
    let (result, inbox, effects) = outcome(&db, tx).await;
    assert!(result.is_ok(), "{result:?}");
    assert_eq!((inbox, effects), (1, 1));
    db.drop().await;
}

/// Loses a deadlock against another transaction, swallows the error and goes on.
async fn swallow_deadlock(db: &Db, tx: &mut MySqlTx) {
    tx.execute("UPDATE pair SET v = 1 WHERE n = 1").await.expect("written");
    let mut other = db.pool.begin().await.expect("begun");
    // The one that has written less is the one that loses.
    for _ in 0..20 {
        other.execute("INSERT INTO effect VALUES (7), (7), (7), (7)").await.expect("written");
    }
    other.execute("UPDATE pair SET v = 2 WHERE n = 2").await.expect("written");
    let other = tokio::spawn(async move {
        other.execute("UPDATE pair SET v = 2 WHERE n = 1").await.expect("the other one loses");
        other.rollback().await.expect("rolled back");
    });
    db.until_waiting(1).await;
    let error = tx.execute("UPDATE pair SET v = 1 WHERE n = 2").await.expect_err("a deadlock");
    assert!(error.to_string().contains("1213"), "{error}");
    other.await.expect("joined");
}

#[tokio::test]
async fn a_swallowed_deadlock_leaves_nothing_and_may_be_tried_again() {
    let db = db().await;
    let mut tx = fresh(&db.inbox(), "1").await;
    tx.execute(EFFECT).await.expect("written");
    swallow_deadlock(&db, &mut tx).await;
    // Outside of any transaction, each of these would commit by itself.
    tx.execute(EFFECT).await.expect("written");
    let (result, inbox, effects) = outcome(&db, tx).await;
    assert!(matches!(result, Err(CommitError::RolledBack(_))), "{result:?}");
    assert_eq!((inbox, effects), (0, 0));
    let tx = fresh(&db.inbox(), "1").await;
    db.inbox().commit(tx).await.expect("the message is free again");
    db.drop().await;
}

#[tokio::test]
async fn a_handler_that_ends_its_transaction_is_found_out() {
    const RUN_DDL: &str = "CREATE TABLE other (n int)";
    let cases: [(&[&'static str], bool, i64, i64); 9] = [
        (&[EFFECT, "COMMIT"], true, 1, 1),
        (&[EFFECT, "COMMIT", "BEGIN", EFFECT], true, 1, 1),
        (&[EFFECT, "COMMIT AND CHAIN", EFFECT], true, 1, 1),
        (&["COMMIT", EFFECT], true, 1, 0),
        (&[EFFECT, RUN_DDL, EFFECT], true, 1, 1),
        (&[EFFECT, "SET autocommit = 1", EFFECT], true, 1, 2),
        (&[EFFECT, "ROLLBACK"], false, 0, 0),
        (&[EFFECT, "ROLLBACK AND CHAIN", EFFECT], false, 0, 0),
        (&["ROLLBACK", EFFECT], false, 0, 0),
    ];
    for (statements, committed, inbox_rows, effects_written) in cases {
        let db = db().await;
        let mut tx = fresh(&db.inbox(), "1").await;
        do_all(&mut tx, statements).await;
        let (result, inbox, effects) = outcome(&db, tx).await;
        match result {
            Err(CommitError::EndedByHandler(error)) if committed => {
                assert_eq!(error.kind(), FaultKind::TransactionEnded);
            }
            Err(CommitError::RolledBack(_)) if !committed => {}
            other => panic!("{statements:?}: {other:?}"),
        }
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
    assert_eq!(db.number("SELECT COUNT(*) FROM effect").await, 0, "a nested commit must not commit");
    let mut dropped = tx.begin().await.expect("a savepoint");
    dropped.execute(EFFECT).await.expect("written");
    drop(dropped);
    let (result, inbox, effects) = outcome(&db, tx).await;
    assert!(result.is_ok(), "{result:?}");
    assert_eq!((inbox, effects), (1, 1));
    db.drop().await;
}

const SETTINGS: &str = "SELECT CAST(CONCAT_WS(' ', @@autocommit, @@innodb_lock_wait_timeout, @@lock_wait_timeout, \
     @@wait_timeout, @@max_statement_time, @@tx_isolation) AS CHAR)";

#[tokio::test]
async fn the_pool_is_given_back_as_it_was() {
    let db = db().await;
    let inbox = db.inbox();
    let before: String = sqlx::query_scalar(SETTINGS).fetch_one(&db.pool).await.expect("asked");
    for n in 0..60 {
        let mut tx = fresh(&inbox, &format!("{n}")).await;
        match n % 4 {
            0 => inbox.commit(tx).await.expect("committed"),
            1 => inbox.rollback(tx).await,
            2 => {
                do_all(&mut tx, &["ROLLBACK"]).await;
                inbox.commit(tx).await.expect_err("lost");
            }
            _ => drop(tx),
        }
        let duplicate = inbox.begin(unit("k", &key("0")), limits()).await.expect("asked");
        assert!(matches!(duplicate, Admission::Duplicate));
        let now: String = sqlx::query_scalar(SETTINGS).fetch_one(&db.pool).await.expect("asked");
        assert_eq!(now, before);
    }
    let open = format!(
        "SELECT COUNT(*) FROM information_schema.INNODB_TRX AS t JOIN information_schema.PROCESSLIST AS p \
         ON p.ID = t.trx_mysql_thread_id WHERE p.DB = '{}' AND p.ID <> CONNECTION_ID()",
        db.schema
    );
    until("no connection stays in a transaction", || async {
        tokio::time::sleep(Duration::from_millis(150)).await;
        db.number(&open).await == 0
    })
    .await;
    assert_eq!(db.number("SELECT COUNT(*) FROM backstop_inbox").await, 15);
    db.drop().await;
}

async fn thread(tx: &mut MySqlTx) -> String {
    let id: u64 = sqlx::query_scalar("SELECT CONNECTION_ID()").fetch_one(&mut **tx).await.expect("an id");
    format!("SELECT COUNT(*) FROM information_schema.PROCESSLIST WHERE ID = {id}")
}

#[tokio::test]
async fn a_cancelled_handler_cannot_commit_late() {
    let db = db().await;
    let inbox = db.inbox();
    let mut tx = fresh(&inbox, "1").await;
    let alive = thread(&mut tx).await;
    let slow = tx.execute(sqlx::raw_sql("INSERT INTO effect VALUES (1); SELECT SLEEP(0.5); COMMIT"));
    assert!(tokio::time::timeout(Duration::from_millis(100), slow).await.is_err());
    let mut gentle = fresh(&inbox, "2").await;
    let gone = thread(&mut gentle).await;
    let slow = gentle.execute(sqlx::raw_sql("SELECT SLEEP(0.2)"));
    assert!(tokio::time::timeout(Duration::from_millis(50), slow).await.is_err());
    drop(gentle);
    until("its connection ends", || async { db.number(&gone).await == 0 }).await;
    assert_eq!(db.number("SELECT COUNT(*) FROM backstop_inbox").await, 0);
    drop(tx);
    until("its connection ends", || async { db.number(&alive).await == 0 }).await;
    let tx = fresh(&inbox, "2").await;
    inbox.commit(tx).await.expect("the message is free again");
    db.drop().await;
}

#[tokio::test]
async fn a_connection_that_is_killed_leaves_nothing_and_says_that_it_does_not_know() {
    let db = db().await;
    let inbox = db.inbox();
    let mut tx = fresh(&inbox, "1").await;
    tx.execute(EFFECT).await.expect("written");
    let id: u64 = sqlx::query_scalar("SELECT CONNECTION_ID()").fetch_one(&mut *tx).await.expect("an id");
    db.run(&format!("KILL {id}")).await;
    let error = inbox.commit(tx).await.expect_err("the connection is gone");
    assert!(matches!(error, CommitError::Unknown(_)), "{error:?}");
    assert_eq!(error.error().kind(), FaultKind::Unreachable, "{error:?}");
    assert!(!inbox.is_handled(CONSUMER, &key("1")).await.expect("asked"));
    assert_eq!(db.number("SELECT COUNT(*) FROM effect").await, 0);
    db.drop().await;
}

#[tokio::test]
async fn the_server_enforces_the_limits() {
    let db = db().await;
    let inbox = db.inbox();
    let short = Limits { lock: Duration::from_millis(50), handler: Duration::from_millis(1_500) };
    let key = key("1");
    let Admission::Fresh(mut tx) = inbox.begin(unit("k", &key), short).await.expect("begun") else {
        panic!()
    };
    let lock: i64 = sqlx::query_scalar("SELECT CAST(@@innodb_lock_wait_timeout AS SIGNED)")
        .fetch_one(&mut *tx)
        .await
        .expect("asked");
    assert_eq!(lock, 2, "the short wait is not for the handler's statements");
    let endless = "SELECT SLEEP(8)";
    let error = tx.execute(endless).await.expect_err("cut short");
    assert_eq!(
        inbox.explain(&error).expect("ours").disposition,
        Some(Disposition::Fail(ErrorClass::Transient)),
        "{error}"
    );
    inbox.rollback(tx).await;
    let Admission::Fresh(mut idle) = inbox.begin(unit("k", &key), short).await.expect("begun") else {
        panic!()
    };
    let alive = thread(&mut idle).await;
    until("the idle transaction is ended", || async { db.number(&alive).await == 0 }).await;
    let error = inbox.commit(idle).await.expect_err("the connection is gone");
    assert!(matches!(error, CommitError::Unknown(_)), "{error:?}");
    db.drop().await;
}

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
    db.until_waiting(1).await;
    inbox.commit(first).await.expect("committed");
    assert!(matches!(waiting.await.expect("joined"), Admission::Duplicate));
    assert_eq!(db.number("SELECT COUNT(*) FROM effect").await, 1);
    db.drop().await;
}

#[tokio::test]
async fn old_rows_are_pruned_a_few_at_a_time_beside_open_transactions() {
    let db = db().await;
    for n in 0..5 {
        for consumer in ["stock", "other"] {
            db.run(&format!(
                "INSERT INTO backstop_inbox VALUES ('{consumer}', 'm{n}', UTC_TIMESTAMP(6) - INTERVAL 8 DAY)"
            ))
            .await;
        }
    }
    let open = fresh(&db.inbox(), "open").await;
    let week = Duration::from_secs(7 * 86_400);
    assert_eq!(db.inbox().prune(CONSUMER, week, 3).await.expect("pruned"), 3);
    assert_eq!(db.inbox().prune(CONSUMER, week, 3).await.expect("pruned"), 2);
    assert_eq!(db.inbox().prune(CONSUMER, week, 3).await.expect("pruned"), 0);
    db.inbox().commit(open).await.expect("committed");
    assert_eq!(db.number("SELECT COUNT(*) FROM backstop_inbox").await, 6);
    db.drop().await;
}

#[tokio::test]
async fn errors_have_their_meaning() {
    let db = db().await;
    db.run(
        "CREATE TABLE parent (n int PRIMARY KEY); CREATE TABLE child (n int, CONSTRAINT of_parent FOREIGN KEY (n) \
         REFERENCES parent (n)); CREATE TABLE strict (n int NOT NULL, t varchar(3), CONSTRAINT few CHECK (n < 10), \
         UNIQUE KEY once (n)); INSERT INTO strict VALUES (1, 'a')",
    )
    .await;
    let (transient, permanent) = (ErrorClass::Transient, ErrorClass::Permanent);
    for (statement, class, fact) in [
        ("INSERT INTO strict VALUES (1, 'a')", transient, "constraint=once"),
        ("INSERT INTO child VALUES (7)", transient, "constraint=of_parent"),
        ("INSERT INTO strict VALUES (NULL, 'a')", permanent, "column=n"),
        ("INSERT INTO strict (t) VALUES ('a')", permanent, "column=n"),
        ("INSERT INTO strict VALUES (2, 'long')", permanent, "column=t"),
        ("INSERT INTO strict VALUES (99, 'a')", permanent, "constraint="),
    ] {
        let error = db.pool.execute(statement).await.expect_err(statement);
        let explained = db.inbox().explain(&error).expect("ours");
        assert_eq!(explained.disposition, Some(Disposition::Fail(class)), "{statement}: {error}");
        assert!(explained.facts.as_ref().is_some_and(|facts| facts.contains(fact)), "{explained:?}: {error}");
    }
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
    db.drop().await;
    let db = Db::new().await;
    db.inbox().ready().await.expect("ready");
    db.run("DELETE FROM backstop_held_gate WHERE n = 7").await;
    let error = db.inbox().ready().await.expect_err("a gate is gone");
    assert!(error.hint().is_some_and(|hint| hint.contains("0 to 63")), "{error:?}");
    db.drop().await;
}

#[tokio::test]
async fn no_secret_is_in_an_error() {
    let secret = "hunter2-%40-secret";
    let url = url();
    let (scheme, rest) = url.split_once("://").expect("a URL");
    let (_, host) = rest.split_once('@').expect("a user");
    for host in [host, "127.0.0.1:1/none"] {
        let url = format!("{scheme}://nobody:{secret}@{host}");
        let pool = sqlx::mysql::MySqlPoolOptions::new()
            .acquire_timeout(Duration::from_secs(3))
            .connect_lazy(&url)
            .expect("a URL");
        let inbox = MySqlInbox::new(pool);
        let refused = backstop_mysql::open(&url).await.expect_err("refused");
        for error in [inbox.ready().await.expect_err("refused"), refused] {
            let mut text = format!("{error} {error:?} {inbox:?}");
            let mut source = std::error::Error::source(&error);
            while let Some(error) = source {
                text += &format!("{error} {error:?}");
                source = error.source();
            }
            assert!(!text.contains("hunter2"), "{text}");
        }
    }
    for bad in ["postgres://u:hunter2@h/d", "mysql://u:hunter2@h", "mysql://u:hunter2@h:port/d"] {
        let error = backstop_mysql::open(bad).await.expect_err("malformed");
        assert_eq!(error.kind(), FaultKind::Invalid);
        assert!(!format!("{error} {error:?}").contains("hunter2"));
    }
}
