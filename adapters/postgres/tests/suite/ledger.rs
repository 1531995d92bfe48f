//! The ledger of dead letters.

use std::time::Duration;

use backstop_core::lease::Leases;
use backstop_core::ledger::{
    AuditFilter, AuditLog, AuditStep, Change, Expiry, Guard, Ledger, Letter, LetterFilter, LetterStatus,
    NewAuditEntry, NewRedrive, Redrives, Sent,
};
use backstop_core::{ConsumerReport, ConsumerState, MessageKey, Receipt, ReceiptOutcome};
use backstop_postgres::PgLedger;
use sqlx::Row;
use sqlx::postgres::PgPoolOptions;

use crate::support::{Db, envelope, until};

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

/// Whoever asks for a skip, or tells of one, while somebody else puts the letter on hold waits and sees the hold.
#[tokio::test]
async fn a_hold_that_is_not_committed_yet_is_waited_for() {
    let db = Db::new().await;
    let ledger = PgLedger::new(db.pool.clone(), db.tables.clone());
    let one = LetterFilter::of_ids(&["a".to_owned()]);
    let free = LetterFilter { on_hold: Some(false), ..one.clone() };
    let skipped = Receipt {
        message_key: MessageKey::new("/orders", b"1"),
        letter: Some("a".to_owned()),
        consumer: "stock".to_owned(),
        instance: "stock-1".to_owned(),
        generation: 1,
        redrive: None,
        outcome: ReceiptOutcome::Skipped,
        at: chrono::Utc::now(),
    };
    ledger.record(&[letter("a", "1", 0)]).await.expect("recorded");
    let mut tx = db.pool.begin().await.expect("begun");
    let hold = "UPDATE backstop_letter SET hold = 'case 7'";
    sqlx::raw_sql(hold).execute(&mut *tx).await.expect("held");
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%{}%'";
    let waits = waits.replace("{}", &db.schema);
    let commit = async {
        until("both wait for the letter", || async { db.number(&waits).await == 2 }).await;
        tx.commit().await.expect("committed");
    };
    let receipts = [skipped];
    let (asked, changed, ()) =
        tokio::join!(ledger.tell(&free, "skip-asked", None), ledger.record_outcomes(&receipts), commit);
    assert_eq!((asked.expect("it answers"), changed.expect("it answers")), (0, 0));
    assert_eq!(whats(&ledger, "a").await, ["collected", "skipped"]);
    let kept = ledger.list(&one, None, 1).await.expect("listed").remove(0);
    assert_eq!((kept.status, kept.hold.as_deref()), (LetterStatus::Open, Some("case 7")));
    db.drop().await;
}

/// What is said to have failed has: a redrive is read back before it is committed.
#[tokio::test]
async fn a_redrive_that_cannot_be_read_back_is_not_made() {
    let db = Db::new().await;
    let ledger = PgLedger::new(db.pool.clone(), db.tables.clone());
    ledger.record(&[letter("a", "1", 0)]).await.expect("recorded");
    db.run(
        "CREATE FUNCTION spoil() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.plan := '{}'; RETURN NEW; END $$; \
         CREATE TRIGGER spoil BEFORE INSERT ON backstop_redrive FOR EACH ROW EXECUTE FUNCTION spoil()",
    )
    .await;
    let new = NewRedrive {
        id: "r".to_owned(),
        filter: LetterFilter::of_status(LetterStatus::Open),
        guard: Guard { max_generation: 3, ..Guard::default() },
        limit: None,
        canary: 0,
        rate: None,
        brake: 1.0,
        silent_after: Duration::from_secs(60),
        created_by: "ann".to_owned(),
        because: None,
    };
    ledger.create_redrive(&new).await.expect_err("it cannot be read");
    assert_eq!(db.number("SELECT count(*) FROM backstop_redrive").await, 0);
    db.run("DROP TRIGGER spoil ON backstop_redrive").await;
    let made = ledger.create_redrive(&new).await.expect("made");
    assert_eq!((made.plan.id.as_str(), made.created_at > chrono::DateTime::UNIX_EPOCH), ("r", true));
    db.drop().await;
}

/// Each statement that changes one of these tables fails where the server was not told how long to wait.
const LIMITED: &str = "
    CREATE FUNCTION is_limited() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF current_setting('lock_timeout') = '0' THEN RAISE EXCEPTION 'it would wait for ever'; END IF;
        RETURN NULL;
    END $$;
    CREATE TRIGGER a BEFORE INSERT OR UPDATE OR DELETE ON backstop_letter EXECUTE FUNCTION is_limited();
    CREATE TRIGGER a BEFORE INSERT OR UPDATE OR DELETE ON backstop_redrive EXECUTE FUNCTION is_limited();
    CREATE TRIGGER a BEFORE INSERT OR UPDATE OR DELETE ON backstop_redrive_letter EXECUTE FUNCTION is_limited();
    CREATE TRIGGER a BEFORE INSERT OR UPDATE OR DELETE ON backstop_consumer EXECUTE FUNCTION is_limited()";

fn redrive(id: &str) -> NewRedrive {
    NewRedrive {
        id: id.to_owned(),
        filter: LetterFilter::of_status(LetterStatus::Open),
        guard: Guard::default(),
        limit: None,
        canary: 0,
        rate: None,
        brake: 0.5,
        silent_after: Duration::ZERO,
        created_by: "ann".to_owned(),
        because: None,
    }
}

/// Letters that can be redriven.
fn dead(ids: &[&str]) -> Vec<Letter> {
    let dead = |id: &&str| {
        let mut letter = letter(id, id, 0);
        letter.door = Some("orders.stock.redrive".to_owned());
        letter
    };
    ids.iter().map(dead).collect()
}

/// Takes every letter of a redrive that is made now, and has the broker confirm them.
async fn send(ledger: &PgLedger, id: &str) {
    ledger.create_redrive(&redrive(id)).await.expect("made");
    let lease = ledger.acquire("redrive", "engine", Duration::from_secs(60)).await.expect("asked");
    let letters = ledger.claim_letters(&lease.expect("granted"), id, 10).await.expect("claimed");
    let letters = letters.expect("the lease stands").into_iter();
    let sent: Vec<_> = letters.map(|letter| (letter.id, Sent::Confirmed)).collect();
    ledger.settle_letters(id, &sent).await.expect("settled");
}

/// A lock that somebody keeps, or a client that is gone, would stop the relay's work for as long as the other likes.
#[tokio::test]
async fn whatever_changes_letters_and_redrives_waits_for_a_limited_time() {
    let db = Db::new().await;
    let ledger = PgLedger::new(db.pool.clone(), db.tables.clone());
    db.run(LIMITED).await;
    ledger.record(&dead(&["a", "b", "c"])).await.expect("recorded");
    send(&ledger, "r").await;
    let receipt = Receipt {
        message_key: MessageKey::new("/orders", b"a"),
        letter: Some("a".to_owned()),
        consumer: "stock".to_owned(),
        instance: "stock-1".to_owned(),
        generation: 1,
        redrive: None,
        outcome: ReceiptOutcome::Handled,
        at: chrono::Utc::now(),
    };
    let report = ConsumerReport::new("stock", "stock-1", ConsumerState::Running);
    let discard = Change::Discard { because: "test".to_owned() };
    let (of_b, to_c) = (LetterFilter::of_ids(&["b".to_owned()]), ["c".to_owned()]);
    let (from, to) = (LetterStatus::Redriving, LetterStatus::Open);
    let made = ledger.redrive("r").await.expect("read").expect("there");
    let cancelled = made.cancelled(None).expect("it runs");
    let before = chrono::Utc::now() + chrono::TimeDelta::hours(1);
    let over = Expiry { status: LetterStatus::Discarded, before };
    let done = [
        ("fall_silent", ledger.fall_silent().await.map(drop)),
        ("record_outcomes", ledger.record_outcomes(&[receipt]).await.map(drop)),
        ("record_reports", ledger.record_reports(&[report]).await),
        ("change", ledger.change(&of_b, &discard, 1).await.map(drop)),
        ("mark", ledger.mark(&to_c, from, to, "opened", None).await.map(drop)),
        ("set_redrive_rate", ledger.set_redrive_rate("r", Some(1.0)).await.map(drop)),
        ("steer_redrive", ledger.steer_redrive("r", &made.standing, &cancelled).await.map(drop)),
        ("purge", ledger.purge(&over, &["b".to_owned()]).await.map(drop)),
    ];
    let endless: Vec<_> = done.iter().filter(|(_, done)| done.is_err()).map(|(call, _)| call).collect();
    assert!(endless.is_empty(), "{endless:?}");
    db.drop().await;
}

/// Retention has locked the letter that is closed; the later death meets that, and must not go with it.
#[tokio::test]
async fn a_death_that_meets_the_purge_of_its_letter_is_recorded() {
    let db = Db::new().await;
    let ledger = PgLedger::new(db.pool.clone(), db.tables.clone());
    let mut letters = [letter("a", "1", 0), letter("b", "2", 0)];
    ledger.record(&letters).await.expect("recorded");
    let both = LetterFilter::of_ids(&["a".to_owned(), "b".to_owned()]);
    let discard = Change::Discard { because: "test".to_owned() };
    assert_eq!(ledger.change(&both, &discard, 10).await.expect("discarded"), 2);
    let mut purge = db.pool.begin().await.expect("begun");
    let lock = "SELECT n FROM backstop_letter WHERE id = 'a' FOR UPDATE";
    sqlx::query(lock).execute(&mut *purge).await.expect("locked");
    letters
        .iter_mut()
        .for_each(|letter| letter.dead_at = Some(chrono::Utc::now() + chrono::TimeDelta::hours(1)));
    let recording = tokio::spawn({
        let (ledger, letters) = (ledger.clone(), letters.clone());
        async move { ledger.record(&letters).await }
    });
    let waits = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%{}%'",
        db.schema
    );
    until("the later deaths wait for the purge", async || db.number(&waits).await == 1).await;
    sqlx::query("DELETE FROM backstop_letter WHERE id = 'a'").execute(&mut *purge).await.expect("deleted");
    purge.commit().await.expect("committed");
    assert_eq!(recording.await.expect("no panic").expect("recorded"), 2);
    let open = LetterFilter { status: Some(LetterStatus::Open), ..LetterFilter::default() };
    assert_eq!(ledger.count(&open).await.expect("counted"), 2);
    assert_eq!(whats(&ledger, "a").await, ["collected"]);
    assert_eq!(whats(&ledger, "b").await, ["collected", "discarded", "died-again"]);
    db.drop().await;
}

/// Permissions of an earlier version are enough for receipts and reports: old reports stay, and nothing waits for that.
#[tokio::test]
async fn who_may_not_forget_reports_records_them() {
    let db = Db::new().await;
    let ledger = PgLedger::new(db.pool.clone(), db.tables.clone());
    db.run(
        "INSERT INTO backstop_consumer (consumer, instance, reported_at, report) \
         VALUES ('stock', 'gone', now() - interval '8 days', '{}')",
    )
    .await;
    db.run("REVOKE DELETE ON backstop_consumer FROM CURRENT_USER").await;
    let report = ConsumerReport::new("stock", "stock-1", ConsumerState::Running);
    ledger.record_reports(std::slice::from_ref(&report)).await.expect("recorded");
    assert_eq!(db.number("SELECT count(*) FROM backstop_consumer").await, 2);
    db.run("GRANT DELETE ON backstop_consumer TO CURRENT_USER").await;
    ledger.record_reports(&[report]).await.expect("recorded");
    assert_eq!(ledger.consumers().await.expect("read").len(), 1);
    db.drop().await;
}

#[tokio::test]
async fn a_letter_that_somebody_keeps_locked_keeps_no_other_from_falling_silent() {
    let db = Db::new().await;
    let ledger = PgLedger::new(db.pool.clone(), db.tables.clone());
    ledger.record(&dead(&["a", "b", "c"])).await.expect("recorded");
    send(&ledger, "r").await;
    let mut other = db.pool.begin().await.expect("begun");
    let lock = "SELECT n FROM backstop_letter WHERE id = 'b' FOR UPDATE";
    sqlx::query(lock).execute(&mut *other).await.expect("locked");
    let silent = tokio::time::timeout(Duration::from_secs(20), ledger.fall_silent()).await;
    assert_eq!(silent.expect("it does not wait").expect("silent"), 2);
    other.rollback().await.expect("rolled back");
    assert_eq!(ledger.fall_silent().await.expect("silent"), 1);
    db.drop().await;
}

/// Whoever is cancelled while a transaction begins leaves none behind for the next one on that connection.
#[tokio::test]
async fn a_call_that_is_cancelled_at_its_beginning_leaves_no_transaction_behind() {
    let db = Db::new().await;
    let options = db.pool.connect_options().as_ref().clone();
    let pool = PgPoolOptions::new().max_connections(1).connect_with(options).await.expect("PostgreSQL");
    let ledger = PgLedger::new(pool.clone(), db.tables.clone());
    for step in 0..300 {
        let _ = tokio::time::timeout(Duration::from_micros(step * 5), ledger.fall_silent()).await;
        let row = sqlx::raw_sql("SELECT now() = statement_timestamp()").fetch_one(&pool).await;
        let alone: bool = row.and_then(|row| row.try_get(0)).expect("an answer");
        assert!(alone, "step {step}: a transaction is open");
    }
    db.drop().await;
}
