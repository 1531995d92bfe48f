//! Many instances at once: every message once, each key in order.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use backstop_core::MessageKey;
use backstop_core::held::{Heads, HeldMessages, Holding};
use backstop_core::inbox::{Admission, CommitError, Inbox};
use backstop_mysql::{MySqlInbox, MySqlTx};

use crate::common::{CONSUMER, Db, envelope, failure, limits, new_held, origin, unit};

const KEYS: usize = 12;
const MESSAGES: usize = 40;

/// One key's messages at their source: delivered in order, settled one by one, now and then delivered again.
#[derive(Default)]
struct Source {
    owner: tokio::sync::Mutex<()>,
    settled: AtomicUsize,
}

struct Stress {
    inbox: MySqlInbox,
    sources: Vec<Source>,
}

impl Stress {
    fn names(key: usize, message: usize) -> (String, MessageKey) {
        (format!("key-{key}"), crate::common::key(&format!("{key}/{message}")))
    }

    async fn effect(tx: &mut MySqlTx, message_key: &MessageKey) {
        let (_, id) = message_key.as_str().split_once('|').expect("a key");
        let (key, message) = id.split_once('/').expect("two numbers");
        sqlx::query("INSERT INTO effect (`key`, message) VALUES (?, ?)")
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
        let heads = if dice() < 50 { Heads::Sound } else { Heads::Doubtful };
        let Some(mut claimed) = self.inbox.claim(CONSUMER, limits(), heads).await.expect("asked") else {
            return false;
        };
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
    db.run("CREATE TABLE effect (n bigint AUTO_INCREMENT PRIMARY KEY, `key` int, message int)").await;
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
    assert_eq!(db.number("SELECT COUNT(DISTINCT `key`, message) FROM effect").await, all, "none twice");
    let disorder = "SELECT count(*) FROM (SELECT message, lag(message) OVER (PARTITION BY `key` ORDER BY n) AS earlier \
                    FROM effect) e WHERE message <> coalesce(earlier + 1, 0)";
    assert_eq!(db.number(disorder).await, 0, "out of order");
    assert_eq!(db.number("SELECT count(*) FROM backstop_held").await, 0, "left behind");
    db.drop().await;
}
