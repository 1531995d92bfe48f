//! Who may ask: hosts and tokens.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, HOST};
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use subtle::ConstantTimeEq;
use tokio::sync::Semaphore;

use crate::config::HttpConfig;
use crate::desk::{Caller, Role};

/// How long a wrong token waits for its answer. Only [`WRONG_AT_ONCE`] wait at a time, so that guessing is slow.
pub(super) const WRONG_WAITS: Duration = Duration::from_millis(250);
const WRONG_AT_ONCE: usize = 4;

/// Who is at the other end of the connection: the caller, or a proxy before this server.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer(pub(super) IpAddr);

/// What is checked before a request is answered.
#[derive(Debug)]
pub(super) struct Guard {
    /// Tokens with what they allow; anybody may do everything where there are none.
    tokens: Vec<(crate::secret::Secret, Role)>,
    /// Names under which this server may be called, without port and in lowercase.
    hosts: Vec<String>,
    /// Whether it listens on every address, so that any of them may be its own.
    everywhere: bool,
    wrong: Semaphore,
}

impl Guard {
    pub(super) fn new(config: &HttpConfig, address: SocketAddr) -> Self {
        let mut hosts: Vec<String> =
            config.allowed_hosts.iter().map(|host| host.to_ascii_lowercase()).collect();
        hosts.push(bare(address.ip()));
        if address.ip().is_loopback() {
            hosts.extend(["localhost".to_owned(), "127.0.0.1".to_owned(), "[::1]".to_owned()]);
        }
        let everywhere = address.ip().is_unspecified();
        let operator = config.token.iter().map(|token| (token.clone(), Role::Operator));
        let viewer = config.viewer_token.iter().map(|token| (token.clone(), Role::Viewer));
        let tokens = operator.chain(viewer).collect();
        Self { tokens, hosts, everywhere, wrong: Semaphore::new(WRONG_AT_ONCE) }
    }

    /// A page of another site cannot have a browser ask under one of our names (DNS rebinding). A caller with a token
    /// is no such page, and calls under whatever name its network knows.
    fn knows_host(&self, headers: &HeaderMap, uri: &Uri) -> bool {
        let named = uri.host().or_else(|| headers.get(HOST)?.to_str().ok());
        let Some(named) = named else { return false };
        let name = match named.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
            _ => named,
        };
        // No DNS server stands behind an address.
        let is_address = || name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
        self.hosts.iter().any(|host| host.eq_ignore_ascii_case(name)) || (self.everywhere && is_address())
    }

    /// Who asks, if they may.
    fn caller(&self, headers: &HeaderMap) -> Option<Caller> {
        if self.tokens.is_empty() {
            return Some(Caller::named(Some("local"), Role::Operator));
        }
        let (name, given) = credentials(headers.get(AUTHORIZATION)?.as_bytes())?;
        // Every token is compared, so that the time tells nothing.
        let role = self.tokens.iter().fold(None, |found, (token, role)| {
            let same: bool = given.ct_eq(token.expose().as_bytes()).into();
            if same { Some(*role) } else { found }
        })?;
        Some(Caller::named(name.as_deref(), role))
    }
}

/// The token, and for Basic, which browsers ask people for, the name before it.
fn credentials(header: &[u8]) -> Option<(Option<String>, Vec<u8>)> {
    if let Some(token) = header.strip_prefix(b"Bearer ") {
        return Some((None, token.to_vec()));
    }
    let decoded = STANDARD.decode(header.strip_prefix(b"Basic ")?).ok()?;
    let at = decoded.iter().position(|byte| *byte == b':')?;
    let name = String::from_utf8_lossy(&decoded[..at]).into_owned();
    Some((Some(name), decoded[at + 1..].to_vec()))
}

fn bare(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    }
}

/// Lets through who may ask, and says to what follows who that is.
pub(super) async fn check(
    State(guard): State<Arc<Guard>>,
    mut request: Request<Body>,
    next: Next,
) -> Response {
    let Some(caller) = guard.caller(request.headers()) else {
        if request.headers().contains_key(AUTHORIZATION) || !is_page(request.uri()) {
            // A closed semaphore would only mean no wait.
            let _turn = guard.wrong.acquire().await;
            tokio::time::sleep(WRONG_WAITS).await;
        }
        return unknown(request.uri());
    };
    if guard.tokens.is_empty() && !guard.knows_host(request.headers(), request.uri()) {
        let text = "this server is not called so; add the name to allowed_hosts in [http]\n";
        return (StatusCode::MISDIRECTED_REQUEST, text).into_response();
    }
    if !request.method().is_safe() && !is_from_here(request.headers(), request.uri()) {
        let text = "this was asked from another site, or does not say from where; nothing was done\n";
        return (StatusCode::FORBIDDEN, text).into_response();
    }
    let page = if is_page(request.uri()) { "console" } else { "API" };
    let peer = request.extensions().get::<Peer>();
    let origin = peer.map_or_else(|| page.to_owned(), |Peer(address)| format!("{page}, {address}"));
    request.extensions_mut().insert(caller.from(origin));
    next.run(request).await
}

/// Whether people look at it: a browser asks them for name and token.
fn is_page(uri: &Uri) -> bool {
    !uri.path().starts_with("/api/") && uri.path() != "/metrics"
}

fn unknown(uri: &Uri) -> Response {
    let (challenge, text) = match is_page(uri) {
        true => {
            ("Basic realm=\"Backstop\", charset=\"UTF-8\"", "a name of your choice and a token are needed\n")
        }
        false => ("Bearer", "a token is needed: Authorization: Bearer …\n"),
    };
    (StatusCode::UNAUTHORIZED, [("www-authenticate", challenge)], text).into_response()
}

/// Whether a request that changes something comes from a page of this server, or from a program. A browser sends a
/// person's name and token along wherever the request comes from, and where there is no token anybody's request counts:
/// but it always says which site asks, and a page of another site cannot hide that, nor send JSON unasked.
fn is_from_here(headers: &HeaderMap, uri: &Uri) -> bool {
    let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or("unreadable"));
    if text("sec-fetch-site").is_some_and(|site| site != "same-origin" && site != "none") {
        return false;
    }
    let host = uri.authority().map(|authority| authority.as_str()).or_else(|| text("host"));
    match text("origin") {
        Some(origin) => origin
            .split_once("://")
            .is_some_and(|(_, at)| host.is_some_and(|host| host.eq_ignore_ascii_case(at))),
        None => text("content-type").is_none_or(|kind| !is_form(kind)) || text("sec-fetch-site").is_some(),
    }
}

/// What a form of another site can send.
fn is_form(kind: &str) -> bool {
    let kind = kind.trim().to_ascii_lowercase();
    ["application/x-www-form-urlencoded", "multipart/form-data", "text/plain"]
        .iter()
        .any(|form| kind.starts_with(form))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s21_only_pages_of_this_server_and_programs_change_anything() {
        let asked = |pairs: &[(&'static str, &'static str)]| {
            let headers = pairs.iter().map(|(name, value)| {
                (axum::http::HeaderName::from_static(name), axum::http::HeaderValue::from_static(value))
            });
            let headers: HeaderMap =
                headers.chain([(HOST, "relay:8642".parse().expect("a value"))]).collect();
            is_from_here(&headers, &Uri::from_static("/x"))
        };
        let form = ("content-type", "application/x-www-form-urlencoded");
        assert!(asked(&[form, ("origin", "http://relay:8642"), ("sec-fetch-site", "same-origin")]));
        assert!(asked(&[form, ("origin", "http://Relay:8642")]), "an old browser");
        assert!(asked(&[("content-type", "application/json")]), "a program");
        assert!(!asked(&[form]), "nobody says from where");
        for origin in ["http://evil.example", "http://relay:1", "null", "http://evil.example?relay:8642"] {
            assert!(!asked(&[form, ("origin", origin)]), "{origin}");
        }
        for site in ["cross-site", "same-site"] {
            assert!(!asked(&[("content-type", "application/json"), ("sec-fetch-site", site)]), "{site}");
        }
    }
}
