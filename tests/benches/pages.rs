//! The console and the API over a full ledger: how long the relay takes for each page, with every filter.

use std::time::{Duration, Instant};

use backstop_core::ledger::{Change, Guard, Ledger, LetterFilter, LetterStatus, NewRedrive, Redrives as _};
use backstop_core::names;
use backstop_postgres::{PgLedger, PgTables};
use backstop_tests::dead;
use backstop_tests::program::{Relay, RelayConfig};
use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};

use crate::collect::{TOGETHER, as_collected};
use crate::database::Database;
use crate::report::{Figure, quantile};
use crate::{Bench, Outcome, relay};

/// Groups of letters.
const GROUPS: usize = 500;
/// Consumers that they are of.
const CONSUMERS: usize = 20;
/// The redrive that some letters are in.
const REDRIVE: &str = "01900000-0000-7000-8000-000000000001";
/// Most milliseconds that a page should take.
const ASKED: f64 = 100.0;

/// Lists that take the filter of letters.
const FILTERED: [&str; 8] = [
    "/groups",
    "/dead-letters",
    "/plan",
    "/plan/letters",
    "/api/v1/groups",
    "/api/v1/letters",
    "/api/v1/letters/count",
    "/api/v1/plan",
];

/// Fills the ledger and asks for every page.
pub(crate) async fn run(bench: &mut Bench) -> Outcome<()> {
    let (rounds, count) = (bench.sizes.asked, bench.sizes.shown);
    let database = Database::fresh(&bench.servers, "pages").await?;
    let figures = measure(bench, &database, rounds, count).await;
    database.drop().await?;
    figures?.into_iter().for_each(|figure| bench.push(figure));
    Ok(())
}

async fn measure(bench: &Bench, database: &Database, rounds: usize, count: usize) -> Outcome<Vec<Figure>> {
    eprintln!("pages, {count} letters");
    let began = fill(database, count).await?;
    let config = RelayConfig::of(&format!(
        "[database]\nurl = \"{}\"\n[broker]\nkind = \"rabbitmq\"\nurl = \"{}\"\n[dead_letters]\nenabled = true\nsources = [\"nothing.dlq\"]\n",
        database.url, bench.servers.amqp
    ));
    let program = relay::ready(&config).await?;
    let mut figures = Vec::new();
    for (page, addresses) in pages(count, began) {
        eprintln!("pages, {page} at {} addresses", addresses.len());
        let mut slowest = (0.0, String::new());
        for address in addresses {
            let took = took(&program, &address, rounds).await?;
            if took >= slowest.0 {
                slowest = (took, address);
            }
        }
        let (took, address) = slowest;
        let query =
            address.split_once('?').map(|(_, query)| format!(", at worst ?{query}")).unwrap_or_default();
        figures.push(Figure::new(format!("p95 {page}{query}"), took, "ms").at_most(ASKED));
    }
    relay::terminate(program).await;
    Ok(figures)
}

/// When the letter `n` died: one a second, the last of them now.
fn died(n: usize, began: DateTime<Utc>) -> String {
    let at = began + TimeDelta::seconds(i64::try_from(n).unwrap_or(0));
    at.to_rfc3339_opts(SecondsFormat::Millis, true)
}

/// Letters of many groups and consumers; of each tenth group all are discarded, some of another are on hold, and one
/// group is in a redrive. Says when the first of them died.
async fn fill(database: &Database, count: usize) -> Outcome<DateTime<Utc>> {
    let ledger = PgLedger::new(database.pool.clone(), PgTables::default());
    let began = Utc::now() - TimeDelta::seconds(i64::try_from(count)?);
    for first in (0..count).step_by(TOGETHER) {
        let letters: Vec<_> = (first..count.min(first + TOGETHER))
            .map(|n| {
                let mut envelope = dead::letter(n, n % GROUPS);
                envelope.headers.set(names::CONSUMER, format!("consumer-{}", n % CONSUMERS));
                envelope.headers.set(names::FIRST_FAILED_AT, died(n, began));
                envelope.headers.set(names::DEAD_AT, died(n, began));
                as_collected(n, envelope)
            })
            .collect();
        ledger.record(&letters).await?;
    }
    let group =
        |n: usize| LetterFilter { fingerprint: Some(format!("fingerprint-{n}")), ..LetterFilter::default() };
    for n in (0..GROUPS).step_by(10) {
        change(&ledger, &group(n), &Change::Discard { because: "a bench".into() }).await?;
    }
    change(&ledger, &group(1), &Change::Hold { because: "a bench".into() }).await?;
    let redrive = NewRedrive {
        id: REDRIVE.into(),
        filter: LetterFilter { status: Some(LetterStatus::Open), ..group(2) },
        guard: Guard { foreign: vec!["orders".into()], ..Guard::default() },
        limit: None,
        canary: 10,
        // So slow that it sends nothing while pages are asked for.
        rate: Some(0.001),
        brake: 0.1,
        silent_after: Duration::from_secs(3_600),
        created_by: "bench".into(),
        because: None,
    };
    ledger.create_redrive(&redrive).await?;
    sqlx::query("VACUUM ANALYZE").execute(&database.pool).await?;
    Ok(began)
}

async fn change(ledger: &PgLedger, filter: &LetterFilter, change: &Change) -> Outcome<()> {
    while ledger.change(filter, change, 1_000).await? > 0 {}
    Ok(())
}

/// Every page, with the addresses at which it is asked for.
fn pages(count: usize, began: DateTime<Utc>) -> Vec<(&'static str, Vec<String>)> {
    let filters = filters(count, began);
    let filtered = FILTERED.into_iter().map(|page| {
        let addresses = filters.iter().filter(|filter| !page.contains("/plan") || can_be_redriven(filter));
        (page, addresses.map(|filter| format!("{page}?{filter}")).collect())
    });
    let middle = dead::id(count / 2);
    let later = ["/dead-letters", "/api/v1/letters"].into_iter().map(|page| {
        let of = ["", "status=open", "consumer=consumer-1", "error=warehouse"];
        let addresses = of.map(|filter| format!("{page}?{filter}&after={middle}")).to_vec();
        (
            if page == "/dead-letters" {
                "/dead-letters, later pages"
            } else {
                "/api/v1/letters, later pages"
            },
            addresses,
        )
    });
    let single = [
        ("/", "/".to_owned()),
        ("/groups/{fingerprint}", "/groups/fingerprint-7".to_owned()),
        ("/dead-letters/{id}", format!("/dead-letters/{middle}")),
        ("/redrives", "/redrives".to_owned()),
        ("/redrives/{id}", format!("/redrives/{REDRIVE}")),
        ("/held", "/held".to_owned()),
        ("/outboxes", "/outboxes".to_owned()),
        ("/consumers", "/consumers".to_owned()),
        ("/audit", "/audit".to_owned()),
        ("/api/v1/letters/{id}", format!("/api/v1/letters/{middle}")),
        ("/api/v1/redrives", "/api/v1/redrives".to_owned()),
        ("/api/v1/redrives/{id}", format!("/api/v1/redrives/{REDRIVE}")),
        ("/api/v1/held", "/api/v1/held".to_owned()),
        ("/api/v1/outboxes", "/api/v1/outboxes".to_owned()),
        ("/api/v1/consumers", "/api/v1/consumers".to_owned()),
        ("/api/v1/audit", "/api/v1/audit".to_owned()),
    ];
    let single = single.into_iter().map(|(page, address)| (page, vec![address]));
    filtered.chain(later).chain(single).collect()
}

/// Each parameter by itself, with few, many and no letters behind it, and some together.
fn filters(count: usize, began: DateTime<Utc>) -> Vec<String> {
    let (middle, late) = (died(count / 2, began), died(count - count / 100, began));
    let id = dead::id(count / 3);
    let filters = [
        String::new(),
        format!("ids={id}"),
        "fingerprint=fingerprint-7".into(),
        "fingerprint=none".into(),
        "consumer=consumer-3".into(),
        "place=orders".into(),
        "class=transient".into(),
        "reason=exhausted".into(),
        "status=open".into(),
        "status=discarded".into(),
        "status=resolved".into(),
        format!("since={middle}"),
        format!("since={late}"),
        format!("until={middle}"),
        "key=key-17".into(),
        "message_key=/orders|17".into(),
        "header=tenant".into(),
        "header=tenant=tenant-17".into(),
        "header=tenant=none".into(),
        "error=answer".into(),
        "error=warehouse 17".into(),
        "error=nowhere".into(),
        "outcome=resolved".into(),
        "outcome=waiting".into(),
        format!("redrive={REDRIVE}"),
        "on_hold=true".into(),
        "on_hold=false".into(),
        "consumer=consumer-3&status=open&error=warehouse".into(),
        format!("fingerprint=fingerprint-7&since={middle}"),
        format!("consumer=consumer-3&since={late}&header=tenant=tenant-17"),
        "status=open&key=key-17".into(),
        format!("status=discarded&until={middle}&error=answer"),
        "consumer=consumer-3&fingerprint=fingerprint-4".into(),
    ];
    filters.map(|filter| filter.replace(' ', "%20").replace('|', "%7C")).to_vec()
}

/// Whether a plan can be made of these letters: those that are done with are refused.
fn can_be_redriven(filter: &str) -> bool {
    !["status=discarded", "status=resolved"].iter().any(|done| filter.contains(done))
}

/// Milliseconds that one of twenty answers exceeds.
async fn took(program: &Relay, address: &str, rounds: usize) -> Outcome<f64> {
    let mut times = Vec::new();
    for _ in 0..rounds {
        let began = Instant::now();
        let answer = program.get(address).await.ok_or_else(|| format!("{address}: no answer"))?;
        times.push(began.elapsed().as_secs_f64() * 1_000.0);
        if !answer.starts_with("HTTP/1.1 200") {
            let line = answer.lines().next().unwrap_or_default();
            return Err(format!("{address}: {line}").into());
        }
    }
    Ok(quantile(&times, 0.95))
}
