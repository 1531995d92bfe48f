//! Keys, and the ids by which letters name them.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use chacha20poly1305::{KeyInit, XChaCha20Poly1305};
use serde::{Serialize, Serializer};
use sha2::{Digest, Sha256};

use crate::secret::Secret;

/// Bytes of a key.
const LENGTH: usize = 32;
/// What is hashed before a key, so that its id is no hash of it that stands anywhere else.
const ID_OF_KEY: &[u8] = b"backstop ledger key\0";

/// Names a key and tells nothing of it: the first eight bytes of a hash, in hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId([u8; Self::LENGTH]);

impl KeyId {
    /// Bytes of an id.
    pub(super) const LENGTH: usize = 8;

    pub(super) const fn from_bytes(bytes: [u8; Self::LENGTH]) -> Self {
        Self(bytes)
    }

    pub(super) const fn bytes(&self) -> &[u8; Self::LENGTH] {
        &self.0
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for KeyId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A key of 32 bytes: `Debug` prints its id, `Serialize` prints `***`.
///
/// ```
/// use backstop_relay::encryption::Key;
///
/// let key = Key::parse("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=").expect("32 bytes");
/// assert_eq!(key, Key::parse("000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f").expect("32 bytes"));
/// assert!(Key::parse("hunter2").is_none());
/// ```
#[derive(Clone)]
pub struct Key {
    text: Secret,
    bytes: [u8; LENGTH],
    id: KeyId,
}

impl Key {
    /// The key of that text: base64, of either alphabet, or hexadecimal digits; `None` unless these are 32 bytes.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let bytes: [u8; LENGTH] = if text.len() == 2 * LENGTH {
            from_hex(text)?
        } else {
            let standard = text.trim_end_matches('=').replace('-', "+").replace('_', "/");
            STANDARD_NO_PAD.decode(standard).ok()?.try_into().ok()?
        };
        let hash = Sha256::new().chain_update(ID_OF_KEY).chain_update(bytes).finalize();
        let mut id = [0; KeyId::LENGTH];
        id.copy_from_slice(&hash[..KeyId::LENGTH]);
        Some(Self { text: Secret::new(text), bytes, id: KeyId(id) })
    }

    /// What letters call it.
    pub const fn id(&self) -> KeyId {
        self.id
    }

    /// The key as it was written, so that it can be kept out of what is shown.
    pub(crate) fn expose(&self) -> &str {
        self.text.expose()
    }

    pub(super) fn cipher(&self) -> XChaCha20Poly1305 {
        XChaCha20Poly1305::new((&self.bytes).into())
    }
}

fn from_hex(text: &str) -> Option<[u8; LENGTH]> {
    let digits: Option<Vec<u32>> = text.chars().map(|digit| digit.to_digit(16)).collect();
    let bytes: Option<Vec<u8>> =
        digits?.chunks(2).map(|pair| u8::try_from(pair[0] * 16 + pair.get(1)?).ok()).collect();
    bytes?.try_into().ok()
}

/// However it is written.
impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.bytes == other.bytes
    }
}

impl Eq for Key {}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({})", self.id)
    }
}

impl Serialize for Key {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.text.serialize(serializer)
    }
}
