//! What of a letter can be searched for without its exact wording: words of the error, and headers.

use std::collections::BTreeSet;

use super::Letter;
use crate::report::cut;

/// Longest value of a header that can be searched for, in bytes.
pub const MAX_VALUE: usize = 200;
/// Longest word, and longest name of a header, in bytes.
const MAX_WORD: usize = 64;
/// Most words, and most headers, of one letter.
const MOST: usize = 64;

/// The terms of a letter: of its first 64 different words of the error, and of its first 64 headers.
pub fn of_letter(letter: &Letter) -> BTreeSet<String> {
    let mut terms: BTreeSet<String> = BTreeSet::new();
    for term in letter.error.iter().flat_map(|error| of_error(error)) {
        terms.insert(term);
        if terms.len() == MOST {
            break;
        }
    }
    for (name, value) in letter.envelope.headers.iter().take(MOST) {
        terms.insert(of_header(name, None));
        let text = value.and_then(|value| std::str::from_utf8(value).ok());
        if let Some(text) = text.filter(|text| text.len() <= MAX_VALUE) {
            terms.insert(of_header(name, Some(text)));
        }
    }
    terms
}

/// One term for each word.
pub fn of_error(text: &str) -> impl Iterator<Item = String> + '_ {
    let words = text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    words.map(|word| format!("e:{}", cut(&word.to_lowercase(), MAX_WORD)))
}

/// Whether there is a word to search for in it. A filter by words without any would mean every letter.
pub fn has_words(text: &str) -> bool {
    of_error(text).next().is_some()
}

/// The term of a header.
pub fn of_header(name: &str, value: Option<&str>) -> String {
    let name = cut(&name.to_lowercase(), MAX_WORD);
    match value {
        None => format!("h:{name}"),
        Some(value) => format!("v:{name}={value}"),
    }
    .replace('\0', "\u{fffd}")
}
