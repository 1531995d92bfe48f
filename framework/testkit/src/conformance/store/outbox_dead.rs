//! Dead rows in an operator's hands: retried once, discarded for good.

use std::time::Duration;

use backstop_core::Destination;
use backstop_core::dead_rows::{BuriedRow, DeadGroup, DeadRowFilter};
use backstop_core::outbox::{DeadRow, OutboxRow, OutboxStore, RowId};

use super::StoreHarness;
use super::outbox::{enqueue, enqueue_from, enqueue_many, ids, outgoing, read_rows};
use super::outbox_fencing::lease;
use crate::conformance::needs;

/// More than any case has.
const MANY: u32 = 1_000;

fn all() -> DeadRowFilter {
    DeadRowFilter::default()
}

async fn bury(outbox: &dyn OutboxStore, rows: &[OutboxRow], reason: &str) {
    let lease = lease(outbox, "a", Duration::from_secs(60)).await;
    let dead = |row: &OutboxRow| {
        let RowId { seq, id } = row.row_id();
        DeadRow { seq, id, reason: reason.to_owned(), error: "no".to_owned() }
    };
    let dead: Vec<DeadRow> = rows.iter().map(dead).collect();
    assert!(outbox.bury(&lease, &dead).await.expect("the database answers"));
}

/// Rows `1` to `count`, dead.
async fn dead_rows<H: StoreHarness>(harness: &H, count: usize) -> Vec<OutboxRow> {
    let outbox = harness.outbox();
    enqueue_many(harness, count).await;
    let rows = read_rows(&mut *outbox.reader(), count).await;
    bury(&*outbox, &rows, "too-large").await;
    rows
}

async fn buried(outbox: &dyn OutboxStore, filter: &DeadRowFilter) -> Vec<BuriedRow> {
    outbox.buried(filter, MANY).await.expect("the database answers")
}

async fn retry(outbox: &dyn OutboxStore, filter: &DeadRowFilter) -> u64 {
    outbox.retry_buried(filter, MANY).await.expect("the database answers")
}

async fn counts(outbox: &dyn OutboxStore) -> (u64, u64) {
    let status = outbox.status().await.expect("the database answers");
    (status.pending, status.dead)
}

fn dead_ids(rows: &[BuriedRow]) -> Vec<&str> {
    rows.iter().map(|dead| dead.row.message.id.as_str()).collect()
}

/// Retried rows come again under new numbers, in their old order, to the letter.
pub async fn a_retried_row_comes_again<H: StoreHarness>(harness: &H) {
    let outbox = harness.outbox();
    let before = dead_rows(harness, 3).await;
    let mut reader = outbox.reader();
    enqueue(harness, outgoing("orders", "tea", "later")).await;
    let later = read_rows(&mut *reader, 1).await;
    assert_eq!(retry(&*outbox, &all()).await, 3);
    let after = read_rows(&mut *reader, 3).await;
    assert_eq!(ids(&after), ["1", "2", "3"]);
    assert!(after[0].seq > later[0].seq && after.is_sorted_by(|a, b| a.seq < b.seq), "numbers are new");
    for (before, after) in before.iter().zip(&after) {
        assert_eq!(&OutboxRow { seq: after.seq, ..before.clone() }, after, "all else is as it was");
    }
    assert_eq!(counts(&*outbox).await, (4, 0));
    let status = outbox.status().await.expect("the database answers");
    assert!(status.oldest.is_some_and(|age| age < Duration::from_secs(60)));
}

/// Headers, key, times and a body of any bytes survive the way to the dead and back.
pub async fn a_retried_message_survives<H: StoreHarness>(harness: &H) {
    let outbox = harness.outbox();
    let mut sent = outgoing("orders", "чай", "full");
    sent.destination = Destination::exchange("shop", "order.placed");
    sent.message.subject = Some("order 7".to_owned());
    for value in ["b", "a", ""] {
        sent.message.headers.append("tenant", value);
    }
    sent.message.headers.append_null("absent");
    sent.message.body = Some((0..=255).collect::<Vec<u8>>().into());
    enqueue(harness, sent).await;
    let mut bare = outgoing("orders", "tea", "bare");
    (bare.message.key, bare.message.body) = (None, None);
    (bare.message.time, bare.message.content_type) = (None, None);
    enqueue(harness, bare).await;
    let before = read_rows(&mut *outbox.reader(), 2).await;
    bury(&*outbox, &before, "too-large").await;
    assert_eq!(retry(&*outbox, &all()).await, 2);
    for (before, after) in before.into_iter().zip(read_rows(&mut *outbox.reader(), 2).await) {
        assert_eq!(OutboxRow { seq: after.seq, ..before }, after);
    }
}

/// Retrying twice moves once, whoever does it, one after another or at the same time.
pub async fn retry_twice_is_once<H: StoreHarness>(harness: &H) {
    const ROWS: usize = 20;
    let outbox = harness.outbox();
    dead_rows(harness, ROWS).await;
    let stores: Vec<_> = (0..4).map(|_| harness.outbox()).collect();
    let filter = all();
    let moved = futures_util::future::join_all(stores.iter().map(|store| retry(&**store, &filter))).await;
    assert_eq!(moved.iter().sum::<u64>(), ROWS as u64, "{moved:?}");
    assert_eq!(retry(&*outbox, &filter).await, 0);
    assert_eq!(counts(&*outbox).await, (ROWS as u64, 0));
    let rows = read_rows(&mut *outbox.reader(), ROWS).await;
    let mut seen = ids(&rows);
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), ROWS, "a row is there twice");
}

/// A row that dies again after its retry is dead once, under its new number; a retry of what was dead before leaves
/// it alone.
pub async fn a_retried_row_dies_again<H: StoreHarness>(harness: &H) {
    let outbox = harness.outbox();
    let before = dead_rows(harness, 2).await;
    let seen = buried(&*outbox, &all()).await;
    let looked_at = DeadRowFilter { up_to: seen.iter().map(|dead| dead.n).max(), ..all() };
    assert_eq!(outbox.retry_buried(&looked_at, 1).await.expect("the database answers"), 1);
    let again = read_rows(&mut *outbox.reader(), 1).await;
    assert_eq!(ids(&again), ["1"]);
    bury(&*outbox, &again, "too-large").await;
    // The same burial once more, and one under the old number: both find nothing.
    bury(&*outbox, &[again[0].clone(), before[0].clone()], "too-large").await;
    assert_eq!(counts(&*outbox).await, (0, 2));
    assert_eq!(retry(&*outbox, &looked_at).await, 1, "what died since is not meant");
    let dead = buried(&*outbox, &all()).await;
    assert_eq!((dead_ids(&dead), dead[0].row.seq), (vec!["1"], again[0].seq));
    assert!(dead[0].n > seen[1].n);
}

/// A row whose id waits in the outbox already is another row: both are there, each under its number.
pub async fn an_id_that_waits_already_is_no_hindrance<H: StoreHarness>(harness: &H) {
    let outbox = harness.outbox();
    dead_rows(harness, 1).await;
    enqueue_from(harness, "again", outgoing("orders", "tea", "1")).await;
    assert_eq!(retry(&*outbox, &all()).await, 1);
    let rows = read_rows(&mut *outbox.reader(), 2).await;
    assert_eq!(ids(&rows), ["1", "1"]);
    outbox.delete(&[rows[0].row_id()]).await.expect("deleted");
    let left = read_rows(&mut *outbox.reader(), 1).await;
    assert_eq!(left[0].seq, rows[1].seq);
}

/// Each part of a filter narrows it, for listing, counting, retrying and discarding alike.
pub async fn filters_narrow_dead_rows<H: StoreHarness>(harness: &H) {
    let outbox = harness.outbox();
    let orders = dead_rows(harness, 3).await;
    enqueue(harness, outgoing("returns", "tea", "4")).await;
    let returns = read_rows(&mut *outbox.reader(), 1).await;
    bury(&*outbox, &returns, "invalid").await;
    let of = |destination: &str| DeadRowFilter { destination: Some(destination.to_owned()), ..all() };
    let seqs = DeadRowFilter { seqs: vec![orders[2].seq, returns[0].seq, i64::MAX], ..all() };
    let both = DeadRowFilter { reason: Some("too-large".to_owned()), ..seqs.clone() };
    for (filter, expected) in [
        (&seqs, &["3", "4"][..]),
        (&of("orders"), &["1", "2", "3"]),
        (&of("ORDERS"), &[]),
        (&both, &["3"]),
        (&DeadRowFilter { reason: Some("invalid".to_owned()), ..of("orders") }, &[]),
    ] {
        assert_eq!(dead_ids(&buried(&*outbox, filter).await), expected, "{filter:?}");
        let groups = outbox.buried_groups(filter).await.expect("the database answers");
        assert_eq!(groups.iter().map(|group| group.rows).sum::<u64>(), expected.len() as u64);
    }
    let groups = outbox.buried_groups(&all()).await.expect("the database answers");
    let shown: Vec<_> = groups
        .iter()
        .map(|DeadGroup { destination, reason, rows, .. }| (&**destination, &**reason, *rows))
        .collect();
    assert_eq!(shown, [("orders", "too-large", 3), ("returns", "invalid", 1)]);
    assert_eq!(groups[1].last, buried(&*outbox, &of("returns")).await[0].n);
    assert_eq!(retry(&*outbox, &both).await, 1);
    assert_eq!(outbox.discard_buried(&of("returns"), MANY).await.expect("the database answers"), 1);
    assert_eq!(dead_ids(&buried(&*outbox, &all()).await), ["1", "2"]);
    assert_eq!(counts(&*outbox).await, (1, 2));
}

/// No more move or vanish than asked for, the lowest numbers first.
pub async fn dead_rows_move_in_batches<H: StoreHarness>(harness: &H) {
    let outbox = harness.outbox();
    dead_rows(harness, 5).await;
    let filter = all();
    assert_eq!(outbox.retry_buried(&filter, 2).await.expect("the database answers"), 2);
    assert_eq!(dead_ids(&buried(&*outbox, &filter).await), ["3", "4", "5"]);
    assert_eq!(outbox.discard_buried(&filter, 1).await.expect("the database answers"), 1);
    assert_eq!(dead_ids(&buried(&*outbox, &filter).await), ["4", "5"]);
    let rows = read_rows(&mut *outbox.reader(), 2).await;
    assert_eq!(ids(&rows), ["1", "2"]);
}

/// A row that is no message is no message after its retry either, and dies again.
pub async fn an_unreadable_row_stays_unreadable<H: StoreHarness>(harness: &H) {
    needs!(H::CAPABILITIES, unreadable_rows);
    let outbox = harness.outbox();
    harness.enqueue_unreadable("orders").await;
    let mut reader = outbox.reader();
    let lease = lease(&*outbox, "a", Duration::from_secs(60)).await;
    for _ in 0..2 {
        let claimed = reader.read(10, 1 << 20).await.expect("the database answers");
        assert_eq!((claimed.rows.len(), claimed.unreadable.len()), (0, 1));
        assert!(outbox.bury(&lease, &claimed.unreadable).await.expect("the database answers"));
        assert_eq!(retry(&*outbox, &all()).await, 1);
    }
}
