//! Dead letters as rows.

use backstop_core::ledger::{Letter, LetterStatus, Outcome};
use backstop_core::{AdapterError, Envelope, FaultKind};
use sqlx::Row;
use sqlx::sqlite::{SqliteArguments, SqliteRow};
use sqlx::{AssertSqlSafe, Sqlite};

use crate::envelope::{from_column, to_column};
use crate::time::{self, NOW};

type Query = sqlx::query::Query<'static, Sqlite, SqliteArguments>;

/// The columns of a letter, in the order in which [`bind`] binds them.
const COLUMNS: [&str; 22] = [
    "id",
    "message_key",
    "consumer",
    "place",
    "found_in",
    "door",
    "reason",
    "class",
    "error_type",
    "error",
    "fingerprint",
    "attempts",
    "generation",
    "first_failed_at",
    "dead_at",
    "status",
    "msg_key",
    "headers",
    "body",
    "outcome",
    "redrive",
    "hold",
];

/// What [`letter`] expects, of a row of that name; without one where there is none.
pub(crate) fn columns(row: &str) -> String {
    let prefix = if row.is_empty() { String::new() } else { format!("{row}.") };
    let columns = COLUMNS.iter().chain(&["collected_at"]);
    columns.map(|column| format!("{prefix}{column}")).collect::<Vec<_>>().join(", ")
}

/// When a letter died, in milliseconds; now where it does not say.
pub(crate) fn seen_at(dead_at: &str) -> String {
    format!("coalesce({dead_at}, {NOW})")
}

/// Writes a letter of that group unless it is there, and returns its number if it was not.
pub(crate) fn insert(table: &str, letter: &Letter, group: i64) -> Query {
    let values = vec!["?"; COLUMNS.len()].join(", ");
    let sql = format!(
        "INSERT INTO {table} ({}, grp, seen_at) VALUES ({values}, ?, {}) ON CONFLICT (id) DO NOTHING RETURNING n",
        COLUMNS.join(", "),
        seen_at("?")
    );
    bind(sql, letter, group)
}

/// Opens the letter of that id, which is on hold: all that it says stays as it is, as evidence, but when it died last.
pub(crate) fn open_again(table: &str, letter: &Letter) -> Query {
    let sql = format!(
        "UPDATE {table} SET status = ?2, outcome = NULL, redrive = NULL, dead_at = ?3, seen_at = {} WHERE id = ?1",
        seen_at("?4")
    );
    sqlx::query(AssertSqlSafe(sql))
        .bind(letter.id.clone())
        .bind(letter.status.as_str())
        .bind(letter.dead_at.map(time::text))
        .bind(letter.dead_at.map(|at| at.timestamp_millis()))
}

/// Writes a letter of that group over the one of its id; the time when the ledger took it stays.
pub(crate) fn replace(table: &str, letter: &Letter, group: i64) -> Query {
    let set = |(place, column): (usize, &&str)| format!("{column} = ?{}", place + 1);
    let set = COLUMNS.iter().enumerate().map(set).collect::<Vec<_>>().join(", ");
    let (group_at, dead_at) = (COLUMNS.len() + 1, COLUMNS.len() + 2);
    let seen_at = seen_at(&format!("?{dead_at}"));
    let sql = format!("UPDATE {table} SET {set}, grp = ?{group_at}, seen_at = {seen_at} WHERE id = ?1");
    bind(sql, letter, group)
}

/// Binds the columns in their order, the group, and when the letter died.
fn bind(sql: String, letter: &Letter, group: i64) -> Query {
    let dead_at = letter.dead_at.map(|at| at.timestamp_millis());
    let letter = letter.clone();
    sqlx::query(AssertSqlSafe(sql))
        .bind(letter.id)
        .bind(letter.message_key)
        .bind(letter.consumer)
        .bind(letter.place)
        .bind(letter.found_in)
        .bind(letter.door)
        .bind(letter.reason)
        .bind(letter.class)
        .bind(letter.error_type)
        .bind(letter.error)
        .bind(letter.fingerprint)
        .bind(letter.attempts)
        .bind(letter.generation)
        .bind(letter.first_failed_at.map(time::text))
        .bind(letter.dead_at.map(time::text))
        .bind(letter.status.as_str())
        .bind(letter.envelope.key.map(Vec::from))
        .bind(to_column(&letter.envelope.headers))
        .bind(letter.envelope.body.map(Vec::from))
        .bind(letter.outcome.map(Outcome::as_str))
        .bind(letter.redrive)
        .bind(letter.hold)
        .bind(group)
        .bind(dead_at)
}

/// The row as a letter.
pub(crate) fn letter(row: &SqliteRow) -> Result<Letter, AdapterError> {
    let id: String = row.try_get("id").map_err(|_| unreadable("?", "id"))?;
    read(row, &id).map_err(|column| unreadable(&id, column))
}

fn unreadable(id: &str, column: &str) -> AdapterError {
    AdapterError::new(FaultKind::Other, format!("letter {id} cannot be read: column {column}"))
        .with_hint("somebody wrote to the ledger's table; mend the row or delete it")
}

fn read(row: &SqliteRow, id: &str) -> Result<Letter, &'static str> {
    let text = |name: &'static str| row.try_get::<Option<String>, _>(name).map_err(|_| name);
    let bytes = |name: &'static str| row.try_get::<Option<Vec<u8>>, _>(name).map_err(|_| name);
    let number = |name: &'static str| row.try_get::<Option<i64>, _>(name).map_err(|_| name);
    let time = |name: &'static str| match text(name)? {
        Some(text) => time::parse(&text).map(Some).ok_or(name),
        None => Ok(None),
    };
    let envelope = Envelope {
        key: bytes("msg_key")?.map(Into::into),
        headers: from_column(&text("headers")?.unwrap_or_default()).ok_or("headers")?,
        body: bytes("body")?.map(Into::into),
    };
    let mut letter = Letter::new(id, text("found_in")?.unwrap_or_default(), envelope);
    letter.message_key = text("message_key")?;
    letter.consumer = text("consumer")?;
    letter.place = text("place")?;
    letter.door = text("door")?;
    letter.reason = text("reason")?;
    letter.class = text("class")?;
    letter.error_type = text("error_type")?;
    letter.error = text("error")?;
    letter.fingerprint = text("fingerprint")?;
    letter.attempts = number("attempts")?;
    letter.generation = number("generation")?.unwrap_or(0);
    letter.first_failed_at = time("first_failed_at")?;
    letter.dead_at = time("dead_at")?;
    letter.status = LetterStatus::parse(&text("status")?.unwrap_or_default()).ok_or("status")?;
    letter.collected_at = time("collected_at")?.ok_or("collected_at")?;
    letter.outcome = match text("outcome")? {
        Some(name) => Some(Outcome::parse(&name).ok_or("outcome")?),
        None => None,
    };
    letter.redrive = text("redrive")?;
    letter.hold = text("hold")?;
    Ok(letter)
}
