//! What a message carries, which may be personal data: shown only on demand.

use backstop_core::Envelope;
use backstop_core::report::escaped;
use bytes::Bytes;
use serde_json::{Value, json};

use crate::encryption::Locked;
use crate::exit::Failure;
use crate::output::{self, counted};

/// Prints headers, key and body, or how much is hidden of them.
pub(super) fn print(envelope: &Envelope, reveal: bool) -> Result<(), Failure> {
    match reveal {
        true => print_revealed(envelope, None),
        false => print_hidden(envelope, envelope.body.as_ref().map(Bytes::len)),
    }
}

/// Prints how much is hidden, of a body of so many bytes.
pub(super) fn print_hidden(envelope: &Envelope, bytes: Option<usize>) -> Result<(), Failure> {
    let headers = counted(envelope.headers.len() as u64, "header");
    let bytes = counted(bytes.unwrap_or(0) as u64, "byte");
    let line = format!("\ncontent         {headers} and {bytes}, hidden; --reveal shows them");
    Ok(output::line(line)?)
}

/// Prints headers, key and body, or why there is no body to be shown.
pub(super) fn print_revealed(envelope: &Envelope, locked: Option<&Locked>) -> Result<(), Failure> {
    if let Some(key) = &envelope.key {
        output::line(format!("\nkey             {}", shown(key)))?;
    }
    output::line("\nheaders")?;
    for (name, value) in envelope.headers.iter() {
        let value = value.map_or_else(|| "(null)".to_owned(), |value| shown(value));
        output::line(format!("  {}: {value}", escaped(name)))?;
    }
    match (&envelope.body, locked) {
        (_, Some(locked)) => output::line(format!("\nbody            not shown: {locked}"))?,
        (None, None) => output::line("\nbody            none (a tombstone)")?,
        (Some(body), None) => {
            output::line(format!("\nbody            {} bytes\n{}", body.len(), shown(body)))?;
        }
    }
    Ok(())
}

/// Bytes as text: control characters escaped, and all of it where it is not UTF-8.
fn shown(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => escaped(text),
        Err(_) => bytes.escape_ascii().to_string(),
    }
}

/// Headers, key and body as JSON, or how much is hidden of them.
pub(super) fn document(envelope: &Envelope, reveal: bool) -> Value {
    match reveal {
        true => revealed(envelope, None),
        false => hidden(envelope, envelope.body.as_ref().map(Bytes::len)),
    }
}

/// How much is hidden, of a body of so many bytes.
pub(super) fn hidden(envelope: &Envelope, bytes: Option<usize>) -> Value {
    json!({ "hidden": true, "headers": envelope.headers.len(), "bytes": bytes })
}

/// Headers, key and body; no body where it cannot be had.
pub(super) fn revealed(envelope: &Envelope, locked: Option<&Locked>) -> Value {
    let pair = |(name, value): (&str, Option<&Bytes>)| json!([name, value.map(|value| exact(value))]);
    json!({
        "key": envelope.key.as_deref().map(exact),
        "headers": envelope.headers.iter().map(pair).collect::<Vec<Value>>(),
        "body": envelope.body.as_deref().filter(|_| locked.is_none()).map(exact),
    })
}

/// Bytes in JSON: a text where they are one, else `{"escaped": …}`.
fn exact(bytes: &[u8]) -> Value {
    match std::str::from_utf8(bytes) {
        Ok(text) => json!(text),
        Err(_) => json!({ "escaped": bytes.escape_ascii().to_string() }),
    }
}
