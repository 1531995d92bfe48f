use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use backstop_core::lease::{Holder, Lease};
use backstop_core::ledger::{
    AuditEntry, AuditFilter, AuditLog, Change, Edit, Expired, Expiry, Guard, LetterEvent, LetterFilter,
    LetterGroup, LetterMinute, LetterStatus, NewAuditEntry, NewBody, NewRedrive, PlanGroup, Redrive,
    Redrives, Sent, Standing,
};
use backstop_core::source::SourceInfo;
use backstop_core::{ConsumerReport, FaultKind, Identity, Message, Origin, Receipt, Via, names};
use backstop_testkit::memory::Store;
use chrono::{DateTime, Datelike as _, Utc};

use super::*;
use crate::config::{EncryptionConfig, RedactConfig};
use crate::encryption::{Key, key_of};

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
    /// How often something was recorded.
    records: AtomicUsize,
    /// Answers what a collector does not ask.
    rest: Store,
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
            self.records.fetch_add(1, Ordering::SeqCst);
            self.recorded.lock().expect("not poisoned").extend_from_slice(letters);
            Ok(letters.len() as u64)
        })
    }

    fn list<'a>(
        &'a self,
        filter: &'a LetterFilter,
        after: Option<&'a str>,
        limit: u32,
    ) -> Answer<'a, Vec<Letter>> {
        self.rest.list(filter, after, limit)
    }

    fn count<'a>(&'a self, filter: &'a LetterFilter) -> Answer<'a, u64> {
        self.rest.count(filter)
    }

    fn groups<'a>(&'a self, filter: &'a LetterFilter, limit: u32) -> Answer<'a, Vec<LetterGroup>> {
        self.rest.groups(filter, limit)
    }

    fn minutes<'a>(&'a self, fingerprint: Option<&'a str>) -> Answer<'a, Vec<LetterMinute>> {
        self.rest.minutes(fingerprint)
    }

    fn history<'a>(&'a self, id: &'a str) -> Answer<'a, Vec<LetterEvent>> {
        self.rest.history(id)
    }

    fn mark<'a>(
        &'a self,
        ids: &'a [String],
        from: LetterStatus,
        to: LetterStatus,
        what: &'a str,
        detail: Option<&'a str>,
    ) -> Answer<'a, Vec<String>> {
        self.rest.mark(ids, from, to, what, detail)
    }

    fn tell<'a>(
        &'a self,
        filter: &'a LetterFilter,
        what: &'a str,
        detail: Option<&'a str>,
    ) -> Answer<'a, u64> {
        self.rest.tell(filter, what, detail)
    }

    fn change<'a>(&'a self, filter: &'a LetterFilter, change: &'a Change, limit: u32) -> Answer<'a, u64> {
        self.rest.change(filter, change, limit)
    }

    fn edit<'a>(&'a self, edit: &'a Edit) -> Answer<'a, bool> {
        self.rest.edit(edit)
    }

    fn replace_bodies<'a>(&'a self, bodies: &'a [NewBody]) -> Answer<'a, u64> {
        self.rest.replace_bodies(bodies)
    }

    fn expired<'a>(
        &'a self,
        expiry: &'a Expiry,
        after: Option<&'a str>,
        limit: u32,
    ) -> Answer<'a, Vec<Expired>> {
        self.rest.expired(expiry, after, limit)
    }

    fn time(&self) -> Answer<'_, DateTime<Utc>> {
        self.rest.time()
    }

    fn purge<'a>(&'a self, expiry: &'a Expiry, ids: &'a [String]) -> Answer<'a, u64> {
        self.rest.purge(expiry, ids)
    }

    fn record_outcomes<'a>(&'a self, receipts: &'a [Receipt]) -> Answer<'a, u64> {
        self.rest.record_outcomes(receipts)
    }

    fn record_reports<'a>(&'a self, reports: &'a [ConsumerReport]) -> Answer<'a, ()> {
        self.rest.record_reports(reports)
    }

    fn consumers(&self) -> Answer<'_, Vec<ConsumerReport>> {
        self.rest.consumers()
    }
}

impl AuditLog for Memory {
    fn write_audit<'a>(&'a self, entry: &'a NewAuditEntry) -> Answer<'a, ()> {
        self.rest.write_audit(entry)
    }

    fn read_audit<'a>(&'a self, filter: &'a AuditFilter, limit: u32) -> Answer<'a, Vec<AuditEntry>> {
        self.rest.read_audit(filter, limit)
    }
}

impl Redrives for Memory {
    fn plan_redrive<'a>(
        &'a self,
        filter: &'a LetterFilter,
        guard: &'a Guard,
        most: u64,
    ) -> Answer<'a, Vec<PlanGroup>> {
        self.rest.plan_redrive(filter, guard, most)
    }

    fn create_redrive<'a>(&'a self, new: &'a NewRedrive) -> Answer<'a, Redrive> {
        self.rest.create_redrive(new)
    }

    fn redrives<'a>(&'a self, after: Option<&'a str>, limit: u32) -> Answer<'a, Vec<Redrive>> {
        self.rest.redrives(after, limit)
    }

    fn redrive<'a>(&'a self, id: &'a str) -> Answer<'a, Option<Redrive>> {
        self.rest.redrive(id)
    }

    fn running_redrives(&self) -> Answer<'_, Vec<Redrive>> {
        self.rest.running_redrives()
    }

    fn steer_redrive<'a>(&'a self, id: &'a str, from: &'a Standing, to: &'a Standing) -> Answer<'a, bool> {
        self.rest.steer_redrive(id, from, to)
    }

    fn set_redrive_rate<'a>(&'a self, id: &'a str, rate: Option<f64>) -> Answer<'a, bool> {
        self.rest.set_redrive_rate(id, rate)
    }

    fn claim_letters<'a>(
        &'a self,
        lease: &'a Lease,
        id: &'a str,
        limit: u32,
    ) -> Answer<'a, Option<Vec<Letter>>> {
        self.rest.claim_letters(lease, id, limit)
    }

    fn letters_in_flight<'a>(&'a self, id: &'a str) -> Answer<'a, Vec<Letter>> {
        self.rest.letters_in_flight(id)
    }

    fn settle_letters<'a>(&'a self, id: &'a str, sent: &'a [(String, Sent)]) -> Answer<'a, ()> {
        self.rest.settle_letters(id, sent)
    }

    fn fall_silent(&self) -> Answer<'_, u64> {
        self.rest.fall_silent()
    }
}

struct Mark {
    ours: bool,
    settled: Arc<AtomicUsize>,
    has_begun: bool,
    /// How many have begun and are not dropped yet.
    begun: Arc<AtomicUsize>,
}

impl Settlement for Mark {
    fn begin(&mut self) -> bool {
        self.has_begun = self.ours;
        self.begun.fetch_add(usize::from(self.ours), Ordering::SeqCst);
        self.ours
    }

    fn settle(self) {
        self.settled.fetch_add(1, Ordering::SeqCst);
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        self.begun.fetch_sub(usize::from(self.has_begun), Ordering::SeqCst);
    }
}

/// Hands over its batches, in which an empty one stands for an error, and then nothing more. It closes when nothing has
/// begun any more, as Kafka's would like to.
struct Batches {
    batches: Arc<Mutex<VecDeque<Vec<Received<Mark>>>>>,
    begun: Arc<AtomicUsize>,
}

impl Source for Batches {
    type Settlement = Mark;

    fn describe(&self) -> SourceInfo {
        SourceInfo { system: "memory", group: "g".into(), places: vec!["orders.dlq".into()] }
    }

    async fn next(&mut self) -> Result<Option<Vec<Received<Mark>>>, AdapterError> {
        let batch = self.batches.lock().expect("not poisoned").pop_front();
        match batch {
            None => std::future::pending().await,
            Some(batch) if batch.is_empty() => Err(AdapterError::new(FaultKind::Missing, "no such queue")),
            Some(batch) => Ok(Some(batch)),
        }
    }

    async fn close(self) -> Result<(), AdapterError> {
        while self.begun.load(Ordering::SeqCst) > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
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
        let (ledger, settled, begun) =
            (Arc::new(ledger), Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
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
            settlement: Mark {
                ours: *offset >= 0,
                settled: settled.clone(),
                has_begun: false,
                begun: begun.clone(),
            },
        };
        let batches: VecDeque<_> = batches.iter().map(|batch| batch.iter().map(received).collect()).collect();
        let batches = Arc::new(Mutex::new(batches));
        let open: Opener<Batches> = Box::new(move || {
            let source = Batches { batches: batches.clone(), begun: begun.clone() };
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

/// What waits behind it is given back before the source is closed, which waits for what has begun.
#[tokio::test(start_paused = true)]
async fn a_stop_does_not_wait_for_what_nobody_records_any_more() {
    let away = Memory { away: AtomicBool::new(true), ..Memory::default() };
    let many: Vec<i64> = (0..2_500).collect();
    let bench = Bench::start(away, &[&many]);
    bench.until(|bench| bench.ledger.refused.load(Ordering::SeqCst) >= 1).await;
    assert_eq!(bench.stop().await, (0, 0));
}

#[tokio::test]
async fn a_letter_read_twice_is_recorded_once_and_what_was_taken_back_is_left() {
    let bench = Bench::start(Memory::default(), &[&[1, 1, -1, 2]]);
    bench.until(|bench| bench.settled() == 3).await;
    assert_eq!(bench.stop().await, (2, 3));
}

/// A copy of a death that the ledger knows already keeps no later one out, which has the same id.
#[test]
fn each_death_of_a_message_is_recorded() {
    let mut chunk = Chunk::default();
    for day in ["01", "02", "01"] {
        let mut message = Message::new("order.placed");
        message.headers.set(names::DEAD_LETTER_ID, "0197f000-0000-7000-8000-000000000001");
        message.headers.set(names::DEAD_AT, format!("2026-03-{day}T12:00:00.000Z"));
        let origin = Origin::Kafka { topic: "orders.dlq".into(), partition: 0, offset: 1, timestamp: None };
        let settlement =
            Mark { ours: true, settled: Arc::default(), has_begun: false, begun: Arc::default() };
        let received = Received { message, identity: Identity::Missing, origin, via: Via::Live, settlement };
        chunk.add(received, &Redaction::default(), &Keyring::default());
    }
    let died: Vec<_> = chunk.letters.iter().filter_map(|letter| letter.dead_at).map(|at| at.day()).collect();
    assert_eq!((died, chunk.settlements.len()), (vec![1, 2], 3));
}

#[tokio::test]
async fn a_source_that_fails_is_opened_again() {
    let bench = Bench::start(Memory::default(), &[&[1], &[], &[2]]);
    bench.until(|bench| bench.settled() == 2).await;
    assert_eq!(bench.stop().await, (2, 2));
}

/// Letters that come in small batches share transactions all the same.
#[tokio::test]
async fn what_is_there_already_is_recorded_together() {
    let bench = Bench::start(Memory::default(), &[&[1], &[2], &[3, 4]]);
    bench.until(|bench| bench.settled() == 4).await;
    assert_eq!(bench.ledger.records.load(Ordering::SeqCst), 1);
    assert_eq!(bench.stop().await, (4, 4));
}

/// Sources are read from when they are found until they are gone.
#[tokio::test(start_paused = true)]
async fn sources_are_found_as_they_come_and_go() {
    let there = Arc::new(Mutex::new(vec!["a"]));
    let (opened, reading) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicUsize::new(0)));
    let discovery: Discovery<Watched> = {
        let (there, opened, reading) = (there.clone(), opened.clone(), reading.clone());
        Box::new(move || {
            let names = there.lock().expect("not poisoned").clone();
            let found = names.into_iter().map(|name| {
                let (opened, reading) = (opened.clone(), reading.clone());
                let open: Opener<Watched> = Box::new(move || {
                    opened.lock().expect("not poisoned").push(name);
                    let source = Watched::new(reading.clone());
                    Box::pin(async move { Ok(source) })
                });
                (name.to_owned(), open)
            });
            let found: Found<Watched> = found.collect();
            Box::pin(async move { Ok(found) })
        })
    };
    let (ledger, stop) = (Arc::new(Memory::default()), CancellationToken::new());
    let collector = Collector::new(ledger, Vec::new(), OwnerSettings::default()).discovering(Some(discovery));
    let running = tokio::spawn(collector.run(stop.clone()));
    let until = async |expected: &[&str], now: usize| {
        let happened = async {
            while *opened.lock().expect("not poisoned") != expected || reading.load(Ordering::SeqCst) != now {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), happened).await.expect("in time");
    };
    until(&["a"], 1).await;
    *there.lock().expect("not poisoned") = vec!["a", "b"];
    until(&["a", "b"], 2).await;
    *there.lock().expect("not poisoned") = vec!["b"];
    until(&["a", "b"], 1).await;
    *there.lock().expect("not poisoned") = vec!["a", "b"];
    until(&["a", "b", "a"], 2).await;
    stop.cancel();
    running.await.expect("no panic");
    assert_eq!(reading.load(Ordering::SeqCst), 0, "all are closed");
}

/// A source with nothing in it that counts how many of its kind are open.
struct Watched(Arc<AtomicUsize>);

impl Watched {
    fn new(open: Arc<AtomicUsize>) -> Self {
        open.fetch_add(1, Ordering::SeqCst);
        Self(open)
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Source for Watched {
    type Settlement = Mark;

    fn describe(&self) -> SourceInfo {
        SourceInfo { system: "memory", group: "g".into(), places: Vec::new() }
    }

    async fn next(&mut self) -> Result<Option<Vec<Received<Mark>>>, AdapterError> {
        std::future::pending().await
    }

    async fn close(self) -> Result<(), AdapterError> {
        Ok(())
    }
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

/// What must not be kept is replaced first: in an encrypted body no rule finds anything.
#[test]
fn letters_are_redacted_and_then_encrypted() {
    let rule = RedactConfig {
        pointer: None,
        header: None,
        pattern: Some("[0-9]{4}".to_owned()),
        replace: "[card]".to_owned(),
    };
    let key = Key::parse(&"01".repeat(32)).expect("32 bytes");
    let keys = Keyring::of(Some(&EncryptionConfig { key, previous_keys: Vec::new() }));
    let (redaction, mut chunk) = (Redaction::new(&[rule]).expect("sound"), Chunk::default());
    chunk.add(
        Received {
            message: Message::new("order.placed").body("text/plain", "card 4111"),
            identity: Identity::Missing,
            origin: Origin::Kafka { topic: "orders.dlq".into(), partition: 0, offset: 7, timestamp: None },
            via: Via::Live,
            settlement: Mark { ours: true, settled: Arc::default(), has_begun: false, begun: Arc::default() },
        },
        &redaction,
        &keys,
    );
    let letter = &mut chunk.letters[0];
    assert_eq!(key_of(letter), keys.newest());
    keys.open(letter).expect("it has the key");
    assert_eq!(letter.envelope.body.as_deref(), Some(&b"card [card]"[..]));
}
