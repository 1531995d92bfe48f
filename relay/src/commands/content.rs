//! What a message carries, which may be personal data: shown only on demand.

use backstop_core::Envelope;
use backstop_core::report::escaped;
use serde_json::{Value, json};

use crate::exit::Failure;
use crate::output::{self, counted};

/// Prints headers, key and body, or how much is hidden of them.
pub(super) fn print(envelope: &Envelope, reveal: bool) -> Result<(), Failure> {
    let bytes = envelope.body.as_ref().map_or(0, |body| body.len());
    if !reveal {
        let headers = counted(envelope.headers.len() as u64, "header");
        let bytes = counted(bytes as u64, "byte");
        let line = format!("\ncontent         {headers} and {bytes}, hidden; --reveal shows them");
        return Ok(output::line(line)?);
    }
    if let Some(key) = &envelope.key {
        output::line(format!("\nkey             {}", shown(key)))?;
    }
    output::line("\nheaders")?;
    for (name, value) in envelope.headers.iter() {
        let value = value.map_or_else(|| "(null)".to_owned(), |value| shown(value));
        output::line(format!("  {}: {value}", escaped(name)))?;
    }
    match &envelope.body {
        None => output::line("\nbody            none (a tombstone)")?,
        Some(body) => output::line(format!("\nbody            {bytes} bytes\n{}", shown(body)))?,
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
    if !reveal {
        return json!({
            "hidden": true,
            "headers": envelope.headers.len(),
            "bytes": envelope.body.as_ref().map(|body| body.len()),
        });
    }
    let pair = |(name, value): (&str, Option<&bytes::Bytes>)| json!([name, value.map(|value| exact(value))]);
    json!({
        "key": envelope.key.as_deref().map(exact),
        "headers": envelope.headers.iter().map(pair).collect::<Vec<Value>>(),
        "body": envelope.body.as_deref().map(exact),
    })
}

/// Bytes in JSON: a text where they are one, else `{"escaped": …}`.
fn exact(bytes: &[u8]) -> Value {
    match std::str::from_utf8(bytes) {
        Ok(text) => json!(text),
        Err(_) => json!({ "escaped": bytes.escape_ascii().to_string() }),
    }
}
