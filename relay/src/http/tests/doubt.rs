//! What is said of changes that fail on their way: that nothing was done only where surely nothing was.

use backstop_core::ledger::{AuditEntry, AuditFilter, AuditStep, Letter, LetterFilter, LetterStatus, Run};
use serde_json::{Value, json};
use sqlx::SqlitePool;

use super::scene;
use super::*;

const FORM: &str =
    "Host: localhost\r\nOrigin: http://localhost\r\nContent-Type: application/x-www-form-urlencoded";

/// The ledger's own database, to put something in the way.
pub(super) async fn database(server: &Running) -> SqlitePool {
    backstop_sqlite::open(&server.file.to_string_lossy()).await.expect("opened")
}

/// From now on the database does `what` at an event of a table.
pub(super) async fn trigger(pool: &SqlitePool, name: &str, when: &str, what: &str) {
    let sql = format!("CREATE TRIGGER doubt_{name} {when} BEGIN {what}; END");
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(pool).await.expect("made");
}

async fn call(server: &Running, path: &str, body: Value) -> (String, Value) {
    let head = format!(
        "POST /api/v1{path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nIdempotency-Key: {body}"
    );
    let answer = send_body(server, &head, &body.to_string()).await;
    let document = answer.split("\r\n\r\n").nth(1).unwrap_or_default();
    (status(&answer).to_owned(), serde_json::from_str(document).unwrap_or(Value::Null))
}

async fn last_entry(server: &Running) -> AuditEntry {
    server.ledger.read_audit(&AuditFilter::default(), 1).await.expect("read").remove(0)
}

fn many(letters: u32) -> Vec<Letter> {
    (0..letters).map(|n| scene::letter(n, "many", "no warehouse", 50)).collect()
}

#[tokio::test]
async fn a_change_that_fails_half_way_says_how_far_it_came() {
    let server = serve("").await;
    server.ledger.record(&many(1_500)).await.expect("recorded");
    let when = "BEFORE UPDATE OF hold ON backstop_letter WHEN OLD.n > 1100";
    trigger(&database(&server).await, "hold", when, "SELECT RAISE(ABORT, 'the disk is full')").await;
    let order = json!({ "filter": { "fingerprint": "many" }, "because": "case 7" });
    let (code, problem) = call(&server, "/letters/hold", order).await;
    assert_eq!((code.as_str(), &problem["done"]), ("500", &json!("unknown")), "{problem}");
    assert_eq!(problem["letters"], 1_000, "{problem}");
    assert!(problem["detail"].as_str().is_some_and(|text| text.contains("the history")), "{problem}");
    let AuditEntry { entry, .. } = last_entry(&server).await;
    assert_eq!((entry.step, entry.letters), (AuditStep::Failed, Some(1_000)));
    let held = LetterFilter { on_hold: Some(true), ..LetterFilter::default() };
    assert_eq!(server.ledger.count(&held).await.expect("counted"), 1_000);

    let again = json!({ "filter": { "fingerprint": "many" }, "because": "case 7" });
    let (_, problem) = call(&server, "/letters/hold", again).await;
    assert_eq!(problem["letters"], Value::Null, "the first statement failed as a whole: {problem}");
}

#[tokio::test]
async fn a_redrive_that_cannot_be_read_back_is_not_made() {
    let server = serve("").await;
    scene::fill(&server).await;
    let pool = database(&server).await;
    let spoil = "UPDATE backstop_redrive SET plan = '{' WHERE n = NEW.n";
    trigger(&pool, "made", "AFTER INSERT ON backstop_redrive", spoil).await;
    let form = "fingerprint=f1&id=a&expected=12";
    let answer = send_body(&server, &format!("POST /redrives HTTP/1.1\r\n{FORM}"), form).await;
    assert!(status(&answer) == "500" && answer.contains("Nothing was done."), "{answer}");
    let made: i64 =
        sqlx::query_scalar("SELECT count(*) FROM backstop_redrive").fetch_one(&pool).await.expect("read");
    assert_eq!(made, 0, "what failed is not there");
}

#[tokio::test]
async fn nobody_knows_is_said_where_nobody_knows() {
    let server = serve("").await;
    scene::fill(&server).await;
    let pool = database(&server).await;
    // An error of which an adapter cannot tell whether the statement was carried out.
    trigger(&pool, "made", "BEFORE INSERT ON backstop_redrive", "SELECT json(NEW.id)").await;
    let form = "fingerprint=f1&id=a&expected=12";
    let answer = send_body(&server, &format!("POST /redrives HTTP/1.1\r\n{FORM}"), form).await;
    assert_eq!(status(&answer), "500", "{answer}");
    assert!(answer.contains("Nobody knows how much was done: look at the redrives."), "{answer}");
    assert!(!answer.contains("Nothing was done"), "{answer}");
    assert_eq!(last_entry(&server).await.entry.step, AuditStep::Failed);
    let missing =
        get_with(&server, "/redrives/0197f000-0000-7000-8000-0000000000aa", "\r\nHost: localhost").await;
    assert!(status(&missing) == "404" && !missing.contains("Nobody knows"), "{missing}");
}

/// What was steered is steered, although the look at it fails.
#[tokio::test]
async fn a_redrive_is_steered_although_it_cannot_be_read_afterwards() {
    let server = serve("").await;
    scene::fill(&server).await;
    let mut ids = Vec::new();
    for group in ["f1", "f2"] {
        let (code, made) = call(&server, "/redrives", json!({ "filter": { "fingerprint": group } })).await;
        assert_eq!(code, "201", "{made}");
        ids.push(made["id"].as_str().expect("an id").to_owned());
    }
    let spoil = "UPDATE backstop_redrive SET plan = '{' WHERE n = NEW.n";
    for column in ["run", "rate"] {
        let when = format!("AFTER UPDATE OF {column} ON backstop_redrive");
        trigger(&database(&server).await, column, &when, spoil).await;
    }
    let (code, paused) = call(&server, &format!("/redrives/{}/pause", ids[0]), json!({})).await;
    assert_eq!((code.as_str(), &paused["run"]), ("200", &json!(Run::Paused.as_str())), "{paused}");
    let (code, faster) = call(&server, &format!("/redrives/{}/rate", ids[1]), json!({ "rate": 7.5 })).await;
    assert_eq!((code.as_str(), &faster["rate"]), ("200", &json!(7.5)), "{faster}");
    let open = LetterFilter::of_status(LetterStatus::Open);
    assert_eq!(server.ledger.count(&open).await.expect("counted"), 20, "nothing else was touched");
}
