//! Read, process, write: what readers of committed messages see of pipelines that are killed, stopped and joined.
//!
//! `BACKSTOP_E2E_KILLS` sets how many kills there are; 6 by default.

use std::collections::BTreeSet;
use std::time::Duration;

use backstop_tests::apply::Fail;
use backstop_tests::pipeline::{Feed, PARTS, PipelineConfig, Reader, assert_exactly_once};
use backstop_tests::program::Broker;
use backstop_tests::workload::{self, Placed};
use backstop_tests::{letters, servers, size, wait};

const PATIENCE: Duration = Duration::from_secs(60);
const PARTITIONS: i32 = 3;

/// Topics, a pipeline between them, and who reads what comes out.
struct Scene {
    config: PipelineConfig,
    feed: Feed,
    committed: Reader,
    uncommitted: Reader,
}

impl Scene {
    async fn new(stem: &str, instance: &str) -> Self {
        let (place, out) = (servers::unique(stem), servers::unique(stem));
        workload::create_place(Broker::Kafka, &place, PARTITIONS).await;
        workload::create_place(Broker::Kafka, &out, PARTITIONS).await;
        let config = PipelineConfig::new(&place, &servers::unique("group"), &out, instance);
        let (committed, uncommitted) =
            (Reader::committed(&out, PARTITIONS), Reader::uncommitted(&out, PARTITIONS));
        let feed = Feed::new(&config.place);
        Self { config, feed, committed, uncommitted }
    }

    /// Every event has both of its outputs, or its letter.
    async fn assert_balanced(&self, events: &[Placed]) {
        let (dead, alive): (Vec<_>, Vec<_>) = events.iter().partition(|placed| placed.ends_dead());
        self.committed.reach(alive.len() * PARTS.len(), PATIENCE).await;
        if !dead.is_empty() {
            let place = backstop::dead_letter::kafka_letters(&self.config.place, &self.config.group);
            let found = letters::messages(Broker::Kafka, &place, dead.len()).await;
            let ids: BTreeSet<&str> = found.iter().map(|letter| letter.id.as_str()).collect();
            let expected: BTreeSet<&str> = dead.iter().map(|placed| placed.id.as_str()).collect();
            assert_eq!((ids, found.len()), (expected, dead.len()), "one letter each");
        }
        let seen = self.committed.seen();
        assert_exactly_once(&seen, alive.len());
        let ids: BTreeSet<&str> = alive.iter().map(|placed| placed.id.as_str()).collect();
        assert!(seen.iter().all(|part| ids.contains(part.cause.as_str())), "each names its cause");
    }
}

fn kills() -> usize {
    size::asked("BACKSTOP_E2E_KILLS").unwrap_or(6)
}

/// Promise 10: it dies between every two steps of a transaction and at any other time, and is back under its name.
#[tokio::test(flavor = "multi_thread")]
async fn killed_pipelines_write_each_output_once() {
    const CHUNK: usize = 300;
    let mut scene = Scene::new("kills", "one").await;
    scene.config.is_static = true;
    scene.config.messages = 40;
    let points = ["kafka.transaction.sent:3", "kafka.transaction.offsets:3", "kafka.transaction.committed:3"];
    let kills = kills();
    let events = workload::events(CHUNK * (kills + 1), 30, |n| match n % 150 {
        70 => Some(Fail::Permanent),
        20 | 110 => Some(Fail::Transient(2)),
        _ => None,
    });
    let mut chunks = events.chunks(CHUNK);
    for kill in 0..kills {
        scene.feed.publish(chunks.next().expect("one for each")).await;
        let before = scene.committed.len();
        match points.get(kill % (points.len() + 1)) {
            Some(point) => scene.config.spawn(Some(point)).ended(PATIENCE).await,
            None => {
                let program = scene.config.spawn(None);
                scene.committed.reach(before + 1 + fastrand::usize(..CHUNK), PATIENCE).await;
                program.kill();
            }
        }
    }
    scene.feed.publish(chunks.next().expect("one more")).await;
    let stop = scene.config.start();
    scene.assert_balanced(&events).await;
    stop().await;
    let (committed, uncommitted) = (scene.committed.len(), scene.uncommitted.len());
    assert!(uncommitted > committed, "{uncommitted} were written, {committed} committed: none was aborted");
}

/// Others join and leave while messages come; nobody dies.
#[tokio::test(flavor = "multi_thread")]
async fn pipelines_that_join_and_leave_write_each_output_once() {
    let scene = Scene::new("rebalance", "first").await;
    let events = workload::events(100_000, 30, |n| (n % 100 == 50).then_some(Fail::Transient(1)));
    let stop_first = scene.config.start();
    let joining = async {
        for instance in ["second", "third"] {
            let mut other = scene.config.clone();
            instance.clone_into(&mut other.instance);
            let stop = other.start();
            wait::until("the new one writes, too", PATIENCE, || {
                std::future::ready(scene.committed.seen().iter().any(|part| part.instance == instance))
            })
            .await;
            stop().await;
        }
    };
    let mut joining = std::pin::pin!(joining);
    let mut published = 0;
    for some in events.chunks(50) {
        scene.feed.publish(some).await;
        published += some.len();
        // Until they have come and gone; a little in between, so that all of it is work for both.
        if tokio::time::timeout(Duration::from_millis(50), &mut joining).await.is_ok() {
            break;
        }
    }
    scene.assert_balanced(&events[..published]).await;
    stop_first().await;
}

/// One sleeps in the middle of a transaction until another has done its work, and wakes up to finish what it had begun.
#[tokio::test(flavor = "multi_thread")]
async fn a_zombie_commits_nothing() {
    let mut scene = Scene::new("zombie", "zombie").await;
    // Only its generation fences it: its transaction stays open while it sleeps.
    (scene.config.timeout_ms, scene.config.messages) = (60_000, 50);
    let events = workload::events(400, 20, |_| None);
    scene.feed.publish(&events[..300]).await;
    let zombie = scene.config.spawn(Some("stop kafka.transaction.sent:2"));
    wait::until("it sleeps", PATIENCE, || std::future::ready(zombie.is_stopped())).await;

    let mut other = scene.config.clone();
    other.instance = "other".to_owned();
    let stop = other.start();
    // Readers of committed messages see nothing behind the transaction that is open.
    let done = || {
        let (written, committed) = (scene.uncommitted.seen(), scene.committed.seen());
        let by_other = written.iter().filter(|part| part.instance == "other");
        let parts = by_other.chain(&committed).map(|part| (&part.event.key, part.event.seq, &part.part));
        parts.collect::<BTreeSet<_>>().len() == 300 * PARTS.len()
    };
    wait::until("the other one has done the rest", PATIENCE, || std::future::ready(done())).await;
    zombie.signal("CONT");
    scene.feed.publish(&events[300..]).await;
    scene.assert_balanced(&events).await;
    stop().await;
    zombie.kill();
}
