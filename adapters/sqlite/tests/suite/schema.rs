//! Tables are created once, whoever creates them, and taken back.

use crate::common::File;
use backstop_core::outbox::OutboxStore;
use backstop_core::schema::{Schema, Severity};
use backstop_core::{Message, Outgoing};
use backstop_sqlite::{SqliteOutbox, SqliteOutboxStore, SqliteSchema, SqliteTables};

#[tokio::test(flavor = "multi_thread")]
async fn several_at_once_apply_each_step_once() {
    let file = File::empty().await;
    let mut tasks = Vec::new();
    for _ in 0..6 {
        let schema = SqliteSchema::new(file.again().await, SqliteTables::default());
        tasks.push(tokio::spawn(async move { schema.migrate().await.expect("migrate") }));
    }
    let mut versions = Vec::new();
    for task in tasks {
        versions.extend(task.await.expect("no panic"));
    }
    versions.sort_unstable();
    let schema = SqliteSchema::new(file.pool.clone(), SqliteTables::default());
    let all: Vec<i64> = schema.migrations().iter().map(|migration| migration.version).collect();
    assert_eq!(versions, all);
    assert_eq!(schema.applied().await.expect("applied"), all);
}

#[tokio::test]
async fn up_down_and_up_again() {
    let file = File::empty().await;
    let schema = SqliteSchema::new(file.pool.clone(), SqliteTables::default());
    assert_eq!(schema.applied().await.expect("applied"), [0; 0]);
    let up = schema.migrate().await.expect("migrate");
    assert_eq!(schema.migrate().await.expect("migrate"), [0; 0], "nothing is left to do");
    let above: Vec<i64> = up.iter().rev().copied().filter(|version| *version > 2).collect();
    assert_eq!(schema.revert(2).await.expect("revert"), above);
    assert_eq!(schema.applied().await.expect("applied"), [1, 2]);
    assert_eq!(schema.revert(0).await.expect("revert"), [2, 1]);
    let left =
        "SELECT count(*) FROM sqlite_schema WHERE name LIKE 'backstop_%' AND name <> 'backstop_migrations'";
    assert_eq!(file.count(left).await, 0, "a step takes back all that it made");
    assert_eq!(schema.migrate().await.expect("migrate"), up);
}

#[tokio::test]
async fn the_check_names_what_is_missing() {
    let file = File::empty().await;
    let schema = SqliteSchema::new(file.pool.clone(), SqliteTables::default());
    let findings = schema.check().await.expect("check");
    let missing =
        findings.iter().find(|finding| finding.subject == "table backstop_outbox").expect("looked at");
    assert_eq!((missing.severity, missing.detail.as_str()), (Severity::Error, "does not exist"));
    assert!(missing.remedy.as_deref().expect("a remedy").contains("migrate"));
    schema.migrate().await.expect("migrate");
    let findings = schema.check().await.expect("check");
    assert!(findings.iter().all(|finding| finding.severity == Severity::Fine), "{findings:?}");
    let careless = sqlx::sqlite::SqliteConnectOptions::new()
        .filename(file.path())
        .synchronous(sqlx::sqlite::SqliteSynchronous::Normal);
    let careless = sqlx::SqlitePool::connect_with(careless).await.expect("open");
    let findings = SqliteSchema::new(careless, SqliteTables::default()).check().await.expect("check");
    let worst = findings.iter().max_by_key(|finding| finding.severity).expect("findings");
    assert_eq!((worst.severity, worst.subject.as_str()), (Severity::Warning, "synchronous"));
}

#[tokio::test]
async fn two_sets_of_tables_share_a_file() {
    let file = File::new().await;
    let tables = SqliteTables::default().with_prefix("orders").expect("a prefix");
    SqliteSchema::new(file.pool.clone(), tables.clone()).migrate().await.expect("migrate");
    let mut tx = file.pool.begin_with("BEGIN IMMEDIATE").await.expect("begin");
    let outgoing = Outgoing::to("orders", Message::new("order.placed"));
    SqliteOutbox::with_tables(&tables).enqueue(&mut tx, outgoing).await.expect("enqueue");
    tx.commit().await.expect("commit");
    let pending = async |tables| {
        SqliteOutboxStore::new(file.pool.clone(), tables).status().await.expect("status").pending
    };
    assert_eq!((pending(tables).await, pending(SqliteTables::default()).await), (1, 0));
    for bad in ["", "1x", "Orders", "a\"b", "a-b", "ä", &"x".repeat(33)] {
        assert!(SqliteTables::default().with_prefix(bad).is_err(), "{bad}");
    }
}
