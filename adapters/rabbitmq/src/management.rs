//! The broker's management API: which queues there are, which AMQP cannot tell.

use std::fmt;
use std::str::FromStr;

use backstop_core::{AdapterError, FaultKind};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper::header::{AUTHORIZATION, HOST};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use lapin::runtime::default_runtime;
use lapin::tcp::AMQPUriTcpExt;
use lapin::uri::AMQPUri;
use tokio::time::timeout;
use tokio_util::compat::FuturesAsyncReadCompatExt;
use url::Url;

use crate::settings::RabbitSettings;

/// The longest answer.
const MAX_ANSWER: usize = 64 << 20;
/// What is asked of each queue.
const COLUMNS: &str = "columns=name,type&disable_stats=true&enable_queue_totals=true";

/// The management API of a broker.
///
/// Neither `Debug` nor any error shows user or password.
#[derive(Clone)]
pub struct RabbitManagement {
    /// How to connect: certificates, patience, and the virtual host that is asked for.
    settings: RabbitSettings,
    /// Host, port, user and password of the API.
    uri: AMQPUri,
    /// Host and port, as the header wants them.
    host: String,
    /// Where the queues of the virtual host are.
    target: String,
}

impl RabbitManagement {
    /// The API at `url`, `http://user:password@host:15672` or `https://…`, for the virtual host of `settings`. Where the
    /// URL names no user, that of `settings` is taken; `https` uses their certificates.
    ///
    /// # Errors
    /// [`FaultKind::Invalid`] when it is not such a URL. The text does not repeat the URL.
    pub fn new(settings: RabbitSettings, url: &str) -> Result<Self, AdapterError> {
        let invalid = || {
            AdapterError::new(FaultKind::Invalid, "this is not the URL of a management API")
                .with_hint("write http://user:password@host:15672, with special characters percent-encoded")
        };
        let mut url = Url::parse(url).map_err(|_| invalid())?;
        let (scheme, host, port) = match (url.scheme(), url.host_str(), url.port_or_known_default()) {
            ("http", Some(host), Some(port)) => ("amqp", host.to_owned(), port),
            ("https", Some(host), Some(port)) => ("amqps", host.to_owned(), port),
            _ => return Err(invalid()),
        };
        let user = match url.password() {
            Some(password) => format!("{}:{password}@", url.username()),
            None => String::new(),
        };
        let mut uri = AMQPUri::from_str(&format!("{scheme}://{user}{host}:{port}")).map_err(|_| invalid())?;
        // The parser takes an address in brackets for an absent host.
        host.trim_matches(['[', ']']).clone_into(&mut uri.authority.host);
        if user.is_empty() {
            uri.authority.userinfo = settings.uri.authority.userinfo.clone();
        }
        url.path_segments_mut().map_err(|()| invalid())?.pop_if_empty().extend([
            "api",
            "queues",
            settings.vhost(),
        ]);
        // Without the statistics, which would cost the broker much more than the names.
        let target = format!("{}?{COLUMNS}", url.path());
        Ok(Self { settings, uri, host: format!("{host}:{port}"), target })
    }

    /// The names of the queues of the virtual host from which messages can be taken: all but streams.
    ///
    /// # Errors
    /// When the API cannot be reached, refuses, or answers something else.
    pub async fn queues(&self) -> Result<Vec<String>, AdapterError> {
        let what = format!("cannot list the queues of {self}");
        let (status, body) = match timeout(self.settings.connect_timeout, self.ask()).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => {
                return Err(AdapterError::new(FaultKind::Unreachable, what)
                    .with_hint("check host and port of the management API, and that its plugin is enabled")
                    .with_source(error));
            }
            Err(_) => {
                return Err(AdapterError::new(FaultKind::Unreachable, format!("{what}: no answer in time"))
                    .with_hint("check that the broker runs and is not overloaded"));
            }
        };
        if status != StatusCode::OK {
            return Err(refused(&what, status));
        }
        let queues: Vec<Queue> = serde_json::from_slice(&body).map_err(|error| {
            AdapterError::new(FaultKind::Other, format!("{what}: it answers something else"))
                .with_hint("check that the URL is that of RabbitMQ's management API")
                .with_source(error)
        })?;
        let readable = queues.into_iter().filter(|queue| queue.kind.as_deref() != Some("stream"));
        Ok(readable.map(|queue| queue.name).collect())
    }

    async fn ask(&self) -> Result<(StatusCode, Bytes), Box<dyn std::error::Error + Send + Sync>> {
        let (files, runtime) = (self.settings.tls.read().await?, default_runtime()?);
        let stream = self.uri.connect_with_config_async(files.as_ref(), &runtime).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream.compat())).await?;
        let driver = Driver(tokio::spawn(connection));
        let user = &self.uri.authority.userinfo;
        let credentials = STANDARD.encode(format!("{}:{}", user.username, user.password));
        let request = Request::get(&self.target)
            .header(HOST, &self.host)
            .header(AUTHORIZATION, format!("Basic {credentials}"))
            .body(Empty::<Bytes>::new())?;
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await?.to_bytes();
        drop(driver);
        Ok((status, body))
    }
}

fn refused(what: &str, status: StatusCode) -> AdapterError {
    let (kind, hint) = match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => (
            FaultKind::Denied,
            "check user and password, and that the user has the tag `monitoring` or `management`",
        ),
        // A wrong path before an encoded virtual host is a bad request.
        StatusCode::NOT_FOUND | StatusCode::BAD_REQUEST => {
            (FaultKind::Missing, "check the virtual host of the AMQP URL, and the path of the management URL")
        }
        _ => (FaultKind::Unreachable, "look into the broker's log"),
    };
    AdapterError::new(kind, format!("{what}: it answers {status}")).with_hint(hint)
}

/// Host, port and virtual host.
impl fmt::Display for RabbitManagement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, vhost {}", self.host, self.settings.vhost())
    }
}

impl fmt::Debug for RabbitManagement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RabbitManagement")
            .field("host", &self.host)
            .field("target", &self.target)
            .finish_non_exhaustive()
    }
}

#[derive(serde::Deserialize)]
struct Queue {
    name: String,
    #[serde(rename = "type")]
    kind: Option<String>,
}

/// Ends the connection when nobody waits for its answer any more.
struct Driver(tokio::task::JoinHandle<hyper::Result<()>>);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> RabbitSettings {
        RabbitSettings::parse("amqp://us3r:s3cret@broker/a%2Fb").expect("valid")
    }

    #[test]
    fn user_and_virtual_host_come_from_the_amqp_url() {
        let management = RabbitManagement::new(settings(), "http://[::1]:15672/prefix/").expect("valid");
        assert_eq!(management.target, format!("/prefix/api/queues/a%2Fb?{COLUMNS}"));
        assert_eq!(
            (management.host.as_str(), management.uri.authority.host.as_str()),
            ("[::1]:15672", "::1")
        );
        assert_eq!(management.uri.authority.userinfo.username, "us3r");
        let management = RabbitManagement::new(settings(), "https://m:p%40w@broker").expect("valid");
        assert_eq!(
            (management.uri.authority.port, management.uri.authority.userinfo.password.as_str()),
            (443, "p@w")
        );
    }

    #[test]
    fn s28_no_text_shows_the_password() {
        for url in ["no url with s3cret", "ftp://u:s3cret@host/", "http://u:s3cret@"] {
            let error = RabbitManagement::new(settings(), url).expect_err("no such URL");
            assert!(!format!("{error} {error:?} {:?}", error.hint()).contains("s3cret"), "{url}");
        }
        let management = RabbitManagement::new(settings(), "http://u:s3cret@host/").expect("valid");
        let texts = format!("{management} {management:?}");
        assert!(!texts.contains("s3cret") && !texts.contains("us3r"), "{texts}");
    }
}
