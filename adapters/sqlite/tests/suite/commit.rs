//! Whatever a handler does with its transaction, a commit that is reported has happened, and nothing else has.

use std::time::{Duration, Instant};

use crate::common::{File, effect, fresh, key, limits, unit};
use backstop_core::classify::causes;
use backstop_core::inbox::{Admission, CommitError, Inbox, Limits};
use backstop_core::{Disposition, ErrorClass, FaultKind};
use backstop_sqlite::{SqliteInbox, SqliteTx, open};
use sqlx::Connection;

async fn raw(tx: &mut SqliteTx, sql: &'static str) {
    sqlx::raw_sql(sql).execute(&mut **tx).await.expect(sql);
}

/// A message that is being handled, and has had its effect.
async fn at_work() -> (File, SqliteInbox, SqliteTx) {
    let file = File::new().await;
    let inbox = SqliteInbox::new(file.pool.clone());
    let mut tx = fresh(&inbox, unit("k", &key("1"))).await;
    effect(&mut tx, "1").await;
    (file, inbox, tx)
}

#[tokio::test]
async fn effects_and_inbox_row_commit_together_and_once() {
    let file = File::new().await;
    let inbox = SqliteInbox::new(file.pool.clone());
    let key = key("1");
    let mut tx = fresh(&inbox, unit("k", &key)).await;
    effect(&mut tx, "1").await;
    assert_eq!((file.effects().await, file.inbox_rows().await), (0, 0), "not before the commit");
    inbox.commit(tx).await.expect("commit");
    assert_eq!((file.effects().await, file.inbox_rows().await), (1, 1));
    assert!(inbox.is_handled("stock", &key).await.expect("asked"));
    assert!(!inbox.is_handled("other", &key).await.expect("asked"));
    let again = inbox.begin(unit("k", &key), limits()).await.expect("begin");
    assert!(matches!(again, Admission::Duplicate), "{again:?}");
}

#[tokio::test]
async fn a_rollback_leaves_nothing_and_the_connection_is_used_again() {
    let file = File::new().await;
    let inbox = SqliteInbox::new(file.pool.clone());
    let key = key("1");
    for _ in 0..20 {
        let mut tx = fresh(&inbox, unit("k", &key)).await;
        effect(&mut tx, "1").await;
        inbox.rollback(tx).await;
    }
    assert_eq!((file.effects().await, file.inbox_rows().await), (0, 0));
    inbox.commit(fresh(&inbox, unit("k", &key)).await).await.expect("commit");
}

#[tokio::test]
async fn a_failed_statement_undoes_itself_and_the_rest_commits() {
    let (file, inbox, mut tx) = at_work().await;
    let swallowed = sqlx::query("INSERT INTO effects (message) VALUES (NULL)").execute(&mut *tx).await;
    assert!(swallowed.is_err());
    inbox.commit(tx).await.expect("commit");
    assert_eq!((file.effects().await, file.inbox_rows().await), (1, 1));
}

#[tokio::test]
async fn a_transaction_that_sqlite_rolled_back_is_not_reported_as_committed() {
    let (file, inbox, mut tx) = at_work().await;
    let swallowed =
        sqlx::query("INSERT OR ROLLBACK INTO effects (message) VALUES (NULL)").execute(&mut *tx).await;
    assert!(swallowed.is_err());
    let error = inbox.commit(tx).await.expect_err("rolled back");
    assert!(matches!(error, CommitError::EndedByHandler(_)), "{error:?}");
    assert_eq!((file.effects().await, file.inbox_rows().await), (0, 0));
}

#[tokio::test]
async fn a_handler_that_ends_the_transaction_is_found_out() {
    // what the handler runs; effects and inbox rows that are in the database afterwards
    let cases = [
        ("COMMIT", 1, 1),
        ("COMMIT; BEGIN; INSERT INTO effects (message) VALUES ('late')", 1, 1),
        ("COMMIT; BEGIN IMMEDIATE; SAVEPOINT a; INSERT INTO effects (message) VALUES ('late')", 1, 1),
        ("COMMIT; INSERT INTO effects (message) VALUES ('late')", 2, 1),
        ("ROLLBACK", 0, 0),
        ("ROLLBACK; BEGIN; INSERT INTO effects (message) VALUES ('late')", 0, 0),
        ("ROLLBACK; INSERT INTO effects (message) VALUES ('autocommitted')", 1, 0),
    ];
    for (sql, effects, inbox_rows) in cases {
        let (file, inbox, mut tx) = at_work().await;
        raw(&mut tx, sql).await;
        let error = inbox.commit(tx).await.expect_err(sql);
        assert!(
            matches!(&error, CommitError::EndedByHandler(error) if error.kind() == FaultKind::TransactionEnded && error.hint().is_some()),
            "{sql}: {error:?}"
        );
        file.write_lock_is_free().await;
        assert_eq!((file.effects().await, file.inbox_rows().await), (effects, inbox_rows), "{sql}");
        for _ in 0..8 {
            let mut connection = file.pool.acquire().await.expect("connection");
            sqlx::raw_sql("BEGIN; ROLLBACK")
                .execute(&mut *connection)
                .await
                .expect("no open transaction in the pool");
        }
    }
}

#[tokio::test]
async fn nested_transactions_belong_to_the_handler() {
    let (file, inbox, mut tx) = at_work().await;
    let mut nested = tx.begin().await.expect("savepoint");
    sqlx::query("INSERT INTO effects (message) VALUES ('kept')").execute(&mut *nested).await.expect("effect");
    nested.commit().await.expect("release");
    assert_eq!(file.effects().await, 0, "a nested commit commits nothing");
    let mut nested = tx.begin().await.expect("savepoint");
    sqlx::query("INSERT INTO effects (message) VALUES ('undone')")
        .execute(&mut *nested)
        .await
        .expect("effect");
    nested.rollback().await.expect("rollback");
    let mut nested = tx.begin().await.expect("savepoint");
    sqlx::query("INSERT INTO effects (message) VALUES ('dropped')")
        .execute(&mut *nested)
        .await
        .expect("effect");
    drop(nested);
    raw(&mut tx, "SAVEPOINT own; INSERT INTO effects (message) VALUES ('own')").await;
    inbox.commit(tx).await.expect("commit");
    assert_eq!((file.effects().await, file.inbox_rows().await), (3, 1));
}

#[tokio::test]
async fn a_nested_transaction_left_open_commits_nothing() {
    let file = File::new().await;
    let inbox = SqliteInbox::new(file.pool.clone());
    let key = key("1");
    let mut tx = fresh(&inbox, unit("k", &key)).await;
    std::mem::forget(tx.begin().await.expect("savepoint"));
    let error = inbox.commit(tx).await.expect_err("left open");
    assert!(matches!(error, CommitError::RolledBack(_)), "{error:?}");
    file.write_lock_is_free().await;
    assert_eq!(file.inbox_rows().await, 0);
}

#[tokio::test]
async fn a_refused_commit_leaves_nothing() {
    let file = File::new().await;
    let sql = "CREATE TABLE child (id INTEGER REFERENCES effects (n) DEFERRABLE INITIALLY DEFERRED)";
    sqlx::query(sql).execute(&file.pool).await.expect("create");
    let inbox = SqliteInbox::new(file.pool.clone());
    let key = key("1");
    let mut tx = fresh(&inbox, unit("k", &key)).await;
    raw(&mut tx, "INSERT INTO child VALUES (99)").await;
    let error = inbox.commit(tx).await.expect_err("foreign key");
    assert!(matches!(error, CommitError::RolledBack(_)), "{error:?}");
    file.write_lock_is_free().await;
    assert_eq!(file.inbox_rows().await, 0);
    assert_eq!(file.count("SELECT count(*) FROM child").await, 0);
}

#[tokio::test]
async fn a_dropped_transaction_leaves_nothing_and_frees_the_lock() {
    let file = File::new().await;
    let inbox = SqliteInbox::new(file.pool.clone());
    let key = key("1");
    for _ in 0..20 {
        let mut tx = fresh(&inbox, unit("k", &key)).await;
        effect(&mut tx, "1").await;
        drop(tx);
    }
    file.write_lock_is_free().await;
    assert_eq!((file.effects().await, file.inbox_rows().await), (0, 0));
}

const ENDLESS: &str = "INSERT INTO effects (message) WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n";

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_handler_is_interrupted_and_frees_the_lock() {
    let (file, _inbox, mut tx) = at_work().await;
    let running = async move { sqlx::query(ENDLESS).execute(&mut *tx).await };
    assert!(
        tokio::time::timeout(Duration::from_millis(200), running).await.is_err(),
        "it never ends by itself"
    );
    file.write_lock_is_free().await;
    assert_eq!((file.effects().await, file.inbox_rows().await), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_database_itself_keeps_the_handlers_time() {
    let file = File::new().await;
    let inbox = SqliteInbox::new(file.pool.clone());
    let key = key("1");
    let short = Limits { lock: Duration::from_millis(50), handler: Duration::from_millis(200) };
    let Admission::Fresh(mut tx) = inbox.begin(unit("k", &key), short).await.expect("begin") else {
        panic!("not fresh")
    };
    effect(&mut tx, "1").await;
    let running = tokio::time::timeout(Duration::from_secs(20), sqlx::query(ENDLESS).execute(&mut *tx));
    let error = running.await.expect("interrupted").expect_err("interrupted");
    let explained = inbox.explain(&error).expect("known");
    assert_eq!(explained.disposition, Some(Disposition::Fail(ErrorClass::Transient)));
    assert!(inbox.commit(tx).await.is_err(), "an interrupted write rolls everything back");
    file.write_lock_is_free().await;
    assert_eq!((file.effects().await, file.inbox_rows().await), (0, 0));
    let mut tx = fresh(&inbox, unit("k", &key)).await;
    effect(&mut tx, "1").await;
    inbox.commit(tx).await.expect("the next one has its own time");
}

#[tokio::test]
async fn a_connection_is_given_back_as_it_was() {
    let file = File::new().await;
    let inbox = SqliteInbox::new(file.pool.clone());
    let short = Limits { lock: Duration::from_millis(100), handler: Duration::from_millis(1) };
    let blocker = file.again().await.begin_with("BEGIN IMMEDIATE").await.expect("the lock");
    let (first, second) = (key("1"), key("2"));
    let started = Instant::now();
    let busy = inbox.begin(unit("k", &first), short).await.expect("begin");
    assert!(matches!(busy, Admission::Busy), "{busy:?}");
    assert!(started.elapsed() < Duration::from_secs(4), "it waits for its own time, not for the pool's");
    blocker.rollback().await.expect("rollback");
    let Admission::Fresh(tx) = inbox.begin(unit("k", &second), short).await.expect("begin") else {
        panic!("not fresh")
    };
    inbox.commit(tx).await.expect("commit");
    for _ in 0..4 {
        let mut connection = file.pool.acquire().await.expect("connection");
        let patience: i64 =
            sqlx::query_scalar("PRAGMA busy_timeout").fetch_one(&mut *connection).await.expect("read");
        assert_eq!(patience, 10_000);
        let long = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 200000) SELECT max(i) FROM n";
        sqlx::query(long).fetch_one(&mut *connection).await.expect("no time limit is left behind");
    }
}

#[tokio::test]
async fn while_one_instance_handles_a_message_another_steps_aside() {
    let file = File::new().await;
    let (one, two) = (SqliteInbox::new(file.pool.clone()), SqliteInbox::new(file.again().await));
    let key = key("1");
    let mut tx = fresh(&one, unit("k", &key)).await;
    effect(&mut tx, "1").await;
    let short = Limits { lock: Duration::from_millis(50), ..limits() };
    let other = two.begin(unit("k", &key), short).await.expect("begin");
    assert!(matches!(other, Admission::Busy), "{other:?}");
    let waiting = tokio::spawn(async move {
        let key = crate::common::key("1");
        matches!(two.begin(unit("k", &key), limits()).await.expect("begin"), Admission::Duplicate)
    });
    one.commit(tx).await.expect("commit");
    assert!(waiting.await.expect("no panic"), "one who waits long enough finds it handled");
    assert_eq!(file.effects().await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_instances_handle_each_message_once() {
    let file = File::new().await;
    let mut tasks = Vec::new();
    for _ in 0..4 {
        let inbox = SqliteInbox::new(file.again().await);
        for _ in 0..3 {
            let inbox = inbox.clone();
            tasks.push(tokio::spawn(async move {
                for number in 0..40 {
                    let id = number.to_string();
                    let key = crate::common::key(&id);
                    match inbox
                        .begin(unit(&id, &key), Limits { lock: Duration::from_secs(60), ..limits() })
                        .await
                        .expect("begin")
                    {
                        Admission::Fresh(mut tx) => {
                            effect(&mut tx, &id).await;
                            inbox.commit(tx).await.expect("commit");
                        }
                        Admission::Duplicate => {}
                        other => panic!("{other:?}"),
                    }
                }
            }));
        }
    }
    for task in tasks {
        task.await.expect("no panic");
    }
    assert_eq!((file.effects().await, file.inbox_rows().await), (40, 40));
    assert_eq!(file.count("SELECT count(DISTINCT message) FROM effects").await, 40);
}

#[tokio::test]
async fn errors_of_the_database_are_explained() {
    let file = File::new().await;
    let inbox = SqliteInbox::new(file.pool.clone());
    let transient = Some(Disposition::Fail(ErrorClass::Transient));
    let permanent = Some(Disposition::Fail(ErrorClass::Permanent));
    sqlx::query("INSERT INTO effects (message, sku) VALUES ('1', 'tea')")
        .execute(&file.pool)
        .await
        .expect("insert");
    let cases = [
        (
            "INSERT INTO effects (message, sku) VALUES ('2', 'tea')",
            transient,
            "code=SQLITE_CONSTRAINT_UNIQUE of=effects.sku",
        ),
        (
            "INSERT INTO effects (message) VALUES (NULL)",
            permanent,
            "code=SQLITE_CONSTRAINT_NOTNULL of=effects.message",
        ),
        (
            "INSERT INTO effects (message, sku) VALUES ('3', 'none')",
            permanent,
            "code=SQLITE_CONSTRAINT_CHECK of=sku <> 'none'",
        ),
        ("INSERT INTO effects (n, message) VALUES ('x', '3')", permanent, "code=20"),
        ("SELECT * FROM absent", None, "code=1"),
    ];
    for (sql, disposition, facts) in cases {
        let error = sqlx::query(sql).execute(&file.pool).await.expect_err(sql);
        let explained = inbox.explain(&error).expect(sql);
        assert_eq!(explained.disposition, disposition, "{sql}");
        assert_eq!(explained.facts.as_deref(), Some(facts));
    }
    let closed = file.again().await;
    closed.close().await;
    let error = closed.acquire().await.expect_err("closed");
    let unavailable = Some(Disposition::Fail(ErrorClass::Unavailable));
    assert_eq!(inbox.explain(&error).expect("known").disposition, unavailable);
    assert_eq!(inbox.explain(&std::fmt::Error), None);
}

/// A file of another kind, and one whose pages are damaged although it still opens.
#[tokio::test]
async fn a_damaged_file_is_no_messages_fault() {
    let unavailable = Disposition::Fail(ErrorClass::Unavailable);
    let file = File::new().await;
    let page = file.count("SELECT rootpage FROM sqlite_schema WHERE name = 'backstop_inbox'").await;
    let size = file.count("PRAGMA page_size").await;
    file.pool.close().await;
    file.overwrite((page - 1) * size, size);
    let pool = file.again().await;
    let inbox = SqliteInbox::new(pool.clone());
    inbox.ready().await.expect("what is looked at is sound");
    let damaged = inbox.begin(unit("k", &key("1")), limits()).await.expect_err("damaged");
    pool.close().await;
    file.overwrite(0, 100);
    let strange = open(file.path().to_str().expect("UTF-8")).await.expect_err("no database");
    for (error, code) in [(damaged, "code=11"), (strange, "code=26")] {
        assert_eq!(error.kind(), FaultKind::Other, "{error:?}");
        assert!(error.hint().is_some_and(|hint| hint.contains("backup")), "{error:?}");
        let explained = causes(&error).find_map(|cause| inbox.explain(cause)).expect("known");
        assert_eq!(explained.disposition, Some(unavailable), "{error:?}");
        assert_eq!(explained.facts.as_deref(), Some(code), "{error:?}");
    }
}

#[tokio::test]
async fn old_inbox_rows_are_pruned_in_bounds() {
    let file = File::new().await;
    let inbox = SqliteInbox::new(file.pool.clone());
    for number in 0..5 {
        let key = key(&number.to_string());
        inbox.commit(fresh(&inbox, unit("k", &key)).await).await.expect("commit");
    }
    sqlx::query("UPDATE backstop_inbox SET handled_at = handled_at - 100000 WHERE message_key <> '/test|4'")
        .execute(&file.pool)
        .await
        .expect("age");
    let minute = Duration::from_secs(60);
    assert_eq!(inbox.prune("other", minute, 100).await.expect("prune"), 0);
    assert_eq!(inbox.prune("stock", minute, 3).await.expect("prune"), 3);
    assert_eq!(inbox.prune("stock", minute, 3).await.expect("prune"), 1);
    assert_eq!(inbox.prune("stock", minute, 3).await.expect("prune"), 0);
    assert_eq!(file.inbox_rows().await, 1);
}

#[tokio::test]
async fn an_inbox_without_tables_says_what_to_do() {
    let file = File::empty().await;
    let inbox = SqliteInbox::new(file.pool.clone());
    let error = inbox.ready().await.expect_err("no tables");
    assert_eq!(error.kind(), FaultKind::Missing);
    assert!(error.hint().expect("a hint").contains("migrate"), "{error:?}");
    assert!(inbox.begin(unit("k", &key("1")), limits()).await.is_err());
    File::new().await;
    SqliteInbox::new(File::new().await.pool.clone()).ready().await.expect("ready");
}

#[tokio::test]
async fn databases_in_memory_and_nonsense_are_refused() {
    for path in [
        ":memory:",
        "sqlite::memory:",
        "sqlite://x.db?mode=memory",
        "",
        "a\0b",
        "sqlite://x.db?mode=nonsense",
    ] {
        let error = open(path).await.expect_err(path);
        assert_eq!(error.kind(), FaultKind::Invalid, "{path}: {error:?}");
        assert!(error.hint().is_some());
    }
    let error = open("/nonexistent/directory/x.db").await.expect_err("no directory");
    assert_eq!(error.kind(), FaultKind::Unreachable, "{error:?}");
    let memory = sqlx::SqlitePool::connect("sqlite::memory:").await.expect("connect");
    assert_eq!(SqliteInbox::new(memory).ready().await.expect_err("in memory").kind(), FaultKind::Invalid);
}
