//! Writing to a real Kafka: the sink, the relay's pipeline, and dead letters.

mod common;

use std::collections::{BTreeSet, HashMap};
use std::future::Future;
use std::net::SocketAddr;
use std::pin::pin;
use std::process::Command;
use std::time::Duration;

use backstop_core::dead_letter::{DeadLetter, DeadLetters, DeadReason, kafka_letters};
use backstop_core::message::{Destination, Envelope, Headers};
use backstop_core::origin::Origin;
use backstop_core::sink::{Confirmation, PublishError, Publisher, Refused, Scope, Sink};
use backstop_core::source::{Source, SourceInfo};
use backstop_core::{ErrorClass, ErrorReport, MessageKey, names};
use backstop_kafka::{KafkaDeadLetters, KafkaPublisher, KafkaSettings, KafkaSink, KafkaSource};
use backstop_testkit::fault::Proxy;
use common::*;

/// Takes confirmations until `wanted` are there.
async fn take(publisher: &mut KafkaPublisher, wanted: usize) -> Vec<Confirmation> {
    let mut taken = Vec::new();
    while taken.len() < wanted {
        within(&format!("{} of {wanted} confirmations", taken.len()), publisher.confirmations(&mut taken))
            .await;
    }
    taken
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_thousand_messages_are_confirmed_and_in_order_per_key() {
    const COUNT: usize = 100_000;
    let topic = Topic::new("pipeline", 4).await;
    let destination = Destination::new(&topic.name);
    let mut publisher = KafkaPublisher::new(settings());
    let mut taken = Vec::new();
    for number in 0..COUNT {
        let mut message = envelope(&format!("key-{}", number % 50), number.to_string());
        loop {
            match publisher.submit(number as u64, &destination, message) {
                Ok(()) => break,
                Err(Refused::Full(back)) => {
                    message = back;
                    within("room", publisher.confirmations(&mut taken)).await;
                }
                Err(Refused::Failed(error)) => panic!("{error:?}"),
            }
        }
    }
    let left = COUNT - taken.len();
    taken.extend(take(&mut publisher, left).await);
    let mut tickets = BTreeSet::new();
    for Confirmation { ticket, result } in taken {
        result.unwrap_or_else(|error| panic!("{error:?}"));
        assert!(tickets.insert(ticket), "{ticket} is confirmed twice");
    }
    assert_eq!(tickets.len(), COUNT);

    let group = unique("g");
    let mut source = KafkaSource::subscribe(brokers(), &group, &[topic.name.as_str()]).door(false);
    let mut last: HashMap<Vec<u8>, usize> = HashMap::new();
    let mut read = 0;
    while read < COUNT {
        let batch = within("messages", source.next()).await.expect("no error").expect("not ended");
        for received in batch {
            let number: usize = body(&received).parse().expect("a number");
            let key = received.message.key.as_ref().expect("a key").to_vec();
            if let Some(before) = last.insert(key, number) {
                assert!(before < number, "{before} before {number}");
            }
            read += 1;
            assert!(settle(received));
        }
    }
    within("close", source.close()).await.expect("closed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_pipeline_gives_the_envelope_back() {
    let topic = Topic::new("full", 1).await;
    let destination = Destination::new(&topic.name);
    let mut publisher = KafkaPublisher::new(settings()).max_under_way(2);
    assert_eq!(publisher.window(), 2);
    for ticket in [7, 8] {
        publisher.submit(ticket, &destination, envelope("k", "x")).expect("room for two");
    }
    let third = envelope("k", "third");
    match publisher.submit(9, &destination, third.clone()) {
        Err(Refused::Full(back)) => assert_eq!(back, third),
        other => panic!("{other:?}"),
    }
    let mut tickets: Vec<_> =
        take(&mut publisher, 2).await.iter().map(|confirmation| confirmation.ticket).collect();
    tickets.sort_unstable();
    assert_eq!(tickets, [7, 8]);
    publisher.submit(9, &destination, third).expect("room again");
    take(&mut publisher, 1).await;
    let idle =
        tokio::time::timeout(Duration::from_millis(200), publisher.confirmations(&mut Vec::new())).await;
    assert!(idle.is_err(), "nothing is under way");
}

fn failed(refused: Result<(), Refused>) -> PublishError {
    match refused {
        Err(Refused::Failed(error)) => error,
        other => panic!("{other:?}"),
    }
}

/// F44: too large is the message's fault, not the destination's.
#[tokio::test(flavor = "multi_thread")]
async fn refusals_reach_as_far_as_they_should() {
    let topic = Topic::new("scopes", 1).await;
    let mut publisher = KafkaPublisher::new(settings());
    let large = envelope("k", "x".repeat(1_000_000));
    let error = failed(publisher.submit(1, &Destination::new(&topic.name), large.clone()));
    assert_eq!(error.scope(), Scope::Message);
    assert!(error.error().hint().is_some());
    for illegal in ["__consumer_offsets", "a b", ""] {
        let error = failed(publisher.submit(1, &Destination::new(illegal), envelope("k", "x")));
        assert_eq!(error.scope(), Scope::Destination, "{illegal}");
    }
    let sink = KafkaSink::new(settings());
    let error = sink.publish(&Destination::new(&topic.name), large.clone()).await.expect_err("too large");
    assert_eq!(error.scope(), Scope::Message);
    // The brokers' own refusal, when the limit here is set too high.
    let wide = KafkaSink::new(settings()).max_message_bytes(4_000_000).linger(Duration::from_millis(1));
    let random: Vec<u8> =
        (0..500_000).flat_map(|_| *uuid::Uuid::new_v4().as_bytes()).take(2_000_000).collect();
    let huge = Envelope { body: Some(random.into()), ..Envelope::default() };
    let error = wide.publish(&Destination::new(&topic.name), huge).await.expect_err("too large");
    assert_eq!(error.scope(), Scope::Message, "{error:?}");

    let missing = unique("nowhere");
    let asked = [Destination::new(&topic.name), Destination::new(&missing), Destination::new("__internal")];
    let errors = publisher.probe(&asked).await;
    assert_eq!(
        errors.iter().map(PublishError::scope).collect::<Vec<_>>(),
        [Scope::Destination; 2],
        "{errors:?}"
    );
    assert!(errors[0].to_string().contains(&missing));
    assert_eq!(partitions(&missing), 0, "asking must not make a topic");
    assert!(publisher.probe(&[]).await.is_empty());
}

/// F12: of many, one topic is refused.
#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_may_not_be_written_to_pauses_its_destination_only() {
    let topic = Topic::new("denied", 1).await;
    acl("deny-write", &topic.name);
    let sink = KafkaSink::new(settings());
    let mut publisher = KafkaPublisher::new(settings());
    let denied = within("the refusal", async {
        loop {
            // Brokers take a moment to hear of a new rule.
            if let Err(error) = sink.publish(&Destination::new(&topic.name), envelope("k", "x")).await {
                break error;
            }
        }
    })
    .await;
    publisher.submit(1, &Destination::new(&topic.name), envelope("k", "x")).expect("queued");
    let confirmation = take(&mut publisher, 1).await.remove(0);
    acl("allow-write", &topic.name);
    for error in [denied, confirmation.result.expect_err("denied")] {
        assert_eq!(error.scope(), Scope::Destination, "{error:?}");
        assert!(error.to_string().contains(&topic.name) && error.error().hint().is_some());
    }
}

fn acl(what: &str, topic: &str) {
    let status = Command::new(variable("BACKSTOP_TEST_SERVERS")).args(["kafka-acl", what, topic]).status();
    assert!(status.expect("the script runs").success());
}

/// F39: a report that does not come in time.
#[tokio::test(flavor = "multi_thread")]
async fn brokers_that_are_down_make_the_outcome_unknown_within_the_limit() {
    let sink = KafkaSink::new(KafkaSettings::new("127.0.0.1:1")).publish_timeout(Duration::from_millis(300));
    let error =
        sink.publish(&Destination::new("any"), envelope("k", "x")).await.expect_err("nobody is there");
    assert_eq!(error.scope(), Scope::Broker);
    assert!(error.to_string().contains("unknown"), "{error}");
    let publisher = KafkaPublisher::new(KafkaSettings::new("127.0.0.1:1"));
    let errors = within("the probe", publisher.probe(&[Destination::new("any")])).await;
    assert_eq!(errors.iter().map(PublishError::scope).collect::<Vec<_>>(), [Scope::Broker]);
}

/// Before the brokers, which have confirmed one message of that topic through it.
async fn behind_proxy(topic: &Topic) -> (Proxy, KafkaSink) {
    let broker: SocketAddr = brokers().parse().expect("an address");
    let proxy = Proxy::before_kafka(broker).await.expect("a free port");
    let sink = KafkaSink::new(KafkaSettings::new(proxy.address().to_string()));
    let destination = Destination::new(&topic.name);
    let first = sink.publish(&destination, envelope("k", "first"));
    within("the first confirmation", first).await.expect("published");
    (proxy, sink)
}

/// Gives a publish up after that time, which is not waited for.
async fn give_up_after(limit: Duration, publish: impl Future<Output = Result<(), PublishError>>) {
    tokio::time::pause();
    let dropped = tokio::time::timeout(limit, publish).await;
    tokio::time::resume();
    // It may have been taken back with one before.
    assert!(!matches!(dropped, Ok(Ok(()))), "confirmed in an outage");
}

/// Who publishes has less patience than the sink: copies of 5 s at most are left.
#[tokio::test]
async fn publishes_that_are_dropped_in_an_outage_leave_no_pile_of_copies() {
    for (limit, left) in [(Duration::from_secs(10), 0), (Duration::from_secs(2), 2)] {
        let topic = Topic::new("dropped", 1).await;
        let destination = Destination::new(&topic.name);
        let (proxy, sink) = behind_proxy(&topic).await;
        proxy.cut();
        for _ in 0..20 {
            give_up_after(limit, sink.publish(&destination, envelope("k", "copy"))).await;
        }
        proxy.resume();
        within("the last confirmation", async {
            // So may this one.
            while sink.publish(&destination, envelope("k", "last")).await.is_err() {}
        })
        .await;
        let bodies = bodies(&topic).await;
        let copies = bodies.iter().filter(|body| *body == "copy").count();
        assert!(copies <= left, "{limit:?}: {bodies:?}");
    }
}

/// What is in the topic, up to the last message.
async fn bodies(topic: &Topic) -> Vec<String> {
    let mut source = KafkaSource::subscribe(brokers(), unique("g"), &[topic.name.as_str()]).door(false);
    let mut bodies = Vec::new();
    while bodies.last().is_none_or(|last| last != "last") {
        let batch = within("messages", source.next()).await.expect("no error").expect("not ended");
        bodies.extend(batch.iter().map(body));
    }
    bodies
}

#[tokio::test]
async fn a_publish_that_is_dropped_at_once_does_its_neighbours_no_harm() {
    let topic = Topic::new("neighbours", 1).await;
    let destination = Destination::new(&topic.name);
    let (proxy, sink) = behind_proxy(&topic).await;
    proxy.cut();
    let mut neighbour = pin!(sink.publish(&destination, envelope("k", "neighbour")));
    give_up_after(Duration::ZERO, neighbour.as_mut()).await;
    give_up_after(Duration::from_secs(1), sink.publish(&destination, envelope("k", "dropped"))).await;
    proxy.resume();
    within("the neighbour's confirmation", neighbour).await.expect("published");
}

/// F47: whatever fails, no password is shown.
#[tokio::test(flavor = "multi_thread")]
async fn s28_secrets_are_in_no_debug_and_no_error() {
    let settings = KafkaSettings::new("127.0.0.1:1")
        .property("sasl.password", "hunter2")
        .property("ssl.key.pem", "hunter2")
        .property("security.protocol", "SASL_SSL");
    let sink = KafkaSink::new(settings.clone()).publish_timeout(Duration::from_millis(100));
    let mut publisher = KafkaPublisher::new(settings.clone());
    let letters = KafkaDeadLetters::new(settings.clone());
    let error =
        sink.publish(&Destination::new("any"), envelope("k", "x")).await.expect_err("nobody is there");
    let refused = publisher.submit(1, &Destination::new("any"), envelope("k", "x"));
    let told = format!("{sink:?} {publisher:?} {letters:?} {settings:?} {error} {error:?} {refused:?}");
    assert!(!told.contains("hunter2"), "{told}");
}

fn letter(topic: &str, group: &str, envelope: Envelope) -> DeadLetter {
    DeadLetter {
        envelope,
        origin: Origin::Kafka { topic: topic.to_owned(), partition: 0, offset: 17, timestamp: Some(99) },
        message_key: Some(MessageKey::new("/orders", b"7")),
        generation: 0,
        consumer: group.to_owned(),
        group: group.to_owned(),
        reason: DeadReason::Permanent,
        class: ErrorClass::Permanent,
        report: ErrorReport::new(group, "E", &std::io::Error::other(incompressible()), None, str::to_owned),
        attempts: 1,
        first_failed_at: "2026-11-20T00:00:00Z".parse().expect("a time"),
        dead_at: "2026-11-20T00:00:01Z".parse().expect("a time"),
        host: "host".to_owned(),
        consumer_version: String::new(),
    }
}

fn incompressible() -> String {
    (0..60).map(|_| uuid::Uuid::new_v4().simple().to_string()).collect()
}

fn info(topic: &Topic, group: &str) -> SourceInfo {
    SourceInfo { system: "kafka", group: group.to_owned(), places: vec![topic.name.clone()] }
}

/// F58: made with the room that letters need.
#[tokio::test(flavor = "multi_thread")]
async fn dead_letter_topics_are_made_with_room_and_letters_arrive_whole() {
    let group = unique("g");
    let name = unique("letters");
    let dlq = kafka_letters(&name, &group);
    let config = [("max.message.bytes", "2000000"), ("retention.ms", "7200000")];
    let topic = Topic::with(&name, 3, &config).await.and(dlq.clone());
    let letters = KafkaDeadLetters::new(settings());
    letters.prepare(&info(&topic, &group)).await.expect("prepared");
    letters.prepare(&info(&topic, &group)).await.expect("prepared twice");
    assert_eq!(partitions(&dlq), 3);
    let asked = [rdkafka::admin::ResourceSpecifier::Topic(&dlq)];
    let answer =
        admin().describe_configs(&asked, &rdkafka::admin::AdminOptions::new()).await.expect("Kafka answers");
    let made = answer.into_iter().next().expect("one").expect("described");
    let value = |name: &str| made.get(name).and_then(|entry| entry.value.clone());
    assert_eq!(value("max.message.bytes").as_deref(), Some("2032768"));
    assert_eq!(value("retention.ms").as_deref(), Some("7200000"));

    let mut headers = Headers::default();
    headers.append("x", "1");
    headers.append_null("null");
    let original = Envelope { key: Some("k".into()), headers, body: None };
    letters.quarantine(&letter(&topic.name, &group, original.clone())).await.expect("quarantined");
    let mut source = KafkaSource::subscribe(brokers(), unique("collector"), &[&dlq]).door(false);
    let received = read(&mut source, 1).await.remove(0);
    assert_eq!((&received.message.key, &received.message.body), (&original.key, &original.body));
    assert_eq!(
        received.message.headers.iter().take(2).collect::<Vec<_>>(),
        original.headers.iter().collect::<Vec<_>>()
    );
    assert_eq!(received.message.headers.get_str(names::REASON), Some("permanent"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_letter_that_does_not_fit_sheds_its_explanation_first() {
    let group = unique("g");
    let name = unique("tight");
    let dlq = kafka_letters(&name, &group);
    let topic = Topic::new("tight-source", 1).await;
    let _tight = Topic::with(&dlq, 1, &[("max.message.bytes", "4000")]).await;
    let letters = KafkaDeadLetters::new(settings());
    let random: Vec<u8> = (0..180).flat_map(|_| *uuid::Uuid::new_v4().as_bytes()).collect();
    let fits_barely = Envelope { key: None, headers: Headers::default(), body: Some(random.into()) };
    let info = SourceInfo { places: vec![name.clone()], ..info(&topic, &group) };
    letters.prepare(&info).await.expect("a topic that is there may be small");
    letters.quarantine(&letter(&name, &group, fits_barely.clone())).await.expect("quarantined");
    let mut source = KafkaSource::subscribe(brokers(), unique("collector"), &[&dlq]).door(false);
    let received = read(&mut source, 1).await.remove(0);
    assert_eq!(received.message.body, fits_barely.body);
    assert_eq!(received.message.headers.get(names::ERROR_MESSAGE), None);
    assert!(received.message.headers.get(names::DEAD_LETTER_ID).is_some());
    // What compresses well enough is taken, however large it is before.
    let compressible = Envelope { body: Some(vec![b'x'; 400_000].into()), ..Envelope::default() };
    letters.quarantine(&letter(&name, &group, compressible)).await.expect("quarantined");
    let random: Vec<u8> = (0..300).flat_map(|_| *uuid::Uuid::new_v4().as_bytes()).collect();
    let never = Envelope { body: Some(random.into()), ..Envelope::default() };
    let error = letters.quarantine(&letter(&name, &group, never)).await.expect_err("too large either way");
    assert_eq!(error.scope(), Scope::Message);
}

/// F64: under whatever name.
#[tokio::test(flavor = "multi_thread")]
async fn properties_that_promises_rest_on_are_refused_under_all_their_names() {
    for name in [
        "delivery.timeout.ms",
        "message.timeout.ms",
        "retries",
        "message.send.max.retries",
        "acks",
        "request.required.acks",
        "max.in.flight",
        "max.in.flight.requests.per.connection",
        "queue.buffering.max.ms",
        "linger.ms",
        "enable.idempotence",
        "metadata.broker.list",
    ] {
        let mut publisher = KafkaPublisher::new(settings().property(name, "1"));
        match publisher.submit(1, &Destination::new("any"), envelope("k", "v")) {
            Err(Refused::Failed(error)) => assert!(error.to_string().contains(name), "{error:?}"),
            other => panic!("{name}: {other:?}"),
        }
    }
}
