//! Rows that are published later: moved when due, once, by the owner.

use std::time::Duration;

use backstop_core::inbox::Inbox;
use backstop_core::lease::Lease;
use backstop_core::outbox::{OutboxRow, OutboxStore};
use backstop_core::{Destination, Outgoing};
use chrono::{DateTime, TimeDelta, Utc};

use super::StoreHarness;
use super::outbox::{ids, outgoing, read_rows};
use super::outbox_fencing::lease;
use super::sample::{begin, sample};
use crate::conformance::eventually;

/// More than any case has.
const ROWS: u32 = 1_000;
/// More than any case has.
const BYTES: u64 = 16 << 20;

fn ago(seconds: i64) -> DateTime<Utc> {
    Utc::now() - TimeDelta::seconds(seconds)
}

async fn schedule<H: StoreHarness>(harness: &H, row: Outgoing, at: DateTime<Utc>) {
    let store = harness.store();
    let mut tx = begin(&store, &sample("scheduling", &row.message.id)).await;
    harness.enqueue_at(&mut tx, row, at).await;
    store.commit(tx).await.expect("the commit is proved");
}

async fn owner(outbox: &dyn OutboxStore) -> Lease {
    lease(outbox, "a", Duration::from_secs(60)).await
}

async fn promote(outbox: &dyn OutboxStore, lease: &Lease) -> Option<u64> {
    outbox.promote(lease, ROWS, BYTES).await.expect("the database answers")
}

async fn counts(outbox: &dyn OutboxStore) -> (u64, u64) {
    let status = outbox.status().await.expect("the database answers");
    (status.pending, status.scheduled)
}

/// A row whose time has passed moves into the outbox, and is not pending before.
pub async fn a_due_row_is_promoted<H: StoreHarness>(harness: &H) {
    let outbox = harness.outbox();
    let mut reader = outbox.reader();
    schedule(harness, outgoing("orders", "tea", "1"), ago(3_600)).await;
    assert_eq!(counts(&*outbox).await, (0, 1));
    let lease = owner(&*outbox).await;
    assert_eq!(promote(&*outbox, &lease).await, Some(1));
    assert_eq!(promote(&*outbox, &lease).await, Some(0));
    assert_eq!(counts(&*outbox).await, (1, 0));
    assert_eq!(ids(&read_rows(&mut *reader, 1).await), ["1"]);
    let age = outbox.status().await.expect("the database answers").oldest;
    assert!(age.is_some_and(|age| age < Duration::from_secs(60)), "it waits since it was moved: {age:?}");
}

/// A row stays until its time comes by the database's clock, and the status knows when that is.
pub async fn a_row_waits_for_its_time<H: StoreHarness>(harness: &H) {
    let outbox = harness.outbox();
    let (soon, late) = (Utc::now() + TimeDelta::milliseconds(500), Utc::now() + TimeDelta::days(400));
    schedule(harness, outgoing("orders", "tea", "late"), late).await;
    schedule(harness, outgoing("orders", "tea", "soon"), soon).await;
    let due = outbox.status().await.expect("the database answers").next_due.expect("a row waits");
    assert!((due - soon).abs() < TimeDelta::milliseconds(2), "{due} and not {soon}");
    let lease = owner(&*outbox).await;
    eventually(|| async { promote(&*outbox, &lease).await.filter(|rows| *rows > 0) }).await;
    assert!(Utc::now() >= soon - TimeDelta::milliseconds(2), "before its time");
    assert_eq!(counts(&*outbox).await, (1, 1));
    assert_eq!(ids(&read_rows(&mut *outbox.reader(), 1).await), ["soon"]);
}

/// A row is scheduled if and only if its transaction committed.
pub async fn a_rolled_back_schedule_never_comes<H: StoreHarness>(harness: &H) {
    let (store, outbox) = (harness.store(), harness.outbox());
    let mut tx = begin(&store, &sample("scheduling", "undone")).await;
    harness.enqueue_at(&mut tx, outgoing("orders", "tea", "undone"), ago(1)).await;
    store.rollback(tx).await;
    assert_eq!(promote(&*outbox, &owner(&*outbox).await).await, Some(0));
    assert_eq!(counts(&*outbox).await, (0, 0));
}

/// The earliest first; of those with the same time the one that was written first.
pub async fn rows_are_promoted_in_the_order_of_their_times<H: StoreHarness>(harness: &H) {
    let outbox = harness.outbox();
    let base = ago(1_000);
    for (id, after) in [("4", 30), ("2", 20), ("1", 10), ("3", 20)] {
        schedule(harness, outgoing("orders", "tea", id), base + TimeDelta::seconds(after)).await;
    }
    assert_eq!(promote(&*outbox, &owner(&*outbox).await).await, Some(4));
    assert_eq!(ids(&read_rows(&mut *outbox.reader(), 4).await), ["1", "2", "3", "4"]);
}

/// No more rows than asked for, and the rest the next time.
pub async fn promotion_keeps_to_its_rows<H: StoreHarness>(harness: &H) {
    let outbox = harness.outbox();
    let lease = owner(&*outbox).await;
    for (id, age) in [("1", 30), ("2", 20), ("3", 10)] {
        schedule(harness, outgoing("orders", "tea", id), ago(age)).await;
    }
    for (expected, left) in [(2, 1), (1, 0)] {
        assert_eq!(outbox.promote(&lease, 2, BYTES).await.expect("the database answers"), Some(expected));
        assert_eq!(counts(&*outbox).await.1, left);
    }
    assert_eq!(ids(&read_rows(&mut *outbox.reader(), 3).await), ["1", "2", "3"]);
}

/// No more bytes than asked for, but one row always.
pub async fn promotion_keeps_to_its_bytes<H: StoreHarness>(harness: &H) {
    let outbox = harness.outbox();
    let lease = owner(&*outbox).await;
    for (id, age) in [("1", 30), ("2", 20), ("3", 10)] {
        let mut row = outgoing("orders", "tea", id);
        row.message.body = Some(vec![b'x'; 10_000].into());
        schedule(harness, row, ago(age)).await;
    }
    for (bytes, expected) in [(10, 1), (15_000, 1), (25_000, 1)] {
        let moved = outbox.promote(&lease, ROWS, bytes).await.expect("the database answers");
        assert_eq!(moved, Some(expected), "within {bytes} bytes");
    }
    assert_eq!(ids(&read_rows(&mut *outbox.reader(), 3).await), ["1", "2", "3"]);
}

/// Several promotions at once, as of an owner that asks again after a timeout, move each row once.
pub async fn promoted_at_once_is_promoted_once<H: StoreHarness>(harness: &H) {
    const COUNT: usize = 20;
    let outbox = harness.outbox();
    let lease = owner(&*outbox).await;
    for n in 0..COUNT {
        schedule(harness, outgoing("orders", "tea", &n.to_string()), ago(100)).await;
    }
    let stores: Vec<_> = (0..4).map(|_| harness.outbox()).collect();
    let each = stores.iter().map(|store| promote(&**store, &lease));
    let moved: u64 = futures_util::future::join_all(each).await.into_iter().flatten().sum();
    let rest = promote(&*outbox, &lease).await.expect("the lease is ours");
    assert_eq!(moved + rest, COUNT as u64);
    assert_eq!(counts(&*outbox).await, (COUNT as u64, 0));
}

/// An owner whose lease another has taken over moves nothing, and learns it; with an old token of its own as well.
pub async fn a_stale_owner_promotes_nothing<H: StoreHarness>(harness: &H) {
    let (outbox, other) = (harness.outbox(), harness.outbox());
    let stale = lease(&*outbox, "a", Duration::from_millis(50)).await;
    let between = lease(&*other, "b", Duration::from_secs(60)).await;
    schedule(harness, outgoing("orders", "tea", "1"), ago(10)).await;
    assert_eq!(promote(&*outbox, &stale).await, None);
    outbox.release(&between).await.expect("given back");
    let current = owner(&*outbox).await;
    for old in [&stale, &between] {
        assert_eq!(promote(&*outbox, old).await, None);
    }
    assert_eq!(counts(&*outbox).await, (0, 1));
    assert_eq!(promote(&*other, &current).await, Some(1));
}

/// A message comes out as it went in.
pub async fn a_scheduled_message_survives<H: StoreHarness>(harness: &H) {
    let outbox = harness.outbox();
    let mut sent = outgoing("orders", "чай", "full");
    sent.destination = Destination::exchange("shop", "order.placed");
    sent.message.subject = Some("order 7".to_owned());
    for value in ["b", "a", ""] {
        sent.message.headers.append("tenant", value);
    }
    sent.message.headers.append_null("absent");
    sent.message.body = Some((0..=255).collect::<Vec<u8>>().into());
    schedule(harness, sent.clone(), ago(10)).await;
    assert_eq!(promote(&*outbox, &owner(&*outbox).await).await, Some(1));
    let OutboxRow { destination, message, .. } = read_rows(&mut *outbox.reader(), 1).await.remove(0);
    assert_eq!(destination, sent.destination);
    assert_eq!(
        (&message.id, &message.key, &message.body),
        (&sent.message.id, &sent.message.key, &sent.message.body)
    );
    assert_eq!((&message.subject, &message.kind), (&sent.message.subject, &sent.message.kind));
    for (name, value) in sent.message.headers.iter().filter(|(name, _)| *name == "absent") {
        assert_eq!(
            (message.headers.iter().find(|(other, _)| *other == name), value),
            (Some((name, None)), None)
        );
    }
    let tenants: Vec<_> = message
        .headers
        .iter()
        .filter(|(name, _)| *name == "tenant")
        .map(|(_, value)| value.cloned())
        .collect();
    assert_eq!(tenants, [Some("b".into()), Some("a".into()), Some("".into())]);
}
