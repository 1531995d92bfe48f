//! Sends a notice: one POST to the configured address, and to no other.

use std::time::Duration;

use backstop_core::{AdapterError, FaultKind};
use chrono::Utc;
use hmac::{Hmac, Mac};
use reqwest::header::CONTENT_TYPE;
use reqwest::redirect::Policy;
use reqwest::{Client, Method, RequestBuilder};
use sha2::Sha256;

use super::news::Notice;
use crate::config::{NotifyConfig, NotifyKind};

/// How long connecting may take, and the whole.
const CONNECT: Duration = Duration::from_secs(5);
const ANSWER: Duration = Duration::from_secs(10);

/// The way to one target.
pub(crate) struct Sender {
    client: Client,
    config: NotifyConfig,
}

impl Sender {
    /// A sender that follows no redirect, and no proxy of the environment: what the configuration names is reached, and
    /// nothing else.
    ///
    /// # Errors
    /// When the system's certificates cannot be read.
    pub(crate) fn new(config: &NotifyConfig) -> Result<Self, AdapterError> {
        crate::tls::choose_ring();
        let client =
            Client::builder().redirect(Policy::none()).no_proxy().connect_timeout(CONNECT).timeout(ANSWER);
        let client = client.user_agent(concat!("backstop-relay/", env!("CARGO_PKG_VERSION"))).build();
        let client = client.map_err(|error| {
            AdapterError::new(FaultKind::Other, "no HTTPS client can be made")
                .with_hint("look at the system's certificates")
                .with_source(error.without_url())
        })?;
        Ok(Self { client, config: config.clone() })
    }

    /// Sends it; says why it was not taken.
    pub(crate) async fn send(&self, notice: &Notice) -> Result<(), String> {
        let request = self.client.request(Method::POST, self.config.url.expose());
        let request = match self.config.kind {
            NotifyKind::Webhook => self.signed(request, notice),
            NotifyKind::Slack => request.header(CONTENT_TYPE, "application/json").body(slack(notice)),
        };
        let status = self.ask(request).await?;
        match status {
            200..300 => Ok(()),
            300..400 => Err(format!("it answered {status}, and redirects are not followed")),
            _ => Err(format!("it answered {status}")),
        }
    }

    /// Asks whether anybody answers, without telling anything; the status of the answer.
    pub(crate) async fn probe(&self) -> Result<u16, String> {
        self.ask(self.client.request(Method::HEAD, self.config.url.expose())).await
    }

    /// The body of the answer is not read. Addresses may be secrets: errors do not name them.
    async fn ask(&self, request: RequestBuilder) -> Result<u16, String> {
        let answer = request.send().await.map_err(|error| {
            let error = error.without_url();
            crate::exit::with_cause(&error)
        })?;
        Ok(answer.status().as_u16())
    }

    fn signed(&self, request: RequestBuilder, notice: &Notice) -> RequestBuilder {
        // A notice is plain data: it always has a JSON form.
        let body = serde_json::to_string(notice).unwrap_or_default();
        let timestamp = Utc::now().timestamp().to_string();
        let request = request
            .header(CONTENT_TYPE, "application/json")
            .header("backstop-notice-id", notice.id.to_string());
        let request = match &self.config.secret {
            Some(secret) => {
                request.header("backstop-signature", signature(secret.expose(), &timestamp, &body))
            }
            None => request,
        };
        request.header("backstop-timestamp", timestamp).body(body)
    }
}

/// `sha256=` and HMAC-SHA-256 over timestamp, a full stop and body, in hexadecimal.
pub(crate) fn signature(secret: &str, timestamp: &str, body: &str) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("HMAC takes keys of any length");
    for part in [timestamp, ".", body] {
        mac.update(part.as_bytes());
    }
    let digits: String = mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256={digits}")
}

/// What Slack, Mattermost and others take: one text, in which nothing mentions anybody.
fn slack(notice: &Notice) -> String {
    let plain = |text: &str| text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let text = match &notice.link {
        Some(link) => format!("{} <{}|look at it>", plain(&notice.text), plain(link).replace('|', "%7C")),
        None => plain(&notice.text),
    };
    serde_json::json!({ "text": text }).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signature_is_what_the_page_says() {
        // printf '1700000000.{"a":1}' | openssl dgst -sha256 -hmac 0123456789abcdef
        let expected = "sha256=9eb18f493f8ec135d9eb2dad817c369bb4e9cbfa818657897a7437c1cd8c3a23";
        assert_eq!(signature("0123456789abcdef", "1700000000", "{\"a\":1}"), expected);
    }
}
