//! Two members of one group: what moves, what is waited for, what is refused.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::common::*;
use backstop_core::Destination;
use backstop_core::sink::Sink;
use backstop_core::source::{Settlement, Source};
use backstop_kafka::{KafkaSink, KafkaSource, RebalanceProtocol};
use tokio::sync::watch;

const MESSAGES: usize = 3_000;

fn source(topic: &Topic, group: &str, protocol: RebalanceProtocol) -> KafkaSource {
    KafkaSource::subscribe(brokers(), group, &[topic.name.as_str()]).door(false).rebalance_protocol(protocol)
}

/// How long the work on a message takes, so that rebalances find some under way.
const WORK: Duration = Duration::from_millis(20);

/// Reads and settles everything until told to stop, each message on a task of its own.
fn member(
    mut source: KafkaSource,
    seen: watch::Sender<BTreeMap<String, usize>>,
    mut stop: watch::Receiver<bool>,
) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        loop {
            let batch = tokio::select! {
                batch = source.next() => batch.expect("no error").expect("not ended"),
                _ = stop.wait_for(|stop| *stop) => break,
            };
            for mut received in batch {
                let seen = seen.clone();
                tokio::spawn(async move {
                    if !received.settlement.begin() {
                        return;
                    }
                    tokio::time::sleep(WORK).await;
                    seen.send_modify(|seen| *seen.entry(body(&received)).or_default() += 1);
                    received.settlement.settle();
                });
            }
        }
        within("close", source.close()).await.expect("closed");
    })
}

async fn nothing_is_lost_or_repeated(protocol: RebalanceProtocol) {
    let topic = Topic::new("rebalance", 8).await;
    let group = unique("g");
    let (seen, mut watched) = watch::channel(BTreeMap::new());
    let (stop_all, all) = watch::channel(false);
    let (stop_second, second) = watch::channel(false);
    let first = member(source(&topic, &group, protocol), seen.clone(), all);

    let name = topic.name.clone();
    let sender = tokio::spawn(async move {
        let sink = KafkaSink::new(settings());
        for number in 0..MESSAGES {
            let key = format!("key-{}", number % 64);
            sink.publish(&Destination::new(&name), envelope(&key, number.to_string()))
                .await
                .expect("published");
        }
    });
    let mut reach = async |wanted: usize| {
        let reached = watched.wait_for(|seen| seen.len() >= wanted);
        drop(within(&format!("{wanted} messages"), reached).await.expect("the members are there"));
    };
    reach(200).await;
    let joined = member(source(&topic, &group, protocol), seen.clone(), second);
    reach(MESSAGES / 2).await;
    stop_second.send(true).expect("it runs");
    joined.await.expect("no panic");
    sender.await.expect("no panic");
    reach(MESSAGES).await;
    stop_all.send(true).expect("it runs");
    first.await.expect("no panic");
    let mut repeated = seen.borrow().clone();
    repeated.retain(|_, times| *times > 1);
    assert!(repeated.is_empty(), "handed to two members: {repeated:?}");
}

/// F65: cooperatively.
#[tokio::test(flavor = "multi_thread")]
async fn cooperative_members_lose_and_repeat_nothing() {
    nothing_is_lost_or_repeated(RebalanceProtocol::CooperativeSticky).await;
}

/// F65: where the broker decides.
#[tokio::test(flavor = "multi_thread")]
async fn kip_848_members_lose_and_repeat_nothing() {
    nothing_is_lost_or_repeated(RebalanceProtocol::Kip848).await;
}

/// F65: eagerly.
#[tokio::test(flavor = "multi_thread")]
async fn eager_members_lose_and_repeat_nothing() {
    nothing_is_lost_or_repeated(RebalanceProtocol::Eager).await;
}

/// F49: what has begun is waited for.
#[tokio::test(flavor = "multi_thread")]
async fn a_revoke_waits_for_what_has_begun_and_refuses_the_rest() {
    let topic = Topic::new("revoke", 2).await;
    let group = unique("g");
    // Enough keys for both partitions.
    for key in 0..16 {
        publish_numbers(&topic.name, &format!("key-{key}"), 0..1).await;
    }
    let protocol = RebalanceProtocol::CooperativeSticky;
    let mut first = source(&topic, &group, protocol).revoke_wait(Duration::from_secs(20));
    let mut taken = read(&mut first, 16).await;
    let partition =
        |received: &backstop_core::source::Received<_>| received.origin.partition().expect("Kafka");
    // One message of each partition has begun; both partitions hold others that have not.
    taken.sort_by_key(|received| (partition(received), offset(received)));
    let cut = taken.iter().position(|received| partition(received) == 1).expect("both partitions");
    let mut rest = taken.split_off(cut);
    let mut begun = [taken.remove(0), rest.remove(0)];
    assert!(begun.iter_mut().all(|received| received.settlement.begin()));

    let mut second = source(&topic, &group, protocol);
    let polling = tokio::spawn(async move {
        let batch = second.next().await.expect("no error").expect("not ended");
        (second, batch)
    });
    // In this generation the second member has nothing yet, and the first is told what to let go.
    until("the second member has joined", || state(&group) == ("Stable".to_owned(), 2)).await;
    // The revoke has arrived when a message that has not begun is refused; beginning is tried on one that is then
    // given up, so that nothing else counts as begun.
    let probe = |group: &mut Vec<_>| {
        let mut received: backstop_core::source::Received<backstop_kafka::KafkaSettlement> =
            group.pop().expect("some are left");
        let refused = !received.settlement.begin();
        if refused {
            group.push(received)
        } else {
            received.settlement.settle()
        }
        refused
    };
    let mut pause = Duration::from_millis(50);
    let moved = loop {
        assert!(taken.len() > 1 && rest.len() > 1, "no revoke came while there was something to try");
        if probe(&mut taken) {
            break 0;
        }
        if probe(&mut rest) {
            break 1;
        }
        tokio::time::sleep(pause).await;
        pause *= 2;
    };
    assert!(!polling.is_finished(), "the partition goes only when what has begun is settled");
    let [zero, one] = begun;
    let (leaving, staying) = if moved == 0 { (zero, one) } else { (one, zero) };
    let begun_at = offset(&leaving);
    leaving.settlement.settle();
    let (second, batch) = within("the second member's first batch", polling).await.expect("no panic");
    assert!(batch.iter().all(|received| partition(received) == moved));
    assert_eq!(batch.iter().map(offset).min(), Some(begun_at + 1), "what had begun is not read again");
    drop((batch, staying, taken, rest));
    within("close", second.close()).await.expect("closed");
    within("close", first.close()).await.expect("closed");
}

/// A partition whose window is full goes to another member and comes back.
async fn a_full_partition_that_comes_back_is_read(protocol: RebalanceProtocol) {
    let topic = Topic::new("full", 2).await;
    let group = unique("g");
    for key in 0..16 {
        publish_numbers(&topic.name, &format!("key-{key}"), 0..2).await;
    }
    let mut first = source(&topic, &group, protocol).window(3, usize::MAX);
    let mut taken = read(&mut first, 6).await;
    let full = tokio::time::timeout(Duration::from_secs(1), first.next()).await;
    assert!(full.is_err(), "both windows are full");

    let mut second = source(&topic, &group, protocol).window(3, usize::MAX);
    let batch = within("the second member", second.next()).await.expect("no error").expect("not ended");
    let moved = batch[0].origin.partition();
    drop(batch);
    within("close", second.close()).await.expect("closed");
    // What the first member took before still counts against the partition that has stayed.
    let came_back = |received: &backstop_core::source::Received<_>| received.origin.partition() == moved;
    let again = taken.iter().filter(|received| came_back(received)).count();
    assert_eq!(again, 3);
    loop {
        let batch = within("the partition that came back", first.next()).await;
        let batch = batch.expect("no error").expect("not ended");
        if batch.iter().any(came_back) {
            break;
        }
        taken.extend(batch);
    }
    drop(taken);
    within("close", first.close()).await.expect("closed");
}

/// F51: cooperatively.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_partition_that_comes_back_is_read_by_a_cooperative_member() {
    a_full_partition_that_comes_back_is_read(RebalanceProtocol::CooperativeSticky).await;
}

/// F51: eagerly.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_partition_that_comes_back_is_read_by_an_eager_member() {
    a_full_partition_that_comes_back_is_read(RebalanceProtocol::Eager).await;
}

/// F51: where the broker decides.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_partition_that_comes_back_is_read_by_a_kip_848_member() {
    a_full_partition_that_comes_back_is_read(RebalanceProtocol::Kip848).await;
}

/// F50: what is settled too late is not committed.
#[tokio::test(flavor = "multi_thread")]
async fn a_revoke_does_not_wait_for_ever() {
    let topic = Topic::new("bound", 1).await;
    let group = unique("g");
    publish_numbers(&topic.name, "k", 0..2).await;
    let mut first =
        source(&topic, &group, RebalanceProtocol::CooperativeSticky).revoke_wait(Duration::from_millis(200));
    let mut taken = read(&mut first, 2).await;
    assert!(taken[0].settlement.begin());
    let started = Instant::now();
    within("close", first.close()).await.expect("closed");
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    taken.remove(0).settlement.settle();
    let mut second = source(&topic, &group, RebalanceProtocol::CooperativeSticky);
    assert_eq!(read(&mut second, 2).await.iter().map(body).collect::<Vec<_>>(), ["0", "1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_that_a_topic_grows_by_are_read() {
    let topic = Topic::new("grown", 1).await;
    let mut source = source(&topic, &unique("g"), RebalanceProtocol::CooperativeSticky);
    publish_numbers(&topic.name, "k", 0..1).await;
    read(&mut source, 1).await.into_iter().for_each(|received| assert!(settle(received)));
    let grown = rdkafka::admin::NewPartitions::new(&topic.name, 4);
    let options = rdkafka::admin::AdminOptions::new().operation_timeout(Some(Duration::from_secs(30)));
    admin().create_partitions([&grown], &options).await.expect("Kafka answers");
    for key in 0..32 {
        publish_numbers(&topic.name, &format!("key-{key}"), 1..2).await;
    }
    let read = read(&mut source, 32).await;
    assert!(
        read.iter().any(|received| received.origin.partition() == Some(3)),
        "the new partitions are read"
    );
}
