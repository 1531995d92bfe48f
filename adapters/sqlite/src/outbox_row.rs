//! Rows of the outbox as messages.
//!
//! Any program may have written them, and SQLite lets any type into any column: every value is cast and checked.

use backstop_core::dead_rows::BuriedRow;
use backstop_core::outbox::{DeadRow, OutboxRow, headers_from_json};
use backstop_core::{Destination, Headers, Message};
use chrono::Utc;
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use crate::time;

/// The columns that [`outbox_row`] reads.
pub(crate) const COLUMNS: &str = "seq, CAST(id AS TEXT) AS id, CAST(source AS TEXT) AS source, \
    CAST(destination AS TEXT) AS destination, CAST(routing_key AS TEXT) AS routing_key, CAST(key AS BLOB) AS key, \
    CAST(kind AS TEXT) AS kind, CAST(subject AS TEXT) AS subject, CAST(event_time AS TEXT) AS event_time, \
    CAST(content_type AS TEXT) AS content_type, CAST(headers AS TEXT) AS headers, CAST(payload AS BLOB) AS payload";

/// What a row weighs, without reading what it holds.
pub(crate) const SIZE: &str = "coalesce(octet_length(payload), 0) + coalesce(octet_length(key), 0) + coalesce(octet_length(headers), 0)";

/// The row as a message, or why it cannot be one.
pub(crate) fn outbox_row(row: &SqliteRow) -> Result<OutboxRow, DeadRow> {
    let seq = row.get("seq");
    read(row, seq).map_err(|error| {
        let id = bytes(row, "id").ok().flatten().unwrap_or_default();
        let id = String::from_utf8_lossy(&id).into();
        DeadRow { seq, id, reason: "invalid-row".into(), error }
    })
}

fn read(row: &SqliteRow, seq: i64) -> Result<OutboxRow, String> {
    let headers = headers(row)?;
    let time = match text(row, "event_time")? {
        None => None,
        Some(text) => Some(
            time::parse(&text).ok_or_else(|| format!("column event_time is not RFC 3339: {text:.40?}"))?,
        ),
    };
    let row = OutboxRow { seq, destination: destination(row)?, message: message(row, headers)? };
    for (name, value) in [("destination", &row.destination.name), ("id", &row.message.id)] {
        if value.is_empty() {
            return Err(format!("column {name} is empty"));
        }
    }
    if row.message.id.contains('\0') {
        return Err("column id holds a NUL".to_owned());
    }
    Ok(OutboxRow { message: with_time(row.message, time), ..row })
}

/// A dead row. What cannot be read of it is left out: the reason says what that was.
pub(crate) fn buried_row(row: &SqliteRow) -> BuriedRow {
    let seq = row.get("seq");
    let time = text(row, "event_time").ok().flatten().and_then(|text| time::parse(&text));
    let message = message(row, headers(row).unwrap_or_default())
        .unwrap_or_else(|_| Message::with_id("", lossy(row, "id")));
    let destination = destination(row).unwrap_or_else(|_| Destination::new(lossy(row, "destination")));
    BuriedRow {
        n: row.get("n"),
        row: OutboxRow { seq, destination, message: with_time(message, time) },
        reason: lossy(row, "reason"),
        error: lossy(row, "error"),
        died_at: time::parse(&lossy(row, "died_at")).unwrap_or_else(Utc::now),
    }
}

fn destination(row: &SqliteRow) -> Result<Destination, String> {
    let name = text(row, "destination")?.unwrap_or_default();
    Ok(Destination { name, routing_key: text(row, "routing_key")? })
}

fn message(row: &SqliteRow, headers: Headers) -> Result<Message, String> {
    let mut message =
        Message::with_id(text(row, "kind")?.unwrap_or_default(), text(row, "id")?.unwrap_or_default());
    message.source = text(row, "source")?.unwrap_or_default();
    message.subject = text(row, "subject")?;
    message.key = bytes(row, "key")?.map(Into::into);
    message.content_type = text(row, "content_type")?;
    message.headers = headers;
    message.body = bytes(row, "payload")?.map(Into::into);
    Ok(message)
}

fn with_time(mut message: Message, time: Option<chrono::DateTime<Utc>>) -> Message {
    message.time = time;
    message
}

fn headers(row: &SqliteRow) -> Result<Headers, String> {
    let Some(json) = text(row, "headers")? else {
        return Ok(Headers::default());
    };
    let json = serde_json::from_str(&json).map_err(|error| format!("column headers is not JSON: {error}"))?;
    headers_from_json(&json)
}

fn text(row: &SqliteRow, name: &str) -> Result<Option<String>, String> {
    row.try_get(name).map_err(|_| format!("column {name} is not UTF-8"))
}

fn bytes(row: &SqliteRow, name: &str) -> Result<Option<Vec<u8>>, String> {
    row.try_get(name).map_err(|error| format!("column {name} cannot be read: {error}"))
}

fn lossy(row: &SqliteRow, name: &str) -> String {
    match text(row, name) {
        Ok(text) => text.unwrap_or_default(),
        Err(_) => format!("({name} is not UTF-8)"),
    }
}
