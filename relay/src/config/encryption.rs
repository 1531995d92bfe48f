//! `[dead_letters.encryption]`: the keys of the ledger.

use serde::Serialize;

use super::document::{Located, Section};
use crate::encryption::Key;

const HINT: &str = "make one with: openssl rand -base64 32";

/// The keys of the ledger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EncryptionConfig {
    /// `key` or `key_file`: 32 bytes in base64 or hexadecimal digits. Bodies of new letters are encrypted with it.
    pub key: Key,
    /// `previous_keys` and `previous_key_files`: keys of letters that are there already. None by default.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub previous_keys: Vec<Key>,
}

impl EncryptionConfig {
    /// Every key, the one for new letters first.
    pub fn keys(&self) -> impl Iterator<Item = &Key> {
        std::iter::once(&self.key).chain(&self.previous_keys)
    }
}

/// The section; `None` where it was told what is wrong.
pub(super) fn encryption(mut section: Section<'_>) -> Option<EncryptionConfig> {
    let newest = section.secret("key", "key_file");
    if !section.has("key") && !section.has("key_file") {
        section.missing("key", "use key_file = \"/run/secrets/ledger-key\"");
    }
    let newest = newest.and_then(|text| key(&section, "key", &text));
    let previous = section.secrets("previous_keys", "previous_key_files");
    let previous = previous.into_iter().filter_map(|text| {
        let key = key(&section, "previous_keys", &text)?;
        if newest.as_ref() == Some(&key) {
            let what = format!("{} has the key of new letters, too", section.path("previous_keys"));
            section.fault(text.place, what, "write the new key into key_file, and the one before it here");
            return None;
        }
        Some(key)
    });
    let previous_keys = previous.collect();
    section.finish();
    Some(EncryptionConfig { key: newest?, previous_keys })
}

/// A key; what is none is told, and never shown.
fn key(section: &Section<'_>, name: &str, text: &Located) -> Option<Key> {
    let key = Key::parse(&text.text);
    if key.is_none() {
        let what = format!("{} is no 32 bytes in base64 or hexadecimal digits", section.path(name));
        section.fault(text.place.clone(), what, HINT);
    }
    key
}
