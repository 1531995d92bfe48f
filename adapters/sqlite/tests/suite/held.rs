//! Held messages: order is kept through failures, whoever runs them, and none is left behind.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::common::{File, body, effect, envelope, failure, fresh, key, limits, new_held, origin, unit};
use backstop_core::held::{ClaimedHead, Failure, Heads, HeldMessage, HeldMessages, Holding};
use backstop_core::inbox::{Admission, CommitError, Inbox, Limits};
use backstop_core::{DeadReason, ErrorClass, Via};
use backstop_sqlite::{SqliteInbox, SqliteTx};

const NOW: Duration = Duration::ZERO;
const HOUR: Duration = Duration::from_secs(3_600);

/// A due head, sound or not.
async fn look(inbox: &SqliteInbox, limits: Limits) -> Option<ClaimedHead<SqliteTx>> {
    match inbox.claim("stock", limits, Heads::Sound).await.expect("claim") {
        None => inbox.claim("stock", limits, Heads::Doubtful).await.expect("claim"),
        claimed => claimed,
    }
}

async fn claim(inbox: &SqliteInbox) -> ClaimedHead<SqliteTx> {
    look(inbox, limits()).await.expect("a due head")
}

async fn nothing_due(inbox: &SqliteInbox) -> bool {
    look(inbox, limits()).await.is_none()
}

async fn hold(inbox: &SqliteInbox, ordering_key: &str, id: &str, due_in: Duration) -> Holding {
    let (key, envelope, origin) = (key(id), envelope(id), origin());
    let message = new_held(unit(ordering_key, &key), &envelope, &origin);
    inbox.hold(message, &failure(1, due_in)).await.expect("hold")
}

async fn append(inbox: &SqliteInbox, ordering_key: &str, id: &str) -> Holding {
    let (key, envelope, origin) = (key(id), envelope(id), origin());
    inbox.append(new_held(unit(ordering_key, &key), &envelope, &origin)).await.expect("append")
}

#[tokio::test]
async fn a_held_message_comes_back_to_the_letter() {
    let file = File::new().await;
    let inbox = SqliteInbox::new(file.pool.clone());
    assert_eq!(hold(&inbox, "k", "1", NOW).await, Holding::Stored);
    assert_eq!(hold(&inbox, "k", "1", NOW).await, Holding::Stored, "twice changes nothing");
    let claimed = claim(&inbox).await;
    let head = &claimed.head;
    assert_eq!((&head.envelope, &head.origin), (&envelope("1"), &origin()));
    assert_eq!(
        (head.place.as_str(), &*head.ordering_key, &head.message_key),
        ("orders", &b"k"[..], &key("1"))
    );
    assert_eq!((head.attempts, head.class, head.via), (1, Some(ErrorClass::Transient), Via::Live));
    assert_eq!(head.error.as_deref(), Some("out of stock"));
    assert!(head.age < Duration::from_secs(60) && !claimed.handled);
    inbox.finish("stock", claimed.tx, &claimed.head).await.expect("finish");
    assert_eq!(inbox.summary("stock").await.expect("summary").messages, 0);
    assert!(inbox.is_handled("stock", &key("1")).await.expect("asked"));
}

#[tokio::test]
async fn followers_wait_for_their_head() {
    let file = File::new().await;
    let inbox = SqliteInbox::new(file.pool.clone());
    assert_eq!(append(&inbox, "k", "0").await, Holding::KeyFree);
    hold(&inbox, "k", "1", HOUR).await;
    let (second, other) = (key("2"), key("3"));
    let live = inbox.begin(unit("k", &second), limits()).await.expect("begin");
    assert!(matches!(live, Admission::Held), "{live:?}");
    assert_eq!(append(&inbox, "k", "2").await, Holding::Stored);
    assert_eq!(append(&inbox, "k", "2").await, Holding::Stored);
    inbox.rollback(fresh(&inbox, unit("another key", &other)).await).await;
    assert!(nothing_due(&inbox).await);
    sqlx::query("UPDATE backstop_held SET due_at = 0 WHERE state = 'retry'")
        .execute(&file.pool)
        .await
        .expect("due");
    for expected in ["1", "2"] {
        let mut claimed = claim(&inbox).await;
        assert_eq!(body(&claimed.head), expected);
        effect(&mut claimed.tx, expected).await;
        inbox.finish("stock", claimed.tx, &claimed.head).await.expect("finish");
    }
    assert!(nothing_due(&inbox).await);
    assert_eq!((file.effects().await, file.inbox_rows().await), (2, 2));
    assert_eq!(append(&inbox, "k", "2").await, Holding::AlreadyHandled);
    assert_eq!(hold(&inbox, "k", "2", NOW).await, Holding::AlreadyHandled);
    let summary = inbox.summary("stock").await.expect("summary");
    assert_eq!((summary.messages, summary.oldest), (0, None));
}

#[tokio::test]
async fn a_due_message_behind_a_head_that_is_not_waits() {
    let file = File::new().await;
    let inbox = SqliteInbox::new(file.pool.clone());
    hold(&inbox, "k", "1", HOUR).await;
    hold(&inbox, "k", "2", NOW).await;
    assert!(nothing_due(&inbox).await, "two instances failed on one key: the first is the head");
    hold(&inbox, "l", "3", NOW).await;
    assert_eq!(body(&claim(&inbox).await.head), "3", "other keys go on");
}

#[tokio::test]
async fn a_failed_attempt_is_undone_written_down_and_comes_again() {
    let file = File::new().await;
    let inbox = SqliteInbox::new(file.pool.clone());
    hold(&inbox, "k", "1", NOW).await;
    append(&inbox, "k", "2").await;
    let mut claimed = claim(&inbox).await;
    effect(&mut claimed.tx, "1").await;
    inbox.undo(&mut claimed.tx).await.expect("undo");
    inbox.reschedule("stock", Some(claimed.tx), &claimed.head, &failure(2, NOW)).await.expect("reschedule");
    assert_eq!((file.effects().await, file.inbox_rows().await), (0, 0));
    let claimed = claim(&inbox).await;
    assert_eq!((body(&claimed.head).as_str(), claimed.head.attempts), ("1", 2));
    inbox.rollback(claimed.tx).await;
    // a transaction that is lost: only the first of two reports counts
    inbox.reschedule("stock", None, &claimed.head, &failure(3, NOW)).await.expect("reschedule");
    inbox.reschedule("stock", None, &claimed.head, &failure(3, HOUR)).await.expect("reschedule");
    let claimed = claim(&inbox).await;
    assert_eq!(claimed.head.attempts, 3, "due now, as the first report says");
    drop(claimed);
    assert_eq!(file.inbox_rows().await, 0);
}

#[tokio::test]
async fn a_quarantined_head_is_not_handled_and_its_follower_runs() {
    let file = File::new().await;
    let inbox = SqliteInbox::new(file.pool.clone());
    hold(&inbox, "k", "1", NOW).await;
    append(&inbox, "k", "2").await;
    let mut claimed = claim(&inbox).await;
    effect(&mut claimed.tx, "1").await;
    inbox.undo(&mut claimed.tx).await.expect("undo");
    let condemned = Failure { condemned: Some(DeadReason::Exhausted), ..failure(2, HOUR) };
    inbox.reschedule("stock", Some(claimed.tx), &claimed.head, &condemned).await.expect("condemned");
    assert!(nothing_due(&inbox).await, "nobody else is at it while its letter is published");
    let head = HeldMessage { attempts: 2, condemned: condemned.condemned, ..claimed.head };
    inbox.give_up("stock", &head).await.expect("its letter is confirmed");
    assert!(!inbox.is_handled("stock", &key("1")).await.expect("asked"), "a redrive must find it unhandled");
    assert_eq!(body(&claim(&inbox).await.head), "2");
    assert_eq!(file.effects().await, 0);
}

#[tokio::test]
async fn a_head_whose_handler_ends_the_transaction_is_not_lost() {
    for sql in ["ROLLBACK", "COMMIT", "COMMIT; BEGIN", "ROLLBACK; BEGIN"] {
        let file = File::new().await;
        let inbox = SqliteInbox::new(file.pool.clone());
        hold(&inbox, "k", "1", NOW).await;
        let mut claimed = claim(&inbox).await;
        effect(&mut claimed.tx, "1").await;
        sqlx::raw_sql(sql).execute(&mut *claimed.tx).await.expect(sql);
        let error = inbox.finish("stock", claimed.tx, &claimed.head).await.expect_err(sql);
        assert!(matches!(error, CommitError::EndedByHandler(_)), "{sql}: {error:?}");
        file.write_lock_is_free().await;
        inbox.acquit_heads("stock", &[claimed.head.spent_charge()]).await.expect("taken back");
        let again = claim(&inbox).await;
        assert_eq!(
            (again.handled, file.effects().await),
            (sql.starts_with("COMMIT"), i64::from(again.handled)),
            "{sql}"
        );
        inbox.finish("stock", again.tx, &again.head).await.expect("finish");
        assert!(nothing_due(&inbox).await);
        let mut broken = fresh(&inbox, unit("k", &key("9"))).await;
        sqlx::raw_sql(sql).execute(&mut *broken).await.expect(sql);
        assert!(inbox.undo(&mut broken).await.is_err(), "{sql}: nothing to go back to");
    }
}

#[tokio::test]
async fn a_redriven_message_runs_after_what_is_held_of_its_key() {
    let file = File::new().await;
    let inbox = SqliteInbox::new(file.pool.clone());
    let import = async |id: &str| {
        let (key, envelope, origin) = (key(id), envelope(id), origin());
        let message =
            backstop_core::held::NewHeld { via: Via::Door, ..new_held(unit("k", &key), &envelope, &origin) };
        inbox.import(message).await.expect("import")
    };
    hold(&inbox, "k", "1", NOW).await;
    assert_eq!(import("2").await, Holding::Stored);
    for (expected, attempts, via) in [("1", 1, Via::Live), ("2", 0, Via::Door)] {
        let claimed = claim(&inbox).await;
        assert_eq!(
            (body(&claimed.head).as_str(), claimed.head.attempts, claimed.head.via),
            (expected, attempts, via)
        );
        inbox.finish("stock", claimed.tx, &claimed.head).await.expect("finish");
    }
    assert_eq!(import("2").await, Holding::AlreadyHandled);
    assert_eq!(import("3").await, Holding::Stored);
    assert_eq!(body(&claim(&inbox).await.head), "3", "at once where nothing is held");
}

#[tokio::test]
async fn an_idle_consumer_does_not_wait_for_writers() {
    let file = File::new().await;
    let inbox = SqliteInbox::new(file.pool.clone());
    hold(&inbox, "k", "1", HOUR).await;
    let writer = file.again().await.begin_with("BEGIN IMMEDIATE").await.expect("the lock");
    let claim = look(&inbox, Limits { lock: Duration::from_secs(60), ..limits() });
    let claim = tokio::time::timeout(Duration::from_secs(5), claim).await.expect("at once");
    assert!(claim.is_none());
    writer.rollback().await.expect("rollback");
}

#[tokio::test]
async fn a_head_is_claimed_by_one_instance() {
    let file = File::new().await;
    let (one, two) = (SqliteInbox::new(file.pool.clone()), SqliteInbox::new(file.again().await));
    hold(&one, "k", "1", NOW).await;
    let claimed = claim(&one).await;
    let short = Limits { lock: Duration::from_millis(50), ..limits() };
    assert!(look(&two, short).await.is_none());
    one.finish("stock", claimed.tx, &claimed.head).await.expect("finish");
    assert!(nothing_due(&two).await);
}

/// A small generator: the test needs variety, not randomness.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

const KEYS: usize = 8;
const PER_KEY: usize = 25;

/// Feeds messages of one key in order, as a partition does: each is settled before the next comes.
async fn feed(inboxes: Vec<SqliteInbox>, ordering_key: String, mut dice: Dice) {
    let limits = Limits { lock: Duration::from_secs(60), ..limits() };
    for number in 0..PER_KEY {
        let id = format!("{ordering_key}/{number:03}");
        let (message_key, envelope, origin) = (key(&id), envelope(&id), origin());
        let unit = unit(&ordering_key, &message_key);
        loop {
            let inbox = &inboxes[dice.roll(inboxes.len() as u64) as usize];
            let settled = match inbox.begin(unit, limits).await.expect("begin") {
                Admission::Fresh(mut tx) => {
                    effect(&mut tx, &id).await;
                    match dice.roll(10) {
                        0..=2 => {
                            inbox.rollback(tx).await;
                            let due_in = Duration::from_millis(dice.roll(20));
                            let held =
                                inbox.hold(new_held(unit, &envelope, &origin), &failure(1, due_in)).await;
                            held.expect("hold") != Holding::KeyFree
                        }
                        3 => {
                            drop(tx);
                            false
                        }
                        _ => inbox.commit(tx).await.is_ok(),
                    }
                }
                Admission::Duplicate => true,
                Admission::Held => {
                    inbox.append(new_held(unit, &envelope, &origin)).await.expect("append")
                        != Holding::KeyFree
                }
                Admission::Busy => false,
            };
            if settled && dice.roll(10) > 0 {
                break;
            }
        }
    }
}

/// Runs due heads until all messages are handled.
async fn run_heads(file_inbox: SqliteInbox, mut dice: Dice) {
    let limits = Limits { lock: Duration::from_secs(60), ..limits() };
    loop {
        let Some(mut claimed) = look(&file_inbox, limits).await else {
            if all_handled(&file_inbox).await {
                return;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
            continue;
        };
        let id = body(&claimed.head);
        if !claimed.handled {
            effect(&mut claimed.tx, &id).await;
        }
        match dice.roll(10) {
            0 => drop(claimed.tx),
            1 | 2 => {
                file_inbox.undo(&mut claimed.tx).await.expect("undo");
                let failure = failure(claimed.head.attempts + 1, Duration::from_millis(dice.roll(10)));
                file_inbox
                    .reschedule("stock", Some(claimed.tx), &claimed.head, &failure)
                    .await
                    .expect("reschedule");
            }
            _ => file_inbox.finish("stock", claimed.tx, &claimed.head).await.expect("finish"),
        }
    }
}

async fn all_handled(inbox: &SqliteInbox) -> bool {
    for ordering_key in 0..KEYS {
        if !inbox
            .is_handled("stock", &key(&format!("k{ordering_key}/{:03}", PER_KEY - 1)))
            .await
            .expect("asked")
        {
            return false;
        }
    }
    inbox.summary("stock").await.expect("summary").messages == 0
}

#[tokio::test(flavor = "multi_thread")]
async fn under_failures_and_crashes_every_message_is_applied_once_and_in_order() {
    let file = File::new().await;
    let mut inboxes = Vec::new();
    for _ in 0..3 {
        inboxes.push(SqliteInbox::new(file.again().await));
    }
    let mut tasks = Vec::new();
    for number in 0..KEYS {
        tasks.push(tokio::spawn(feed(inboxes.clone(), format!("k{number}"), Dice(number as u64 + 1))));
    }
    for (number, inbox) in inboxes.iter().enumerate() {
        tasks.push(tokio::spawn(run_heads(inbox.clone(), Dice(number as u64 + 100))));
    }
    for task in tasks {
        tokio::time::timeout(Duration::from_secs(120), task)
            .await
            .expect("no message is left")
            .expect("no panic");
    }
    let effects: Vec<String> = sqlx::query_scalar("SELECT message FROM effects ORDER BY n")
        .fetch_all(&file.pool)
        .await
        .expect("effects");
    let mut by_key: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for effect in &effects {
        by_key.entry(effect.split('/').next().expect("a key")).or_default().push(effect);
    }
    assert_eq!(effects.len(), KEYS * PER_KEY, "each once");
    for (key, applied) in by_key {
        let expected: Vec<String> = (0..PER_KEY).map(|number| format!("{key}/{number:03}")).collect();
        assert_eq!(applied, expected, "in order");
    }
    assert_eq!(inboxes[0].summary("stock").await.expect("summary").messages, 0, "none left");
}
