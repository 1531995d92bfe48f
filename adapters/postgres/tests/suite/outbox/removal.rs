//! Rows leave by number and id, and to the dead rows only by the hand of the lease's owner.

use std::time::Duration;

use backstop_core::dead_rows::{DeadRowFilter, DeadRows};
use backstop_core::lease::{Lease, Leases};
use backstop_core::outbox::{OutboxRow, OutboxStatus, OutboxStore, RowId};
use sqlx::Executor;

use super::{dead_row, insert, lease, read, store};
use crate::support::{Db, until};

/// Deletes rows of an outbox that has started over since, and perhaps one with a number far from theirs.
async fn rows_under_old_numbers_stay(far: Option<RowId>) {
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
    let published = old.iter().map(OutboxRow::row_id).chain(far).collect::<Vec<_>>();
    store.delete(&published).await.expect("deleted");
    let left = read(&mut store.reader()).await.rows;
    assert_eq!(left.iter().map(|row| row.seq).collect::<Vec<_>>(), [1], "row 2 has the same name");
    assert_ne!(left[0].message.id, old[0].message.id);
    let lease = lease(&store, "me").await.expect("granted");
    assert!(store.bury(&lease, &dead_row(&old[0])).await.expect("asked"));
    assert_eq!(db.number("SELECT count(*) FROM backstop_outbox").await, 1);
    db.drop().await;
}

/// F17: a number may come twice, an id does not.
#[tokio::test]
async fn rows_that_came_under_old_numbers_are_not_deleted() {
    rows_under_old_numbers_stay(None).await;
}

#[tokio::test]
async fn rows_that_came_under_old_numbers_are_not_deleted_with_one_far_away() {
    rows_under_old_numbers_stay(Some(RowId { seq: i64::MAX, id: "far".into() })).await;
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
