//! Rows of the outbox as messages.

use backstop_core::outbox::{OutboxRow, headers_from_json};
use backstop_core::{Destination, Headers, Message};
use bytes::Bytes;
use sqlx::Row;
use sqlx::postgres::PgRow;

use crate::time;

/// The columns that [`read`] expects. Headers come as text: they are parsed only where there are any.
pub(crate) fn columns() -> String {
    format!(
        "seq, id, source, destination, routing_key, key, kind, subject, {} AS event_time, content_type, \
         headers::text AS headers, payload, NOT {} AS odd_time",
        time::sound("event_time"),
        time::is_sound("event_time")
    )
}

/// A row, and why it cannot be sent if it cannot: what is unreadable of it is empty then.
pub(crate) fn read(row: &PgRow) -> Result<(OutboxRow, Option<String>), sqlx::Error> {
    let destination = Destination { name: row.try_get(3)?, routing_key: row.try_get(4)? };
    let (headers, fault) = match row.try_get::<Option<&str>, _>(10)?.map(parse) {
        None => (Headers::default(), None),
        Some(Ok(headers)) => (headers, None),
        Some(Err(fault)) => (Headers::default(), Some(fault)),
    };
    let fault = fault.or_else(|| destination.name.is_empty().then(|| "the destination is empty".to_owned()));
    let fault = fault
        .or_else(|| row.try_get::<&str, _>(1).is_ok_and(str::is_empty).then(|| "the id is empty".to_owned()));
    let odd_time = row.try_get::<Option<bool>, _>(12)?.unwrap_or(false);
    let fault = fault.or_else(|| odd_time.then(|| "event_time is outside the years 0 to 9999".to_owned()));
    let text = |column: usize| row.try_get::<Option<String>, _>(column);
    let mut message = Message::with_id(text(6)?.unwrap_or_default(), row.try_get::<String, _>(1)?);
    message.source = text(2)?.unwrap_or_default();
    message.key = text(5)?.map(Bytes::from);
    message.subject = text(7)?;
    message.time = row.try_get(8)?;
    message.content_type = text(9)?;
    message.headers = headers;
    message.body = row.try_get::<Option<Vec<u8>>, _>(11)?.map(Bytes::from);
    Ok((OutboxRow { seq: row.try_get(0)?, destination, message }, fault))
}

fn parse(headers: &str) -> Result<Headers, String> {
    let json = serde_json::from_str(headers).map_err(|error| format!("headers cannot be read: {error}"))?;
    headers_from_json(&json)
}
