//! RabbitMQ's own dead-lettering. The broker says from which queue and why, and knows of no error.

use backstop_core::Headers;

use super::{Told, first};

pub(super) fn read(headers: &Headers) -> Option<Told> {
    let place = first(headers, &["x-first-death-queue", "x-last-death-queue"]);
    let reason = first(headers, &["x-first-death-reason", "x-last-death-reason"]);
    if place.is_none() && reason.is_none() {
        return None;
    }
    // Somebody looks for it where errors are told.
    let error = reason.as_deref().map(|reason| match reason {
        "rejected" => "rejected by its consumer".to_owned(),
        "expired" => "its time to live ended".to_owned(),
        "maxlen" => "its queue was full".to_owned(),
        "delivery_limit" => "delivered too often".to_owned(),
        other => other.to_owned(),
    });
    Some(Told { dialect: "RabbitMQ", place, reason, error, ..Told::default() })
}
