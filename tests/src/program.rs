//! The consumer of the tests, in this process or in one of its own, and the relay as a program that can be killed.

use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use backstop::sink::Sink;
use backstop::source::Source;
use backstop::{
    Consumer, DeadLetters, Destination, ErrorClass, GroupCommit, Json, MissingId, RetryPolicy, RunError,
    Snapshot,
};
use backstop_kafka::{KafkaDeadLetters, KafkaSettings, KafkaSink, KafkaSource, RebalanceProtocol};
use backstop_postgres::PgInbox;
use backstop_rabbitmq::{RabbitDeadLetters, RabbitSettings, RabbitSink, RabbitSource};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::apply::{Apply, ApplyAll};
use crate::database::Database;
use crate::servers;

/// Which broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Broker {
    /// Kafka, cooperative-sticky.
    Kafka,
    /// Kafka, KIP-848.
    KafkaNext,
    /// RabbitMQ.
    RabbitMq,
}

/// A consumer of the tests.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ConsumerConfig {
    /// Which broker.
    pub broker: Broker,
    /// Topic or queue.
    pub place: String,
    /// Kafka group, and the consumer's name.
    pub group: String,
    /// Schema of its database.
    pub schema: String,
    /// Messages at once.
    pub concurrency: usize,
    /// Messages that may share a transaction.
    pub shared: usize,
    /// Whether the handler is given those that share one at once.
    pub batches: bool,
    /// Whether a key waits for the message of it that was given up.
    pub ordered: bool,
    /// Attempts before quarantine.
    pub max_attempts: u32,
    /// Deaths in a row before quarantine.
    pub max_crashes: u32,
    /// Messages of one Kafka partition under way at most.
    pub window: usize,
    /// Milliseconds that each event takes.
    pub work_ms: u64,
    /// Milliseconds that the handler may take.
    pub handler_timeout_ms: u64,
    /// Whether messages without an id are dead-lettered; otherwise they stop the consumer.
    pub dead_letter_missing_id: bool,
    /// Whether events cannot make the handler fail.
    pub immune: bool,
    /// Another way to PostgreSQL than the usual.
    pub postgres_url: Option<String>,
    /// Topic or queue of its receipts and reports.
    pub receipts: Option<String>,
}

impl ConsumerConfig {
    /// Sixteen at once, each in a transaction of its own, three attempts, no work.
    pub fn new(broker: Broker, place: &str, group: &str, schema: &str) -> Self {
        Self {
            broker,
            place: place.to_owned(),
            group: group.to_owned(),
            schema: schema.to_owned(),
            concurrency: 16,
            shared: 1,
            batches: false,
            ordered: false,
            max_attempts: 3,
            max_crashes: 3,
            window: 1_000,
            work_ms: 0,
            handler_timeout_ms: 5_000,
            dead_letter_missing_id: true,
            immune: false,
            postgres_url: None,
            receipts: None,
        }
    }

    /// Runs it here until `shutdown`.
    ///
    /// # Errors
    /// As [`Consumer::run`].
    pub async fn run(&self, shutdown: impl Future<Output = ()> + Send) -> Result<Snapshot, RunError> {
        match self.broker {
            Broker::Kafka | Broker::KafkaNext => {
                let protocol = match self.broker {
                    Broker::KafkaNext => RebalanceProtocol::Kip848,
                    _ => RebalanceProtocol::CooperativeSticky,
                };
                let source = KafkaSource::subscribe(servers::kafka(), &self.group, &[&self.place])
                    .rebalance_protocol(protocol)
                    .window(self.window, 16 << 20)
                    .commit_interval(Duration::from_millis(200));
                let settings = KafkaSettings::new(servers::kafka());
                let letters = KafkaDeadLetters::new(settings.clone());
                self.consume(source, letters, KafkaSink::new(settings), shutdown).await
            }
            Broker::RabbitMq => {
                let settings = RabbitSettings::parse(&servers::amqp_url()).expect("an AMQP URL");
                let source =
                    RabbitSource::consume(&servers::amqp_url(), &self.place).build().expect("an AMQP URL");
                let letters = RabbitDeadLetters::new(settings.clone());
                self.consume(source, letters, RabbitSink::new(settings), shutdown).await
            }
        }
    }

    async fn consume(
        &self,
        source: impl Source,
        letters: impl DeadLetters,
        sink: impl Sink,
        shutdown: impl Future<Output = ()> + Send,
    ) -> Result<Snapshot, RunError> {
        let url = self.postgres_url.clone().unwrap_or_else(servers::postgres_url);
        let database = Database::open_at(&url, &self.schema, self.concurrency as u32 + 6).await;
        let inbox = PgInbox::with_tables(database.pool.clone(), database.tables());
        let handler = Apply {
            consumer: self.group.clone(),
            work: Duration::from_millis(self.work_ms),
            immune: self.immune,
        };
        if self.batches {
            let consumer =
                Consumer::batch(&self.group, source, inbox, ApplyAll(handler)).dead_letter(letters);
            return self.telling(self.tuned(consumer), sink).run(shutdown).await;
        }
        let consumer = Consumer::transactional(&self.group, source, inbox, handler).dead_letter(letters);
        self.telling(self.tuned(consumer), sink).run(shutdown).await
    }

    fn tuned<S, M, H, D>(&self, consumer: Consumer<S, M, H, Json, D>) -> Consumer<S, M, H, Json, D> {
        let policy = RetryPolicy::exponential(Duration::from_millis(50)).max_attempts(self.max_attempts);
        let consumer = consumer
            .concurrency(self.concurrency)
            .group_commit(GroupCommit::up_to(self.shared))
            .retry(ErrorClass::Transient, policy)
            .handler_timeout(Duration::from_millis(self.handler_timeout_ms))
            .max_crashes(self.max_crashes)
            .missing_id(if self.dead_letter_missing_id { MissingId::DeadLetter } else { MissingId::Stop });
        if self.ordered { consumer.ordered() } else { consumer }
    }

    fn telling<S, M, H, D>(
        &self,
        consumer: Consumer<S, M, H, Json, D>,
        sink: impl Sink,
    ) -> Consumer<S, M, H, Json, D> {
        match &self.receipts {
            Some(place) => consumer.receipts(sink, Destination::new(place)),
            None => consumer,
        }
    }

    /// Runs it in a task of this process.
    pub fn start(&self) -> Running {
        let (stop, stopped) = oneshot::channel();
        let config = self.clone();
        let task = tokio::spawn(async move {
            let shutdown = async {
                // Ends when the sender is used or dropped.
                let _ = stopped.await;
            };
            config.run(shutdown).await
        });
        Running { stop, task }
    }

    /// Starts it as a process of its own; `crash_at` names a crash point.
    ///
    /// # Panics
    /// When the program is not built.
    pub fn spawn(&self, crash_at: Option<&str>) -> Program {
        let config = serde_json::to_string(self).expect("plain data");
        Program::start("e2e-consumer", &[&config], crash_at)
    }
}

/// A consumer in a task of this process.
#[derive(Debug)]
pub struct Running {
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<Snapshot, RunError>>,
}

impl Running {
    /// Stops it in an orderly way, and returns what it counted.
    ///
    /// # Panics
    /// When it did not run, or did not end well.
    pub async fn stop(self) -> Snapshot {
        let _ = self.stop.send(());
        self.task.await.expect("the consumer does not panic").expect("an orderly end")
    }
}

/// A process that is killed when it is dropped.
#[derive(Debug)]
pub struct Program(Child);

impl Program {
    /// Starts one of the workspace's programs.
    ///
    /// # Panics
    /// When it is not built.
    pub fn start(name: &str, arguments: &[&str], crash_at: Option<&str>) -> Self {
        let mut command = Command::new(binary(name));
        command.args(arguments);
        if std::env::var_os("BACKSTOP_TEST_VERBOSE").is_none() {
            command.stderr(Stdio::null());
        }
        if let Some(point) = crash_at {
            // A point with `stop ` in front is one to stop at.
            match point.strip_prefix("stop ") {
                Some(point) => command.env("BACKSTOP_STOP_AT", point),
                None => command.env("BACKSTOP_CRASH_AT", point),
            };
        }
        Self::run(command)
    }

    fn run(mut command: Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let program = command.get_program().to_string_lossy().into_owned();
        let started = command.spawn();
        Self(started.unwrap_or_else(|error| panic!("{program}: {error}; run: cargo build --workspace")))
    }

    /// SIGKILL, and no more.
    ///
    /// # Panics
    /// When the process cannot be waited for.
    pub fn kill(mut self) {
        self.0.kill().expect("a child of ours");
        self.0.wait().expect("a child of ours");
    }

    /// Sends a signal, such as `STOP` or `CONT`.
    ///
    /// # Panics
    /// When the process is gone.
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").args(["-s", name, &self.0.id().to_string()]).status();
        assert!(sent.expect("kill can be started").success(), "SIG{name} cannot be sent");
    }

    /// Bytes that it holds in memory now.
    ///
    /// # Panics
    /// When the process is gone.
    pub fn memory(&self) -> u64 {
        self.status("VmRSS:")
    }

    /// The most bytes that it has held in memory so far.
    ///
    /// # Panics
    /// When the process is gone.
    pub fn peak_memory(&self) -> u64 {
        self.status("VmHWM:")
    }

    fn status(&self, field: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id())).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix(field)).expect("it runs");
        let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number of KiB");
        kib << 10
    }

    /// Waits until it has ended by itself, as a crash point makes it.
    ///
    /// # Panics
    /// When it has not ended within `limit`.
    pub async fn ended(mut self, limit: Duration) {
        self.has_ended(limit).await;
    }

    async fn has_ended(&mut self, limit: Duration) {
        let child = &mut self.0;
        crate::wait::until("the process ends", limit, || {
            let ended = child.try_wait().expect("a child of ours").is_some();
            std::future::ready(ended)
        })
        .await;
    }

    /// Whether it has been stopped, and not let go on.
    ///
    /// # Panics
    /// When the process is gone.
    pub fn is_stopped(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.0.id())).expect("it runs");
        stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('T'))
    }

    /// Whether it is still there.
    pub fn is_running(&mut self) -> bool {
        matches!(self.0.try_wait(), Ok(None))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Fails only where it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A program of this workspace, beside the test that runs.
pub fn binary(name: &str) -> PathBuf {
    let mut path = std::env::current_exe().expect("a test knows its own path");
    path.pop();
    if path.ends_with("deps") {
        path.pop();
    }
    path.join(name)
}

/// A relay for one schema and broker, with its configuration in a file that lives as long as this.
#[derive(Debug)]
pub struct RelayConfig {
    file: tempfile::NamedTempFile,
}

impl RelayConfig {
    /// A relay that drains the schema's outbox, and collects dead letters from these topics or queues.
    ///
    /// # Panics
    /// When no file can be written.
    pub fn new(broker: Broker, schema: &str, dead_letters: &[String]) -> Self {
        let address = match broker {
            Broker::RabbitMq => servers::amqp_url(),
            _ => servers::kafka(),
        };
        Self::through(broker, schema, dead_letters, &servers::postgres_url(), &address)
    }

    /// The same by other ways: a URL of PostgreSQL, and a URL of RabbitMQ or bootstrap servers of Kafka.
    ///
    /// # Panics
    /// When no file can be written.
    pub fn through(
        broker: Broker,
        schema: &str,
        dead_letters: &[String],
        database: &str,
        address: &str,
    ) -> Self {
        let broker = match broker {
            Broker::RabbitMq => format!("kind = \"rabbitmq\"\nurl = \"{address}\""),
            _ => format!("kind = \"kafka\"\nbrokers = \"{address}\""),
        };
        let collector = if dead_letters.is_empty() {
            String::new()
        } else {
            format!("[dead_letters]\nenabled = true\nsources = {dead_letters:?}\n")
        };
        let text = format!(
            "[database]\nurl = \"{database}\"\nschema = \"{schema}\"\n\n[broker]\n{broker}\n\n{collector}"
        );
        Self::of(&text)
    }

    /// A relay that collects dead letters from this topic or queue, and reads receipts from that one.
    ///
    /// # Panics
    /// When no file can be written.
    pub fn with_receipts(broker: Broker, schema: &str, dead_letters: &str, receipts: &str) -> Self {
        let (database, broker) = (servers::postgres_url(), broker_section(broker));
        Self::of(&format!(
            "[database]\nurl = \"{database}\"\nschema = \"{schema}\"\n\n[broker]\n{broker}\n\n[outbox]\nenabled = false\n\n\
             [dead_letters]\nenabled = true\nname = \"{schema}\"\nsources = [\"{dead_letters}\"]\nreceipts = [\"{receipts}\"]\n"
        ))
    }

    /// A relay with that configuration.
    ///
    /// # Panics
    /// When no file can be written.
    pub fn of(text: &str) -> Self {
        let file = tempfile::Builder::new().suffix(".toml").tempfile().expect("a temporary file");
        std::fs::write(file.path(), text).expect("a temporary file");
        Self { file }
    }

    /// Starts `backstop-relay run`.
    pub fn spawn(&self, crash_at: Option<&str>) -> Program {
        Program::start("backstop-relay", &["--config", self.path(), "run"], crash_at)
    }

    /// Starts a command of the relay, and does not wait for its end.
    ///
    /// # Panics
    /// When the program is not built.
    pub fn start(&self, arguments: &[&str]) -> Program {
        Program::start("backstop-relay", &[&["--config", self.path()], arguments].concat(), None)
    }

    /// Starts `backstop-relay run` with a log that can be read, and HTTP on a port of its own.
    ///
    /// # Panics
    /// When the program is not built, or no file can be written.
    pub fn watched(&self) -> Relay {
        let log = tempfile::NamedTempFile::new().expect("a temporary file");
        let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let http = port.expect("a free port");
        let mut command = Command::new(binary("backstop-relay"));
        command.args(["--config", self.path(), "run"]).env("BACKSTOP__HTTP__LISTEN", http.to_string());
        command.stderr(log.reopen().expect("a temporary file"));
        Relay { program: Program::run(command), http, log }
    }

    /// Runs a command of the relay to its end and returns its exit code and output.
    ///
    /// # Panics
    /// When the program is not built.
    pub fn command(&self, arguments: &[&str]) -> (i32, String) {
        let output = Command::new(binary("backstop-relay"))
            .args(["--config", self.path()])
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .expect("the relay is built");
        let text = [output.stdout, output.stderr].concat();
        (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&text).into_owned())
    }

    fn path(&self) -> &str {
        self.file.path().to_str().expect("a temporary path is UTF-8")
    }
}

/// `[broker]` of a relay, as `tests/servers` has it.
pub fn broker_section(broker: Broker) -> String {
    match broker {
        Broker::RabbitMq => format!("kind = \"rabbitmq\"\nurl = \"{}\"", servers::amqp_url()),
        _ => format!("kind = \"kafka\"\nbrokers = \"{}\"", servers::kafka()),
    }
}

/// A relay that is looked at while it runs, and killed when it is dropped.
#[derive(Debug)]
pub struct Relay {
    /// The process.
    pub program: Program,
    http: SocketAddr,
    log: tempfile::NamedTempFile,
}

impl Relay {
    /// Whether `/ready` says so.
    pub async fn is_ready(&self) -> bool {
        self.get("/ready").await.is_some_and(|answer| answer.starts_with("HTTP/1.1 200"))
    }

    /// A number of `/metrics`, summed over its labels; `None` when the relay does not tell.
    pub async fn metric(&self, name: &str) -> Option<f64> {
        let answer = self.get("/metrics").await?;
        let values = answer.lines().filter(|line| line.split(['{', ' ']).next() == Some(name));
        values.filter_map(|line| line.rsplit(' ').next()?.parse().ok()).reduce(|sum: f64, value| sum + value)
    }

    /// What it answers at that path, headers and body; `None` when it does not within 5 s.
    pub async fn get(&self, path: &str) -> Option<String> {
        let asking = async {
            let mut stream = TcpStream::connect(self.http).await.ok()?;
            let request = format!("GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.http);
            stream.write_all(request.as_bytes()).await.ok()?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.ok()?;
            Some(answer)
        };
        tokio::time::timeout(Duration::from_secs(5), asking).await.ok()?
    }

    /// Ends it in order.
    ///
    /// # Panics
    /// When it has not ended within `limit`.
    pub async fn terminate(&mut self, limit: Duration) {
        self.program.signal("TERM");
        self.program.has_ended(limit).await;
    }

    /// What it has logged.
    ///
    /// # Panics
    /// When its log cannot be read.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log.path()).expect("a temporary file")
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<&str> = log.lines().rev().take(30).collect();
            eprintln!("the last of the relay's log, newest first:\n{}", tail.join("\n"));
        }
    }
}
