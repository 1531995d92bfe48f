//! Telling the broker that messages are done.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use backstop_core::source::Settlement;
use futures_util::future::join_all;
use lapin::options::{BasicAckOptions, BasicNackOptions};
use lapin::{Channel, Consumer};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Sleep, sleep};

/// How long a message that was given back unsettled stays away, so that giving back and getting again is no busy
/// loop.
const REQUEUE_DELAY: Duration = Duration::from_millis(500);

/// Acks written in one go, at most.
const BATCH: usize = 512;

#[derive(Debug)]
enum Verdict {
    Done(u64),
    /// In the order in which they are to come again.
    GivenBack(Vec<u64>),
    Flush(oneshot::Sender<bool>),
}

/// How many channels there were.
static CHANNELS: AtomicU64 = AtomicU64::new(0);

/// Where the settlements of one channel go. A channel is never reopened: what belongs to a lost one is dropped here.
#[derive(Debug, Clone)]
pub(super) struct Acks {
    /// Its channel's number among all of the process.
    epoch: u64,
    verdicts: mpsc::UnboundedSender<Verdict>,
    given_back: mpsc::UnboundedSender<u64>,
    channel: Arc<Channel>,
}

impl Acks {
    /// Starts the task that writes acks to the channel of `consumer`; it ends with the last settlement, or with the
    /// channel. What is given back unsettled waits for the reader.
    pub(super) fn start(channel: Arc<Channel>, consumer: Consumer) -> (Self, GivenBack) {
        // both bounded by the prefetch: one verdict for each unsettled message
        let (verdicts, receiver) = mpsc::unbounded_channel();
        let (given_back, returned) = mpsc::unbounded_channel();
        tokio::spawn(write(channel.clone(), consumer, receiver));
        let epoch = CHANNELS.fetch_add(1, Ordering::Relaxed);
        (Self { epoch, verdicts, given_back, channel }, GivenBack::new(returned))
    }

    pub(super) fn settlement(&self, tag: u64, suspect: bool) -> RabbitSettlement {
        RabbitSettlement { tag, acks: self.clone(), settled: false, suspect }
    }

    /// Gives back what has stayed away long enough. Only whoever reads may call it: see [`GivenBack`].
    pub(super) fn give_back(&self, given_back: &mut GivenBack, context: &mut Context<'_>) {
        if let Poll::Ready(tags) = given_back.poll_due(context) {
            self.say(Verdict::GivenBack(tags));
        }
    }

    /// Waits until everything said before has been written; `false` when some of it could not be.
    pub(super) async fn flush(&self) -> bool {
        let (done, written) = oneshot::channel();
        self.verdicts.send(Verdict::Flush(done)).is_ok() && written.await.unwrap_or(false)
    }

    pub(super) fn channel(&self) -> &Channel {
        &self.channel
    }

    fn say(&self, verdict: Verdict) {
        // The task ends before its senders only when the channel is lost; the broker delivers again then.
        if self.verdicts.send(verdict).is_err() {
            tracing::debug!("the channel of these messages is gone; they come again");
        }
    }
}

/// What was dropped unsettled and stays away for a while.
///
/// It belongs to whoever reads, because a queue delivers first what it was given back: once nobody reads, as while a
/// consumer stops, it would overtake earlier messages that are still at work, or be sent here once more, behind what came
/// meanwhile. The end of the channel gives back all that is left, in its order.
pub(super) struct GivenBack {
    returned: mpsc::UnboundedReceiver<u64>,
    waiting: Vec<u64>,
    away: Option<Pin<Box<Sleep>>>,
}

impl GivenBack {
    fn new(returned: mpsc::UnboundedReceiver<u64>) -> Self {
        Self { returned, waiting: Vec::new(), away: None }
    }

    /// What has stayed away long enough, in the order in which it came.
    fn poll_due(&mut self, context: &mut Context<'_>) -> Poll<Vec<u64>> {
        while let Poll::Ready(Some(tag)) = self.returned.poll_recv(context) {
            self.waiting.push(tag);
        }
        if self.waiting.is_empty() {
            return Poll::Pending;
        }
        let away = self.away.get_or_insert_with(|| Box::pin(sleep(REQUEUE_DELAY)));
        std::task::ready!(away.as_mut().poll(context));
        self.away = None;
        let mut due = std::mem::take(&mut self.waiting);
        due.sort_unstable();
        Poll::Ready(due)
    }
}

/// Settles one message of a [`RabbitSource`](crate::RabbitSource): an ack on the channel it came from.
///
/// Dropped unsettled, it gives the message back to the queue: after half a second if the source goes on being read, else
/// when its channel is closed.
#[derive(Debug)]
pub struct RabbitSettlement {
    tag: u64,
    acks: Acks,
    settled: bool,
    /// Whether somebody has had it before who has not settled it.
    suspect: bool,
}

impl Settlement for RabbitSettlement {
    fn begin(&mut self) -> bool {
        self.acks.channel.status().connected()
    }

    fn is_suspect(&self) -> bool {
        self.suspect
    }

    fn epoch(&self) -> u64 {
        self.acks.epoch
    }

    fn settle(mut self) {
        self.settled = true;
        self.acks.say(Verdict::Done(self.tag));
    }
}

impl Drop for RabbitSettlement {
    fn drop(&mut self) {
        if !self.settled {
            // Nobody reads any more when this fails; the end of the channel gives it back.
            let _ = self.acks.given_back.send(self.tag);
        }
    }
}

async fn write(channel: Arc<Channel>, consumer: Consumer, mut verdicts: mpsc::UnboundedReceiver<Verdict>) {
    let mut inbox = Vec::with_capacity(BATCH);
    let mut sound = true;
    while verdicts.recv_many(&mut inbox, BATCH).await > 0 {
        let (mut done, mut given_back, mut flushes) =
            (Vec::with_capacity(inbox.len()), Vec::new(), Vec::new());
        for verdict in inbox.drain(..) {
            match verdict {
                Verdict::Done(tag) => done.push(tag),
                Verdict::GivenBack(tags) => given_back.extend(tags),
                Verdict::Flush(answer) => flushes.push(answer),
            }
        }
        sound &= ack(&channel, done).await;
        sound &= requeue(&channel, given_back).await;
        for answer in flushes {
            // nobody waits any more: its call of `close` was dropped
            let _ = answer.send(sound);
        }
        if !channel.status().connected() {
            return;
        }
    }
    leave(&channel, consumer).await;
}

/// Ends a channel that nobody reads from, and that nothing of is at work any more.
///
/// The subscription must not end before it: another consumer would be given what comes after the messages that this one
/// still has.
async fn leave(channel: &Channel, consumer: Consumer) {
    if channel.status().connected()
        && let Err(error) = channel.close(200, "OK".into()).await
    {
        tracing::debug!(%error, "a channel was not closed in order; its messages come again all the same");
    }
    drop(consumer);
}

/// Writes acks without waiting for each; never a cumulative one, which would settle what still runs.
async fn ack(channel: &Channel, tags: Vec<u64>) -> bool {
    let writes = tags.into_iter().map(|tag| channel.basic_ack(tag, BasicAckOptions::default()));
    all_written(join_all(writes).await)
}

async fn requeue(channel: &Channel, tags: Vec<u64>) -> bool {
    let options = BasicNackOptions { requeue: true, multiple: false };
    all_written(join_all(tags.into_iter().map(|tag| channel.basic_nack(tag, options))).await)
}

fn all_written(results: Vec<lapin::Result<()>>) -> bool {
    let failed = results.iter().filter(|result| result.is_err()).count();
    if let Some(Err(error)) = results.iter().find(|result| result.is_err()) {
        tracing::debug!(%error, messages = failed, "settlements could not be written; their messages come again");
    }
    failed == 0
}
