//! The bytes that are stored in the place of a body.
//!
//! A body in clear is stored as it is. What begins with the mark is none: a format follows, and then what the format says.
//!
//! | format | |
//! |---|---|
//! | 1 | the id of a key, 8 bytes; a nonce, 24; the ciphertext of XChaCha20-Poly1305, 16 more than the body |
//! | 255 | a body in clear, which begins with the mark itself and must not be mistaken |

use bytes::Bytes;
use chacha20poly1305::aead::{Aead, Payload};

use super::key::{Key, KeyId};

/// What no text begins with.
const MARK: &[u8] = b"\0backstop-sealed";
/// The format of bodies that are encrypted.
const SEALED: u8 = 1;
/// The format of bodies in clear: no flipped bit makes it of the other.
const CLEAR: u8 = 255;
/// Bytes of a nonce: as many as make it safe to draw one for each body, however many there are.
const NONCE: usize = 24;
/// Bytes that the ciphertext has more than the body.
const TAG: usize = 16;
/// Bytes before the nonce, which nobody can change unseen, either.
const HEAD: usize = MARK.len() + 1 + KeyId::LENGTH;

/// What is stored in the place of a body.
#[derive(Debug)]
pub(super) enum Stored {
    /// The body.
    Clear(Bytes),
    /// The body, encrypted.
    Sealed(Sealed),
    /// Less than any body that was encrypted.
    Cut,
    /// Something in a format of a later version.
    Unknown(u8),
}

/// A body, encrypted.
#[derive(Debug)]
pub(super) struct Sealed {
    /// With which key.
    pub(super) key: KeyId,
    nonce: [u8; NONCE],
    whole: Bytes,
}

/// What stands for a body that is not encrypted.
pub(super) fn in_clear(body: Bytes) -> Bytes {
    if !body.starts_with(MARK) {
        return body;
    }
    [MARK, &[CLEAR][..], &body[..]].concat().into()
}

/// What stands for a body that belongs to this identity.
pub(super) fn seal(key: &Key, body: &[u8], identity: &[u8]) -> Bytes {
    let mut nonce = [0; NONCE];
    getrandom::fill(&mut nonce).expect("a system that runs has random bytes");
    let head = [MARK, &[SEALED][..], &key.id().bytes()[..]].concat();
    let aad = [&head[..], identity].concat();
    let payload = Payload { msg: body, aad: &aad };
    let ciphertext = key.cipher().encrypt((&nonce).into(), payload);
    let ciphertext = ciphertext.expect("a body in memory is far below the cipher's 256 GiB");
    [&head[..], &nonce[..], &ciphertext[..]].concat().into()
}

impl Stored {
    pub(super) fn read(stored: &Bytes) -> Self {
        let Some(rest) = stored.strip_prefix(MARK) else { return Self::Clear(stored.clone()) };
        match rest.split_first() {
            Some((&CLEAR, body)) => Self::Clear(stored.slice_ref(body)),
            Some((&SEALED, rest)) => Sealed::read(stored, rest).map_or(Self::Cut, Self::Sealed),
            Some((&format, _)) => Self::Unknown(format),
            None => Self::Cut,
        }
    }
}

impl Sealed {
    fn read(whole: &Bytes, rest: &[u8]) -> Option<Self> {
        let (key, rest) = rest.split_first_chunk::<{ KeyId::LENGTH }>()?;
        let (nonce, ciphertext) = rest.split_first_chunk::<NONCE>()?;
        let sealed = Self { key: KeyId::from_bytes(*key), nonce: *nonce, whole: whole.clone() };
        (ciphertext.len() >= TAG).then_some(sealed)
    }

    /// The body; `None` where it is not what was encrypted with this key for this identity.
    pub(super) fn open(&self, key: &Key, identity: &[u8]) -> Option<Bytes> {
        let aad = [&self.whole[..HEAD], identity].concat();
        let payload = Payload { msg: &self.whole[HEAD + NONCE..], aad: &aad };
        key.cipher().decrypt((&self.nonce).into(), payload).ok().map(Bytes::from)
    }

    /// Bytes of the body.
    pub(super) fn size(&self) -> usize {
        self.whole.len() - HEAD - NONCE - TAG
    }
}
