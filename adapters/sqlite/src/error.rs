//! What SQLite said, as an adapter's error.

use backstop_core::{AdapterError, FaultKind};

/// Primary result codes, as <https://sqlite.org/rescode.html> lists them.
pub(crate) mod code {
    pub(crate) const ERROR: i32 = 1;
    pub(crate) const PERM: i32 = 3;
    pub(crate) const BUSY: i32 = 5;
    pub(crate) const LOCKED: i32 = 6;
    pub(crate) const NOMEM: i32 = 7;
    pub(crate) const READONLY: i32 = 8;
    pub(crate) const INTERRUPT: i32 = 9;
    pub(crate) const IOERR: i32 = 10;
    pub(crate) const CORRUPT: i32 = 11;
    pub(crate) const FULL: i32 = 13;
    pub(crate) const CANTOPEN: i32 = 14;
    pub(crate) const TOOBIG: i32 = 18;
    pub(crate) const CONSTRAINT: i32 = 19;
    pub(crate) const MISMATCH: i32 = 20;
    pub(crate) const AUTH: i32 = 23;
    pub(crate) const RANGE: i32 = 25;
    pub(crate) const NOTADB: i32 = 26;
}

/// The extended result code, if the error is SQLite's own.
pub(crate) fn extended(error: &sqlx::Error) -> Option<i32> {
    error.as_database_error()?.code()?.parse().ok()
}

/// The primary result code, if the error is SQLite's own.
pub(crate) fn primary(error: &sqlx::Error) -> Option<i32> {
    extended(error).map(|code| code & 0xff)
}

/// Whether somebody else holds the lock.
pub(crate) fn is_busy(error: &sqlx::Error) -> bool {
    matches!(primary(error), Some(code::BUSY | code::LOCKED))
}

/// An adapter's error: `what` could not be done.
pub(crate) fn adapter(what: impl Into<String>, error: sqlx::Error) -> AdapterError {
    let (kind, hint) = kind_and_hint(&error);
    let adapted = AdapterError::new(kind, what).with_source(error);
    match hint {
        Some(hint) => adapted.with_hint(hint),
        None => adapted,
    }
}

/// The write lock was not to be had in time.
pub(crate) fn busy(what: &str) -> AdapterError {
    AdapterError::new(FaultKind::Conflict, format!("{what}: the write lock is held by somebody else"))
        .with_hint("keep write transactions on this file short; a shell or a backup may hold one open")
}

fn kind_and_hint(error: &sqlx::Error) -> (FaultKind, Option<&'static str>) {
    match error {
        sqlx::Error::PoolTimedOut => {
            return (FaultKind::Unreachable, Some("give the pool more connections, or keep fewer busy"));
        }
        sqlx::Error::PoolClosed | sqlx::Error::WorkerCrashed | sqlx::Error::Io(_) => {
            return (FaultKind::Unreachable, None);
        }
        sqlx::Error::Configuration(_) => return (FaultKind::Invalid, None),
        _ => {}
    }
    match primary(error) {
        Some(code::ERROR) if error.to_string().contains("no such table") => (
            FaultKind::Missing,
            Some("create the tables: run `backstop-relay migrate` or SqliteSchema::migrate"),
        ),
        Some(code::BUSY | code::LOCKED) => {
            (FaultKind::Conflict, Some("keep write transactions on this file short"))
        }
        Some(code::PERM | code::AUTH | code::READONLY) => (
            FaultKind::Denied,
            Some("let the process write the file, its directory, and the files -wal and -shm"),
        ),
        Some(code::CANTOPEN) => {
            (FaultKind::Unreachable, Some("check the path, and that its directory exists"))
        }
        Some(code::FULL) => (FaultKind::Unreachable, Some("free space on the file's disk")),
        Some(code::TOOBIG) => (FaultKind::Invalid, Some("raise SQLITE_MAX_LENGTH, or send less at once")),
        Some(code::IOERR | code::NOMEM) => (FaultKind::Unreachable, None),
        // No message is at fault, so that this is not Invalid, and everything waits. Nor is it Unreachable: where a damaged
        // file can be read but not written, a relay would publish what it cannot delete again and again.
        Some(code::CORRUPT | code::NOTADB) => (
            FaultKind::Other,
            Some("the file is damaged or no database: restore it from a backup, or name the right one"),
        ),
        _ => (FaultKind::Other, None),
    }
}
