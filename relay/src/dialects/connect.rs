//! Kafka Connect's sink connectors, KIP-298, where context headers are enabled.

use backstop_core::Headers;

use super::{Told, text};

pub(super) fn read(headers: &Headers) -> Option<Told> {
    let place = text(headers, "__connect.errors.topic");
    let error_type = text(headers, "__connect.errors.exception.class.name");
    if place.is_none() && error_type.is_none() {
        return None;
    }
    Some(Told {
        dialect: "Kafka Connect",
        place,
        error_type,
        consumer: text(headers, "__connect.errors.connector.name"),
        error: text(headers, "__connect.errors.exception.message"),
        // The step that failed, such as VALUE_CONVERTER.
        reason: text(headers, "__connect.errors.stage"),
        ..Told::default()
    })
}
