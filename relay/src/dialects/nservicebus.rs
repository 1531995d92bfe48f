//! NServiceBus' error queue.

use backstop_core::Headers;
use chrono::{DateTime, NaiveDateTime, Utc};

use super::{Told, bounded, first, text};

pub(super) fn read(headers: &Headers) -> Option<Told> {
    let place = text(headers, "NServiceBus.FailedQ");
    let error_type = text(headers, "NServiceBus.ExceptionInfo.ExceptionType");
    if place.is_none() && error_type.is_none() {
        return None;
    }
    Some(Told {
        dialect: "NServiceBus",
        // On transports with several machines the queue has its machine after an @.
        place: place.map(|queue| queue.split('@').next().unwrap_or(&queue).to_owned()),
        error_type,
        consumer: first(headers, &["NServiceBus.ProcessingEndpoint"]),
        error: text(headers, "NServiceBus.ExceptionInfo.Message"),
        dead_at: failed_at(headers),
        ..Told::default()
    })
}

/// `2026-01-02 03:04:05:678901 Z`
fn failed_at(headers: &Headers) -> Option<DateTime<Utc>> {
    let (rest, micros) = text(headers, "NServiceBus.TimeOfFailure")?
        .trim_end_matches('Z')
        .trim()
        .rsplit_once(':')
        .map(|(rest, micros)| (rest.to_owned(), micros.to_owned()))?;
    let time = NaiveDateTime::parse_from_str(&format!("{rest}.{micros}"), "%Y-%m-%d %H:%M:%S%.f").ok()?;
    bounded(time.and_utc())
}
