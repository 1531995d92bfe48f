//! Backstop's own headers. They count only on destinations that Backstop owns, which the dead-letter id shows.

use backstop_core::dead_letter::{self, original_origin};
use backstop_core::{Headers, MessageKey, names};
use uuid::Uuid;

use super::{Told, number, text, time};

pub(super) fn read(headers: &Headers) -> Option<Told> {
    headers.get_str(names::DEAD_LETTER_ID).and_then(|id| Uuid::try_parse(id).ok())?;
    let message_key = headers.get_str(names::MESSAGE_KEY).and_then(MessageKey::parse);
    Some(Told {
        dialect: "Backstop",
        message_key: message_key.map(|key| key.as_str().to_owned()),
        consumer: text(headers, names::CONSUMER),
        place: original_origin(headers).map(|origin| origin.place().to_owned()),
        reason: text(headers, names::REASON),
        class: text(headers, names::ERROR_CLASS),
        error_type: text(headers, names::ERROR_TYPE),
        error: headers.get_str(names::ERROR_MESSAGE).map(str::to_owned),
        fingerprint: text(headers, names::FINGERPRINT),
        attempts: number(headers, names::ATTEMPTS),
        generation: i64::from(dead_letter::generation(headers)),
        first_failed_at: time(headers, names::FIRST_FAILED_AT),
        dead_at: time(headers, names::DEAD_AT),
    })
}
