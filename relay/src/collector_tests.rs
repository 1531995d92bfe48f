use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use backstop_core::lease::{Holder, Lease};
use backstop_core::ledger::{LetterEvent, LetterFilter, LetterStatus};
use backstop_core::source::SourceInfo;
use backstop_core::{FaultKind, Identity, Message, Origin, Via};

use super::*;

type Answer<'a, T> = BoxFuture<'a, Result<T, AdapterError>>;

/// A ledger that can be away, and counts what it was asked.
#[derive(Default)]
struct Memory {
    away: AtomicBool,
    foreign: AtomicBool,
    /// The next record never ends.
    hangs: AtomicBool,
    refused: AtomicUsize,
    recorded: Mutex<Vec<Letter>>,
}

impl Leases for Memory {
    fn acquire<'a>(&'a self, name: &'a str, owner: &'a str, _: Duration) -> Answer<'a, Option<Lease>> {
        let ours = !self.foreign.load(Ordering::SeqCst);
        Box::pin(async move { Ok(ours.then(|| Lease { name: name.into(), owner: owner.into(), token: 1 })) })
    }

    fn release<'a>(&'a self, _: &'a Lease) -> Answer<'a, ()> {
        Box::pin(async { Ok(()) })
    }

    fn holder<'a>(&'a self, _: &'a str) -> Answer<'a, Option<Holder>> {
        Box::pin(async { Ok(None) })
    }
}

impl Ledger for Memory {
    fn record<'a>(&'a self, letters: &'a [Letter]) -> Answer<'a, u64> {
        Box::pin(async move {
            if self.hangs.swap(false, Ordering::SeqCst) {
                std::future::pending::<()>().await;
            }
            if self.away.load(Ordering::SeqCst) {
                self.refused.fetch_add(1, Ordering::SeqCst);
                return Err(AdapterError::new(FaultKind::Unreachable, "the database is away"));
            }
            self.recorded.lock().expect("not poisoned").extend_from_slice(letters);
            Ok(letters.len() as u64)
        })
    }

    fn list<'a>(&'a self, _: &'a LetterFilter, _: Option<&'a str>, _: u32) -> Answer<'a, Vec<Letter>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    fn count<'a>(&'a self, _: &'a LetterFilter) -> Answer<'a, u64> {
        Box::pin(async { Ok(0) })
    }

    fn history<'a>(&'a self, _: &'a str) -> Answer<'a, Vec<LetterEvent>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    fn mark<'a>(
        &'a self,
        _: &'a [String],
        _: LetterStatus,
        _: LetterStatus,
        _: &'a str,
        _: Option<&'a str>,
    ) -> Answer<'a, Vec<String>> {
        Box::pin(async { Ok(Vec::new()) })
    }
}

struct Mark {
    ours: bool,
    settled: Arc<AtomicUsize>,
}

impl Settlement for Mark {
    fn begin(&mut self) -> bool {
        self.ours
    }

    fn settle(self) {
        self.settled.fetch_add(1, Ordering::SeqCst);
    }
}

/// Hands over its batches, in which an empty one stands for an error, and then nothing more.
struct Batches(Arc<Mutex<VecDeque<Vec<Received<Mark>>>>>);

impl Source for Batches {
    type Settlement = Mark;

    fn describe(&self) -> SourceInfo {
        SourceInfo { system: "memory", group: "g".into(), places: vec!["orders.dlq".into()] }
    }

    async fn next(&mut self) -> Result<Option<Vec<Received<Mark>>>, AdapterError> {
        let batch = self.0.lock().expect("not poisoned").pop_front();
        match batch {
            None => std::future::pending().await,
            Some(batch) if batch.is_empty() => Err(AdapterError::new(FaultKind::Missing, "no such queue")),
            Some(batch) => Ok(Some(batch)),
        }
    }

    async fn close(self) -> Result<(), AdapterError> {
        Ok(())
    }
}

/// A collector at work, and what can be seen of it.
struct Bench {
    ledger: Arc<Memory>,
    settled: Arc<AtomicUsize>,
    stop: CancellationToken,
    running: tokio::task::JoinHandle<()>,
}

impl Bench {
    /// Starts it on batches of offsets; a negative offset is a message that the source has taken back.
    fn start(ledger: Memory, batches: &[&[i64]]) -> Self {
        let (ledger, settled) = (Arc::new(ledger), Arc::new(AtomicUsize::new(0)));
        let received = |offset: &i64| Received {
            message: Message::new("order.placed"),
            identity: Identity::Missing,
            origin: Origin::Kafka {
                topic: "orders.dlq".into(),
                partition: 0,
                offset: *offset,
                timestamp: None,
            },
            via: Via::Live,
            settlement: Mark { ours: *offset >= 0, settled: settled.clone() },
        };
        let batches: VecDeque<_> = batches.iter().map(|batch| batch.iter().map(received).collect()).collect();
        let batches = Arc::new(Mutex::new(batches));
        let open: Opener<Batches> = Box::new(move || {
            let source = Batches(batches.clone());
            Box::pin(async move { Ok(source) })
        });
        let owner = OwnerSettings { ttl: Duration::from_secs(1), ..OwnerSettings::default() };
        let stop = CancellationToken::new();
        let running = tokio::spawn(Collector::new(ledger.clone(), vec![open], owner).run(stop.clone()));
        Self { ledger, settled, stop, running }
    }

    async fn until(&self, what: impl Fn(&Self) -> bool) {
        let happened = async {
            while !what(self) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), happened).await.expect("in time");
    }

    fn settled(&self) -> usize {
        self.settled.load(Ordering::SeqCst)
    }

    fn recorded(&self) -> usize {
        self.ledger.recorded.lock().expect("not poisoned").len()
    }

    async fn stop(self) -> (usize, usize) {
        self.stop.cancel();
        let ended = tokio::time::timeout(Duration::from_secs(60), self.running).await;
        ended.expect("in time").expect("no panic");
        (self.ledger.recorded.lock().expect("not poisoned").len(), self.settled.load(Ordering::SeqCst))
    }
}

#[tokio::test]
async fn nothing_is_settled_while_the_database_is_away() {
    let away = Memory { away: AtomicBool::new(true), ..Memory::default() };
    let bench = Bench::start(away, &[&[1, 2, 3]]);
    bench.until(|bench| bench.ledger.refused.load(Ordering::SeqCst) >= 3).await;
    assert_eq!((bench.recorded(), bench.settled()), (0, 0));
    bench.ledger.away.store(false, Ordering::SeqCst);
    bench.until(|bench| bench.settled() == 3).await;
    assert_eq!(bench.stop().await, (3, 3));
}

#[tokio::test(start_paused = true)]
async fn a_ledger_that_hangs_is_asked_again() {
    let hanging = Memory { hangs: AtomicBool::new(true), ..Memory::default() };
    let bench = Bench::start(hanging, &[&[1, 2, 3]]);
    bench.until(|bench| bench.settled() == 3).await;
    assert_eq!(bench.stop().await, (3, 3));
}

#[tokio::test]
async fn a_stop_during_an_outage_leaves_everything_unsettled() {
    let away = Memory { away: AtomicBool::new(true), ..Memory::default() };
    let bench = Bench::start(away, &[&[1, 2, 3]]);
    bench.until(|bench| bench.ledger.refused.load(Ordering::SeqCst) >= 1).await;
    assert_eq!(bench.stop().await, (0, 0));
}

#[tokio::test]
async fn a_letter_read_twice_is_recorded_once_and_what_was_taken_back_is_left() {
    let bench = Bench::start(Memory::default(), &[&[1, 1, -1, 2]]);
    bench.until(|bench| bench.settled() == 3).await;
    assert_eq!(bench.stop().await, (2, 3));
}

#[tokio::test]
async fn a_source_that_fails_is_opened_again() {
    let bench = Bench::start(Memory::default(), &[&[1], &[], &[2]]);
    bench.until(|bench| bench.settled() == 2).await;
    assert_eq!(bench.stop().await, (2, 2));
}

#[tokio::test]
async fn without_the_lease_nothing_is_read() {
    let foreign = Memory { foreign: AtomicBool::new(true), ..Memory::default() };
    let bench = Bench::start(foreign, &[&[1]]);
    tokio::task::yield_now().await;
    assert_eq!((bench.recorded(), bench.settled()), (0, 0));
    bench.ledger.foreign.store(false, Ordering::SeqCst);
    bench.until(|bench| bench.settled() == 1).await;
    assert_eq!(bench.stop().await, (1, 1));
}
