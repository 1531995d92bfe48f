//! Encryption: the body of a letter is encrypted before it is stored, and decrypted only where somebody needs it.
//!
//! The ledger's database sees neither keys nor bodies: what it keeps in the place of a body names the key by its id, and
//! holds a random nonce and the ciphertext, XChaCha20-Poly1305. Everything else of a letter stays in clear, because letters
//! are found by it.
//!
//! A ciphertext belongs to its letter: to its id, to where it was found, from which its door follows, and to the identity
//! of its message. Elsewhere it does not open, so that nobody who may write to the database can have the relay send one
//! consumer's messages to another, or show them under another name.

mod key;
mod stored;

use backstop_core::identity;
use backstop_core::ledger::Letter;
use bytes::Bytes;

pub use key::{Key, KeyId};

use stored::Stored;

use crate::config::EncryptionConfig;

/// The keys of a ledger: the first encrypts, each decrypts what was encrypted with it. Without keys bodies are stored in
/// clear.
#[derive(Debug, Clone, Default)]
pub struct Keyring {
    keys: Vec<Key>,
}

/// Why a body cannot be had. Its letter stays as it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Locked {
    /// Nobody told the relay the key.
    #[error("its body is encrypted with key {0}, which is not configured")]
    NoKey(KeyId),
    /// Somebody has changed the body, the letter's identity or its place.
    #[error("its body does not open: it was changed, or it is another letter's")]
    Damaged,
    /// A later version wrote it.
    #[error("its body is encrypted in format {0}, which this version does not know")]
    Format(u8),
}

impl Locked {
    /// How to mend it.
    pub const fn hint(&self) -> &'static str {
        match self {
            Self::NoKey(_) => {
                "name the file that holds this key in [dead_letters.encryption] previous_key_files"
            }
            Self::Damaged => {
                "find out who writes to the ledger's database; a backup of it may have the letter"
            }
            Self::Format(_) => "use at least the version of Backstop that wrote it",
        }
    }
}

impl Keyring {
    /// The keys of that configuration.
    pub fn of(config: Option<&EncryptionConfig>) -> Self {
        Self { keys: config.into_iter().flat_map(EncryptionConfig::keys).cloned().collect() }
    }

    /// The key that encrypts; `None` where bodies are stored in clear.
    pub fn newest(&self) -> Option<KeyId> {
        self.keys.first().map(Key::id)
    }

    /// Brings the body, which is in clear, into the form in which it is stored: encrypted with the newest key. A letter
    /// without a body stays one.
    pub fn seal(&self, letter: &mut Letter) {
        if let Some(body) = letter.envelope.body.take() {
            letter.envelope.body = Some(self.sealed(letter, body));
        }
    }

    fn sealed(&self, letter: &Letter, body: Bytes) -> Bytes {
        match self.keys.first() {
            Some(key) => stored::seal(key, &body, &identity_of(letter)),
            None => stored::in_clear(body),
        }
    }

    /// Brings the body from the form in which it is stored back to what it was, byte for byte.
    ///
    /// # Errors
    /// Why that cannot be; the letter is unchanged then.
    pub fn open(&self, letter: &mut Letter) -> Result<(), Locked> {
        letter.envelope.body = self.opened(letter)?;
        Ok(())
    }

    fn opened(&self, letter: &Letter) -> Result<Option<Bytes>, Locked> {
        let Some(body) = &letter.envelope.body else { return Ok(None) };
        match Stored::read(body) {
            Stored::Clear(body) => Ok(Some(body)),
            Stored::Sealed(sealed) => {
                let key = self.key(sealed.key).ok_or(Locked::NoKey(sealed.key))?;
                sealed.open(key, &identity_of(letter)).map(Some).ok_or(Locked::Damaged)
            }
            Stored::Cut => Err(Locked::Damaged),
            Stored::Unknown(format) => Err(Locked::Format(format)),
        }
    }

    /// The body of a stored letter encrypted with the newest key; `None` where there is nothing to do.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn renewed(&self, letter: &Letter) -> Result<Option<Bytes>, Locked> {
        let body = self.opened(letter)?;
        let is_newest = key_of(letter) == self.newest();
        Ok(body.filter(|_| !is_newest).map(|body| self.sealed(letter, body)))
    }

    /// Why the body of a stored letter cannot be had, as far as that shows without decrypting it.
    pub fn locked(&self, letter: &Letter) -> Option<Locked> {
        match Stored::read(letter.envelope.body.as_ref()?) {
            Stored::Clear(_) => None,
            Stored::Sealed(sealed) => self.key(sealed.key).is_none().then_some(Locked::NoKey(sealed.key)),
            Stored::Cut => Some(Locked::Damaged),
            Stored::Unknown(format) => Some(Locked::Format(format)),
        }
    }

    fn key(&self, id: KeyId) -> Option<&Key> {
        self.keys.iter().find(|key| key.id() == id)
    }
}

/// The key with which the body of a stored letter is encrypted; `None` where it is not.
pub fn key_of(letter: &Letter) -> Option<KeyId> {
    match Stored::read(letter.envelope.body.as_ref()?) {
        Stored::Sealed(sealed) => Some(sealed.key),
        _ => None,
    }
}

/// Bytes of the body of a stored letter, without what encryption adds; `None` where it has none.
pub fn size_of(letter: &Letter) -> Option<usize> {
    letter.envelope.body.as_ref().map(|body| match Stored::read(body) {
        Stored::Clear(body) => body.len(),
        Stored::Sealed(sealed) => sealed.size(),
        Stored::Cut | Stored::Unknown(_) => body.len(),
    })
}

/// What a body belongs to. As every database gives it back: PostgreSQL keeps long ids by their hash, and no NULs.
fn identity_of(letter: &Letter) -> Vec<u8> {
    let text = |text: &str| text.replace('\0', "\u{fffd}");
    let id = identity::storable(letter.id.as_bytes()).into_owned();
    let parts = [Some(id), Some(text(&letter.found_in)), letter.message_key.as_deref().map(text)];
    let mut identity = Vec::new();
    for part in parts {
        // With its length, so that no two lists of parts share their bytes.
        let length = part.as_ref().map_or(u64::MAX, |part| part.len() as u64);
        identity.extend(length.to_be_bytes());
        identity.extend(part.unwrap_or_default().into_bytes());
    }
    identity
}

#[cfg(test)]
mod tests;
