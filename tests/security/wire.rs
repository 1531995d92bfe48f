//! S12: answers that are damaged or end in the middle. Whatever a client makes of them, it does so within bounded time and
//! without a panic, and works again on a sound network.
//!
//! TLS is off: over it, no such byte reaches the protocol behind it.

use std::fmt;
use std::net::SocketAddr;
use std::sync::{Mutex, Once, PoisonError};
use std::time::Duration;

use backstop_core::outbox::{OutboxReader, OutboxStore};
use backstop_core::schema::Schema;
use backstop_core::sink::Sink;
use backstop_core::{AdapterError, Destination, Envelope, FaultKind};
use backstop_kafka::{KafkaSettings, KafkaSink};
use backstop_mysql::{MySqlOutboxStore, MySqlSchema, MySqlTables};
use backstop_postgres::{PgOutboxStore, PgSchema, PgTables};
use backstop_rabbitmq::{RabbitSettings, RabbitSink};
use backstop_testkit::fault::Proxy;
use backstop_tests::servers;
use futures_util::{FutureExt, StreamExt, stream};
use sqlx::AssertSqlSafe;
use tokio::time::{Instant, sleep, timeout};

/// Bytes of the server before the damage: within lengths, types and texts, of the first answers and of later ones.
const PLACES: [usize; 16] = [0, 1, 2, 3, 4, 5, 7, 9, 13, 20, 34, 60, 110, 240, 500, 1_100];
/// What is done to a byte: its sign, its smallest bit, all of it.
const MASKS: [u8; 3] = [0x80, 0x01, 0xff];
/// How long a client may take to give up. Most of them wait ten seconds for bytes that a damaged length promises.
const LIMIT: Duration = Duration::from_secs(90);
/// How soon it works again. librdkafka waits for a minute for what a damaged length promises.
const RECOVERY: Duration = Duration::from_secs(100);
/// Cases at once.
const AT_ONCE: usize = 12;

/// What happens to the answers.
#[derive(Debug, Clone, Copy)]
enum Damage {
    Flip(usize, u8),
    Cut(usize),
}

impl Damage {
    fn all() -> Vec<Self> {
        let flips = PLACES.into_iter().flat_map(|place| MASKS.map(|mask| Self::Flip(place, mask)));
        flips.chain(PLACES.map(Self::Cut)).collect()
    }

    fn begin(self, proxy: &Proxy) {
        match self {
            Self::Flip(place, mask) => proxy.flip_after(place, mask),
            Self::Cut(place) => proxy.cut_answers_after(place),
        }
    }
}

/// A server behind a proxy, and a client of it.
trait Peer {
    type Client;

    /// What is tried.
    fn damages(&self) -> Vec<Damage> {
        Damage::all()
    }

    async fn proxy(&self) -> Proxy;
    async fn client(&self, address: SocketAddr) -> Result<Self::Client, AdapterError>;
    /// Something that takes an answer.
    async fn work(&self, client: &mut Self::Client) -> Result<(), AdapterError>;
}

/// Where something panicked that is not known to.
static PANICS: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Where sqlx is known to panic: it indexes into an answer without looking at its length. A relay's job that panics is
/// replaced, or ends the process with an exit code.
///
/// The second and third are where sqlx's drivers end when a packet is shorter than it says; nothing of ours cuts bytes
/// there. What a test says of itself is no panic of a client.
const KNOWN: [&str; 4] = [
    "sqlx-postgres-0.9.0/src/message/ready_for_query.rs",
    "bytes-1.12.1/src/bytes.rs",
    "bytes-1.12.1/src/lib.rs",
    "tests/security/wire.rs",
];

/// What a task of lapin's says when a test is over and its runtime ends while that task waits for another one, such as the
/// resolution of a name.
const CANCELLED: &str = "Task did not complete: task ";

/// Counts panics, also those that a task or thread of a driver keeps to itself.
fn count_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let place = panic.location().map_or_else(String::new, ToString::to_string);
            let file = panic.location().map_or("", |place| place.file());
            let text = panic.payload().downcast_ref::<String>();
            let is_cancelled = text.is_some_and(|text| text.starts_with(CANCELLED));
            if !is_cancelled && !KNOWN.iter().any(|known| file.ends_with(known)) {
                PANICS.lock().unwrap_or_else(PoisonError::into_inner).push(place);
            }
            usual(panic);
        }));
    });
}

async fn bounded<T>(damage: Damage, what: &str, work: impl Future<Output = T>) -> T {
    timeout(LIMIT, work).await.unwrap_or_else(|_| panic!("{damage:?}: {what} has no end"))
}

/// A client meets the damage while it connects.
async fn while_connecting<P: Peer>(peer: &P, damage: Damage) {
    let proxy = peer.proxy().await;
    damage.begin(&proxy);
    bounded(damage, "connecting", async {
        if let Ok(mut client) = peer.client(proxy.address()).await {
            let _ = peer.work(&mut client).await;
        }
    })
    .await;
    proxy.resume();
    let end = Instant::now() + RECOVERY;
    let fresh = async || peer.work(&mut peer.client(proxy.address()).await?).await;
    while let Err(error) = bounded(damage, "a new client", fresh()).await {
        assert!(Instant::now() < end, "{damage:?}: no new client works: {error:?}");
        sleep(Duration::from_millis(100)).await;
    }
}

/// A client meets it at work, and goes on later.
async fn at_work<P: Peer>(peer: &P, damage: Damage) {
    let proxy = peer.proxy().await;
    let mut client = peer.client(proxy.address()).await.unwrap_or_else(|error| panic!("{error:?}"));
    peer.work(&mut client).await.unwrap_or_else(|error| panic!("{error:?}"));
    damage.begin(&proxy);
    let _ = bounded(damage, "work", peer.work(&mut client)).await;
    proxy.resume();
    let end = Instant::now() + RECOVERY;
    while let Err(error) = bounded(damage, "work afterwards", peer.work(&mut client)).await {
        assert!(Instant::now() < end, "{damage:?}: the client does not come back: {error:?}");
        sleep(Duration::from_millis(100)).await;
    }
}

async fn survives<P: Peer + fmt::Debug>(peer: P) {
    count_panics();
    let damages = peer.damages();
    let connecting = damages.iter().map(|damage| while_connecting(&peer, *damage));
    stream::iter(connecting).buffer_unordered(AT_ONCE).collect::<Vec<()>>().await;
    let working = damages.iter().map(|damage| at_work(&peer, *damage));
    stream::iter(working).buffer_unordered(AT_ONCE).collect::<Vec<()>>().await;
    let panics = PANICS.lock().unwrap_or_else(PoisonError::into_inner);
    assert!(panics.is_empty(), "{peer:?}: something panicked: {panics:?}");
}

/// The server and the rest of a URL such as `mysql://user:password@server/rest`.
fn server_of(url: &str) -> &str {
    let after = url.rsplit_once('@').map_or(url, |(_, after)| after);
    after.split('/').next().unwrap_or(after)
}

type Reading<S> = (S, Box<dyn OutboxReader>);

/// How long a read may take; the relay sets such a limit itself.
const SILENCE: Duration = Duration::from_secs(30);

/// Reads the outbox from its beginning, and who has its lease.
async fn read(store: &impl OutboxStore, reader: &mut Box<dyn OutboxReader>) -> Result<(), AdapterError> {
    reader.reset();
    let reading = async {
        reader.read(100, 1 << 20).await?;
        store.holder("outbox").await.map(drop)
    };
    let silent = || AdapterError::new(FaultKind::Unreachable, "no answer");
    // A panic of the driver is not to end the test: it is counted.
    let reading = timeout(SILENCE, std::panic::AssertUnwindSafe(reading).catch_unwind()).await;
    reading.unwrap_or_else(|_| Ok(Err(silent()))).unwrap_or_else(|_| Err(silent()))
}

const ROWS: &str = "(id, destination, headers, payload) VALUES ('1', 'orders', '{\"a\": [\"b\", null]}', 'body'), \
                    ('2', 'orders', NULL, NULL)";

#[derive(Debug)]
struct Postgres(PgTables);

impl Peer for Postgres {
    type Client = Reading<PgOutboxStore>;

    async fn proxy(&self) -> Proxy {
        Proxy::start(server_of(&servers::postgres_url())).await.expect("a port")
    }

    async fn client(&self, address: SocketAddr) -> Result<Self::Client, AdapterError> {
        let url = servers::postgres_url();
        let (url, _) = url.split_once('?').unwrap_or((&url, ""));
        let url = url.replace(server_of(url), &address.to_string());
        let pool = backstop_postgres::open(&format!("{url}?sslmode=disable")).await?;
        let store = PgOutboxStore::new(pool, self.0.clone());
        let reader = store.reader();
        Ok((store, reader))
    }

    async fn work(&self, (store, reader): &mut Self::Client) -> Result<(), AdapterError> {
        read(store, reader).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn s12_damaged_answers_of_postgresql_are_errors() {
    let schema = servers::unique("wire").replace('-', "_");
    let tables = PgTables::in_schema(&schema).expect("a name");
    let pool = backstop_postgres::open(&servers::postgres_url()).await.expect("PostgreSQL answers");
    PgSchema::new(pool.clone(), tables.clone()).migrate().await.expect("migrated");
    let insert = format!("INSERT INTO {} {ROWS}", tables.outbox());
    sqlx::raw_sql(AssertSqlSafe(insert)).execute(&pool).await.expect("written");
    survives(Postgres(tables)).await;
    let drop = format!("DROP SCHEMA {schema} CASCADE");
    sqlx::raw_sql(AssertSqlSafe(drop)).execute(&pool).await.expect("dropped");
}

#[derive(Debug)]
struct MySql(MySqlTables);

impl Peer for MySql {
    type Client = Reading<MySqlOutboxStore>;

    async fn proxy(&self) -> Proxy {
        Proxy::start(server_of(&servers::required("BACKSTOP_TEST_MYSQL_URL"))).await.expect("a port")
    }

    async fn client(&self, address: SocketAddr) -> Result<Self::Client, AdapterError> {
        let url = servers::required("BACKSTOP_TEST_MYSQL_URL");
        let url = url.replace(server_of(&url), &address.to_string());
        let pool = backstop_mysql::open(&format!("{url}?ssl-mode=DISABLED")).await?;
        let store = MySqlOutboxStore::new(pool, self.0.clone());
        let reader = store.reader();
        Ok((store, reader))
    }

    async fn work(&self, (store, reader): &mut Self::Client) -> Result<(), AdapterError> {
        read(store, reader).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn s12_damaged_answers_of_mariadb_are_errors() {
    let name = servers::unique("wire").replace('-', "_");
    let tables = MySqlTables::default().with_prefix(&name).expect("a name");
    let url = servers::required("BACKSTOP_TEST_MYSQL_URL");
    let pool = backstop_mysql::open(&url).await.expect("MariaDB answers");
    let schema = MySqlSchema::new(pool.clone(), tables.clone());
    schema.migrate().await.expect("migrated");
    let insert = format!("INSERT INTO {} {ROWS}", tables.outbox());
    sqlx::raw_sql(AssertSqlSafe(insert)).execute(&pool).await.expect("written");
    survives(MySql(tables)).await;
    schema.revert(0).await.expect("dropped");
}

fn envelope() -> Envelope {
    Envelope { key: Some("k".into()), body: Some("body".into()), ..Envelope::default() }
}

#[derive(Debug)]
struct Kafka(Destination);

impl Peer for Kafka {
    type Client = KafkaSink;

    /// Bits are flipped in the frame, not behind it: rdkafka-sys makes an enum of whatever number librdkafka has for an
    /// error, and one that is none ends the process.
    fn damages(&self) -> Vec<Damage> {
        const FRAME: usize = 8;
        let within = |damage: &Damage| !matches!(damage, Damage::Flip(place, _) if *place >= FRAME);
        Damage::all().into_iter().filter(within).collect()
    }

    async fn proxy(&self) -> Proxy {
        Proxy::before_kafka(servers::kafka().parse().expect("an address")).await.expect("a port")
    }

    async fn client(&self, address: SocketAddr) -> Result<Self::Client, AdapterError> {
        let settings = KafkaSettings::new(address.to_string());
        Ok(KafkaSink::new(settings).publish_timeout(Duration::from_secs(5)))
    }

    async fn work(&self, client: &mut Self::Client) -> Result<(), AdapterError> {
        client
            .publish(&self.0, envelope())
            .await
            .map_err(|error| AdapterError::new(error.error().kind(), error.to_string()))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn s12_damaged_answers_of_kafka_are_errors() {
    survives(Kafka(Destination::new(servers::unique("wire")))).await;
}

#[derive(Debug)]
struct RabbitMq(Destination);

impl Peer for RabbitMq {
    type Client = RabbitSink;

    async fn proxy(&self) -> Proxy {
        Proxy::start(server_of(&servers::amqp_url())).await.expect("a port")
    }

    async fn client(&self, address: SocketAddr) -> Result<Self::Client, AdapterError> {
        let url = servers::amqp_url();
        Ok(RabbitSink::new(RabbitSettings::parse(&url.replace(server_of(&url), &address.to_string()))?))
    }

    async fn work(&self, client: &mut Self::Client) -> Result<(), AdapterError> {
        client
            .publish(&self.0, envelope())
            .await
            .map_err(|error| AdapterError::new(error.error().kind(), error.to_string()))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn s12_damaged_answers_of_rabbitmq_are_errors() {
    let queue = servers::unique("wire");
    let settings = RabbitSettings::parse(&servers::amqp_url()).expect("a URL");
    backstop_rabbitmq::declare_queue(&settings, &queue).await.expect("declared");
    survives(RabbitMq(Destination::new(&queue))).await;
    backstop_rabbitmq::delete_queue(&settings, &queue).await.expect("deleted");
}
