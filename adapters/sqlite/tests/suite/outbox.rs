//! The outbox: rows share the fate of their transaction, and the relay reads each once, in order.

use std::time::Duration;

use crate::common::{File, fresh, key, unit};
use backstop_core::dead_rows::{DeadRowFilter, DeadRows};
use backstop_core::lease::{Lease, Leases};
use backstop_core::outbox::{Claimed, DeadRow, OutboxReader, OutboxRow, OutboxStore, Reread, RowId};
use backstop_core::{Destination, FaultKind, Message, Outgoing, names};
use backstop_sqlite::{SqliteInbox, SqliteOutbox, SqliteOutboxStore, SqliteTables};

const TTL: Duration = Duration::from_secs(60);

fn store(file: &File) -> SqliteOutboxStore {
    SqliteOutboxStore::new(file.pool.clone(), SqliteTables::default()).full_scan(None)
}

async fn enqueue(file: &File, id: &str) {
    let message =
        Message::new("order.placed").id(id).key(format!("key-{id}")).body("text/plain", id.to_owned());
    let mut tx = file.pool.begin_with("BEGIN IMMEDIATE").await.expect("begin");
    SqliteOutbox::default().enqueue(&mut tx, Outgoing::to("orders", message)).await.expect("enqueue");
    tx.commit().await.expect("commit");
}

async fn run(file: &File, sql: &'static str) {
    sqlx::raw_sql(sql).execute(&file.pool).await.expect(sql);
}

async fn read(reader: &mut Box<dyn OutboxReader>) -> Claimed {
    reader.read(100, 1 << 20).await.expect("read")
}

/// Rows by number and id.
fn named(rows: &[(i64, &str)]) -> Vec<RowId> {
    rows.iter().map(|(seq, id)| RowId { seq: *seq, id: (*id).into() }).collect()
}

fn ids(rows: &[OutboxRow]) -> Vec<&str> {
    rows.iter().map(|row| row.message.id.as_str()).collect()
}

#[tokio::test]
async fn a_message_goes_in_and_comes_out_to_the_letter() {
    let file = File::new().await;
    let message = Message::new("order.placed")
        .source("/orders")
        .subject("7")
        .key("order-7")
        .header("a", "1")
        .header("a", "2")
        .body("application/json", "{}");
    let tombstone = Message::new("").key("order-7");
    let empty = Message::new("k").body("text/plain", "");
    let mut tx = file.pool.begin_with("BEGIN IMMEDIATE").await.expect("begin");
    let outgoing = [
        Outgoing::to_exchange("events", "", message.clone()),
        Outgoing::to("orders", tombstone.clone()),
        Outgoing::to("orders", empty.clone()),
    ];
    SqliteOutbox::default().enqueue_all(&mut tx, outgoing).await.expect("enqueue");
    tx.commit().await.expect("commit");
    let claimed = read(&mut store(&file).reader()).await;
    let messages: Vec<&Message> = claimed.rows.iter().map(|row| &row.message).collect();
    assert_eq!(messages, [&message, &tombstone, &empty]);
    assert_eq!(claimed.rows[0].destination, Destination::exchange("events", ""));
    assert_eq!(claimed.rows[1].destination, Destination::new("orders"));
    assert!(claimed.unreadable.is_empty() && !claimed.more && claimed.stragglers == 0);
}

#[tokio::test]
async fn a_rollback_leaves_no_row() {
    let file = File::new().await;
    let outbox = SqliteOutbox::default();
    let mut tx = file.pool.begin_with("BEGIN IMMEDIATE").await.expect("begin");
    outbox.enqueue(&mut tx, Outgoing::to("orders", Message::new("a"))).await.expect("enqueue");
    tx.rollback().await.expect("rollback");
    let inbox = SqliteInbox::new(file.pool.clone());
    let key = key("1");
    let mut tx = fresh(&inbox, unit("k", &key)).await;
    outbox.enqueue(&mut tx, Outgoing::to("orders", Message::new("b"))).await.expect("enqueue");
    drop(tx);
    file.write_lock_is_free().await;
    assert_eq!(store(&file).status().await.expect("status").pending, 0);
    let mut tx = fresh(&inbox, unit("k", &key)).await;
    outbox.enqueue(&mut tx, Outgoing::to("orders", Message::new("c"))).await.expect("enqueue");
    backstop_core::inbox::Inbox::commit(&inbox, tx).await.expect("commit");
    let status = store(&file).status().await.expect("status");
    assert_eq!(status.pending, 1);
    assert!(status.oldest.expect("a row") < Duration::from_secs(60));
}

#[tokio::test]
async fn what_cannot_be_stored_is_refused_in_words() {
    let file = File::new().await;
    let outbox = SqliteOutbox::default();
    let message = || Message::new("order.placed");
    let to = |message| Outgoing::to("orders", message);
    let mut late = message();
    late.time = Some(chrono::DateTime::<chrono::Utc>::MAX_UTC);
    let cases = [
        (Outgoing::to("", message()), "the message has no destination"),
        (Outgoing::to("a\0b", message()), "the destination holds a NUL"),
        (Outgoing::to_exchange("a", "\0", message()), "the routing key holds a NUL"),
        (to(message().id("")), "the message has no id"),
        (to(message().id("x".repeat(256))), "the id is longer than 255 bytes"),
        (to(message().id("a\0b")), "the id holds a NUL"),
        (to(message().source("x".repeat(256))), "the source is longer than 255 bytes"),
        (to(message().key(vec![0xff])), "the key is not UTF-8"),
        (to(message().key("a\0b")), "the key holds a NUL"),
        (to(message().subject("a\0b")), "the subject holds a NUL"),
        (to(message().header("raw", vec![0xff])), "header \"raw\" is not UTF-8"),
        (to(message().header("n", "a\0b")), "header \"n\" holds a NUL"),
        (to(Message::new("a\0b")), "the kind holds a NUL"),
        (to(late), "the time is outside the years 0 to 9999"),
    ];
    let mut tx = file.pool.begin_with("BEGIN IMMEDIATE").await.expect("begin");
    for (outgoing, words) in cases {
        let error = outbox.enqueue(&mut tx, outgoing).await.expect_err(words);
        assert_eq!((error.kind(), error.to_string().as_str()), (FaultKind::Invalid, words));
    }
    let mixed = [to(message()), to(message().id(""))];
    outbox.enqueue_all(&mut tx, mixed).await.expect_err("one of them cannot be stored");
    outbox.enqueue(&mut tx, to(message().id("x".repeat(255)))).await.expect("the transaction goes on");
    tx.commit().await.expect("commit");
    assert_eq!(store(&file).status().await.expect("status").pending, 1);
}

#[tokio::test]
async fn any_program_may_insert_with_two_columns() {
    let file = File::new().await;
    run(&file, "INSERT INTO backstop_outbox (destination, payload) VALUES ('orders', '{\"a\": 1}'), ('orders', NULL)").await;
    let claimed = read(&mut store(&file).reader()).await;
    assert_eq!(claimed.rows.len(), 2);
    for row in &claimed.rows {
        let id: uuid::Uuid = row.message.id.parse().expect("a UUID");
        assert_eq!((id.get_version_num(), id.get_variant()), (4, uuid::Variant::RFC4122), "{id}");
        assert_eq!((row.message.source.as_str(), row.message.time), ("", None));
    }
    assert_eq!(claimed.rows[0].message.body.as_deref(), Some(&b"{\"a\": 1}"[..]));
    assert_eq!(claimed.rows[1].message.body, None);
    for refused in [
        "INSERT INTO backstop_outbox (destination) VALUES ('')",
        "INSERT INTO backstop_outbox (payload) VALUES ('x')",
    ] {
        assert!(sqlx::query(refused).execute(&file.pool).await.is_err(), "{refused}");
    }
}

#[tokio::test]
async fn rows_that_are_no_messages_are_told_apart() {
    let file = File::new().await;
    enqueue(&file, "good").await;
    run(
        &file,
        "INSERT INTO backstop_outbox (destination, headers) VALUES ('orders', '{'), ('orders', '[1]'), \
         ('orders', '{\"n\": 7}'), ('orders', x'ff');
         INSERT INTO backstop_outbox (destination, event_time) VALUES ('orders', 'yesterday');
         INSERT INTO backstop_outbox (destination, kind) VALUES ('orders', x'ff'), (x'ff', 'k');
         INSERT INTO backstop_outbox (destination, id) VALUES ('orders', x'ff'), ('orders', 'a' || char(0))",
    )
    .await;
    enqueue(&file, "also good").await;
    let claimed = read(&mut store(&file).reader()).await;
    assert_eq!(ids(&claimed.rows), ["good", "also good"]);
    let said: Vec<&str> =
        claimed.unreadable.iter().map(|dead| dead.error.split(':').next().unwrap_or("")).collect();
    assert_eq!(
        said,
        [
            "column headers is not JSON",
            "headers must be a JSON object, not an array",
            "header \"n\" must be a text, not a number",
            "column headers is not UTF-8",
            "column event_time is not RFC 3339",
            "column kind is not UTF-8",
            "column destination is not UTF-8",
            "column id is not UTF-8",
            "column id holds a NUL",
        ]
    );
    let store = store(&file);
    let lease = store.acquire("outbox", "a", TTL).await.expect("acquire").expect("granted");
    assert!(store.bury(&lease, &claimed.unreadable).await.expect("bury"));
    let buried = store.buried(&DeadRowFilter::default(), 100).await.expect("buried");
    assert_eq!(buried.len(), 9);
    assert!(buried.iter().all(|row| row.reason == "invalid-row" && !row.row.message.id.is_empty()));
    assert_eq!(store.buried(&DeadRowFilter::default(), 2).await.expect("buried").len(), 2);
    let status = store.status().await.expect("status");
    assert_eq!((status.pending, status.dead), (2, 9));
}

#[tokio::test]
async fn rows_come_in_order_once_and_within_bounds() {
    let file = File::new().await;
    for id in ["1", "2", "3", "4", "5"] {
        enqueue(&file, id).await;
    }
    let mut reader = store(&file).reader();
    let claimed = reader.read(2, 1 << 20).await.expect("read");
    assert_eq!((ids(&claimed.rows), claimed.more), (vec!["1", "2"], true));
    let claimed = reader.read(100, 1).await.expect("read");
    assert_eq!((ids(&claimed.rows), claimed.more), (vec!["3"], true), "one row may exceed the bound alone");
    let claimed = read(&mut reader).await;
    assert_eq!((ids(&claimed.rows), claimed.more), (vec!["4", "5"], false));
    assert!(read(&mut reader).await.rows.is_empty(), "a row is returned once");
    reader.reset();
    assert_eq!(ids(&read(&mut reader).await.rows), ["1", "2", "3", "4", "5"], "until it is reset");
    let store = store(&file);
    store.delete(&named(&[(1, "1"), (2, "2"), (4, "4"), (999, "999"), (3, "1")])).await.expect("delete");
    reader.reset();
    assert_eq!(ids(&read(&mut reader).await.rows), ["3", "5"]);
    store
        .delete(&(0..2_500).map(|seq| RowId { seq, id: seq.to_string().into() }).collect::<Vec<_>>())
        .await
        .expect("delete in several transactions");
    assert_eq!(store.status().await.expect("status").pending, 0);
}

#[tokio::test]
async fn paused_and_blocked_rows_are_read_again() {
    let file = File::new().await;
    run(
        &file,
        "INSERT INTO backstop_outbox (id, destination, routing_key, key) VALUES \
         ('1', 'a', NULL, 'k'), ('2', 'a', NULL, 'l'), ('3', 'b', NULL, 'k'), ('4', 'a', '', 'k'), ('5', 'a', NULL, 'k'), ('6', 'a', NULL, NULL)",
    )
    .await;
    let mut reader = store(&file).reader();
    reader.read(5, 1 << 20).await.expect("read");
    let what =
        |destination, key: Option<&'static str>, from| Reread { destination, key: key.map(Into::into), from };
    let cases = [
        (what(Destination::new("a"), None, 0), vec!["1", "2", "5"]),
        (what(Destination::new("a"), Some("k"), 0), vec!["1", "5"]),
        (what(Destination::new("a"), Some("k"), 2), vec!["5"]),
        (what(Destination::exchange("a", ""), None, 0), vec!["4"]),
        (what(Destination::new("c"), None, 0), vec![]),
    ];
    for (what, expected) in cases {
        let claimed = reader.reread(&what, 100, 1 << 20).await.expect("reread");
        assert_eq!(
            (ids(&claimed.rows), claimed.stragglers),
            (expected, 0),
            "{what:?}: not beyond what was returned"
        );
    }
    // SQLite keeps a BLOB in a text column as such, and no text equals it.
    run(
        &file,
        "INSERT INTO backstop_outbox (id, destination, routing_key, key) VALUES \
         (x'62', CAST('blob' AS BLOB), CAST('r' AS BLOB), CAST('k' AS BLOB))",
    )
    .await;
    assert_eq!(ids(&read(&mut reader).await.rows), ["6", "b"]);
    let blob = what(Destination::exchange("blob", "r"), Some("k"), 0);
    let claimed = reader.reread(&blob, 100, 1 << 20).await.expect("reread");
    assert_eq!(ids(&claimed.rows), ["b"]);
    store(&file).delete(&[claimed.rows[0].row_id()]).await.expect("delete");
    assert_eq!(store(&file).status().await.expect("status").pending, 6);
    let claimed = reader.reread(&what(Destination::new("a"), None, 0), 2, 1 << 20).await.expect("reread");
    assert_eq!((ids(&claimed.rows), claimed.more), (vec!["1", "2"], true));
    assert!(read(&mut reader).await.rows.is_empty());
}

/// F28: writers stand in each other's way all the time.
#[tokio::test(flavor = "multi_thread")]
async fn with_many_writers_no_committed_row_is_skipped() {
    let file = File::new().await;
    let mut writers = Vec::new();
    for writer in 0..6_u64 {
        let pool = file.again().await;
        writers.push(tokio::spawn(async move {
            let mut committed = Vec::new();
            for number in 0..40 {
                let id = format!("{writer}/{number}");
                let mut tx = pool.begin_with("BEGIN IMMEDIATE").await.expect("begin");
                let outgoing = Outgoing::to("orders", Message::new("k").id(&*id));
                SqliteOutbox::default().enqueue(&mut tx, outgoing).await.expect("enqueue");
                if (writer + number) % 5 == 0 {
                    tx.rollback().await.expect("rollback");
                } else {
                    tx.commit().await.expect("commit");
                    committed.push(id);
                }
            }
            committed
        }));
    }
    let store = store(&file);
    let mut reader = store.reader();
    let mut seen: Vec<(i64, String)> = Vec::new();
    loop {
        let finished = writers.iter().all(tokio::task::JoinHandle::is_finished);
        let claimed = read(&mut reader).await;
        let published: Vec<RowId> = claimed.rows.iter().map(OutboxRow::row_id).collect();
        store.delete(&published).await.expect("delete");
        seen.extend(claimed.rows.into_iter().map(|row| (row.seq, row.message.id)));
        if finished && published.is_empty() {
            break;
        }
    }
    let mut committed = Vec::new();
    for writer in writers {
        committed.extend(writer.await.expect("no panic"));
    }
    assert!(seen.windows(2).all(|pair| pair[0].0 < pair[1].0), "in order, and no number twice");
    let mut seen: Vec<String> = seen.into_iter().map(|(_, id)| id).collect();
    seen.sort_unstable();
    committed.sort_unstable();
    assert_eq!(seen, committed);
    assert_eq!(store.status().await.expect("status").pending, 0);
}

#[tokio::test]
async fn the_full_scan_catches_and_counts_what_was_numbered_by_hand() {
    let file = File::new().await;
    for id in ["1", "2", "3"] {
        enqueue(&file, id).await;
    }
    let store = store(&file);
    let mut net = store.clone().full_scan(Some(Duration::ZERO)).reader();
    let mut bare = store.reader();
    store.delete(&named(&[(2, "2")])).await.expect("delete");
    assert_eq!(ids(&read(&mut net).await.rows), ["1", "3"]);
    assert_eq!(ids(&read(&mut bare).await.rows), ["1", "3"]);
    run(
        &file,
        "INSERT INTO backstop_outbox (seq, id, destination) VALUES (-5, 'a', 'orders'), (2, 'b', 'orders')",
    )
    .await;
    enqueue(&file, "4").await;
    let claimed = net.read(1, 1 << 20).await.expect("read");
    assert_eq!((ids(&claimed.rows), claimed.stragglers, claimed.more), (vec!["a"], 1, true));
    let claimed = net.read(1, 1 << 20).await.expect("read");
    assert_eq!((ids(&claimed.rows), claimed.stragglers), (vec!["b"], 1));
    let claimed = read(&mut net).await;
    assert_eq!((ids(&claimed.rows), claimed.stragglers), (vec!["4"], 0));
    assert!(read(&mut net).await.rows.is_empty());
    // a number that was returned, deleted, and written by hand again
    store.delete(&named(&[(1, "1")])).await.expect("delete");
    assert!(read(&mut net).await.rows.is_empty());
    run(&file, "INSERT INTO backstop_outbox (seq, id, destination) VALUES (1, 'again', 'orders')").await;
    assert_eq!(ids(&read(&mut net).await.rows), ["again"]);
    assert_eq!(ids(&read(&mut bare).await.rows), ["4"], "without the net they wait for the next reset");
    let again = Reread { destination: Destination::new("orders"), key: None, from: i64::MIN };
    let claimed = bare.reread(&again, 100, 1 << 20).await.expect("reread");
    assert_eq!((ids(&claimed.rows), claimed.stragglers), (vec!["a", "again", "b", "3", "4"], 2));
}

/// F26: after a restore nothing is taken for read.
#[tokio::test]
async fn a_sequence_that_went_backwards_resets_the_reader() {
    let file = File::new().await;
    for id in ["1", "2", "3"] {
        enqueue(&file, id).await;
    }
    let store = store(&file);
    let mut reader = store.reader();
    assert_eq!(read(&mut reader).await.rows.len(), 3);
    store.delete(&named(&[(1, "1"), (2, "2"), (3, "3")])).await.expect("delete");
    assert!(read(&mut reader).await.rows.is_empty());
    enqueue(&file, "4").await;
    store.delete(&named(&[(4, "4")])).await.expect("delete");
    enqueue(&file, "5").await;
    assert_eq!(read(&mut reader).await.rows[0].seq, 5, "numbers of deleted rows are not given again");
    run(&file, "DELETE FROM backstop_outbox; DELETE FROM sqlite_sequence WHERE name = 'backstop_outbox'")
        .await;
    enqueue(&file, "new").await;
    assert!(read(&mut reader).await.rows.is_empty(), "found out by this read");
    assert_eq!(ids(&read(&mut reader).await.rows), ["new"]);
}

/// F28: a lock that is held delays no read.
#[tokio::test]
async fn reading_does_not_wait_for_writers() {
    let file = File::new().await;
    enqueue(&file, "1").await;
    let writer = file.again().await.begin_with("BEGIN IMMEDIATE").await.expect("the lock");
    let store = store(&file);
    let mut reader = store.reader();
    let reading = async {
        assert_eq!(read(&mut reader).await.rows.len(), 1);
        assert_eq!(store.status().await.expect("status").pending, 1);
    };
    tokio::time::timeout(Duration::from_secs(5), reading).await.expect("at once");
    writer.rollback().await.expect("rollback");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_many_contenders_gets_the_lease_and_tokens_grow() {
    let file = File::new().await;
    let mut token = 0;
    for round in 0..5 {
        let mut tasks = Vec::new();
        for contender in 0..8 {
            let store = SqliteOutboxStore::new(file.again().await, SqliteTables::default());
            tasks.push(tokio::spawn(async move {
                store.acquire("outbox", &format!("{round}/{contender}"), TTL).await.expect("acquire")
            }));
        }
        let mut granted = Vec::new();
        for task in tasks {
            granted.extend(task.await.expect("no panic"));
        }
        assert_eq!(granted.len(), 1, "{granted:?}");
        let lease = &granted[0];
        assert!(lease.token > token);
        token = lease.token;
        let store = store(&file);
        let renewed = store.acquire("outbox", &lease.owner, TTL).await.expect("acquire");
        assert_eq!(renewed.as_ref(), Some(lease), "a renewal keeps the token");
        assert_eq!(
            store.acquire("another", "x", TTL).await.expect("acquire").map(|lease| lease.token.min(1)),
            Some(1)
        );
        let stale = Lease { token: token - 1, ..lease.clone() };
        store.release(&stale).await.expect("release");
        assert_eq!(
            store.acquire("outbox", "somebody", TTL).await.expect("acquire"),
            None,
            "a stale release does nothing"
        );
        store.release(lease).await.expect("release");
    }
}

#[tokio::test]
async fn a_stale_owner_buries_nothing() {
    let file = File::new().await;
    enqueue(&file, "1").await;
    let store = store(&file);
    let stale = store.acquire("outbox", "a", Duration::ZERO).await.expect("acquire").expect("granted");
    let current =
        store.acquire("outbox", "b", TTL).await.expect("acquire").expect("the other one has expired");
    assert!(current.token > stale.token);
    let dead = [
        DeadRow { seq: 1, id: "1".into(), reason: "too-large".into(), error: "2 MiB".into() },
        DeadRow { seq: 99, id: "99".into(), reason: "r".into(), error: "e".into() },
    ];
    assert!(!store.bury(&stale, &dead).await.expect("bury"));
    assert_eq!(store.status().await.expect("status").pending, 1);
    assert!(store.bury(&current, &dead).await.expect("bury"));
    let status = store.status().await.expect("status");
    assert_eq!((status.pending, status.dead), (0, 1));
    let buried = &store.buried(&DeadRowFilter::default(), 10).await.expect("buried")[0];
    assert_eq!(
        (buried.row.message.id.as_str(), buried.reason.as_str(), buried.error.as_str()),
        ("1", "too-large", "2 MiB")
    );
    assert_eq!((buried.row.seq, buried.row.destination.name.as_str()), (1, "orders"));
    assert!(store.bury(&current, &dead).await.expect("bury"), "twice is harmless");
    assert_eq!(store.status().await.expect("status").dead, 1);
    let again = store.acquire("outbox", "b", Duration::ZERO).await.expect("acquire").expect("renewed");
    assert_eq!(again.token, current.token);
    let late = store.acquire("outbox", "b", TTL).await.expect("acquire").expect("granted");
    assert!(late.token > current.token, "an owner that let it expire is a new owner");
}

/// A lease is not for ever because a clock was wrong when it was written.
#[tokio::test]
async fn a_lease_that_reaches_too_far_has_ended() {
    let file = File::new().await;
    let store = store(&file);
    let longest = backstop_core::lease::LONGEST;
    let first = store.acquire("outbox", "a", longest * 9).await.expect("acquire").expect("granted");
    assert_eq!(
        store.acquire("outbox", "b", TTL).await.expect("acquire"),
        None,
        "granted for the longest time"
    );
    sqlx::query("UPDATE backstop_lease SET expires_at = expires_at + 3600000")
        .execute(&file.pool)
        .await
        .expect("set");
    let taken = store.acquire("outbox", "b", TTL).await.expect("acquire").expect("granted");
    assert_eq!(taken.token, first.token + 1);
}

#[tokio::test]
async fn the_trace_of_the_current_span_is_stored() {
    use opentelemetry::trace::TracerProvider;
    use tracing::Instrument;
    use tracing_subscriber::layer::SubscriberExt;
    let provider = opentelemetry_sdk::trace::SdkTracerProvider::builder().build();
    let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("test"));
    let subscriber = tracing_subscriber::registry().with(layer);
    let _guard = tracing::subscriber::set_default(subscriber);
    let file = File::new().await;
    enqueue(&file, "1").instrument(tracing::info_span!("request")).await;
    let claimed = read(&mut store(&file).reader()).await;
    let headers = &claimed.rows[0].message.headers;
    assert!(headers.get_str(names::TRACEPARENT).expect("a context").starts_with("00-"));
    assert_eq!(headers.get(names::TRACESTATE), None, "an empty one is not written");
}
