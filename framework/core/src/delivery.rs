//! What a handler is given.

use crate::identity::MessageKey;
use crate::message::Message;
use crate::origin::{Origin, Via};

/// A message with its decoded body, the attempt and where it came from.
#[derive(Debug, Clone)]
pub struct Delivery<T> {
    body: T,
    message: Message,
    message_key: MessageKey,
    origin: Origin,
    via: Via,
    attempt: u32,
}

impl<T> Delivery<T> {
    /// Puts a delivery together; the consumer loop and tests do this.
    ///
    /// `attempt` counts charged attempts and starts at 1.
    pub fn new(
        body: T,
        message: Message,
        message_key: MessageKey,
        origin: Origin,
        via: Via,
        attempt: u32,
    ) -> Self {
        Self { body, message, message_key, origin, via, attempt }
    }

    /// The decoded body.
    pub fn body(&self) -> &T {
        &self.body
    }

    /// The message around the body: id, kind, key, headers and the bytes as received.
    pub fn message(&self) -> &Message {
        &self.message
    }

    /// The identity under which the inbox knows this message: a good idempotency key for effects outside the
    /// database.
    pub fn message_key(&self) -> &MessageKey {
        &self.message_key
    }

    /// Where the broker had it.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// Whether it came from its topic or queue, or was redriven.
    pub fn via(&self) -> Via {
        self.via
    }

    /// Which attempt this is: 1 at first, one more for each charged failure before.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// The same delivery with another body; how a router hands a message on after decoding it.
    pub fn with_body<U>(&self, body: U) -> Delivery<U> {
        Delivery {
            body,
            message: self.message.clone(),
            message_key: self.message_key.clone(),
            origin: self.origin.clone(),
            via: self.via,
            attempt: self.attempt,
        }
    }
}
