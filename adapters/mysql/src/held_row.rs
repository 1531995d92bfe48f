//! Rows of the held table.

use backstop_core::held::HeldMessage;
use backstop_core::{
    AdapterError, BoxError, DeadReason, Envelope, ErrorClass, FaultKind, MessageKey, Via, header_column,
};
use bytes::Bytes;
use sqlx::Row;
use sqlx::mysql::MySqlRow;

use crate::time;

/// The columns that [`read`] expects.
pub(crate) const COLUMNS: &str = "n, place, ordering_key, message_key, msg_key, headers, body, origin, via, attempts, \
     class, error, CAST(held_since AS CHAR), TIMESTAMPDIFF(MICROSECOND, held_since, UTC_TIMESTAMP(6)), throttled, \
     condemned, crashes";

/// A claimed head.
pub(crate) fn read(row: &MySqlRow, n: i64) -> Result<HeldMessage, AdapterError> {
    read_head(row).map_err(|error| {
        AdapterError::new(FaultKind::Invalid, format!("held message {n} cannot be read"))
            .with_hint("delete the row if it was not written by Backstop")
            .with_source(error)
    })
}

fn read_head(row: &MySqlRow) -> Result<HeldMessage, BoxError> {
    let bytes = |column: usize| row.try_get::<Option<Vec<u8>>, _>(column).map(|value| value.map(Bytes::from));
    let text = |column: usize| -> Result<String, BoxError> {
        Ok(String::from_utf8(row.try_get::<Vec<u8>, _>(column)?)?)
    };
    let class: Option<String> = row.try_get(10)?;
    let condemned: Option<String> = row.try_get(15)?;
    let held_since: String = row.try_get(12)?;
    Ok(HeldMessage {
        n: row.try_get(0)?,
        place: text(1)?,
        ordering_key: row.try_get(2)?,
        message_key: MessageKey::parse(&text(3)?).ok_or("its message key is not one")?,
        envelope: Envelope {
            key: bytes(4)?,
            headers: header_column::decode(row.try_get(5)?)?,
            body: bytes(6)?,
        },
        origin: serde_json::from_str(&row.try_get::<String, _>(7)?)?,
        via: if row.try_get::<String, _>(8)? == via_name(Via::Door) { Via::Door } else { Via::Live },
        attempts: u32::try_from(row.try_get::<i32, _>(9)?)?,
        throttled: u32::try_from(row.try_get::<i32, _>(14)?)?,
        condemned: condemned.as_deref().and_then(DeadReason::parse),
        crashes: u32::try_from(row.try_get::<i32, _>(16)?)?,
        class: class.as_deref().and_then(ErrorClass::parse),
        error: row.try_get(11)?,
        held_since: time::parse(&held_since).ok_or("held_since is not a date")?,
        age: time::from_micros(row.try_get(13)?),
    })
}

pub(crate) const fn via_name(via: Via) -> &'static str {
    match via {
        Via::Live => "live",
        Via::Door => "door",
    }
}
