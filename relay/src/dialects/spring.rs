//! Spring Kafka's `DeadLetterPublishingRecoverer` and its retry topics. Numbers are big-endian bytes.

use backstop_core::Headers;

use super::{Told, first};

pub(super) fn read(headers: &Headers) -> Option<Told> {
    let place = first(headers, &["kafka_dlt-original-topic", "kafka_original-topic"]);
    let error_type = first(
        headers,
        &[
            // The exception itself is mostly the listener's wrapper around the cause.
            "kafka_dlt-exception-cause-fqcn",
            "kafka_exception-cause-fqcn",
            "kafka_dlt-exception-fqcn",
            "kafka_exception-fqcn",
            "kafka_dlt-key-exception-fqcn",
        ],
    );
    if place.is_none() && error_type.is_none() {
        return None;
    }
    Some(Told {
        dialect: "Spring Kafka",
        place,
        error_type,
        consumer: first(headers, &["kafka_dlt-original-consumer-group", "kafka_original-consumer-group"]),
        error: first(
            headers,
            &["kafka_dlt-exception-message", "kafka_exception-message", "kafka_dlt-key-exception-message"],
        ),
        attempts: ["retry_topic-attempts", "kafka_deliveryAttempt"]
            .iter()
            .find_map(|name| int(headers, name)),
        ..Told::default()
    })
}

/// A big-endian `int`, as Java's `ByteBuffer` writes it.
fn int(headers: &Headers, name: &str) -> Option<i64> {
    let bytes = <[u8; 4]>::try_from(headers.get(name)?.as_ref()).ok()?;
    Some(i64::from(i32::from_be_bytes(bytes)))
}
