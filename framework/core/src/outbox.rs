//! The outbox as the relay sees it. How an application writes to it is each database adapter's `enqueue`.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures_core::future::BoxFuture;

use crate::adapter_error::AdapterError;
use crate::dead_rows::DeadRows;
use crate::lease::{Lease, Leases};
use crate::message::{Destination, Headers, Message};
use crate::scheduled::ScheduledRows;

/// A row of the outbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutboxRow {
    /// Its number: rows of one key are published in this order.
    pub seq: i64,
    /// Where it goes.
    pub destination: Destination,
    /// The message.
    pub message: Message,
}

impl OutboxRow {
    /// The row's name.
    pub fn row_id(&self) -> RowId {
        RowId { seq: self.seq, id: self.message.id.as_str().into() }
    }

    /// What the row weighs against a bound in bytes: body, key and headers.
    pub fn size(&self) -> usize {
        let message = &self.message;
        message.body.as_ref().map_or(0, Bytes::len)
            + message.key.as_ref().map_or(0, Bytes::len)
            + message.headers.size()
    }
}

/// Names a row. A number alone does not: a fail-over that lost the newest numbers, or a sequence that was set back,
/// gives them to other rows.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RowId {
    /// The row's number.
    pub seq: i64,
    /// The id of its message.
    pub id: Arc<str>,
}

/// A row that can never be sent, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadRow {
    /// The row's number.
    pub seq: i64,
    /// The id of its message; U+FFFD stands for what is not UTF-8 of it.
    pub id: Arc<str>,
    /// Short reason, such as `too-large` or `invalid-row`.
    pub reason: String,
    /// The error in one line.
    pub error: String,
}

/// What a read brought.
#[derive(Debug, Default)]
pub struct Claimed {
    /// Rows in `seq` order that have not been returned since the last [`reset`](OutboxReader::reset).
    pub rows: Vec<OutboxRow>,
    /// Rows that cannot be read as messages (headers that are not a JSON object of texts, an empty destination).
    pub unreadable: Vec<DeadRow>,
    /// Rows that only the full scan found. Always 0 unless writers broke the contract; counted, never hidden.
    pub stragglers: u64,
    /// Whether the limit cut the read short, so that more is there now.
    pub more: bool,
}

/// Rows to read again, because their destination was paused or their key blocked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reread {
    /// Rows of this destination.
    pub destination: Destination,
    /// Only of this key; `None` for all.
    pub key: Option<Bytes>,
    /// From this number on.
    pub from: i64,
}

/// Reads an outbox in `seq` order and never skips a committed row.
///
/// One owner reads, under its lease. A row that was returned is not returned again until
/// [`reset`](OutboxReader::reset) or [`reread`](OutboxReader::reread); the owner keeps it until it is deleted or
/// buried.
pub trait OutboxReader: Send {
    /// Up to `rows` rows of up to `bytes` together (one row may exceed it alone).
    ///
    /// # Errors
    /// When the database cannot be asked; reset before reading on.
    fn read(&mut self, rows: usize, bytes: usize) -> BoxFuture<'_, Result<Claimed, AdapterError>>;

    /// Pending rows that were returned before, up to the highest number returned so far.
    ///
    /// # Errors
    /// When the database cannot be asked.
    fn reread<'a>(
        &'a mut self,
        what: &'a Reread,
        rows: usize,
        bytes: usize,
    ) -> BoxFuture<'a, Result<Claimed, AdapterError>>;

    /// Forgets what was returned: the next read begins at the lowest pending row. After a new lease and after every
    /// error.
    fn reset(&mut self);
}

/// How an outbox stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OutboxStatus {
    /// Rows that wait.
    pub pending: u64,
    /// Age of the oldest.
    pub oldest: Option<Duration>,
    /// Rows that cannot be sent.
    pub dead: u64,
    /// Rows whose time has not come, or has come and nobody has moved them yet.
    pub scheduled: u64,
    /// When the first of those is due; by the database's clock, like all times of rows.
    pub next_due: Option<DateTime<Utc>>,
}

/// The headers column: a JSON object of names to texts, or to null for a header without a value, or to an array of
/// them for one that occurs several times.
///
/// # Errors
/// When `json` is not of that form; the text says where.
pub fn headers_from_json(json: &serde_json::Value) -> Result<Headers, String> {
    use serde_json::Value;
    let object = match json {
        Value::Null => return Ok(Headers::default()),
        Value::Object(object) => object,
        other => return Err(format!("headers must be a JSON object, not {}", kind_of(other))),
    };
    let mut headers = Headers::default();
    for (name, value) in object {
        let values = match value {
            Value::Array(values) => values.as_slice(),
            single => std::slice::from_ref(single),
        };
        for value in values {
            match value {
                Value::String(text) => headers.append(name.as_str(), text.clone()),
                Value::Null => headers.append_null(name.as_str()),
                other => return Err(format!("header {name:?} must be a text, not {}", kind_of(other))),
            }
        }
    }
    Ok(headers)
}

/// The headers column for these headers; `None` when there are none. Values that are not UTF-8 are refused.
///
/// # Errors
/// Names the header whose value is not UTF-8.
pub fn headers_to_json(headers: &Headers) -> Result<Option<serde_json::Value>, String> {
    use serde_json::{Map, Value};
    let mut object = Map::new();
    for (name, value) in headers.iter() {
        let text = match value {
            Some(value) => match std::str::from_utf8(value) {
                Ok(text) => Value::String(text.to_owned()),
                Err(_) => return Err(format!("header {name:?} is not UTF-8")),
            },
            None => Value::Null,
        };
        match object.get_mut(name) {
            Some(Value::Array(values)) => values.push(text),
            Some(first) => *first = Value::Array(vec![first.take(), text]),
            None => {
                object.insert(name.to_owned(), text);
            }
        }
    }
    Ok((!object.is_empty()).then_some(Value::Object(object)))
}

fn kind_of(value: &serde_json::Value) -> &'static str {
    match value {
        serde_json::Value::Null => "null",
        serde_json::Value::Bool(_) => "a boolean",
        serde_json::Value::Number(_) => "a number",
        serde_json::Value::String(_) => "a text",
        serde_json::Value::Array(_) => "an array",
        serde_json::Value::Object(_) => "an object",
    }
}

/// An outbox in a database. Object-safe: the relay's configuration chooses the database.
pub trait OutboxStore: Leases + DeadRows + ScheduledRows {
    /// A reader that begins at the lowest pending row.
    fn reader(&self) -> Box<dyn OutboxReader>;

    /// Deletes rows that the broker has confirmed. Harmless from a stale owner: they are published. A row that has
    /// the number of one of them and another id is another row, and stays.
    ///
    /// # Errors
    /// When the database cannot be asked; the rows are published again then, and absorbed by the inbox.
    fn delete<'a>(&'a self, rows: &'a [RowId]) -> BoxFuture<'a, Result<(), AdapterError>>;

    /// Moves rows to the dead table; `false` when the lease is no longer ours, and then nothing is moved. Number and id
    /// name a row, as for [`delete`](OutboxStore::delete).
    ///
    /// # Errors
    /// When the database cannot be asked.
    fn bury<'a>(&'a self, lease: &'a Lease, rows: &'a [DeadRow])
    -> BoxFuture<'a, Result<bool, AdapterError>>;

    /// How the outbox stands.
    ///
    /// # Errors
    /// When the database cannot be asked.
    fn status(&self) -> BoxFuture<'_, Result<OutboxStatus, AdapterError>>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_survive_the_column() {
        let mut headers = Headers::default();
        headers.append("a", "1");
        headers.append("b", "2");
        headers.append("a", "3");
        headers.append_null("c");
        let json = headers_to_json(&headers).expect("UTF-8").expect("not empty");
        assert_eq!(json, serde_json::json!({"a": ["1", "3"], "b": "2", "c": null}));
        let back = headers_from_json(&json).expect("valid");
        assert_eq!((back.get_str("a"), back.get_str("b"), back.len()), (Some("3"), Some("2"), 4));
    }

    #[test]
    fn columns_of_strangers_are_refused_in_words() {
        let error = headers_from_json(&serde_json::json!({"n": 7})).expect_err("a number");
        assert_eq!(error, "header \"n\" must be a text, not a number");
        assert!(headers_from_json(&serde_json::json!([1])).is_err());
        let mut headers = Headers::default();
        headers.append("raw", vec![0xff]);
        assert!(headers_to_json(&headers).is_err());
    }
}
