//! The server ends what a client began that it no longer hears of.

use std::time::Duration;

use backstop_core::AdapterError;
use backstop_core::held::{Heads, HeldMessages, Holding};
use backstop_core::inbox::Limits;
use backstop_core::lease::Leases;
use backstop_core::outbox::OutboxStore;
use backstop_mysql::{MySqlInbox, MySqlOutboxStore};
use backstop_testkit::fault::Proxy;
use sqlx::mysql::{MySqlConnectOptions, MySqlPoolOptions};
use sqlx::{Executor, MySqlPool};
use tokio::task::JoinHandle;

use crate::common::{CONSUMER, Db, envelope, failure, key, limits, new_held, origin, unit, until, url};

/// A pool whose connections pass through a proxy.
async fn behind_a_proxy(db: &Db) -> (Proxy, MySqlPool) {
    let direct: MySqlConnectOptions = url().parse().expect("a URL");
    let proxy = Proxy::start(format!("{}:{}", direct.get_host(), direct.get_port())).await.expect("a port");
    let through = direct.host("127.0.0.1").port(proxy.address().port()).database(&db.schema);
    (proxy, MySqlPoolOptions::new().connect_with(through).await.expect("MySQL"))
}

async fn hold(inbox: &MySqlInbox, id: &str) -> Result<Holding, AdapterError> {
    let (key, envelope, origin) = (key(id), envelope(id), origin(1));
    inbox.hold(new_held(unit("k", &key), &envelope, &origin), &failure(1, Duration::ZERO)).await
}

/// A client that was holding a message, and vanished with its gate locked.
struct Gone {
    _proxy: Proxy,
    holding: JoinHandle<Result<Holding, AdapterError>>,
}

impl Gone {
    async fn behind_the_gate(db: &Db) -> Self {
        let (proxy, pool) = behind_a_proxy(db).await;
        let inbox = MySqlInbox::with_tables(pool, db.tables.clone());
        let mut blocking = db.pool.begin().await.expect("begun");
        blocking.execute("SELECT n FROM backstop_held_gate FOR UPDATE").await.expect("locked");
        let holding = tokio::spawn(async move { hold(&inbox, "gone").await });
        db.until_waiting(1).await;
        proxy.strand();
        blocking.rollback().await.expect("rolled back");
        let free = "SELECT n FROM backstop_held_gate FOR UPDATE SKIP LOCKED";
        until("one gate is left locked", || async {
            db.pool.fetch_all(free).await.expect("asked").len() == 63
        })
        .await;
        Self { _proxy: proxy, holding }
    }
}

impl Drop for Gone {
    fn drop(&mut self) {
        self.holding.abort();
    }
}

/// F45: whoever wants the gate waits, and has it within the limit.
#[tokio::test(flavor = "multi_thread")]
async fn a_gate_whose_client_is_gone_is_free_again() {
    let db = Db::new().await;
    let _gone = Gone::behind_the_gate(&db).await;
    assert_eq!(hold(&db.inbox(), "1").await.expect("no outage"), Holding::Stored);
    assert_eq!(db.number("SELECT COUNT(*) FROM backstop_held").await, 1);
    db.drop().await;
}

/// F45: a handler that has succeeded is not charged for a gate that is locked for longer than it may take.
#[tokio::test(flavor = "multi_thread")]
async fn a_head_is_finished_although_the_client_at_its_gate_is_gone() {
    let db = Db::new().await;
    let inbox = db.inbox();
    hold(&inbox, "1").await.expect("held");
    let _gone = Gone::behind_the_gate(&db).await;
    let short = Limits { lock: Duration::from_millis(200), handler: Duration::from_secs(5) };
    let claimed = inbox.claim(CONSUMER, short, Heads::Sound).await.expect("asked").expect("due");
    inbox.finish(CONSUMER, claimed.tx, &claimed.head).await.expect("finished");
    assert_eq!(db.number("SELECT COUNT(*) FROM backstop_held").await, 0);
    assert_eq!(db.number("SELECT COUNT(*) FROM backstop_inbox").await, 1);
    db.drop().await;
}

/// Sessions that wait for a table.
async fn waiting(db: &Db) -> i64 {
    let waiting = "SELECT COUNT(*) FROM information_schema.PROCESSLIST WHERE DB = DATABASE() \
                   AND STATE = 'Waiting for table metadata lock'";
    db.number(waiting).await
}

/// F45: the snapshot of a read would keep the server from clearing away old rows for as long as TCP hopes.
#[tokio::test(flavor = "multi_thread")]
async fn a_read_whose_client_is_gone_ends_by_itself() {
    let db = Db::new().await;
    let (proxy, pool) = behind_a_proxy(&db).await;
    let mut reader = MySqlOutboxStore::new(pool, db.tables.clone()).full_scan(None).reader();
    let mut blocking = db.pool.acquire().await.expect("a connection");
    blocking.execute("LOCK TABLES backstop_outbox WRITE").await.expect("locked");
    let reading = tokio::spawn(async move { reader.read(10, 1 << 20).await });
    until("the read waits", || async { waiting(&db).await == 1 }).await;
    proxy.strand();
    blocking.execute("UNLOCK TABLES").await.expect("unlocked");
    drop(blocking);
    let open = async || {
        // Looked at more often than every 0.1 s, the table of transactions never changes.
        tokio::time::sleep(Duration::from_millis(150)).await;
        db.number(
            "SELECT COUNT(*) FROM information_schema.INNODB_TRX AS t JOIN information_schema.PROCESSLIST AS p \
             ON p.ID = t.trx_mysql_thread_id WHERE p.DB = DATABASE() AND p.ID <> CONNECTION_ID()",
        )
        .await
    };
    until("the read is left open", || async { waiting(&db).await == 0 && open().await == 1 }).await;
    until("the server ends it", || async { open().await == 0 }).await;
    reading.abort();
    db.drop().await;
}

/// Each try would leave one session behind, until the server takes no more.
#[tokio::test(flavor = "multi_thread")]
async fn tries_for_a_lease_that_is_locked_do_not_pile_up() {
    let db = Db::new().await;
    let (proxy, pool) = behind_a_proxy(&db).await;
    let store = MySqlOutboxStore::new(pool, db.tables.clone());
    let mut blocking = db.pool.acquire().await.expect("a connection");
    blocking.execute("LOCK TABLES backstop_lease WRITE").await.expect("locked");
    let ttl = Duration::from_secs(3);
    for tries in 1..=3 {
        let asking = tokio::spawn({
            let store = store.clone();
            async move { store.acquire("outbox", "me", ttl).await }
        });
        until("it waits", || async { waiting(&db).await == tries }).await;
        proxy.strand();
        asking.abort();
    }
    until("nobody waits any more", || async { waiting(&db).await == 0 }).await;
    blocking.execute("UNLOCK TABLES").await.expect("unlocked");
    drop(blocking);
    store.acquire("outbox", "me", ttl).await.expect("asked").expect("granted");
    db.drop().await;
}

const SETTINGS: &str =
    "SELECT CAST(CONCAT_WS(' ', @@innodb_lock_wait_timeout, @@lock_wait_timeout, @@wait_timeout) AS CHAR)";

/// The pool may be the application's own.
#[tokio::test]
async fn a_session_is_given_back_as_it_was() {
    let db = Db::new().await;
    let options: MySqlConnectOptions = url().parse().expect("a URL");
    let one = MySqlPoolOptions::new().max_connections(1).connect_with(options.database(&db.schema));
    let one = one.await.expect("MySQL");
    let set = "SET SESSION innodb_lock_wait_timeout = 7, lock_wait_timeout = 77, wait_timeout = 777";
    one.execute(set).await.expect("set");
    let inbox = MySqlInbox::with_tables(one.clone(), db.tables.clone());
    let settings = async || -> String { sqlx::query_scalar(SETTINGS).fetch_one(&one).await.expect("asked") };
    for ended in ["committed", "rolled back: it is held already"] {
        hold(&inbox, "1").await.expect("held");
        assert_eq!(settings().await, "7 77 777", "{ended}");
    }
    let store = MySqlOutboxStore::new(one.clone(), db.tables.clone());
    store.reader().read(10, 1 << 20).await.expect("read");
    assert_eq!(settings().await, "7 77 777", "read");
    let claimed = inbox.claim(CONSUMER, limits(), Heads::Sound).await.expect("asked");
    let claimed = claimed.expect("due");
    inbox.finish(CONSUMER, claimed.tx, &claimed.head).await.expect("finished");
    assert_eq!(settings().await, "7 77 777", "finished");
    db.drop().await;
}
