//! The ledger: each letter once, with its history, and one open letter a dead message.

use std::time::Duration;

use crate::common::{File, envelope};
use backstop_core::FaultKind;
use backstop_core::lease::Leases;
use backstop_core::ledger::{
    AuditFilter, AuditLog, AuditStep, Ledger, Letter, LetterFilter, LetterStatus, NewAuditEntry,
};
use backstop_sqlite::{SqliteLedger, SqliteTables};
use chrono::DateTime;

fn letter(id: &str, message: &str, generation: i64) -> Letter {
    let mut letter = Letter::new(id, "orders.stock.dlq", envelope(id));
    letter.message_key = Some(format!("/orders|{message}"));
    letter.consumer = Some("stock".into());
    letter.place = Some("orders".into());
    letter.fingerprint = Some(format!("fingerprint of {message}"));
    letter.generation = generation;
    letter.attempts = Some(6);
    letter.dead_at = DateTime::from_timestamp_millis(1_700_000_000_123);
    letter
}

fn ledger(file: &File) -> SqliteLedger {
    SqliteLedger::new(file.pool.clone(), SqliteTables::default())
}

async fn list(ledger: &SqliteLedger, filter: &LetterFilter) -> Vec<String> {
    let letters = ledger.list(filter, None, 100).await.expect("list");
    assert_eq!(ledger.count(filter).await.expect("count"), letters.len() as u64);
    letters.into_iter().map(|letter| letter.id).collect()
}

async fn history(ledger: &SqliteLedger, id: &str) -> Vec<(String, Option<String>)> {
    let events = ledger.history(id).await.expect("history");
    events.into_iter().map(|event| (event.what, event.detail)).collect()
}

fn status(status: LetterStatus) -> LetterFilter {
    LetterFilter { status: Some(status), ..LetterFilter::default() }
}

#[tokio::test]
async fn a_letter_is_kept_once_and_to_the_letter() {
    let file = File::new().await;
    let ledger = ledger(&file);
    let letters = [letter("a", "1", 0), Letter::new("b", "strange.dlq", envelope("b"))];
    assert_eq!(ledger.record(&letters).await.expect("record"), 2);
    assert_eq!(ledger.record(&letters).await.expect("record"), 0, "again changes nothing");
    let kept = ledger.list(&LetterFilter::default(), None, 100).await.expect("list");
    for (kept, given) in kept.iter().zip(&letters) {
        let mut given = given.clone();
        given.collected_at = kept.collected_at;
        assert_eq!(kept, &given);
    }
    assert_eq!(history(&ledger, "a").await, [("collected".to_owned(), Some("orders.stock.dlq".to_owned()))]);
    assert_eq!(history(&ledger, "nobody").await, []);
}

#[tokio::test]
async fn all_letters_are_written_or_none() {
    let file = File::new().await;
    let ledger = ledger(&file);
    sqlx::query("CREATE TRIGGER refuse BEFORE INSERT ON backstop_letter WHEN NEW.id = 'bad' BEGIN SELECT RAISE(ABORT, 'refused'); END")
        .execute(&file.pool)
        .await
        .expect("trigger");
    ledger.record(&[letter("a", "1", 0), letter("bad", "2", 0)]).await.expect_err("refused");
    file.write_lock_is_free().await;
    assert_eq!(ledger.count(&LetterFilter::default()).await.expect("count"), 0);
}

#[tokio::test]
async fn filters_narrow_and_pages_go_on() {
    let file = File::new().await;
    let ledger = ledger(&file);
    let mut other = letter("c", "3", 0);
    (other.consumer, other.place) = (Some("billing".into()), Some("invoices".into()));
    ledger.record(&[letter("a", "1", 0), letter("b", "2", 0), other]).await.expect("record");
    let any = LetterFilter::default();
    assert_eq!(list(&ledger, &any).await, ["a", "b", "c"]);
    assert_eq!(
        list(&ledger, &LetterFilter { ids: vec!["c".into(), "a".into()], ..any.clone() }).await,
        ["a", "c"]
    );
    assert_eq!(list(&ledger, &LetterFilter { consumer: Some("billing".into()), ..any.clone() }).await, ["c"]);
    assert_eq!(
        list(&ledger, &LetterFilter { place: Some("orders".into()), ..any.clone() }).await,
        ["a", "b"]
    );
    assert_eq!(
        list(&ledger, &LetterFilter { fingerprint: Some("fingerprint of 2".into()), ..any.clone() }).await,
        ["b"]
    );
    assert_eq!(list(&ledger, &status(LetterStatus::Resolved)).await, [""; 0]);
    let hostile = LetterFilter { consumer: Some("' OR 1=1 --".into()), ..any.clone() };
    assert_eq!(list(&ledger, &hostile).await, [""; 0]);
    let page = ledger.list(&any, Some("a"), 1).await.expect("list");
    assert_eq!(page.iter().map(|letter| letter.id.as_str()).collect::<Vec<_>>(), ["b"]);
    assert_eq!(ledger.list(&any, Some("nobody"), 1).await.expect_err("unknown").kind(), FaultKind::Missing);
}

#[tokio::test]
async fn letters_move_only_from_where_they_are_said_to_be() {
    let file = File::new().await;
    let ledger = ledger(&file);
    ledger.record(&[letter("a", "1", 0), letter("b", "2", 0)]).await.expect("record");
    let ids = ["b".to_owned(), "a".to_owned(), "nobody".to_owned()];
    let (open, redriving) = (LetterStatus::Open, LetterStatus::Redriving);
    assert_eq!(
        ledger.mark(&ids[1..], open, redriving, "redriven", Some("by ann")).await.expect("mark"),
        ["a"]
    );
    assert_eq!(ledger.mark(&ids, open, redriving, "redriven", None).await.expect("mark"), ["b"]);
    assert_eq!(ledger.mark(&ids, open, redriving, "redriven", None).await.expect("mark"), [""; 0]);
    let expected = [("collected", Some("orders.stock.dlq")), ("redriven", Some("by ann"))];
    let expected = expected.map(|(what, detail)| (what.to_owned(), detail.map(str::to_owned)));
    assert_eq!(history(&ledger, "a").await, expected);
    assert_eq!(list(&ledger, &status(redriving)).await, ["a", "b"]);
}

#[tokio::test]
async fn a_message_that_fails_again_has_one_open_letter() {
    let file = File::new().await;
    let ledger = ledger(&file);
    ledger.record(&[letter("a", "1", 0), letter("b", "2", 0), letter("c", "3", 0)]).await.expect("record");
    let redriven = ["a".to_owned(), "b".to_owned()];
    ledger
        .mark(&redriven, LetterStatus::Open, LetterStatus::Redriving, "redriven", None)
        .await
        .expect("mark");
    let mut foreign = letter("x", "2", 1);
    foreign.consumer = Some("billing".into());
    assert_eq!(ledger.record(&[letter("a2", "1", 1), foreign]).await.expect("record"), 2);
    assert_eq!(list(&ledger, &status(LetterStatus::Superseded)).await, ["a"]);
    assert_eq!(
        list(&ledger, &status(LetterStatus::Redriving)).await,
        ["b"],
        "another consumer's failure is not its own"
    );
    assert_eq!(list(&ledger, &status(LetterStatus::Open)).await, ["c", "a2", "x"]);
    let last = history(&ledger, "a").await.pop();
    assert_eq!(last, Some(("failed-again".to_owned(), Some("a2".to_owned()))));
    ledger.record(&[letter("a2", "1", 1)]).await.expect("record");
    assert_eq!(history(&ledger, "a").await.len(), 3, "collected again, it says nothing new");
}

#[tokio::test]
async fn one_collector_has_the_lease() {
    let file = File::new().await;
    let (one, two) = (ledger(&file), SqliteLedger::new(file.again().await, SqliteTables::default()));
    let ttl = Duration::from_secs(60);
    let lease = one.acquire("ledger", "one", ttl).await.expect("acquire").expect("granted");
    assert_eq!(two.acquire("ledger", "two", ttl).await.expect("acquire"), None);
    one.release(&lease).await.expect("release");
    let next = two.acquire("ledger", "two", ttl).await.expect("acquire").expect("granted");
    assert!(next.token > lease.token);
}

/// Whoever may write into the file cannot tidy the audit log up by an oversight.
#[tokio::test]
async fn the_audit_log_only_grows() {
    let file = File::new().await;
    let entry = NewAuditEntry {
        deed: "1".into(),
        step: AuditStep::Done,
        who: "ann".into(),
        role: "operator".into(),
        origin: "console".into(),
        action: "letters.discard".into(),
        object: String::new(),
        redrive: None,
        letters: Some(3),
        because: None,
        error: None,
    };
    ledger(&file).write_audit(&entry).await.expect("written");
    for statement in ["UPDATE backstop_audit SET who = 'bob'", "DELETE FROM backstop_audit"] {
        let refused = sqlx::raw_sql(statement).execute(&file.pool).await.expect_err(statement);
        assert!(refused.to_string().contains("the audit log only grows"), "{statement}: {refused}");
    }
    let entries = ledger(&file).read_audit(&AuditFilter::default(), 9).await.expect("read");
    assert_eq!(entries.into_iter().map(|entry| entry.entry).collect::<Vec<_>>(), [entry]);
}
