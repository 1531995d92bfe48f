//! Held messages as rows.

use backstop_core::held::HeldMessage;
use backstop_core::{AdapterError, DeadReason, Envelope, ErrorClass, FaultKind, MessageKey, Origin, Via};
use chrono::DateTime;
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use crate::envelope::from_column;
use crate::time::{NOW, duration};

/// The columns that [`held_message`] reads.
pub(crate) fn columns() -> String {
    format!(
        "h.n, h.place, h.ordering_key, h.message_key, h.via, h.attempts, h.throttled, h.condemned, h.crashes, h.class, h.error, \
         h.msg_key, h.headers, h.body, h.origin, h.held_since, {NOW} - h.held_since AS age"
    )
}

/// The row as a message.
pub(crate) fn held_message(row: &SqliteRow) -> Result<HeldMessage, AdapterError> {
    let n: i64 = row.get("n");
    read(row, n).map_err(|column| {
        AdapterError::new(FaultKind::Other, format!("held message {n} cannot be read: column {column}"))
            .with_hint("somebody wrote to the table of held messages; mend the row or delete it")
    })
}

fn read(row: &SqliteRow, n: i64) -> Result<HeldMessage, &'static str> {
    let text = |name: &'static str| row.try_get::<String, _>(name).map_err(|_| name);
    let bytes = |name: &'static str| row.try_get::<Option<Vec<u8>>, _>(name).map_err(|_| name);
    let class: Option<String> = row.try_get("class").map_err(|_| "class")?;
    let held_since: i64 = row.try_get("held_since").map_err(|_| "held_since")?;
    let count = |name: &'static str| {
        row.try_get::<i64, _>(name).ok().and_then(|count| u32::try_from(count).ok()).ok_or(name)
    };
    let condemned: Option<String> = row.try_get("condemned").map_err(|_| "condemned")?;
    let origin: Origin = serde_json::from_str(&text("origin")?).map_err(|_| "origin")?;
    Ok(HeldMessage {
        n,
        place: text("place")?,
        ordering_key: bytes("ordering_key")?.unwrap_or_default(),
        message_key: MessageKey::parse(&text("message_key")?).ok_or("message_key")?,
        envelope: Envelope {
            key: bytes("msg_key")?.map(Into::into),
            headers: from_column(&text("headers")?).ok_or("headers")?,
            body: bytes("body")?.map(Into::into),
        },
        origin,
        via: via(&text("via")?).ok_or("via")?,
        attempts: count("attempts")?,
        throttled: count("throttled")?,
        condemned: condemned.as_deref().and_then(DeadReason::parse),
        crashes: count("crashes")?,
        class: match class {
            Some(class) => Some(ErrorClass::parse(&class).ok_or("class")?),
            None => None,
        },
        error: row.try_get("error").map_err(|_| "error")?,
        held_since: DateTime::from_timestamp_millis(held_since).ok_or("held_since")?,
        age: duration(row.try_get("age").map_err(|_| "held_since")?),
    })
}

/// The column for how a message came in.
pub(crate) fn via_column(via: Via) -> &'static str {
    match via {
        Via::Live => "live",
        Via::Door => "door",
    }
}

fn via(column: &str) -> Option<Via> {
    [Via::Live, Via::Door].into_iter().find(|via| via_column(*via) == column)
}
