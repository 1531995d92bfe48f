//! What a row carries, and which rows carry no message.

use backstop_core::dead_rows::{DeadRowFilter, DeadRows};
use backstop_core::outbox::OutboxStore;
use backstop_core::{Destination, FaultKind, Message, Outgoing};
use backstop_postgres::PgOutbox;
use sqlx::AssertSqlSafe;

use super::{lease, read, store};
use crate::support::{Db, fresh};

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
    let buried = store.buried(&DeadRowFilter::default(), 10).await.expect("read");
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
    let buried = store.buried(&DeadRowFilter::default(), 10).await.expect("read");
    assert_eq!(buried.len(), 4);
    assert!(buried.iter().all(|row| row.row.message.time.is_none()));
    db.drop().await;
}
