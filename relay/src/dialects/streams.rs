//! Kafka Streams, KIP-1034.

use backstop_core::Headers;

use super::{Told, text};

pub(super) fn read(headers: &Headers) -> Option<Told> {
    let error_type = text(headers, "__streams.errors.exception");
    let place = text(headers, "__streams.errors.topic");
    if place.is_none() && error_type.is_none() {
        return None;
    }
    let error = text(headers, "__streams.errors.message");
    Some(Told { dialect: "Kafka Streams", place, error_type, error, ..Told::default() })
}
