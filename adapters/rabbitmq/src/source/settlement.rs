//! Telling the broker that messages are done.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use backstop_core::source::Settlement;
use futures_util::future::join_all;
use lapin::Channel;
use lapin::options::{BasicAckOptions, BasicNackOptions};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};

/// How long a message that was given back unsettled stays away, so that giving back and getting again is no busy
/// loop.
const REQUEUE_DELAY: Duration = Duration::from_millis(500);

/// Acks written in one go, at most.
const BATCH: usize = 512;

#[derive(Debug)]
enum Verdict {
    Done(u64),
    GivenBack(u64),
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
    channel: Arc<Channel>,
}

impl Acks {
    /// Starts the task that writes acks to `channel`; it ends with the last settlement, or with the channel.
    pub(super) fn start(channel: Arc<Channel>) -> Self {
        // bounded by the prefetch: one verdict for each unsettled message
        let (verdicts, receiver) = mpsc::unbounded_channel();
        tokio::spawn(write(channel.clone(), receiver));
        Self { epoch: CHANNELS.fetch_add(1, Ordering::Relaxed), verdicts, channel }
    }

    pub(super) fn settlement(&self, tag: u64, suspect: bool) -> RabbitSettlement {
        RabbitSettlement { tag, acks: self.clone(), settled: false, suspect }
    }

    /// Waits until everything said before has been written; `false` when some of it could not be.
    pub(super) async fn flush(&self) -> bool {
        let (done, written) = oneshot::channel();
        self.verdicts.send(Verdict::Flush(done)).is_ok() && written.await.unwrap_or(false)
    }

    pub(super) fn channel(&self) -> &Channel {
        &self.channel
    }
}

/// Settles one message of a [`RabbitSource`](crate::RabbitSource): an ack on the channel it came from.
///
/// Dropped unsettled, it gives the message back to the queue after half a second.
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
        self.say(Verdict::Done(self.tag));
    }
}

impl RabbitSettlement {
    fn say(&self, verdict: Verdict) {
        // The task ends before its senders only when the channel is lost; the broker delivers again then.
        if self.acks.verdicts.send(verdict).is_err() {
            tracing::debug!(tag = self.tag, "the channel of this message is gone; it comes again");
        }
    }
}

impl Drop for RabbitSettlement {
    fn drop(&mut self) {
        if !self.settled {
            self.say(Verdict::GivenBack(self.tag));
        }
    }
}

async fn write(channel: Arc<Channel>, mut verdicts: mpsc::UnboundedReceiver<Verdict>) {
    let mut inbox = Vec::with_capacity(BATCH);
    let mut given_back: Vec<u64> = Vec::new();
    let mut requeue_at = None;
    let mut sound = true;
    loop {
        let received = tokio::select! {
            received = verdicts.recv_many(&mut inbox, BATCH) => received,
            () = sleep_until(requeue_at.unwrap_or_else(Instant::now)), if requeue_at.is_some() => {
                requeue_at = None;
                sound &= requeue(&channel, std::mem::take(&mut given_back)).await;
                continue;
            }
        };
        let mut done = Vec::with_capacity(received);
        let mut flushes = Vec::new();
        for verdict in inbox.drain(..) {
            match verdict {
                Verdict::Done(tag) => done.push(tag),
                Verdict::GivenBack(tag) => given_back.push(tag),
                Verdict::Flush(answer) => flushes.push(answer),
            }
        }
        sound &= ack(&channel, done).await;
        if !flushes.is_empty() || received == 0 {
            sound &= requeue(&channel, std::mem::take(&mut given_back)).await;
        }
        for answer in flushes {
            // nobody waits any more: its call of `close` was dropped
            let _ = answer.send(sound);
        }
        if received == 0 || !channel.status().connected() {
            return;
        }
        if requeue_at.is_none() && !given_back.is_empty() {
            requeue_at = Some(Instant::now() + REQUEUE_DELAY);
        }
    }
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
