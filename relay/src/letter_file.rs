//! Letters in a file: one JSON document a line, which holds everything, to the letter; in an archive also what happened to
//! it.
//!
//! A body stands there as it was, or, where the line says with which key it is encrypted, as it was stored.

use backstop_core::ledger::{Expired, Letter, LetterEvent};
use backstop_core::{Envelope, Headers};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::encryption::{Keyring, Locked};

/// A line of the file.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Line {
    letter: Letter,
    content: Content,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    history: Vec<LetterEvent>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Content {
    key: Option<Value>,
    headers: Vec<(String, Option<Value>)>,
    body: Option<Value>,
    /// The id of the key, where the body is encrypted; `unknown` where it does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    encrypted_with: Option<String>,
}

/// Why a line is no letter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NoLetter {
    /// Its bytes are none.
    Bytes,
    /// Its body cannot be had.
    Locked(Locked),
}

/// Bytes: a text where they are one.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum Value {
    Text(String),
    Bytes { hex: String },
}

impl Value {
    fn of(bytes: &[u8]) -> Self {
        match std::str::from_utf8(bytes) {
            Ok(text) => Self::Text(text.to_owned()),
            Err(_) => Self::Bytes { hex: bytes.iter().map(|byte| format!("{byte:02x}")).collect() },
        }
    }

    fn bytes(self) -> Option<Bytes> {
        match self {
            Self::Text(text) => Some(text.into()),
            Self::Bytes { hex } => {
                let digits: Option<Vec<u32>> = hex.chars().map(|digit| digit.to_digit(16)).collect();
                let digits = digits.filter(|digits| digits.len().is_multiple_of(2))?;
                digits.chunks(2).map(|pair| u8::try_from(pair[0] * 16 + pair[1]).ok()).collect()
            }
        }
    }
}

impl Line {
    /// The line for a letter as the ledger gives it back, which stays encrypted.
    pub(crate) fn of_stored(mut letter: Letter) -> Self {
        // What is not encrypted opens without keys.
        let key = match Keyring::default().open(&mut letter) {
            Ok(()) => None,
            Err(Locked::NoKey(key)) => Some(key.to_string()),
            Err(_) => Some("unknown".to_owned()),
        };
        let mut line = Self::of(letter);
        line.content.encrypted_with = key;
        line
    }

    /// The line for a letter with its body as it was.
    pub(crate) fn of(letter: Letter) -> Self {
        let envelope = &letter.envelope;
        let pair =
            |(name, value): (&str, Option<&Bytes>)| (name.to_owned(), value.map(|value| Value::of(value)));
        let content = Content {
            key: envelope.key.as_deref().map(Value::of),
            headers: envelope.headers.iter().map(pair).collect(),
            body: envelope.body.as_deref().map(Value::of),
            encrypted_with: None,
        };
        Self { letter, content, history: Vec::new() }
    }

    /// The line for a letter of an archive.
    pub(crate) fn with_history(expired: Expired) -> Self {
        Self { history: expired.history, ..Self::of_stored(expired.letter) }
    }

    /// The letter of a line, with its body as it was.
    pub(crate) fn letter(self, keys: &Keyring) -> Result<Letter, NoLetter> {
        let is_encrypted = self.content.encrypted_with.is_some();
        let mut letter = self.written().ok_or(NoLetter::Bytes)?;
        if is_encrypted {
            keys.open(&mut letter).map_err(NoLetter::Locked)?;
        }
        Ok(letter)
    }

    /// The letter with its body as it stands in the file.
    fn written(self) -> Option<Letter> {
        let bytes = |value: Option<Value>| match value {
            Some(value) => value.bytes().map(Some),
            None => Some(None),
        };
        let mut headers = Headers::default();
        for (name, value) in self.content.headers {
            match bytes(value)? {
                Some(value) => headers.append(name, value),
                None => headers.append_null(name),
            }
        }
        let mut letter = self.letter;
        letter.envelope =
            Envelope { key: bytes(self.content.key)?, headers, body: bytes(self.content.body)? };
        Some(letter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_letter_survives() {
        let mut headers = Headers::default();
        headers.append("a", "1");
        headers.append("a", vec![0xff, 0]);
        headers.append_null("none");
        let envelope = Envelope { key: Some(vec![0x80].into()), headers, body: Some("größe\n".into()) };
        for envelope in [envelope, Envelope::default()] {
            let mut letter = Letter::new("id", "orders.stock.dlq", envelope);
            letter.hold = Some("case 7".to_owned());
            let line = serde_json::to_string(&Line::of(letter.clone())).expect("JSON");
            assert!(!line.contains('\n'));
            let read: Line = serde_json::from_str(&line).expect("a line");
            assert_eq!(read.letter(&Keyring::default()), Ok(letter));
        }
    }

    #[test]
    fn what_is_no_bytes_is_refused() {
        let line =
            serde_json::to_string(&Line::of(Letter::new("id", "x", Envelope::default()))).expect("JSON");
        for hex in ["f", "zz"] {
            let wrong = line.replace("\"body\":null", &format!("\"body\":{{\"hex\":\"{hex}\"}}"));
            let read: Line = serde_json::from_str(&wrong).expect("a line");
            assert_eq!(read.letter(&Keyring::default()), Err(NoLetter::Bytes));
        }
    }
}
