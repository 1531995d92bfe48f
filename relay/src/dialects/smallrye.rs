//! SmallRye Reactive Messaging (Quarkus) with its dead-letter-queue strategy.

use backstop_core::Headers;

use super::{Told, first, text};

pub(super) fn read(headers: &Headers) -> Option<Told> {
    let place = text(headers, "dead-letter-topic");
    let error_type = first(headers, &["dead-letter-exception-class-name", "dead-letter-cause-class-name"]);
    if place.is_none() && error_type.is_none() {
        return None;
    }
    let error = first(headers, &["dead-letter-reason", "dead-letter-cause"]);
    Some(Told { dialect: "SmallRye", place, error_type, error, ..Told::default() })
}
