//! Times that a `timestamptz` can hold and a message cannot.
//!
//! The column goes from 4713 BC to 294276 and knows infinities; RFC 3339, in which times of messages travel, has the
//! years 0 to 9999, and decoding a time far beyond them panics. So what is read is guarded in SQL.

use chrono::{DateTime, Datelike, Utc};

/// The first moment that can be told.
const FIRST: &str = "'0001-01-01 00:00:00+00 BC'::timestamptz";
/// The first moment that cannot.
const END: &str = "'10000-01-01 00:00:00+00'::timestamptz";

/// Whether a message can be given that time.
pub(crate) fn can_be_told(time: DateTime<Utc>) -> bool {
    (0..=9999).contains(&time.year())
}

/// Whether the column holds a time that can be told; null where it holds none.
pub(crate) fn is_sound(column: &str) -> String {
    format!("({column} >= {FIRST} AND {column} < {END})")
}

/// The column, and null where it holds nothing that can be told.
pub(crate) fn sound(column: &str) -> String {
    format!("CASE WHEN {} THEN {column} END", is_sound(column))
}

/// A column that is not null, with what cannot be told brought to the nearest that can.
pub(crate) fn clamped(column: &str) -> String {
    format!("least(greatest({column}, {FIRST}), {END} - interval '1 microsecond')")
}
