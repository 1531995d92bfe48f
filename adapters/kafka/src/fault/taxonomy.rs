//! Every error that a publish may end with: how far it reaches, and a test that brings it about.
//!
//! The section on Kafka of `docs/reference/errors.md` is made from this list;
//! `BACKSTOP_RECORD=1 cargo test -p backstop-kafka --lib taxonomy` makes it anew.

use std::time::Duration;

use backstop_core::message::{Destination, Envelope};
use backstop_core::sink::{Confirmation, PublishError, Publisher};
use backstop_testkit::page::section;
use rdkafka::error::KafkaError;
use rdkafka::mocking::MockCluster;
use rdkafka::types::{RDKafkaApiKey, RDKafkaErrorCode as Code, RDKafkaRespErr as Resp};

use crate::fault::{kind_of, publish_fault};
use crate::{KafkaPublisher, KafkaSettings};

/// How an error comes about.
enum Shown {
    /// The mock cluster answers with it, and the publisher tells.
    Told(&'static str),
    /// The mock cluster answers with it, librdkafka sends again, and the message is stored.
    Retried(&'static str),
    /// Another test, on the real brokers.
    By(&'static str),
    /// It cannot be brought about, and why.
    Not(&'static str),
}

/// Publishes a message whose first answer is that error.
async fn answered(error: Resp) -> Result<(), PublishError> {
    let cluster = MockCluster::new(1).expect("a mock cluster");
    cluster.create_topic("orders", 1, 1).expect("a topic");
    cluster.request_errors(RDKafkaApiKey::Produce, &[error]);
    let mut publisher = KafkaPublisher::new(KafkaSettings::new(cluster.bootstrap_servers()));
    let envelope = Envelope { body: Some("x".into()), ..Envelope::default() };
    publisher.submit(1, &Destination::new("orders"), envelope).expect("room for one");
    let mut confirmed: Vec<Confirmation> = Vec::new();
    let bound = Duration::from_secs(60);
    tokio::time::timeout(bound, publisher.confirmations(&mut confirmed)).await.expect("confirmed in time");
    confirmed.pop().expect("one").result
}

macro_rules! told {
    ($($name:ident: $error:ident => $code:ident;)*) => {
        const TOLD: &[(Code, Shown)] = &[$((Code::$code, Shown::Told(stringify!($name))),)*];
        $(
            #[tokio::test]
            async fn $name() {
                let error = answered(Resp::$error).await.expect_err("refused");
                let expected = publish_fault("orders", &KafkaError::MessageProduction(Code::$code));
                assert_eq!((error.scope(), error.to_string()), (expected.scope(), expected.to_string()));
                assert_eq!(error.error().kind(), kind_of(Code::$code));
            }
        )*
    };
}

macro_rules! retried {
    ($($name:ident: $error:ident => $code:ident;)*) => {
        const RETRIED: &[(Code, Shown)] = &[$((Code::$code, Shown::Retried(stringify!($name))),)*];
        $(
            #[tokio::test]
            async fn $name() {
                answered(Resp::$error).await.expect("stored at the second try");
            }
        )*
    };
}

told! {
    a_message_that_is_too_large: RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE => MessageSizeTooLarge;
    a_batch_that_is_too_large: RD_KAFKA_RESP_ERR_RECORD_LIST_TOO_LARGE => MessageBatchTooLarge;
    a_network_that_failed: RD_KAFKA_RESP_ERR_NETWORK_EXCEPTION => NetworkException;
    a_message_of_no_valid_size: RD_KAFKA_RESP_ERR_INVALID_MSG_SIZE => InvalidMessageSize;
    a_record_that_is_not_valid: RD_KAFKA_RESP_ERR_INVALID_RECORD => InvalidRecord;
    a_timestamp_that_is_not_valid: RD_KAFKA_RESP_ERR_INVALID_TIMESTAMP => InvalidTimestamp;
    a_topic_that_may_not_be_written_to: RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED => TopicAuthorizationFailed;
    a_topic_that_is_not_valid: RD_KAFKA_RESP_ERR_TOPIC_EXCEPTION => InvalidTopic;
    a_policy_that_is_violated: RD_KAFKA_RESP_ERR_POLICY_VIOLATION => PolicyViolation;
    a_cluster_that_may_not_be_written_to: RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED => ClusterAuthorizationFailed;
    a_server_error: RD_KAFKA_RESP_ERR_UNKNOWN => Unknown;
    an_unsupported_version: RD_KAFKA_RESP_ERR_UNSUPPORTED_VERSION => UnsupportedVersion;
    an_unsupported_compression: RD_KAFKA_RESP_ERR_UNSUPPORTED_COMPRESSION_TYPE => UnsupportedCompressionType;
}

retried! {
    a_leader_that_moved: RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION => NotLeaderForPartition;
    a_leader_that_is_elected: RD_KAFKA_RESP_ERR_LEADER_NOT_AVAILABLE => LeaderNotAvailable;
    too_few_replicas: RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS => NotEnoughReplicas;
    too_few_replicas_after_append: RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS_AFTER_APPEND => NotEnoughReplicasAfterAppend;
    a_request_that_timed_out: RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT => RequestTimedOut;
    a_message_that_is_not_valid: RD_KAFKA_RESP_ERR_INVALID_MSG => InvalidMessage;
    a_disk_that_failed: RD_KAFKA_RESP_ERR_KAFKA_STORAGE_ERROR => KafkaStorageError;
}

/// Errors of librdkafka itself, and those that the mock cluster cannot bring about.
const OTHERS: &[(Code, Shown)] = &[
    (Code::UnknownTopicOrPartition, Shown::By("conformance: a_missing_destination_fails_alone")),
    (Code::UnknownTopic, Shown::By("conformance: a_missing_destination_fails_alone")),
    (Code::UnknownPartition, Shown::Not("the partitioner knows only partitions that are there")),
    (Code::UnknownTopicId, Shown::Not("librdkafka publishes by name")),
    (
        Code::PurgeQueue,
        Shown::By("absence: what_is_abandoned_while_the_brokers_are_down_is_confirmed_as_unknown"),
    ),
    (
        Code::PurgeInflight,
        Shown::By("absence: what_is_abandoned_with_too_few_replicas_is_confirmed_as_unknown"),
    ),
    (
        Code::MessageTimedOut,
        Shown::By("publish: brokers_that_are_down_make_the_outcome_unknown_within_the_limit"),
    ),
    (Code::Authentication, Shown::By("security: a_wrong_password_is_refused")),
    (Code::SSL, Shown::By("security: s30_an_authority_that_signed_nothing_is_refused")),
    (
        Code::OutOfOrderSequenceNumber,
        Shown::Not("librdkafka makes it fatal, or a message that is sent again"),
    ),
    (
        Code::Fatal,
        Shown::Not("only a broker that lost an idempotent producer's state makes librdkafka give up"),
    ),
];

fn row((code, shown): &(Code, Shown)) -> String {
    let error = publish_fault("…", &KafkaError::MessageProduction(*code));
    let (shown, scope) = match shown {
        Shown::Told(test) => (format!("`{test}`"), error.scope().to_string()),
        Shown::Retried(test) => (format!("`{test}`"), "none: sent again".to_owned()),
        Shown::By(test) => (format!("`{test}`"), error.scope().to_string()),
        Shown::Not(why) => (format!("not shown: {why}"), error.scope().to_string()),
    };
    let hint = error.error().hint().unwrap_or("–");
    format!("| {code:?} | {scope} | {:?} | {hint} | {shown} |", error.error().kind())
}

#[test]
fn the_page_lists_every_error() {
    let rows = TOLD.iter().chain(RETRIED).chain(OTHERS).map(row);
    let head = ["| error | scope | kind | remedy | shown by |", "|---|---|---|---|---|"].map(str::to_owned);
    section(
        "docs/reference/errors.md",
        "kafka",
        &head.into_iter().chain(rows).collect::<Vec<_>>().join("\n"),
    );
}

/// What is charged to a destination or a message must be on the page.
#[test]
fn no_error_with_a_narrow_scope_is_left_out() {
    let source = include_str!("../fault.rs");
    let (_, scopes) = source.split_once("fn scope_of(").expect("the function");
    let (scopes, _) = scopes.split_once("_ => Scope::Broker").expect("its last arm");
    let listed: Vec<String> =
        TOLD.iter().chain(RETRIED).chain(OTHERS).map(|(code, _)| format!("{code:?}")).collect();
    for code in scopes.split("Code::").skip(1) {
        let name: String = code.chars().take_while(char::is_ascii_alphanumeric).collect();
        assert!(listed.contains(&name), "{name} is not listed");
    }
}

#[test]
fn the_tests_that_are_named_exist() {
    for (code, shown) in OTHERS {
        let Shown::By(named) = shown else { continue };
        let (file, test) = named.split_once(": ").expect("a file and a test");
        let path = match file {
            "conformance" => "../../framework/testkit/src/conformance/broker/publisher.rs".to_owned(),
            file => format!("tests/{file}.rs"),
        };
        let path = format!("{}/{path}", env!("CARGO_MANIFEST_DIR"));
        let source = std::fs::read_to_string(&path).expect(&path);
        let is_there = ["(", "<"].iter().any(|next| source.contains(&format!("fn {test}{next}")));
        assert!(is_there, "{code:?}: {named}");
    }
}
