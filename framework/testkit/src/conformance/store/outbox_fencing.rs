//! Rows that can never be sent: moved aside by the current owner only.

use std::time::Duration;

use backstop_core::dead_rows::DeadRowFilter;
use backstop_core::lease::Lease;
use backstop_core::outbox::{DeadRow, OutboxRow, OutboxStore, RowId};

use super::StoreHarness;
use super::outbox::{enqueue_many, ids, read_rows};
use crate::conformance::eventually;

fn dead(row: &OutboxRow, error: &str) -> DeadRow {
    let RowId { seq, id } = row.row_id();
    DeadRow { seq, id, reason: "too-large".to_owned(), error: error.to_owned() }
}

pub(super) async fn lease(outbox: &dyn OutboxStore, owner: &str, ttl: Duration) -> Lease {
    let lease =
        eventually(|| async { outbox.acquire("outbox", owner, ttl).await.expect("the database answers") });
    lease.await
}

/// Exactly the rows that are named move, with their reasons; the others stay.
pub async fn bury_moves_exactly_those<H: StoreHarness>(harness: &H) {
    let outbox = harness.outbox();
    enqueue_many(harness, 4).await;
    let rows = read_rows(&mut *outbox.reader(), 4).await;
    let lease = lease(&*outbox, "a", Duration::from_secs(60)).await;
    let moved = [dead(&rows[0], "first"), dead(&rows[2], "second")];
    assert!(outbox.bury(&lease, &moved).await.expect("the database answers"));
    assert_eq!(ids(&read_rows(&mut *outbox.reader(), 2).await), ["2", "4"]);
    let status = outbox.status().await.expect("the database answers");
    assert_eq!((status.pending, status.dead), (2, 2));
    let buried = outbox.buried(&DeadRowFilter::default(), 10).await.expect("the database answers");
    let found: Vec<_> = buried.iter().map(|row| (row.row.message.id.as_str(), row.error.as_str())).collect();
    assert_eq!(found, [("1", "first"), ("3", "second")]);
    assert_eq!(buried[0].row, rows[0], "the row is kept to the letter");
    assert_eq!(buried[0].reason, "too-large");
}

/// Dead rows are listed oldest first, as many as asked for.
pub async fn buried_rows_are_listed<H: StoreHarness>(harness: &H) {
    let outbox = harness.outbox();
    enqueue_many(harness, 3).await;
    let rows = read_rows(&mut *outbox.reader(), 3).await;
    let lease = lease(&*outbox, "a", Duration::from_secs(60)).await;
    for row in &rows {
        assert!(outbox.bury(&lease, &[dead(row, "no")]).await.expect("the database answers"));
    }
    let buried = outbox.buried(&DeadRowFilter::default(), 2).await.expect("the database answers");
    let found: Vec<_> = buried.iter().map(|row| row.row.message.id.as_str()).collect();
    assert_eq!(found, ["1", "2"]);
}

/// Burying twice, or what is no longer there, moves nothing more.
pub async fn bury_twice_is_once<H: StoreHarness>(harness: &H) {
    let outbox = harness.outbox();
    enqueue_many(harness, 1).await;
    let rows = read_rows(&mut *outbox.reader(), 1).await;
    let lease = lease(&*outbox, "a", Duration::from_secs(60)).await;
    for _ in 0..2 {
        assert!(outbox.bury(&lease, &[dead(&rows[0], "no")]).await.expect("the database answers"));
    }
    assert_eq!(outbox.status().await.expect("the database answers").dead, 1);
}

/// An owner whose lease another has taken over moves nothing, and learns it.
///
/// F5: every database.
pub async fn a_stale_owner_moves_nothing<H: StoreHarness>(harness: &H) {
    let (outbox, other) = (harness.outbox(), harness.outbox());
    enqueue_many(harness, 2).await;
    let rows = read_rows(&mut *outbox.reader(), 2).await;
    let stale = lease(&*outbox, "a", Duration::from_millis(50)).await;
    let current = lease(&*other, "b", Duration::from_secs(60)).await;
    let moved = [dead(&rows[0], "no")];
    assert!(!outbox.bury(&stale, &moved).await.expect("the database answers"));
    let status = outbox.status().await.expect("the database answers");
    assert_eq!((status.pending, status.dead), (2, 0));
    assert!(other.bury(&current, &moved).await.expect("the database answers"));
}

/// A token that was current before the same owner lost and regained the lease is stale.
///
/// F5: the fencing token.
pub async fn an_old_token_moves_nothing<H: StoreHarness>(harness: &H) {
    let outbox = harness.outbox();
    enqueue_many(harness, 1).await;
    let rows = read_rows(&mut *outbox.reader(), 1).await;
    let old = lease(&*outbox, "a", Duration::from_millis(50)).await;
    let between = lease(&*outbox, "b", Duration::from_secs(60)).await;
    outbox.release(&between).await.expect("given back");
    let new = lease(&*outbox, "a", Duration::from_secs(60)).await;
    assert!(new.token > old.token);
    assert!(!outbox.bury(&old, &[dead(&rows[0], "no")]).await.expect("the database answers"));
    assert!(outbox.bury(&new, &[dead(&rows[0], "no")]).await.expect("the database answers"));
}

/// An owner that confirmed rows may delete them after it has lost the lease: they are published.
pub async fn a_stale_owner_may_delete<H: StoreHarness>(harness: &H) {
    let outbox = harness.outbox();
    enqueue_many(harness, 1).await;
    let rows = read_rows(&mut *outbox.reader(), 1).await;
    lease(&*outbox, "a", Duration::from_millis(50)).await;
    lease(&*harness.outbox(), "b", Duration::from_secs(60)).await;
    outbox.delete(&[rows[0].row_id()]).await.expect("deleted");
    assert_eq!(outbox.status().await.expect("the database answers").pending, 0);
}

/// A row that came under an old number, as after a fail-over that lost the newest rows, is another row: what is written
/// back for the old one leaves it alone.
///
/// F17: every database.
pub async fn a_row_under_an_old_number_stays<H: StoreHarness>(harness: &H) {
    let outbox = harness.outbox();
    enqueue_many(harness, 3).await;
    let rows = read_rows(&mut *outbox.reader(), 3).await;
    let lease = lease(&*outbox, "a", Duration::from_secs(60)).await;
    let lost = |row: &OutboxRow| RowId { seq: row.seq, id: "lost".into() };
    // The id of the other row does not make up for the number.
    let crossed = RowId { seq: rows[0].seq, id: rows[1].row_id().id };
    outbox.delete(&[lost(&rows[0]), crossed, rows[1].row_id()]).await.expect("deleted");
    let buried = DeadRow { id: "lost".into(), ..dead(&rows[0], "no") };
    assert!(outbox.bury(&lease, &[buried, dead(&rows[2], "no")]).await.expect("the database answers"));
    let status = outbox.status().await.expect("the database answers");
    assert_eq!((status.pending, status.dead), (1, 1));
    assert_eq!(ids(&read_rows(&mut *outbox.reader(), 1).await), ["1"]);
}
