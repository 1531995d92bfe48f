//! Times of the database's clock, and how long from now.

use std::time::Duration;

use chrono::{DateTime, SecondsFormat, Utc};

/// Now, in milliseconds since the epoch; the same throughout a statement.
pub(crate) const NOW: &str = "CAST(round(unixepoch('now', 'subsec') * 1000) AS INTEGER)";

/// Milliseconds, at most a hundred years, which every sum with [`NOW`] has room for.
pub(crate) fn millis(duration: Duration) -> i64 {
    const CENTURY: i64 = 100 * 366 * 86_400_000;
    i64::try_from(duration.as_millis()).map_or(CENTURY, |millis| millis.min(CENTURY))
}

/// A duration from the difference of two of the database's times; the clock may have been set back.
pub(crate) fn duration(millis: i64) -> Duration {
    Duration::from_millis(u64::try_from(millis).unwrap_or(0))
}

/// What a text column holds, in milliseconds since the epoch.
pub(crate) fn column_millis(column: &str) -> String {
    format!("CAST(round(unixepoch({column}, 'subsec') * 1000) AS INTEGER)")
}

/// A time as text columns hold it.
pub(crate) fn text(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::AutoSi, true)
}

/// A time that a text column holds.
pub(crate) fn parse(text: &str) -> Option<DateTime<Utc>> {
    DateTime::parse_from_rfc3339(text).ok().map(|time| time.with_timezone(&Utc))
}
