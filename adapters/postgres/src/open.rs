//! Opening a pool for programs that are not applications, such as the relay.

use std::str::FromStr;
use std::time::Duration;

use backstop_core::{AdapterError, FaultKind};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{ConnectOptions, Connection, PgPool};
use tokio::time::timeout;

use crate::failure::failed;

/// Connections of the pool that [`open`] makes.
const CONNECTIONS: u32 = 24;
/// How long connecting, and waiting for a connection of the pool, may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Opens a pool of up to 24 connections, enough for one consumer with its defaults, to the server of a `postgres://`
/// URL, after one connection has shown that the server takes them. The connections are named `backstop` unless the URL
/// says otherwise.
///
/// Applications use a pool of their own: nothing here rests on its settings. One setting of this pool is worth having
/// all the same, where sqlx is 0.9.0: `TCP_NODELAY` on Linux, without which statements of more than 16 KiB wait up to
/// 40 ms under TLS. A pool of one's own gets it by [`set_nodelay`](crate::set_nodelay) in `after_connect`.
///
/// # Errors
/// When the URL is malformed, the server cannot be reached within 10 s, or refuses. No text repeats the URL.
pub async fn open(url: &str) -> Result<PgPool, AdapterError> {
    // The parser's own words may repeat a part of the URL, so they are left out.
    let options = PgConnectOptions::from_str(url).map_err(|_| {
        AdapterError::new(FaultKind::Invalid, "the URL of the database is malformed").with_hint(
            "write postgres://user:password@host:5432/database, with special characters percent-encoded",
        )
    })?;
    let options = match options.get_application_name() {
        Some(_) => options,
        None => options.application_name("backstop"),
    };
    let place = format!("PostgreSQL at {}:{}", options.get_host(), options.get_port());
    let connection = timeout(PATIENCE, options.connect()).await.map_err(|_| {
        AdapterError::new(
            FaultKind::Unreachable,
            format!("{place} did not answer within {} s", PATIENCE.as_secs()),
        )
        .with_hint("check host, port and firewall")
    })?;
    let connection = connection.map_err(failed(&format!("connect to {place}")))?;
    connection.close().await.map_err(failed(&format!("talk to {place}")))?;
    let port = options.get_port();
    Ok(PgPoolOptions::new()
        .max_connections(CONNECTIONS)
        .acquire_timeout(PATIENCE)
        .after_connect(move |_, _| {
            backstop_nodelay::set(port);
            Box::pin(async { Ok(()) })
        })
        .connect_lazy_with(options))
}
