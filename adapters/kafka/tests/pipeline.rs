//! Outputs and offsets in one transaction, against real brokers.

mod common;

use std::sync::mpsc;
use std::time::Duration;

use backstop_core::message::Destination;
use backstop_core::origin::Origin;
use backstop_core::pipeline::{Aftermath, Output, SettleWith as _};
use backstop_core::sink::{PublishError, Scope, Sink as _};
use backstop_core::source::{Received, Settlement as _, Source as _};
use backstop_kafka::{KafkaHandover, KafkaPipeline, KafkaSink, KafkaSource, StartFrom};
use common::*;
use rdkafka::ClientConfig;
use rdkafka::Message as _;
use rdkafka::consumer::{BaseConsumer, Consumer as _};

fn pipeline(topic: &Topic, group: &str) -> KafkaPipeline {
    let source = KafkaSource::subscribe(brokers(), group, &[topic.name.as_str()]).door(false);
    KafkaPipeline::new(source.property("session.timeout.ms", "3000"))
}

async fn take(pipeline: &mut KafkaPipeline, count: usize) -> Vec<Received<KafkaHandover>> {
    let mut taken = Vec::new();
    while taken.len() < count {
        let batch = within("messages come", pipeline.next()).await;
        taken.extend(batch.unwrap_or_else(|error| panic!("{error:?}")).expect("it has not ended"));
    }
    for received in &mut taken {
        assert!(received.settlement.begin());
    }
    taken
}

fn output(topic: &Topic, body: impl Into<Vec<u8>>) -> Output {
    let envelope = backstop_core::Envelope { body: Some(body.into().into()), ..Default::default() };
    Output { destination: Destination::new(&topic.name), envelope }
}

/// Tells what follows, and answers a refusal with that output.
struct Told {
    told: mpsc::Sender<Result<(), Scope>>,
    instead: Option<Output>,
}

impl Aftermath for Told {
    fn refused(&mut self, error: &PublishError) -> Option<Vec<Output>> {
        self.told.send(Err(error.scope())).expect("the test listens");
        self.instead.clone().map(|output| vec![output])
    }

    fn committed(self: Box<Self>) {
        self.told.send(Ok(())).expect("the test listens");
    }
}

fn told(instead: Option<Output>) -> (Box<Told>, mpsc::Receiver<Result<(), Scope>>) {
    let (told, listen) = mpsc::channel();
    (Box::new(Told { told, instead }), listen)
}

async fn next(listen: &mpsc::Receiver<Result<(), Scope>>) -> Result<(), Scope> {
    let mut heard = None;
    until("it is told", || {
        heard = listen.try_recv().ok();
        heard.is_some()
    })
    .await;
    heard.expect("just heard")
}

/// The bodies of a topic's only partition up to its end, as that isolation shows them.
fn bodies(topic: &Topic, isolation: &str) -> Vec<Vec<u8>> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers())
        .set("group.id", unique("reader"))
        .set("auto.offset.reset", "earliest")
        .set("enable.partition.eof", "true")
        .set("isolation.level", isolation)
        .create()
        .expect("a consumer");
    let mut all = rdkafka::TopicPartitionList::new();
    all.add_partition_offset(&topic.name, 0, rdkafka::Offset::Beginning).expect("an offset");
    consumer.assign(&all).expect("an assignment");
    let mut bodies = Vec::new();
    while let Some(Ok(message)) = consumer.poll(BOUND) {
        bodies.push(message.payload().unwrap_or_default().to_vec());
    }
    bodies
}

fn offset_of(received: &Received<KafkaHandover>) -> i64 {
    match received.origin {
        Origin::Kafka { offset, .. } => offset,
        _ => panic!("a Kafka origin"),
    }
}

/// One of three outputs is refused: nobody sees the transaction that it was in, its neighbours are committed without it,
/// and what stands in its place is committed with its offset.
#[tokio::test(flavor = "multi_thread")]
async fn an_aborted_transaction_is_invisible_and_only_the_guilty_is_replaced() {
    let (topic, group) = (Topic::new("in", 1).await, unique("group"));
    let (out, letters) = (Topic::new("out", 1).await, Topic::new("letters", 1).await);
    let small = Topic::with(&unique("small"), 1, &[("max.message.bytes", "1000")]).await;
    publish_numbers(&topic.name, "k", 0..3).await;
    let mut pipeline = pipeline(&topic, &group).linger(Duration::from_secs(1));
    let taken = take(&mut pipeline, 3).await;
    // Large enough that it leaves before the refusal comes, and does not shrink.
    let noise = |n: u8| {
        let mut state = u64::from(n) + 1;
        let mut byte = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        };
        (0..700_000).map(|_| byte()).collect::<Vec<u8>>()
    };
    let mut heard = Vec::new();
    for (received, n) in taken.into_iter().zip(0..) {
        let mut outputs = vec![output(&out, noise(n))];
        if n == 1 {
            outputs.push(output(&small, &noise(n)[..5_000]));
        }
        let (aftermath, listen) = told((n == 1).then(|| output(&letters, "instead")));
        received.settlement.settle_with(outputs, aftermath);
        heard.push(listen);
    }
    assert_eq!(next(&heard[0]).await, Ok(()));
    assert_eq!(next(&heard[1]).await, Err(Scope::Message));
    assert_eq!(next(&heard[1]).await, Ok(()));
    assert_eq!(next(&heard[2]).await, Ok(()));
    assert_eq!(bodies(&out, "read_committed"), [noise(0), noise(2)]);
    assert!(bodies(&out, "read_uncommitted").len() > 2, "something was written and aborted");
    assert_eq!(bodies(&letters, "read_committed"), [b"instead"]);
    assert!(bodies(&small, "read_uncommitted").is_empty());
    assert_eq!(committed(&group, &topic.name, 0), Some(3));
    within("close", pipeline.close()).await.expect("an orderly end");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_committed_before_what_is_in_front_of_it() {
    let (topic, out, group) = (Topic::new("in", 1).await, Topic::new("out", 1).await, unique("group"));
    publish_numbers(&topic.name, "k", 0..3).await;
    let mut pipeline = pipeline(&topic, &group);
    let mut taken = take(&mut pipeline, 3).await;
    let hand_over = |received: Received<KafkaHandover>| {
        let (aftermath, listen) = told(None);
        let outputs = vec![output(&out, offset_of(&received).to_string())];
        received.settlement.settle_with(outputs, aftermath);
        listen
    };
    let third = hand_over(taken.pop().expect("three"));
    let first = hand_over(taken.remove(0));
    assert_eq!(next(&first).await, Ok(()));
    assert!(third.try_recv().is_err(), "the second is still at work");
    assert_eq!(committed(&group, &topic.name, 0), Some(1));
    let second = hand_over(taken.remove(0));
    assert_eq!((next(&second).await, next(&third).await), (Ok(()), Ok(())));
    assert_eq!(bodies(&out, "read_committed"), [b"0", b"1", b"2"]);
    within("close", pipeline.close()).await.expect("an orderly end");
    assert_eq!(committed(&group, &topic.name, 0), Some(3));
}

/// Closing commits what is done, drops what is behind a gap, and waits for nobody in vain.
#[tokio::test(flavor = "multi_thread")]
async fn closing_commits_what_is_done_and_drops_what_is_behind_a_gap() {
    let (topic, out, group) = (Topic::new("in", 1).await, Topic::new("out", 1).await, unique("group"));
    publish_numbers(&topic.name, "k", 0..3).await;
    let mut first = pipeline(&topic, &group).linger(Duration::from_millis(300));
    for received in take(&mut first, 3).await {
        let (number, (aftermath, _listen)) = (offset_of(&received), told(None));
        match number {
            1 => drop(received),
            0 => received.settlement.settle_with(vec![output(&out, "0")], Box::new(Quiet)),
            _ => received.settlement.settle_with(vec![output(&out, "2")], Box::new(Quiet)),
        }
        drop(aftermath);
    }
    let began = std::time::Instant::now();
    within("close", first.close()).await.expect("an orderly end");
    assert!(began.elapsed() < Duration::from_secs(8), "it waited for what cannot be committed");
    assert_eq!(bodies(&out, "read_committed"), [b"0"]);
    assert_eq!(committed(&group, &topic.name, 0), Some(1));
    let mut second = pipeline(&topic, &group);
    let again: Vec<_> = take(&mut second, 2).await.iter().map(offset_of).collect();
    assert_eq!(again, [1, 2]);
}

struct Quiet;

impl Aftermath for Quiet {
    fn refused(&mut self, _: &PublishError) -> Option<Vec<Output>> {
        None
    }

    fn committed(self: Box<Self>) {}
}

/// Each fences the other, until one of them says why it goes.
#[tokio::test(flavor = "multi_thread")]
async fn two_that_share_a_transactional_id_do_not_fight_for_ever() {
    let (topic, id) = (Topic::new("in", 1).await, unique("id"));
    let sink = KafkaSink::new(settings());
    let mut rivals: Vec<_> =
        (0..2).map(|_| pipeline(&topic, &unique("group")).transactional_id(&id)).collect();
    let error = within("one goes", async {
        loop {
            let sent = sink.publish(&Destination::new(&topic.name), envelope("k", "1")).await;
            sent.expect("published");
            for rival in &mut rivals {
                match rival.next().await {
                    Ok(batch) => batch.expect("it has not ended").into_iter().for_each(|mut received| {
                        // One that is about to go takes nothing back up.
                        if received.settlement.begin() {
                            received.settlement.settle();
                        }
                    }),
                    Err(error) => return error,
                }
            }
        }
    })
    .await;
    assert!(error.to_string().contains(&id) && error.hint().is_some(), "{error:?}");
}

/// A group that begins at the end does so once, although nothing came.
#[tokio::test(flavor = "multi_thread")]
async fn the_end_at_which_reading_began_is_committed() {
    let (topic, group) = (Topic::new("in", 1).await, unique("group"));
    publish_numbers(&topic.name, "k", 0..2).await;
    let source = KafkaSource::subscribe(brokers(), &group, &[topic.name.as_str()]).door(false);
    let mut pipeline = KafkaPipeline::new(source.start_from(StartFrom::Latest));
    // Nothing comes; asking makes it begin.
    let reading = tokio::spawn(async move {
        let _ = pipeline.next().await;
    });
    until("the end is committed", || committed(&group, &topic.name, 0) == Some(2)).await;
    reading.abort();
}
