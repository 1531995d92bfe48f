//! MassTransit's `_error` and `_skipped` queues.

use backstop_core::Headers;

use super::{Told, number, text, time};

pub(super) fn read(headers: &Headers) -> Option<Told> {
    let error_type = text(headers, "MT-Fault-ExceptionType");
    let reason = text(headers, "MT-Reason");
    if reason.is_none() && error_type.is_none() {
        return None;
    }
    // Retries come after the first attempt.
    let attempts = number(headers, "MT-Fault-RetryCount").map(|retries| retries.saturating_add(1));
    Some(Told {
        dialect: "MassTransit",
        error_type,
        reason,
        attempts,
        consumer: text(headers, "MT-Fault-ConsumerType"),
        place: text(headers, "MT-Fault-InputAddress").map(|address| last_of(&address).to_owned()),
        error: text(headers, "MT-Fault-Message"),
        dead_at: time(headers, "MT-Fault-Timestamp"),
        ..Told::default()
    })
}

/// The queue of an address such as `rabbitmq://host/vhost/queue?durable=false`.
fn last_of(address: &str) -> &str {
    let path = address.split(['?', '#']).next().unwrap_or(address).trim_end_matches('/');
    path.rsplit('/').next().unwrap_or(path)
}
