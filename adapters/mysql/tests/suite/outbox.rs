//! The outbox: written inside a transaction, emptied by its owner.

use std::time::Duration;

use backstop_core::dead_rows::{DeadRowFilter, DeadRows};
use backstop_core::inbox::Inbox;
use backstop_core::lease::{Lease, Leases};
use backstop_core::outbox::{DeadRow, OutboxReader, OutboxRow, OutboxStatus, OutboxStore, RowId};
use backstop_core::scheduled::ScheduledRows;
use backstop_core::{Destination, FaultKind, Message, Outgoing};
use backstop_mysql::{MySqlOutbox, MySqlOutboxStore};
use sqlx::{AssertSqlSafe, Executor};

use crate::common::{Db, fresh};

pub(crate) const MEGA: usize = 1 << 20;

pub(crate) fn store(db: &Db) -> MySqlOutboxStore {
    MySqlOutboxStore::new(db.pool.clone(), db.tables.clone()).full_scan(None)
}

pub(crate) async fn read(reader: &mut Box<dyn OutboxReader>) -> backstop_core::outbox::Claimed {
    reader.read(1_000, MEGA).await.expect("read")
}

pub(crate) fn insert(key: &str) -> String {
    format!("INSERT INTO backstop_outbox (destination, `key`, payload) VALUES ('orders', '{key}', 'x')")
}

fn dead_row(row: &OutboxRow) -> [DeadRow; 1] {
    let RowId { seq, id } = row.row_id();
    [DeadRow { seq, id, reason: "too-large".to_owned(), error: "9 MB".to_owned() }]
}

async fn lease(store: &MySqlOutboxStore, owner: &str) -> Option<Lease> {
    store.acquire("outbox", owner, Duration::from_secs(30)).await.expect("asked")
}

#[tokio::test]
async fn a_message_survives_the_table() {
    let db = Db::new().await;
    let outbox = MySqlOutbox::with_tables(&db.tables);
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
    let outbox = MySqlOutbox::in_schema(&db.schema).expect("a name");
    let mut tx = db.pool.begin().await.expect("begun");
    outbox.enqueue(&mut tx, Outgoing::to("orders", Message::new("a"))).await.expect("written");
    tx.rollback().await.expect("rolled back");
    let mut tx = fresh(&db.inbox(), "1").await;
    outbox.enqueue(&mut tx, Outgoing::to("orders", Message::new("a"))).await.expect("written");
    drop(tx);
    let mut tx = fresh(&db.inbox(), "2").await;
    outbox.enqueue(&mut tx, Outgoing::to("orders", Message::new("a"))).await.expect("written");
    db.inbox().commit(tx).await.expect("committed");
    assert_eq!(db.number("SELECT COUNT(*) FROM backstop_outbox").await, 1);
    db.drop().await;
}

#[tokio::test]
async fn what_cannot_be_stored_is_refused_before_it_is_sent() {
    let db = Db::new().await;
    let outbox = MySqlOutbox::with_tables(&db.tables);
    // Such a session would cut off what is too long.
    let mut tx = db.pool.begin().await.expect("begun");
    tx.execute("SET sql_mode = ''").await.expect("set");
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
        Outgoing::to("x".repeat(256), message()),
        Outgoing::to_exchange("e", "x".repeat(256), message()),
        Outgoing::to("orders", message().id("")),
        Outgoing::to("orders", message().id("x".repeat(256))),
        Outgoing::to("orders", message().id("a\0")),
        Outgoing::to("orders", message().key(vec![0xff])),
        Outgoing::to("orders", message().key("x".repeat(16_777_216))),
        Outgoing::to("orders", message().header("h", vec![0xff])),
        Outgoing::to("orders", message().subject("x".repeat(65_536))),
        Outgoing::to("orders", at(i64::MAX / 1_000_000)),
        Outgoing::to("orders", at(253_402_300_800)),
        Outgoing::to("orders", at(-62_167_219_201)),
    ] {
        let shown = format!("{bad:?}").chars().take(300).collect::<String>();
        let error = outbox.enqueue(&mut tx, bad).await.expect_err(&shown);
        assert_eq!(error.kind(), FaultKind::Invalid, "{shown}");
        assert!(error.hint().is_some());
    }
    tx.execute("SET sql_mode = DEFAULT").await.expect("set");
    let mut ends = [at(253_402_300_799), at(-62_167_219_200)].map(|message| Outgoing::to("ends", message));
    ends[0].message.id = "last".to_owned();
    outbox.enqueue_all(&mut tx, ends.clone()).await.expect("the first and the last second");
    let good = (0..2_500).map(|n| Outgoing::to("orders", message().id(format!("{n}"))));
    outbox.enqueue_all(&mut tx, good).await.expect("the transaction is alive");
    let heavy = (0..3).map(|n| {
        let body = vec![b'x'; 3 << 20];
        Outgoing::to("heavy", message().id(format!("heavy {n}")).body("text/plain", body))
    });
    outbox.enqueue_all(&mut tx, heavy).await.expect("written");
    tx.commit().await.expect("committed");
    let claimed = store(&db).reader().read(5_000, 64 << 20).await.expect("read");
    let times = claimed.rows[..2].iter().map(|row| row.message.time);
    assert!(times.eq(ends.iter().map(|outgoing| outgoing.message.time)));
    let ids: Vec<_> = claimed.rows[2..2_502].iter().map(|row| row.message.id.clone()).collect();
    assert_eq!(ids, (0..2_500).map(|n| n.to_string()).collect::<Vec<_>>(), "numbered as given");
    assert_eq!(claimed.rows.len(), 2_505);
    db.drop().await;
}

#[tokio::test]
async fn rows_that_are_no_messages_are_set_apart() {
    let db = Db::new().await;
    db.run(
        "SET SESSION sql_mode = ''; INSERT INTO backstop_outbox (destination, headers, event_time) VALUES \
         ('a', '[1]', NULL), ('b', '{\"n\": 7}', NULL), ('c', '{}', NULL), ('d', NULL, '0000-00-00'), \
         ('e', NULL, '2026-00-31'); SET SESSION sql_mode = DEFAULT",
    )
    .await;
    let store = store(&db);
    let claimed = read(&mut store.reader()).await;
    let names: Vec<_> = claimed.rows.iter().map(|row| row.destination.name.as_str()).collect();
    assert_eq!((names, claimed.unreadable.len()), (vec!["c"], 4));
    let lease = lease(&store, "me").await.expect("granted");
    assert!(store.bury(&lease, &claimed.unreadable[..2]).await.expect("moved"));
    let buried = store.buried(&DeadRowFilter::default(), 10).await.expect("read");
    let names: Vec<_> = buried.iter().map(|row| row.row.destination.name.as_str()).collect();
    assert_eq!(names, ["a", "b"]);
    assert_eq!(buried[1].error, "header \"n\" must be a text, not a number");
    assert!(claimed.unreadable[2].error.starts_with("event_time is not a date: 0000-00-00"));
    // As every session is on MySQL.
    let mode = "STRICT_TRANS_TABLES,NO_ZERO_DATE,NO_ZERO_IN_DATE";
    let options: sqlx::mysql::MySqlConnectOptions = crate::common::url().parse().expect("a URL");
    let strict =
        sqlx::mysql::MySqlPoolOptions::new().max_connections(1).after_connect(move |connection, _| {
            Box::pin(async move {
                connection.execute(AssertSqlSafe(format!("SET sql_mode = '{mode}'"))).await.map(drop)
            })
        });
    let strict = strict.connect_with(options.database(&db.schema)).await.expect("connected");
    let store = MySqlOutboxStore::new(strict, db.tables.clone());
    assert!(store.bury(&lease, &claimed.unreadable[2..]).await.expect("moved"), "dates that are none, too");
    assert_eq!(store.status().await.expect("asked").dead, 4);
    db.run(
        "SET SESSION sql_mode = ''; INSERT INTO backstop_outbox_scheduled (destination, event_time, publish_after) \
         VALUES ('f', '2026-00-31', '2026-01-01'), ('g', NULL, '2026-01-02'); SET SESSION sql_mode = DEFAULT",
    )
    .await;
    assert_eq!(
        store.promote(&lease, 10, 1 << 20).await.expect("moved"),
        Some(2),
        "nor do they stop scheduled rows"
    );
    db.drop().await;
}

/// F17: a number may come twice, an id does not.
#[tokio::test]
async fn rows_that_came_under_old_numbers_are_not_deleted() {
    let db = Db::new().await;
    let store = store(&db);
    let odd = "it's \\ \"{,}\" ключ \u{1f375} ";
    let write = async |id: &'static str| {
        let insert = sqlx::query("INSERT INTO backstop_outbox (id, destination) VALUES (?, 'orders')");
        insert.bind(id).execute(&db.pool).await.expect("written");
    };
    write("a").await;
    write(odd).await;
    let old = read(&mut store.reader()).await.rows;
    db.run("TRUNCATE backstop_outbox").await;
    write("a ").await;
    write(odd).await;
    store.delete(&old.iter().map(OutboxRow::row_id).collect::<Vec<_>>()).await.expect("deleted");
    let left = read(&mut store.reader()).await.rows;
    assert_eq!(left.iter().map(|row| row.seq).collect::<Vec<_>>(), [1], "row 2 has the same name");
    assert_eq!(left[0].message.id, "a ", "a trailing space makes another name");
    let lease = lease(&store, "me").await.expect("granted");
    assert!(store.bury(&lease, &dead_row(&old[0])).await.expect("asked"));
    assert_eq!(db.number("SELECT COUNT(*) FROM backstop_outbox").await, 1);
    db.drop().await;
}

/// F23: no lock of a range stands in a writer's way.
#[tokio::test]
async fn writers_do_not_wait_for_the_relay_nor_the_relay_for_them() {
    let db = Db::new().await;
    let store = store(&db);
    for _ in 0..20 {
        db.run(&insert("a")).await;
    }
    let mut open = db.pool.begin().await.expect("begun");
    open.execute(AssertSqlSafe(insert("open"))).await.expect("written");
    let rows = read(&mut store.reader()).await.rows;
    let mut names: Vec<RowId> = rows.iter().map(OutboxRow::row_id).collect();
    names.push(RowId { seq: 999, id: "none".into() });
    let patience = Duration::from_secs(5);
    tokio::time::timeout(patience, store.delete(&names)).await.expect("waits for nobody").expect("deleted");
    let lease = lease(&store, "me").await.expect("granted");
    let gone = dead_row(&rows[0]);
    tokio::time::timeout(patience, store.bury(&lease, &gone))
        .await
        .expect("waits for nobody")
        .expect("asked");
    tokio::time::timeout(patience, db.run(&insert("b"))).await.expect("the relay holds no gap");
    open.commit().await.expect("committed");
    assert_eq!(store.status().await.expect("asked").pending, 2);
    db.drop().await;
}

/// At REPEATABLE READ, the look at a row that is not there would lock the place where it would be.
///
/// F23: nor does a burial.
#[tokio::test]
async fn a_move_that_waits_blocks_no_writer() {
    let db = Db::new().await;
    let store = store(&db);
    db.run(&insert("a")).await;
    let rows = read(&mut store.reader()).await.rows;
    let lease = lease(&store, "me").await.expect("granted");
    let mut holder = db.pool.begin().await.expect("begun");
    holder.execute("SELECT seq FROM backstop_outbox WHERE seq = 1 FOR UPDATE").await.expect("locked");
    let absent = DeadRow { seq: 999, ..dead_row(&rows[0])[0].clone() };
    let moving = tokio::spawn({
        let (store, present) = (store.clone(), dead_row(&rows[0])[0].clone());
        async move { store.bury(&lease, &[absent, present]).await.expect("asked") }
    });
    db.until_waiting(1).await;
    let written = tokio::time::timeout(Duration::from_secs(5), db.run(&insert("b"))).await;
    written.expect("the relay holds no gap");
    holder.rollback().await.expect("rolled back");
    assert!(moving.await.expect("joined"));
    db.drop().await;
}

/// F5: the token is checked by the database.
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
    let OutboxStatus { pending, oldest, dead, .. } = store.status().await.expect("asked");
    assert_eq!((pending, oldest.is_some(), dead), (1, true, 1));
    assert_eq!(store.buried(&DeadRowFilter::default(), 10).await.expect("read")[0].reason, "too-large");
    db.drop().await;
}

/// F5: also when it was just about to.
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
    db.until_waiting(1).await;
    takeover.commit().await.expect("committed");
    assert!(!burying.await.expect("joined"));
    assert_eq!(store.status().await.expect("asked").dead, 0);
    db.drop().await;
}

/// F7, F9: by the database's clock, whatever the relays' clocks say.
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
        let stale = Lease { token: winner.token - 1, ..winner.clone() };
        store.release(&stale).await.expect("nothing");
        assert!(lease(&store, "other").await.is_none());
        store.release(&winner).await.expect("released");
    }
    db.drop().await;
}
