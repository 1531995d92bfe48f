//! A trial of handlers on a real file: what `docs/guides/testing.md` tells those to do whose handlers need a
//! transaction of sqlx.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use backstop_core::schema::Schema;
use backstop_core::{Delivery, ErrorClass, Handler, HandlerError, Message, RetryPolicy};
use backstop_sqlite::{SqliteInbox, SqliteSchema, SqliteTables, SqliteTx, open};
use backstop_testkit::trial::{Database, Effect};
use backstop_testkit::{Outside, TestConsumer};
use sqlx::SqlitePool;
use tempfile::TempDir;

/// A new file for each run.
struct Files {
    folder: TempDir,
    opened: AtomicU32,
    current: Mutex<Option<SqlitePool>>,
}

impl Files {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a directory");
        Self { folder, opened: AtomicU32::new(0), current: Mutex::new(None) }
    }
}

impl Database for Files {
    type Inbox = SqliteInbox;

    async fn open(&self) -> SqliteInbox {
        let name = format!("{}.db", self.opened.fetch_add(1, Ordering::SeqCst));
        let pool = open(self.folder.path().join(name).to_str().expect("UTF-8")).await.expect("open");
        SqliteSchema::new(pool.clone(), SqliteTables::default()).migrate().await.expect("migrate");
        let sql = "CREATE TABLE reserved (n INTEGER PRIMARY KEY AUTOINCREMENT, event TEXT, item TEXT)";
        sqlx::query(sql).execute(&pool).await.expect("create");
        *self.current.lock().expect("not poisoned") = Some(pool.clone());
        SqliteInbox::new(pool)
    }

    async fn effects(&self, _: &SqliteInbox) -> Vec<Effect> {
        let pool = self.current.lock().expect("not poisoned").clone().expect("it was opened");
        let sql = "SELECT event, item FROM reserved ORDER BY n";
        let rows: Vec<(String, String)> = sqlx::query_as(sql).fetch_all(&pool).await.expect(sql);
        rows.into_iter().map(|(event, item)| Effect::new(event, format!("reserve {item}"))).collect()
    }
}

/// Reserves, and where it has one calls somebody outside as well.
struct Reserve(Option<Outside>);

impl Handler<SqliteTx> for Reserve {
    type Message = String;

    async fn handle(&self, delivery: &Delivery<String>, tx: &mut SqliteTx) -> Result<(), HandlerError> {
        let event = &delivery.message().id;
        if let Some(outside) = &self.0 {
            outside.effect(event, "call the warehouse");
        }
        let insert = sqlx::query("INSERT INTO reserved (event, item) VALUES (?, ?)");
        insert.bind(event).bind(delivery.body()).execute(&mut **tx).await?;
        Ok(())
    }
}

fn trial(start: impl Fn(Outside) -> Reserve + Send + Sync + 'static) -> TestConsumer<Reserve, Files> {
    let event = |id: &str| Message::new("order.placed").id(id).key("a").json(&"tea").expect("plain data");
    TestConsumer::on(Files::new(), start)
        .configure(|consumer| {
            consumer.retry(ErrorClass::Transient, RetryPolicy::fixed(Duration::from_millis(10)))
        })
        .event(event("o1"))
        .event(event("o2"))
}

#[tokio::test]
async fn a_handler_of_sqlx_is_killed_at_every_point() {
    let test = trial(|_| Reserve(None));
    test.crash_everywhere().await.assert_exactly_once();
    test.lose_commits().await.assert_exactly_once();
}

#[tokio::test]
async fn what_it_does_outside_of_the_file_is_found() {
    let report = trial(|outside| Reserve(Some(outside))).crash_everywhere().await;
    assert_eq!(report.findings().len(), 4, "{report}");
    assert!(report.to_string().contains("twice: o1 (call the warehouse, outside)"), "{report}");
}
