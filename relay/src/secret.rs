//! Secrets, and how they are kept out of everything that is shown.

use std::fmt;

use backstop_core::Headers;
use backstop_rabbitmq::properties::TYPED;
use serde::{Serialize, Serializer};

/// What stands in place of a secret.
pub const MASK: &str = "***";

/// Parts of names that announce a secret value, where `-` and `_` do not count.
const SECRET_NAMES: [&str; 11] = [
    "pass",
    "pwd",
    "secret",
    "token",
    "credential",
    "apikey",
    "jaas",
    "key.pem",
    "authorization",
    "cookie",
    "accesskey",
];
/// Words that do so by themselves.
const SECRET_WORDS: [&str; 1] = ["auth"];

/// From this length on one lowercase word is no ordinary word.
const LONG_WORD: usize = 12;

/// A text that must not be shown: `Debug` and `Serialize` print `***`.
///
/// ```
/// use backstop_relay::secret::Secret;
///
/// let secret = Secret::new("hunter2");
/// assert_eq!(format!("{secret:?}"), "***");
/// assert_eq!(secret.expose(), "hunter2");
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps the text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself, for the server it belongs to and nobody else.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(MASK)
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(MASK)
    }
}

/// A URL that may hold a password: `Debug`, `Display` and `Serialize` print it redacted.
///
/// ```
/// use backstop_relay::secret::SecretUrl;
///
/// let url = SecretUrl::new("postgres://orders:p%40ss@db/orders");
/// assert_eq!(url.to_string(), "postgres://orders:***@db/orders");
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct SecretUrl(String);

impl SecretUrl {
    /// Wraps the URL.
    pub fn new(url: impl Into<String>) -> Self {
        Self(url.into())
    }

    /// The URL with its password, for the server it belongs to and nobody else.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&redact_url(&self.0))
    }
}

impl fmt::Debug for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for SecretUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Whether a setting or header of that name holds a secret. The case of letters beyond ASCII does not count either, as where
/// headers are searched for: a Kelvin sign is a k there.
pub fn is_secret_name(name: &str) -> bool {
    let name = name.to_lowercase();
    let mut words = name.split(|c: char| !c.is_ascii_alphanumeric());
    let closed_up: String = name.chars().filter(|c| !matches!(c, '-' | '_')).collect();
    SECRET_NAMES.iter().any(|part| closed_up.contains(part))
        || words.any(|word| SECRET_WORDS.contains(&word))
        || name == "sasl.oauthbearer.config"
}

/// Whether the value of that header is neither shown in a filter nor searched for by those who do not see it in letters:
/// that of a secret, and RabbitMQ's typed values, among which one may be.
pub(crate) fn is_unsearchable(header: &str) -> bool {
    is_secret_name(header) || header.to_lowercase() == TYPED
}

/// Says of each header whether its value is hidden from those who read letters.
///
/// RabbitMQ's values that are no texts stand beside the headers once more, in one header for all of them: it is hidden
/// with any of them.
pub(crate) fn hidden_headers(headers: &Headers) -> impl Fn(&str) -> bool + use<> {
    let any = headers.iter().any(|(name, _)| is_secret_name(name));
    move |name| is_secret_name(name) || (any && name == TYPED)
}

/// The URL with `***` for its password, in the user information as well as in the query.
///
/// Works on URLs that are not valid, too, such as one whose password holds a bare `@`, `/` or `?`: what cannot be
/// told from the password is hidden with it.
pub fn redact_url(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        return redact_query(url);
    };
    let (user, after) = split_user(rest);
    let user = user.map(|user| match user.split_once(':') {
        Some((name, _)) => format!("{name}:{MASK}@"),
        None => format!("{user}@"),
    });
    format!("{scheme}://{}{}", user.unwrap_or_default(), redact_query(&redact_port(after)))
}

/// User information, as far as it can reach, and what follows it.
fn split_user(rest: &str) -> (Option<&str>, &str) {
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let looks_like_host =
        rest[..end].rsplit_once(':').is_none_or(|(_, port)| port.bytes().all(|byte| byte.is_ascii_digit()));
    if looks_like_host && !rest[..end].contains('@') {
        return (None, rest);
    }
    let query = rest.find('?').unwrap_or(rest.len());
    let last = rest.rfind('@').filter(|&at| at < query || !rest[query..at].contains('='));
    match last.or_else(|| rest[..query].rfind('@')) {
        Some(at) => (Some(&rest[..at]), &rest[at + 1..]),
        None => (None, rest),
    }
}

/// `user:secret` without a host: what stands in the place of a port, and is none, is hidden.
fn redact_port(after: &str) -> String {
    let end = after.find(['/', '?', '#']).unwrap_or(after.len());
    match after[..end].rsplit_once(':') {
        Some((host, port)) if !port.bytes().all(|byte| byte.is_ascii_digit() || byte == b']') => {
            format!("{host}:{MASK}")
        }
        _ => after.to_owned(),
    }
}

fn redact_query(text: &str) -> String {
    let Some((before, query)) = text.split_once('?') else {
        return text.to_owned();
    };
    let pairs: Vec<String> = query
        .split('&')
        .map(|pair| match pair.split_once('=') {
            Some((name, value)) if is_secret_name(&decoded(name)) || holds_key(value) => {
                format!("{name}={MASK}")
            }
            _ => pair.to_owned(),
        })
        .collect();
    format!("{before}?{}", pairs.join("&"))
}

/// Whether a value is a key itself in place of the file that holds it.
fn holds_key(value: &str) -> bool {
    decoded(value).replace('+', " ").contains("PRIVATE KEY")
}

/// Percent-decoding, as far as it is valid UTF-8.
fn decoded(text: &str) -> String {
    url::form_urlencoded::parse(text.replace('+', "%2B").as_bytes())
        .next()
        .map(|(name, _)| name.into_owned())
        .unwrap_or_default()
}

/// Removes secrets from finished texts: the net below the rule that no error and no log line holds one.
///
/// It hides the passwords of every URL in the text, and every secret of the configuration by its value, as it is and as
/// quoted texts and JSON spell it, unless the value is shorter than six bytes or one short lowercase word, which would
/// blot out ordinary text.
#[derive(Clone, Default)]
pub struct Scrubber {
    values: Vec<String>,
}

impl Scrubber {
    /// Knows a secret from now on.
    pub fn learn(&mut self, secret: &str) {
        let a_word = secret.len() < LONG_WORD && secret.bytes().all(|byte| byte.is_ascii_lowercase());
        if secret.len() < 6 || a_word {
            return;
        }
        let unquoted = |text: String| text[1..text.len() - 1].to_owned();
        let in_json = |text: &str| unquoted(serde_json::Value::from(text).to_string());
        let debugged = unquoted(format!("{secret:?}"));
        for spelling in [secret.to_owned(), in_json(secret), in_json(&debugged), debugged] {
            if !self.values.contains(&spelling) {
                self.values.push(spelling);
            }
        }
        self.values.sort_by_key(|value| std::cmp::Reverse(value.len()));
    }

    /// Knows the password of a URL from now on, as it is written and decoded.
    pub fn learn_url(&mut self, url: &SecretUrl) {
        let Some((_, rest)) = url.expose().split_once("://") else { return };
        if let Some((_, password)) = split_user(rest).0.and_then(|user| user.split_once(':')) {
            self.learn(password);
            self.learn(&decoded(password));
        }
        for (name, value) in url::Url::parse(url.expose()).iter().flat_map(url::Url::query_pairs) {
            if is_secret_name(&name) {
                self.learn(&value);
            }
        }
    }

    /// The text without secrets.
    pub fn scrub(&self, text: &str) -> String {
        self.scrub_values(&redact_urls(text))
    }

    /// The text without the configuration's secrets; URLs that are no secret of it stay as they are.
    pub fn scrub_values(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for value in &self.values {
            if text.contains(value.as_str()) {
                text = text.replace(value.as_str(), MASK);
            }
        }
        text
    }
}

impl fmt::Debug for Scrubber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scrubber").field("values", &self.values.len()).finish()
    }
}

/// Redacts every URL inside a text.
fn redact_urls(text: &str) -> String {
    let is_end = |character: char| character.is_whitespace() || matches!(character, '"' | '`' | '<' | '>');
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let end = rest[at + 3..].find(is_end).map_or(rest.len(), |end| at + 3 + end);
        let start =
            rest[..at].rfind(|character: char| !character.is_ascii_alphanumeric() && character != '+');
        let start = start.map_or(0, |start| start + rest[start..].chars().next().map_or(1, char::len_utf8));
        out.push_str(&rest[..start]);
        out.push_str(&redact_url(&rest[start..end]));
        rest = &rest[end..];
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s28_passwords_are_hidden_wherever_a_url_can_hold_them() {
        let cases = [
            ("postgres://u:secret@h:5432/d", "postgres://u:***@h:5432/d"),
            ("postgres://u:se%40cret@h/d", "postgres://u:***@h/d"),
            ("postgres://u:se@cret@h/d", "postgres://u:***@h/d"),
            ("postgres://u:se/cret@h/d", "postgres://u:***@h/d"),
            ("postgres://u:se?cret@h/d", "postgres://u:***@h/d"),
            ("postgres://u:s@e?cret@h/d", "postgres://u:***@h/d"),
            ("postgres://u:se#cret@h/d", "postgres://u:***@h/d"),
            ("postgres://u:secret", "postgres://u:***"),
            ("postgres://h/d?user=u&password=secret&x=1", "postgres://h/d?user=u&password=***&x=1"),
            ("postgres://h/d?p%61ssword=secret", "postgres://h/d?p%61ssword=***"),
            ("postgres://u:secret@h/d?sslpassword=secret", "postgres://u:***@h/d?sslpassword=***"),
            (
                "postgres://h/d?sslkey=-----BEGIN+PRIVATE+KEY-----%0Asecret%0A-----END+PRIVATE+KEY-----",
                "postgres://h/d?sslkey=***",
            ),
            ("mysql://h/d?ssl-key=-----BEGIN%20EC%20PRIVATE%20KEY-----secret", "mysql://h/d?ssl-key=***"),
            ("amqp://u:secret@h/%2f?x=a@b", "amqp://u:***@h/%2f?x=a@b"),
            ("amqp://h/%2f?x=a@b", "amqp://h/%2f?x=a@b"),
            ("postgres://[::1]:5432/d", "postgres://[::1]:5432/d"),
            ("sqlite:/var/lib/x.db", "sqlite:/var/lib/x.db"),
        ];
        for (url, expected) in cases {
            assert_eq!(redact_url(url), expected);
            let shown = format!("{:?} {}", SecretUrl::new(url), SecretUrl::new(url));
            assert!(!shown.contains("secret"), "{shown}");
        }
    }

    #[test]
    fn s28_a_scrubber_hides_urls_and_values_in_running_text() {
        let mut scrubber = Scrubber::default();
        scrubber.learn_url(&SecretUrl::new("postgres://u:S3cret%40x@h/d"));
        scrubber.learn("backstop");
        let text = "tried (postgres://u:other@h/d), then S3cret@x and S3cret%40x of backstop";
        assert_eq!(scrubber.scrub(text), "tried (postgres://u:***@h/d), then *** and *** of backstop");
        assert_eq!(scrubber.scrub("größe://a:b@c d"), "größe://a:***@c d");
        assert!(!format!("{scrubber:?}").contains("S3cret"));
        scrubber.learn("correcthorsebattery");
        assert_eq!(scrubber.scrub("with correcthorsebattery"), "with ***");
    }

    #[test]
    fn s27_names_that_announce_a_secret_are_known() {
        for name in ["Authorization", "Proxy-Authorization", "Set-Cookie", "X-API-Key", "x_api_key", "x-auth"]
        {
            assert!(is_secret_name(name), "{name}");
        }
        for name in ["author", "content-type", "x-region", "partition.key", "traceparent", "amqp:typed"] {
            assert!(!is_secret_name(name), "{name}");
        }
    }

    #[test]
    fn s27_values_beside_a_hidden_header_are_hidden_with_it() {
        let mut headers = Headers::default();
        headers.append(TYPED, "{}");
        assert!(!hidden_headers(&headers)(TYPED));
        headers.append("x-api-token", "7");
        let is_hidden = hidden_headers(&headers);
        assert_eq!(["x-api-token", TYPED, "x-region"].map(is_hidden), [true, true, false]);
    }

    #[test]
    fn s28_serialised_secrets_are_masked() {
        let json = serde_json::to_string(&(Secret::new("x1"), SecretUrl::new("a://u:x1@h"))).expect("JSON");
        assert_eq!(json, r#"["***","a://u:***@h"]"#);
    }
}
