//! The outbox: written inside a transaction, read without a loss, emptied by its owner.

mod support;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use backstop_core::lease::Leases;
use backstop_core::outbox::{
    Claimed, DeadRow, OutboxReader, OutboxRow, OutboxStatus, OutboxStore, Reread, RowId,
};
use backstop_core::{Destination, FaultKind, Message, Outgoing};
use backstop_postgres::{PgOutbox, PgOutboxStore};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use support::{Db, fresh, until};

const MEGA: usize = 1 << 20;

fn store(db: &Db) -> PgOutboxStore {
    PgOutboxStore::new(db.pool.clone(), db.tables.clone()).full_scan(None)
}

async fn read(reader: &mut Box<dyn OutboxReader>) -> Claimed {
    reader.read(1_000, MEGA).await.expect("read")
}

async fn seqs(reader: &mut Box<dyn OutboxReader>) -> Vec<i64> {
    read(reader).await.rows.iter().map(|row| row.seq).collect()
}

fn insert(key: &str) -> String {
    format!("INSERT INTO backstop_outbox (destination, key, payload) VALUES ('orders', '{key}', 'x')")
}

fn dead_row(row: &OutboxRow) -> [DeadRow; 1] {
    let RowId { seq, id } = row.row_id();
    [DeadRow { seq, id, reason: "too-large".to_owned(), error: "9 MB".to_owned() }]
}

async fn lease(store: &PgOutboxStore, owner: &str) -> Option<backstop_core::lease::Lease> {
    store.acquire("outbox", owner, Duration::from_secs(30)).await.expect("asked")
}

#[tokio::test]
async fn a_message_survives_the_table() {
    let db = Db::new().await;
    let outbox = PgOutbox::with_tables(&db.tables);
    let mut message = Message::new("order.placed")
        .source("/orders")
        .subject("7")
        .key("käse")
        .header("a", "1")
        .header("a", "2")
        .body("application/json", vec![0, 0xff]);
    message.headers.append_null("n");
    message.time = Some("2026-11-21T10:00:00.123456Z".parse().expect("a time"));
    let mut tombstone = Message::new("");
    tombstone.time = None;
    let mut tx = db.pool.begin().await.expect("begun");
    outbox.enqueue(&mut tx, Outgoing::to_exchange("ex", "", message.clone())).await.expect("written");
    outbox.enqueue(&mut tx, Outgoing::to("orders", tombstone.clone())).await.expect("written");
    outbox.enqueue_all(&mut tx, [Outgoing::to("orders", message.clone())]).await.expect("written");
    tx.commit().await.expect("committed");
    let claimed = read(&mut store(&db).reader()).await;
    let destinations: Vec<_> = claimed.rows.iter().map(|row| row.destination.clone()).collect();
    assert_eq!(
        destinations,
        [Destination::exchange("ex", ""), Destination::new("orders"), Destination::new("orders")]
    );
    let messages: Vec<_> = claimed.rows.iter().map(|row| row.message.clone()).collect();
    assert_eq!(messages, [message.clone(), tombstone, message]);
    db.drop().await;
}

#[tokio::test]
async fn a_strangers_row_needs_only_destination_and_payload() {
    let db = Db::new().await;
    db.run("INSERT INTO backstop_outbox (destination, payload) VALUES ('orders', 'x')").await;
    let claimed = read(&mut store(&db).reader()).await;
    let message = &claimed.rows[0].message;
    assert_eq!((message.id.len(), message.kind.as_str(), message.time), (36, "", None));
    db.drop().await;
}

#[tokio::test]
async fn a_rollback_leaves_nothing() {
    let db = Db::new().await;
    let outbox = PgOutbox::in_schema(&db.schema).expect("a name");
    let mut tx = db.pool.begin().await.expect("begun");
    outbox.enqueue(&mut tx, Outgoing::to("orders", Message::new("a"))).await.expect("written");
    tx.rollback().await.expect("rolled back");
    let mut tx = fresh(&db.inbox(), "1").await;
    outbox.enqueue(&mut tx, Outgoing::to("orders", Message::new("a"))).await.expect("written");
    drop(tx);
    let mut tx = fresh(&db.inbox(), "2").await;
    outbox.enqueue(&mut tx, Outgoing::to("orders", Message::new("a"))).await.expect("written");
    backstop_core::inbox::Inbox::commit(&db.inbox(), tx).await.expect("committed");
    assert_eq!(db.number("SELECT count(*) FROM backstop_outbox").await, 1);
    db.drop().await;
}

#[tokio::test]
async fn what_cannot_be_stored_is_refused_before_it_costs_the_transaction() {
    let db = Db::new().await;
    let outbox = PgOutbox::with_tables(&db.tables);
    let mut tx = db.pool.begin().await.expect("begun");
    let message = || Message::new("a");
    let at = |seconds| {
        let mut message = message();
        message.time =
            chrono::DateTime::from_timestamp(seconds, 0).or(Some(chrono::DateTime::<chrono::Utc>::MAX_UTC));
        message
    };
    for bad in [
        Outgoing::to("", message()),
        Outgoing::to("a\0b", message()),
        Outgoing::to("orders", message().id("")),
        Outgoing::to("orders", message().id("x".repeat(256))),
        Outgoing::to("orders", message().id("a\0")),
        Outgoing::to("orders", message().key(vec![0xff])),
        Outgoing::to("orders", message().key("a\0")),
        Outgoing::to("orders", message().header("h", vec![0xff])),
        Outgoing::to("orders", message().header("h", "a\0")),
        Outgoing::to("orders", Message::new("a\0")),
        Outgoing::to("orders", at(i64::MAX / 1_000_000)),
        Outgoing::to("orders", at(253_402_300_800)),
        Outgoing::to("orders", at(-62_167_219_201)),
    ] {
        let shown = format!("{bad:?}");
        let error = outbox.enqueue(&mut tx, bad).await.expect_err(&shown);
        assert_eq!(error.kind(), FaultKind::Invalid, "{shown}");
        assert!(error.hint().is_some());
    }
    let mut ends = [at(253_402_300_799), at(-62_167_219_200)].map(|message| Outgoing::to("ends", message));
    ends[0].message.id = "last".to_owned();
    outbox.enqueue_all(&mut tx, ends.clone()).await.expect("the first and the last second");
    let good = (0..500).map(|n| Outgoing::to("orders", message().id(format!("{n}"))));
    outbox.enqueue_all(&mut tx, good).await.expect("the transaction is alive");
    tx.commit().await.expect("committed");
    let claimed = read(&mut store(&db).reader()).await;
    let times = claimed.rows[..2].iter().map(|row| row.message.time);
    assert!(times.eq(ends.iter().map(|outgoing| outgoing.message.time)));
    let ids: Vec<_> = claimed.rows[2..].iter().map(|row| row.message.id.clone()).collect();
    assert_eq!(ids, (0..500).map(|n| n.to_string()).collect::<Vec<_>>(), "numbered as given");
    db.drop().await;
}

#[tokio::test]
async fn rows_that_are_no_messages_are_set_apart() {
    let db = Db::new().await;
    db.run("INSERT INTO backstop_outbox (destination, headers) VALUES ('a', '[1]'), ('b', '{\"n\": 7}'), ('c', '{}')")
        .await;
    let store = store(&db);
    let claimed = read(&mut store.reader()).await;
    assert_eq!(claimed.rows.len(), 1);
    assert_eq!(claimed.unreadable.len(), 2);
    let lease = lease(&store, "me").await.expect("granted");
    assert!(store.bury(&lease, &claimed.unreadable).await.expect("moved"));
    let buried = store.buried(10).await.expect("read");
    let names: Vec<_> = buried.iter().map(|row| row.row.destination.name.as_str()).collect();
    assert_eq!(names, ["a", "b"]);
    assert_eq!(buried[1].error, "header \"n\" must be a text, not a number");
    db.drop().await;
}

#[tokio::test]
async fn times_that_no_message_can_have_stop_nothing() {
    let db = Db::new().await;
    for time in ["infinity", "-infinity", "262143-01-01", "10000-01-01", "0002-12-31 BC"] {
        let insert =
            format!("INSERT INTO backstop_outbox (destination, event_time) VALUES ('a', '{time}+00')")
                .replace("infinity+00", "infinity")
                .replace(" BC+00", "+00 BC");
        assert!(sqlx::query(AssertSqlSafe(insert.clone())).execute(&db.pool).await.is_err(), "{insert}");
    }
    // Tables that were made by hand, or by other tools, may lack the check.
    db.run("ALTER TABLE backstop_outbox DROP CONSTRAINT backstop_outbox_event_time_check").await;
    db.run(
        "INSERT INTO backstop_outbox (destination, event_time, created_at) VALUES ('a', 'infinity', '-infinity'), \
         ('b', '-infinity', 'infinity'), ('c', '262143-01-01', now()), ('d', '4713-01-01 BC', now()), \
         ('e', '2026-11-21', '4713-01-01 BC')",
    )
    .await;
    let store = store(&db);
    let claimed = read(&mut store.reader()).await;
    let names: Vec<_> = claimed.rows.iter().map(|row| row.destination.name.as_str()).collect();
    assert_eq!((names, claimed.unreadable.len()), (vec!["e"], 4));
    assert!(claimed.unreadable.iter().all(|row| row.error == "event_time is outside the years 0 to 9999"));
    assert!(store.status().await.expect("asked").oldest.is_some());
    let lease = lease(&store, "me").await.expect("granted");
    assert!(store.bury(&lease, &claimed.unreadable).await.expect("moved"));
    db.run("UPDATE backstop_outbox_dead SET died_at = 'infinity' WHERE destination = 'a'").await;
    db.run("UPDATE backstop_outbox_dead SET died_at = '-infinity' WHERE destination = 'b'").await;
    let buried = store.buried(10).await.expect("read");
    assert_eq!(buried.len(), 4);
    assert!(buried.iter().all(|row| row.row.message.time.is_none()));
    db.drop().await;
}

#[tokio::test]
async fn reads_are_bounded_and_never_repeat() {
    let db = Db::new().await;
    db.run(
        "INSERT INTO backstop_outbox (destination, payload) \
            SELECT 'orders', convert_to(repeat('x', 1000), 'UTF8') FROM generate_series(1, 100)",
    )
    .await;
    let mut reader = store(&db).reader();
    let mut all = Vec::new();
    loop {
        let claimed = reader.read(30, 10_500).await.expect("read");
        assert!(claimed.rows.len() <= 10, "{}", claimed.rows.len());
        all.extend(claimed.rows.iter().map(|row| row.seq));
        if !claimed.more {
            break;
        }
    }
    assert_eq!(all, (1..=100).collect::<Vec<i64>>());
    let one = reader.read(30, 1).await.expect("read");
    assert!(one.rows.is_empty());
    reader.reset();
    assert_eq!(reader.read(30, 1).await.expect("read").rows.len(), 1, "one row may exceed the bound alone");
    assert_eq!(reader.read(7, MEGA).await.expect("read").rows.len(), 7);
    db.drop().await;
}

#[tokio::test]
async fn a_late_commit_comes_and_a_rollback_closes() {
    let db = Db::new().await;
    let mut reader = store(&db).reader();
    assert!(seqs(&mut reader).await.is_empty());
    let mut late = db.pool.begin().await.expect("begun");
    late.execute(AssertSqlSafe(insert("a"))).await.expect("written");
    let mut lost = db.pool.begin().await.expect("begun");
    lost.execute(AssertSqlSafe(insert("b"))).await.expect("written");
    db.run(&insert("c")).await;
    assert_eq!(seqs(&mut reader).await, [3]);
    for _ in 0..5 {
        assert!(seqs(&mut reader).await.is_empty());
    }
    lost.rollback().await.expect("rolled back");
    assert!(seqs(&mut reader).await.is_empty());
    late.commit().await.expect("committed");
    assert_eq!(seqs(&mut reader).await, [1]);
    assert!(seqs(&mut reader).await.is_empty());
    db.drop().await;
}

#[tokio::test]
async fn the_first_number_of_a_fresh_table_is_not_taken_for_a_gap() {
    let db = Db::new().await;
    let mut reader = store(&db).reader();
    for _ in 0..5 {
        assert!(seqs(&mut reader).await.is_empty());
    }
    db.run(&insert("a")).await;
    assert_eq!(seqs(&mut reader).await, [1]);
    db.drop().await;
}

#[tokio::test]
async fn a_sequence_that_goes_backwards_starts_over() {
    let db = Db::new().await;
    let mut reader = store(&db).reader();
    for _ in 0..10 {
        db.run(&insert("a")).await;
    }
    assert_eq!(seqs(&mut reader).await.len(), 10);
    db.run("TRUNCATE backstop_outbox RESTART IDENTITY").await;
    db.run(&insert("a")).await;
    assert_eq!(seqs(&mut reader).await, [1]);
    db.drop().await;
}

#[tokio::test]
async fn a_number_chosen_by_hand_beyond_the_sequence_does_not_start_over() {
    let db = Db::new().await;
    let mut reader = store(&db).reader();
    db.run(&insert("a")).await;
    db.run(
        "INSERT INTO backstop_outbox (seq, id, destination) OVERRIDING SYSTEM VALUE \
         SELECT n, n, 'paused' FROM generate_series(5, 8) n",
    )
    .await;
    assert_eq!(seqs(&mut reader).await, [1, 5, 6, 7, 8]);
    for n in 2..=4 {
        assert!(seqs(&mut reader).await.is_empty(), "each row once");
        db.run(&insert("a")).await;
        assert_eq!(seqs(&mut reader).await, [n], "below the chosen numbers");
    }
    let paused = Reread { destination: Destination::new("paused"), key: None, from: 0 };
    let again = reader.reread(&paused, 10, MEGA).await.expect("read").rows;
    assert_eq!(again.iter().map(|row| row.seq).collect::<Vec<_>>(), [5, 6, 7, 8]);
    // The sequence passes the numbers, and gives one to another row.
    db.run("DELETE FROM backstop_outbox WHERE seq IN (5, 6)").await;
    db.run(&insert("a")).await;
    assert_eq!(seqs(&mut reader).await, [5], "another row under the number of one that was returned");
    db.run("SELECT setval(pg_get_serial_sequence('backstop_outbox', 'seq'), 8)").await;
    db.run(&insert("a")).await;
    assert_eq!(seqs(&mut reader).await, [9]);
    assert!(seqs(&mut reader).await.is_empty());
    db.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_writer_that_stays_open_costs_nothing_while_others_write() {
    const ROWS: i64 = 20_000;
    let db = Arc::new(Db::new().await);
    let store = store(&db);
    let mut reader = store.reader();
    let mut late = db.pool.begin().await.expect("begun");
    late.execute(AssertSqlSafe(insert("late"))).await.expect("written");
    let writers: Vec<_> = (0..4)
        .map(|_| {
            let db = Arc::clone(&db);
            tokio::spawn(async move {
                // Single rows and rollbacks, so that numbers interleave and gaps come with almost every read.
                let one = "BEGIN; INSERT INTO backstop_outbox (destination) VALUES ('lost'); ROLLBACK; \
                           INSERT INTO backstop_outbox (destination) SELECT 'orders' FROM generate_series(1, 20);";
                for _ in 0..ROWS / 80 {
                    db.run(one).await;
                }
            })
        })
        .collect();
    let (mut came, mut slowest) = (0, Duration::ZERO);
    while came < ROWS {
        let begun = std::time::Instant::now();
        let claimed = read(&mut reader).await;
        slowest = slowest.max(begun.elapsed());
        came += i64::try_from(claimed.rows.len()).expect("few");
        store.delete(&claimed.rows.iter().map(OutboxRow::row_id).collect::<Vec<_>>()).await.expect("deleted");
    }
    for writer in writers {
        writer.await.expect("no panic");
    }
    assert!(seqs(&mut reader).await.is_empty(), "each row once");
    late.commit().await.expect("committed");
    assert_eq!(seqs(&mut reader).await, [1]);
    assert!(slowest < Duration::from_secs(2), "{slowest:?}");
    Arc::into_inner(db).expect("the writers have ended").drop().await;
}

#[tokio::test]
async fn gaps_beyond_the_bound_are_merged_and_lose_nothing() {
    let db = Db::new().await;
    let store = store(&db);
    let mut reader = store.reader();
    let mut late = db.pool.begin().await.expect("begun");
    late.execute(AssertSqlSafe(insert("late"))).await.expect("written");
    // Every other number is nobody's, as far as can be told while the writer is open.
    db.run(
        "INSERT INTO backstop_outbox (destination) \
         SELECT CASE WHEN nextval(pg_get_serial_sequence('backstop_outbox', 'seq')) > 0 THEN 'orders' END \
         FROM generate_series(1, 15000)",
    )
    .await;
    let mut came = Vec::new();
    for _ in 0..40 {
        let claimed = read(&mut reader).await;
        came.extend(claimed.rows.iter().map(OutboxRow::row_id));
        let deleted: Vec<RowId> =
            claimed.rows.iter().filter(|row| row.seq % 1_000 > 9).map(OutboxRow::row_id).collect();
        store.delete(&deleted).await.expect("deleted");
    }
    assert_eq!(came.len(), 15_000, "each row once");
    let left = db.number("SELECT count(*) FROM backstop_outbox").await;
    let all = Reread { destination: Destination::new("orders"), key: None, from: 0 };
    let again = reader.reread(&all, 1_000, MEGA).await.expect("read").rows;
    assert_eq!(i64::try_from(again.len()).expect("few"), left, "what was returned can be read again");
    late.commit().await.expect("committed");
    assert_eq!(seqs(&mut reader).await, [1]);
    db.run(&insert("a")).await;
    assert_eq!(seqs(&mut reader).await.len(), 1);
    db.drop().await;
}

#[tokio::test]
async fn rows_that_came_under_old_numbers_are_not_deleted() {
    let db = Db::new().await;
    let store = store(&db);
    let odd = "it's \\ \"{,}\" ключ \u{1f375}";
    let write_odd = || async {
        let insert = sqlx::query("INSERT INTO backstop_outbox (id, destination) VALUES ($1, 'orders')");
        insert.bind(odd).execute(&db.pool).await.expect("written");
    };
    db.run(&insert("a")).await;
    write_odd().await;
    let old = read(&mut store.reader()).await.rows;
    db.run("TRUNCATE backstop_outbox RESTART IDENTITY").await;
    db.run(&insert("new")).await;
    write_odd().await;
    store.delete(&old.iter().map(OutboxRow::row_id).collect::<Vec<_>>()).await.expect("deleted");
    let left = read(&mut store.reader()).await.rows;
    assert_eq!(left.iter().map(|row| row.seq).collect::<Vec<_>>(), [1], "row 2 has the same name");
    assert_ne!(left[0].message.id, old[0].message.id);
    let lease = lease(&store, "me").await.expect("granted");
    assert!(store.bury(&lease, &dead_row(&old[0])).await.expect("asked"));
    assert_eq!(db.number("SELECT count(*) FROM backstop_outbox").await, 1);
    db.drop().await;
}

#[tokio::test]
async fn rows_are_read_again_by_destination_and_key() {
    let db = Db::new().await;
    let mut late = db.pool.begin().await.expect("begun");
    late.execute(AssertSqlSafe(insert("a"))).await.expect("written");
    for key in ["a", "b", "a"] {
        db.run(&insert(key)).await;
    }
    db.run("INSERT INTO backstop_outbox (destination, routing_key, key) VALUES ('orders', 'r', 'a')").await;
    let mut reader = store(&db).reader();
    assert_eq!(seqs(&mut reader).await, [2, 3, 4, 5]);
    late.commit().await.expect("committed");
    db.run(&insert("a")).await;
    let mut again = async |key: Option<&'static str>, from: i64, rows: usize| {
        let destination = Destination::new("orders");
        let what = Reread { destination, key: key.map(Into::into), from };
        let claimed = reader.reread(&what, rows, MEGA).await.expect("read");
        (claimed.rows.iter().map(|row| row.seq).collect::<Vec<_>>(), claimed.more)
    };
    assert_eq!(again(None, 0, 10).await, (vec![2, 3, 4], false), "only what was returned before");
    assert_eq!(again(Some("a"), 0, 10).await, (vec![2, 4], false));
    assert_eq!(again(Some("a"), 3, 10).await, (vec![4], false));
    assert_eq!(again(None, 0, 2).await, (vec![2], true), "the row that was not returned yet counts");
    assert_eq!(again(None, 0, 1).await, (vec![2], true), "and is stepped over");
    assert_eq!(seqs(&mut reader).await, [1, 6]);
    db.drop().await;
}

#[tokio::test]
async fn a_writer_that_breaks_the_contract_is_caught_by_the_full_scan() {
    let db = Db::new().await;
    let store = store(&db).full_scan(Some(Duration::from_millis(1)));
    let mut reader = store.reader();
    db.run("SELECT nextval(pg_get_serial_sequence('backstop_outbox', 'seq'))").await;
    db.run(&insert("a")).await;
    assert_eq!(seqs(&mut reader).await, [2]);
    for _ in 0..3 {
        read(&mut reader).await;
    }
    db.run(
        "INSERT INTO backstop_outbox (seq, destination) OVERRIDING SYSTEM VALUE VALUES (1, 'x'), (-5, 'x')",
    )
    .await;
    tokio::time::sleep(Duration::from_millis(2)).await;
    let claimed = read(&mut reader).await;
    assert_eq!(claimed.stragglers, 2);
    assert_eq!(claimed.rows.iter().map(|row| row.seq).collect::<Vec<_>>(), [-5, 1]);
    tokio::time::sleep(Duration::from_millis(2)).await;
    assert_eq!(read(&mut reader).await.stragglers, 0);
    db.drop().await;
}

#[tokio::test]
async fn only_the_owner_buries() {
    let db = Db::new().await;
    let store = store(&db);
    for _ in 0..3 {
        db.run(&insert("a")).await;
    }
    let rows = read(&mut store.reader()).await.rows;
    let dead = dead_row(&rows[0]);
    let stale =
        store.acquire("outbox", "old", Duration::from_millis(1)).await.expect("asked").expect("granted");
    let mut taken = None;
    while taken.is_none() {
        taken = lease(&store, "new").await;
    }
    let taken = taken.expect("granted");
    assert!(taken.token > stale.token);
    assert!(!store.bury(&stale, &dead).await.expect("asked"));
    assert!(store.bury(&taken, &dead).await.expect("asked"));
    store.delete(&[rows[1].row_id(), RowId { seq: 99, id: "99".into() }]).await.expect("deleted");
    store.delete(&[]).await.expect("nothing to do");
    let OutboxStatus { pending, oldest, dead } = store.status().await.expect("asked");
    assert_eq!((pending, oldest.is_some(), dead), (1, true, 1));
    assert_eq!(store.buried(10).await.expect("read")[0].reason, "too-large");
    db.drop().await;
}

#[tokio::test]
async fn a_takeover_waits_for_an_open_move_and_then_the_stale_owner_moves_nothing() {
    let db = Db::new().await;
    let store = store(&db);
    db.run(&insert("a")).await;
    let dead = dead_row(&read(&mut store.reader()).await.rows[0]);
    let stale = lease(&store, "old").await.expect("granted");
    let mut takeover = db.pool.begin().await.expect("begun");
    takeover
        .execute("UPDATE backstop_lease SET owner = 'new', token = token + 1 WHERE name = 'outbox'")
        .await
        .expect("taken");
    let burying = tokio::spawn({
        let store = store.clone();
        async move { store.bury(&stale, &dead).await.expect("asked") }
    });
    let waits = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%{}%'",
        db.schema
    );
    until("the move waits", || async { db.number(&waits).await > 0 }).await;
    takeover.commit().await.expect("committed");
    assert!(!burying.await.expect("joined"));
    assert_eq!(store.status().await.expect("asked").dead, 0);
    db.drop().await;
}

#[tokio::test]
async fn one_contender_gets_the_lease_and_tokens_grow() {
    let db = Db::new().await;
    let store = store(&db);
    let mut last = 0;
    for _ in 0..20 {
        let contenders = (0..8).map(|n| {
            let store = store.clone();
            tokio::spawn(async move { lease(&store, &format!("owner-{n}")).await })
        });
        let mut winners = Vec::new();
        for contender in contenders.collect::<Vec<_>>() {
            winners.extend(contender.await.expect("joined"));
        }
        assert_eq!(winners.len(), 1);
        let winner = winners.remove(0);
        assert!(winner.token > last, "{} after {last}", winner.token);
        last = winner.token;
        let renewed = lease(&store, &winner.owner).await.expect("renewed");
        assert_eq!(renewed.token, winner.token);
        let stale = backstop_core::lease::Lease { token: winner.token - 1, ..winner.clone() };
        store.release(&stale).await.expect("nothing");
        assert!(lease(&store, "other").await.is_none());
        store.release(&winner).await.expect("released");
    }
    db.drop().await;
}

/// Writes the row in one of several ways.
async fn insert_somehow(tx: &mut PgConnection, n: usize, id: &str, key: &str, insert: &str) {
    match n % 4 {
        0 => {
            let statement = "COPY backstop_outbox (id, destination, key) FROM STDIN";
            let mut copy = tx.copy_in_raw(statement).await.expect("copying");
            copy.send(format!("{id}\torders\t{key}\n").into_bytes()).await.expect("sent");
            copy.finish().await.expect("copied");
        }
        1 => {
            let select = format!(
                "INSERT INTO backstop_outbox (id, destination, key) \
                 SELECT * FROM (VALUES ('{id}', 'orders', '{key}')) v (id, destination, key)"
            );
            tx.execute(AssertSqlSafe(select)).await.expect("written");
        }
        _ => {
            tx.execute(AssertSqlSafe(insert.to_owned())).await.expect("written");
        }
    }
}

/// Writes in every way there is until told to stop; returns the ids that were committed.
async fn write(db: Arc<(Db, AtomicBool)>, writer: usize) -> Vec<String> {
    let (db, stop) = &*db;
    let mut committed = Vec::new();
    let mut n = 0;
    let mut connection = db.pool.acquire().await.expect("a connection");
    while !stop.load(Ordering::SeqCst) {
        n += 1;
        let id = format!("{writer}-{n}");
        let key = format!("k{}", n % 5);
        let values = format!("('{id}', 'orders', '{key}')");
        let insert = format!("INSERT INTO backstop_outbox (id, destination, key) VALUES {values}");
        let mut tx = connection.begin().await.expect("begun");
        let lock = format!("SELECT 1 FROM aggregate WHERE key = '{key}' FOR UPDATE");
        tx.execute(AssertSqlSafe(lock)).await.expect("locked");
        if n % 7 == 0 {
            tx.execute(sqlx::raw_sql(AssertSqlSafe(format!(
                "SAVEPOINT s; {insert}; ROLLBACK TO SAVEPOINT s"
            ))))
            .await
            .expect("undone");
        }
        insert_somehow(&mut tx, n, &id, &key, &insert).await;
        if n % 3 == 0 {
            let wait = format!("SELECT pg_sleep(0.00{})", n % 10);
            tx.execute(AssertSqlSafe(wait)).await.expect("slept");
        }
        if n % 10 == 9 {
            tx.rollback().await.expect("rolled back");
            continue;
        }
        if writer == 0 && n % 5 == 1 {
            let gid = format!("{}-{id}", db.schema);
            tx.execute(AssertSqlSafe(format!("PREPARE TRANSACTION '{gid}'"))).await.expect("prepared");
            // sqlx still believes in its transaction: a statement that ends none keeps both in step.
            tx.rollback().await.expect("nothing to roll back");
            connection.execute("SELECT pg_sleep(0.005)").await.expect("slept");
            connection.execute(AssertSqlSafe(format!("COMMIT PREPARED '{gid}'"))).await.expect("committed");
        } else {
            tx.commit().await.expect("committed");
        }
        committed.push(id);
    }
    committed
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_committed_row_is_missed_while_writers_come_and_go() {
    let db = Db::new().await;
    db.run(
        "CREATE TABLE aggregate (key text PRIMARY KEY); \
            INSERT INTO aggregate SELECT 'k' || n FROM generate_series(0, 4) n",
    )
    .await;
    let store = store(&db).full_scan(Some(Duration::from_millis(100)));
    let mut reader = store.reader();
    let shared = Arc::new((db, AtomicBool::new(false)));
    let writers: Vec<_> = (0..10).map(|writer| tokio::spawn(write(Arc::clone(&shared), writer))).collect();
    let end = tokio::time::Instant::now() + Duration::from_secs(6);
    let mut seen: HashMap<String, usize> = HashMap::new();
    let mut last_of_key: HashMap<Vec<u8>, i64> = HashMap::new();
    let (mut stragglers, mut disorder, mut quiet) = (0, 0, 0);
    while quiet < 20 {
        let claimed = reader.read(200, MEGA).await.expect("read");
        stragglers += claimed.stragglers;
        let mut published = Vec::new();
        for row in &claimed.rows {
            *seen.entry(row.message.id.clone()).or_default() += 1;
            let key = row.message.key.as_ref().expect("a key").to_vec();
            let before = last_of_key.insert(key, row.seq);
            disorder += usize::from(before.is_some_and(|before| before > row.seq));
            published.push(row.row_id());
        }
        store.delete(&published).await.expect("deleted");
        if tokio::time::Instant::now() > end {
            shared.1.store(true, Ordering::SeqCst);
            let done = writers.iter().all(tokio::task::JoinHandle::is_finished);
            quiet = if done && claimed.rows.is_empty() { quiet + 1 } else { 0 };
        }
    }
    let mut committed = 0;
    for writer in writers {
        for id in writer.await.expect("no panic") {
            committed += 1;
            assert_eq!(seen.get(&id), Some(&1), "{id}");
        }
    }
    assert!(committed > 100, "{committed}");
    assert_eq!(seen.len(), committed, "nothing but what was committed");
    assert_eq!((stragglers, disorder), (0, 0), "stragglers, out of order");
    let (db, _) = Arc::into_inner(shared).expect("the writers have ended");
    assert_eq!(db.number("SELECT count(*) FROM backstop_outbox").await, 0);
    db.drop().await;
}
