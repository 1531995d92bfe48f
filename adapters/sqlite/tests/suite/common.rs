//! A database file of its own for every test.

use std::path::PathBuf;
use std::time::Duration;

use backstop_core::held::{Failure, HeldMessage, NewHeld};
use backstop_core::inbox::{Admission, Inbox, Limits, Unit};
use backstop_core::schema::Schema;
use backstop_core::{Envelope, ErrorClass, MessageKey, Origin, Via};
use backstop_sqlite::{SqliteInbox, SqliteSchema, SqliteTables, SqliteTx, open};
use sqlx::SqlitePool;
use tempfile::TempDir;

/// A file with Backstop's tables and one of the application's.
pub(crate) struct File {
    directory: TempDir,
    pub(crate) pool: SqlitePool,
}

impl File {
    pub(crate) async fn new() -> Self {
        let file = Self::empty().await;
        let schema = SqliteSchema::new(file.pool.clone(), SqliteTables::default());
        schema.migrate().await.expect("migrate");
        let sql = "CREATE TABLE effects (n INTEGER PRIMARY KEY AUTOINCREMENT, message TEXT NOT NULL, \
                   sku TEXT UNIQUE CHECK (sku <> 'none'))";
        sqlx::query(sql).execute(&file.pool).await.expect("create");
        file
    }

    pub(crate) async fn empty() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let pool = open(directory.path().join("test.db").to_str().expect("UTF-8")).await.expect("open");
        Self { directory, pool }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.directory.path().join("test.db")
    }

    /// Another pool on the same file, as another instance has it.
    pub(crate) async fn again(&self) -> SqlitePool {
        open(self.path().to_str().expect("UTF-8")).await.expect("open")
    }

    /// Writes nonsense over that part of the file.
    pub(crate) fn overwrite(&self, from: i64, bytes: i64) {
        let mut content = std::fs::read(self.path()).expect("the file");
        let (from, bytes) = (usize::try_from(from).expect("in it"), usize::try_from(bytes).expect("in it"));
        content[from..from + bytes].fill(0xff);
        std::fs::write(self.path(), content).expect("written");
    }

    pub(crate) async fn count(&self, sql: &'static str) -> i64 {
        sqlx::query_scalar(sql).fetch_one(&self.pool).await.expect(sql)
    }

    pub(crate) async fn effects(&self) -> i64 {
        self.count("SELECT count(*) FROM effects").await
    }

    pub(crate) async fn inbox_rows(&self) -> i64 {
        self.count("SELECT count(*) FROM backstop_inbox").await
    }

    /// Waits until somebody can write, at most 5 s; fails if it takes longer.
    pub(crate) async fn write_lock_is_free(&self) {
        let taken = self.pool.begin_with("BEGIN IMMEDIATE");
        let tx =
            tokio::time::timeout(Duration::from_secs(5), taken).await.expect("in time").expect("the lock");
        tx.rollback().await.expect("rollback");
    }
}

pub(crate) fn limits() -> Limits {
    Limits { lock: Duration::from_secs(5), handler: Duration::from_secs(30) }
}

pub(crate) fn key(id: &str) -> MessageKey {
    MessageKey::new("/test", id.as_bytes())
}

pub(crate) fn unit<'a>(ordering_key: &'a str, message_key: &'a MessageKey) -> Unit<'a> {
    Unit { consumer: "stock", place: "orders", ordering_key: ordering_key.as_bytes(), message_key }
}

pub(crate) fn origin() -> Origin {
    Origin::Kafka { topic: "orders".into(), partition: 3, offset: 17, timestamp: Some(99) }
}

pub(crate) fn envelope(text: &str) -> Envelope {
    Envelope {
        key: Some(vec![0xff, 0x00, 0x01].into()),
        headers: [
            ("a", Some(vec![b'1'])),
            ("raw", Some(vec![0xfe, 0x00])),
            ("null", None),
            ("a", Some(vec![])),
        ]
        .into_iter()
        .collect(),
        body: Some(text.to_owned().into()),
    }
}

pub(crate) fn new_held<'a>(unit: Unit<'a>, envelope: &'a Envelope, origin: &'a Origin) -> NewHeld<'a> {
    NewHeld { unit, envelope, origin, via: Via::Live }
}

pub(crate) fn failure(attempts: u32, due_in: Duration) -> Failure {
    Failure {
        attempts,
        throttled: 0,
        class: ErrorClass::Transient,
        error: "out of stock".into(),
        due_in,
        condemned: None,
        crashes: 0,
    }
}

pub(crate) async fn fresh(inbox: &SqliteInbox, unit: Unit<'_>) -> SqliteTx {
    match inbox.begin(unit, limits()).await.expect("begin") {
        Admission::Fresh(tx) => tx,
        other => panic!("expected fresh, not {other:?}"),
    }
}

pub(crate) async fn effect(tx: &mut SqliteTx, message: &str) {
    let insert = sqlx::query("INSERT INTO effects (message) VALUES (?)").bind(message.to_owned());
    insert.execute(&mut **tx).await.expect("effect");
}

pub(crate) fn body(head: &HeldMessage) -> String {
    String::from_utf8_lossy(head.envelope.body.as_deref().unwrap_or_default()).into_owned()
}
