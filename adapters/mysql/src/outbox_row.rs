//! Rows of the outbox as messages.

use backstop_core::outbox::{OutboxRow, headers_from_json};
use backstop_core::{Destination, Headers, Message};
use bytes::Bytes;
use sqlx::Row;
use sqlx::mysql::MySqlRow;

use crate::time;

/// The columns that [`read`] expects. The number comes first: sqlx takes a row whose first value has 16 MiB for the end
/// of the rows.
pub(crate) const COLUMNS: &str = "seq, id, source, destination, routing_key, `key`, kind, subject, \
     CAST(event_time AS CHAR) AS event_time, content_type, CAST(headers AS CHAR) AS headers, payload";

/// What a row keeps when it comes into the outbox from elsewhere. It counts as written then.
pub(crate) const KEPT: &str =
    "id, source, destination, routing_key, `key`, kind, subject, event_time, content_type, headers, payload";

/// The same to be read from another table: a date that is none, which a lax session may have written, cannot be written by
/// a strict one.
pub(crate) const KEPT_SOUND: &str = "id, source, destination, routing_key, `key`, kind, subject, \
     IF(MONTH(event_time) > 0 AND DAYOFMONTH(event_time) > 0, event_time, NULL), content_type, headers, payload";

/// How many columns those are.
pub(crate) const COUNT: usize = 12;

/// A row, and why it cannot be sent if it cannot: what is unreadable of it is empty then.
pub(crate) fn read(row: &MySqlRow) -> Result<(OutboxRow, Option<String>), sqlx::Error> {
    let text = |column: usize| row.try_get::<Option<String>, _>(column);
    let destination = Destination { name: text(3)?.unwrap_or_default(), routing_key: text(4)? };
    let (headers, fault) = match text(10)?.map(|headers| parse(&headers)) {
        None => (Headers::default(), None),
        Some(Ok(headers)) => (headers, None),
        Some(Err(fault)) => (Headers::default(), Some(fault)),
    };
    let fault = fault.or_else(|| destination.name.is_empty().then(|| "the destination is empty".to_owned()));
    let written = text(8)?;
    let time = written.as_deref().and_then(time::parse);
    let odd_time = written.filter(|_| time.is_none());
    let fault = fault.or_else(|| odd_time.map(|text| format!("event_time is not a date: {text:.40}")));
    let mut message = Message::with_id(text(6)?.unwrap_or_default(), row.try_get::<String, _>(1)?);
    let fault = fault.or_else(|| message.id.is_empty().then(|| "the id is empty".to_owned()));
    let fault = fault.or_else(|| message.id.contains('\0').then(|| "the id holds a NUL".to_owned()));
    message.source = text(2)?.unwrap_or_default();
    message.key = text(5)?.map(Bytes::from);
    message.subject = text(7)?;
    message.time = time;
    message.content_type = text(9)?;
    message.headers = headers;
    message.body = row.try_get::<Option<Vec<u8>>, _>(11)?.map(Bytes::from);
    Ok((OutboxRow { seq: row.try_get(0)?, destination, message }, fault))
}

fn parse(headers: &str) -> Result<Headers, String> {
    let json = serde_json::from_str(headers).map_err(|error| format!("headers cannot be read: {error}"))?;
    headers_from_json(&json)
}
