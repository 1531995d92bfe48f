//! Certificates of a connection over TLS.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use backstop_core::{AdapterError, FaultKind};
use futures_util::AsyncReadExt;
use lapin::ErrorKind;
use lapin::runtime::default_runtime;
use lapin::tcp::{AMQPUriTcpExt, OwnedIdentity, OwnedTLSConfig};
use lapin::uri::{AMQPScheme, AMQPUri};
use tokio::time::timeout;
use url::Url;

/// How long a connection listens for what the broker has against a certificate.
const LISTENING: Duration = Duration::from_secs(2);
/// Parameters of AMQP URLs that other clients know and that have no meaning here.
const UNKNOWN: [&str; 5] = ["verify", "fail_if_no_peer_cert", "password", "server_name_indication", "depth"];

/// Files in PEM, read at each connection, so that renewed ones are taken up.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct TlsFiles {
    authorities: Option<PathBuf>,
    /// Certificate and key.
    identity: Option<(PathBuf, PathBuf)>,
}

impl TlsFiles {
    /// What the query of an AMQP URL says. No error repeats the URL.
    pub(crate) fn of_url(url: &str) -> Result<Self, AdapterError> {
        let Ok(url) = Url::parse(url) else { return Ok(Self::default()) };
        let file = |wanted: &str| {
            let found = url.query_pairs().find(|(name, _)| name == wanted);
            found.map(|(_, path)| PathBuf::from(path.into_owned()))
        };
        if let Some(name) =
            UNKNOWN.into_iter().find(|unknown| url.query_pairs().any(|(name, _)| name == *unknown))
        {
            return Err(invalid(format!("the AMQP URL names {name}, which cannot be chosen"))
                .with_hint("leave it out: certificates are always verified, and keys have no password"));
        }
        let authorities = file("cacertfile");
        let identity = match (file("certfile"), file("keyfile")) {
            (None, None) => None,
            (Some(certificate), Some(key)) => Some((certificate, key)),
            _ => {
                return Err(invalid("the AMQP URL names a certificate without its key, or a key alone")
                    .with_hint("name both certfile and keyfile"));
            }
        };
        if url.scheme() == "amqp" && (authorities.is_some() || identity.is_some()) {
            return Err(invalid("the AMQP URL names certificates, but not TLS")
                .with_hint("begin the URL with amqps:// and name the broker's TLS port"));
        }
        Ok(Self { authorities, identity })
    }

    pub(crate) async fn read(&self) -> Result<OwnedTLSConfig, AdapterError> {
        let cert_chain = match &self.authorities {
            Some(path) => Some(text(path, "CERTIFICATE").await?),
            None => None,
        };
        let identity = match &self.identity {
            Some((certificate, key)) => Some(OwnedIdentity::PKCS8 {
                pem: text(certificate, "CERTIFICATE").await?.into_bytes(),
                key: text(key, "PRIVATE KEY").await?.into_bytes(),
            }),
            None => None,
        };
        Ok(OwnedTLSConfig { identity, cert_chain })
    }
}

async fn text(path: &Path, wanted: &str) -> Result<String, AdapterError> {
    let text = tokio::fs::read_to_string(path).await.map_err(|error| {
        invalid(format!("cannot read {}", path.display()))
            .with_hint("check the path in the AMQP URL and that this process may read the file")
            .with_source(error)
    })?;
    // Rustls takes a file without any for one with none to add.
    if text.lines().any(|line| line.starts_with("-----BEGIN ") && line.ends_with(&format!("{wanted}-----"))) {
        return Ok(text);
    }
    Err(invalid(format!("{} holds no {}", path.display(), wanted.to_lowercase()))
        .with_hint("name a file in PEM; a key must not be encrypted"))
}

/// Why the broker hung up. Under TLS 1.3 it looks at the client's certificate after the handshake, and what it says
/// then is lost when it crosses what the client has sent; so this connection says nothing and listens. `None` when
/// there is nothing against the certificate.
pub(crate) async fn overheard(uri: &AMQPUri, files: &TlsFiles) -> Option<lapin::Error> {
    let (files, runtime) = (files.read().await.ok()?, default_runtime().ok()?);
    let listening = async {
        let mut stream = uri.connect_with_config_async(files.as_ref(), &runtime).await?;
        stream.read(&mut [0]).await
    };
    let error = timeout(LISTENING, listening).await.ok()?.err()?;
    distrust(&error).is_some().then(|| ErrorKind::IOError(Arc::new(error)).into())
}

/// Whether the end of a connection that was just begun may be the broker's answer to a certificate.
pub(crate) fn may_be_distrust(uri: &AMQPUri, error: &lapin::Error) -> bool {
    uri.scheme == AMQPScheme::AMQPS
        && matches!(error.kind(), ErrorKind::IOError(error) if distrust(error).is_none())
}

/// What TLS has against the connection. The type of the error is rustls's, which only its words show here.
pub(crate) fn distrust(error: &std::io::Error) -> Option<(FaultKind, Option<&'static str>)> {
    const CAUSES: [(&str, FaultKind, &str); 5] = [
        (
            "invalid peer certificate",
            FaultKind::Denied,
            "check that cacertfile of the AMQP URL holds the authority of the broker's certificate, and that this names the host of the URL and is valid now",
        ),
        (
            "received fatal alert",
            FaultKind::Denied,
            "the broker refuses the client's certificate: check certfile and keyfile of the AMQP URL, and that the certificate is valid now and from an authority that the broker knows",
        ),
        (
            "received corrupt message",
            FaultKind::Invalid,
            "check that the port of the AMQP URL is the broker's TLS port",
        ),
        ("keys may not be consistent", FaultKind::Invalid, "check that certfile and keyfile belong together"),
        (
            "native certificates",
            FaultKind::Invalid,
            "install the system's certificates (ca-certificates), or let SSL_CERT_FILE name a file with authorities",
        ),
    ];
    let words = error.to_string();
    let cause = CAUSES.iter().find(|(beginning, ..)| words.contains(beginning));
    cause.map(|(_, kind, hint)| (*kind, Some(*hint)))
}

fn invalid(what: impl Into<String>) -> AdapterError {
    AdapterError::new(FaultKind::Invalid, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_come_from_the_url() {
        let files = TlsFiles::of_url("amqps://h/%2f?cacertfile=%2Fca.pem&certfile=/c%20d.pem&keyfile=/k")
            .expect("valid");
        assert_eq!(files.authorities, Some("/ca.pem".into()));
        assert_eq!(files.identity, Some(("/c d.pem".into(), "/k".into())));
        assert_eq!(TlsFiles::of_url("amqp://h/%2f?heartbeat=3").expect("valid"), TlsFiles::default());
    }

    #[test]
    fn what_would_be_left_out_silently_is_refused() {
        let cases = [
            ("amqps://u:s3cret@h?certfile=/c", "keyfile"),
            ("amqps://u:s3cret@h?keyfile=/k", "certfile"),
            ("amqp://u:s3cret@h?cacertfile=/ca", "amqps://"),
            ("amqps://u:s3cret@h?verify=verify_none", "always verified"),
            ("amqps://u:s3cret@h?password=s3cret", "no password"),
        ];
        for (url, hint) in cases {
            let error = TlsFiles::of_url(url).unwrap_err();
            assert_eq!(error.kind(), FaultKind::Invalid);
            assert!(error.hint().expect("a hint").contains(hint), "{error:?}");
            assert!(!format!("{error:?}").contains("s3cret"));
        }
    }

    #[tokio::test]
    async fn a_file_that_is_absent_or_something_else_is_named() {
        let read = async |name: &str| {
            let files = TlsFiles { authorities: Some(name.into()), identity: None };
            files.read().await.map(|_| ()).unwrap_err()
        };
        assert!(read("/nowhere.pem").await.to_string().contains("/nowhere.pem"));
        let other = read("/proc/self/status").await;
        assert_eq!(other.to_string(), "/proc/self/status holds no certificate");
    }
}
