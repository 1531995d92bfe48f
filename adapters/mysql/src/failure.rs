//! sqlx's errors as the one error that adapters report.

use backstop_core::{AdapterError, FaultKind};
use sqlx::mysql::MySqlDatabaseError;

/// Turns an error into ours: `doing` completes "cannot …". The server's words stay in the source.
pub(crate) fn failed(doing: &str) -> impl FnOnce(sqlx::Error) -> AdapterError {
    let what = format!("cannot {doing}");
    move |error| {
        let (kind, hint) = judged(&error);
        let ours = AdapterError::new(kind, what);
        let ours = match hint {
            Some(hint) => ours.with_hint(hint),
            None => ours,
        };
        ours.with_source(error)
    }
}

/// The server's error with its number, if it is one.
pub(crate) fn database_error(error: &sqlx::Error) -> Option<&MySqlDatabaseError> {
    match error {
        sqlx::Error::Database(error) => error.try_downcast_ref::<MySqlDatabaseError>(),
        _ => None,
    }
}

/// The number of the server's error, if it sent one.
pub(crate) fn number(error: &sqlx::Error) -> Option<u16> {
    database_error(error).map(MySqlDatabaseError::number)
}

/// Numbers of errors that Backstop acts upon.
pub(crate) mod errors {
    /// A row with that key is there.
    pub(crate) const DUPLICATE: u16 = 1062;
    /// There is no savepoint of that name.
    pub(crate) const NO_SAVEPOINT: u16 = 1305;
    /// A deadlock: the whole transaction is rolled back.
    pub(crate) const DEADLOCK: u16 = 1213;
    /// The wait for a lock took too long: the statement is rolled back.
    pub(crate) const LOCK_TIMEOUT: u16 = 1205;
    /// MySQL's answer to NOWAIT.
    pub(crate) const LOCKED: u16 = 3572;
    /// MariaDB's snapshot isolation: the row has changed since the transaction began.
    pub(crate) const CHANGED_ROW: u16 = 1020;
    /// The table was changed under a snapshot.
    pub(crate) const CHANGED_TABLE: u16 = 1412;
    /// A statement is larger than `max_allowed_packet`. Its SQLSTATE is that of a lost connection, which it is not.
    pub(crate) const TOO_LARGE: u16 = 1153;
    /// There is no such table.
    pub(crate) const NO_TABLE: u16 = 1146;
    /// There is no such database.
    pub(crate) const NO_DATABASE: u16 = 1049;
    /// A column without a default was given no value.
    pub(crate) const NO_DEFAULT: u16 = 1364;
    /// There is no such column.
    pub(crate) const NO_COLUMN: u16 = 1054;
    /// There is such a column already.
    pub(crate) const COLUMN_EXISTS: u16 = 1060;
    /// There is no such column to be dropped.
    pub(crate) const NO_SUCH_COLUMN: u16 = 1091;
    /// No permission on a column.
    pub(crate) const COLUMN_DENIED: u16 = 1143;
    /// No permission on a table.
    pub(crate) const TABLE_DENIED: u16 = 1142;
    /// An option, mostly `read_only`, prevents the statement.
    pub(crate) const OPTION: u16 = 1290;
    /// The server is in read-only mode.
    pub(crate) const READ_ONLY_MODE: u16 = 1836;
    /// The transaction is a read-only one.
    pub(crate) const READ_ONLY_TRANSACTION: u16 = 1792;
}

/// Whether another instance was at it: the wait for its lock was cut short, or broken as a deadlock.
pub(crate) fn is_busy(error: &sqlx::Error) -> bool {
    matches!(
        number(error),
        Some(errors::DEADLOCK | errors::LOCK_TIMEOUT | errors::LOCKED | errors::CHANGED_ROW)
    )
}

/// Whether the server, or the place in it, takes no writes: a replica, or a primary that lost its role.
pub(crate) fn is_read_only(error: &MySqlDatabaseError) -> bool {
    match error.number() {
        errors::READ_ONLY_MODE | errors::READ_ONLY_TRANSACTION => true,
        // The same number tells of other options.
        errors::OPTION => error.message().contains("read-only") || error.message().contains("read_only"),
        _ => false,
    }
}

fn judged(error: &sqlx::Error) -> (FaultKind, Option<&'static str>) {
    match error {
        sqlx::Error::PoolTimedOut => (
            FaultKind::Unreachable,
            Some("allow more connections in the pool, or let fewer messages be handled at once"),
        ),
        sqlx::Error::Io(error) if is_distrust(error) => (FaultKind::Denied, Some(CERTIFICATES)),
        sqlx::Error::Io(error) if error.kind() == std::io::ErrorKind::NotFound => (
            FaultKind::Unreachable,
            Some("check that the server runs, and that the files exist that the database URL names"),
        ),
        sqlx::Error::Io(_) | sqlx::Error::PoolClosed | sqlx::Error::WorkerCrashed => {
            (FaultKind::Unreachable, Some("check that the server runs and can be reached"))
        }
        sqlx::Error::Tls(_) => (FaultKind::Denied, Some(CERTIFICATES)),
        sqlx::Error::Protocol(_) | sqlx::Error::BeginFailed => (FaultKind::Unreachable, None),
        sqlx::Error::Configuration(_) => (FaultKind::Invalid, Some("check the database URL")),
        _ => database_error(error).map_or((FaultKind::Other, None), judged_by_number),
    }
}

/// What to mend where server and client do not trust each other.
const CERTIFICATES: &str = "check that the server has TLS, that ssl-ca of the database URL holds the authority of its certificate, that this names the host of the URL, that ssl-cert and ssl-key are a certificate the server knows, and that both are valid now";

/// Whether TLS has given a connection up. The type of the error is rustls's, which only its words show here.
fn is_distrust(error: &std::io::Error) -> bool {
    let words = error.to_string();
    ["invalid peer certificate", "received fatal alert"].iter().any(|beginning| words.starts_with(beginning))
}

fn judged_by_number(error: &MySqlDatabaseError) -> (FaultKind, Option<&'static str>) {
    if is_read_only(error) {
        return (FaultKind::Unreachable, Some("connect to the primary: this server is read-only"));
    }
    match error.number() {
        errors::DEADLOCK
        | errors::LOCK_TIMEOUT
        | errors::LOCKED
        | errors::CHANGED_ROW
        | errors::CHANGED_TABLE => (FaultKind::Conflict, None),
        errors::NO_TABLE | errors::NO_COLUMN | 1109 => (
            FaultKind::Missing,
            Some("run `backstop-relay migrate`, or check the database and prefix of the tables"),
        ),
        1046 | errors::NO_DATABASE => {
            (FaultKind::Missing, Some("create the database, or correct its name in the URL"))
        }
        errors::TABLE_DENIED | errors::COLUMN_DENIED | 1227 | 1370 => {
            (FaultKind::Denied, Some("grant the user its permissions: see migrations/README.md"))
        }
        1044 | 1045 | 1698 | 1820 | 1862 | 3118 => (
            FaultKind::Denied,
            Some(
                "check the user, password and database of the database URL, and ssl-mode and ssl-cert where the user must use TLS",
            ),
        ),
        1040 | 1203 | 1226 => (FaultKind::Unreachable, Some("raise max_connections, or use smaller pools")),
        errors::TOO_LARGE => {
            (FaultKind::Invalid, Some("raise max_allowed_packet of the server, or write less at once"))
        }
        1665 => (FaultKind::Invalid, Some("set binlog_format to ROW or MIXED")),
        number => (kind_of(number, error.code()), None),
    }
}

/// The kind of an error that has no remedy of its own.
fn kind_of(number: u16, sqlstate: Option<&str>) -> FaultKind {
    match (number, sqlstate.and_then(|state| state.get(..2))) {
        (number, _) if crate::explain::is_outage(number) => FaultKind::Unreachable,
        (_, Some("08")) => FaultKind::Unreachable,
        (_, Some("22" | "23")) => FaultKind::Invalid,
        _ => FaultKind::Other,
    }
}

/// An input that can never be stored.
pub(crate) fn invalid(what: impl Into<String>, hint: &str) -> AdapterError {
    AdapterError::new(FaultKind::Invalid, what).with_hint(hint)
}
