//! From bytes to a handler's type.

use std::fmt;

use bytes::Bytes;
use serde::de::DeserializeOwned;

use crate::error::BoxError;
use crate::message::Message;

/// Reads bodies into values of `M`.
///
/// Which codec is used is a property of the consumer, so that a handler's type need not be serde's.
pub trait Codec<M>: Send + Sync + 'static {
    /// Reads the body.
    ///
    /// # Errors
    /// When the body is not an `M`; the message is then quarantined as undecodable, its bytes untouched.
    fn decode(&self, message: &Message) -> Result<M, DecodeError>;
}

/// A body could not be read; the cause is in `source`.
#[derive(Debug)]
pub struct DecodeError {
    what: String,
    source: Option<BoxError>,
}

impl DecodeError {
    /// An error that says in one line what was expected.
    pub fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), source: None }
    }

    /// Adds the cause.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<BoxError>) -> Self {
        self.source = Some(source.into());
        self
    }
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for DecodeError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

/// JSON, the default.
///
/// A tombstone reads as `null`: a handler that expects them says `type Message = Option<T>`, and for any other the
/// tombstone is undecodable.
#[derive(Debug, Clone, Copy, Default)]
pub struct Json;

impl<M: DeserializeOwned> Codec<M> for Json {
    fn decode(&self, message: &Message) -> Result<M, DecodeError> {
        let body = message.body.as_deref().unwrap_or(b"null");
        serde_json::from_slice(body).map_err(|error| {
            let what = if message.body.is_none() { "a tombstone" } else { "the body" };
            let expected = std::any::type_name::<M>();
            DecodeError::new(format!("{what} is not JSON of {expected}")).with_source(error)
        })
    }
}

/// A body that is left as it is; what a [`Router`](crate::Router) and handlers of raw bytes take.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Undecoded(
    /// The bytes; `None` is a tombstone.
    pub Option<Bytes>,
);

impl Codec<Undecoded> for Json {
    fn decode(&self, message: &Message) -> Result<Undecoded, DecodeError> {
        Ok(Undecoded(message.body.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tombstone_is_null() {
        let tombstone = Message::new("x");
        assert_eq!(Codec::<Option<u32>>::decode(&Json, &tombstone).expect("none"), None);
        let error = Codec::<u32>::decode(&Json, &tombstone).expect_err("a number was expected");
        assert_eq!(error.to_string(), "a tombstone is not JSON of u32");
    }
}
