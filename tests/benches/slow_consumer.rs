//! A plain consumer in a process of its own, whose handler is slow with one key: what becomes of the others, and how
//! much memory it takes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use backstop::{Consumer, Delivery, Handler, HandlerError, StopPartition};
use backstop_kafka::KafkaSource;
use serde::{Deserialize, Serialize};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::Outcome;
use crate::consumer::{Began, Work, until_handled};
use crate::event::{self, KEYS};
use crate::order::Order;
use crate::servers::unique;

/// The first argument of the process; its task is the second.
pub(crate) const COMMAND: &str = "slow-consumer";

/// Messages that are handled at once.
const AT_ONCE: usize = 64;
/// The key that may be slow, and what it takes then.
const SLOW: (usize, Duration) = (0, Duration::from_secs(1));
/// What a message of any other key takes.
const QUICK: Duration = Duration::from_millis(1);
/// The other keys stand still when fewer messages than this are handled in that time: some of them share a lane with
/// the slow one, and go on at its pace.
const STANDING: (usize, Duration) = (100, Duration::from_secs(3));
/// How long it may take until the first message comes.
const PATIENCE: Duration = Duration::from_secs(60);

/// How many messages are of the slow key.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) enum Share {
    /// As many as of any key.
    Even,
    /// Every second one.
    Half,
}

impl Share {
    /// The key of the message `n`.
    pub(crate) fn key(self, n: usize) -> usize {
        match self {
            Self::Half if n.is_multiple_of(2) => SLOW.0,
            _ => n % KEYS,
        }
    }

    /// Messages of other keys.
    fn others(self, messages: usize) -> usize {
        (0..messages).filter(|n| self.key(*n) != SLOW.0).count()
    }
}

/// What is consumed.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Task {
    pub(crate) brokers: String,
    pub(crate) topic: String,
    pub(crate) messages: usize,
    pub(crate) share: Share,
    /// Whether the slow key is slow; it takes no time otherwise.
    pub(crate) slow: bool,
}

/// What came of it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Seen {
    /// Messages a second of the other keys, for as long as they went on.
    pub(crate) rate: f64,
    /// How many of them were handled by then.
    pub(crate) handled: usize,
    /// How many there are.
    pub(crate) others: usize,
    /// Most memory of the process by then.
    pub(crate) peak_mib: f64,
}

/// Prints what it has seen, as JSON.
pub(crate) async fn main(task: &str) -> Outcome<()> {
    println!("{}", serde_json::to_string(&consume(&serde_json::from_str(task)?).await?)?);
    Ok(())
}

/// Consumes everything: as asked while the other keys go on, and then without any slowness, to see that nothing is lost.
async fn consume(task: &Task) -> Outcome<Seen> {
    let (watched, began) = (Arc::new(Watched::default()), Began::default());
    watched.slow.store(task.slow, Ordering::Relaxed);
    let handler = Uneven { share: task.share, watched: Arc::clone(&watched), began: Arc::clone(&began) };
    let source = KafkaSource::subscribe(&task.brokers, unique("group"), &[&task.topic]).door(false);
    let consumer = Consumer::plain("bench", source, handler).dead_letter(StopPartition).concurrency(AT_ONCE);
    let (stats, stop) = (consumer.stats(), CancellationToken::new());
    let running = tokio::spawn(consumer.run(stop.clone().cancelled_owned()));
    let seen = watched.watch(&began, task.share.others(task.messages)).await?;
    watched.slow.store(false, Ordering::Relaxed);
    until_handled(Work::of(task.messages), &stats, &began, running, stop).await?;
    watched.order.check(task.messages)?;
    Ok(seen)
}

/// Handlers, as seen from outside.
#[derive(Debug, Default)]
struct Watched {
    order: Order,
    others: AtomicUsize,
    slow: AtomicBool,
}

impl Watched {
    /// Looks on until all messages of other keys are handled, or those that are left stand still.
    async fn watch(&self, began: &Began, others: usize) -> Outcome<Seen> {
        let began = first(began).await?;
        let (mut handled, mut moved) = (0, began);
        while handled < others && moved.elapsed() < STANDING.1 {
            sleep(Duration::from_millis(5)).await;
            let now = self.others.load(Ordering::Relaxed);
            if now == others || now >= handled + STANDING.0 {
                (handled, moved) = (now, Instant::now());
            }
        }
        let rate = handled as f64 / moved.duration_since(began).as_secs_f64();
        Ok(Seen { rate, handled, others, peak_mib: peak_mib()? })
    }
}

/// When the first message came.
async fn first(began: &Began) -> Outcome<Instant> {
    let until = Instant::now() + PATIENCE;
    loop {
        match began.get() {
            Some(began) => return Ok(*began),
            None if Instant::now() > until => return Err("nothing was handled".into()),
            None => sleep(Duration::from_millis(1)).await,
        }
    }
}

/// Waits, long with messages of one key.
struct Uneven {
    share: Share,
    watched: Arc<Watched>,
    began: Began,
}

impl Handler<()> for Uneven {
    type Message = event::Body;

    async fn handle(&self, delivery: &Delivery<event::Body>, (): &mut ()) -> Result<(), HandlerError> {
        self.began.get_or_init(Instant::now);
        let n = delivery.body().number()?;
        let (key, watched) = (self.share.key(n), &self.watched);
        watched.order.begin(key, n);
        if key != SLOW.0 {
            sleep(QUICK).await;
            watched.others.fetch_add(1, Ordering::Relaxed);
        } else if watched.slow.load(Ordering::Relaxed) {
            sleep(SLOW.1).await;
        }
        watched.order.end(key, n);
        Ok(())
    }
}

/// The most memory that this process has held so far.
fn peak_mib() -> Outcome<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib: f64 = peak.ok_or("the peak of memory is not told")?.trim().trim_end_matches(" kB").parse()?;
    Ok(kib / 1_024.0)
}
