//! Times as columns hold them: `datetime(6)` in UTC, read as text.
//!
//! The column takes dates that are none, such as `0000-00-00`, where the session's mode lets it. What is read as text
//! can be refused for one row; what the driver decodes fails the whole read.

use std::time::Duration;

use chrono::{DateTime, Datelike, NaiveDateTime, Utc};

const FORMAT: &str = "%Y-%m-%d %H:%M:%S%.6f";

/// Whether a message's time fits the column and RFC 3339.
pub(crate) fn can_be_told(time: DateTime<Utc>) -> bool {
    (0..=9999).contains(&time.year())
}

/// As the column takes it; parts of a microsecond are cut off.
pub(crate) fn column(time: DateTime<Utc>) -> String {
    time.format(FORMAT).to_string()
}

/// What the column held; `None` if that is no date.
pub(crate) fn parse(text: &str) -> Option<DateTime<Utc>> {
    NaiveDateTime::parse_from_str(text, "%Y-%m-%d %H:%M:%S%.f").ok().map(|time| time.and_utc())
}

/// Whole microseconds, for INTERVAL; at most a hundred years.
pub(crate) fn micros(duration: Duration) -> i64 {
    const CENTURY: u128 = 100 * 365 * 86_400 * 1_000_000;
    i64::try_from(duration.as_micros().min(CENTURY)).unwrap_or(i64::MAX)
}

/// A difference of two times; a clock that stepped back gives 0.
pub(crate) fn from_micros(micros: i64) -> Duration {
    Duration::from_micros(u64::try_from(micros).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_survive_the_column() {
        for seconds in [0, -62_167_219_200, 253_402_300_799] {
            let time = DateTime::from_timestamp(seconds, 123_456_000).expect("a time");
            assert_eq!(parse(&column(time)), Some(time));
        }
        assert_eq!(parse("0000-00-00 00:00:00.000000"), None);
        assert_eq!(micros(Duration::MAX), 3_153_600_000_000_000);
    }
}
