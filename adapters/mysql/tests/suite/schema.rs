//! Tables: made, checked, taken back.

use backstop_core::inbox::Inbox;
use backstop_core::schema::{Finding, Schema, Severity};
use backstop_core::{FaultKind, Message, Outgoing};
use backstop_mysql::{MySqlInbox, MySqlOutbox, MySqlSchema, MySqlTables};
use sqlx::mysql::{MySqlConnectOptions, MySqlPoolOptions};

use crate::common::{Db, fresh, url};

fn schema(db: &Db) -> MySqlSchema {
    MySqlSchema::new(db.pool.clone(), db.tables.clone())
}

const TABLES: &str = "SELECT COUNT(*) FROM information_schema.TABLES WHERE TABLE_SCHEMA = DATABASE()";

#[tokio::test]
async fn up_twice_at_once_and_down_and_up() {
    let db = Db::bare().await;
    let (one, two) = (schema(&db), schema(&db));
    assert_eq!(one.applied().await.expect("asked"), Vec::<i64>::new());
    let (first, second) = tokio::join!(one.migrate(), two.migrate());
    let mut taken = [first.expect("migrated"), second.expect("migrated")].concat();
    taken.sort_unstable();
    assert_eq!(taken, [1, 2, 3, 4, 5, 6, 7], "each step was taken once");
    assert_eq!(one.migrate().await.expect("nothing to do"), Vec::<i64>::new());
    assert_eq!(one.revert(1).await.expect("reverted"), [7, 6, 5, 4, 3, 2]);
    assert_eq!(one.applied().await.expect("asked"), [1]);
    assert_eq!(one.revert(0).await.expect("reverted"), [1]);
    assert_eq!(db.number(TABLES).await, 1, "only the table of migrations is left");
    assert_eq!(one.migrate().await.expect("migrated"), [1, 2, 3, 4, 5, 6, 7]);
    db.drop().await;
}

#[tokio::test]
async fn a_step_that_fails_is_named_and_can_be_taken_again() {
    let db = Db::bare().await;
    db.run("CREATE VIEW backstop_held_gate AS SELECT 1 AS other").await;
    let error = schema(&db).migrate().await.expect_err("a view is in the way");
    assert_eq!(error.to_string(), "cannot run migration 2 (inbox)");
    assert_eq!(schema(&db).applied().await.expect("asked"), [1], "those before it stay");
    db.run("DROP VIEW backstop_held_gate").await;
    assert_eq!(schema(&db).migrate().await.expect("migrated"), [2, 3, 4, 5, 6, 7]);
    db.inbox().ready().await.expect("ready");
    db.drop().await;
}

#[tokio::test]
async fn a_strangers_table_is_not_taken_for_ours() {
    let db = Db::bare().await;
    db.run("CREATE TABLE backstop_lease (n int)").await;
    schema(&db).migrate().await.expect("migrated");
    let findings = schema(&db).check().await.expect("checked");
    let wrong: Vec<_> = findings.iter().filter(|finding| finding.severity == Severity::Error).collect();
    assert_eq!(wrong.len(), 1, "{findings:?}");
    assert!(wrong[0].detail.contains("another table"), "{findings:?}");
    db.drop().await;
}

#[tokio::test]
async fn a_prefix_keeps_two_sets_of_tables_apart() {
    let db = Db::new().await;
    let tables = db.tables.clone().with_prefix("other").expect("a name");
    let other = MySqlSchema::new(db.pool.clone(), tables.clone());
    assert_eq!(other.migrate().await.expect("migrated"), [1, 2, 3, 4, 5, 6, 7]);
    let mut tx = fresh(&MySqlInbox::with_tables(db.pool.clone(), tables.clone()), "1").await;
    let outgoing = Outgoing::to("orders", Message::new("a"));
    MySqlOutbox::with_tables(&tables).enqueue(&mut tx, outgoing).await.expect("written");
    db.inbox().commit(tx).await.expect("committed");
    assert_eq!(db.number("SELECT COUNT(*) FROM other_outbox").await, 1);
    assert_eq!(db.number("SELECT COUNT(*) FROM backstop_outbox").await, 0);
    db.drop().await;
}

/// F29: what is missing is named.
#[tokio::test]
async fn the_check_finds_what_is_wrong() {
    let db = Db::bare().await;
    let findings = schema(&db).check().await.expect("checked");
    let wrong = findings.iter().filter(|finding| finding.severity == Severity::Error).count();
    assert_eq!(wrong, 10, "nine tables and the migrations: {findings:?}");
    schema(&db).migrate().await.expect("migrated");
    let findings = schema(&db).check().await.expect("checked");
    assert!(findings.iter().all(|finding| finding.severity == Severity::Fine), "{findings:?}");
    db.run("DELETE FROM backstop_held_gate WHERE n > 60").await;
    let findings = schema(&db).check().await.expect("checked");
    assert!(findings.iter().any(|finding| finding.detail == "61 of 64 are there"), "{findings:?}");
    db.drop().await;
}

/// F29: with the statement that mends it.
#[tokio::test]
async fn permissions_that_are_missing_are_named_with_their_grant() {
    let db = Db::new().await;
    let user = format!("u_{}", &db.schema[2..20]);
    db.run(&format!("CREATE USER {user}@'%' IDENTIFIED BY 'secret'")).await;
    db.run(&format!(
        "CREATE ROLE r_{user}; GRANT r_{user} TO {user}@'%'; SET DEFAULT ROLE r_{user} FOR {user}@'%'"
    ))
    .await;
    for table in [
        "outbox_dead",
        "outbox_scheduled",
        "inbox",
        "held",
        "held_gate",
        "lease",
        "receipt",
        "charge",
        "migrations",
    ] {
        db.run(&format!("GRANT SELECT, INSERT, UPDATE, DELETE ON backstop_{table} TO r_{user}")).await;
    }
    db.run(&format!("GRANT SELECT, INSERT ON backstop_outbox TO {user}@'%'")).await;
    let options: MySqlConnectOptions = url().parse().expect("a URL");
    let options = options.username(&user).password("secret").database(&db.schema);
    let pool = MySqlPoolOptions::new().max_connections(2).connect_with(options).await.expect("connected");
    let findings = MySqlSchema::new(pool.clone(), db.tables.clone()).check().await.expect("checked");
    let remedies: Vec<_> = findings.iter().filter_map(|finding| finding.remedy.as_deref()).collect();
    let grant = format!("GRANT DELETE ON `{}`.`backstop_outbox` TO '{user}'@'%'", db.schema);
    assert!(remedies.contains(&grant.as_str()), "{findings:?}");
    assert!(remedies.iter().any(|remedy| remedy.contains("performance_schema")), "{findings:?}");
    assert_eq!(remedies.len(), 2, "what a role may do counts: {findings:?}");
    let inbox = MySqlInbox::with_tables(pool.clone(), db.tables.clone());
    inbox.ready().await.expect("ready");
    db.run(&format!("REVOKE DELETE ON backstop_held FROM r_{user}")).await;
    let error = inbox.ready().await.expect_err("a permission is missing");
    assert_eq!((error.kind(), error.to_string().contains("lacks DELETE on")), (FaultKind::Denied, true));
    pool.close().await;
    db.run(&format!("DROP USER {user}@'%'; DROP ROLE r_{user}")).await;
    db.drop().await;
}

#[tokio::test]
async fn names_are_refused_and_missing_tables_named() {
    let db = Db::new().await;
    for bad in ["", "a b", "a`; drop table x;--", "1a", &"x".repeat(49)] {
        assert_eq!(MySqlTables::in_schema(bad).expect_err(bad).kind(), FaultKind::Invalid);
    }
    let wrong = MySqlTables::in_schema(&db.schema).expect("a name").with_prefix("wrong").expect("a name");
    let mut tx = db.pool.begin().await.expect("begun");
    let outgoing = Outgoing::to("orders", Message::new("a"));
    let error = MySqlOutbox::with_tables(&wrong).enqueue(&mut tx, outgoing).await.expect_err("no such table");
    assert_eq!(error.kind(), FaultKind::Missing);
    tx.rollback().await.expect("rolled back");
    db.drop().await;
}

/// The tests' server keeps our time; a session that sets its own does not.
#[tokio::test]
async fn clocks_that_differ() {
    let db = Db::new().await;
    let about =
        |findings: Vec<Finding>| findings.into_iter().find(|it| it.subject == "clock").expect("looked at");
    let findings = MySqlSchema::new(db.pool.clone(), db.tables.clone()).check().await.expect("checked");
    assert_eq!(about(findings).severity, Severity::Fine);
    let options: MySqlConnectOptions = url().parse().expect("a URL");
    let early = MySqlPoolOptions::new().after_connect(|connection, _| {
        Box::pin(async move {
            sqlx::raw_sql("SET timestamp = UNIX_TIMESTAMP() - 600").execute(connection).await.map(drop)
        })
    });
    let pool = early.connect_with(options.database(&db.schema)).await.expect("connected");
    let findings = MySqlSchema::new(pool.clone(), db.tables.clone()).check().await.expect("checked");
    let clock = about(findings);
    assert!(
        clock.severity == Severity::Warning && clock.detail.contains("s behind this machine's"),
        "{clock:?}"
    );
    pool.close().await;
    db.drop().await;
}

/// A step that must wait for a table gives up, so that nobody waits behind it for long; then it can be run again.
#[tokio::test]
async fn a_step_waits_five_seconds_for_a_table_and_no_longer() {
    let db = Db::new().await;
    for (table, back_to) in [("backstop_lease", 4), ("backstop_outbox", 0)] {
        let mut holder = db.pool.begin().await.expect("begun");
        let look = format!("SELECT COUNT(*) FROM {table}");
        sqlx::query(sqlx::AssertSqlSafe(look)).execute(&mut *holder).await.expect("held");
        let begun = std::time::Instant::now();
        let error = schema(&db).revert(back_to).await.expect_err("the table is held");
        assert!(begun.elapsed() < std::time::Duration::from_secs(15), "{:?}", begun.elapsed());
        assert_eq!(error.kind(), FaultKind::Conflict, "{error:?}");
        assert!(error.hint().is_some_and(|hint| hint.contains("run it again")), "{error:?}");
        holder.rollback().await.expect("let go");
        schema(&db).revert(back_to).await.expect("run again");
    }
    db.drop().await;
}

/// A step whose last statement was done and not written down, as by a lost connection, is taken for done.
#[tokio::test]
async fn a_step_that_was_done_and_not_written_down_can_be_taken_again() {
    let db = Db::new().await;
    db.run("DELETE FROM backstop_migrations WHERE version IN (5, 7)").await;
    assert_eq!(schema(&db).migrate().await.expect("migrated"), [5, 7]);
    db.run("ALTER TABLE backstop_lease DROP COLUMN report, DROP COLUMN reported_at").await;
    assert_eq!(schema(&db).revert(4).await.expect("reverted"), [7, 6, 5]);
    db.drop().await;
}
