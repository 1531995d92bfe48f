//! A stable hash that groups equal failures.

use sha2::{Digest, Sha256};

/// The fingerprint of a failure: consumer, error type, the message without its changing parts, and the driver's
/// facts as they are.
///
/// Numbers, long hexadecimal texts, UUIDs and quoted values are taken out of the message. Names of tables, columns
/// and constraints come as `facts` and stay, because they are the answer.
///
/// ```
/// use backstop_core::fingerprint::fingerprint;
///
/// let one = fingerprint("stock", "OutOfStock", "order 17: \"tea\" is sold out", None);
/// let two = fingerprint("stock", "OutOfStock", "order 18: \"coffee\" is sold out", None);
/// assert_eq!(one, two);
/// assert_ne!(one, fingerprint("stock", "OutOfStock", "order 18: not found", None));
/// ```
pub fn fingerprint(consumer: &str, error_type: &str, message: &str, facts: Option<&str>) -> String {
    let mut hash = Sha256::new();
    for part in [consumer, error_type, &normalised(message), facts.unwrap_or("")] {
        hash.update(part.as_bytes());
        hash.update([0]);
    }
    hash.finalize()[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The message with `#` for numbers, UUIDs and hexadecimal texts and `""` for quoted values.
fn normalised(message: &str) -> String {
    let mut out = String::with_capacity(message.len());
    let mut rest = message;
    while let Some(first) = rest.chars().next() {
        if let Some(after) = quoted(rest, first) {
            out.push_str("\"\"");
            rest = after;
        } else if first.is_alphanumeric() {
            let end =
                rest.find(|c: char| !(c.is_alphanumeric() || c == '-' || c == '_')).unwrap_or(rest.len());
            let word = &rest[..end];
            let changing = word.bytes().any(|byte| byte.is_ascii_digit());
            out.push_str(if changing { "#" } else { word });
            rest = &rest[end..];
        } else {
            out.push(first);
            rest = &rest[first.len_utf8()..];
        }
    }
    out
}

/// What follows the quoted value that `text` begins with. An apostrophe inside a word is no quote, because words are
/// taken whole; one without a partner is left alone.
fn quoted(text: &str, first: char) -> Option<&str> {
    let close = match first {
        '"' | '\'' | '`' => first,
        '“' => '”',
        _ => return None,
    };
    let inside = &text[first.len_utf8()..];
    inside.find(close).map(|end| &inside[end + close.len_utf8()..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changing_parts_are_taken_out() {
        let cases = [
            ("order 17 of 3.5 kg", "order # of #.# kg"),
            ("key 'a b' and `c`", "key \"\" and \"\""),
            ("row 018f3c2e-7b1a-7c00-8000-000000000001", "row #"),
            ("a lone ' stays", "a lone ' stays"),
            ("größe über 9", "größe über #"),
        ];
        for (message, expected) in cases {
            assert_eq!(normalised(message), expected);
        }
    }

    #[test]
    fn facts_tell_failures_apart() {
        let of = |facts| fingerprint("c", "PgError", "null value in column \"x\"", Some(facts));
        assert_ne!(of("column=sku"), of("column=price"));
    }
}
