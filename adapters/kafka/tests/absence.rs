//! What source and publisher do while a topic, the coordinator or a broker is away: on librdkafka's mock cluster,
//! which can be told to be wrong.

mod common;

use std::collections::BTreeSet;
use std::time::Duration;

use backstop_core::sink::{Confirmation, PublishError, Publisher, Scope, Sink};
use backstop_core::source::Source;
use backstop_core::{Destination, FaultKind};
use backstop_kafka::{KafkaPublisher, KafkaSettings, KafkaSink, KafkaSource};
use common::{body, envelope, read, settle, unique, within};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

const GONE: RDKafkaRespErr = RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART;
const HERE: RDKafkaRespErr = RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR;
const MESSAGES: usize = 1_000;

fn cluster(topics: &[&str]) -> MockCluster<'static, DefaultProducerContext> {
    let cluster = MockCluster::new(1).expect("started");
    for topic in topics {
        cluster.create_topic(topic, 1, 1).expect("made");
    }
    cluster
}

/// A source that looks at its topics often.
fn source(brokers: &str, topics: &[&str]) -> KafkaSource {
    KafkaSource::subscribe(brokers, unique("g"), topics)
        .door(false)
        .property("topic.metadata.refresh.interval.ms", "100")
}

/// Submits 50 messages that the cluster cannot confirm, gives them up, and says what became of them.
async fn given_up(publisher: &mut KafkaPublisher) -> Vec<Confirmation> {
    for ticket in 0..50 {
        publisher
            .submit(ticket, &Destination::new("orders"), envelope("k", ticket.to_string()))
            .unwrap_or_else(|error| panic!("{error:?}"));
    }
    let mut confirmed = Vec::new();
    let silence = tokio::time::timeout(Duration::from_secs(2), publisher.confirmations(&mut confirmed)).await;
    assert!(silence.is_err(), "nobody can have answered: {confirmed:?}");
    publisher.abandon().await;
    let all = async {
        while confirmed.len() < 50 {
            publisher.confirmations(&mut confirmed).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(15), all).await.expect("confirmed within seconds");
    confirmed
}

/// Checks that each ticket was answered for once, as of unknown fate.
fn assert_unknown(confirmed: &[Confirmation]) {
    let tickets: BTreeSet<_> = confirmed.iter().map(|confirmation| confirmation.ticket).collect();
    assert_eq!((confirmed.len(), tickets.len()), (50, 50));
    for Confirmation { ticket, result } in confirmed {
        let scope = result.as_ref().map_err(PublishError::scope);
        assert_eq!(scope, Err(Scope::Broker), "{ticket}: {result:?}");
    }
}

/// The publisher works as new.
async fn assert_mended(publisher: &mut KafkaPublisher) {
    publisher.submit(99, &Destination::new("orders"), envelope("k", "again")).expect("taken");
    let mut confirmed = Vec::new();
    within("the confirmation", publisher.confirmations(&mut confirmed)).await;
    assert!(matches!(&confirmed[..], [Confirmation { ticket: 99, result: Ok(()) }]), "{confirmed:?}");
}

async fn publish(sink: &KafkaSink, topic: &str, number: usize) {
    let sent = sink.publish(&Destination::new(topic), envelope("k", number.to_string())).await;
    sent.unwrap_or_else(|error| panic!("{error:?}"));
}

/// F40, F53: and none of its own is dropped in silence.
#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_is_gone_for_a_moment_costs_no_message_of_another() {
    let cluster = cluster(&["steady", "flickering"]);
    let brokers = cluster.bootstrap_servers();
    let sink = KafkaSink::new(KafkaSettings::new(&brokers));
    let mut source = source(&brokers, &["flickering", "steady"]);
    publish(&sink, "steady", 0).await;
    // Its partitions are assigned now.
    read(&mut source, 1).await.into_iter().for_each(|received| assert!(settle(received)));
    let reading = tokio::spawn(async move {
        let mut seen = BTreeSet::new();
        while !seen.contains(&(MESSAGES - 1)) {
            let batch = within("more messages", source.next()).await.expect("no error").expect("not ended");
            for received in batch {
                seen.insert(body(&received).parse::<usize>().expect("a number"));
                settle(received);
            }
        }
        within("close", source.close()).await.expect("closed");
        seen
    });
    for number in 1..MESSAGES {
        // Away and back in turn, for the time of 200 messages: well below the patience of 5 s.
        let error = if number / 200 % 2 == 1 { GONE } else { HERE };
        if number % 200 == 0 {
            cluster.topic_error("flickering", error).expect("taken");
        }
        publish(&sink, "steady", number).await;
        // The mock cluster does not tell when the source has looked: there is time for it to do so in every turn.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let seen = reading.await.expect("no panic");
    let lost: Vec<_> = (1..MESSAGES).filter(|number| !seen.contains(number)).collect();
    assert!(lost.is_empty(), "{} messages were lost: {lost:?}", lost.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_stays_away_ends_a_running_source() {
    let cluster = cluster(&["steady", "deleted"]);
    let brokers = cluster.bootstrap_servers();
    let sink = KafkaSink::new(KafkaSettings::new(&brokers));
    let mut source = source(&brokers, &["steady", "deleted"]);
    publish(&sink, "steady", 0).await;
    drop(read(&mut source, 1).await);
    cluster.topic_error("deleted", RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART).expect("taken");
    let error = within("the error", source.next()).await.expect_err("the topic is gone");
    assert_eq!(error.kind(), FaultKind::Missing, "{error:?}");
    assert!(error.to_string().contains("deleted"), "{error:?}");
    within("close", source.close()).await.expect("closed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_that_is_silent_does_not_decide_where_to_begin() {
    let cluster = cluster(&["orders"]);
    let brokers = cluster.bootstrap_servers();
    let sink = KafkaSink::new(KafkaSettings::new(&brokers));
    for number in 0..5 {
        publish(&sink, "orders", number).await;
    }
    // More refusals than the source has patience for, were it to give up; out_of_range would then decide, and stop.
    let refusals = [RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN; 30];
    cluster.request_errors(RDKafkaApiKey::OffsetFetch, &refusals);
    let mut source = source(&brokers, &["orders"]);
    let numbers: Vec<_> = read(&mut source, 5).await.iter().map(body).collect();
    assert_eq!(numbers, ["0", "1", "2", "3", "4"]);
    within("close", source.close()).await.expect("closed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_whose_coordinator_is_silent_can_be_closed() {
    let cluster = cluster(&["orders"]);
    let brokers = cluster.bootstrap_servers();
    let refusals = [RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN; 2_000];
    cluster.request_errors(RDKafkaApiKey::OffsetFetch, &refusals);
    let mut source = source(&brokers, &["orders"]);
    let next = tokio::time::timeout(Duration::from_secs(10), source.next()).await;
    assert!(next.is_err(), "{next:?}");
    within("close", source.close()).await.expect("closed");
}

/// F39: given up is unknown, not failed.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_abandoned_while_the_brokers_are_down_is_confirmed_as_unknown() {
    let cluster = cluster(&["orders"]);
    let mut publisher = KafkaPublisher::new(KafkaSettings::new(cluster.bootstrap_servers()));
    assert_mended(&mut publisher).await;
    cluster.broker_down(1).expect("taken");
    assert_unknown(&given_up(&mut publisher).await);
    cluster.broker_up(1).expect("taken");
    assert_mended(&mut publisher).await;
}

/// F41: `min.insync.replicas` unmet is never taken for stored.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_abandoned_with_too_few_replicas_is_confirmed_as_unknown() {
    let cluster = cluster(&["orders"]);
    let mut publisher = KafkaPublisher::new(KafkaSettings::new(cluster.bootstrap_servers()));
    assert_mended(&mut publisher).await;
    let refusals = [RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS; 10_000];
    cluster.request_errors(RDKafkaApiKey::Produce, &refusals);
    assert_unknown(&given_up(&mut publisher).await);
    cluster.clear_request_errors(RDKafkaApiKey::Produce);
    assert_mended(&mut publisher).await;
}
