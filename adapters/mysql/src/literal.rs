//! Values inside strings of several statements, which the protocol gives no parameters.

/// Bytes as a literal of hexadecimal digits: nothing in it can end it early, whatever the session's settings.
pub(crate) fn bytes(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digits = |byte: u8| [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]];
    let mut literal = String::with_capacity(2 * bytes.len() + 3);
    literal.push_str("x'");
    literal.extend(bytes.iter().copied().flat_map(digits).map(char::from));
    literal.push('\'');
    literal
}

/// A text as an expression.
pub(crate) fn text(text: &str) -> String {
    format!("CONVERT({} USING utf8mb4)", bytes(text.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_ends_a_literal() {
        assert_eq!(bytes(b"a'\\"), "x'61275c'");
        assert_eq!(bytes(b""), "x''");
        assert_eq!(text("k\u{e4}"), "CONVERT(x'6bc3a4' USING utf8mb4)");
    }
}
