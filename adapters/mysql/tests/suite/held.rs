//! Held messages: order and single effect through failures, crashes and moves.

use std::time::Duration;

use crate::common::{
    CONSUMER, Db, PLACE, envelope, failure, fresh, key, limits, new_held, origin, unit, until,
};
use backstop_core::Via;
use backstop_core::held::{ClaimedHead, Heads, HeldMessages, Holding};
use backstop_core::inbox::{Admission, CommitError, Inbox, Unit};
use backstop_mysql::{MySqlInbox, MySqlTx};
use sqlx::{Executor, Row};

const NOW: Duration = Duration::ZERO;

/// A due head, sound or not.
async fn claim(inbox: &MySqlInbox) -> Option<ClaimedHead<MySqlTx>> {
    match inbox.claim(CONSUMER, limits(), Heads::Sound).await.expect("asked") {
        None => inbox.claim(CONSUMER, limits(), Heads::Doubtful).await.expect("asked"),
        claimed => claimed,
    }
}

async fn hold(inbox: &MySqlInbox, id: &str) -> Holding {
    hold_with(inbox, "k", id).await
}

async fn hold_with(inbox: &MySqlInbox, ordering_key: &str, id: &str) -> Holding {
    let (key, envelope, origin) = (key(id), envelope(id), origin(1));
    let message = new_held(unit(ordering_key, &key), &envelope, &origin);
    inbox.hold(message, &failure(1, NOW)).await.expect("held")
}

async fn append(inbox: &MySqlInbox, id: &str) -> Holding {
    let (key, envelope, origin) = (key(id), envelope(id), origin(1));
    inbox.append(new_held(unit("k", &key), &envelope, &origin)).await.expect("asked")
}

async fn import(inbox: &MySqlInbox, id: &str) -> Holding {
    let (key, envelope, origin) = (key(id), envelope(id), origin(1));
    let message = new_held(unit("k", &key), &envelope, &origin);
    inbox.import(backstop_core::held::NewHeld { via: Via::Door, ..message }).await.expect("asked")
}

#[tokio::test]
async fn a_held_message_keeps_everything() {
    let db = Db::new().await;
    let inbox = db.inbox();
    assert_eq!(hold(&inbox, "1").await, Holding::Stored);
    assert_eq!(hold(&inbox, "1").await, Holding::Stored, "storing twice changes nothing");
    let claimed = claim(&inbox).await.expect("due");
    let head = &claimed.head;
    assert!(!claimed.handled);
    assert_eq!((head.message_key.clone(), head.envelope.clone()), (key("1"), envelope("1")));
    assert_eq!((head.place.as_str(), head.ordering_key.as_slice()), (PLACE, &b"k"[..]));
    assert_eq!((head.origin.clone(), head.via, head.attempts), (origin(1), Via::Live, 1));
    assert_eq!(head.error.as_deref(), Some("it's \\ broken"));
    let summary = inbox.summary(CONSUMER).await.expect("counted");
    assert_eq!(summary.messages, 1);
    assert!(summary.oldest.is_some());
    assert!(claim(&inbox).await.is_none(), "another instance has it");
    inbox.finish(CONSUMER, claimed.tx, &claimed.head).await.expect("finished");
    assert_eq!(inbox.summary(CONSUMER).await.expect("counted").messages, 0);
    assert!(inbox.is_handled(CONSUMER, &key("1")).await.expect("asked"));
    db.drop().await;
}

#[tokio::test]
async fn keys_of_any_bytes_and_length_are_held() {
    let db = Db::new().await;
    let inbox = db.inbox();
    let long: Vec<u8> = (0..200_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let (key, envelope, origin) = (key("1"), envelope("1"), origin(1));
    let unit = Unit { consumer: CONSUMER, place: PLACE, ordering_key: &long, message_key: &key };
    let stored = inbox.hold(new_held(unit, &envelope, &origin), &failure(1, NOW)).await.expect("held");
    assert_eq!(stored, Holding::Stored);
    let claimed = claim(&inbox).await.expect("due");
    assert_eq!(claimed.head.ordering_key, long);
    inbox.finish(CONSUMER, claimed.tx, &claimed.head).await.expect("finished");
    db.drop().await;
}

#[tokio::test]
async fn followers_wait_and_come_in_order() {
    let db = Db::new().await;
    let inbox = db.inbox();
    assert_eq!(append(&inbox, "0").await, Holding::KeyFree);
    hold(&inbox, "1").await;
    let next = inbox.begin(unit("k", &key("2")), limits()).await.expect("asked");
    assert!(matches!(next, Admission::Held));
    assert_eq!(append(&inbox, "2").await, Holding::Stored);
    assert_eq!(import(&inbox, "3").await, Holding::Stored);
    assert_eq!(append(&inbox, "2").await, Holding::Stored, "appending twice changes nothing");
    assert_eq!(hold(&inbox, "4").await, Holding::Stored);
    for id in ["1", "2", "3", "4"] {
        let claimed = claim(&inbox).await.expect("due");
        assert_eq!(claimed.head.message_key, key(id));
        assert!(claim(&inbox).await.is_none(), "its followers wait");
        inbox.finish(CONSUMER, claimed.tx, &claimed.head).await.expect("finished");
    }
    assert_eq!(append(&inbox, "1").await, Holding::AlreadyHandled);
    assert_eq!(import(&inbox, "1").await, Holding::AlreadyHandled);
    assert_eq!(hold(&inbox, "1").await, Holding::AlreadyHandled);
    assert_eq!(import(&inbox, "5").await, Holding::Stored);
    assert_eq!(claim(&inbox).await.expect("due at once").head.message_key, key("5"));
    db.drop().await;
}

#[tokio::test]
async fn a_follower_is_appended_while_its_head_runs() {
    let db = Db::new().await;
    let inbox = db.inbox();
    hold(&inbox, "1").await;
    let claimed = claim(&inbox).await.expect("due");
    let appended = tokio::time::timeout(Duration::from_secs(5), append(&inbox, "2")).await;
    assert_eq!(appended.expect("must not wait for the handler"), Holding::Stored);
    inbox.finish(CONSUMER, claimed.tx, &claimed.head).await.expect("finished");
    assert_eq!(claim(&inbox).await.expect("promoted").head.message_key, key("2"));
    db.drop().await;
}

#[tokio::test]
async fn an_attempt_is_undone_and_rescheduled_under_its_claim() {
    let db = Db::new().await;
    db.run("CREATE TABLE effect (n int NOT NULL)").await;
    let inbox = db.inbox();
    hold(&inbox, "1").await;
    let mut claimed = claim(&inbox).await.expect("due");
    claimed.tx.execute("INSERT INTO effect VALUES (1)").await.expect("written");
    claimed.tx.execute("INSERT INTO effect VALUES (NULL)").await.expect_err("a failure");
    inbox.undo(&mut claimed.tx).await.expect("undone");
    assert!(claim(&inbox).await.is_none(), "the claim stands");
    let later = failure(2, Duration::from_millis(100));
    inbox.reschedule(CONSUMER, Some(claimed.tx), &claimed.head, &later).await.expect("rescheduled");
    assert!(claim(&inbox).await.is_none(), "not due");
    let slot = tokio::sync::Mutex::new(None);
    until("it is due", || async {
        let claimed = claim(&inbox).await;
        let due = claimed.is_some();
        *slot.lock().await = claimed;
        due
    })
    .await;
    let mut claimed = slot.into_inner().expect("due");
    assert_eq!((claimed.head.attempts, claimed.handled), (2, false));
    inbox.undo(&mut claimed.tx).await.expect("undone");
    inbox.finish(CONSUMER, claimed.tx, &claimed.head).await.expect("after its quarantine");
    assert!(!inbox.is_handled(CONSUMER, &key("1")).await.expect("asked"), "given up is not handled");
    assert_eq!(db.number("SELECT count(*) FROM effect").await, 0);
    assert_eq!(db.number("SELECT count(*) FROM backstop_held").await, 0);
    db.drop().await;
}

#[tokio::test]
async fn a_lost_attempt_is_written_once() {
    let db = Db::new().await;
    let inbox = db.inbox();
    hold(&inbox, "1").await;
    let claimed = claim(&inbox).await.expect("due");
    drop(claimed.tx);
    for _ in 0..2 {
        inbox.reschedule(CONSUMER, None, &claimed.head, &failure(2, NOW)).await.expect("written");
    }
    inbox.reschedule(CONSUMER, None, &claimed.head, &failure(9, NOW)).await.expect("nothing to do");
    assert_eq!(claim(&inbox).await.expect("due").head.attempts, 2);
    db.drop().await;
}

#[tokio::test]
async fn a_handler_that_rolls_back_does_not_lose_its_head() {
    let db = Db::new().await;
    let inbox = db.inbox();
    hold(&inbox, "1").await;
    let mut claimed = claim(&inbox).await.expect("due");
    claimed.tx.execute("ROLLBACK").await.expect("rolled back");
    let error = inbox.finish(CONSUMER, claimed.tx, &claimed.head).await.expect_err("found out");
    assert!(matches!(error, CommitError::RolledBack(_)), "{error:?}");
    assert_eq!(db.number("SELECT count(*) FROM backstop_held").await, 1, "the message is still there");
    db.drop().await;
}

#[tokio::test]
async fn a_head_that_was_handled_meanwhile_says_so() {
    let db = Db::new().await;
    let inbox = db.inbox();
    let tx = fresh(&inbox, "1").await;
    hold(&inbox, "1").await;
    hold_with(&inbox, "other", "2").await;
    let claimed = claim(&inbox).await.expect("the other key goes on while this message is busy");
    assert_eq!(claimed.head.message_key, key("2"));
    inbox.finish(CONSUMER, claimed.tx, &claimed.head).await.expect("finished");
    inbox.commit(tx).await.expect("committed");
    db.run("UPDATE backstop_held SET due_at = UTC_TIMESTAMP(6)").await;
    let claimed = claim(&inbox).await.expect("due");
    assert!(claimed.handled);
    inbox.finish(CONSUMER, claimed.tx, &claimed.head).await.expect("finished");
    assert_eq!(db.number("SELECT count(*) FROM backstop_held").await, 0);
    db.drop().await;
}

/// Rows that this connection has gone through one after another.
async fn rows_read(tx: &mut MySqlTx) -> u64 {
    let row = tx.fetch_one("SHOW SESSION STATUS LIKE 'Handler_read_next'").await.expect("counted");
    row.get::<String, _>(1).parse().expect("a number")
}

/// What waits behind a head is not read to find it, nor for a message of another key.
#[tokio::test]
async fn a_key_of_which_nearly_everything_is_held_slows_nobody() {
    const MANY: u64 = 10_000;
    let db = Db::new().await;
    let inbox = db.inbox();
    hold_with(&inbox, "hot", "hot").await;
    for _ in 0..15 {
        let twice = "INSERT INTO backstop_held (consumer, place, ordering_key, message_key, headers, origin, via, state)
                     SELECT consumer, place, ordering_key, CONCAT('/orders|', UUID()), headers, origin, via, 'waiting' FROM backstop_held";
        db.run(twice).await;
    }
    db.run("ANALYZE TABLE backstop_held").await;
    for n in 0..5 {
        let mut tx = fresh(&inbox, &format!("live-{n}")).await;
        assert!(rows_read(&mut tx).await < MANY, "a message, {n}");
        inbox.rollback(tx).await;
        let mut claimed = claim(&inbox).await.expect("due");
        assert_eq!(claimed.head.ordering_key, b"hot");
        assert!(rows_read(&mut claimed.tx).await < MANY, "a head, {n}");
        inbox.finish(CONSUMER, claimed.tx, &claimed.head).await.expect("finished");
    }
    db.drop().await;
}
