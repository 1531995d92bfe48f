//! Reading from a real Kafka: the wire, the window, commits and the door.

use std::time::Duration;

use crate::common::*;
use backstop_core::dead_letter::{DeadLetter, DeadReason, kafka_door, kafka_letters, redrive_envelope};
use backstop_core::message::{Destination, Envelope, Headers};
use backstop_core::origin::{Origin, Via};
use backstop_core::sink::Sink;
use backstop_core::source::{Received, Settlement, Source};
use backstop_core::{ErrorClass, ErrorReport, FaultKind, Identity, MessageKey};
use backstop_kafka::{KafkaSettings, KafkaSink, KafkaSource, OutOfRange, RebalanceProtocol, StartFrom};
use bytes::Bytes;

fn source(topic: &Topic, group: &str) -> KafkaSource {
    KafkaSource::subscribe(brokers(), group, &[topic.name.as_str()]).door(false)
}

async fn nothing_comes(source: &mut KafkaSource) {
    let next = tokio::time::timeout(Duration::from_secs(2), source.next()).await;
    assert!(next.is_err(), "{:?}", next.map(|next| next.map(|batch| batch.map(|batch| batch.len()))));
}

/// F89: bytes and headers as they came.
#[tokio::test(flavor = "multi_thread")]
async fn keys_headers_and_bodies_survive_to_the_letter() {
    let topic = Topic::new("wire", 1).await;
    let mut headers = Headers::default();
    headers.append("ce_id", "7");
    headers.append("ce_source", "/orders");
    headers.append("twice", "a");
    headers.append("twice", Bytes::from_static(&[0xff, 0, 0xfe]));
    headers.append("empty", "");
    headers.append_null("null");
    let some = |text: &'static str| Some(Bytes::from_static(text.as_bytes()));
    let sent = [
        Envelope { key: some("k"), headers, body: some("body") },
        Envelope { key: None, headers: Headers::default(), body: some("no key") },
        Envelope { key: some(""), headers: Headers::default(), body: some("") },
        Envelope { key: some("tombstone"), headers: Headers::default(), body: None },
        Envelope {
            key: Some(Bytes::from_static(&[0, 255])),
            headers: Headers::default(),
            body: Some(vec![0xff; 900_000].into()),
        },
    ];
    let sink = KafkaSink::new(settings());
    for envelope in &sent {
        sink.publish(&Destination::new(&topic.name), envelope.clone()).await.expect("published");
    }
    let mut source = source(&topic, &unique("g"));
    let read = read(&mut source, sent.len()).await;
    for (sent, read) in sent.iter().zip(&read) {
        assert_eq!(sent.key, read.message.key);
        assert_eq!(sent.headers, read.message.headers);
        assert_eq!(sent.body, read.message.body);
        assert_eq!(read.via, Via::Live);
    }
    assert_eq!(read[0].identity, Identity::Declared(MessageKey::new("/orders", b"7")));
    assert!(matches!(read[1].identity, Identity::Coordinates(_)));
    assert_eq!(read.iter().map(offset).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
    assert!(
        matches!(&read[0].origin, Origin::Kafka { topic: t, timestamp: Some(_), .. } if *t == topic.name)
    );
    within("close", source.close()).await.expect("closed");
}

/// F48, F52: the lowest message that is not settled bounds the commit.
#[tokio::test(flavor = "multi_thread")]
async fn a_restart_resumes_at_the_watermark_whatever_was_settled_above_it() {
    let topic = Topic::new("watermark", 1).await;
    let group = unique("g");
    publish_numbers(&topic.name, "k", 0..10).await;
    let mut first = source(&topic, &group);
    let mut taken = read(&mut first, 10).await;
    for index in [9, 7, 4, 2, 1, 0] {
        assert!(settle(taken.remove(index)));
    }
    // 3 is dropped unsettled, as are 5, 6 and 8.
    drop(taken);
    within("close", first.close()).await.expect("closed");
    assert_eq!(committed(&group, &topic.name, 0), Some(3));

    let mut second = source(&topic, &group);
    let again = read(&mut second, 7).await;
    assert_eq!(again.iter().map(body).collect::<Vec<_>>(), ["3", "4", "5", "6", "7", "8", "9"]);
    again.into_iter().for_each(|received| assert!(settle(received)));
    within("close", second.close()).await.expect("closed");
    assert_eq!(committed(&group, &topic.name, 0), Some(10));
}

/// F52: the next offset is committed.
#[tokio::test(flavor = "multi_thread")]
async fn settled_offsets_are_committed_on_the_timer() {
    let topic = Topic::new("timer", 1).await;
    let group = unique("g");
    publish_numbers(&topic.name, "k", 0..5).await;
    let mut source = source(&topic, &group).commit_interval(Duration::from_millis(100));
    read(&mut source, 5).await.into_iter().for_each(|received| assert!(settle(received)));
    until("the commit", || committed(&group, &topic.name, 0) == Some(5)).await;
}

/// F63: in messages.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_window_keeps_its_partition_waiting_without_loss() {
    let topic = Topic::new("window", 1).await;
    publish_numbers(&topic.name, "k", 0..50).await;
    let mut source = source(&topic, &unique("g")).window(20, usize::MAX);
    let mut taken = read(&mut source, 20).await;
    nothing_comes(&mut source).await;
    taken.drain(..2).for_each(|received| assert!(settle(received)));
    let mut seen: Vec<_> = (0..20).map(|number: usize| number.to_string()).collect();
    let more = read(&mut source, 2).await;
    nothing_comes(&mut source).await;
    seen.extend(more.iter().map(body));
    drop((taken, more));
    while seen.len() < 50 {
        let batch = within("the rest", source.next()).await.expect("no error").expect("not ended");
        seen.extend(batch.iter().map(body));
        batch.into_iter().for_each(|received| assert!(settle(received)));
    }
    assert_eq!(
        seen,
        (0..50).map(|number: usize| number.to_string()).collect::<Vec<_>>(),
        "in order, none twice"
    );
    within("close", source.close()).await.expect("closed");
}

/// F63: a few partitions that stay full, such as behind an output topic that is missing, leave the others what the total has
/// room for.
#[tokio::test(flavor = "multi_thread")]
async fn partitions_that_stay_full_do_not_stop_the_others() {
    let topic = Topic::new("stuck", 3).await;
    let keys = ["a", "b", "c", "d", "e", "f", "g", "h"];
    for key in keys {
        publish_numbers(&topic.name, key, 0..40).await;
    }
    let mut source = source(&topic, &unique("g")).window(10, usize::MAX).total_window(36, usize::MAX);
    let (mut healthy, mut stuck) = (Vec::new(), Vec::new());
    while healthy.len() + stuck.len() < 30 {
        let batch = within("three full windows", source.next()).await.expect("no error").expect("not ended");
        for received in batch {
            let is_healthy = received.origin.partition() == Some(2);
            if is_healthy { &mut healthy } else { &mut stuck }.push(received);
        }
    }
    assert_eq!(healthy.len(), 10, "each at its own bound");
    nothing_comes(&mut source).await;
    healthy.into_iter().for_each(|received| assert!(settle(received)));
    let more = within("what there is room for", source.next()).await.expect("no error").expect("not ended");
    assert!(more.iter().all(|received| received.origin.partition() == Some(2)));
    drop((more, stuck));
    within("close", source.close()).await.expect("closed");
}

/// F63: where they leave less than is worthwhile, too.
#[tokio::test(flavor = "multi_thread")]
async fn partitions_that_stay_full_leave_the_others_the_last_place() {
    let topic = Topic::new("last", 3).await;
    for key in ["a", "b", "c", "d", "e", "f", "g", "h"] {
        publish_numbers(&topic.name, key, 0..40).await;
    }
    let mut source = source(&topic, &unique("g")).window(10, usize::MAX).total_window(21, usize::MAX);
    let (mut healthy_since, mut stuck) = (0, Vec::new());
    while healthy_since < 10 {
        let batch = within("one place", source.next()).await.expect("no error").expect("not ended");
        // The polling thread is to see that there is too much under way.
        tokio::time::sleep(Duration::from_millis(20)).await;
        for received in batch {
            if received.origin.partition() == Some(2) {
                healthy_since += usize::from(stuck.len() == 20);
                assert!(settle(received));
            } else {
                stuck.push(received);
            }
        }
    }
    assert_eq!(stuck.len(), 20, "each at its own bound");
    drop(stuck);
    within("close", source.close()).await.expect("closed");
}

/// F63: within a partition, a slow key that fills nearly all of its window.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_key_leaves_the_others_of_its_partition_the_last_place() {
    let topic = Topic::new("slow", 1).await;
    publish_numbers(&topic.name, "slow", 0..19).await;
    publish_numbers(&topic.name, "fast", 0..5).await;
    let mut source = source(&topic, &unique("g")).window(20, usize::MAX);
    let mut slow = read(&mut source, 20).await;
    let mut fast = vec![slow.pop().expect("the first of the fast ones")];
    for _ in 0..4 {
        // The polling thread is to see that the window is full.
        tokio::time::sleep(Duration::from_millis(20)).await;
        fast.drain(..).for_each(|received| assert!(settle(received)));
        fast = within("one place", source.next()).await.expect("no error").expect("not ended");
        assert_eq!(fast.len(), 1);
    }
    drop((slow, fast));
    within("close", source.close()).await.expect("closed");
}

/// F63: in bytes.
#[tokio::test(flavor = "multi_thread")]
async fn bytes_and_the_total_bound_the_window_too() {
    let topic = Topic::new("bytes", 4).await;
    for key in 0..40 {
        publish_numbers(&topic.name, &format!("key-{key}"), 0..1).await;
    }
    let mut bytes = source(&topic, &unique("g")).total_window(usize::MAX, 30);
    let mut taken = 0;
    while let Ok(batch) = tokio::time::timeout(Duration::from_secs(4), bytes.next()).await {
        let batch = batch.expect("no error").expect("not ended");
        taken += batch.len();
        std::mem::forget(batch);
    }
    assert!((4..=6).contains(&taken), "6 or 7 bytes each fill 30: {taken}");
    let mut total = source(&topic, &unique("g")).total_window(12, usize::MAX);
    let all = read(&mut total, 12).await;
    nothing_comes(&mut total).await;
    drop(all);
    drop(read(&mut total, 12).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_door_is_made_and_read_from_its_beginning_with_the_original_origin() {
    let topic = Topic::new("door", 3).await;
    let group = unique("g");
    let door = kafka_door(&topic.name, &group);
    let origin = Origin::Kafka { topic: topic.name.clone(), partition: 2, offset: 41, timestamp: Some(99) };
    let letter = DeadLetter {
        envelope: envelope("k", "again"),
        origin: origin.clone(),
        message_key: Some(MessageKey::new("/orders", b"7")),
        generation: 0,
        consumer: group.clone(),
        group: group.clone(),
        reason: DeadReason::Exhausted,
        class: ErrorClass::Transient,
        report: ErrorReport::new(&group, "E", &std::io::Error::other("no"), None, str::to_owned),
        attempts: 6,
        first_failed_at: "2026-11-20T00:00:00Z".parse().expect("a time"),
        dead_at: "2026-11-20T00:00:01Z".parse().expect("a time"),
        host: String::new(),
        consumer_version: String::new(),
    };
    // A first member makes the door and leaves; what comes through it meanwhile must not be lost although the
    // source begins at the end of its topic.
    let topic = topic.and(door.clone());
    let subscribe =
        || KafkaSource::subscribe(brokers(), &group, &[topic.name.as_str()]).start_from(StartFrom::Latest);
    let mut first = subscribe();
    let poll = tokio::time::timeout(Duration::from_millis(1), first.next()).await;
    assert!(poll.is_err());
    until("the door", || partitions(&door) == 1).await;
    within("close", first.close()).await.expect("closed");

    let sink = KafkaSink::new(settings());
    sink.publish(&Destination::new(&door), redrive_envelope(&letter.to_envelope())).await.expect("published");
    sink.publish(&Destination::new(&door), envelope("k", "by a stranger")).await.expect("published");
    let mut second = subscribe();
    let read = read(&mut second, 2).await;
    let redriven = read.iter().find(|received| body(received) == "again").expect("it came");
    assert_eq!((redriven.via, &redriven.origin), (Via::Door, &origin));
    assert_eq!(redriven.identity.key().map(MessageKey::as_str), Some("/orders|7"));
    let other = read.iter().find(|received| body(received) != "again").expect("it came");
    assert_eq!((other.via, other.origin.place()), (Via::Door, door.as_str()));
    within("close", second.close()).await.expect("closed");
}

#[tokio::test(flavor = "multi_thread")]
async fn latest_skips_what_is_there_and_remembers_where_it_began() {
    let topic = Topic::new("latest", 1).await;
    let group = unique("g");
    publish_numbers(&topic.name, "k", 0..3).await;
    let latest =
        || source(&topic, &group).start_from(StartFrom::Latest).commit_interval(Duration::from_millis(50));
    let mut first = latest();
    nothing_comes(&mut first).await;
    within("the commit", async {
        while committed(&group, &topic.name, 0) != Some(3) {
            let _ = tokio::time::timeout(Duration::from_millis(50), first.next()).await;
        }
    })
    .await;
    within("close", first.close()).await.expect("closed");
    publish_numbers(&topic.name, "k", 3..5).await;
    let mut second = latest();
    assert_eq!(read(&mut second, 2).await.iter().map(body).collect::<Vec<_>>(), ["3", "4"]);
}

/// F60: by policy.
#[tokio::test(flavor = "multi_thread")]
async fn an_offset_that_is_gone_stops_the_source_unless_told_otherwise() {
    let topic = Topic::new("range", 1).await;
    let group = unique("g");
    publish_numbers(&topic.name, "k", 0..4).await;
    let mut first = source(&topic, &group);
    let mut taken = read(&mut first, 4).await;
    assert!(settle(taken.remove(0)));
    drop(taken);
    within("close", first.close()).await.expect("closed");
    // The group stands at 1; everything below 3 is removed.
    let mut cut = rdkafka::TopicPartitionList::new();
    cut.add_partition_offset(&topic.name, 0, rdkafka::Offset::Offset(3)).expect("an offset");
    admin().delete_records(&cut, &rdkafka::admin::AdminOptions::new()).await.expect("removed");

    let mut stopping = source(&topic, &group);
    let error = within("the error", stopping.next()).await.expect_err("messages are gone");
    assert!(error.hint().is_some_and(|hint| hint.contains("out_of_range")), "{error:?}");
    within("close", stopping.close()).await.expect("closed");

    let mut going_on = source(&topic, &group).out_of_range(OutOfRange::Earliest);
    assert_eq!(read(&mut going_on, 1).await.iter().map(body).collect::<Vec<_>>(), ["3"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_topic_ends_the_source_with_a_hint() {
    let name = unique("missing");
    for protocol in [RebalanceProtocol::CooperativeSticky, RebalanceProtocol::Kip848] {
        let mut source =
            KafkaSource::subscribe(brokers(), unique("g"), &[&name]).rebalance_protocol(protocol);
        let error = within("the error", source.next()).await.expect_err("there is no such topic");
        assert_eq!(error.kind(), FaultKind::Missing);
        assert!(error.to_string().contains(&name) && error.hint().is_some(), "{error:?}");
        assert!(matches!(source.next().await, Ok(None)), "an error is final");
        within("close", source.close()).await.expect("closed");
    }
    assert_eq!(partitions(&name), 0, "looking for a topic must not make it");
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_credentials_end_the_source_and_are_not_repeated() {
    let settings = KafkaSettings::new(variable("BACKSTOP_TEST_KAFKA_ADMIN"))
        .property("security.protocol", "SASL_PLAINTEXT")
        .property("sasl.mechanism", "PLAIN")
        .property("sasl.username", "admin")
        .property("sasl.password", "hunter2-not-the-password");
    let mut source = KafkaSource::subscribe("", unique("g"), &["any"]).settings(settings);
    let error = within("the error", source.next()).await.expect_err("the password is wrong");
    assert_eq!(error.kind(), FaultKind::Denied, "{error:?}");
    let told = format!("{error} {error:?} {:?} {source:?}", error.hint());
    assert!(!told.contains("hunter2"), "{told}");
    within("close", source.close()).await.expect("closed");
}

#[tokio::test(flavor = "multi_thread")]
async fn brokers_that_are_down_are_waited_for_and_closing_meanwhile_is_quick() {
    let mut source = KafkaSource::subscribe("127.0.0.1:1", unique("g"), &["any"]);
    nothing_comes(&mut source).await;
    within("close", source.close()).await.expect("closed");
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_are_read_by_pattern() {
    let prefix = unique("pattern");
    let one = Topic::with(&format!("{prefix}.a.dlq"), 1, &[]).await;
    let two = Topic::with(&format!("{prefix}.b.dlq"), 1, &[]).await;
    let other = Topic::with(&format!("{prefix}.c"), 1, &[]).await;
    for topic in [&one, &two, &other] {
        publish_numbers(&topic.name, "k", 0..1).await;
    }
    let pattern = format!("^{}\\..*\\.dlq$", prefix.replace('.', "\\."));
    let mut source = KafkaSource::subscribe(brokers(), unique("g"), &[&pattern]).own_topics(true);
    let read = read(&mut source, 2).await;
    let mut places: Vec<_> = read.iter().map(|received| received.origin.place().to_owned()).collect();
    places.sort_unstable();
    assert_eq!(places, [one.name.as_str(), two.name.as_str()]);
}

/// What a source reads of an `orders` topic, of its letters and of its door, when a pattern matches all three.
async fn matched_by_pattern(change: impl Fn(KafkaSource) -> KafkaSource, wanted: usize) -> Vec<String> {
    let (name, group) = (unique("own"), unique("g"));
    let topics = [
        Topic::with(&name, 1, &[]).await,
        Topic::with(&kafka_letters(&name, &group), 1, &[]).await,
        Topic::with(&kafka_door(&name, "another-group"), 1, &[]).await,
    ];
    let publish_all = async |numbers: std::ops::Range<usize>| {
        for topic in &topics {
            publish_numbers(&topic.name, "k", numbers.clone()).await;
        }
    };
    publish_all(0..2).await;
    let pattern = format!("^{name}.*");
    let mut source = change(KafkaSource::subscribe(brokers(), &group, &[&pattern]));
    let mut places: Vec<_> = read(&mut source, wanted * 2).await;
    // What is written later does not come either.
    publish_all(2..4).await;
    places.extend(read(&mut source, wanted * 2).await);
    nothing_comes(&mut source).await;
    let place =
        |received: &Received<_>| received.origin.place().replace(&name, "orders").replace(&group, "g");
    let places = counted(places.iter().map(place)).into_keys().collect();
    within("close", source.close()).await.expect("closed");
    places
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pattern_does_not_match_letters_and_doors() {
    for protocol in
        [RebalanceProtocol::CooperativeSticky, RebalanceProtocol::Eager, RebalanceProtocol::Kip848]
    {
        let places = matched_by_pattern(|source| source.rebalance_protocol(protocol), 1).await;
        assert_eq!(places, ["orders"], "{protocol:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pattern_matches_letters_and_doors_for_those_who_collect_them() {
    let all = ["orders", "orders.another-group.redrive", "orders.g.dlq"];
    assert_eq!(matched_by_pattern(|source| source.own_topics(true), 3).await, all);
    assert_eq!(matched_by_pattern(|source| source.door(false), 3).await, all, "as the relay's collector");
    let none = matched_by_pattern(|source| source.door(false).own_topics(false), 1).await;
    assert_eq!(none, ["orders"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn letters_and_doors_that_are_named_are_read_beside_a_pattern() {
    let (name, group) = (unique("named"), unique("g"));
    let letters = Topic::with(&kafka_letters(&name, "other"), 1, &[])
        .await
        .and(kafka_door(&kafka_letters(&name, "other"), &group));
    let ignored = Topic::with(&kafka_letters(&name, "third"), 1, &[]).await;
    for topic in [&letters, &ignored] {
        publish_numbers(&topic.name, "k", 0..1).await;
    }
    let pattern = format!("^{name}.*");
    let mut source = KafkaSource::subscribe(brokers(), &group, &[&letters.name, &pattern]);
    let read = read(&mut source, 1).await;
    assert_eq!(read[0].origin.place(), letters.name, "and nothing of {}", ignored.name);
    nothing_comes(&mut source).await;
    within("close", source.close()).await.expect("closed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_is_dropped_lets_its_partitions_go() {
    let topic = Topic::new("dropped", 1).await;
    let group = unique("g");
    publish_numbers(&topic.name, "k", 0..2).await;
    let mut first = source(&topic, &group);
    let mut taken = read(&mut first, 2).await;
    assert!(taken[0].settlement.begin());
    drop(first);
    assert!(settle(taken.remove(0)), "what has begun may end");
    assert!(!taken[0].settlement.begin(), "a dropped source refuses what has not begun");
    let mut second = source(&topic, &group);
    assert_eq!(read(&mut second, 1).await.iter().map(body).collect::<Vec<_>>(), ["1"]);
}
