//! Rows of the held table.

use std::time::Duration;

use backstop_core::held::HeldMessage;
use backstop_core::{
    AdapterError, BoxError, DeadReason, Envelope, ErrorClass, FaultKind, MessageKey, Via, header_column,
};
use bytes::Bytes;
use sqlx::Row;
use sqlx::postgres::PgRow;

use crate::failure::failed;

/// A held message that cannot be read.
#[derive(Debug)]
pub(crate) struct Unreadable {
    pub(crate) n: i64,
    pub(crate) error: AdapterError,
}

/// A claimed head and the id of the transaction that claimed it.
pub(crate) fn read(row: &PgRow) -> Result<(Result<HeldMessage, Unreadable>, String), AdapterError> {
    let doing = || failed("read a held message");
    let n = row.try_get(0).map_err(doing())?;
    let xid = row.try_get(16).map_err(doing())?;
    let head = read_message(row).map_err(|error| Unreadable { n, error });
    Ok((head, xid))
}

/// A message, from the columns that every statement begins with.
pub(crate) fn read_message(row: &PgRow) -> Result<HeldMessage, AdapterError> {
    read_head(row).map_err(|error| {
        let n: i64 = row.try_get(0).unwrap_or_default();
        AdapterError::new(FaultKind::Invalid, format!("held message {n} cannot be read"))
            .with_hint("delete the row if it was not written by Backstop")
            .with_source(error)
    })
}

fn read_head(row: &PgRow) -> Result<HeldMessage, BoxError> {
    let bytes = |column: usize| row.try_get::<Option<Vec<u8>>, _>(column).map(|value| value.map(Bytes::from));
    let message_key: &str = row.try_get(3)?;
    let class: Option<&str> = row.try_get(10)?;
    Ok(HeldMessage {
        n: row.try_get(0)?,
        place: row.try_get(1)?,
        ordering_key: row.try_get(2)?,
        message_key: MessageKey::parse(message_key).ok_or("its message key is not one")?,
        envelope: Envelope {
            key: bytes(4)?,
            headers: header_column::decode(row.try_get(5)?)?,
            body: bytes(6)?,
        },
        origin: serde_json::from_str(row.try_get(7)?)?,
        via: if row.try_get::<&str, _>(8)? == via_name(Via::Door) { Via::Door } else { Via::Live },
        attempts: u32::try_from(row.try_get::<i32, _>(9)?)?,
        throttled: u32::try_from(row.try_get::<i32, _>(14)?)?,
        condemned: row.try_get::<Option<&str>, _>(15)?.and_then(DeadReason::parse),
        crashes: u32::try_from(row.try_get::<i32, _>("crashes")?)?,
        class: class.and_then(ErrorClass::parse),
        error: row.try_get(11)?,
        held_since: row.try_get(12)?,
        age: seconds(row.try_get(13)?),
    })
}

pub(crate) const fn via_name(via: Via) -> &'static str {
    match via {
        Via::Live => "live",
        Via::Door => "door",
    }
}

/// Seconds as the server computes them; a clock that stepped back gives 0.
pub(crate) fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or_default()
}
