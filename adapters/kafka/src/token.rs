//! Tokens for the mechanism OAUTHBEARER, from a file that somebody else keeps fresh.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{SystemTime, UNIX_EPOCH};

use rdkafka::client::OAuthToken;
use serde::Deserialize;

use crate::context::lock;

/// The property that names the file. It is Backstop's own; librdkafka never sees it.
pub(crate) const TOKEN_LOCATION: &str = "backstop.oauthbearer.token.location";

/// How long a token counts as valid that does not say so itself, in milliseconds. librdkafka asks again when four
/// fifths of it have passed.
const UNSTATED_MS: i64 = 300_000;
/// The latest end, in milliseconds since 1970: librdkafka counts in microseconds.
const LATEST_MS: i64 = i64::MAX / 2_000;
/// Largest file that is taken for a token.
const MAX_BYTES: u64 = 64 * 1024;

/// Where the token is; it is read anew each time that librdkafka asks.
#[derive(Default)]
pub(crate) struct TokenFile {
    path: Option<PathBuf>,
    /// What was read last, which serves on while the file cannot be read and it is still valid.
    last: Mutex<Option<OAuthToken>>,
}

/// What a JSON Web Token says about itself. Only brokers check it; here it tells when to read the file again.
#[derive(Debug, Default, Deserialize)]
struct Claims {
    #[serde(default)]
    sub: String,
    /// Seconds since 1970.
    exp: Option<f64>,
}

impl TokenFile {
    pub(crate) fn new(path: Option<&str>) -> Self {
        Self { path: path.map(PathBuf::from), last: Mutex::default() }
    }

    /// The token that the file holds now, or held when it could last be read. No error repeats it.
    pub(crate) fn read(&self) -> Result<OAuthToken, Box<dyn Error>> {
        let Some(path) = &self.path else {
            return Err(format!("OAUTHBEARER needs a token: name its file in {TOKEN_LOCATION}").into());
        };
        let mut last = lock(&self.last);
        match (token_in(path), last.as_ref().filter(|last| !has_ended(last.lifetime_ms))) {
            (Ok(token), _) => {
                *last = Some(copy(&token));
                Ok(token)
            }
            (Err(error), Some(last)) => {
                tracing::warn!("kafka: {error}; the token that was read before serves on until it ends");
                Ok(copy(last))
            }
            (Err(error), None) => Err(error),
        }
    }
}

impl std::fmt::Debug for TokenFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenFile").field("path", &self.path).finish_non_exhaustive()
    }
}

fn copy(token: &OAuthToken) -> OAuthToken {
    let OAuthToken { token, principal_name, lifetime_ms } = token;
    OAuthToken { token: token.clone(), principal_name: principal_name.clone(), lifetime_ms: *lifetime_ms }
}

fn token_in(path: &Path) -> Result<OAuthToken, Box<dyn Error>> {
    let token = read(path).map_err(|error| format!("the token file {}: {error}", path.display()))?;
    let claims = claims(&token).unwrap_or_default();
    let lifetime_ms = match claims.exp {
        Some(seconds) => (seconds * 1_000.0) as i64,
        None => now_ms() + UNSTATED_MS,
    };
    if has_ended(lifetime_ms) {
        return Err(format!("the token in {} has expired", path.display()).into());
    }
    let principal_name = if claims.sub.is_empty() { "backstop".to_owned() } else { claims.sub };
    Ok(OAuthToken {
        token,
        principal_name: principal_name.replace('\0', ""),
        lifetime_ms: lifetime_ms.min(LATEST_MS),
    })
}

fn has_ended(lifetime_ms: i64) -> bool {
    lifetime_ms <= now_ms()
}

fn now_ms() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_millis()).unwrap_or(LATEST_MS)
}

fn read(path: &Path) -> Result<String, Box<dyn Error>> {
    if std::fs::metadata(path)?.len() > MAX_BYTES {
        return Err(format!("it is over {MAX_BYTES} bytes").into());
    }
    let text = std::fs::read_to_string(path)?;
    let token = text.trim();
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err("it holds no token".into());
    }
    Ok(token.to_owned())
}

/// The claims of a JSON Web Token; `None` for any other token.
fn claims(token: &str) -> Option<Claims> {
    let mut parts = token.split('.').skip(1);
    let (payload, _signature) = (parts.next()?, parts.next()?);
    serde_json::from_slice(&decoded(payload)?).ok()
}

/// Base64 for URLs, without padding.
fn decoded(text: &str) -> Option<Vec<u8>> {
    let sextet = |byte: u8| {
        Some(match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'-' => 62,
            b'_' => 63,
            _ => return None,
        })
    };
    let mut bytes = Vec::with_capacity(text.len() * 3 / 4);
    for group in text.trim_end_matches('=').as_bytes().chunks(4) {
        let bits = group.iter().try_fold(0_u32, |bits, byte| Some(bits << 6 | u32::from(sextet(*byte)?)))?;
        let [_, all @ ..] = (bits << (6 * (4 - group.len()))).to_be_bytes();
        bytes.extend_from_slice(&all[..group.len() * 3 / 4]);
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of its own with that text.
    struct File(PathBuf);

    impl File {
        fn new(text: &str) -> Self {
            let path = std::env::temp_dir().join(format!("backstop-token-{}", uuid::Uuid::new_v4()));
            std::fs::write(&path, text).expect("written");
            Self(path)
        }

        fn token(&self) -> Result<OAuthToken, String> {
            let file = TokenFile::new(self.0.to_str());
            file.read().map_err(|error| error.to_string())
        }
    }

    impl Drop for File {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    #[test]
    fn a_web_token_says_who_and_how_long() {
        // {"alg":"none"} . {"sub":"relay?>","exp":4102444800.5}
        let file = File::new("eyJhbGciOiJub25lIn0.eyJzdWIiOiJyZWxheT8-IiwiZXhwIjo0MTAyNDQ0ODAwLjV9.\n");
        let token = file.token().expect("sound");
        assert_eq!((token.principal_name.as_str(), token.lifetime_ms), ("relay?>", 4_102_444_800_500));
        assert!(token.token.ends_with('.'), "without the line end");
        std::fs::write(&file.0, "another").expect("written");
        assert_eq!(file.token().expect("sound").token, "another", "the file is read each time");
    }

    #[test]
    fn a_file_that_is_gone_for_a_while_does_no_harm() {
        let file = File::new("token");
        let reader = TokenFile::new(file.0.to_str());
        reader.read().expect("sound");
        std::fs::write(&file.0, "").expect("written");
        assert_eq!(reader.read().expect("the one before").token, "token");
        lock(&reader.last).as_mut().expect("kept").lifetime_ms = now_ms();
        assert!(reader.read().is_err(), "it has ended");
        assert!(!format!("{reader:?}").contains("token\""), "no secret is shown");
    }

    #[test]
    fn a_token_without_an_end_in_sight_is_taken() {
        // {"exp":1e300}
        let token = File::new("x.eyJleHAiOjFlMzAwfQ.").token().expect("sound");
        assert_eq!(token.lifetime_ms, LATEST_MS);
    }

    #[test]
    fn an_opaque_token_is_read_again_within_minutes() {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis();
        for text in ["opaque", "a.b.c", "a.e30.c", "....."] {
            let token = File::new(text).token().expect("sound");
            let left = u128::try_from(token.lifetime_ms).expect("positive") - now;
            assert!((290_000..310_000).contains(&left), "{text}: {left}");
        }
    }

    #[test]
    fn what_is_no_token_is_refused_and_not_repeated() {
        // {"exp":1}
        for text in
            ["", " \n", "two s3cret words", "s3cret\0", "s3cret.eyJleHAiOjF9.x", &"s3cret".repeat(20_000)]
        {
            let error = File::new(text).token().err().expect("refused");
            assert!(!error.contains("s3cret") && error.contains("token"), "{error}");
        }
        let absent = TokenFile::new(Some("/nowhere/token")).read().err().expect("refused").to_string();
        assert!(absent.contains("/nowhere/token"), "{absent}");
        let unset = TokenFile::new(None).read().err().expect("refused").to_string();
        assert!(unset.contains(TOKEN_LOCATION), "{unset}");
    }

    #[test]
    fn base64_of_every_length() {
        for (text, bytes) in [("", ""), ("Zg", "f"), ("Zm8", "fo"), ("Zm9v", "foo"), ("Zm9vYg==", "foob")] {
            assert_eq!(decoded(text).expect(text), bytes.as_bytes());
        }
        assert!(decoded("Zm+v").is_none());
    }
}
