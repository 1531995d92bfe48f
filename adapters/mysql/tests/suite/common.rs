//! A database of its own for each test, dropped at the end.

use std::future::Future;
use std::time::Duration;

use backstop_core::held::{Failure, NewHeld};
use backstop_core::inbox::{Admission, Inbox, Limits, Unit};
use backstop_core::schema::Schema;
use backstop_core::{Envelope, ErrorClass, MessageKey, Origin, Via};
use backstop_mysql::{MySqlInbox, MySqlSchema, MySqlTables, MySqlTx};
use sqlx::mysql::{MySqlConnectOptions, MySqlPoolOptions};
use sqlx::{AssertSqlSafe, MySqlPool};

pub(crate) const CONSUMER: &str = "stock";
pub(crate) const PLACE: &str = "orders";

pub(crate) fn url() -> String {
    std::env::var("BACKSTOP_TEST_MYSQL_URL")
        .expect("BACKSTOP_TEST_MYSQL_URL is not set; run: eval \"$(tests/servers env)\"")
}

/// A migrated database of its own.
pub(crate) struct Db {
    pub(crate) schema: String,
    pub(crate) pool: MySqlPool,
    pub(crate) tables: MySqlTables,
}

impl Db {
    /// Without tables.
    pub(crate) async fn bare() -> Self {
        let schema = format!("t_{}", uuid::Uuid::new_v4().simple());
        let options: MySqlConnectOptions = url().parse().expect("a URL");
        let one =
            MySqlPoolOptions::new().max_connections(1).connect_with(options.clone()).await.expect("MySQL");
        let create = format!("CREATE DATABASE `{schema}`");
        sqlx::raw_sql(AssertSqlSafe(create)).execute(&one).await.expect("created");
        one.close().await;
        let pool = MySqlPoolOptions::new().max_connections(24).acquire_timeout(Duration::from_secs(30));
        let pool = pool.connect_with(options.database(&schema)).await.expect("MySQL");
        let tables = MySqlTables::in_schema(&schema).expect("a name");
        Self { schema, pool, tables }
    }

    pub(crate) async fn new() -> Self {
        let db = Self::bare().await;
        MySqlSchema::new(db.pool.clone(), db.tables.clone()).migrate().await.expect("migrated");
        db
    }

    pub(crate) fn inbox(&self) -> MySqlInbox {
        MySqlInbox::with_tables(self.pool.clone(), self.tables.clone())
    }

    pub(crate) async fn run(&self, sql: &str) {
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&self.pool).await.expect(sql);
    }

    pub(crate) async fn number(&self, sql: &str) -> i64 {
        sqlx::query_scalar(AssertSqlSafe(sql.to_owned())).fetch_one(&self.pool).await.expect(sql)
    }

    /// Waits until so many connections to this database wait for a row.
    pub(crate) async fn until_waiting(&self, connections: i64) {
        // Looked at more often than every 0.1 s, the table of transactions never changes.
        let waiting = format!(
            "SELECT COUNT(*) FROM information_schema.INNODB_TRX AS t JOIN information_schema.PROCESSLIST AS p \
             ON p.ID = t.trx_mysql_thread_id WHERE t.trx_state = 'LOCK WAIT' AND p.DB = '{}'",
            self.schema
        );
        until("a connection waits", || async {
            tokio::time::sleep(Duration::from_millis(150)).await;
            self.number(&waiting).await >= connections
        })
        .await;
    }

    pub(crate) async fn drop(self) {
        self.run(&format!("DROP DATABASE `{}`", self.schema)).await;
        self.pool.close().await;
    }
}

pub(crate) fn key(id: &str) -> MessageKey {
    MessageKey::new("/test", id.as_bytes())
}

pub(crate) fn unit<'a>(ordering_key: &'a str, message_key: &'a MessageKey) -> Unit<'a> {
    Unit { consumer: CONSUMER, place: PLACE, ordering_key: ordering_key.as_bytes(), message_key }
}

/// Short, so that tests of waiting are quick.
pub(crate) fn limits() -> Limits {
    Limits { lock: Duration::from_millis(200), handler: Duration::from_secs(10) }
}

pub(crate) async fn fresh(inbox: &MySqlInbox, id: &str) -> MySqlTx {
    fresh_of(inbox, "k", id).await
}

/// The same of that ordering key.
pub(crate) async fn fresh_of(inbox: &MySqlInbox, ordering_key: &str, id: &str) -> MySqlTx {
    match inbox.begin(unit(ordering_key, &key(id)), limits()).await.expect("begun") {
        Admission::Fresh(tx) => tx,
        other => panic!("{other:?}"),
    }
}

pub(crate) fn origin(offset: i64) -> Origin {
    Origin::Kafka { topic: PLACE.to_owned(), partition: 0, offset, timestamp: None }
}

pub(crate) fn envelope(body: &str) -> Envelope {
    let mut envelope = Envelope {
        key: Some(vec![0, 0xff].into()),
        body: Some(body.to_owned().into()),
        ..Envelope::default()
    };
    envelope.headers.append("h", vec![0xff, 0]);
    envelope.headers.append_null("h");
    envelope
}

pub(crate) fn new_held<'a>(unit: Unit<'a>, envelope: &'a Envelope, origin: &'a Origin) -> NewHeld<'a> {
    NewHeld { unit, envelope, origin, via: Via::Live }
}

pub(crate) fn failure(attempts: u32, due_in: Duration) -> Failure {
    Failure {
        attempts,
        throttled: 0,
        class: ErrorClass::Transient,
        error: "it's \\ broken".to_owned(),
        due_in,
        condemned: None,
        crashes: 0,
    }
}

/// Asks until `done` says so, for at most a minute.
pub(crate) async fn until<F: Future<Output = bool>>(what: &str, mut done: impl FnMut() -> F) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    while !done().await {
        assert!(tokio::time::Instant::now() < deadline, "in vain: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
