//! Values in the text of a statement.

/// An array as PostgreSQL reads it.
pub(crate) fn array(texts: impl IntoIterator<Item = impl AsRef<str>>) -> String {
    let mut array = String::from("{");
    for (nth, text) in texts.into_iter().enumerate() {
        array.push_str(if nth == 0 { "\"" } else { ",\"" });
        escape(text.as_ref(), &['"', '\\'], |_| '\\', &mut array);
        array.push('"');
    }
    array.push('}');
    array
}

/// A literal of a text that holds anything but NUL, which no text of the server does. It means the same whatever
/// `standard_conforming_strings` and `backslash_quote` are.
pub(crate) fn quoted(text: &str) -> String {
    let mut literal = String::with_capacity(text.len() + text.len() / 16 + 3);
    literal.push_str("E'");
    escape(text, &['\'', '\\'], |special| special, &mut literal);
    literal.push('\'');
    literal
}

/// Writes each of the special letters with another before it.
fn escape(text: &str, specials: &[char], before: impl Fn(char) -> char, into: &mut String) {
    let mut rest = text;
    while let Some(at) = rest.find(specials) {
        let (plain, special) = rest.split_at(at);
        into.push_str(plain);
        let mut letters = special.chars();
        if let Some(special) = letters.next() {
            into.push(before(special));
            into.push(special);
        }
        rest = letters.as_str();
    }
    into.push_str(rest);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_array_keeps_what_it_is_written_with() {
        let texts = ["a", "", "NULL", "b,c", "d\"e", "f\\g", "{h}"];
        assert_eq!(array(texts), r#"{"a","","NULL","b,c","d\"e","f\\g","{h}"}"#);
        assert_eq!(array([""; 0]), "{}");
    }

    #[test]
    fn nothing_ends_a_literal_early() {
        assert_eq!(quoted("a"), "E'a'");
        assert_eq!(quoted("it's \\'ä"), r"E'it''s \\''ä'");
        assert_eq!(quoted(""), "E''");
    }
}
