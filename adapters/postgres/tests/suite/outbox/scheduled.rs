//! Scheduled rows among concurrent transactions.

use std::time::Duration;

use backstop_core::scheduled::ScheduledRows;
use sqlx::Executor;

use super::{lease, read, store};
use crate::support::{Db, until};

const ROWS: u32 = 1_000;
const BYTES: u64 = 1 << 20;

#[tokio::test]
async fn a_row_that_names_only_what_it_must_comes_when_it_is_due() {
    let db = Db::new().await;
    let (store, later) = (store(&db), "now() + interval '300 ms'");
    let lease = lease(&store, "me").await.expect("granted");
    for (when, id) in [(later, "soon"), ("'infinity'", "never"), ("'-infinity'", "at once")] {
        db.run(&format!(
            "INSERT INTO backstop_outbox_scheduled (publish_after, destination, payload, key) \
             VALUES ({when}, 'orders', 'x', '{id}')"
        ))
        .await;
    }
    let mut reader = backstop_core::outbox::OutboxStore::reader(&store);
    let mut keys = Vec::new();
    until("two are due", || async {
        store.promote(&lease, ROWS, BYTES).await.expect("asked").is_some()
            && db.number("SELECT count(*) FROM backstop_outbox_scheduled").await == 1
    })
    .await;
    for row in read(&mut reader).await.rows {
        assert_eq!((row.destination.name.as_str(), row.message.body.as_deref()), ("orders", Some(&b"x"[..])));
        assert!(uuid::Uuid::try_parse(&row.message.id).is_ok(), "{}", row.message.id);
        keys.extend(row.message.key);
    }
    assert_eq!(keys, ["at once", "soon"]);
    db.drop().await;
}

#[tokio::test]
async fn a_takeover_waits_for_nobody_and_the_stale_owner_moves_nothing() {
    let db = Db::new().await;
    let store = store(&db);
    let stale = lease(&store, "old").await.expect("granted");
    db.run("INSERT INTO backstop_outbox_scheduled (publish_after, destination) VALUES (now(), 'orders')")
        .await;
    let mut takeover = db.pool.begin().await.expect("begun");
    takeover
        .execute("UPDATE backstop_lease SET owner = 'new', token = token + 1 WHERE name = 'outbox'")
        .await
        .expect("taken");
    let moving = tokio::spawn({
        let store = store.clone();
        async move { store.promote(&stale, ROWS, BYTES).await.expect("asked") }
    });
    let waits = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%{}%'",
        db.schema
    );
    until("the move waits", || async { db.number(&waits).await > 0 }).await;
    takeover.commit().await.expect("committed");
    assert_eq!(moving.await.expect("joined"), None);
    assert_eq!(db.number("SELECT count(*) FROM backstop_outbox").await, 0);
    db.drop().await;
}

#[tokio::test]
async fn a_row_that_is_being_taken_back_holds_nobody_up() {
    let db = Db::new().await;
    let store = store(&db);
    let lease = lease(&store, "me").await.expect("granted");
    for id in ["a", "b"] {
        db.run(&format!(
            "INSERT INTO backstop_outbox_scheduled (publish_after, destination, id) VALUES (now(), 'orders', '{id}')"
        ))
        .await;
    }
    let mut cancel = db.pool.begin().await.expect("begun");
    cancel.execute("DELETE FROM backstop_outbox_scheduled WHERE id = 'a'").await.expect("deleted");
    let promote = tokio::time::timeout(Duration::from_secs(20), store.promote(&lease, ROWS, BYTES));
    assert_eq!(promote.await.expect("it does not wait").expect("asked"), Some(1));
    cancel.commit().await.expect("committed");
    assert_eq!(store.promote(&lease, ROWS, BYTES).await.expect("asked"), Some(0));
    assert_eq!(db.number("SELECT count(*) FROM backstop_outbox WHERE id = 'b'").await, 1);
    assert_eq!(db.number("SELECT count(*) FROM backstop_outbox").await, 1);
    db.drop().await;
}

#[tokio::test]
async fn the_owner_may_be_refused_and_learns_what_it_lacks() {
    let db = Db::new().await;
    let store = store(&db);
    let lease = lease(&store, "me").await.expect("granted");
    db.run("REVOKE DELETE ON backstop_outbox_scheduled FROM CURRENT_USER").await;
    let error = store.promote(&lease, ROWS, BYTES).await.expect_err("denied");
    assert_eq!(error.kind(), backstop_core::FaultKind::Denied);
    assert!(
        error.hint().is_some_and(|hint| hint.contains("GRANT SELECT, UPDATE, DELETE ON")),
        "{:?}",
        error.hint()
    );
    db.drop().await;
}
