//! A failure in words: what a held row, a dead letter and a log line say of an error.

use std::error::Error;

use crate::classify::causes;
use crate::fingerprint::fingerprint;

/// Longest message in bytes.
const MAX_MESSAGE: usize = 2 * 1024;
/// Longest chain of causes in bytes.
const MAX_CHAIN: usize = 6 * 1024;
/// Longest type name in bytes.
const MAX_TYPE: usize = 256;

/// An error's type, message, causes and fingerprint: escaped, redacted and cut to size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ErrorReport {
    /// The Rust type.
    pub type_name: String,
    /// The message, at most 2 KiB.
    pub message: String,
    /// The causes, one a line, at most 6 KiB; empty where there are none.
    pub chain: String,
    /// Groups equal failures of one consumer.
    pub fingerprint: String,
}

impl ErrorReport {
    /// Describes `error`. `redact` sees every text before anybody else does.
    pub fn new(
        consumer: &str,
        type_name: &str,
        error: &(dyn Error + 'static),
        facts: Option<&str>,
        redact: impl Fn(&str) -> String,
    ) -> Self {
        let text = |error: &dyn Error, max| cut(&escaped(&redact(&error.to_string())), max);
        let message = text(error, MAX_MESSAGE);
        let chain: Vec<String> = causes(error).skip(1).map(|cause| text(cause, MAX_MESSAGE)).collect();
        Self {
            fingerprint: fingerprint(consumer, type_name, &message, facts),
            type_name: cut(&escaped(type_name), MAX_TYPE),
            message,
            chain: cut(&chain.join("\n"), MAX_CHAIN),
        }
    }

    /// The message and its causes in one line.
    pub fn one_line(&self) -> String {
        if self.chain.is_empty() {
            return self.message.clone();
        }
        cut(&format!("{}: {}", self.message, self.chain.replace('\n', ": ")), MAX_MESSAGE)
    }
}

/// The text with control characters (line ends and terminal escapes among them) and NULs escaped.
pub fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        if is_unprintable(character) {
            out.extend(character.escape_default());
        } else {
            out.push(character);
        }
    }
    out
}

/// Whether a character moves, colours, reorders or hides text on a screen instead of standing there.
pub fn is_unprintable(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

/// The text, cut at a character boundary to at most `max` bytes with a mark at its end.
pub fn cut(text: &str, max: usize) -> String {
    const MARK: &str = " … (cut)";
    if text.len() <= max {
        return text.to_owned();
    }
    let end = text.floor_char_boundary(max.saturating_sub(MARK.len()));
    [&text[..end], MARK].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s18_terminal_escapes_and_line_ends_are_shown_not_run() {
        assert_eq!(escaped("a\x1b[31mb\r\nc\u{202e}"), "a\\u{1b}[31mb\\r\\nc\\u{202e}");
    }

    #[test]
    fn long_texts_are_cut_with_a_mark() {
        let long = "ü".repeat(4_000);
        let short = cut(&long, MAX_MESSAGE);
        assert!(short.len() <= MAX_MESSAGE && short.ends_with("(cut)"));
    }

    #[test]
    fn the_chain_is_kept_and_secrets_are_not() {
        #[derive(Debug)]
        struct Outer(std::io::Error);
        impl std::fmt::Display for Outer {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("card 4111 refused")
            }
        }
        impl Error for Outer {
            fn source(&self) -> Option<&(dyn Error + 'static)> {
                Some(&self.0)
            }
        }
        let error = Outer(std::io::Error::other("timeout"));
        let report = ErrorReport::new("c", "Outer", &error, None, |text| text.replace("4111", "****"));
        assert_eq!(report.one_line(), "card **** refused: timeout");
    }
}
