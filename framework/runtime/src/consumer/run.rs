//! The loop: source to lanes, lanes to workers, and an orderly end.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use backstop_core::source::{Received, Settlement, Source};
use tokio::task::JoinSet;

use crate::consumer::context::Context;
use crate::consumer::lanes::Lanes;
use crate::control::Control;
use crate::control::gate::Appetite;
use crate::run_error::RunError;

/// What a kind of consumer does with a message, and beside messages.
pub(crate) trait Process<S: Settlement>: Send + Sync + 'static {
    /// Whether messages without a key may overtake each other.
    fn unordered(&self) -> bool;

    /// How many messages a worker takes at once, at most.
    fn at_once(&self) -> usize;

    /// Handles messages to their end; those of one key are in their order.
    fn process(&self, received: Vec<Received<S>>) -> impl Future<Output = ()> + Send;

    /// How many tasks run beside the workers.
    fn background_tasks(&self) -> usize;

    /// Runs one of them until the consumer stops.
    fn background(&self, task: usize) -> impl Future<Output = ()> + Send;
}

/// How often it is looked at whether probes have run out of messages.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// How the loop is sized and ended.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LoopSettings {
    pub(crate) concurrency: usize,
    pub(crate) drain: Duration,
    /// How long a handler may take.
    pub(crate) handler: Duration,
}

type Queue<S> = Lanes<Received<<S as Source>::Settlement>>;

/// Runs until `shutdown` completes, the source ends, or something cannot be mended by waiting.
pub(crate) async fn run<S, P, D>(
    mut source: S,
    process: Arc<P>,
    context: Arc<Context<D>>,
    settings: LoopSettings,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), RunError>
where
    S: Source,
    P: Process<S::Settlement>,
    D: Send + Sync + 'static,
{
    let lanes: Arc<Queue<S>> = Arc::new(Lanes::new(settings.concurrency));
    let mut tasks = JoinSet::new();
    for _ in 0..settings.concurrency {
        tasks.spawn(work::<S, P, D>(lanes.clone(), process.clone(), context.clone()));
    }
    for task in 0..process.background_tasks() {
        let process = process.clone();
        tasks.spawn(async move { process.background(task).await });
    }
    let seen = lanes.clone();
    context.control.run(move || seen.unfinished(), source.progress(), settings.handler);

    let mut shutdown = std::pin::pin!(shutdown);
    let ended = feed(&mut source, &lanes, &*process, &context, &mut tasks, shutdown.as_mut()).await;
    if matches!(ended, Ok(Ended::BySource)) {
        tokio::select! {
            () = lanes.drained() => {}
            () = context.stop.cancelled() => {}
            () = shutdown => {}
        }
    }
    context.control.draining();
    context.stop.cancel();
    lanes.close();
    finish(tasks, settings.drain, &context.consumer).await;
    let closed = source.close().await;

    let fatal = context.fatal.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
    match (fatal, ended) {
        (Some(fatal), _) => Err(fatal),
        (None, Err(error)) => Err(error),
        (None, Ok(_)) => closed.map_err(RunError::source),
    }
}

/// Why the loop ended.
enum Ended {
    BySource,
    ByOthers,
}

/// Hands messages to lanes until something ends that.
async fn feed<S, P, D>(
    source: &mut S,
    lanes: &Queue<S>,
    process: &P,
    context: &Context<D>,
    tasks: &mut JoinSet<()>,
    mut shutdown: Pin<&mut (impl Future<Output = ()> + Send)>,
) -> Result<Ended, RunError>
where
    S: Source,
    P: Process<S::Settlement>,
{
    let mut changes = context.control.gate.changes();
    loop {
        changes.borrow_and_update();
        let takes = takes(&context.control, lanes);
        tokio::select! {
            biased;
            () = &mut shutdown => return Ok(Ended::ByOthers),
            () = context.stop.cancelled() => return Ok(Ended::ByOthers),
            Some(Err(ended)) = tasks.join_next(), if !tasks.is_empty() => {
                // A worker that is gone would be a lane that stands still without a word.
                tracing::error!(consumer = context.consumer, error = %ended, "a worker of the consumer failed");
                return Err(RunError::worker(ended));
            }
            // The sender lives as long as the consumer.
            _ = changes.changed() => {}
            () = tokio::time::sleep(LOOK_AGAIN), if !takes => {}
            received = source.next(), if takes => match received {
                Ok(Some(batch)) => {
                    let unordered = process.unordered();
                    lanes.push(batch.into_iter().map(|received| (lane_of(&received, lanes, unordered), received)));
                }
                Ok(None) => return Ok(Ended::BySource),
                Err(error) => return Err(RunError::source(error)),
            },
        }
    }
}

/// Whether the source is to be asked for more. One that is not asked pauses at its bound.
fn takes<J>(control: &Control, lanes: &Lanes<J>) -> bool {
    match control.gate.appetite() {
        Appetite::Everything => true,
        Appetite::Probes => lanes.unfinished() == 0,
        Appetite::Nothing => false,
    }
}

/// The same messages share a lane as share an ordering key in the held table.
fn lane_of<T>(received: &Received<T>, lanes: &Lanes<Received<T>>, unordered: bool) -> u64 {
    let (place, message) = (received.origin.place(), &received.message);
    match (&message.key, received.origin.partition()) {
        (Some(key), _) => lanes.hash((place, &key[..])),
        (None, _) if unordered => lanes.hash((place, &message.id)),
        (None, partition) => lanes.hash((place, partition)),
    }
}

async fn work<S: Source, P: Process<S::Settlement>, D>(
    lanes: Arc<Queue<S>>,
    process: Arc<P>,
    context: Arc<Context<D>>,
) {
    while let Some((turn, received)) = lanes.next(process.at_once()).await {
        let Some(pass) = context.control.gate.pass(&context.stop).await else { return };
        // What came before it in its lane may have been left because of the stop.
        if context.stop.is_cancelled() {
            return;
        }
        let Some(first) = received.first() else { continue };
        let taken = context.control.taken(&first.origin, first.message.key.as_ref());
        process.process(received).await;
        drop((taken, pass, turn));
    }
}

/// Waits for running work, at most that long; then drops it, transactions and all.
async fn finish(mut tasks: JoinSet<()>, limit: Duration, consumer: &str) {
    let all = async { while tasks.join_next().await.is_some() {} };
    if tokio::time::timeout(limit, all).await.is_err() {
        tracing::warn!(
            consumer,
            unfinished = tasks.len(),
            ?limit,
            "handlers did not finish in time and were dropped"
        );
        tasks.shutdown().await;
    }
}
