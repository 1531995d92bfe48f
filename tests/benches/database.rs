//! A PostgreSQL database with an outbox.

use std::sync::Arc;
use std::time::{Duration, Instant};

use backstop::schema::Schema as _;
use backstop::{Message, Outgoing};
use backstop_core::outbox::OutboxStore;
use backstop_postgres::{PgOutbox, PgOutboxStore, PgSchema, PgTables};
use sqlx::postgres::{PgConnectOptions, PgPoolCopyExt as _, PgPoolOptions, PgSslMode};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, PgPool, Postgres, Row as _, Transaction};
use tokio::time::sleep;

use crate::outbox::{Backlog, Outbox};
use crate::servers::{Servers, unique};
use crate::{Outcome, event};

/// The longest wait for the end of a backlog.
const PATIENCE: Duration = Duration::from_secs(1_200);
/// How long dropping a database may take.
const DROPPED: Duration = Duration::from_secs(60);
/// Bytes that are handed to the server at once.
const COPY_AT_ONCE: usize = 1 << 20;

/// A database of its own: the server counts its transactions apart.
#[derive(Debug, Clone)]
pub(crate) struct Database {
    name: String,
    /// Its URL.
    pub(crate) url: String,
    server: PgConnectOptions,
    pub(crate) pool: PgPool,
    outbox: PgOutbox,
}

impl Database {
    /// Makes a database with Backstop's tables.
    pub(crate) async fn fresh(servers: &Servers, stem: &str) -> Outcome<Self> {
        let server: PgConnectOptions = servers.postgres.parse()?;
        let name = unique(stem);
        let url = renamed(&servers.postgres, &name).ok_or("the URL of PostgreSQL names no database")?;
        execute(&server, format!("CREATE DATABASE {name}")).await?;
        let pool = connect(server.clone().database(&name), 20).await?;
        PgSchema::new(pool.clone(), PgTables::default()).migrate().await?;
        Ok(Self { name, url, server, pool, outbox: PgOutbox::default() })
    }

    /// Another pool on it.
    pub(crate) async fn pool_of(&self, connections: u32) -> Outcome<PgPool> {
        connect(self.server.clone().database(&self.name), connections).await
    }

    /// Sessions of clients in it, this one included.
    pub(crate) async fn sessions(&self) -> Outcome<i64> {
        let sessions = "SELECT count(*) FROM pg_stat_activity \
                        WHERE datname = current_database() AND backend_type = 'client backend'";
        Ok(sqlx::query_scalar(sessions).fetch_one(&self.pool).await?)
    }

    /// Empties the outbox.
    pub(crate) async fn clear(&self) -> Outcome<()> {
        sqlx::query("TRUNCATE backstop_outbox").execute(&self.pool).await?;
        Ok(())
    }

    /// The number of the row that was written last.
    pub(crate) async fn last_seq(&self) -> Outcome<i64> {
        let last = "SELECT last_value FROM backstop_outbox_seq_seq";
        Ok(sqlx::query_scalar(last).fetch_one(&self.pool).await?)
    }

    /// Waits until the row with that number is published and deleted. Counting rows would walk over all that are
    /// deleted already, and so slow down what is measured.
    pub(crate) async fn gone(&self, seq: i64) -> Outcome<()> {
        let until = Instant::now() + PATIENCE;
        let mut connection = self.pool.acquire().await?;
        let mut pause = Duration::from_millis(1);
        loop {
            let row = sqlx::query("SELECT FROM backstop_outbox WHERE seq = $1").bind(seq);
            if row.fetch_optional(&mut *connection).await?.is_none() {
                return Ok(());
            }
            if Instant::now() > until {
                return Err("the relay does not drain its backlog".into());
            }
            sleep(pause).await;
            // never more than a fiftieth of what is measured
            pause = pause.mul_f64(1.02).min(Duration::from_millis(10));
        }
    }

    /// Writes one event into the outbox, in the caller's transaction.
    pub(crate) async fn enqueue(
        &self,
        tx: &mut Transaction<'_, Postgres>,
        place: &str,
        n: usize,
    ) -> Outcome<()> {
        let message = Message::new("bench.event")
            .id(event::id(n))
            .source("/bench")
            .key(event::key(n))
            .body("application/json", event::payload(n));
        Ok(self.outbox.enqueue(tx, Outgoing::to(place, message)).await?)
    }

    /// Gives sessions that begin from now on a setting that is a superuser's to give, or takes it back.
    ///
    /// The superuser comes in by the server's Unix socket, where those who may open it are asked for no password.
    pub(crate) async fn set(&self, setting: &str, value: Option<u32>) -> Outcome<()> {
        let folders: String =
            sqlx::query_scalar("SHOW unix_socket_directories").fetch_one(&self.pool).await?;
        let folder = folders.split(',').next().unwrap_or_default().trim();
        let superuser = PgConnectOptions::new_without_pgpass()
            .socket(folder)
            .port(self.server.get_port())
            .username("postgres")
            .database(&self.name)
            .ssl_mode(PgSslMode::Disable);
        let change = value.map_or(format!("RESET {setting}"), |value| format!("SET {setting} = {value}"));
        let changed = execute(&superuser, format!("ALTER DATABASE {} {change}", self.name)).await;
        changed.map_err(|error| format!("{setting} cannot be set as superuser by {folder}: {error}").into())
    }

    /// Drops it.
    pub(crate) async fn drop(self) -> Outcome<()> {
        self.pool.close().await;
        let until = Instant::now() + DROPPED;
        let drop = || execute(&self.server, format!("DROP DATABASE {} WITH (FORCE)", self.name));
        // The server's own vacuum, which only itself may end, may be at work in it.
        while let Err(error) = drop().await {
            if Instant::now() > until {
                return Err(error);
            }
            sleep(Duration::from_millis(200)).await;
        }
        Ok(())
    }
}

/// The URL with another database in it.
fn renamed(url: &str, database: &str) -> Option<String> {
    let path = url.split('?').next()?;
    let server = path.rsplit_once('/')?.0;
    Some(format!("{server}/{database}{}", &url[path.len()..]))
}

async fn connect(options: PgConnectOptions, connections: u32) -> Outcome<PgPool> {
    let port = options.get_port();
    let pool = PgPoolOptions::new().max_connections(connections).acquire_timeout(Duration::from_secs(30));
    let pool = pool.after_connect(move |_, _| {
        backstop_postgres::set_nodelay(port);
        Box::pin(async { Ok(()) })
    });
    Ok(pool.connect_with(options).await?)
}

async fn execute(server: &PgConnectOptions, statement: String) -> Outcome<()> {
    let mut connection = server.connect().await?;
    sqlx::query(AssertSqlSafe(statement)).execute(&mut connection).await?;
    Ok(connection.close().await?)
}

impl Outbox for Database {
    fn store(&self) -> Arc<dyn OutboxStore> {
        Arc::new(PgOutboxStore::new(self.pool.clone(), PgTables::default()))
    }

    /// In one transaction, so that a relay that runs sees all of them at once.
    async fn fill(&self, backlog: &Backlog) -> Outcome<()> {
        let mut copy = self
            .pool
            .copy_in_raw(
                "COPY backstop_outbox (id, source, destination, key, kind, event_time, content_type, payload) \
                 FROM STDIN (FORMAT binary)",
            )
            .await?;
        let mut buffer = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0".to_vec();
        for (n, place) in backlog.rows() {
            append(&mut buffer, n, place);
            if buffer.len() > COPY_AT_ONCE {
                copy.send(std::mem::take(&mut buffer)).await?;
            }
        }
        buffer.extend((-1_i16).to_be_bytes());
        copy.send(buffer).await?;
        copy.finish().await?;
        Ok(())
    }
}

/// Appends a row in the binary format of COPY.
fn append(buffer: &mut Vec<u8>, n: usize, place: &str) {
    let (id, key, payload) = (event::id(n), event::key(n), event::payload(n));
    let time = event::MICROS_SINCE_2000.to_be_bytes();
    let values = [
        id.as_bytes(),
        b"/bench",
        place.as_bytes(),
        key.as_bytes(),
        b"bench.event",
        &time,
        b"application/json",
        &payload,
    ];
    buffer.extend((values.len() as i16).to_be_bytes());
    for value in values {
        buffer.extend((value.len() as i32).to_be_bytes());
        buffer.extend(value);
    }
}

/// Empties the outbox without any broker, on one connection; rows a second.
pub(crate) async fn claim_and_delete(database: &Database, batch: usize) -> Outcome<f64> {
    let mut connection = database.pool.acquire().await?;
    sqlx::query("ANALYZE backstop_outbox").execute(&mut *connection).await?;
    let began = Instant::now();
    let mut claimed = 0;
    loop {
        let rows = sqlx::query(
            "SELECT seq, id, source, destination, routing_key, key, kind, subject, event_time, content_type, \
             headers::text, payload FROM backstop_outbox ORDER BY seq LIMIT $1",
        )
        .bind(i64::try_from(batch)?)
        .fetch_all(&mut *connection)
        .await?;
        if rows.is_empty() {
            return Ok(f64::from(claimed) / began.elapsed().as_secs_f64());
        }
        let seqs: Vec<i64> = rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?;
        claimed += u32::try_from(seqs.len())?;
        sqlx::query("DELETE FROM backstop_outbox WHERE seq = ANY($1)")
            .bind(seqs)
            .execute(&mut *connection)
            .await?;
    }
}
