//! The ledger with many letters: no filter reads them all, and the counters say what is there.

#[path = "suite/support.rs"]
#[expect(dead_code, reason = "most of it is for the other program")]
mod support;

use std::time::{Duration, Instant};

use backstop_core::lease::Leases;
use backstop_core::ledger::{
    Guard, HeaderFilter, Ledger, LetterFilter, LetterStatus, NewRedrive, Outcome, Phase, Redrives,
    SILENT_AT_ONCE, Sent, Standing,
};
use backstop_postgres::PgLedger;
use chrono::{DateTime, TimeDelta, Utc};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use support::Db;

const START: i64 = 1_780_000_000;

/// Letters in 12 groups, a second apart, of which every hundredth is open, every thousandth on hold.
fn fill(letters: u32) -> String {
    let digest =
        "sha256(convert_to(jsonb_build_array(fingerprint, consumer, place, class, reason)::text, 'UTF8'))";
    format!(
        "INSERT INTO backstop_letter_group (digest, fingerprint, consumer, place, class, reason, first_seen, last_seen)
         SELECT {digest}, fingerprint, consumer, place, class, reason, now(), now()
         FROM (SELECT 'f' || g AS fingerprint, 'consumer' || g % 4 AS consumer, 'place' || g % 3 AS place,
                      (ARRAY['transient', 'permanent'])[1 + g % 2] AS class, 'exhausted' AS reason
               FROM generate_series(0, 11) AS g) AS k;
         INSERT INTO backstop_letter (id, message_key, consumer, place, found_in, door, reason, class, error, fingerprint,
             attempts, generation, dead_at, seen_at, status, msg_key, headers, body, outcome, redrive, hold, terms, grp)
         SELECT 'id-' || i, '/orders|' || i, g.consumer, g.place, g.place || '.stock.dlq', g.place || '.stock.redrive',
             g.reason, g.class, 'order ' || i || ' is sold out', g.fingerprint, 6, 0,
             to_timestamp({START} + i), to_timestamp({START} + i),
             CASE WHEN i % 100 = 0 THEN 'open' ELSE 'resolved' END, convert_to('key-' || i % 5000, 'UTF8'), '\\x01',
             '{{}}', CASE WHEN i % 100 = 0 THEN 'silent' ELSE 'resolved' END, 'job-' || i % 20,
             CASE WHEN i % 1000 = 0 THEN 'case 7' END,
             ARRAY['e:order', 'e:' || i, 'e:is', 'e:sold', 'e:out', 'h:tenant', 'v:tenant=' || i % 1000], g.n
         FROM generate_series(1, {letters}) AS i JOIN backstop_letter_group AS g ON g.fingerprint = 'f' || i % 12;
         ANALYZE backstop_letter, backstop_letter_group"
    )
}

/// Every filter there is, by itself and in the combinations that pages ask for.
fn filters() -> Vec<(&'static str, LetterFilter)> {
    let text = |text: &str| Some(text.to_owned());
    let at = |seconds: i64| {
        DateTime::<Utc>::from_timestamp(START, 0).map(|start| start + TimeDelta::seconds(seconds))
    };
    let header = |name: &str, value: Option<&str>| {
        Some(HeaderFilter { name: name.to_owned(), value: value.map(str::to_owned) })
    };
    let all = LetterFilter::default;
    let open = || LetterFilter::of_status(LetterStatus::Open);
    vec![
        ("all", all()),
        ("status", open()),
        ("fingerprint", LetterFilter { fingerprint: text("f7"), ..all() }),
        ("fingerprint, open", LetterFilter { fingerprint: text("f0"), ..open() }),
        ("consumer", LetterFilter { consumer: text("consumer1"), ..all() }),
        ("place", LetterFilter { place: text("place2"), ..open() }),
        ("class", LetterFilter { class: text("permanent"), ..all() }),
        ("reason", LetterFilter { reason: text("exhausted"), ..open() }),
        (
            "two that nothing has",
            LetterFilter { consumer: text("consumer1"), class: text("transient"), ..all() },
        ),
        ("nobody", LetterFilter { consumer: text("nobody"), ..all() }),
        ("a minute", LetterFilter { since: at(9_000), until: at(9_060), ..all() }),
        (
            "an hour of one",
            LetterFilter { since: at(5_000), until: at(8_600), fingerprint: text("f3"), ..all() },
        ),
        ("all time, open", LetterFilter { since: at(0), until: at(100_000_000), ..open() }),
        ("key", LetterFilter { key: text("key-77"), ..all() }),
        ("message", LetterFilter { message_key: text("/orders|77"), ..all() }),
        ("id", LetterFilter::of_ids(&["id-77".to_owned(), "id-78".to_owned()])),
        ("a rare word", LetterFilter { error: text("7777"), ..all() }),
        ("a common word", LetterFilter { error: text("sold"), ..all() }),
        ("a word that nothing has", LetterFilter { error: text("nowhere sold"), ..all() }),
        ("header", LetterFilter { header: header("Tenant", None), ..all() }),
        ("header and value", LetterFilter { header: header("tenant", Some("77")), ..all() }),
        ("outcome", LetterFilter { outcome: Some(Outcome::Silent), ..all() }),
        ("redrive", LetterFilter { redrive: text("job-7"), ..all() }),
        ("on hold", LetterFilter { on_hold: Some(true), ..all() }),
    ]
}

/// Of one connection, so that what the server counts of it can be asked for.
async fn ledger(db: &Db) -> (PgLedger, sqlx::PgPool) {
    let options: PgConnectOptions = crate::support::url().parse().expect("a URL");
    let options = options.options([("search_path", db.schema.as_str())]);
    let pool = PgPoolOptions::new().max_connections(1).connect_with(options).await.expect("PostgreSQL");
    (PgLedger::new(pool.clone(), db.tables.clone()), pool)
}

async fn scans(pool: &sqlx::PgPool) -> i64 {
    sqlx::query("SELECT pg_stat_force_next_flush()").execute(pool).await.expect("PostgreSQL 15 or later");
    let scans = "SELECT seq_scan FROM pg_stat_user_tables WHERE relid = 'backstop_letter'::regclass";
    sqlx::query_scalar(scans).fetch_one(pool).await.expect("counted")
}

/// However often a statement runs, and so with a plan for all values too.
#[tokio::test]
async fn no_page_reads_all_letters() {
    let db = Db::new().await;
    db.run(&fill(40_000)).await;
    let (ledger, pool) = ledger(&db).await;
    assert_eq!(ledger.count(&LetterFilter::default()).await.expect("counted"), 40_000);
    for (name, filter) in filters() {
        let before = scans(&pool).await;
        for _ in 0..7 {
            let page = ledger.list(&filter, None, 50).await.expect("listed");
            if let Some(last) = page.last() {
                ledger.list(&filter, Some(&last.id), 50).await.expect("listed");
            }
        }
        assert_eq!(scans(&pool).await, before, "{name}: a page reads the whole table");
    }
    pool.close().await;
    db.drop().await;
}

async fn rows_read(pool: &sqlx::PgPool) -> i64 {
    sqlx::query("SELECT pg_stat_force_next_flush()").execute(pool).await.expect("PostgreSQL 15 or later");
    let read = "SELECT seq_tup_read + coalesce(idx_tup_fetch, 0) FROM pg_stat_user_tables \
                WHERE relid = 'backstop_redrive_letter'::regclass";
    sqlx::query_scalar(read).fetch_one(pool).await.expect("counted")
}

/// Whatever is known of a redrive that was just made, and however often a statement ran.
#[tokio::test]
async fn a_redrive_reads_what_it_sends_and_not_what_waits() {
    const LETTERS: u32 = 10_000;
    let db = Db::new().await;
    db.run(&fill(LETTERS)).await;
    db.run("UPDATE backstop_letter SET status = 'open', outcome = NULL, redrive = NULL, hold = NULL").await;
    let (ledger, pool) = ledger(&db).await;
    let new = NewRedrive {
        id: "r".to_owned(),
        filter: LetterFilter { status: Some(LetterStatus::Open), ..LetterFilter::default() },
        guard: Guard::default(),
        limit: None,
        canary: 5,
        rate: None,
        brake: 0.2,
        silent_after: Duration::ZERO,
        created_by: "ann".to_owned(),
        because: None,
    };
    let standing = ledger.create_redrive(&new).await.expect("made").standing;
    let lease = ledger.acquire("redrive", "engine", Duration::from_secs(60)).await.expect("asked");
    let lease = lease.expect("nobody else has it");
    let before = rows_read(&pool).await;
    let canary = ledger.claim_letters(&lease, "r", 100).await.expect("asked").expect("it stands");
    assert_eq!(canary.len(), 5);
    assert!(rows_read(&pool).await - before < i64::from(LETTERS / 4), "the canary");
    let sending = Standing { phase: Phase::Sending, ..standing.clone() };
    assert!(ledger.steer_redrive("r", &standing, &sending).await.expect("asked"));
    for n in 0..12 {
        let before = rows_read(&pool).await;
        let claimed = ledger.claim_letters(&lease, "r", 100).await.expect("asked").expect("it stands");
        assert_eq!(claimed.len(), 100);
        assert!(rows_read(&pool).await - before < i64::from(LETTERS / 4), "a claim, {n}");
        let outcome = if n == 11 { Sent::NotTried } else { Sent::Confirmed };
        let settled: Vec<_> = claimed.into_iter().map(|letter| (letter.id, outcome.clone())).collect();
        let before = rows_read(&pool).await;
        ledger.settle_letters("r", &settled).await.expect("settled");
        assert!(rows_read(&pool).await - before < i64::from(LETTERS / 4), "its end, {n}");
    }
    assert_eq!(ledger.fall_silent().await.expect("asked"), u64::from(SILENT_AT_ONCE));
    pool.close().await;
    db.drop().await;
}

/// What the counters say is what is there, and what groups say adds up.
#[tokio::test]
async fn counters_agree_with_the_letters() {
    let db = Db::new().await;
    db.run(&fill(5_000)).await;
    let (ledger, pool) = ledger(&db).await;
    db.run("UPDATE backstop_letter SET status = 'open' WHERE n % 7 = 0; DELETE FROM backstop_letter WHERE n % 11 = 0").await;
    for (name, filter) in filters() {
        let listed = ledger.list(&filter, None, 10_000).await.expect("listed").len() as u64;
        assert_eq!(ledger.count(&filter).await.expect("counted"), listed, "{name}");
        let groups = ledger.groups(&filter, 100).await.expect("grouped");
        assert_eq!(groups.iter().map(|group| group.letters).sum::<u64>(), listed, "{name}");
    }
    pool.close().await;
    db.drop().await;
}

/// Prints the 95th percentile of every query. `BACKSTOP_LEDGER_ROWS=1000000` and `-- --nocapture` measure the size that
/// is promised; a time fails no test.
#[tokio::test]
async fn every_filter_is_answered_alike_at_any_size() {
    let rows = std::env::var("BACKSTOP_LEDGER_ROWS").ok().and_then(|text| text.parse().ok()).unwrap_or(2_000);
    let rounds = if rows > 100_000 { 40 } else { 1 };
    let db = Db::new().await;
    db.run(&fill(rows)).await;
    let (ledger, pool) = ledger(&db).await;
    for (name, filter) in filters() {
        let mut times: [Vec<Duration>; 4] = Default::default();
        for _ in 0..rounds {
            let begun = Instant::now();
            let page = ledger.list(&filter, None, 50).await.expect("listed");
            times[0].push(begun.elapsed());
            if let Some(last) = page.last() {
                let begun = Instant::now();
                let next = ledger.list(&filter, Some(&last.id), 50).await.expect("listed");
                times[1].push(begun.elapsed());
                assert!(next.iter().all(|letter| !page.contains(letter)), "{name}: pages overlap");
            }
            let begun = Instant::now();
            let count = ledger.count(&filter).await.expect("counted");
            assert!(count >= page.len() as u64, "{name}: {count} counted");
            times[2].push(begun.elapsed());
            let begun = Instant::now();
            ledger.groups(&filter, 100).await.expect("grouped");
            times[3].push(begun.elapsed());
        }
        let p95 = times.map(|mut times| {
            times.sort();
            times.get(times.len() * 95 / 100).copied().unwrap_or_default().as_secs_f64() * 1e3
        });
        println!(
            "{name:<26} page {:7.1}  next {:7.1}  count {:7.1}  groups {:7.1} ms",
            p95[0], p95[1], p95[2], p95[3]
        );
    }
    pool.close().await;
    db.drop().await;
}
