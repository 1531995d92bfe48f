//! Who a message is: (source, id), compared as bytes.

use std::fmt;

use sha2::{Digest, Sha256};

/// Ids and sources longer than this are replaced by their hash.
pub const MAX_ID_BYTES: usize = 255;

/// The identity of a message as inbox, held table and dead letters store it: source and id in one text.
///
/// The form is `<source>|<id>`, with `%` and `|` of the source percent-escaped, so that two different pairs never
/// share a text. Parts that are longer than [`MAX_ID_BYTES`], not UTF-8 or that hold a NUL, which no database stores
/// as text, become `sha256:…`; so does a pair whose text is longer than [`MessageKey::MAX_BYTES`].
///
/// ```
/// use backstop_core::MessageKey;
///
/// assert_eq!(MessageKey::new("/orders", b"7").as_str(), "/orders|7");
/// assert_ne!(MessageKey::new("a|b", b"c"), MessageKey::new("a", b"b|c"));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MessageKey(String);

impl MessageKey {
    /// The longest text of a key, so that it fits an index of every database.
    pub const MAX_BYTES: usize = 640;

    /// The identity of (source, id).
    pub fn new(source: &str, id: &[u8]) -> Self {
        let id = storable(id);
        let source = storable(source.as_bytes());
        let mut text = String::with_capacity(source.len() + id.len() + 1);
        for character in source.chars() {
            match character {
                '%' => text.push_str("%25"),
                '|' => text.push_str("%7C"),
                other => text.push(other),
            }
        }
        text.push('|');
        text.push_str(&id);
        if text.len() > Self::MAX_BYTES { Self(hash(text.as_bytes())) } else { Self(text) }
    }

    /// Takes the text of a key back, from a destination or a table that Backstop owns.
    ///
    /// Returns `None` for a text that [`MessageKey::new`] cannot have made: empty, too long or with a NUL.
    pub fn parse(text: &str) -> Option<Self> {
        let sound = !text.is_empty() && text.len() <= Self::MAX_BYTES && !text.contains('\0');
        sound.then(|| Self(text.to_owned()))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for MessageKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An id or source as text that every database stores: itself, or its hash.
pub fn storable(bytes: &[u8]) -> std::borrow::Cow<'_, str> {
    match std::str::from_utf8(bytes) {
        Ok(text) if bytes.len() <= MAX_ID_BYTES && !text.contains('\0') => text.into(),
        _ => hash(bytes).into(),
    }
}

fn hash(bytes: &[u8]) -> String {
    use fmt::Write;
    let mut text = String::with_capacity(71);
    text.push_str("sha256:");
    for byte in Sha256::digest(bytes) {
        write!(text, "{byte:02x}").expect("writing to a String cannot fail");
    }
    text
}

/// How the identity of a received message was found.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Identity {
    /// The producer gave an id.
    Declared(MessageKey),
    /// No id: Kafka's coordinates stand in. Redelivery is recognised, a producer's duplicate is not.
    Coordinates(MessageKey),
    /// No id, and nothing that could stand in for one.
    Missing,
}

impl Identity {
    /// The key, unless it is missing.
    pub fn key(&self) -> Option<&MessageKey> {
        match self {
            Self::Declared(key) | Self::Coordinates(key) => Some(key),
            Self::Missing => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_two_sources_never_meet() {
        let pairs = [("a", "b|c"), ("a|b", "c"), ("a%7Cb", "c"), ("", "a|b|c"), ("a", "b")];
        let keys: std::collections::HashSet<_> =
            pairs.iter().map(|(source, id)| MessageKey::new(source, id.as_bytes())).collect();
        assert_eq!(keys.len(), pairs.len());
    }

    #[test]
    fn unstorable_ids_become_hashes() {
        for id in [&[0xff, 0xfe][..], b"nul\0inside", &[b'x'; 256]] {
            assert!(storable(id).starts_with("sha256:"), "{id:?}");
        }
        assert_eq!(storable(&[b'x'; 255]).len(), 255);
    }

    #[test]
    fn the_longest_key_fits_every_index() {
        let key = MessageKey::new(&"|".repeat(255), &[b'x'; 255]);
        assert!(key.as_str().len() <= MessageKey::MAX_BYTES);
        assert!(key.as_str().starts_with("sha256:"));
    }
}
