//! Rows of the ledger.

use backstop_core::ledger::{Letter, LetterStatus, Outcome};
use backstop_core::{AdapterError, BoxError, Envelope, FaultKind, header_column};
use bytes::Bytes;
use sqlx::Row;
use sqlx::postgres::PgRow;

use crate::time;

const COLUMNS: [&str; 23] = [
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
    "collected_at",
    "outcome",
    "redrive",
    "hold",
];

/// The columns of a row of that name as [`read`] expects them: without times that cannot be told.
pub(crate) fn columns(row: &str) -> String {
    let guarded = |column: &str| match column {
        "first_failed_at" | "dead_at" => time::sound(&format!("{row}.{column}")),
        "collected_at" => time::clamped(&format!("{row}.{column}")),
        _ => format!("{row}.{column}"),
    };
    COLUMNS.map(guarded).join(", ")
}

/// A letter of the ledger from its [`columns`].
pub(crate) fn read(row: &PgRow) -> Result<Letter, AdapterError> {
    read_letter(row).map_err(|error| {
        let id: &str = row.try_get(0).unwrap_or("?");
        AdapterError::new(FaultKind::Invalid, format!("dead letter {} cannot be read", id.escape_default()))
            .with_hint("use at least the version of Backstop that wrote it")
            .with_source(error)
    })
}

fn read_letter(row: &PgRow) -> Result<Letter, BoxError> {
    let bytes = |column: usize| row.try_get::<Option<Vec<u8>>, _>(column).map(|value| value.map(Bytes::from));
    let text = |column: usize| row.try_get::<Option<String>, _>(column);
    let envelope =
        Envelope { key: bytes(16)?, headers: header_column::decode(row.try_get(17)?)?, body: bytes(18)? };
    let mut letter = Letter::new(row.try_get::<String, _>(0)?, row.try_get::<String, _>(4)?, envelope);
    letter.message_key = text(1)?;
    letter.consumer = text(2)?;
    letter.place = text(3)?;
    letter.door = text(5)?;
    letter.reason = text(6)?;
    letter.class = text(7)?;
    letter.error_type = text(8)?;
    letter.error = text(9)?;
    letter.fingerprint = text(10)?;
    letter.attempts = row.try_get(11)?;
    letter.generation = row.try_get(12)?;
    letter.first_failed_at = row.try_get(13)?;
    letter.dead_at = row.try_get(14)?;
    letter.status = LetterStatus::parse(row.try_get(15)?).ok_or("its status is unknown")?;
    letter.collected_at = row.try_get(19)?;
    letter.outcome =
        text(20)?.map(|name| Outcome::parse(&name).ok_or("its outcome is unknown")).transpose()?;
    letter.redrive = text(21)?;
    letter.hold = text(22)?;
    Ok(letter)
}
