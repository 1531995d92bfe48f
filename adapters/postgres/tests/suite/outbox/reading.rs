//! The order and the bounds of reads, and the gaps that rows may still come into.

use std::time::Duration;

use backstop_core::Destination;
use backstop_core::outbox::{OutboxRow, OutboxStore, Reread, RowId};
use sqlx::{AssertSqlSafe, Executor};

use super::{MEGA, insert, read, seqs, store};
use crate::support::Db;

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

/// F13, F14: a number that is missing is waited for exactly as long as somebody may still commit it.
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

/// F17, F26: after a restore nothing is taken for read.
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

/// F14: any number of rollbacks.
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
