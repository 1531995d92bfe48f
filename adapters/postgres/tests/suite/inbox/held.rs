//! Held messages: order and single effect through failures, crashes and moves.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use backstop_core::held::{ClaimedHead, Failure, Heads, HeldMessage, HeldMessages, Holding};
use backstop_core::inbox::{Admission, CommitError, GroupAdmission, Inbox, Unit};
use backstop_core::{DeadReason, FaultKind, MessageKey, Via};
use backstop_postgres::{PgInbox, PgTx};
use sqlx::Executor;

use crate::support::{CONSUMER, Db, PLACE, envelope, failure, fresh, key, limits, new_held, origin, unit};

const NOW: Duration = Duration::ZERO;
const HOUR: Duration = Duration::from_secs(3_600);

/// A due head, sound or not.
async fn claim(inbox: &PgInbox) -> Option<ClaimedHead<PgTx>> {
    match inbox.claim(CONSUMER, limits(), Heads::Sound).await.expect("asked") {
        None => inbox.claim(CONSUMER, limits(), Heads::Doubtful).await.expect("asked"),
        claimed => claimed,
    }
}

async fn hold(inbox: &PgInbox, id: &str) -> Holding {
    hold_with(inbox, "k", id).await
}

async fn hold_with(inbox: &PgInbox, ordering_key: &str, id: &str) -> Holding {
    let (key, envelope, origin) = (key(id), envelope(id), origin(1));
    let message = new_held(unit(ordering_key, &key), &envelope, &origin);
    inbox.hold(message, &failure(1, NOW)).await.expect("held")
}

async fn append(inbox: &PgInbox, id: &str) -> Holding {
    let (key, envelope, origin) = (key(id), envelope(id), origin(1));
    inbox.append(new_held(unit("k", &key), &envelope, &origin)).await.expect("asked")
}

async fn import(inbox: &PgInbox, id: &str) -> Holding {
    let (key, envelope, origin) = (key(id), envelope(id), origin(1));
    let message = new_held(unit("k", &key), &envelope, &origin);
    inbox.import(backstop_core::held::NewHeld { via: Via::Door, ..message }).await.expect("asked")
}

#[tokio::test]
async fn what_can_never_be_stored_is_told_from_an_outage() {
    let db = Db::new().await;
    let inbox = db.inbox();
    let long: String = (0..2_000).map(|_| uuid::Uuid::new_v4().simple().to_string()).collect();
    for (place, sqlstate) in [("or\0ders", "22021"), (&*long, "54000")] {
        let (key, envelope, origin) = (key("1"), envelope("1"), origin(1));
        let message = || new_held(Unit { place, ..unit("k", &key) }, &envelope, &origin);
        let error = inbox.import(message()).await.expect_err("no place");
        assert_eq!(error.kind(), FaultKind::Invalid, "{error:?}");
        assert!(format!("{error:?}").contains(sqlstate), "{error:?}");
        assert_eq!(inbox.hold(message(), &failure(1, NOW)).await.expect_err("no place").kind(), error.kind());
    }
    inbox.ready().await.expect("it was the message's fault");
    db.drop().await;
}

#[tokio::test]
async fn a_time_beyond_what_can_be_told_is_brought_near() {
    let db = Db::new().await;
    let inbox = db.inbox();
    for time in ["infinity", "-infinity", "290000-01-01", "4713-01-01 BC"] {
        hold(&inbox, time).await;
        db.run(&format!("UPDATE backstop_held SET held_since = '{time}'")).await;
        assert_eq!(inbox.summary(CONSUMER).await.expect("counted").messages, 1, "{time}");
        let claimed = claim(&inbox).await.expect("due");
        assert_eq!(claimed.head.message_key, key(time));
        inbox.finish(CONSUMER, claimed.tx, &claimed.head).await.expect("finished");
    }
    db.drop().await;
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
    db.run("CREATE TABLE effect (n int)").await;
    let inbox = db.inbox();
    hold(&inbox, "1").await;
    let mut claimed = claim(&inbox).await.expect("due");
    claimed.tx.execute("INSERT INTO effect VALUES (1)").await.expect("written");
    claimed.tx.execute("INSERT INTO effect VALUES (1/0)").await.expect_err("a failure");
    inbox.undo(&mut claimed.tx).await.expect("undone");
    assert!(claim(&inbox).await.is_none(), "the claim stands");
    let later = failure(2, HOUR);
    inbox.reschedule(CONSUMER, Some(claimed.tx), &claimed.head, &later).await.expect("rescheduled");
    assert!(claim(&inbox).await.is_none(), "not due");
    db.run("UPDATE backstop_held SET due_at = now()").await;
    let mut claimed = claim(&inbox).await.expect("due");
    assert_eq!((claimed.head.attempts, claimed.handled), (2, false));
    claimed.tx.execute("INSERT INTO effect VALUES (1)").await.expect("written");
    let condemned = Failure { condemned: Some(DeadReason::Exhausted), ..failure(3, HOUR) };
    inbox.undo(&mut claimed.tx).await.expect("undone");
    inbox.reschedule(CONSUMER, Some(claimed.tx), &claimed.head, &condemned).await.expect("condemned");
    assert!(claim(&inbox).await.is_none(), "nobody else is at it while its letter is published");
    let head = HeldMessage { attempts: 3, condemned: condemned.condemned, ..claimed.head };
    inbox.give_up(CONSUMER, &head).await.expect("after its quarantine");
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
    assert!(matches!(error, CommitError::EndedByHandler(_)));
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
    db.run("UPDATE backstop_held SET due_at = now()").await;
    let claimed = claim(&inbox).await.expect("due");
    assert!(claimed.handled);
    inbox.finish(CONSUMER, claimed.tx, &claimed.head).await.expect("finished");
    assert_eq!(db.number("SELECT count(*) FROM backstop_held").await, 0);
    db.drop().await;
}

const KEYS: usize = 12;
const MESSAGES: usize = 40;

/// One key's messages at their source: delivered in order, settled one by one, now and then delivered again.
#[derive(Default)]
struct Source {
    owner: tokio::sync::Mutex<()>,
    settled: AtomicUsize,
}

struct Stress {
    inbox: PgInbox,
    sources: Vec<Source>,
}

impl Stress {
    fn names(key: usize, message: usize) -> (String, MessageKey) {
        (format!("key-{key}"), crate::support::key(&format!("{key}/{message}")))
    }

    async fn effect(tx: &mut PgTx, message_key: &MessageKey) {
        let (_, id) = message_key.as_str().split_once('|').expect("a key");
        let (key, message) = id.split_once('/').expect("two numbers");
        sqlx::query("INSERT INTO effect (key, message) VALUES ($1::int, $2::int)")
            .bind(key)
            .bind(message)
            .execute(&mut **tx)
            .await
            .expect("written");
    }

    /// Delivers one message live; `true` settles it.
    async fn deliver(&self, key: usize, message: usize) -> bool {
        let (ordering_key, message_key) = Self::names(key, message);
        let unit = unit(&ordering_key, &message_key);
        let (envelope, origin) = (envelope("x"), origin(1));
        match self.inbox.begin(unit, limits()).await.expect("begun") {
            Admission::Duplicate => true,
            Admission::Busy => false,
            Admission::Held => {
                let appended = self.inbox.append(new_held(unit, &envelope, &origin)).await.expect("asked");
                appended != Holding::KeyFree
            }
            Admission::Fresh(mut tx) => match dice() {
                0..20 => {
                    self.inbox.rollback(tx).await;
                    let due = failure(1, Duration::from_millis(u64::from(dice()) / 10));
                    self.inbox.hold(new_held(unit, &envelope, &origin), &due).await.expect("held");
                    true
                }
                20..25 => false,
                _ => {
                    Self::effect(&mut tx, &message_key).await;
                    // A commit that is cancelled has an unknown outcome: it is delivered again.
                    self.cancelled_at_times(self.inbox.commit(tx)).await
                }
            },
        }
    }

    async fn cancelled_at_times(&self, commit: impl Future<Output = Result<(), CommitError>>) -> bool {
        if dice() < 90 {
            commit.await.expect("committed");
            return true;
        }
        let soon = Duration::from_micros(u64::from(dice()) * 20);
        tokio::time::timeout(soon, commit).await.is_ok_and(|result| result.is_ok())
    }

    async fn run_head(&self) -> bool {
        let Some(mut claimed) = claim(&self.inbox).await else { return false };
        let head = &claimed.head;
        match dice() {
            _ if claimed.handled => {
                self.inbox.finish(CONSUMER, claimed.tx, head).await.expect("finished");
            }
            0..20 => {
                self.inbox.undo(&mut claimed.tx).await.expect("undone");
                let again = failure(head.attempts + 1, Duration::from_millis(2));
                self.inbox.reschedule(CONSUMER, Some(claimed.tx), head, &again).await.expect("rescheduled");
            }
            20..25 => drop(claimed.tx),
            _ => {
                Self::effect(&mut claimed.tx, &head.message_key).await;
                self.cancelled_at_times(self.inbox.finish(CONSUMER, claimed.tx, head)).await;
            }
        }
        true
    }

    async fn instance(&self) {
        loop {
            let key = usize::from(dice()) % KEYS;
            let source = &self.sources[key];
            if let Ok(_owned) = source.owner.try_lock() {
                let next = source.settled.load(Ordering::SeqCst);
                let again = next.checked_sub(1 + usize::from(dice() % 3));
                match again {
                    Some(again) if dice() < 10 => drop(self.deliver(key, again).await),
                    _ if next < MESSAGES && self.deliver(key, next).await => {
                        source.settled.fetch_add(1, Ordering::SeqCst);
                    }
                    _ => {}
                }
            }
            let busy = self.run_head().await;
            let settled = self.sources.iter().all(|source| source.settled.load(Ordering::SeqCst) == MESSAGES);
            if !busy && settled && self.inbox.summary(CONSUMER).await.expect("counted").messages == 0 {
                return;
            }
        }
    }
}

/// 0 to 99.
fn dice() -> u8 {
    (uuid::Uuid::new_v4().as_u128() % 100) as u8
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_message_is_applied_once_and_in_order() {
    let db = Db::new().await;
    db.run("CREATE TABLE effect (n bigint GENERATED ALWAYS AS IDENTITY, key int, message int)").await;
    let sources = (0..KEYS).map(|_| Source::default()).collect();
    let stress = Arc::new(Stress { inbox: db.inbox(), sources });
    let instances: Vec<_> = (0..8)
        .map(|_| {
            let stress = Arc::clone(&stress);
            tokio::spawn(async move { stress.instance().await })
        })
        .collect();
    for instance in instances {
        let ended = tokio::time::timeout(Duration::from_secs(120), instance).await;
        ended.expect("all messages are handled in time").expect("no panic");
    }
    let all = i64::try_from(KEYS * MESSAGES).expect("small");
    assert_eq!(db.number("SELECT count(*) FROM effect").await, all, "effects");
    assert_eq!(db.number("SELECT count(DISTINCT (key, message)) FROM effect").await, all, "none twice");
    let disorder = "SELECT count(*) FROM (SELECT message, lag(message) OVER (PARTITION BY key ORDER BY n) AS before \
                    FROM effect) e WHERE message <> coalesce(before + 1, 0)";
    assert_eq!(db.number(disorder).await, 0, "out of order");
    assert_eq!(db.number("SELECT count(*) FROM backstop_held").await, 0, "left behind");
    db.drop().await;
}

/// A dead row that had several owners at once stays in the indexes until the next vacuum, and each claim steps over it.
#[tokio::test]
async fn heads_have_one_owner_each() {
    const HEADS: i64 = 300;
    let db = Db::new().await;
    let inbox = db.inbox();
    let groups_of_owners = async || -> i64 { db.number("SELECT mxid_age('1'::xid)::bigint").await };
    let before = groups_of_owners().await;
    for n in 0..HEADS {
        hold_with(&inbox, &n.to_string(), &n.to_string()).await;
        let claimed = claim(&inbox).await.expect("due");
        if n % 2 == 0 {
            inbox.finish(CONSUMER, claimed.tx, &claimed.head).await.expect("finished");
        } else {
            inbox
                .reschedule(CONSUMER, Some(claimed.tx), &claimed.head, &failure(2, HOUR))
                .await
                .expect("put back");
        }
    }
    let made = groups_of_owners().await - before;
    // Other tests make some meanwhile.
    assert!(made < HEADS / 3, "{made} rows had several owners");
    db.drop().await;
}

/// Rows of held messages that the transactions of this connection have read lately.
async fn rows_read(tx: &mut PgTx) -> i64 {
    let read = "SELECT coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0) FROM pg_stat_xact_user_tables \
                WHERE relid = 'backstop_held'::regclass";
    sqlx::query_scalar(read).fetch_one(&mut **tx).await.expect("counted")
}

/// Statistics say that every key is a common one: no statement may read what is held of it for a message of another key.
#[tokio::test]
async fn a_key_of_which_nearly_everything_is_held_slows_no_other() {
    const HELD: i64 = 30_000;
    let db = Db::new().await;
    let inbox = db.inbox();
    hold_with(&inbox, "hot", "hot").await;
    let followers = format!(
        "INSERT INTO backstop_held (consumer, place, ordering_key, message_key, headers, origin, via, state)
         SELECT consumer, place, ordering_key, 'hot-' || i, headers, origin, via, 'waiting'
         FROM backstop_held, generate_series(1, {HELD}) AS i;
         ANALYZE backstop_held"
    );
    db.run(&followers).await;
    let hot = claim(&inbox).await.expect("due");
    // The server plans the first executions of a statement for what they are given, and then for any key.
    for n in 0..12 {
        let id = n.to_string();
        let cold = key(&format!("cold-{id}"));
        let mut tx = fresh(&inbox, &format!("live-{id}")).await;
        assert!(rows_read(&mut tx).await < HELD / 10, "a message, {n}");
        inbox.rollback(tx).await;
        let Ok(GroupAdmission::Shared { mut tx, .. }) =
            inbox.begin_group(&[unit("cold", &cold)], limits()).await
        else {
            panic!("they may share");
        };
        assert!(rows_read(&mut tx).await < HELD / 10, "a group, {n}");
        inbox.rollback(tx).await;
        assert_eq!(append(&inbox, &id).await, Holding::KeyFree);
        import(&inbox, &id).await;
        assert_eq!(append(&inbox, &format!("{id}, again")).await, Holding::Stored);
        for _ in 0..2 {
            let mut claimed = claim(&inbox).await.expect("due");
            assert_eq!(claimed.head.ordering_key, b"k");
            assert!(rows_read(&mut claimed.tx).await < HELD / 10, "a head, {n}");
            inbox.finish(CONSUMER, claimed.tx, &claimed.head).await.expect("finished");
        }
    }
    let mut tx = fresh(&inbox, "live").await;
    assert!(rows_read(&mut tx).await < HELD / 10, "all of it");
    drop((hot, tx));
    db.drop().await;
}
