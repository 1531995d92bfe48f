use std::path::PathBuf;

use backstop_core::ledger::Ledger;
use backstop_testkit::memory::Broker;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;
use tokio::time::timeout;

use super::*;
use crate::config::{Config, Environment};
use crate::pump::{PumpState, PumpStatus, Trouble};

mod api;
mod audit;
mod changes;
mod console;
mod doubt;
mod edit;
mod encryption;
mod held;
mod rules;
mod scene;

const TOKEN: &str = "S3cret-S3cret-S3cret";

struct Running {
    address: SocketAddr,
    ledger: Arc<dyn Ledger>,
    status: watch::Sender<PumpStatus>,
    /// Where doors are.
    broker: Broker,
    file: PathBuf,
    /// Removed when the server is dropped.
    folder: Option<tempfile::TempDir>,
    _stop: tokio_util::sync::DropGuard,
}

/// A server on a free port, with one outbox that is empty.
async fn serve(more: &str) -> Running {
    let folder = tempfile::tempdir().expect("a folder");
    let mut running = serve_from(folder.path().join("x.db"), more).await;
    running.folder = Some(folder);
    running
}

/// The same over a database that may be there already.
async fn serve_from(file: PathBuf, more: &str) -> Running {
    serve_with(file, more, |desk| desk).await
}

/// The same with another desk.
async fn serve_with(file: PathBuf, more: &str, change: impl FnOnce(Desk) -> Desk) -> Running {
    let text = format!(
        "[database]\nurl = \"sqlite:{}?mode=rwc\"\n[http]\n{}{more}",
        file.display(),
        if more.contains("listen") { "" } else { "listen = \"127.0.0.1:0\"\n" }
    );
    let config = Config::parse(&text, &Environment::default()).expect("sound");
    let database = crate::database::Database::open(&config.database).await.expect("a database");
    database.schema.migrate().await.expect("tables");
    let (sender, receiver) = watch::channel(PumpStatus::default());
    let jobs = Jobs::new(["outbox".to_owned()]);
    jobs.started("outbox", database.outbox.clone(), receiver, Arc::default());
    let broker = Broker::new();
    let desk = change(Desk::of(&config, jobs.clone()).with_doors(broker.sink()));
    let server = Server::bind(config.http.as_ref().expect("given"), jobs, desk).await.expect("listens");
    let (address, stop) = (server.address().expect("an address"), CancellationToken::new());
    tokio::spawn(server.run(stop.clone()));
    let ledger = database.ledger().expect("SQLite has one");
    Running { address, ledger, status: sender, broker, file, _stop: stop.drop_guard(), folder: None }
}

/// The answer to these lines, whole.
async fn send(server: &Running, head: &str) -> String {
    let mut stream = TcpStream::connect(server.address).await.expect("connected");
    let request = format!("{head}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    timeout(Duration::from_secs(30), stream.read_to_string(&mut answer))
        .await
        .expect("in time")
        .expect("text");
    answer
}

/// The answer to a request with a body.
async fn send_body(server: &Running, head: &str, body: &str) -> String {
    let mut stream = TcpStream::connect(server.address).await.expect("connected");
    let request = format!("{head}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len());
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    timeout(Duration::from_secs(30), stream.read_to_string(&mut answer))
        .await
        .expect("in time")
        .expect("text");
    answer
}

async fn get_with(server: &Running, path: &str, headers: &str) -> String {
    send(server, &format!("GET {path} HTTP/1.1{headers}")).await
}

fn status(answer: &str) -> &str {
    answer.split(' ').nth(1).unwrap_or(answer)
}

/// F11: readiness says whether rows flow.
#[tokio::test]
async fn ready_follows_the_pump_and_live_does_not() {
    let server = serve("").await;
    for (state, expected, word) in [
        (PumpState::Standby, "200", "standby"),
        (PumpState::Running, "200", "running"),
        (PumpState::Waiting, "503", "waiting"),
        (PumpState::Draining, "503", "draining"),
    ] {
        server.status.send_modify(|status| status.state = state);
        let answer = get_with(&server, "/ready", "\r\nHost: 10.0.0.7:8642").await;
        assert_eq!(status(&answer), expected, "{answer}");
        assert!(answer.contains(word), "{answer}");
        assert_eq!(status(&get_with(&server, "/live", "\r\nHost: pod").await), "200");
    }
}

/// F11: a relay that runs and gets nothing done, or stands by and could not take over, is not ready.
#[tokio::test]
async fn ready_tells_what_keeps_a_pump_from_its_work() {
    let server = serve("").await;
    for (state, trouble, word) in [
        (PumpState::Standby, Trouble::Lease, "lease"),
        (PumpState::Running, Trouble::Broker, "broker"),
        (PumpState::Running, Trouble::Deletes, "deletes"),
    ] {
        server.status.send_modify(|status| (status.state, status.trouble) = (state, Some(trouble)));
        let answer = get_with(&server, "/ready", "\r\nHost: pod").await;
        assert_eq!(status(&answer), "503", "{answer}");
        assert!(answer.contains(&format!("\"trouble\":\"{word}\"")), "{answer}");
    }
}

#[tokio::test]
async fn metrics_tell_of_pump_and_backlog() {
    let server = serve("").await;
    server.status.send_modify(|status| {
        (status.token, status.published, status.paused_count) = (Some(3), 7, 2);
    });
    let answer = get_with(&server, "/metrics", "\r\nHost: localhost").await;
    for line in [
        "backstop_relay_leader{outbox=\"outbox\"} 1",
        "backstop_outbox_published_total{outbox=\"outbox\"} 7",
        "backstop_outbox_paused_destinations{outbox=\"outbox\"} 2",
        "backstop_outbox_pending{outbox=\"outbox\"} 0",
        "backstop_outbox_oldest_age_seconds{outbox=\"outbox\"} 0",
        "backstop_outbox_stragglers_total{outbox=\"outbox\"} 0",
    ] {
        assert!(answer.lines().any(|other| other == line), "{line} is missing:\n{answer}");
    }
}

#[tokio::test]
async fn s20_dns_rebinding_is_refused() {
    let server = serve("allowed_hosts = [\"Relay.internal\"]").await;
    let port = server.address.port();
    for (host, expected) in [
        ("localhost".to_owned(), "200"),
        (format!("127.0.0.1:{port}"), "200"),
        (format!("[::1]:{port}"), "200"),
        ("relay.INTERNAL:80".to_owned(), "200"),
        ("evil.example".to_owned(), "421"),
        ("localhost.evil.example".to_owned(), "421"),
        (String::new(), "421"),
    ] {
        let answer = get_with(&server, "/metrics", &format!("\r\nHost: {host}")).await;
        assert_eq!(status(&answer), expected, "{host}: {answer}");
    }
}

#[tokio::test]
async fn s23_a_token_is_asked_for_and_never_echoed() {
    let server = serve(&format!("token = \"{TOKEN}\"")).await;
    let right = get_with(&server, "/metrics", &format!("\r\nHost: x\r\nAuthorization: Bearer {TOKEN}")).await;
    assert_eq!(status(&right), "200", "{right}");
    let long = format!("{TOKEN}x");
    for wrong in ["", "Bearer ", "Bearer S3cret", &long, "Basic Og==", &format!("bearer {TOKEN}")] {
        let answer =
            get_with(&server, "/metrics", &format!("\r\nHost: localhost\r\nAuthorization: {wrong}")).await;
        assert_eq!(status(&answer), "401", "{wrong}: {answer}");
        assert!(!answer.contains("S3cret"), "{answer}");
    }
    assert_eq!(status(&get_with(&server, "/ready", "\r\nHost: pod").await), "200", "probes have no token");
}

#[tokio::test]
async fn s26_paths_lead_nowhere_else() {
    let server = serve("").await;
    for path in [
        "/x",
        "/metrics/../x",
        "/%2e%2e/etc/passwd",
        "/api/v1/%00",
        "/api/v1/letters/%00",
        "/dead-letters/..%2f",
    ] {
        let answer = get_with(&server, path, "\r\nHost: localhost").await;
        assert_eq!(status(&answer), "404", "{path}: {answer}");
    }
}

#[tokio::test]
async fn s21_no_site_can_change_anything_or_read_an_answer() {
    let server = serve("").await;
    let site = "Host: localhost\r\nOrigin: http://evil.example\r\nSec-Fetch-Site: cross-site";
    for method in ["POST", "PUT", "PATCH", "DELETE", "OPTIONS"] {
        for path in ["/metrics", "/ready", "/live"] {
            let answer =
                send(&server, &format!("{method} {path} HTTP/1.1\r\n{site}\r\nContent-Length: 0")).await;
            let refused = if path == "/metrics" && method != "OPTIONS" { "403" } else { "405" };
            assert_eq!(status(&answer), refused, "{method} {path}: {answer}");
            assert!(!answer.to_ascii_lowercase().contains("access-control"), "{answer}");
        }
    }
    let answer = get_with(&server, "/metrics", &format!("\r\n{site}")).await;
    assert!(!answer.to_ascii_lowercase().contains("access-control"), "{answer}");
    assert!(answer.contains("x-content-type-options: nosniff"), "{answer}");
}

#[tokio::test]
async fn s23_guessing_is_slow_and_keeps_nobody_else_waiting() {
    const GUESSES: u32 = 20;
    let server = serve(&format!("token = \"{TOKEN}\"")).await;
    let begun = std::time::Instant::now();
    let guess = || get_with(&server, "/metrics", "\r\nHost: x\r\nAuthorization: Bearer S3cret");
    let guesses = futures_util::future::join_all((0..GUESSES).map(|_| guess()));
    let right = async {
        let answer =
            get_with(&server, "/metrics", &format!("\r\nHost: x\r\nAuthorization: Bearer {TOKEN}")).await;
        (answer, begun.elapsed())
    };
    let (_, (answer, waited)) = tokio::join!(guesses, right);
    assert!(begun.elapsed() >= guard::WRONG_WAITS * GUESSES / 4, "{:?}", begun.elapsed());
    assert_eq!(status(&answer), "200");
    assert!(waited < begun.elapsed() / 2, "{waited:?}");
}

#[tokio::test]
async fn s20_an_address_is_nobodys_name() {
    let everywhere = serve("listen = \"0.0.0.0:0\"\ninsecure = true").await;
    for (host, expected) in
        [("10.0.0.7:8642", "200"), ("[fd00::7]:8642", "200"), ("relay.evil.example", "421")]
    {
        let answer = get_with(&everywhere, "/metrics", &format!("\r\nHost: {host}")).await;
        assert_eq!(status(&answer), expected, "{host}: {answer}");
    }
    let here = serve("").await;
    assert_eq!(status(&get_with(&here, "/metrics", "\r\nHost: 10.0.0.7").await), "421");
}

#[tokio::test]
async fn s25_large_requests_are_refused() {
    let server = serve("").await;
    let large = "GET /metrics HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000000";
    assert_eq!(status(&send(&server, large).await), "413");
    let headers: String = (0..10_000).map(|n| format!("\r\nx-{n}: y")).collect();
    assert_eq!(status(&get_with(&server, "/live", &format!("\r\nHost: localhost{headers}")).await), "431");
}

/// Sixty-four such callers would keep probes waiting, and a relay that does not answer its probes is restarted.
#[tokio::test]
async fn s25_a_caller_who_never_reads_is_cut_off() {
    let server = serve("").await;
    let mut stream = TcpStream::connect(server.address).await.expect("connected");
    tokio::time::pause();
    let ask = async {
        while stream.write_all(&b"GET /live HTTP/1.1\r\nHost: x\r\n\r\n".repeat(1_000)).await.is_ok() {}
    };
    timeout(CONNECTION * 3, ask).await.expect("cut off");
}

#[tokio::test]
async fn s25_a_caller_who_never_ends_his_request_is_cut_off() {
    let server = serve("").await;
    let mut stream = TcpStream::connect(server.address).await.expect("connected");
    stream.write_all(b"GET /live HTTP/1.1\r\nHost: loc").await.expect("sent");
    tokio::time::pause();
    let mut answer = Vec::new();
    timeout(HEAD * 3, stream.read_to_end(&mut answer)).await.expect("cut off").expect("an orderly end");
}

#[tokio::test]
async fn an_address_that_is_taken_is_named() {
    let server = serve("").await;
    let config = Config::parse(
        "[database]\nurl = \"sqlite::memory:\"\n[http]\nlisten = \"127.0.0.1:0\"\n",
        &Environment::default(),
    )
    .expect("sound");
    let http = HttpConfig { listen: server.address, ..config.http.clone().expect("given") };
    let desk = Desk::of(&config, Jobs::default());
    let failure = Server::bind(&http, Jobs::default(), desk).await.expect_err("taken");
    assert!(failure.to_string().starts_with(&format!("cannot listen on {}", server.address)), "{failure}");
}
