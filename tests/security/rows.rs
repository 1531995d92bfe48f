//! S1, S2, S3, S7, S16 and S17: rows that anybody who may write to the outbox can put there. Each is either published as
//! it is, or refused for itself alone with a reason; reading never fails.

use std::time::Duration;

use backstop_core::outbox::OutboxStore;
use backstop_core::schema::Schema;
use backstop_core::sink::{PublishError, Publisher, Refused, Scope};
use backstop_core::{Destination, FaultKind, Message, Outgoing};
use backstop_kafka::{KafkaPublisher, KafkaSettings};
use backstop_mysql::{MySqlOutbox, MySqlOutboxStore, MySqlSchema, MySqlTables};
use backstop_postgres::{PgOutbox, PgOutboxStore, PgSchema, PgTables};
use backstop_rabbitmq::{RabbitPublisher, RabbitSettings};
use backstop_sqlite::{SqliteOutbox, SqliteOutboxStore, SqliteSchema, SqliteTables};
use backstop_tests::servers;
use sqlx::{AssertSqlSafe, MySqlPool, PgPool, SqlitePool};
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(60);

/// Texts that are SQL, or end one.
const SQL: [&str; 7] = [
    "'; DROP TABLE backstop_outbox; --",
    "\\'; DROP TABLE backstop_outbox; --",
    "$$; DROP TABLE backstop_outbox; $$",
    "{outbox} {dead} $1 ? :a @b `c` \"d\" /*!80000 e */",
    "%s %n \\ \\\\ \\0 \\x00",
    "\u{feff}\u{202e}\u{1b}[31m\r\n\t\u{7f}",
    "𝄞 ﷺ e\u{301} \u{10ffff}",
];

/// A migrated outbox of its own.
enum Db {
    Postgres(PgPool, PgTables, String),
    MySql(MySqlPool, MySqlTables),
    Sqlite(SqlitePool, #[expect(dead_code, reason = "its folder ends with it")] tempfile::TempDir),
}

impl Db {
    async fn all() -> [Self; 3] {
        [Self::postgres().await, Self::mysql().await, Self::sqlite().await]
    }

    async fn postgres() -> Self {
        let schema = servers::unique("rows").replace('-', "_");
        let tables = PgTables::in_schema(&schema).expect("a name");
        let pool = backstop_postgres::open(&servers::postgres_url()).await.expect("PostgreSQL answers");
        PgSchema::new(pool.clone(), tables.clone()).migrate().await.expect("migrated");
        Self::Postgres(pool, tables, schema)
    }

    async fn mysql() -> Self {
        let tables = MySqlTables::default();
        let tables = tables.with_prefix(&servers::unique("rows").replace('-', "_")).expect("a name");
        let url = servers::required("BACKSTOP_TEST_MYSQL_URL");
        let pool = backstop_mysql::open(&url).await.expect("MariaDB answers");
        MySqlSchema::new(pool.clone(), tables.clone()).migrate().await.expect("migrated");
        Self::MySql(pool, tables)
    }

    async fn sqlite() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let url = format!("sqlite:{}?mode=rwc", folder.path().join("rows.db").display());
        let pool = backstop_sqlite::open(&url).await.expect("a file");
        SqliteSchema::new(pool.clone(), SqliteTables::default()).migrate().await.expect("migrated");
        Self::Sqlite(pool, folder)
    }

    fn store(&self) -> Box<dyn OutboxStore> {
        match self {
            Self::Postgres(pool, tables, _) => Box::new(PgOutboxStore::new(pool.clone(), tables.clone())),
            Self::MySql(pool, tables) => Box::new(MySqlOutboxStore::new(pool.clone(), tables.clone())),
            Self::Sqlite(pool, _) => Box::new(SqliteOutboxStore::new(pool.clone(), SqliteTables::default())),
        }
    }

    /// Inserts a row as a stranger would; the database itself may refuse it.
    async fn insert(&self, id: &str, headers: Option<&str>) -> Result<(), sqlx::Error> {
        const COLUMNS: &str = "(id, destination, headers, payload)";
        match self {
            Self::Postgres(pool, tables, _) => {
                let sql =
                    format!("INSERT INTO {} {COLUMNS} VALUES ($1, 'rows', $2::jsonb, 'x')", tables.outbox());
                sqlx::query(AssertSqlSafe(sql)).bind(id).bind(headers).execute(pool).await.map(drop)
            }
            Self::MySql(pool, tables) => {
                let sql = format!("INSERT INTO {} {COLUMNS} VALUES (?, 'rows', ?, 'x')", tables.outbox());
                sqlx::query(AssertSqlSafe(sql)).bind(id).bind(headers).execute(pool).await.map(drop)
            }
            Self::Sqlite(pool, _) => {
                let sql = format!("INSERT INTO backstop_outbox {COLUMNS} VALUES (?, 'rows', ?, 'x')");
                sqlx::query(AssertSqlSafe(sql)).bind(id).bind(headers).execute(pool).await.map(drop)
            }
        }
    }

    async fn enqueue(&self, outgoing: Outgoing) {
        match self {
            Self::Postgres(pool, tables, _) => {
                let mut tx = pool.begin().await.expect("begun");
                PgOutbox::with_tables(tables).enqueue(&mut tx, outgoing).await.expect("written");
                tx.commit().await.expect("committed");
            }
            Self::MySql(pool, tables) => {
                let mut tx = pool.begin().await.expect("begun");
                MySqlOutbox::with_tables(tables).enqueue(&mut tx, outgoing).await.expect("written");
                tx.commit().await.expect("committed");
            }
            Self::Sqlite(pool, _) => {
                let mut tx = pool.begin_with("BEGIN IMMEDIATE").await.expect("begun");
                SqliteOutbox::with_tables(&SqliteTables::default())
                    .enqueue(&mut tx, outgoing)
                    .await
                    .expect("written");
                tx.commit().await.expect("committed");
            }
        }
    }

    /// Everything that waits, and the ids of what cannot be read with the reason.
    async fn read(&self) -> (Vec<Message>, Vec<(String, String)>) {
        let mut reader = self.store().reader();
        let (mut messages, mut unreadable) = (Vec::new(), Vec::new());
        loop {
            let claimed = reader.read(10, 4 << 20).await.unwrap_or_else(|error| panic!("{error:?}"));
            let more = claimed.more || !claimed.rows.is_empty() || !claimed.unreadable.is_empty();
            messages.extend(claimed.rows.into_iter().map(|row| row.message));
            unreadable.extend(claimed.unreadable.into_iter().map(|dead| (dead.id.to_string(), dead.error)));
            if !more {
                return (messages, unreadable);
            }
        }
    }

    async fn drop(self) {
        match self {
            Self::Postgres(pool, _, schema) => {
                let sql = format!("DROP SCHEMA {schema} CASCADE");
                sqlx::raw_sql(AssertSqlSafe(sql)).execute(&pool).await.expect("dropped");
            }
            Self::MySql(pool, tables) => {
                MySqlSchema::new(pool, tables).revert(0).await.expect("dropped");
            }
            Self::Sqlite(pool, _) => pool.close().await,
        }
    }
}

/// Publishes everything to that broker. A message is confirmed, or refused for itself; how many were refused.
async fn publish(publisher: &mut dyn Publisher, destination: &Destination, messages: &[Message]) -> usize {
    let binding = publisher.binding(destination);
    let mut waiting = 0;
    for (ticket, message) in messages.iter().enumerate() {
        let envelope = backstop_core::cloudevents::encode(message.clone(), binding);
        match publisher.submit(ticket as u64, destination, envelope) {
            Ok(()) => waiting += 1,
            Err(Refused::Failed(error)) => {
                assert_eq!(error.scope(), Scope::Message, "{}: {error:?}", message.id)
            }
            Err(Refused::Full(_)) => panic!("there is room"),
        }
    }
    let mut confirmations = Vec::new();
    while confirmations.len() < waiting {
        let hearing = timeout(PATIENCE, publisher.confirmations(&mut confirmations));
        hearing.await.expect("confirmed in time");
    }
    for confirmation in confirmations {
        let id = &messages[confirmation.ticket as usize].id;
        confirmation.result.unwrap_or_else(|error: PublishError| panic!("{id}: {error:?}"));
    }
    messages.len() - waiting
}

/// To Kafka and to RabbitMQ; how many each refused.
async fn to_both(messages: &[Message]) -> [usize; 2] {
    let name = servers::unique("rows");
    let destination = Destination::new(&name);
    let mut kafka = KafkaPublisher::new(KafkaSettings::new(servers::kafka()));
    let by_kafka = publish(&mut kafka, &destination, messages).await;
    let settings = RabbitSettings::parse(&servers::amqp_url()).expect("a URL");
    backstop_rabbitmq::declare_queue(&settings, &name).await.expect("declared");
    let mut rabbit = RabbitPublisher::builder(settings.clone()).start().expect("started");
    let by_rabbit = publish(&mut rabbit, &destination, messages).await;
    backstop_rabbitmq::delete_queue(&settings, &name).await.expect("deleted");
    [by_kafka, by_rabbit]
}

/// Inserts what the databases take of these headers, and publishes what can be read of it. The ids that could not be.
async fn goes_or_is_refused(headers: &[(&str, Option<String>)]) -> Vec<[usize; 3]> {
    let mut counts = Vec::new();
    for db in Db::all().await {
        let mut stored = 0;
        for (id, headers) in headers {
            stored += usize::from(db.insert(id, headers.as_deref()).await.is_ok());
        }
        let (messages, unreadable) = db.read().await;
        assert_eq!(messages.len() + unreadable.len(), stored, "{unreadable:?}");
        to_both(&messages).await;
        counts.push([stored, messages.len(), unreadable.len()]);
        db.drop().await;
    }
    counts
}

fn json(pairs: impl IntoIterator<Item = (String, serde_json::Value)>) -> Option<String> {
    Some(serde_json::Value::Object(pairs.into_iter().collect()).to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn s01_headers_that_are_null_empty_or_missing_go_through() {
    let texts = [
        "{}",
        "null",
        r#"{"a":null}"#,
        r#"{"a":""}"#,
        r#"{"":"x"}"#,
        r#"{"a":[]}"#,
        r#"{"a":["1",null,""]}"#,
    ];
    let mut headers: Vec<(&str, Option<String>)> =
        texts.iter().map(|text| (*text, Some((*text).to_owned()))).collect();
    headers.push(("none", None));
    for [stored, read, _] in goes_or_is_refused(&headers).await {
        assert_eq!((stored, read), (8, 8));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn s02_headers_with_odd_names_and_values_go_or_are_refused() {
    let name = |name: &str| json([(name.to_owned(), "v".into())]);
    let mut headers = vec![
        ("255", name(&"n".repeat(255))),
        ("256", name(&"n".repeat(256))),
        ("10000", name(&"n".repeat(10_000))),
        ("NUL", Some(r#"{"a\u0000b":"c\u0000d"}"#.to_owned())),
        ("controls", Some(r#"{"a\u001b[31m\r\n":"\u001b]0;x\u0007\r\n"}"#.to_owned())),
        ("surrogate", Some(r#"{"a":"\ud800"}"#.to_owned())),
        (
            "amqp",
            Some(
                r#"{"amqp:user-id":"x","CC":["amq.gen"],"x-death":"1","amqp:typed":"{\"CC\":1}"}"#.to_owned(),
            ),
        ),
        ("forged", Some(r#"{"ce_id":"7","backstop-attempts":"-1","retry-after":"9999-01-01"}"#.to_owned())),
    ];
    for (id, text) in
        [("array", "[1]"), ("text", "\"a\""), ("number", r#"{"a":1}"#), ("object", r#"{"a":{}}"#)]
    {
        headers.push((id, Some(text.to_owned())));
    }
    headers.push(("broken", Some("{\"a\":".to_owned())));
    for [_, read, unreadable] in goes_or_is_refused(&headers).await {
        assert!(read >= 6, "{read} read");
        assert!(unreadable >= 4, "{unreadable} unreadable");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn s03_headers_without_end_go_or_are_refused() {
    let many = |count: usize| json((0..count).map(|n| (format!("h{n}"), "v".into())));
    let headers = [
        ("many", many(10_000)),
        ("very many", many(100_000)),
        ("long", json([("a".to_owned(), "v".repeat(1 << 20).into())])),
        ("often", json([("a".to_owned(), vec!["v"; 10_000].into())])),
        ("twice", Some(r#"{"a":"1","a":"2"}"#.to_owned())),
        ("deep", Some(format!("{{\"a\":{}{}}}", "[".repeat(3_000), "]".repeat(3_000)))),
    ];
    for [_, read, _] in goes_or_is_refused(&headers).await {
        assert!(read >= 5, "{read} read");
    }
    for db in Db::all().await {
        db.insert("twice", Some(r#"{"a":"1","a":"2"}"#)).await.expect("written");
        let (messages, _) = db.read().await;
        assert_eq!(messages[0].headers.get_str("a"), Some("2"), "the last one counts");
        db.drop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn s07_a_row_over_the_limit_of_a_broker_is_refused_for_itself() {
    for db in Db::all().await {
        // MariaDB itself takes no statement over 16 MiB, which is RabbitMQ's limit, too.
        let (large, refused) =
            if matches!(db, Db::MySql(..)) { (12 << 20, [1, 0]) } else { (17 << 20, [1, 1]) };
        for size in [10, large, 10_usize] {
            let message = Message::new("k").body("text/plain", vec![b'x'; size]);
            db.enqueue(Outgoing::to("orders", message)).await;
        }
        let (messages, unreadable) = db.read().await;
        assert_eq!((messages.len(), unreadable.len()), (3, 0));
        assert_eq!(to_both(&messages).await, refused);
        db.drop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn s07_a_statement_over_mariadbs_limit_is_the_messages_fault() {
    let Db::MySql(pool, tables) = Db::mysql().await else { unreachable!("it is") };
    let mut tx = pool.begin().await.expect("begun");
    let message = Message::new("k").body("text/plain", vec![b'x'; 17 << 20]);
    let outbox = MySqlOutbox::with_tables(&tables);
    let error = outbox.enqueue(&mut tx, Outgoing::to("orders", message)).await.expect_err("too large");
    // The server says so and hangs up while the statement is still being sent: not every time is its answer read.
    assert!(matches!(error.kind(), FaultKind::Invalid | FaultKind::Unreachable), "{error:?}");
    drop(tx);
    Db::MySql(pool, tables).drop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn s16_sql_in_any_column_comes_back_to_the_letter() {
    for db in Db::all().await {
        let sent: Vec<Message> = SQL
            .iter()
            .map(|text| {
                Message::new(*text)
                    .id(*text)
                    .source(*text)
                    .subject(*text)
                    .key(*text)
                    .header(*text, *text)
                    .body(*text, *text)
            })
            .collect();
        for (message, text) in sent.iter().zip(SQL) {
            db.enqueue(Outgoing::to_exchange(text, text, message.clone())).await;
        }
        let (read, unreadable) = db.read().await;
        assert!(unreadable.is_empty(), "{unreadable:?}");
        for (read, sent) in read.iter().zip(&sent) {
            let mut sent = sent.clone();
            (sent.time, sent.headers) = (read.time, sent.headers.clone());
            assert_eq!((&read.id, &read.source, &read.kind), (&sent.id, &sent.source, &sent.kind));
            assert_eq!((&read.subject, &read.key, &read.body), (&sent.subject, &sent.key, &sent.body));
            assert_eq!((&read.content_type, &read.headers), (&sent.content_type, &sent.headers));
        }
        db.drop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn s17_a_row_cannot_reach_what_belongs_to_a_broker() {
    let long = "x".repeat(256);
    let mut kafka = KafkaPublisher::new(KafkaSettings::new(servers::kafka()));
    for name in ["__consumer_offsets", "__transaction_state", "..", "a/b", "a b", "a\0b", "ü", &long, ""] {
        assert!(is_refused(&mut kafka, &Destination::new(name)), "{name:?}");
    }
    let settings = RabbitSettings::parse(&servers::amqp_url()).expect("a URL");
    let mut rabbit = RabbitPublisher::builder(settings).start().expect("started");
    for name in ["amq.gen-1", "amq.rabbitmq.reply-to", "", &long] {
        assert!(is_refused(&mut rabbit, &Destination::new(name)), "{name:?}");
    }
    for (exchange, key) in
        [("amq.rabbitmq.trace", "x"), ("", "amq.gen-1"), ("", "amq.rabbitmq.reply-to.g1"), ("x", &long)]
    {
        assert!(is_refused(&mut rabbit, &Destination::exchange(exchange, key)), "{exchange:?} {key:?}");
    }
}

/// Whether the destination is refused before anything is sent.
fn is_refused(publisher: &mut dyn Publisher, destination: &Destination) -> bool {
    matches!(publisher.submit(1, destination, Message::new("k").envelope()), Err(Refused::Failed(_)))
}
