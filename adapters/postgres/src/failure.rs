//! sqlx's errors as the one error that adapters report.

use backstop_core::{AdapterError, FaultKind};
use sqlx::postgres::PgDatabaseError;

use crate::tables::PgTables;

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

/// [`failed`], with the permissions that are needed as the hint when one is missing.
pub(crate) fn failed_or_denied(
    doing: &str,
    tables: &PgTables,
    grant: &'static str,
) -> impl FnOnce(sqlx::Error) -> AdapterError {
    let (failed, grant) = (failed(doing), tables.fill(grant));
    move |error| {
        let denied = code(&error) == Some("42501");
        let error = failed(error);
        if denied { error.with_hint(grant) } else { error }
    }
}

/// What the server says when a lock was not to be had within `lock_timeout`.
pub(crate) const LOCK_NOT_AVAILABLE: &str = "55P03";

/// The server's error with its SQLSTATE, if it is one.
pub(crate) fn database_error(error: &sqlx::Error) -> Option<&PgDatabaseError> {
    match error {
        sqlx::Error::Database(error) => error.try_downcast_ref::<PgDatabaseError>(),
        _ => None,
    }
}

/// The SQLSTATE, if the server sent one.
pub(crate) fn code(error: &sqlx::Error) -> Option<&str> {
    database_error(error).map(PgDatabaseError::code)
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
        // sqlx reports a server that goes away inside a message as a protocol error.
        sqlx::Error::Protocol(_) | sqlx::Error::BeginFailed => (FaultKind::Unreachable, None),
        sqlx::Error::Configuration(_) => (FaultKind::Invalid, Some("check the database URL")),
        _ => code(error).map_or((FaultKind::Other, None), judged_by_code),
    }
}

/// What to mend where server and client do not trust each other.
const CERTIFICATES: &str = "check that sslrootcert of the database URL holds the authority of the server's certificate, that this names the host of the URL, that sslcert and sslkey are a certificate the server knows, and that both are valid now";

/// Whether TLS has given a connection up. The type of the error is rustls's, which only its words show here.
fn is_distrust(error: &std::io::Error) -> bool {
    let words = error.to_string();
    ["invalid peer certificate", "received fatal alert"].iter().any(|beginning| words.starts_with(beginning))
}

fn judged_by_code(code: &str) -> (FaultKind, Option<&'static str>) {
    match code {
        "40001" | "40P01" | LOCK_NOT_AVAILABLE => (FaultKind::Conflict, None),
        "42P01" | "42703" | "3F000" => (
            FaultKind::Missing,
            Some(
                "run `backstop-relay migrate`, or check the schema and prefix of the tables and the search_path",
            ),
        ),
        "3D000" => (FaultKind::Missing, Some("create the database, or correct its name in the URL")),
        "42501" => (FaultKind::Denied, Some("grant the user its permissions: see migrations/README.md")),
        "25006" => (FaultKind::Unreachable, Some("connect to the primary: this server is read-only")),
        "28000" => (
            FaultKind::Denied,
            Some(
                "check the user of the database URL, sslmode and sslcert where it must use TLS, and the server's pg_hba.conf",
            ),
        ),
        // Too large for an index or a row.
        "54000" => (FaultKind::Invalid, None),
        // The server has ended a session that stood idle in a transaction.
        "25P03" => (FaultKind::Unreachable, None),
        "53300" => (FaultKind::Unreachable, Some("raise max_connections, or use smaller pools")),
        _ => match code.get(..2) {
            Some("28") => (FaultKind::Denied, Some("check the user and password of the database URL")),
            Some("08" | "53") => (FaultKind::Unreachable, None),
            Some("57") if code.starts_with("57P0") => (FaultKind::Unreachable, None),
            Some("22" | "23") => (FaultKind::Invalid, None),
            _ => (FaultKind::Other, None),
        },
    }
}

/// An input that can never be stored.
pub(crate) fn invalid(what: impl Into<String>, hint: &str) -> AdapterError {
    AdapterError::new(FaultKind::Invalid, what).with_hint(hint)
}
