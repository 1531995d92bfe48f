//! `outbox dead …` on a file with two rows that died.

use backstop_core::lease::Leases;
use backstop_core::outbox::{DeadRow, OutboxStore};
use backstop_core::{Message, Outgoing};
use backstop_sqlite::{SqliteOutbox, SqliteOutboxStore, SqliteTables};

use crate::relay::{Ran, Relay};

const BODY: &str = "card 4111";

async fn fill(relay: &Relay) {
    let pool = backstop_sqlite::open(relay.path("x.db").to_str().expect("UTF-8")).await.expect("opened");
    let outbox = SqliteOutbox::default();
    for (destination, id) in [("orders", "1"), ("orders\u{1b}[2J", "2"), ("orders", "3")] {
        let message = Message::new("order.placed").id(id).key("tea").header("tenant", "acme");
        let message = message.body("text/plain", BODY);
        let mut tx = pool.begin_with("BEGIN IMMEDIATE").await.expect("begun");
        outbox.enqueue(&mut tx, Outgoing::to(destination, message)).await.expect("written");
        tx.commit().await.expect("committed");
    }
    let store = SqliteOutboxStore::new(pool.clone(), SqliteTables::default());
    let ttl = std::time::Duration::from_secs(60);
    let lease = store.acquire("outbox", "test", ttl).await.expect("asked").expect("granted");
    let rows = store.reader().read(10, 1 << 20).await.expect("read").rows;
    let dead = |row: &backstop_core::outbox::OutboxRow| DeadRow {
        seq: row.seq,
        id: row.row_id().id,
        reason: "too-large".into(),
        error: "9 MB".into(),
    };
    let dead: Vec<DeadRow> = rows[..2].iter().map(dead).collect();
    assert!(store.bury(&lease, &dead).await.expect("buried"));
    // Its files are copied afterwards, and must not go meanwhile.
    pool.close().await;
}

/// A directory with such a file.
pub(crate) fn with_dead_rows() -> Relay {
    let relay = Relay::new("[database]\nurl = \"sqlite:x.db?mode=rwc\"\n");
    assert_eq!(relay.run("migrate").code, 0);
    tokio::runtime::Runtime::new().expect("a runtime").block_on(fill(&relay));
    relay
}

#[track_caller]
fn dead(relay: &Relay) -> Vec<i64> {
    let rows = relay.run("outbox dead list --output json").json();
    rows.as_array().expect("a list").iter().map(|row| row["seq"].as_i64().expect("a number")).collect()
}

#[track_caller]
fn prints(ran: &Ran, expected: &str) {
    assert_eq!((ran.stdout.as_str(), ran.stderr.as_str(), ran.code), (expected, "", 0));
}

#[test]
fn a_dead_row_is_shown_and_its_content_only_on_demand() {
    let relay = with_dead_rows();
    let hidden = relay.run("outbox dead show 1").stdout;
    assert!(
        hidden.contains("reason          too-large") && hidden.contains("1 header and 9 bytes, hidden"),
        "{hidden}"
    );
    let shown = relay.run("outbox dead show 1 --reveal").stdout;
    for secret in [BODY, "acme", "tea"] {
        assert!(!hidden.contains(secret) && shown.contains(secret), "{secret}: {hidden}{shown}");
    }
    let json = |args: &str| {
        relay.run(&format!("outbox dead show 1 --output json {args}")).json()[0]["content"].clone()
    };
    assert_eq!(json(""), serde_json::json!({ "hidden": true, "headers": 1, "bytes": 9 }));
    let content = json("--reveal");
    assert_eq!((&content["body"], &content["key"]), (&BODY.into(), &"tea".into()));
    assert!(!relay.run("outbox dead show 2").stdout.contains('\u{1b}'));
    let absent = relay.run("outbox dead show 3");
    assert_eq!((absent.code, absent.stdout.as_str()), (1, ""));
    assert_eq!(
        absent.lines(),
        ["error: no row with the number 3 is dead", "hint: look for it with outbox dead list"]
    );
}

#[test]
fn retry_plans_asks_and_moves_once() {
    let relay = with_dead_rows();
    let plan = "ROWS  DESTINATION  REASON\n1     orders       too-large\n";
    prints(&relay.run("outbox dead retry --destination orders --dry-run"), plan);
    let unasked = relay.run("outbox dead retry --destination orders");
    assert_eq!((unasked.code, unasked.stdout.as_str()), (10, plan), "{}", unasked.stderr);
    assert_eq!(dead(&relay), [1, 2], "nothing moved yet");
    let moved = relay.run("outbox dead retry --destination orders --yes");
    assert_eq!((moved.stdout, moved.code), (format!("{plan}1 row moved back into the outbox\n"), 0));
    prints(&relay.run("outbox dead retry --seq 1 --yes"), "no dead rows\n");
    assert_eq!(dead(&relay), [2]);
    let rest = relay.run("outbox dead retry --all --yes --output json").json();
    assert_eq!((&rest["rows"], &rest["plan"][0]["reason"]), (&1.into(), &"too-large".into()));
    assert_eq!(relay.run("outbox status --output json").json()[0]["pending"], 3);
}

#[test]
fn discard_wants_a_choice_and_a_cause() {
    let relay = with_dead_rows();
    for args in [
        "discard --seq 1 --yes",
        "discard --because tested --yes",
        "discard --all --seq 1 --because tested",
        "retry",
        "retry --yes",
    ] {
        assert_eq!(relay.run(&format!("outbox dead {args}")).code, 2, "{args}");
    }
    assert_eq!(dead(&relay), [1, 2]);
    let gone = relay.run("outbox dead discard --seq 2 --seq 7 --because tested --yes --output json");
    assert_eq!((&gone.json()["rows"], &gone.json()["because"]), (&1.into(), &"tested".into()));
    let last = relay.run("outbox dead discard --reason too-large --because tested --yes");
    assert!(last.stdout.ends_with("1 row deleted for good\n"), "{}", last.stdout);
    assert_eq!(relay.run("outbox status --output json").json()[0]["pending"], 1);
}

/// What the audit log says of a run.
fn audited(ran: &Ran) -> Vec<serde_json::Value> {
    let lines = ran.stderr.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON"));
    lines.filter(|line| line["target"] == "audit").collect()
}

#[test]
fn who_did_what_and_why_is_logged_whatever_the_filter() {
    let relay = with_dead_rows().with_env("LOGNAME", "al\"ice\n");
    let run = |args: &str| relay.run(&format!("outbox dead {args} --log-format json"));
    assert!(audited(&run("retry --all --dry-run")).is_empty());
    assert!(audited(&run("retry --seq 77 --yes")).is_empty(), "nothing was to be done");
    assert!(audited(&run("show 1")).is_empty());
    let unasked = run("discard --seq 1 --because x");
    assert!(unasked.code == 10 && unasked.stderr.starts_with("error"), "{}", unasked.stderr);
    let owner = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata("/proc/self").expect("Linux"));
    for (args, what, choice, because, steps) in [
        ("show 1 --reveal --log off", "outbox dead show --reveal", "seq=1", None, vec![("begins", 1)]),
        (
            "retry --seq 1 --because fixed --yes --log off",
            "outbox dead retry",
            "seq=1",
            Some("fixed"),
            vec![("begins", 1), ("ended", 1)],
        ),
        (
            "discard --all --because tested --yes --log audit=off",
            "outbox dead discard",
            "all",
            Some("tested"),
            vec![("begins", 1), ("ended", 1)],
        ),
    ] {
        let ran = run(args);
        let told = audited(&ran);
        assert_eq!((told.len(), ran.code), (steps.len(), 0), "{}", ran.stderr);
        for (line, (step, rows)) in told.iter().zip(steps) {
            assert_eq!(
                (&line["what"], &line["choice"], &line["step"]),
                (&what.into(), &choice.into(), &step.into())
            );
            assert_eq!(
                (&line["rows"], &line["uid"], &line["user"]),
                (&rows.into(), &owner.into(), &"al\"ice\n".into())
            );
            assert_eq!((line["because"].as_str(), &line["outbox"]), (because, &"outbox".into()));
        }
    }
}
