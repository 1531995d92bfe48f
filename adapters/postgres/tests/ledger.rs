//! The ledger of dead letters.

mod support;

use backstop_core::ledger::{
    AuditFilter, AuditLog, AuditStep, Ledger, Letter, LetterFilter, LetterStatus, NewAuditEntry,
};
use backstop_postgres::PgLedger;
use support::{Db, envelope};

fn letter(id: &str, message: &str, generation: i64) -> Letter {
    let mut letter = Letter::new(id, "orders.stock.dlq", envelope(id));
    letter.message_key = Some(format!("/orders|{message}"));
    letter.consumer = Some("stock".to_owned());
    letter.place = Some("orders".to_owned());
    letter.fingerprint = Some("f1".to_owned());
    letter.generation = generation;
    letter.attempts = Some(6);
    letter.dead_at = Some("2026-11-21T10:00:00Z".parse().expect("a time"));
    letter
}

async fn whats(ledger: &PgLedger, id: &str) -> Vec<String> {
    ledger.history(id).await.expect("read").into_iter().map(|event| event.what).collect()
}

#[tokio::test]
async fn letters_are_kept_once_and_found_again() {
    let db = Db::new().await;
    let ledger = PgLedger::new(db.pool.clone(), db.tables.clone());
    let letters = [letter("a", "1", 0), letter("b", "2", 0), letter("a", "1", 0)];
    assert_eq!(ledger.record(&letters).await.expect("recorded"), 2);
    assert_eq!(ledger.record(&letters).await.expect("recorded"), 0);
    let all = ledger.list(&LetterFilter::default(), None, 10).await.expect("listed");
    let mut kept = all[0].clone();
    kept.collected_at = letters[0].collected_at;
    assert_eq!(kept, letters[0]);
    let after = ledger.list(&LetterFilter::default(), Some("a"), 10).await.expect("listed");
    assert_eq!(after.iter().map(|letter| letter.id.as_str()).collect::<Vec<_>>(), ["b"]);
    let none = LetterFilter { consumer: Some("other".to_owned()), ..LetterFilter::default() };
    assert_eq!(ledger.count(&none).await.expect("counted"), 0);
    let one = LetterFilter {
        ids: vec!["b".to_owned()],
        status: Some(LetterStatus::Open),
        ..LetterFilter::default()
    };
    assert_eq!(ledger.count(&one).await.expect("counted"), 1);
    assert_eq!(whats(&ledger, "a").await, ["collected"]);
    db.drop().await;
}

#[tokio::test]
async fn a_message_that_fails_again_has_one_open_letter() {
    let db = Db::new().await;
    let ledger = PgLedger::new(db.pool.clone(), db.tables.clone());
    ledger.record(&[letter("a", "1", 0), letter("b", "2", 0)]).await.expect("recorded");
    let ids = ["a".to_owned(), "b".to_owned(), "none".to_owned()];
    let (open, redriving) = (LetterStatus::Open, LetterStatus::Redriving);
    let moved = ledger.mark(&ids, open, redriving, "redriven", Some("job 7")).await.expect("marked");
    assert_eq!(moved, ["a", "b"]);
    assert!(ledger.mark(&ids, open, redriving, "redriven", None).await.expect("marked").is_empty());
    assert_eq!(ledger.record(&[letter("a1", "1", 1)]).await.expect("recorded"), 1);
    let open = LetterFilter { status: Some(open), ..LetterFilter::default() };
    let open = ledger.list(&open, None, 10).await.expect("listed");
    assert_eq!(open.iter().map(|letter| letter.id.as_str()).collect::<Vec<_>>(), ["a1"]);
    assert_eq!(whats(&ledger, "a").await, ["collected", "redriven", "failed-again"]);
    let superseded = LetterFilter { status: Some(LetterStatus::Superseded), ..LetterFilter::default() };
    assert_eq!(ledger.count(&superseded).await.expect("counted"), 1);
    assert_eq!(whats(&ledger, "b").await, ["collected", "redriven"]);
    db.drop().await;
}

#[tokio::test]
async fn times_that_cannot_be_told_do_not_stop_the_list() {
    let db = Db::new().await;
    let ledger = PgLedger::new(db.pool.clone(), db.tables.clone());
    ledger.record(&[letter("a", "1", 0), letter("b", "2", 0)]).await.expect("recorded");
    db.run(
        "UPDATE backstop_letter SET first_failed_at = 'infinity', dead_at = '290000-01-01', \
         collected_at = 'infinity' WHERE id = 'a'; \
         UPDATE backstop_letter_event SET at = '-infinity'",
    )
    .await;
    let letters = ledger.list(&LetterFilter::default(), None, 10).await.expect("listed");
    assert_eq!((letters[0].first_failed_at, letters[0].dead_at), (None, None));
    assert!(letters[0].collected_at > letters[1].collected_at);
    assert_eq!(letters[1].dead_at, letter("b", "2", 0).dead_at);
    assert_eq!(whats(&ledger, "a").await, ["collected"]);
    db.drop().await;
}

#[tokio::test]
async fn letters_of_strangers_are_kept_whatever_they_say() {
    let db = Db::new().await;
    let ledger = PgLedger::new(db.pool.clone(), db.tables.clone());
    let long = "x'\0\u{1f600}".repeat(20_000);
    let mut letter = Letter::new(long.clone(), long.clone(), envelope("x"));
    letter.message_key = Some(long.clone());
    letter.consumer = Some(long.clone());
    letter.fingerprint = Some(long.clone());
    letter.error = Some(long.clone());
    assert_eq!(ledger.record(&[letter.clone()]).await.expect("recorded"), 1);
    assert_eq!(ledger.record(&[letter]).await.expect("recorded"), 0);
    let by_id = LetterFilter { ids: vec![long.clone()], fingerprint: Some(long), ..LetterFilter::default() };
    assert_eq!(ledger.count(&by_id).await.expect("counted"), 1);
    db.drop().await;
}

/// Not even the table's owner can tidy the audit log up by an oversight.
#[tokio::test]
async fn the_audit_log_only_grows() {
    let db = Db::new().await;
    let ledger = PgLedger::new(db.pool.clone(), db.tables.clone());
    let entry = NewAuditEntry {
        deed: "1".into(),
        step: AuditStep::Done,
        who: "ann\0".into(),
        role: "operator".into(),
        origin: "console".into(),
        action: "letters.discard".into(),
        object: String::new(),
        redrive: None,
        letters: Some(3),
        because: None,
        error: None,
    };
    ledger.write_audit(&entry).await.expect("written");
    for statement in
        ["UPDATE backstop_audit SET who = 'bob'", "DELETE FROM backstop_audit", "TRUNCATE backstop_audit"]
    {
        let refused = sqlx::raw_sql(statement).execute(&db.pool).await.expect_err(statement);
        assert!(refused.to_string().contains("the audit log only grows"), "{statement}: {refused}");
    }
    let entries = ledger.read_audit(&AuditFilter::default(), 9).await.expect("read");
    assert_eq!(entries.iter().map(|entry| &*entry.entry.who).collect::<Vec<_>>(), ["ann\u{fffd}"]);
    db.drop().await;
}
