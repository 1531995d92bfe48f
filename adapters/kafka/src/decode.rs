//! From librdkafka's message to ours: one copy of key, header values and body, made on the polling thread.

use std::panic::{AssertUnwindSafe, catch_unwind};

use backstop_core::cloudevents;
use backstop_core::dead_letter::origin_at_door;
use backstop_core::message::{Envelope, Headers};
use backstop_core::origin::{Origin, Via};
use backstop_core::source::Received;
use bytes::Bytes;
use rdkafka::Message;
use rdkafka::message::{BorrowedMessage, Headers as WireHeaders};

use crate::assignment::KafkaSettlement;

/// The name of a header whose own is not UTF-8.
const UNREADABLE: &str = "(not UTF-8)";

/// Key, headers and body of a message.
pub(crate) fn envelope(message: &BorrowedMessage<'_>) -> Envelope {
    Envelope {
        key: message.key().map(Bytes::copy_from_slice),
        headers: message.headers().map(headers).unwrap_or_default(),
        body: message.payload().map(Bytes::copy_from_slice),
    }
}

/// The message as a consumer gets it; `door_of` is the topic whose door it came through.
pub(crate) fn received(
    envelope: Envelope,
    message: &BorrowedMessage<'_>,
    door_of: Option<&str>,
    id_header: Option<&str>,
    settlement: KafkaSettlement,
) -> Received<KafkaSettlement> {
    let via = if door_of.is_some() { Via::Door } else { Via::Live };
    let original = door_of.and_then(|topic| origin_at_door(&envelope.headers, topic));
    let origin =
        original.filter(|origin| matches!(origin, Origin::Kafka { .. })).unwrap_or_else(|| Origin::Kafka {
            topic: message.topic().to_owned(),
            partition: message.partition(),
            offset: message.offset(),
            timestamp: message.timestamp().to_millis(),
        });
    let (message, identity) = cloudevents::decode(envelope, &origin, via, id_header);
    Received { message, identity, origin, via, settlement }
}

fn headers(wire: &impl WireHeaders) -> Headers {
    let mut headers = Headers::default();
    // Reading a name that is not UTF-8 panics inside the binding. A producer can send one, and it must not fell us.
    if catch_unwind(AssertUnwindSafe(|| {
        (0..wire.count()).for_each(|index| append(&mut headers, wire, index))
    }))
    .is_ok()
    {
        return headers;
    }
    let mut headers = Headers::default();
    for index in 0..wire.count() {
        if catch_unwind(AssertUnwindSafe(|| append(&mut headers, wire, index))).is_err() {
            headers.append_null(UNREADABLE);
        }
    }
    headers
}

fn append(headers: &mut Headers, wire: &impl WireHeaders, index: usize) {
    let Some(header) = wire.try_get(index) else { return };
    match header.value {
        Some(value) => headers.append(header.key, Bytes::copy_from_slice(value)),
        None => headers.append_null(header.key),
    }
}

#[cfg(test)]
mod tests {
    use rdkafka::message::Header;

    use super::*;

    /// Behaves as the binding does for the name in the middle.
    struct Hostile;

    impl WireHeaders for Hostile {
        fn count(&self) -> usize {
            3
        }

        fn try_get(&self, index: usize) -> Option<Header<'_, &[u8]>> {
            match index {
                0 => Some(Header { key: "a", value: Some(b"\xff") }),
                1 => panic!("the name is not UTF-8"),
                _ => Some(Header { key: "b", value: None }),
            }
        }
    }

    #[test]
    fn a_header_name_that_is_not_utf8_costs_only_itself() {
        let mut expected = Headers::default();
        expected.append("a", Bytes::from_static(b"\xff"));
        expected.append_null(UNREADABLE);
        expected.append_null("b");
        assert_eq!(headers(&Hostile), expected);
    }
}
