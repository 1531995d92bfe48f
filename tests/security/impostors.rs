//! S30 and S32: servers that only look like the right ones. Each listens on this machine, speaks the few bytes that a
//! protocol exchanges before TLS begins, and hands over to `openssl s_server`.

use std::error::Error as _;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use backstop_core::sink::Sink;
use backstop_core::{AdapterError, Destination, Envelope, FaultKind};
use backstop_kafka::{KafkaSettings, KafkaSink};
use backstop_rabbitmq::{RabbitSettings, RabbitSink};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::timeout;

/// How soon a refusal must be told.
const PROMPT: Duration = Duration::from_secs(20);
const PASSWORD: &str = "not-the-passw0rd";

fn openssl(folder: &Path, line: &str) {
    let output = Command::new("openssl").args(line.split(' ')).current_dir(folder).output().expect("openssl");
    assert!(output.status.success(), "openssl {line}: {}", String::from_utf8_lossy(&output.stderr));
}

/// What is wrong with a server.
#[derive(Debug, Clone, Copy)]
enum Flaw {
    SelfSigned,
    Expired,
    OldTls,
    /// None: the control, without which a refusal would show nothing.
    None,
}

/// An authority with certificates for localhost: a sound one, one that has ended, and one that nobody signed.
struct Certificates(tempfile::TempDir);

impl Certificates {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path();
        std::fs::write(
            path.join("leaf"),
            "subjectAltName=DNS:localhost,IP:127.0.0.1\nbasicConstraints=critical,CA:FALSE\n",
        )
        .expect("written");
        let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
        openssl(path, &format!("req -x509 {key} -keyout ca.key -subj /CN=authority -days 10 -out ca.pem"));
        openssl(path, &format!("req {key} -keyout server.key -subj /CN=localhost -out server.csr"));
        let signed = "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -set_serial 7 -extfile leaf";
        openssl(path, &format!("{signed} -days 10 -out server.pem"));
        openssl(path, &format!("{signed} -days -1 -out expired.pem"));
        openssl(path, "req -new -key server.key -subj /CN=impostor -out alone.csr");
        openssl(path, "x509 -req -in alone.csr -signkey server.key -days 10 -extfile leaf -out alone.pem");
        Self(folder)
    }

    fn authority(&self) -> String {
        self.0.path().join("ca.pem").display().to_string()
    }

    /// A TLS server that says nothing of its own.
    fn serve(&self, flaw: Flaw) -> TlsServer {
        let (certificate, more) = match flaw {
            Flaw::SelfSigned => ("alone.pem", ""),
            Flaw::Expired => ("expired.pem", ""),
            Flaw::OldTls => ("server.pem", "-tls1_1 -cipher ALL:@SECLEVEL=0"),
            Flaw::None => ("server.pem", ""),
        };
        let line = format!("s_server -accept 127.0.0.1:0 -cert {certificate} -key server.key {more}");
        let mut child = Command::new("openssl")
            .args(line.split_whitespace())
            .current_dir(self.0.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("openssl");
        let output = BufReader::new(child.stdout.take().expect("piped"));
        let accepting = output
            .lines()
            .map_while(Result::ok)
            .find_map(|line| line.strip_prefix("ACCEPT ").map(|address| address.trim().to_owned()));
        TlsServer { child, address: accepting.expect("it tells its port") }
    }
}

struct TlsServer {
    child: Child,
    address: String,
}

impl Drop for TlsServer {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What is said before TLS.
#[derive(Debug, Clone, Copy)]
enum Preamble {
    Nothing,
    Postgres,
    MySql,
}

/// `CLIENT_SSL` in the lower half of MySQL's capabilities.
const SSL: u16 = 0x0800;

/// The first packet of a MySQL server.
fn greeting(capabilities: u16) -> Vec<u8> {
    let mut payload = b"\x0a8.0.36\0".to_vec();
    payload.extend(7_u32.to_le_bytes());
    payload.extend(b"12345678\0");
    // Protocol 4.1, its way to log in, transactions, a database at once; then the name of the way to log in.
    payload.extend((0xa208 | capabilities).to_le_bytes());
    payload.extend([45, 2, 0]);
    payload.extend(0x0008_u16.to_le_bytes());
    payload.extend([21, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    payload.extend(b"123456789012\0mysql_native_password\0");
    let mut packet = (payload.len() as u32).to_le_bytes();
    packet[3] = 0;
    [&packet[..], &payload].concat()
}

/// Listens, speaks the preamble and hands over to `server`. Its port.
async fn before(server: &TlsServer, preamble: Preamble) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let target = server.address.clone();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let target = target.clone();
            tokio::spawn(async move {
                match preamble {
                    Preamble::Nothing => {}
                    Preamble::Postgres => {
                        client.read_exact(&mut [0; 8]).await?;
                        client.write_all(b"S").await?;
                    }
                    Preamble::MySql => {
                        client.write_all(&greeting(SSL)).await?;
                        client.read_exact(&mut [0; 36]).await?;
                    }
                }
                let mut server = TcpStream::connect(target).await?;
                tokio::io::copy_bidirectional(&mut client, &mut server).await
            });
        }
    });
    port
}

/// Everything that an error tells.
fn told(error: &AdapterError) -> String {
    let mut text = format!("{error} | {:?} | {error:?}", error.hint());
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!(" | {error}");
        cause = error.source();
    }
    text
}

/// What a client meets behind a server with each flaw: the words that tell it, of which one must be there.
async fn meets(preamble: Preamble, connect: impl AsyncFn(u16, &str) -> AdapterError) {
    let certificates = Certificates::new();
    let authority = certificates.authority();
    let flaws: [(Flaw, &[&str]); 3] = [
        (Flaw::SelfSigned, &["UnknownIssuer", "self-signed", "self signed", "verify failed"]),
        (Flaw::Expired, &["xpired", "verify failed"]),
        (Flaw::OldTls, &["ProtocolVersion", "protocol version", "unsupported protocol", "TlsVersion"]),
    ];
    for (flaw, words) in flaws {
        let server = certificates.serve(flaw);
        let port = before(&server, preamble).await;
        let connecting = timeout(PROMPT, connect(port, &authority));
        let error = connecting.await.unwrap_or_else(|_| panic!("{flaw:?}: not told in time"));
        let told = told(&error);
        assert_eq!(error.kind(), FaultKind::Denied, "{flaw:?}: {told}");
        assert!(words.iter().any(|word| told.contains(word)), "{flaw:?}: {told}");
        assert!(!told.contains(PASSWORD), "{flaw:?}: {told}");
    }
    let server = certificates.serve(Flaw::None);
    let port = before(&server, preamble).await;
    // It takes the client, and then says nothing that the protocol knows.
    let taken = timeout(PROMPT, connect(port, &authority)).await;
    if let Ok(error) = taken {
        assert_ne!(error.kind(), FaultKind::Denied, "the certificate is sound: {}", told(&error));
    }
}

async fn postgres(port: u16, authority: &str) -> AdapterError {
    let url =
        format!("postgres://u:{PASSWORD}@localhost:{port}/d?sslmode=verify-full&sslrootcert={authority}");
    backstop_postgres::open(&url).await.expect_err("an impostor")
}

async fn mysql(port: u16, authority: &str) -> AdapterError {
    let url = format!("mysql://u:{PASSWORD}@localhost:{port}/d?ssl-mode=VERIFY_IDENTITY&ssl-ca={authority}");
    backstop_mysql::open(&url).await.expect_err("an impostor")
}

async fn kafka(port: u16, authority: &str) -> AdapterError {
    let settings = KafkaSettings::new(format!("localhost:{port}"))
        .property("security.protocol", "SASL_SSL")
        .property("sasl.mechanism", "PLAIN")
        .property("sasl.username", "u")
        .property("sasl.password", PASSWORD)
        .property("ssl.ca.location", authority);
    let sink = KafkaSink::new(settings).publish_timeout(PROMPT / 2);
    let sent = sink.publish(&Destination::new("orders"), Envelope::default()).await;
    copied(sent.expect_err("an impostor").error())
}

async fn rabbitmq(port: u16, authority: &str) -> AdapterError {
    let url = format!("amqps://u:{PASSWORD}@localhost:{port}/%2f?cacertfile={authority}");
    let sink = RabbitSink::new(RabbitSettings::parse(&url).expect("a URL"));
    let sent = sink.publish(&Destination::new("orders"), Envelope::default()).await;
    copied(sent.expect_err("an impostor").error())
}

/// The error that a borrowed one is, in its own words.
fn copied(error: &AdapterError) -> AdapterError {
    AdapterError::new(error.kind(), error.to_string()).with_source(told(error))
}

#[tokio::test(flavor = "multi_thread")]
async fn s30_postgresql_with_a_bad_certificate_or_old_tls_is_refused() {
    meets(Preamble::Postgres, postgres).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn s30_mysql_with_a_bad_certificate_or_old_tls_is_refused() {
    meets(Preamble::MySql, mysql).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn s30_kafka_with_a_bad_certificate_or_old_tls_is_refused() {
    meets(Preamble::Nothing, kafka).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn s30_rabbitmq_with_a_bad_certificate_or_old_tls_is_refused() {
    meets(Preamble::Nothing, rabbitmq).await;
}

/// A server that says it has no TLS, and what the client sends it after that.
async fn without_tls(preamble: Preamble, connect: impl AsyncFn(u16, &str) -> AdapterError) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let (tell, mut heard) = mpsc::unbounded_channel();
    let serving = tokio::spawn(async move {
        let (mut client, _) = listener.accept().await.expect("a client");
        match preamble {
            Preamble::MySql => client.write_all(&greeting(0)).await.expect("written"),
            _ => {
                client.read_exact(&mut [0; 8]).await.expect("a request for TLS");
                client.write_all(b"N").await.expect("written");
            }
        }
        let mut sent = Vec::new();
        // A client that hangs up may do so by a reset.
        let _ = client.read_to_end(&mut sent).await;
        tell.send(sent).expect("somebody listens");
    });
    let error = timeout(PROMPT, connect(port, "/dev/null")).await.expect("told in time");
    assert_eq!(error.kind(), FaultKind::Denied, "{}", told(&error));
    let sent = timeout(PROMPT, heard.recv()).await.expect("it hangs up").expect("told");
    assert!(sent.is_empty(), "it sent {:?}", String::from_utf8_lossy(&sent));
    serving.await.expect("no panic");
}

#[tokio::test]
async fn s32_postgresql_that_denies_having_tls_hears_nothing() {
    without_tls(Preamble::Postgres, postgres).await;
}

#[tokio::test]
async fn s32_mysql_that_denies_having_tls_hears_nothing() {
    without_tls(Preamble::MySql, mysql).await;
}
