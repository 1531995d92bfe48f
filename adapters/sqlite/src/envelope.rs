//! Headers of an envelope as a column, to the letter.
//!
//! A JSON array of `[name, value]`, in order; a value is a text, null, or `{"hex": "…"}` where it is not UTF-8.

use std::fmt::Write;

use backstop_core::Headers;
use bytes::Bytes;
use serde_json::{Value, json};

/// The column for these headers.
pub(crate) fn to_column(headers: &Headers) -> String {
    let pairs = headers.iter().map(|(name, value)| {
        let value = match value.map(|value| (std::str::from_utf8(value), value)) {
            None => Value::Null,
            Some((Ok(text), _)) => json!(text),
            Some((Err(_), bytes)) => json!({ "hex": hex(bytes) }),
        };
        json!([name, value])
    });
    Value::Array(pairs.collect()).to_string()
}

/// The headers that a column holds; `None` when it is not of that form.
pub(crate) fn from_column(column: &str) -> Option<Headers> {
    let pairs: Vec<(String, Value)> = serde_json::from_str(column).ok()?;
    let mut headers = Headers::default();
    for (name, value) in pairs {
        match value {
            Value::Null => headers.append_null(name),
            Value::String(text) => headers.append(name, text),
            other => headers.append(name, unhex(other.get("hex")?.as_str()?)?),
        }
    }
    Some(headers)
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        write!(text, "{byte:02x}").expect("writing to a String cannot fail");
    }
    text
}

fn unhex(text: &str) -> Option<Bytes> {
    let digits: Option<Vec<u32>> = text.chars().map(|digit| digit.to_digit(16)).collect();
    let digits = digits.filter(|digits| digits.len().is_multiple_of(2))?;
    digits.chunks(2).map(|pair| u8::try_from(pair[0] * 16 + pair[1]).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_header_survives() {
        let mut headers = Headers::default();
        headers.append("a", "1");
        headers.append("raw", vec![0xff, 0x00, 0x7f]);
        headers.append("a", "nul\0 \u{202e} \"quoted\"");
        headers.append_null("none");
        headers.append("", "");
        assert_eq!(from_column(&to_column(&headers)), Some(headers));
    }

    #[test]
    fn foreign_columns_are_refused() {
        for column in [
            "",
            "{}",
            "[1]",
            "[[\"a\"]]",
            "[[\"a\", 1]]",
            "[[\"a\", {\"hex\": \"f\"}]]",
            "[[\"a\", {\"hex\": \"zz\"}]]",
        ] {
            assert_eq!(from_column(column), None, "{column}");
        }
    }
}
