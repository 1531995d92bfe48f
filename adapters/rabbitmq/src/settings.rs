//! Where the broker is and how to log in.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use backstop_core::{AdapterError, FaultKind};
use lapin::uri::{AMQPScheme, AMQPUri};

use crate::tls::TlsFiles;

/// Heartbeat unless the URL or the application says otherwise: a dead peer is noticed after two of them.
const HEARTBEAT_SECONDS: u16 = 10;

/// Connection settings: the URL, parsed once, and what the broker shows of the connection.
///
/// Neither `Debug` nor any error shows user or password.
///
/// ```
/// use backstop_rabbitmq::RabbitSettings;
///
/// let settings = RabbitSettings::parse("amqp://app:s3cret@broker.internal/%2f")?;
/// assert_eq!(settings.to_string(), "broker.internal:5672, vhost /");
/// assert!(!format!("{settings:?}").contains("s3cret"));
/// # Ok::<(), backstop_core::AdapterError>(())
/// ```
#[derive(Clone)]
pub struct RabbitSettings {
    pub(crate) uri: AMQPUri,
    pub(crate) tls: TlsFiles,
    pub(crate) name: String,
    pub(crate) connect_timeout: Duration,
}

impl RabbitSettings {
    /// Parses `amqp://user:password@host:port/vhost`, or `amqps://…` for TLS. The query may name `heartbeat` (in
    /// seconds), `frame_max` and `channel_max`; with TLS also
    ///
    /// - `cacertfile`: a PEM file with authorities to trust beside the system's;
    /// - `certfile` and `keyfile`: the client's certificate and its key in PEM, unencrypted;
    /// - `auth_mechanism=external`: log in with that certificate instead of user and password.
    ///
    /// The files are read at each connection. The broker's certificate, and that it names the host, is always
    /// verified.
    ///
    /// # Errors
    /// [`FaultKind::Invalid`] when it is not such a URL. The text does not repeat the URL.
    pub fn parse(url: &str) -> Result<Self, AdapterError> {
        let mut uri = AMQPUri::from_str(url).map_err(|_| {
            AdapterError::new(FaultKind::Invalid, "this is not an AMQP URL").with_hint(
                "write amqp://user:password@host:5672/%2f, with special characters percent-encoded",
            )
        })?;
        if let Some(host) = ipv6_host(url) {
            host.clone_into(&mut uri.authority.host);
        }
        if uri.vhost.is_empty() {
            return Err(AdapterError::new(FaultKind::Invalid, "the AMQP URL names an empty vhost")
                .with_hint("end the URL with /%2f for the default vhost, or leave the slash out"));
        }
        let tls = TlsFiles::of_url(url)?;
        uri.query.heartbeat.get_or_insert(HEARTBEAT_SECONDS);
        Ok(Self { uri, tls, name: "backstop".to_owned(), connect_timeout: Duration::from_secs(10) })
    }

    /// Sets the heartbeat, in whole seconds. Defaults to what the URL says, else to 10 s; the broker may lower it.
    #[must_use]
    pub fn heartbeat(mut self, every: Duration) -> Self {
        let seconds = u16::try_from(every.as_secs()).unwrap_or(u16::MAX);
        self.uri.query.heartbeat = Some(seconds.max(1));
        self
    }

    /// Sets the name that the broker's management shows for the connection. Defaults to `backstop`.
    #[must_use]
    pub fn connection_name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Sets how long connecting and opening a channel may take. Defaults to 10 s.
    #[must_use]
    pub fn connect_timeout(mut self, limit: Duration) -> Self {
        self.connect_timeout = limit;
        self
    }

    /// The broker's host name or address.
    pub fn host(&self) -> &str {
        &self.uri.authority.host
    }

    /// The virtual host.
    pub fn vhost(&self) -> &str {
        &self.uri.vhost
    }
}

/// The address inside the brackets; the URI parser takes such a host for an absent one.
fn ipv6_host(url: &str) -> Option<&str> {
    let authority = url.split_once("://")?.1.split(['/', '?', '#']).next()?;
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    host.strip_prefix('[')?.split_once(']').map(|(address, _)| address)
}

impl FromStr for RabbitSettings {
    type Err = AdapterError;

    fn from_str(url: &str) -> Result<Self, AdapterError> {
        Self::parse(url)
    }
}

/// Host, port and vhost.
impl fmt::Display for RabbitSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}, vhost {}", self.host(), self.uri.authority.port, self.vhost())
    }
}

impl fmt::Debug for RabbitSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RabbitSettings")
            .field("host", &self.host())
            .field("port", &self.uri.authority.port)
            .field("vhost", &self.vhost())
            .field("tls", &(self.uri.scheme == AMQPScheme::AMQPS))
            .field("files", &self.tls)
            .field("heartbeat", &self.uri.query.heartbeat)
            .field("connection_name", &self.name)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s28_no_text_shows_the_password() {
        for url in
            ["not a url with s3cret", "http://u:s3cret@host/", "amqp://u:s3cret@host:port/", "amqp:s3cret"]
        {
            let error = RabbitSettings::parse(url).unwrap_err();
            assert!(!format!("{error} {error:?} {:?}", error.hint()).contains("s3cret"), "{url}");
        }
        let settings = RabbitSettings::parse("amqp://us3r:s3cret@host/v").expect("valid");
        let texts = format!("{settings} {settings:?}");
        assert!(!texts.contains("s3cret") && !texts.contains("us3r"), "{texts}");
    }

    #[test]
    fn hosts_are_what_the_url_says() {
        let host = |url: &str| RabbitSettings::parse(url).expect("valid").host().to_owned();
        assert_eq!(host("amqp://u:p@[::1]:5673/%2f"), "::1");
        assert_eq!(host("amqp://10.0.0.7/%2f"), "10.0.0.7");
    }

    #[test]
    fn an_empty_vhost_is_refused_with_a_hint() {
        let error = RabbitSettings::parse("amqp://host/").unwrap_err();
        assert!(error.hint().expect("a hint").contains("%2f"));
    }

    #[test]
    fn the_heartbeat_comes_from_the_url_or_the_default() {
        let seconds = |url: &str| RabbitSettings::parse(url).expect("valid").uri.query.heartbeat;
        assert_eq!(seconds("amqp://h/%2f"), Some(HEARTBEAT_SECONDS));
        assert_eq!(seconds("amqp://h/%2f?heartbeat=3"), Some(3));
    }
}
