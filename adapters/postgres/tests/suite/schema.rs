//! Tables: made, checked, taken back.

use std::time::{Duration, Instant};

use backstop_core::FaultKind;
use backstop_core::lease::Lease;
use backstop_core::outbox::OutboxStore;
use backstop_core::schema::{Schema, Severity};
use backstop_postgres::{PgInbox, PgOutbox, PgOutboxStore, PgSchema, PgTables};

use crate::support::{Db, fresh};

fn schema(db: &Db) -> PgSchema {
    PgSchema::new(db.pool.clone(), db.tables.clone())
}

#[tokio::test]
async fn up_twice_at_once_and_down_and_up() {
    let db = Db::bare().await;
    let (one, two) = (schema(&db), schema(&db));
    assert_eq!(one.applied().await.expect("asked"), Vec::<i64>::new());
    let (first, second) = tokio::join!(one.migrate(), two.migrate());
    let mut taken = [first.expect("migrated"), second.expect("migrated")].concat();
    taken.sort_unstable();
    assert_eq!(taken, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], "each step was taken once");
    assert_eq!(one.migrate().await.expect("nothing to do"), Vec::<i64>::new());
    assert_eq!(one.revert(2).await.expect("reverted"), [11, 10, 9, 8, 7, 6, 5, 4, 3]);
    assert_eq!(one.applied().await.expect("asked"), [1, 2]);
    assert_eq!(one.revert(0).await.expect("reverted"), [2, 1]);
    let tables =
        "SELECT count(*) FROM pg_class WHERE relkind = 'r' AND relnamespace = current_schema()::regnamespace";
    assert_eq!(db.number(tables).await, 1, "only the table of migrations is left");
    assert_eq!(one.migrate().await.expect("migrated"), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]);
    db.drop().await;
}

#[tokio::test]
async fn a_step_that_fails_is_named_and_leaves_nothing() {
    let db = Db::bare().await;
    db.run(&format!("CREATE SCHEMA \"{}\"; CREATE TABLE backstop_held (n int)", db.schema)).await;
    let error = schema(&db).migrate().await.expect_err("a table is in the way");
    assert_eq!(error.to_string(), "cannot run migration 2 (inbox)");
    assert_eq!(schema(&db).applied().await.expect("asked"), [1], "those before it stay");
    assert_eq!(
        db.number(
            "SELECT count(*) FROM pg_class WHERE relname = 'backstop_inbox' \
                          AND relnamespace = current_schema()::regnamespace"
        )
        .await,
        0
    );
    db.drop().await;
}

#[tokio::test]
async fn a_prefix_keeps_two_sets_of_tables_apart() {
    let db = Db::new().await;
    let tables = db.tables.clone().with_prefix("other").expect("a name");
    let other = PgSchema::new(db.pool.clone(), tables.clone());
    assert_eq!(other.migrate().await.expect("migrated"), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]);
    let mut tx = fresh(&PgInbox::with_tables(db.pool.clone(), tables.clone()), "1").await;
    let outgoing = backstop_core::Outgoing::to("orders", backstop_core::Message::new("a"));
    PgOutbox::with_tables(&tables).enqueue(&mut tx, outgoing).await.expect("written");
    backstop_core::inbox::Inbox::commit(&db.inbox(), tx).await.expect("committed");
    assert_eq!(db.number("SELECT count(*) FROM other_outbox").await, 1);
    assert_eq!(db.number("SELECT count(*) FROM backstop_outbox").await, 0);
    db.drop().await;
}

/// F29: every missing table, column and permission is named.
#[tokio::test]
async fn the_check_finds_what_is_wrong() {
    let db = Db::bare().await;
    let findings = schema(&db).check().await.expect("checked");
    let wrong = findings.iter().filter(|finding| finding.severity == Severity::Error).count();
    assert_eq!(wrong, 19, "eighteen tables and the migrations: {findings:?}");
    schema(&db).migrate().await.expect("migrated");
    let findings = schema(&db).check().await.expect("checked");
    let ours = |subject: &str| !subject.starts_with("prepared");
    assert!(
        findings
            .iter()
            .filter(|finding| ours(&finding.subject))
            .all(|finding| finding.severity == Severity::Fine),
        "{findings:?}"
    );
    db.run(
        "ALTER SEQUENCE backstop_outbox_seq_seq CACHE 20; REVOKE DELETE ON backstop_outbox FROM CURRENT_USER",
    )
    .await;
    let findings = schema(&db).check().await.expect("checked");
    let remedies: Vec<_> = findings.iter().filter_map(|finding| finding.remedy.as_deref()).collect();
    assert!(remedies.iter().any(|remedy| remedy.contains("CACHE 1")), "{findings:?}");
    assert!(remedies.iter().any(|remedy| remedy.starts_with("GRANT DELETE ON")), "{findings:?}");
    db.drop().await;
}

#[tokio::test]
async fn who_empties_the_outbox_must_be_able_to_bury() {
    let db = Db::new().await;
    let found = async || {
        let findings = schema(&db).check().await.expect("checked");
        findings
            .into_iter()
            .find(|finding| finding.subject.ends_with("backstop_outbox_dead"))
            .expect("looked at")
    };
    let store = PgOutboxStore::new(db.pool.clone(), db.tables.clone());
    let nobody = Lease { name: "outbox".to_owned(), owner: String::new(), token: -1 };
    assert!(!store.bury(&nobody, &[]).await.expect("allowed"));
    db.run("REVOKE INSERT ON backstop_outbox_dead FROM CURRENT_USER").await;
    let finding = found().await;
    assert_eq!(finding.severity, Severity::Error);
    let grant = finding.remedy.expect("a remedy");
    assert!(grant.starts_with(&format!("GRANT INSERT ON \"{}\".", db.schema)), "{grant}");
    let error = store.bury(&nobody, &[]).await.expect_err("not allowed");
    assert_eq!(error.kind(), FaultKind::Denied);
    assert!(error.hint().is_some_and(|hint| hint.contains("GRANT SELECT, INSERT ON")), "{error:?}");
    db.run("REVOKE DELETE ON backstop_outbox FROM CURRENT_USER").await;
    assert_eq!(found().await.severity, Severity::Warning, "an application does not bury");
    db.run(&format!("GRANT DELETE ON backstop_outbox TO CURRENT_USER; {grant}")).await;
    assert_eq!(found().await.severity, Severity::Fine);
    assert!(!store.bury(&nobody, &[]).await.expect("allowed"));
    db.drop().await;
}

#[tokio::test]
async fn names_are_refused_and_missing_tables_named() {
    let db = Db::new().await;
    for bad in ["", "a b", "a\"; drop table x;--", "1a", &"x".repeat(49)] {
        assert_eq!(PgTables::in_schema(bad).expect_err(bad).kind(), FaultKind::Invalid);
    }
    let wrong = PgTables::in_schema(&db.schema).expect("a name").with_prefix("wrong").expect("a name");
    let mut tx = db.pool.begin().await.expect("begun");
    let outgoing = backstop_core::Outgoing::to("orders", backstop_core::Message::new("a"));
    let error = PgOutbox::with_tables(&wrong).enqueue(&mut tx, outgoing).await.expect_err("no such table");
    assert_eq!(error.kind(), FaultKind::Missing);
    tx.rollback().await.expect("rolled back");
    db.drop().await;
}

/// A step that must wait for a table gives up, so that nobody waits behind it for long; then it can be run again.
#[tokio::test]
async fn a_step_waits_five_seconds_for_a_table_and_no_longer() {
    let db = Db::new().await;
    for (table, back_to) in [("backstop_lease", 6), ("backstop_outbox", 0)] {
        let mut holder = db.pool.begin().await.expect("begun");
        let hold = format!("LOCK TABLE {table} IN ROW EXCLUSIVE MODE");
        sqlx::raw_sql(sqlx::AssertSqlSafe(hold)).execute(&mut *holder).await.expect("held");
        let begun = Instant::now();
        let error = schema(&db).revert(back_to).await.expect_err("the table is held");
        assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
        assert_eq!(error.kind(), FaultKind::Conflict, "{error:?}");
        assert!(error.hint().is_some_and(|hint| hint.contains("run it again")), "{error:?}");
        holder.rollback().await.expect("let go");
        schema(&db).revert(back_to).await.expect("run again");
    }
    db.drop().await;
}

/// Going up past tables that are in use takes no lock that a writer would feel.
#[tokio::test]
async fn writers_go_on_while_steps_are_taken() {
    let db = Db::new().await;
    schema(&db).revert(4).await.expect("reverted");
    let mut writer = db.pool.begin().await.expect("begun");
    let outgoing = || backstop_core::Outgoing::to("orders", backstop_core::Message::new("a"));
    let outbox = PgOutbox::with_tables(&db.tables);
    outbox.enqueue(&mut writer, outgoing()).await.expect("written");
    assert_eq!(schema(&db).migrate().await.expect("migrated beside an open writer"), [5, 6, 7, 8, 9, 10, 11]);
    outbox.enqueue(&mut writer, outgoing()).await.expect("written");
    writer.commit().await.expect("committed");
    assert_eq!(db.number("SELECT count(*) FROM backstop_outbox").await, 2);
    db.drop().await;
}
