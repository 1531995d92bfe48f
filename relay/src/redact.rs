//! Redaction: what must not be kept is replaced before a letter is stored, whoever wrote it.
//!
//! Rules speak of places in JSON bodies, of headers, or of patterns, which are looked for in keys, headers, bodies and error
//! texts alike. What Backstop itself needs of a letter stays: its identity and where it was. A letter whose message was
//! changed is marked, has no door, and is sent nowhere: its consumer would take what stands in place of the truth for the
//! truth.

use backstop_core::dead_letter::is_letter_header;
use backstop_core::ledger::Letter;
use backstop_core::report::escaped;
use backstop_core::{AdapterError, Envelope, FaultKind, Headers, names};
use backstop_rabbitmq::properties::TYPED;
use bytes::Bytes;
use regex::bytes::{NoExpand, Regex};
use serde_json::Value;

use crate::config::RedactConfig;

/// Headers of a letter that hold texts of errors; its others hold what Backstop needs.
const ERROR_TEXTS: [&str; 3] = [names::ERROR_MESSAGE, names::ERROR_CHAIN, names::kip1191::MESSAGE];

/// What some put before JSON.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// The rules of a ledger.
#[derive(Debug, Clone, Default)]
pub struct Redaction {
    rules: Vec<Rule>,
}

#[derive(Debug, Clone)]
struct Rule {
    what: What,
    with: String,
}

#[derive(Debug, Clone)]
enum What {
    /// A place in JSON bodies; `*` stands for every member or element.
    Pointer(Vec<String>),
    /// The header of that name, in whichever case.
    Header(String),
    /// Texts that match.
    Pattern(Regex),
}

/// What of a message a rule has changed.
#[derive(Debug, Default)]
struct Changed {
    key: bool,
    headers: bool,
    body: bool,
}

impl Redaction {
    /// The rules that the configuration has.
    ///
    /// # Errors
    /// [`FaultKind::Invalid`] for a pattern that is none.
    pub fn new(config: &[RedactConfig]) -> Result<Self, AdapterError> {
        let rules = config.iter().map(Rule::new).collect::<Result<_, _>>()?;
        Ok(Self { rules })
    }

    /// Replaces in a letter what the rules name.
    pub fn apply(&self, letter: &mut Letter) {
        let mut changed = Changed::default();
        for rule in &self.rules {
            rule.apply(letter, &mut changed);
        }
        let parts = [(changed.key, "key"), (changed.headers, "headers"), (changed.body, "body")];
        let parts: Vec<&str> =
            parts.into_iter().filter(|(changed, _)| *changed).map(|(_, part)| part).collect();
        if !parts.is_empty() {
            if changed.headers {
                // The exact values of headers that are no texts, which nobody will send again.
                letter.envelope.headers.remove_if(|name| name == TYPED);
            }
            letter.door = None;
            letter.envelope.headers.set(names::REDACTED, parts.join(", "));
        }
    }
}

/// Whether a letter's message is no longer what it was.
pub(crate) fn is_redacted(letter: &Envelope) -> bool {
    letter.headers.get(names::REDACTED).is_some()
}

impl Rule {
    fn new(config: &RedactConfig) -> Result<Self, AdapterError> {
        let what = match (&config.pointer, &config.header, &config.pattern) {
            (Some(pointer), ..) => What::Pointer(tokens(pointer)),
            (_, Some(header), _) => What::Header(header.clone()),
            (.., pattern) => {
                let regex = Regex::new(pattern.as_deref().unwrap_or_default()).map_err(|error| {
                    AdapterError::new(FaultKind::Invalid, "a pattern of [[dead_letters.redact]] is none")
                        .with_source(error)
                })?;
                What::Pattern(regex)
            }
        };
        Ok(Self { what, with: config.replace.clone() })
    }

    fn apply(&self, letter: &mut Letter, changed: &mut Changed) {
        let envelope = &mut letter.envelope;
        match &self.what {
            What::Pointer(tokens) => {
                if let Some(body) = envelope.body.as_deref().and_then(|body| self.at(tokens, body)) {
                    (envelope.body, changed.body) = (Some(body), true);
                }
            }
            What::Header(name) => {
                let with = Bytes::from(self.with.clone());
                let is_named =
                    |found: &str, value: &Bytes| found.eq_ignore_ascii_case(name) && *value != with;
                let tells = |error: &str| {
                    let named = envelope.headers.iter().filter_map(|(name, value)| Some((name, value?)));
                    named.filter(|(name, value)| is_named(name, value)).any(|(_, value)| begins(value, error))
                };
                if letter.error.as_deref().is_some_and(tells) {
                    letter.error = Some(self.with.clone());
                }
                let replace = |name: &str, value: &Bytes| is_named(name, value).then(|| with.clone());
                changed.headers |= replace_headers(&mut envelope.headers, replace);
            }
            What::Pattern(regex) => {
                let replace = |value: &Bytes| replaced(regex, value, &self.with);
                changed.headers |= replace_headers(&mut envelope.headers, |_, value| replace(value));
                for (part, changed) in
                    [(&mut envelope.key, &mut changed.key), (&mut envelope.body, &mut changed.body)]
                {
                    if let Some(new) = part.as_ref().and_then(replace) {
                        (*part, *changed) = (Some(new), true);
                    }
                }
                if let Some(error) = &mut letter.error
                    && let Some(new) = replaced(regex, error.as_bytes(), &self.with)
                {
                    *error = String::from_utf8_lossy(&new).into_owned();
                }
            }
        }
    }

    /// The body without what stands at that place; `None` where nothing does. A body that begins like JSON and cannot be
    /// read is replaced as a whole, because it may hide there; so is one that names a member twice written anew, because
    /// only the last of them can be seen.
    fn at(&self, tokens: &[String], body: &[u8]) -> Option<Bytes> {
        let text = body.strip_prefix(BYTE_ORDER_MARK).unwrap_or(body);
        if !matches!(text.trim_ascii_start().first(), Some(b'{' | b'[')) {
            return None;
        }
        let Ok(mut document) = serde_json::from_slice::<Value>(text) else {
            return Some(self.with.clone().into()).filter(|with: &Bytes| **with != *body);
        };
        let found = set(&mut document, tokens, &self.with);
        found.then(|| document.to_string().into()).filter(|new: &Bytes| **new != *body)
    }
}

/// Sets every value at that place; whether there is one.
fn set(value: &mut Value, tokens: &[String], with: &str) -> bool {
    let Some((token, rest)) = tokens.split_first() else {
        *value = Value::from(with);
        return true;
    };
    match value {
        Value::Object(members) if token == "*" => set_all(members.values_mut(), rest, with),
        Value::Array(elements) if token == "*" => set_all(elements.iter_mut(), rest, with),
        Value::Object(members) => members.get_mut(token).is_some_and(|member| set(member, rest, with)),
        Value::Array(elements) => {
            let element = token.parse::<usize>().ok().and_then(|index| elements.get_mut(index));
            element.is_some_and(|element| set(element, rest, with))
        }
        _ => false,
    }
}

fn set_all<'v>(values: impl Iterator<Item = &'v mut Value>, tokens: &[String], with: &str) -> bool {
    let mut found = false;
    for value in values {
        found |= set(value, tokens, with);
    }
    found
}

/// Whether an error's text was taken from this header's value: escaped then, and cut where it is long.
fn begins(value: &Bytes, error: &str) -> bool {
    let head: String = error.chars().take(64).collect();
    !head.is_empty() && escaped(&String::from_utf8_lossy(value)).starts_with(&head)
}

/// The tokens of a JSON pointer.
fn tokens(pointer: &str) -> Vec<String> {
    pointer.split('/').skip(1).map(|token| token.replace("~1", "/").replace("~0", "~")).collect()
}

/// The text with each match replaced; `None` where there is none.
fn replaced(regex: &Regex, text: &[u8], with: &str) -> Option<Bytes> {
    let new = regex.replace_all(text, NoExpand(with.as_bytes()));
    (*new != *text).then(|| Bytes::from(new.into_owned()))
}

/// Replaces values of headers; whether one was changed that belongs to the message.
fn replace_headers(headers: &mut Headers, replace: impl Fn(&str, &Bytes) -> Option<Bytes>) -> bool {
    let (mut all, mut any, mut of_message) = (Headers::default(), false, false);
    for (name, value) in headers.iter() {
        let may = !is_letter_header(name) || ERROR_TEXTS.contains(&name);
        match (value, value.filter(|_| may).and_then(|value| replace(name, value))) {
            (_, Some(new)) => {
                any = true;
                of_message |= !is_letter_header(name);
                all.append(name, new);
            }
            (Some(value), None) => all.append(name, value.clone()),
            (None, None) => all.append_null(name),
        }
    }
    if any {
        *headers = all;
    }
    of_message
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(of: &str, what: &str) -> RedactConfig {
        let given = |kind: &str| (of == kind).then(|| what.to_owned());
        RedactConfig {
            pointer: given("pointer"),
            header: given("header"),
            pattern: given("pattern"),
            replace: "[redacted]".to_owned(),
        }
    }

    fn letter(body: &str) -> Letter {
        let headers = [
            (names::DEAD_LETTER_ID, "6d1b25c8-52f1-4f0e-9c4b-4111111111111111"),
            (names::ERROR_MESSAGE, "card 4111111111111111 declined"),
            ("Authorization", "Bearer abc"),
            ("ce_id", "7"),
        ];
        let headers = headers.into_iter().map(|(name, value)| (name, Some(value))).collect();
        let envelope =
            Envelope { key: Some("customer 7".into()), headers, body: Some(body.to_owned().into()) };
        let mut letter = Letter::new("id", "orders.stock.dlq", envelope);
        letter.door = Some("orders.stock.redrive".to_owned());
        letter.error = Some("card 4111111111111111 declined".to_owned());
        letter
    }

    fn redacted(rules: &[RedactConfig], body: &str) -> Letter {
        let mut letter = letter(body);
        Redaction::new(rules).expect("sound").apply(&mut letter);
        letter
    }

    fn body(letter: &Letter) -> &str {
        std::str::from_utf8(letter.envelope.body.as_deref().expect("a body")).expect("UTF-8")
    }

    #[test]
    fn places_in_bodies_are_replaced() {
        let cases = [
            ("/card", r#"{"card":4111,"n":1}"#, r#"{"card":"[redacted]","n":1}"#),
            ("/a~1b/0", r#"{"a/b":["x","y"]}"#, r#"{"a/b":["[redacted]","y"]}"#),
            ("/cards/*/number", r#"{"cards":[{"number":1},{"number":2}]}"#, {
                r#"{"cards":[{"number":"[redacted]"},{"number":"[redacted]"}]}"#
            }),
            ("/*", r#"{"a":{"b":1},"c":2}"#, r#"{"a":"[redacted]","c":"[redacted]"}"#),
            ("/card", r#"{"card": 41"#, "[redacted]"),
            ("/card", "\u{feff}{\"card\":4111}", r#"{"card":"[redacted]"}"#),
            ("/card", r#"{"card":4111,"card":"[redacted]"}"#, r#"{"card":"[redacted]"}"#),
        ];
        for (pointer, before, after) in cases {
            let letter = redacted(&[rule("pointer", pointer)], before);
            assert_eq!(body(&letter), after, "{pointer}");
            assert_eq!(letter.envelope.headers.get_str(names::REDACTED), Some("body"), "{pointer}");
            assert_eq!(letter.door, None, "what is not the truth any more is sent nowhere");
        }
    }

    #[test]
    fn what_no_rule_names_stays_to_the_letter() {
        for before in [r#"{ "n" : 1 }"#, "plain text", ""] {
            let after = redacted(&[rule("pointer", "/card"), rule("header", "cookie")], before);
            let mut expected = letter(before);
            expected.collected_at = after.collected_at;
            assert_eq!(after, expected);
        }
    }

    #[test]
    fn headers_are_found_in_any_case() {
        let letter = redacted(&[rule("header", "authorization")], "{}");
        assert_eq!(letter.envelope.headers.get_str("Authorization"), Some("[redacted]"));
        assert_eq!(letter.envelope.headers.get_str(names::REDACTED), Some("headers"));
    }

    /// What tells a header's value once more goes with it: the error that was taken from it, and its exact value.
    #[test]
    fn copies_of_a_header_go_with_it() {
        let letter = redacted(&[rule("header", names::ERROR_MESSAGE)], "{}");
        assert_eq!(letter.error.as_deref(), Some("[redacted]"));
        let mut typed = self::letter("{}");
        typed.envelope.headers.set(TYPED, "{\"card\":4111}");
        typed.envelope.headers.set("card", "4111");
        Redaction::new(&[rule("header", "card")]).expect("sound").apply(&mut typed);
        assert_eq!(typed.envelope.headers.get(TYPED), None);
        assert_eq!(typed.error.as_deref(), Some("card 4111111111111111 declined"));
    }

    /// Error texts are Backstop's, and never sent again: a letter with nothing else changed keeps its door.
    #[test]
    fn patterns_are_looked_for_everywhere_but_in_identities() {
        let card = rule("pattern", "[0-9]{13,19}");
        let letter = redacted(&[card], r#"{"n":1}"#);
        assert_eq!(letter.error.as_deref(), Some("card [redacted] declined"));
        assert_eq!(letter.envelope.headers.get_str(names::ERROR_MESSAGE), Some("card [redacted] declined"));
        let id = letter.envelope.headers.get_str(names::DEAD_LETTER_ID);
        assert_eq!(id, Some("6d1b25c8-52f1-4f0e-9c4b-4111111111111111"));
        assert!(letter.door.is_some() && !is_redacted(&letter.envelope));
        let letter = redacted(&[rule("pattern", "customer [0-9]+|\\xff")], "of customer 7, $0");
        assert_eq!(
            (letter.envelope.key.as_deref(), body(&letter)),
            (Some(&b"[redacted]"[..]), "of [redacted], $0")
        );
        assert_eq!(letter.envelope.headers.get_str(names::REDACTED), Some("key, body"));
    }
}
