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
use subtle::ConstantTimeEq;
use tokio::sync::Semaphore;

use crate::config::HttpConfig;

/// How long a wrong token waits for its answer. Only [`WRONG_AT_ONCE`] wait at a time, so that guessing is slow.
pub(super) const WRONG_WAITS: Duration = Duration::from_millis(250);
const WRONG_AT_ONCE: usize = 4;

/// What is checked before a request is answered.
#[derive(Debug)]
pub(super) struct Guard {
    token: Option<crate::secret::Secret>,
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
        Self { token: config.token.clone(), hosts, everywhere, wrong: Semaphore::new(WRONG_AT_ONCE) }
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

    fn knows_token(&self, headers: &HeaderMap) -> bool {
        let Some(token) = &self.token else { return true };
        let given = headers.get(AUTHORIZATION).and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
        given.is_some_and(|given| given.ct_eq(token.expose().as_bytes()).into())
    }
}

fn bare(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    }
}

/// Lets through who may ask.
pub(super) async fn check(State(guard): State<Arc<Guard>>, request: Request<Body>, next: Next) -> Response {
    if !guard.knows_token(request.headers()) {
        // A closed semaphore would only mean no wait.
        let _turn = guard.wrong.acquire().await;
        tokio::time::sleep(WRONG_WAITS).await;
        let challenge = [("www-authenticate", "Bearer")];
        return (StatusCode::UNAUTHORIZED, challenge, "a token is needed: Authorization: Bearer …\n")
            .into_response();
    }
    if guard.token.is_none() && !guard.knows_host(request.headers(), request.uri()) {
        let text = "this server is not called so; add the name to allowed_hosts in [http]\n";
        return (StatusCode::MISDIRECTED_REQUEST, text).into_response();
    }
    next.run(request).await
}
