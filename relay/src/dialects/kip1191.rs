//! Kafka's share groups, KIP-1191: the broker itself writes these letters.

use backstop_core::Headers;
use backstop_core::names::kip1191;

use super::{Told, number, text};

pub(super) fn read(headers: &Headers) -> Option<Told> {
    let place = text(headers, kip1191::TOPIC);
    let error = text(headers, kip1191::MESSAGE);
    if place.is_none() && error.is_none() {
        return None;
    }
    Some(Told {
        dialect: "Kafka share group",
        place,
        error,
        consumer: text(headers, kip1191::GROUP),
        attempts: number(headers, kip1191::DELIVERY_COUNT),
        ..Told::default()
    })
}
