//! A schema of its own for each test, dropped at the end.

use std::future::Future;
use std::time::Duration;

use backstop_core::held::{Failure, NewHeld};
use backstop_core::inbox::{Admission, Inbox, Limits, Unit};
use backstop_core::schema::Schema;
use backstop_core::{Envelope, ErrorClass, MessageKey, Origin, Via};
use backstop_postgres::{PgInbox, PgSchema, PgTables, PgTx};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, PgPool};

pub(crate) const CONSUMER: &str = "stock";
pub(crate) const PLACE: &str = "orders";

pub(crate) fn url() -> String {
    std::env::var("BACKSTOP_TEST_POSTGRES_URL")
        .expect("BACKSTOP_TEST_POSTGRES_URL is not set; run: eval \"$(tests/servers env)\"")
}

/// A migrated schema of its own.
pub(crate) struct Db {
    pub(crate) schema: String,
    pub(crate) pool: PgPool,
    pub(crate) tables: PgTables,
}

impl Db {
    /// Without tables.
    pub(crate) async fn bare() -> Self {
        let schema = format!("t_{}", uuid::Uuid::new_v4().simple());
        let options: PgConnectOptions = url().parse().expect("a URL");
        let options = options.options([("search_path", schema.as_str())]);
        let pool = PgPoolOptions::new()
            .max_connections(24)
            .acquire_timeout(Duration::from_secs(30))
            .connect_with(options)
            .await
            .expect("PostgreSQL");
        let tables = PgTables::in_schema(&schema).expect("a name");
        Self { schema, pool, tables }
    }

    pub(crate) async fn new() -> Self {
        let db = Self::bare().await;
        PgSchema::new(db.pool.clone(), db.tables.clone()).migrate().await.expect("migrated");
        db
    }

    pub(crate) fn inbox(&self) -> PgInbox {
        PgInbox::with_tables(self.pool.clone(), self.tables.clone())
    }

    pub(crate) async fn run(&self, sql: &str) {
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&self.pool).await.expect(sql);
    }

    pub(crate) async fn number(&self, sql: &str) -> i64 {
        sqlx::query_scalar(AssertSqlSafe(sql.to_owned())).fetch_one(&self.pool).await.expect(sql)
    }

    pub(crate) async fn drop(self) {
        let drop = format!("DROP SCHEMA \"{}\" CASCADE", self.schema);
        while let Err(error) = sqlx::raw_sql(AssertSqlSafe(drop.clone())).execute(&self.pool).await {
            // What a test has given up may still be at work, and locks the tables in another order.
            let code = error.as_database_error().and_then(|error| error.code());
            assert_eq!(code.as_deref(), Some("40P01"), "{error}");
        }
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

pub(crate) async fn fresh(inbox: &PgInbox, id: &str) -> PgTx {
    match inbox.begin(unit("k", &key(id)), limits()).await.expect("begun") {
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
