//! Building a consumer.

mod calling;
mod context;
mod door;
mod group;
mod group_size;
mod held_run;
mod held_work;
mod in_place;
mod invoke;
mod lanes;
mod live;
mod ordered;
mod pipeline;
mod plain;
mod policy;
mod receipts;
mod reports;
mod run;
mod sequence;
mod sharing;
mod storing;
mod suspects;
mod transactional;
mod turns;

use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use backstop_core::held::HeldMessages;
use backstop_core::inbox::Limits;
use backstop_core::pipeline::{LetterOutput, Outputs, SettleWith};
use backstop_core::sink::Sink;
use backstop_core::source::Source;
use backstop_core::{
    AdapterError, BatchHandler, Classifier, Codec, DeadLetters, Destination, ErrorClass, Handler, Json,
    RetryPolicy,
};
use tokio_util::sync::CancellationToken;

use crate::control::Control;
use crate::control::handle::ConsumerHandle;
use crate::run_error::RunError;
use crate::settings::{GroupCommit, MissingId, SequenceCheck};
use crate::stats::{Snapshot, Stats};
use calling::{Calls, Each, Whole};
use context::Context;
pub(crate) use context::Redact;
use group_size::GroupSize;
use in_place::InPlace;
use pipeline::PipelineWork;
use plain::PlainWork;
use policy::Policies;
use receipts::{Address, Desk, Post};
use run::{LoopSettings, Process};
use sequence::Sequences;
use transactional::Transactional;
use turns::Turns;

/// Longest consumer name in bytes, so that it fits every index.
const MAX_NAME: usize = 128;
/// Messages of a batch, at most, unless set.
const BATCH: usize = 100;
/// Held messages that are handled at once, at most.
const HELD_AT_ONCE: usize = 8;

/// A consumer: a source, a handler, and what happens between them.
///
/// Built with [`transactional`](Consumer::transactional) beside an inbox, [`pipeline`](Consumer::pipeline) from topic to
/// topic, or [`plain`](Consumer::plain) without a database, and run with [`run`](Consumer::run). It does not run before it has a
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
    max_crashes: u32,
    in_place_max: Duration,
    missing_id: MissingId,
    unordered: bool,
    ordered: bool,
    continue_trace: bool,
    control: Arc<Control>,
    receipts: Option<Arc<dyn Post>>,
    sequence: Option<SequenceCheck>,
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
            max_crashes: 3,
            in_place_max: Duration::from_secs(60),
            missing_id: MissingId::default(),
            unordered: false,
            ordered: false,
            continue_trace: false,
            control: Arc::default(),
            receipts: None,
            sequence: None,
        }
    }
}

/// The mode of a consumer beside an inbox.
#[derive(Debug)]
pub struct WithInbox<I>(I);

/// The mode of a consumer beside an inbox whose handler is given several messages at once.
#[derive(Debug)]
pub struct InBatches<I>(I);

/// The mode of a consumer without a database.
#[derive(Debug)]
pub struct WithoutInbox;

/// The mode of a consumer whose outputs are committed with the position of its source.
#[derive(Debug)]
pub struct InPipeline;

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

impl<S, I, H> Consumer<S, InBatches<I>, H> {
    /// A transactional consumer whose [`BatchHandler`] is given several messages at once, which share a transaction:
    /// the way to write with one statement for all of them.
    ///
    /// A batch is what waits, of whatever keys: at low load a single message. By default it holds at most 100 messages
    /// and takes at most 250 ms; [`group_commit`](Consumer::group_commit) sets both. Batches that take longer are
    /// followed by smaller ones. What is promised of a message, and what a failure costs its neighbours, is as with
    /// group commit. [`handler_timeout`](Consumer::handler_timeout) is for a batch.
    pub fn batch(name: impl Into<String>, source: S, inbox: I, handler: H) -> Self {
        Self::new(name, source, InBatches(inbox), handler).group_commit(GroupCommit::up_to(BATCH))
    }
}

impl<S, H> Consumer<S, WithoutInbox, H> {
    /// A consumer without a database: its handler sees every message *at least once*, and a failed one is retried in
    /// memory while its key waits, for at most [`in_place_max`](Consumer::in_place_max).
    pub fn plain(name: impl Into<String>, source: S, handler: H) -> Self {
        Self::new(name, source, WithoutInbox, handler)
    }
}

impl<S, H> Consumer<S, InPipeline, H> {
    /// A consumer that reads, processes and writes: what its handler sends to [`Outputs`] and the position of the
    /// source are committed in one transaction of the broker. Who reads the outputs with `read_committed` sees those of
    /// each message exactly once, as a whole or not at all; whatever else the handler does happens at least once.
    ///
    /// Nothing is deduplicated: a message that a producer has written twice is two messages. A failed message is retried
    /// in memory while its key waits, for at most [`in_place_max`](Consumer::in_place_max); what it would have sent is
    /// forgotten. Others go on meanwhile, and their outputs wait in memory, within the bounds of the source, until the
    /// failed one is done. When it is given up its letter is published in place of its outputs, in the same transaction.
    ///
    /// [`receipts`](Consumer::receipts) must go to a topic of the same brokers: they are outputs, too.
    pub fn pipeline(name: impl Into<String>, source: S, handler: H) -> Self {
        Self::new(name, source, InPipeline, handler)
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
    /// consumer uses up to that many database connections, and half as many more, up to 8, for held messages.
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
    /// the same rows wait for each other longer; after a deadlock handlers have turns for a while.
    ///
    /// On PostgreSQL held messages share transactions too, those that have not failed: redriven ones, and those behind a
    /// failure.
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

    /// How long a plain consumer retries one message in memory. Defaults to 60 s; then it is quarantined. While what
    /// its handler needs is unavailable the time does not run.
    pub fn in_place_max(mut self, time: Duration) -> Self {
        self.options.in_place_max = time;
        self
    }

    /// How often in a row a message may fell the process, charged each time, before it is quarantined as
    /// `crashed-process` without being run again. Defaults to 3; less than 2 is refused. Without effect on a consumer without
    /// a database, which has nowhere to write charges to.
    ///
    /// Charged are messages that a process which did not leave in order may have been handling: they are run
    /// with a write before and after each, and one by one where one of them was charged before. Held messages are always charged. The first death of which nobody could
    /// tell the cause is not counted.
    pub fn max_crashes(mut self, crashes: u32) -> Self {
        self.options.max_crashes = crashes;
        self
    }

    /// How long the inbox remembers a handled message. Defaults to 7 days. A duplicate that comes later is handled
    /// again, so this must exceed the longest redelivery and redrive.
    pub fn inbox_retention(mut self, time: Duration) -> Self {
        self.options.retention = time;
        self
    }

    /// How long messages may be at work without any of them being completed before
    /// [`health`](ConsumerHandle::health) fails. Defaults to 60 s.
    pub fn stalled_after(self, limit: Duration) -> Self {
        self.options.control.set_stalled_after(limit);
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

    /// Keeps the order of a key through quarantine: when a message is given up and its letter is published, it stays
    /// in the held table as the head of its key, and all later messages of that key wait behind it, until the letter is
    /// redriven and handled, or somebody releases, skips or resolves it through the door or with
    /// `backstop-relay held`. Off by default: later messages go on without it. Without effect on a consumer without a
    /// database.
    ///
    /// Choose it where a later message is wrong without the earlier one. One message that is given up then stops its
    /// key until somebody acts; the consumer says so every minute. Three kinds cannot be waited for, and their keys go
    /// on: messages without an id, messages that the database refuses to store, and with
    /// [`unordered`](Consumer::unordered) those without a key.
    pub fn ordered(mut self) -> Self {
        self.options.ordered = true;
        self
    }

    /// Looks whether the messages of each key come without gaps and in the order of the numbers that their producer
    /// gave them. Off by default.
    ///
    /// A finding is counted ([`Snapshot::gaps`], [`Snapshot::reordered`] and the metric `backstop_sequence_findings`),
    /// warned of, and the message is handled, unless the check says otherwise. A message whose number has come before
    /// is a duplicate, and no finding; nor is one that was redriven. A message without a number is counted and
    /// handled; one without a key is not looked at.
    ///
    /// It is a check, not a proof. What it knows is in memory: a key begins anew at the first number that comes after
    /// a start, after its partition or channel was lost, and after it was
    /// [forgotten](SequenceCheck::keys), so that a gap just there is not seen. Of late messages it knows those that are at
    /// most 63 behind the highest. Several consumers of one RabbitMQ queue each see a part of a key's
    /// messages, which looks like gaps: there it needs a single active consumer, and after a lost connection what was
    /// settled before does not come again with what was not, which may look like one.
    pub fn sequence_check(mut self, check: SequenceCheck) -> Self {
        self.options.sequence = Some(check);
        self
    }

    /// Makes the producer's span the parent of the handler's. Defaults to a link between two traces, as the
    /// OpenTelemetry conventions have it.
    pub fn continue_trace(mut self) -> Self {
        self.options.continue_trace = true;
        self
    }

    /// Where receipts of redriven messages and reports of this consumer go: the relay reads them there, and knows by
    /// them what a redrive came to. Off by default.
    ///
    /// A receipt is published once the effects of a message that came through the door are committed, also when it
    /// had been handled before; it may come twice, and never not at all. A transactional consumer keeps what it owes in
    /// its database (`backstop_receipt`), so that nothing waits for this destination. A plain one settles a redriven
    /// message when its receipt is confirmed. Reports are sent every 30 s and at the end; see
    /// [`ConsumerReport`](crate::ConsumerReport).
    pub fn receipts(mut self, sink: impl Sink, destination: Destination) -> Self {
        self.options.receipts = Some(Arc::new(Address { sink, destination }));
        self
    }

    /// The application's version, for dead letters and reports. Defaults to none.
    pub fn version(mut self, version: impl Into<String>) -> Self {
        self.options.version = version.into();
        self
    }

    /// Shows what it does while it runs, and steers it. Take it after [`redact`](Consumer::redact) is set.
    pub fn handle(&self) -> ConsumerHandle {
        let Options { control, redact, .. } = &self.options;
        ConsumerHandle::new(&self.name, control.clone(), self.stats.clone(), redact.clone())
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
        if self.options.max_crashes < 2 {
            // One death may be charged to all that was at work beside the culprit.
            return Err(RunError::setting(format!("max_crashes of consumer \"{name}\" must be at least 2")));
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
        let Self { name, source, mode, handler, codec, dead_letters, options, stats } = self;
        let handler = Each(handler);
        let consumer = Consumer { name, source, mode, handler, codec, dead_letters, options, stats };
        consumer.run_beside_inbox(shutdown).await
    }

    async fn run_beside_inbox(self, shutdown: impl Future<Output = ()> + Send) -> Result<Snapshot, RunError>
    where
        I: HeldMessages,
        H: Calls<I::Tx>,
        C: Codec<H::Message>,
        D: DeadLetters,
    {
        self.check()?;
        let _running = self.options.control.start(&self.name, self.options.concurrency);
        let shutdown = self.options.control.clone().or_drained(shutdown);
        let (name, stats, settings) = (self.name, self.stats.clone(), self.options.loop_settings());
        let Options {
            limits,
            missing_id,
            unordered,
            ordered,
            continue_trace,
            retention,
            max_crashes,
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
            ordered,
            continue_trace,
            retention,
            group_size: GroupSize::new(group_commit),
            turns: Turns::new(limits.handler),
            group_age: group_commit.age(H::MAX_AGE),
            held_work: held_work::HeldWork::default(),
            suspects: suspects::Suspects::new(&context.consumer, max_crashes),
            held_workers: concurrency.div_ceil(2).min(HELD_AT_ONCE),
        });
        let mut shutdown = std::pin::pin!(shutdown);
        let ready = async {
            until_ready(|| work.inbox.ready()).await.map_err(RunError::store)?;
            if context.desk.is_some() {
                until_ready(|| work.inbox.can_owe()).await.map_err(RunError::store)?;
            }
            until_ready(|| context.dead_letters.prepare(&info)).await.map_err(RunError::dead_letters)
        };
        tokio::select! {
            ready = ready => ready?,
            () = &mut shutdown => return Ok(stats.snapshot()),
        }
        let ended = run::run(self.source, work.clone(), context, settings, shutdown).await;
        work.acquit_dropped().await;
        work.leave().await;
        ended.map(|()| stats.snapshot())
    }
}

impl<S: Source, I, H, C, D> Consumer<S, InBatches<I>, H, C, D> {
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
        H: BatchHandler<I::Tx>,
        C: Codec<H::Message>,
        D: DeadLetters,
    {
        let Self { name, source, mode, handler, codec, dead_letters, options, stats } = self;
        let (mode, handler) = (WithInbox(mode.0), Whole(handler));
        let consumer = Consumer { name, source, mode, handler, codec, dead_letters, options, stats };
        consumer.run_beside_inbox(shutdown).await
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
        self.run_in_place(shutdown, PlainWork).await
    }
}

impl<S: Source, H, C, D> Consumer<S, InPipeline, H, C, D> {
    /// Runs until `shutdown` completes; then takes nothing new, finishes what runs, commits it and returns.
    ///
    /// Outages of the broker are waited out, at start-up too.
    ///
    /// # Errors
    /// [`RunError`], with a hint, for what waiting cannot mend: refused credentials, a missing topic, another producer
    /// that has taken over.
    pub async fn run(self, shutdown: impl Future<Output = ()> + Send) -> Result<Snapshot, RunError>
    where
        S::Settlement: SettleWith,
        H: Handler<Outputs>,
        C: Codec<H::Message>,
        D: LetterOutput,
    {
        self.check()?;
        let binding = <S::Settlement as SettleWith>::BINDING;
        if self.options.receipts.as_ref().is_some_and(|post| post.binding() != binding) {
            return Err(RunError::setting(format!(
                "receipts of pipeline \"{}\" must go to a topic of its own brokers",
                self.name
            )));
        }
        self.run_in_place(shutdown, PipelineWork).await
    }
}

impl<S: Source, M, H, C, D> Consumer<S, M, H, C, D> {
    /// Runs a consumer that holds nothing; `work` says what becomes of its messages.
    async fn run_in_place<P: Process<S::Settlement>>(
        self,
        shutdown: impl Future<Output = ()> + Send,
        work: impl FnOnce(InPlace<H, C, D>) -> P,
    ) -> Result<Snapshot, RunError>
    where
        D: DeadLetters,
    {
        let _running = self.options.control.start(&self.name, self.options.concurrency);
        let shutdown = self.options.control.clone().or_drained(shutdown);
        let (name, stats, settings) = (self.name, self.stats.clone(), self.options.loop_settings());
        let Options { limits, unordered, continue_trace, in_place_max, .. } = self.options;
        let info = self.source.describe();
        let context = context(name, info.group.clone(), self.dead_letters, self.stats, self.options);
        let mut shutdown = std::pin::pin!(shutdown);
        tokio::select! {
            ready = until_ready(|| context.dead_letters.prepare(&info)) => ready.map_err(RunError::dead_letters)?,
            () = &mut shutdown => return Ok(stats.snapshot()),
        }
        let work = Arc::new(work(InPlace {
            context: context.clone(),
            handler: self.handler,
            codec: self.codec,
            time_limit: limits.handler,
            in_place_max,
            unordered,
            continue_trace,
        }));
        let ended = run::run(self.source, work, context.clone(), settings, shutdown).await;
        context.sign_off().await;
        ended.map(|()| stats.snapshot())
    }
}

impl Options {
    fn loop_settings(&self) -> LoopSettings {
        LoopSettings { concurrency: self.concurrency, drain: self.drain, handler: self.limits.handler }
    }
}

fn context<D>(
    consumer: String,
    group: String,
    dead_letters: D,
    stats: Arc<Stats>,
    options: Options,
) -> Arc<Context<D>> {
    let host = host_name();
    let sequence = options.sequence.map(|check| Sequences::new(check, &consumer, stats.clone()));
    Arc::new(Context {
        consumer,
        group,
        version: options.version,
        desk: options.receipts.map(|post| Desk::new(post, &host)),
        host,
        dead_letters,
        policies: options.policies,
        classifier: options.classifier,
        redact: options.redact,
        stats,
        sequence,
        control: options.control,
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
