//! What `check` finds: each thing is put wrong on the real server, found, and mended by its remedy.

use backstop_core::schema::{Finding, Schema, Severity};
use backstop_postgres::PgSchema;
use sqlx::PgPool;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

use crate::pgbouncer::PgBouncer;
use crate::support::{Db, url};

async fn findings(db: &Db) -> Vec<Finding> {
    PgSchema::new(db.pool.clone(), db.tables.clone()).check().await.expect("checked")
}

/// The finding about that subject; the worst, where there are several.
fn about<'f>(findings: &'f [Finding], subject: &str) -> &'f Finding {
    let found = findings.iter().filter(|finding| finding.subject.starts_with(subject));
    found.max_by_key(|finding| finding.severity).unwrap_or_else(|| panic!("no {subject} in {findings:?}"))
}

/// Puts something wrong, looks, and follows the remedy, after which all is fine.
async fn wrong(db: &Db, sql: &str, subject: &str, severity: Severity, detail: &str) {
    assert_eq!(about(&findings(db).await, subject).severity, Severity::Fine, "before {sql}");
    db.run(sql).await;
    let findings_now = findings(db).await;
    let finding = about(&findings_now, subject);
    assert_eq!(finding.severity, severity, "{sql}: {finding:?}");
    assert!(finding.detail.contains(detail), "{sql}: {finding:?}");
    db.run(finding.remedy.as_deref().expect("a remedy")).await;
    assert_eq!(about(&findings(db).await, subject).severity, Severity::Fine, "after the remedy of {sql}");
}

#[tokio::test]
async fn settings_of_the_sequence() {
    let db = Db::new().await;
    db.run("INSERT INTO backstop_outbox (destination) VALUES ('orders'), ('orders'), ('orders')").await;
    for (change, severity, detail) in [
        ("CACHE 20", Severity::Error, "20 numbers at once"),
        ("CYCLE", Severity::Error, "begins anew"),
        ("INCREMENT -1 MINVALUE 1", Severity::Error, "counts down"),
        ("AS integer", Severity::Warning, "ends at 2147483647"),
        ("MAXVALUE 3", Severity::Warning, "comes to its end at 3"),
        ("RESTART", Severity::Error, "goes on at 1, and the outbox has row 3"),
    ] {
        let sql = format!("ALTER SEQUENCE backstop_outbox_seq_seq {change}");
        wrong(&db, &sql, "sequence", severity, detail).await;
    }
    db.drop().await;
}

#[tokio::test]
async fn settings_of_autovacuum() {
    let db = Db::new().await;
    for (sql, detail) in [
        ("ALTER TABLE backstop_outbox SET (autovacuum_enabled = off)", "off for the outbox"),
        (
            "ALTER TABLE backstop_outbox RESET (autovacuum_vacuum_scale_factor, autovacuum_vacuum_threshold)",
            "has lost settings",
        ),
    ] {
        wrong(&db, sql, "autovacuum", Severity::Warning, detail).await;
    }
    db.drop().await;
}

#[tokio::test]
async fn deleted_rows_that_nobody_vacuums() {
    let db = Db::new().await;
    db.run("ALTER TABLE backstop_outbox SET (autovacuum_enabled = off)").await;
    db.run(
        "INSERT INTO backstop_outbox (destination) SELECT 'orders' FROM generate_series(1, 100001); \
         DELETE FROM backstop_outbox",
    )
    .await;
    // The server tells what a session did a second late.
    let finding = loop {
        let findings = findings(&db).await;
        let finding = about(&findings, "deleted rows");
        if finding.severity == Severity::Warning {
            break finding.clone();
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    };
    assert_eq!(finding.detail, "100001, never vacuumed");
    let vacuum = finding.remedy.expect("a remedy").rsplit_once("then ").expect("a statement").1.to_owned();
    db.run(&vacuum).await;
    assert!(about(&findings(&db).await, "deleted rows").detail.contains("0, vacuumed 0 minutes ago"));
    db.drop().await;
}

/// Each permission, with the statement that grants it.
#[tokio::test]
async fn permissions_that_are_missing() {
    let db = Db::new().await;
    for (table, permissions) in [
        ("backstop_outbox", &["SELECT", "INSERT", "DELETE"][..]),
        ("backstop_outbox_dead", &["SELECT", "UPDATE", "DELETE"]),
        ("backstop_outbox_scheduled", &["SELECT", "INSERT", "UPDATE", "DELETE"]),
        ("backstop_lease", &["SELECT", "INSERT", "UPDATE"]),
        ("backstop_letter", &["SELECT", "INSERT", "UPDATE", "DELETE"]),
        ("backstop_consumer", &["SELECT", "INSERT", "UPDATE", "DELETE"]),
    ] {
        for permission in permissions {
            let subject = format!("table {}.{table}", db.schema);
            let sql = format!("REVOKE {permission} ON {table} FROM CURRENT_USER");
            let exactly = |finding: &&Finding| finding.subject == subject;
            db.run(&sql).await;
            let found = findings(&db).await;
            let finding = found.iter().find(exactly).expect("looked at");
            assert!(finding.detail.contains(&format!("lacks {permission}")), "{finding:?}");
            db.run(finding.remedy.as_deref().expect("a remedy")).await;
            let found = findings(&db).await;
            assert_eq!(found.iter().find(exactly).expect("looked at").detail, "usable");
        }
    }
    let sql = "REVOKE SELECT, USAGE ON SEQUENCE backstop_outbox_seq_seq FROM CURRENT_USER";
    wrong(&db, sql, "sequence", Severity::Warning, "may not read it").await;
    db.drop().await;
}

/// The tests' server keeps our time; a function that hides its clock does not.
#[tokio::test]
async fn clocks_that_differ_and_transactions_that_are_old() {
    let db = Db::new().await;
    assert_eq!(about(&findings(&db).await, "clock").severity, Severity::Fine);
    let held = db.pool.begin().await.expect("begun");
    db.run(
        "CREATE FUNCTION clock_timestamp() RETURNS timestamptz LANGUAGE sql \
         AS $$ SELECT pg_catalog.clock_timestamp() + interval '10 minutes' $$",
    )
    .await;
    let path = format!("{},pg_catalog", db.schema);
    let options: PgConnectOptions = url().parse().expect("a URL");
    let pool = PgPool::connect_with(options.options([("search_path", path)])).await.expect("PostgreSQL");
    let findings = PgSchema::new(pool, db.tables.clone()).check().await.expect("checked");
    let clock = about(&findings, "clock");
    assert_eq!(clock.severity, Severity::Warning);
    assert!(clock.detail.starts_with("600.") || clock.detail.starts_with("599."), "{clock:?}");
    let open = about(&findings, "open transactions");
    assert!(open.severity == Severity::Warning && open.detail.contains("has been open for"), "{open:?}");
    held.rollback().await.expect("rolled back");
    db.drop().await;
}

/// F25: a pooler that keeps no sessions is found, and what it breaks.
#[tokio::test]
async fn a_pooler_that_shares_sessions() {
    let db = Db::new().await;
    assert_eq!(about(&findings(&db).await, "pooler").detail, "none, or one that keeps sessions");
    for (mode, expected) in [
        ("session", (Severity::Fine, "none, or one that keeps sessions")),
        (
            "transaction",
            (Severity::Error, "shares sessions between transactions and loses prepared statements"),
        ),
    ] {
        let pooler = PgBouncer::start(mode).await;
        let pool = PgPoolOptions::new().connect_lazy_with(pooler.url.parse().expect("a URL"));
        let found = PgSchema::new(pool.clone(), db.tables.clone()).check().await.expect("checked");
        let finding = about(&found, "pooler");
        // From 1.21 on it keeps prepared statements.
        let expected = match (mode, pooler.knows_prepared_statements) {
            ("transaction", true) => (Severity::Fine, "shares sessions between transactions, which is fine"),
            _ => expected,
        };
        assert_eq!((finding.severity, finding.detail.as_str()), expected, "{mode}");
        pool.close().await;
    }
    db.drop().await;
}
