//! The ledger with many letters: the counters say what is there, and pages stay quick.

use std::time::{Duration, Instant};

use backstop_core::ledger::{HeaderFilter, Ledger, LetterFilter, LetterStatus, Outcome};
use backstop_sqlite::{SqliteLedger, SqliteTables};
use chrono::DateTime;

use crate::common::File;

const START: i64 = 1_780_000_000;

/// Letters in 12 groups, a second apart, of which every hundredth is open, every thousandth on hold.
fn fill(letters: u32) -> String {
    format!(
        "WITH RECURSIVE s (g) AS (SELECT 0 UNION ALL SELECT g + 1 FROM s WHERE g < 11)
         INSERT INTO backstop_letter_group (kind, fingerprint, consumer, place, class, reason, first_seen, last_seen)
         SELECT json_array('f' || g, 'consumer' || (g % 4), 'place' || (g % 3), iif(g % 2, 'permanent', 'transient'), 'exhausted'),
             'f' || g, 'consumer' || (g % 4), 'place' || (g % 3), iif(g % 2, 'permanent', 'transient'), 'exhausted', 0, 0 FROM s;
         WITH RECURSIVE s (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM s WHERE i < {letters})
         INSERT INTO backstop_letter (id, message_key, consumer, place, found_in, door, reason, class, error, fingerprint,
             attempts, generation, dead_at, seen_at, status, msg_key, headers, outcome, redrive, hold, grp)
         SELECT 'id-' || i, '/orders|' || i, g.consumer, g.place, g.place || '.stock.dlq', g.place || '.stock.redrive',
             g.reason, g.class, 'order ' || i || ' is sold out', g.fingerprint, 6, 0,
             strftime('%Y-%m-%dT%H:%M:%SZ', {START} + i, 'unixepoch'), ({START} + i) * 1000,
             iif(i % 100, 'resolved', 'open'), CAST('key-' || (i % 5000) AS BLOB), '[]', iif(i % 100, 'resolved', 'silent'),
             'job-' || (i % 20), iif(i % 1000, NULL, 'case 7'), g.n
         FROM s JOIN backstop_letter_group AS g ON g.fingerprint = 'f' || (i % 12);
         INSERT INTO backstop_letter_term (term, letter)
         SELECT t.value, n FROM backstop_letter, json_each(json_array(
             'e:order', 'e:' || n, 'e:is', 'e:sold', 'e:out', 'h:tenant', 'v:tenant=' || (n % 1000))) AS t;"
    )
}

/// Every filter there is, by itself and in the combinations that pages ask for.
fn filters() -> Vec<(&'static str, LetterFilter)> {
    let text = |text: &str| Some(text.to_owned());
    let at = |seconds: i64| DateTime::from_timestamp(START + seconds, 0);
    let header = |name: &str, value: Option<&str>| {
        Some(HeaderFilter { name: name.to_owned(), value: value.map(str::to_owned) })
    };
    let all = LetterFilter::default;
    let open = || LetterFilter::of_status(LetterStatus::Open);
    vec![
        ("all", all()),
        ("status", open()),
        ("fingerprint", LetterFilter { fingerprint: text("f7"), ..all() }),
        ("consumer", LetterFilter { consumer: text("consumer1"), ..all() }),
        ("place and class", LetterFilter { place: text("place2"), class: text("permanent"), ..open() }),
        ("nobody", LetterFilter { consumer: text("nobody"), ..all() }),
        ("a minute", LetterFilter { since: at(900), until: at(960), ..all() }),
        (
            "an hour of one",
            LetterFilter { since: at(500), until: at(4_100), fingerprint: text("f3"), ..all() },
        ),
        ("key", LetterFilter { key: text("key-77"), ..all() }),
        ("message", LetterFilter { message_key: text("/orders|77"), ..all() }),
        ("id", LetterFilter::of_ids(&["id-77".to_owned(), "id-78".to_owned()])),
        ("a rare word", LetterFilter { error: text("777"), ..all() }),
        ("a common word", LetterFilter { error: text("sold"), ..all() }),
        ("header and value", LetterFilter { header: header("tenant", Some("77")), ..all() }),
        ("outcome", LetterFilter { outcome: Some(Outcome::Silent), ..all() }),
        ("redrive", LetterFilter { redrive: text("job-7"), ..all() }),
        ("on hold", LetterFilter { on_hold: Some(true), ..all() }),
    ]
}

async fn filled(letters: u32) -> (File, SqliteLedger) {
    let file = File::new().await;
    sqlx::raw_sql(sqlx::AssertSqlSafe(fill(letters))).execute(&file.pool).await.expect("filled");
    let ledger = SqliteLedger::new(file.pool.clone(), SqliteTables::default());
    assert_eq!(ledger.count(&LetterFilter::default()).await.expect("counted"), u64::from(letters));
    (file, ledger)
}

#[tokio::test]
async fn counters_agree_with_the_letters() {
    let (file, ledger) = filled(3_000).await;
    let change = "UPDATE backstop_letter SET status = 'open' WHERE n % 7 = 0; DELETE FROM backstop_letter WHERE n % 11 = 0";
    sqlx::raw_sql(change).execute(&file.pool).await.expect("changed");
    for (name, filter) in filters() {
        let listed = ledger.list(&filter, None, 10_000).await.expect("listed").len() as u64;
        assert_eq!(ledger.count(&filter).await.expect("counted"), listed, "{name}");
        let groups = ledger.groups(&filter, 100).await.expect("grouped");
        assert_eq!(groups.iter().map(|group| group.letters).sum::<u64>(), listed, "{name}");
    }
}

/// Prints the 95th percentile of every query. `BACKSTOP_LEDGER_ROWS=1000000` and `-- --nocapture` measure the size that
/// is promised; a time fails no test.
#[tokio::test]
async fn every_filter_is_answered_alike_at_any_size() {
    let rows = std::env::var("BACKSTOP_LEDGER_ROWS").ok().and_then(|text| text.parse().ok()).unwrap_or(2_000);
    let rounds = if rows > 100_000 { 40 } else { 1 };
    let (_file, ledger) = filled(rows).await;
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
}
