//! A store that speaks S3, checks signatures and keeps objects as files; it can be told to fail.

use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::process::Command;
use std::sync::{Arc, Mutex};

use hyper::body::{Body as _, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s::{Body, HttpResponse};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

pub(crate) const KEY: &str = "backstop";
pub(crate) const SECRET: &str = "S3cret-of-the-store";
pub(crate) const BUCKET: &str = "letters";

/// What becomes of requests that a rule is about.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Answer {
    /// An error, by status and code.
    Error(u16, &'static str),
    /// That the object has so many bytes.
    Size(u64),
    /// The connection is cut.
    Cut,
    /// None at all.
    Silence,
    /// What is done is answered with an error, as where the answer is lost.
    Lost,
}

/// Which requests: each has its method, path, query, `unchecked` where content has no checksum, and `create` where it must
/// not overwrite, in one line.
type Rule = (fn(&str) -> bool, Answer);

#[derive(Default)]
struct State {
    rule: Option<Rule>,
    seen: Vec<String>,
}

/// The store, with one bucket. It ends with the process.
pub(crate) struct Bucket {
    folder: TempDir,
    endpoint: String,
    state: Arc<Mutex<State>>,
}

/// What answers.
#[derive(Clone)]
struct Store {
    service: S3Service,
    state: Arc<Mutex<State>>,
    root: PathBuf,
}

/// Who vouches for a store: a certificate of its own, and that of the store.
pub(crate) struct Authority(TempDir);

impl Authority {
    pub(crate) fn new() -> Self {
        let authority = Self(tempfile::tempdir().expect("a folder"));
        let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
        authority
            .openssl(&format!("req -x509 {key} -keyout ca.key -subj /CN=authority -days 10 -out ca.pem"));
        authority.openssl(&format!("req {key} -keyout server.key -subj /CN=localhost -out server.csr"));
        std::fs::write(authority.0.path().join("names"), "subjectAltName=DNS:localhost").expect("written");
        authority.openssl(
            "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -set_serial 7 -days 10 -extfile names -out server.pem",
        );
        authority
    }

    /// The file with its certificate.
    pub(crate) fn certificate(&self) -> String {
        self.0.path().join("ca.pem").to_str().expect("UTF-8").to_owned()
    }

    fn openssl(&self, line: &str) {
        let output = Command::new("openssl").args(line.split(' ')).current_dir(self.0.path()).output();
        let output = output.expect("openssl");
        assert!(output.status.success(), "openssl {line}: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn server(&self) -> ServerConfig {
        let certificate =
            CertificateDer::from_pem_file(self.0.path().join("server.pem")).expect("a certificate");
        let key = PrivateKeyDer::from_pem_file(self.0.path().join("server.key")).expect("a key");
        let ring = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(ring).with_safe_default_protocol_versions();
        config
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .expect("a pair")
    }
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, store: Store) {
    let answer = service_fn(move |request| answer(store.clone(), request));
    // A connection that was cut ends with an error.
    let _ = Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), answer).await;
}

impl Bucket {
    pub(crate) fn start() -> Self {
        Self::with(None)
    }

    /// One that is reached over TLS, and proves that it is `localhost` by an authority of its own.
    pub(crate) fn over_tls(authority: &Authority) -> Self {
        Self::with(Some(authority.server()))
    }

    fn with(tls: Option<ServerConfig>) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::create_dir(folder.path().join(BUCKET)).expect("a bucket");
        let store = s3s_fs::FileSystem::new(folder.path()).expect("a store");
        let mut service = S3ServiceBuilder::new(store);
        service.set_auth(SimpleAuth::from_single(KEY, SECRET));
        let state = Arc::new(Mutex::new(State::default()));
        let store = Store { service: service.build(), state: state.clone(), root: folder.path().to_owned() };
        let is_tls = tls.is_some();
        let (address, listening) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
                address.send(listener.local_addr().expect("an address")).expect("awaited");
                let acceptor = tls.map(|tls| TlsAcceptor::from(Arc::new(tls)));
                while let Ok((stream, _)) = listener.accept().await {
                    let (store, acceptor) = (store.clone(), acceptor.clone());
                    tokio::spawn(async move {
                        match acceptor {
                            None => serve(stream, store).await,
                            // A client that does not trust it goes away.
                            Some(acceptor) => {
                                if let Ok(stream) = acceptor.accept(stream).await {
                                    serve(stream, store).await;
                                }
                            }
                        }
                    });
                }
            });
        });
        let port = listening.recv().expect("it listens").port();
        let endpoint =
            if is_tls { format!("https://localhost:{port}") } else { format!("http://127.0.0.1:{port}") };
        Self { folder, endpoint, state }
    }

    pub(crate) fn endpoint(&self) -> String {
        self.endpoint.clone()
    }

    /// From now on requests of which `which` holds are answered so.
    pub(crate) fn answer(&self, which: fn(&str) -> bool, answer: Answer) {
        self.state.lock().expect("not poisoned").rule = Some((which, answer));
    }

    /// From now on everything is as it should be.
    pub(crate) fn recover(&self) {
        self.state.lock().expect("not poisoned").rule = None;
    }

    /// What was asked since the last call, in order.
    pub(crate) fn seen(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lock().expect("not poisoned").seen)
    }

    /// The file of an object.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(BUCKET).join(name)
    }

    /// Names of objects in a folder of the bucket, in order.
    pub(crate) fn names(&self, prefix: &str) -> Vec<String> {
        names(&self.file(prefix))
    }

    /// Parts of uploads that are neither complete nor taken back.
    pub(crate) fn unfinished(&self) -> Vec<String> {
        names(self.folder.path()).into_iter().filter(|name| name.contains(".upload")).collect()
    }
}

fn names(folder: &std::path::Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

async fn answer(store: Store, mut request: Request<Incoming>) -> Result<HttpResponse, io::Error> {
    let Store { service, state, root } = store;
    let create = if request.headers().contains_key("if-none-match") { " create" } else { "" };
    let is_checked = request.method() != "PUT" || request.headers().contains_key("x-amz-checksum-sha256");
    let unchecked = if is_checked { "" } else { " unchecked" };
    let line = format!("{} {}{unchecked}{create}", request.method(), request.uri());
    let rule = {
        let mut state = state.lock().expect("not poisoned");
        state.seen.push(line.clone());
        state.rule.filter(|(which, _)| which(&line))
    };
    let bucket = request.uri().path().split('/').nth(1).unwrap_or_default();
    let answer = match rule {
        Some((_, Answer::Lost)) => {
            let done = called(service, request).await?;
            return Ok(if done.status().is_success() { refusal(500, "InternalError") } else { done });
        }
        Some((_, answer)) => answer,
        // The store would make it.
        None if !root.join(bucket).is_dir() => Answer::Error(404, "NoSuchBucket"),
        None => return called(service, request).await,
    };
    // Read to its end, so that the client hears the answer.
    while std::future::poll_fn(|cx| Pin::new(request.body_mut()).poll_frame(cx)).await.is_some() {}
    let is_head = request.method() == "HEAD";
    Ok(match answer {
        Answer::Cut => return Err(io::ErrorKind::ConnectionReset.into()),
        Answer::Silence => std::future::pending().await,
        Answer::Size(size) => Response::builder()
            .header("content-length", size)
            .header("last-modified", "Mon, 23 Nov 2026 07:00:00 GMT")
            .header("etag", "\"0\"")
            .body(Body::from(String::new()))
            .expect("a sound response"),
        Answer::Error(status, code) => {
            let refusal = refusal(status, code);
            if is_head { refusal.map(|_| Body::from(String::new())) } else { refusal }
        }
        Answer::Lost => unreachable!("answered above"),
    })
}

async fn called(service: S3Service, request: Request<Incoming>) -> Result<HttpResponse, io::Error> {
    service.call(request.map(Body::from)).await.map_err(|error| io::Error::other(format!("{error:?}")))
}

fn refusal(status: u16, code: &str) -> HttpResponse {
    let text = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>because</Message></Error>");
    Response::builder().status(status).body(Body::from(text)).expect("a sound response")
}
