//! Building a consumer.

mod context;
mod group;
mod group_size;
mod held_work;
mod invoke;
mod lanes;
mod live;
mod plain;
mod policy;
mod run;
mod transactional;

use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use backstop_core::held::HeldMessages;
use backstop_core::inbox::Limits;
use backstop_core::source::Source;
use backstop_core::{AdapterError, Classifier, Codec, DeadLetters, ErrorClass, Handler, Json, RetryPolicy};
use tokio_util::sync::CancellationToken;

use crate::run_error::RunError;
use crate::settings::{GroupCommit, MissingId};
use crate::stats::{Snapshot, Stats};
use context::{Context, Redact};
use group_size::GroupSize;
use plain::PlainWork;
use policy::Policies;
use run::LoopSettings;
use transactional::Transactional;

/// Longest consumer name in bytes, so that it fits every index.
const MAX_NAME: usize = 128;

/// A consumer: a source, a handler, and what happens between them.
///
/// Built with [`transactional`](Consumer::transactional) beside an inbox, or [`plain`](Consumer::plain) without a
/// database, and run with [`run`](Consumer::run). It does not run before it has a
/// [dead-letter destination](Consumer::dead_letter).
#[must_use = "a consumer does nothing until it is run"]
pub struct Consumer<S, M, H, C = Json, D = Unset> {
    name: String,
    source: S,
    mode: M,
    handler: H,
    codec: C,
    dead_letters: D,
    options: Options,
    stats: Arc<Stats>,
}

struct Options {
    version: String,
    policies: Policies,
    classifier: Classifier,
    redact: Redact,
    limits: Limits,
    concurrency: usize,
    group_commit: GroupCommit,
    drain: Duration,
    retention: Duration,
    in_place_max: Duration,
    missing_id: MissingId,
    unordered: bool,
    continue_trace: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            version: String::new(),
            policies: Policies::default(),
            classifier: Classifier::standard(),
            redact: Arc::new(str::to_owned),
            limits: Limits::default(),
            concurrency: 16,
            group_commit: GroupCommit::up_to(1),
            drain: Duration::from_secs(30),
            retention: Duration::from_secs(7 * 24 * 60 * 60),
            in_place_max: Duration::from_secs(60),
            missing_id: MissingId::default(),
            unordered: false,
            continue_trace: false,
        }
    }
}

/// The mode of a consumer beside an inbox.
#[derive(Debug)]
pub struct WithInbox<I>(I);

/// The mode of a consumer without a database.
#[derive(Debug)]
pub struct WithoutInbox;

/// Stands where a consumer has no dead-letter destination yet.
#[derive(Debug)]
pub struct Unset;

impl<S, I, H> Consumer<S, WithInbox<I>, H> {
    /// A consumer whose handler writes to the database of `inbox`: each message's effects are applied exactly once
    /// there, for as long as the inbox remembers it ([`inbox_retention`](Consumer::inbox_retention)).
    ///
    /// `name` tells consumers apart that share a database; it must never change.
    pub fn transactional(name: impl Into<String>, source: S, inbox: I, handler: H) -> Self {
        Self::new(name, source, WithInbox(inbox), handler)
    }
}

impl<S, H> Consumer<S, WithoutInbox, H> {
    /// A consumer without a database: its handler sees every message *at least once*, and a failed one is retried in
    /// memory while its key waits, for at most [`in_place_max`](Consumer::in_place_max).
    pub fn plain(name: impl Into<String>, source: S, handler: H) -> Self {
        Self::new(name, source, WithoutInbox, handler)
    }
}

impl<S, M, H> Consumer<S, M, H> {
    fn new(name: impl Into<String>, source: S, mode: M, handler: H) -> Self {
        Self {
            name: name.into(),
            source,
            mode,
            handler,
            codec: Json,
            dead_letters: Unset,
            options: Options::default(),
            stats: Arc::default(),
        }
    }
}

impl<S, M, H, C, D> Consumer<S, M, H, C, D> {
    /// Where messages go that are given up. Required; [`StopPartition`](crate::StopPartition) keeps them waiting
    /// instead.
    pub fn dead_letter<E>(self, dead_letters: E) -> Consumer<S, M, H, C, E> {
        let Self { name, source, mode, handler, codec, options, stats, .. } = self;
        Consumer { name, source, mode, handler, codec, dead_letters, options, stats }
    }

    /// How bodies are read. Defaults to [`Json`].
    pub fn codec<E>(self, codec: E) -> Consumer<S, M, H, E, D> {
        let Self { name, source, mode, handler, dead_letters, options, stats, .. } = self;
        Consumer { name, source, mode, handler, codec, dead_letters, options, stats }
    }

    /// The policy for `Transient` or `Throttled` failures; other classes have none, and setting one changes nothing.
    ///
    /// Defaults: transient 1 s × 2 up to 16 s, 6 attempts; throttled as told by the error, 20 attempts.
    pub fn retry(mut self, class: ErrorClass, policy: RetryPolicy) -> Self {
        match class {
            ErrorClass::Transient => self.options.policies.transient = policy,
            ErrorClass::Throttled => self.options.policies.throttled = policy,
            _ => tracing::warn!(consumer = self.name, %class, "this class of errors has no retry policy"),
        }
        self
    }

    /// What errors mean whose handler does not say. Defaults to [`Classifier::standard`]; errors of the inbox's
    /// database are known beside it.
    pub fn classifier(mut self, classifier: Classifier) -> Self {
        self.options.classifier = classifier;
        self
    }

    /// Takes secrets and personal data out of error texts before they are stored, published or logged. Defaults to
    /// leaving them as they are.
    pub fn redact(mut self, redact: impl Fn(&str) -> String + Send + Sync + 'static) -> Self {
        self.options.redact = Arc::new(redact);
        self
    }

    /// How many messages are handled at once, each of another key. Defaults to 16; zero is refused. A transactional
    /// consumer uses up to that many database connections, and up to 4 more for held messages.
    pub fn concurrency(mut self, messages: usize) -> Self {
        self.options.concurrency = messages;
        self
    }

    /// Lets messages that wait share a transaction: one set of inbox rows and one commit for all of them, while the
    /// handler is called for one after another. Off by default. Without effect on a consumer without a database.
    ///
    /// Nobody waits for company: as long as a worker is idle, messages are handled beside each other, each in a
    /// transaction of its own. When one of a group fails, its transaction is rolled back, nobody is charged, the
    /// failing message is handled by itself and the others again: what their handlers do outside of the database (HTTP,
    /// e-mail) is repeated. Rows stay locked until the whole group commits, so handlers of different keys that write
    /// the same rows wait for each other longer; deadlocks make groups smaller.
    pub fn group_commit(mut self, groups: GroupCommit) -> Self {
        self.options.group_commit = groups;
        self
    }

    /// How long the handler may take for one message. Defaults to 30 s; then the transaction's connection is closed
    /// and the attempt counts as a transient failure.
    pub fn handler_timeout(mut self, limit: Duration) -> Self {
        self.options.limits.handler = limit;
        self
    }

    /// How long to wait for another instance that handles the same message. Defaults to 2 s.
    pub fn lock_timeout(mut self, limit: Duration) -> Self {
        self.options.limits.lock = limit;
        self
    }

    /// How long running handlers get to finish after shutdown begins. Defaults to 30 s; then they are dropped, their
    /// transactions roll back, and their messages come again.
    pub fn drain_timeout(mut self, limit: Duration) -> Self {
        self.options.drain = limit;
        self
    }

    /// How long a message may be in the failure path before it is quarantined as `expired`. Defaults to 24 h.
    pub fn max_age(mut self, age: Duration) -> Self {
        self.options.policies.max_age = age;
        self
    }

    /// How long a plain consumer retries one message in memory. Defaults to 60 s; then it is quarantined.
    pub fn in_place_max(mut self, time: Duration) -> Self {
        self.options.in_place_max = time;
        self
    }

    /// How long the inbox remembers a handled message. Defaults to 7 days. A duplicate that comes later is handled
    /// again, so this must exceed the longest redelivery and redrive.
    pub fn inbox_retention(mut self, time: Duration) -> Self {
        self.options.retention = time;
        self
    }

    /// What to do with messages without an id. Defaults to [`MissingId::Stop`].
    pub fn missing_id(mut self, choice: MissingId) -> Self {
        self.options.missing_id = choice;
        self
    }

    /// Lets messages *without a key* overtake each other. Defaults to keeping the order of their partition or queue.
    pub fn unordered(mut self) -> Self {
        self.options.unordered = true;
        self
    }

    /// Makes the producer's span the parent of the handler's. Defaults to a link between two traces, as the
    /// OpenTelemetry conventions have it.
    pub fn continue_trace(mut self) -> Self {
        self.options.continue_trace = true;
        self
    }

    /// The application's version, for dead letters. Defaults to none.
    pub fn version(mut self, version: impl Into<String>) -> Self {
        self.options.version = version.into();
        self
    }

    /// Counters to read while it runs.
    pub fn stats(&self) -> Arc<Stats> {
        self.stats.clone()
    }

    fn check(&self) -> Result<(), RunError> {
        let name = &self.name;
        if name.is_empty() || name.len() > MAX_NAME || name.chars().any(char::is_control) {
            let name: String = name.chars().take(MAX_NAME).flat_map(char::escape_default).collect();
            return Err(RunError::setting(format!(
                "consumer name \"{name}\" must have 1 to {MAX_NAME} bytes and no control characters"
            )));
        }
        if self.options.concurrency == 0 {
            return Err(RunError::setting(format!("concurrency of consumer \"{name}\" must be at least 1")));
        }
        if self.options.group_commit.messages() == 0 {
            return Err(RunError::setting(format!(
                "groups of consumer \"{name}\" must hold at least 1 message"
            )));
        }
        Ok(())
    }
}

impl<S: Source, I, H, C, D> Consumer<S, WithInbox<I>, H, C, D> {
    /// Runs until `shutdown` completes; then takes nothing new, finishes what runs, settles it and returns.
    ///
    /// Outages of broker and database are waited out, at start-up too.
    ///
    /// # Errors
    /// [`RunError`], with a hint, for what waiting cannot mend: a missing table or topic, refused credentials, a
    /// message without an id.
    pub async fn run(self, shutdown: impl Future<Output = ()> + Send) -> Result<Snapshot, RunError>
    where
        I: HeldMessages,
        H: Handler<I::Tx>,
        C: Codec<H::Message>,
        D: DeadLetters,
    {
        self.check()?;
        let (name, stats, settings) = (self.name, self.stats.clone(), self.options.loop_settings());
        let Options {
            limits,
            missing_id,
            unordered,
            continue_trace,
            retention,
            concurrency,
            group_commit,
            ..
        } = self.options;
        let info = self.source.describe();
        let context = context(name, info.group.clone(), self.dead_letters, self.stats, self.options);
        let work = Arc::new(Transactional {
            context: context.clone(),
            inbox: self.mode.0,
            handler: self.handler,
            codec: self.codec,
            limits,
            missing_id,
            unordered,
            continue_trace,
            retention,
            group_size: GroupSize::new(group_commit),
            group_age: group_commit.age(),
            held_work: held_work::HeldWork::default(),
            held_workers: concurrency.div_ceil(4).min(4),
        });
        let mut shutdown = std::pin::pin!(shutdown);
        let ready = async {
            until_ready(|| work.inbox.ready()).await.map_err(RunError::store)?;
            until_ready(|| context.dead_letters.prepare(&info)).await.map_err(RunError::dead_letters)
        };
        tokio::select! {
            ready = ready => ready?,
            () = &mut shutdown => return Ok(stats.snapshot()),
        }
        run::run(self.source, work.clone(), context.clone(), settings, shutdown).await?;
        Ok(stats.snapshot())
    }
}

impl<S: Source, H, C, D> Consumer<S, WithoutInbox, H, C, D> {
    /// Runs until `shutdown` completes; then takes nothing new, finishes what runs, settles it and returns.
    ///
    /// # Errors
    /// [`RunError`], with a hint, for what waiting cannot mend.
    pub async fn run(self, shutdown: impl Future<Output = ()> + Send) -> Result<Snapshot, RunError>
    where
        H: Handler<()>,
        C: Codec<H::Message>,
        D: DeadLetters,
    {
        self.check()?;
        let (name, stats, settings) = (self.name, self.stats.clone(), self.options.loop_settings());
        let Options { limits, unordered, continue_trace, in_place_max, .. } = self.options;
        let info = self.source.describe();
        let context = context(name, info.group.clone(), self.dead_letters, self.stats, self.options);
        let mut shutdown = std::pin::pin!(shutdown);
        tokio::select! {
            ready = until_ready(|| context.dead_letters.prepare(&info)) => ready.map_err(RunError::dead_letters)?,
            () = &mut shutdown => return Ok(stats.snapshot()),
        }
        let work = Arc::new(PlainWork {
            context: context.clone(),
            handler: self.handler,
            codec: self.codec,
            time_limit: limits.handler,
            in_place_max,
            unordered,
            continue_trace,
        });
        run::run(self.source, work, context, settings, shutdown).await?;
        Ok(stats.snapshot())
    }
}

impl Options {
    fn loop_settings(&self) -> LoopSettings {
        LoopSettings { concurrency: self.concurrency, drain: self.drain }
    }
}

fn context<D>(
    consumer: String,
    group: String,
    dead_letters: D,
    stats: Arc<Stats>,
    options: Options,
) -> Arc<Context<D>> {
    Arc::new(Context {
        consumer,
        group,
        version: options.version,
        host: host_name(),
        dead_letters,
        policies: options.policies,
        classifier: options.classifier,
        redact: options.redact,
        stats,
        stop: CancellationToken::new(),
        fatal: Mutex::new(None),
    })
}

/// Repeats a check until it says yes, or no for a reason that waiting cannot mend.
async fn until_ready<F>(mut check: impl FnMut() -> F) -> Result<(), AdapterError>
where
    F: Future<Output = Result<(), AdapterError>>,
{
    let mut wait = Duration::from_millis(100);
    loop {
        match check().await {
            Err(error) if error.is_retryable() => {
                tracing::warn!(%error, hint = error.hint(), ?wait, "not ready yet; waiting");
                tokio::time::sleep(wait.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
                wait = (wait * 2).min(Duration::from_secs(5));
            }
            answer => return answer,
        }
    }
}

fn host_name() -> String {
    let name = std::env::var("HOSTNAME").ok().filter(|name| !name.is_empty());
    let file =
        || std::fs::read_to_string("/proc/sys/kernel/hostname").map(|name| name.trim().to_owned()).ok();
    name.or_else(file).unwrap_or_else(|| "unknown".to_owned())
}

impl<S, M, H, C, D> fmt::Debug for Consumer<S, M, H, C, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer").field("name", &self.name).finish_non_exhaustive()
    }
}
