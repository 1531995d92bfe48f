//! The outbox: every committed row, in order, once.

use backstop_core::inbox::Inbox;
use backstop_core::outbox::{Claimed, OutboxReader, OutboxRow, Reread, RowId};
use backstop_core::{Destination, Message, Outgoing};
use bytes::Bytes;

use super::sample::*;
use super::{StoreHarness, TxOf};
use crate::conformance::{eventually, needs};

/// Rows that a read may bring.
const ROWS: usize = 100;
/// Bytes that a read may bring.
const BYTES: usize = 16 << 20;

pub(super) fn outgoing(destination: &str, key: &str, id: &str) -> Outgoing {
    let message = Message::new("stock.reserved").source("/stock").id(id).key(key.to_owned());
    Outgoing::to(destination, message.body("text/plain", format!("body of {id}")))
}

/// A transaction of an application, open.
async fn open<H: StoreHarness>(store: &H::Store, name: &str) -> TxOf<H> {
    begin(store, &sample(name, name)).await
}

/// Commits one row.
pub(super) async fn enqueue<H: StoreHarness>(harness: &H, row: Outgoing) {
    let of = row.message.id.clone();
    enqueue_from(harness, &of, row).await;
}

/// Commits one row in the transaction of that name: each name can be used once.
pub(super) async fn enqueue_from<H: StoreHarness>(harness: &H, name: &str, row: Outgoing) {
    let store = harness.store();
    let mut tx = open::<H>(&store, name).await;
    harness.enqueue(&mut tx, row).await;
    store.commit(tx).await.expect("the commit is proved");
}

/// Commits rows `1` to `count` of key `tea` to `orders`.
pub(super) async fn enqueue_many<H: StoreHarness>(harness: &H, count: usize) {
    for n in 1..=count {
        enqueue(harness, outgoing("orders", "tea", &n.to_string())).await;
    }
}

async fn read(reader: &mut dyn OutboxReader, rows: usize, bytes: usize) -> Claimed {
    reader.read(rows, bytes).await.expect("the database answers")
}

/// Reads until `count` rows have come.
pub(super) async fn read_rows(reader: &mut dyn OutboxReader, count: usize) -> Vec<OutboxRow> {
    let mut rows = Vec::new();
    while rows.len() < count {
        let claimed = read(reader, ROWS, BYTES).await;
        assert!(claimed.unreadable.is_empty(), "{:?}", claimed.unreadable);
        if claimed.rows.is_empty() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        rows.extend(claimed.rows);
    }
    rows
}

pub(super) fn ids(rows: &[OutboxRow]) -> Vec<&str> {
    rows.iter().map(|row| row.message.id.as_str()).collect()
}

async fn reread(reader: &mut dyn OutboxReader, key: Option<&'static str>, from: i64) -> Claimed {
    let key = key.map(|key| Bytes::from_static(key.as_bytes()));
    let what = Reread { destination: Destination::new("orders"), key, from };
    reader.reread(&what, ROWS, BYTES).await.expect("the database answers")
}

/// Nothing more comes for a few reads.
async fn assert_nothing_more(reader: &mut dyn OutboxReader) {
    for _ in 0..3 {
        let claimed = read(reader, ROWS, BYTES).await;
        assert_eq!(ids(&claimed.rows), [""; 0]);
    }
}

/// Rows come in the order of their numbers, which is the order in which one writer wrote them.
pub async fn rows_come_in_order<H: StoreHarness>(harness: &H) {
    enqueue_many(harness, 5).await;
    let rows = read_rows(&mut *harness.outbox().reader(), 5).await;
    assert_eq!(ids(&rows), ["1", "2", "3", "4", "5"]);
    assert!(rows.is_sorted_by(|a, b| a.seq < b.seq));
}

/// A row that was returned is not returned again, though it is still pending.
pub async fn rows_come_once<H: StoreHarness>(harness: &H) {
    let mut reader = harness.outbox().reader();
    enqueue_many(harness, 2).await;
    read_rows(&mut *reader, 2).await;
    assert_nothing_more(&mut *reader).await;
    enqueue(harness, outgoing("orders", "tea", "3")).await;
    assert_eq!(ids(&read_rows(&mut *reader, 1).await), ["3"]);
    assert_nothing_more(&mut *reader).await;
}

/// After a reset the lowest pending row comes first; deleted ones do not come.
pub async fn reset_begins_again<H: StoreHarness>(harness: &H) {
    let (outbox, mut reader) = (harness.outbox(), harness.outbox().reader());
    enqueue_many(harness, 3).await;
    let rows = read_rows(&mut *reader, 3).await;
    outbox.delete(&[rows[0].row_id()]).await.expect("deleted");
    reader.reset();
    assert_eq!(ids(&read_rows(&mut *reader, 2).await), ["2", "3"]);
    assert_nothing_more(&mut *reader).await;
}

/// Two readers do not take rows from each other: who may publish is the lease's business.
pub async fn readers_are_independent<H: StoreHarness>(harness: &H) {
    enqueue_many(harness, 2).await;
    for _ in 0..2 {
        assert_eq!(ids(&read_rows(&mut *harness.outbox().reader(), 2).await), ["1", "2"]);
    }
}

/// F86: every database.
/// A row exists if and only if its transaction committed.
pub async fn a_rolled_back_row_never_comes<H: StoreHarness>(harness: &H) {
    let (store, mut reader) = (harness.store(), harness.outbox().reader());
    let mut tx = open::<H>(&store, "undone").await;
    harness.enqueue(&mut tx, outgoing("orders", "tea", "undone")).await;
    harness.write_effect(&mut tx, "undone").await;
    store.rollback(tx).await;
    let mut tx = open::<H>(&store, "kept").await;
    harness.enqueue(&mut tx, outgoing("orders", "tea", "kept")).await;
    harness.write_effect(&mut tx, "kept").await;
    store.commit(tx).await.expect("the commit is proved");
    assert_eq!(ids(&read_rows(&mut *reader, 1).await), ["kept"]);
    assert_nothing_more(&mut *reader).await;
    assert_eq!((harness.effects("undone").await, harness.effects("kept").await), (0, 1));
}

/// A row of an open transaction is not seen; when it commits late it comes, though higher numbers came before.
///
/// F13: every database.
pub async fn a_row_committed_late_is_not_lost<H: StoreHarness>(harness: &H) {
    needs!(H::CAPABILITIES, concurrent_writers);
    let (store, outbox, mut reader) = (harness.store(), harness.outbox(), harness.outbox().reader());
    let mut slow = open::<H>(&store, "slow").await;
    harness.enqueue(&mut slow, outgoing("orders", "coffee", "late")).await;
    enqueue_many(harness, 3).await;
    let early = read_rows(&mut *reader, 3).await;
    assert_eq!(ids(&early), ["1", "2", "3"]);
    assert_nothing_more(&mut *reader).await;
    let published: Vec<RowId> = early.iter().map(OutboxRow::row_id).collect();
    outbox.delete(&published).await.expect("deleted");
    assert_nothing_more(&mut *reader).await;
    store.commit(slow).await.expect("the commit is proved");
    let late = read_rows(&mut *reader, 1).await;
    assert_eq!(ids(&late), ["late"]);
    assert!(late[0].seq < early[0].seq, "the case needs a lower number");
}

/// Many writers at once, some of whom roll back: every committed row comes once, nothing else.
pub async fn many_writers_lose_nothing<H: StoreHarness>(harness: &H) {
    const WRITERS: usize = 6;
    const EACH: usize = 8;
    let writers = (0..WRITERS).map(|writer| async move {
        let store = harness.store();
        for n in 0..EACH {
            let id = format!("{writer}/{n}");
            let mut tx = open::<H>(&store, &id).await;
            harness.enqueue(&mut tx, outgoing("orders", &writer.to_string(), &id)).await;
            if n % 4 == 3 { store.rollback(tx).await } else { store.commit(tx).await.expect("proved") }
        }
    });
    let mut reader = harness.outbox().reader();
    let expected = WRITERS * EACH * 3 / 4;
    let (rows, _) = futures_util::future::join(
        read_rows(&mut *reader, expected),
        futures_util::future::join_all(writers),
    )
    .await;
    let mut seen = ids(&rows);
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), expected, "a row came twice");
    assert_nothing_more(&mut *reader).await;
}

/// Deleted rows are gone for every reader, and deleting them again is harmless.
pub async fn deleted_rows_are_gone<H: StoreHarness>(harness: &H) {
    let outbox = harness.outbox();
    enqueue_many(harness, 3).await;
    let rows = read_rows(&mut *outbox.reader(), 3).await;
    for _ in 0..2 {
        outbox.delete(&[rows[0].row_id(), rows[1].row_id()]).await.expect("deleted");
    }
    outbox.delete(&[]).await.expect("nothing to delete");
    assert_eq!(ids(&read_rows(&mut *harness.outbox().reader(), 1).await), ["3"]);
    assert_eq!(outbox.status().await.expect("the database answers").pending, 1);
}

/// Ids are whatever a writer likes, and rows are deleted by them.
pub async fn rows_of_any_id_are_deleted<H: StoreHarness>(harness: &H) {
    const IDS: [&str; 12] =
        ["it's", "\"", "\\", "\\'", "a,b", "{}", "NULL", "$1?", "--", "ü🍵", " ", "line\nline"];
    for id in IDS {
        enqueue(harness, outgoing("orders", "tea", id)).await;
    }
    let outbox = harness.outbox();
    let rows = read_rows(&mut *outbox.reader(), IDS.len()).await;
    assert_eq!(ids(&rows), IDS);
    let but_one: Vec<RowId> = rows[..IDS.len() - 1].iter().map(OutboxRow::row_id).collect();
    outbox.delete(&but_one).await.expect("deleted");
    assert_eq!(ids(&read_rows(&mut *harness.outbox().reader(), 1).await), ["line\nline"]);
    assert_eq!(outbox.status().await.expect("the database answers").pending, 1);
}

/// A read brings no more rows than asked for, says that more is there, and goes on behind them.
pub async fn reads_keep_to_their_rows<H: StoreHarness>(harness: &H) {
    let mut reader = harness.outbox().reader();
    enqueue_many(harness, 5).await;
    let first = read(&mut *reader, 2, BYTES).await;
    assert_eq!((ids(&first.rows), first.more), (vec!["1", "2"], true));
    let second = read(&mut *reader, 2, BYTES).await;
    assert_eq!((ids(&second.rows), second.more), (vec!["3", "4"], true));
    assert_eq!(ids(&read_rows(&mut *reader, 1).await), ["5"]);
}

/// A read brings no more bytes than asked for, but one row always.
pub async fn reads_keep_to_their_bytes<H: StoreHarness>(harness: &H) {
    let mut reader = harness.outbox().reader();
    for id in ["1", "2", "3"] {
        let mut row = outgoing("orders", "tea", id);
        row.message.body = Some(Bytes::from(vec![b'x'; 10_000]));
        enqueue(harness, row).await;
    }
    let mut seen = Vec::new();
    while seen.len() < 3 {
        let claimed = read(&mut *reader, ROWS, 15_000).await;
        assert!(claimed.rows.len() <= 1, "over the limit in bytes");
        seen.extend(claimed.rows);
    }
    assert_eq!(ids(&seen), ["1", "2", "3"]);
    reader.reset();
    let alone = read(&mut *reader, ROWS, 10).await;
    assert_eq!(ids(&alone.rows), ["1"], "a row over the limit comes alone");
    assert!(alone.more);
}

/// Rows of a paused destination are read again, from a number on, and only those that came before.
pub async fn a_destination_is_read_again<H: StoreHarness>(harness: &H) {
    let mut reader = harness.outbox().reader();
    enqueue_many(harness, 3).await;
    enqueue(harness, outgoing("returns", "tea", "other")).await;
    let rows = read_rows(&mut *reader, 4).await;
    enqueue(harness, outgoing("orders", "tea", "new")).await;
    assert_eq!(ids(&reread(&mut *reader, None, rows[0].seq).await.rows), ["1", "2", "3"]);
    assert_eq!(ids(&reread(&mut *reader, None, rows[1].seq).await.rows), ["2", "3"]);
    assert_eq!(ids(&read_rows(&mut *reader, 1).await), ["new"], "rereading takes nothing away");
    harness.outbox().delete(&[rows[1].row_id()]).await.expect("deleted");
    assert_eq!(ids(&reread(&mut *reader, None, rows[0].seq).await.rows), ["1", "3", "new"]);
}

/// Rows of a blocked key are read again without those of other keys.
pub async fn a_key_is_read_again<H: StoreHarness>(harness: &H) {
    let mut reader = harness.outbox().reader();
    for (key, id) in [("tea", "1"), ("coffee", "2"), ("tea", "3")] {
        enqueue(harness, outgoing("orders", key, id)).await;
    }
    let rows = read_rows(&mut *reader, 3).await;
    assert_eq!(ids(&reread(&mut *reader, Some("tea"), rows[0].seq).await.rows), ["1", "3"]);
    assert_eq!(ids(&reread(&mut *reader, Some("coffee"), rows[0].seq).await.rows), ["2"]);
    assert_eq!(ids(&reread(&mut *reader, Some("milk"), rows[0].seq).await.rows), [""; 0]);
}

/// The status counts what waits and knows its age.
pub async fn the_status_counts<H: StoreHarness>(harness: &H) {
    let outbox = harness.outbox();
    let empty = outbox.status().await.expect("the database answers");
    assert_eq!((empty.pending, empty.oldest, empty.dead), (0, None, 0));
    enqueue_many(harness, 2).await;
    let age = eventually(|| async {
        let status = outbox.status().await.expect("the database answers");
        assert_eq!((status.pending, status.dead), (2, 0));
        status.oldest.filter(|age| !age.is_zero())
    });
    assert!(age.await < LATER);
}

/// A message comes out of the outbox as it went in: headers in their order per name, bytes, routing key.
pub async fn a_message_survives<H: StoreHarness>(harness: &H) {
    let mut sent = outgoing("orders", "tea", "full");
    sent.destination = Destination::exchange("shop", "order.placed");
    sent.message.headers.append("tenant", "b");
    sent.message.headers.append("tenant", "a");
    sent.message.headers.append("empty", "");
    sent.message.headers.append_null("absent");
    sent.message.headers.append("ключ", "🍵 \" \\");
    sent.message.body = Some((0..=255).collect::<Vec<u8>>().into());
    enqueue(harness, sent.clone()).await;
    let rows = read_rows(&mut *harness.outbox().reader(), 1).await;
    let found = &rows[0].message;
    assert_eq!(rows[0].destination, sent.destination);
    assert_eq!(
        (&found.id, &found.source, &found.kind),
        (&sent.message.id, &sent.message.source, &sent.message.kind)
    );
    assert_eq!((&found.key, &found.content_type), (&sent.message.key, &sent.message.content_type));
    assert_eq!(found.body, sent.message.body);
    for name in ["tenant", "empty", "absent", "ключ"] {
        let values = |message: &Message| -> Vec<Option<Bytes>> {
            let named = message.headers.iter().filter(|(other, _)| *other == name);
            named.map(|(_, value)| value.cloned()).collect()
        };
        assert_eq!(values(found), values(&sent.message), "{name}");
    }
}

/// A message without key, body, source and kind has none afterwards; an empty body is not a tombstone.
pub async fn absent_fields_stay_absent<H: StoreHarness>(harness: &H) {
    let mut bare = outgoing("orders", "tea", "bare");
    bare.message.key = None;
    bare.message.body = None;
    bare.message.content_type = None;
    bare.message.source = String::new();
    enqueue(harness, bare).await;
    let mut empty = outgoing("orders", "tea", "empty");
    empty.message.body = Some(Bytes::new());
    enqueue(harness, empty).await;
    let rows = read_rows(&mut *harness.outbox().reader(), 2).await;
    let found = &rows[0].message;
    assert_eq!((&found.key, &found.body, &found.content_type), (&None, &None, &None));
    assert_eq!(found.source, "");
    assert_eq!(rows[1].message.body, Some(Bytes::new()));
}

/// Rows that cannot be read as messages are reported with their number, and do not stop the others.
pub async fn unreadable_rows_are_reported<H: StoreHarness>(harness: &H) {
    needs!(H::CAPABILITIES, unreadable_rows);
    let mut reader = harness.outbox().reader();
    enqueue(harness, outgoing("orders", "tea", "1")).await;
    harness.enqueue_unreadable("orders").await;
    enqueue(harness, outgoing("orders", "tea", "2")).await;
    let (mut rows, mut unreadable) = (Vec::new(), Vec::new());
    while rows.len() < 2 || unreadable.is_empty() {
        let claimed = read(&mut *reader, ROWS, BYTES).await;
        rows.extend(claimed.rows);
        unreadable.extend(claimed.unreadable);
    }
    assert_eq!(ids(&rows), ["1", "2"]);
    assert_eq!(unreadable.len(), 1);
    assert!(!unreadable[0].reason.is_empty() && !unreadable[0].error.is_empty());
    assert!(read(&mut *reader, ROWS, BYTES).await.unreadable.is_empty(), "reported twice");
}
