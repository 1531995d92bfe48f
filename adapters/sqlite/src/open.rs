//! Opening a database file.

use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use backstop_core::{AdapterError, FaultKind};
use sqlx::SqlitePool;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};

use crate::error::{adapter, is_busy};

/// How long a statement waits for the write lock.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// Connections of the pool that [`open`] makes: one writes, the others read or wait for their turn.
const CONNECTIONS: u32 = 8;

/// Opens a file, by its path or by a URL such as `sqlite:///var/lib/shop.db`, with the settings of [`options`]; the
/// file is created where it does not exist. The pool has up to 8 connections.
///
/// # Errors
/// When the file cannot be opened, or is a database in memory.
pub async fn open(path_or_url: &str) -> Result<SqlitePool, AdapterError> {
    let options = options(path_or_url)?;
    let pool = SqlitePoolOptions::new()
        .max_connections(CONNECTIONS)
        .acquire_timeout(BUSY_TIMEOUT)
        .connect_lazy_with(options);
    // Changing to the write-ahead log does not wait for others who open the file at the same time.
    let mut tries = 0;
    loop {
        match pool.acquire().await {
            Ok(_) => return Ok(pool),
            Err(error) if is_busy(&error) && tries < 100 => tries += 1,
            Err(error) => return Err(adapter("cannot open the database file", error)),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The settings that Backstop's promises rest on, for an application that makes its own pool.
///
/// - write-ahead log: readers and the writer do not wait for each other;
/// - `synchronous = FULL`: a commit is on the disk when it returns (with `NORMAL` a power cut may lose the last
///   commits, and with them inbox rows of messages that are settled already);
/// - 10 s of patience for the write lock;
/// - foreign keys enforced;
/// - the file is created where it does not exist (by path; a URL says `?mode=rwc`).
///
/// Write transactions of the application should begin with `BEGIN IMMEDIATE` (`pool.begin_with("BEGIN IMMEDIATE")`):
/// one that reads first and writes later fails with `SQLITE_BUSY` when another writer came between.
///
/// # Errors
/// When the URL is malformed, or names a database in memory: each connection would have one of its own.
pub fn options(path_or_url: &str) -> Result<SqliteConnectOptions, AdapterError> {
    let invalid = |what: &str| {
        AdapterError::new(FaultKind::Invalid, what.to_owned())
            .with_hint("name a file, such as `shop.db` or `sqlite:///var/lib/shop.db`")
    };
    if path_or_url.contains('\0') {
        return Err(invalid("the path of the database holds a NUL"));
    }
    let options = if path_or_url.starts_with("sqlite:") {
        let parsed = SqliteConnectOptions::from_str(path_or_url);
        parsed.map_err(|error| invalid("the URL of the database is malformed").with_source(error))?
    } else {
        SqliteConnectOptions::new().filename(path_or_url).create_if_missing(true)
    };
    let memory = path_or_url.contains(":memory:") || path_or_url.contains("mode=memory");
    if memory || options.get_filename() == Path::new("") {
        return Err(invalid("a database in memory cannot be shared by the connections of a pool"));
    }
    Ok(options
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(BUSY_TIMEOUT)
        .foreign_keys(true))
}
