//! What librdkafka's errors mean: their kind, their reach and their remedy.

use backstop_core::sink::{PublishError, Scope};
use backstop_core::{AdapterError, FaultKind};
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaErrorCode as Code;

use crate::settings::is_secret;

/// The error, said as `what`.
pub(crate) fn fault(what: impl Into<String>, error: &KafkaError) -> AdapterError {
    match error {
        KafkaError::ClientConfig(_, description, name, _) => bad_property(name, description),
        KafkaError::ClientCreation(reason) => AdapterError::new(FaultKind::Invalid, what)
            .with_hint("check the Kafka properties")
            .with_source(reason.as_str()),
        other => match code_of(other) {
            Some(code) => coded(what, code),
            None => AdapterError::new(FaultKind::Other, what).with_source(other.to_string()),
        },
    }
}

/// The error code, said as `what`.
pub(crate) fn coded(what: impl Into<String>, code: Code) -> AdapterError {
    let error = AdapterError::new(kind_of(code), what).with_source(code);
    match hint(code) {
        Some(hint) => error.with_hint(hint),
        None => error,
    }
}

/// The error of a delivery to `topic`, with its reach.
pub(crate) fn publish_fault(topic: &str, error: &KafkaError) -> PublishError {
    let Some(code) = code_of(error) else {
        return PublishError::new(Scope::Broker, fault("Kafka did not confirm a message", error));
    };
    let scope = scope_of(code);
    let what = match (scope, code) {
        (_, Code::PurgeQueue | Code::PurgeInflight | Code::MessageTimedOut) => {
            "Kafka did not confirm a message: its outcome is unknown".to_owned()
        }
        (Scope::Message, _) => format!("Kafka refuses a message for topic {topic}"),
        (Scope::Destination, _) => format!("Kafka topic {topic} cannot be written to"),
        (Scope::Broker, _) => "Kafka did not confirm a message".to_owned(),
    };
    PublishError::new(scope, coded(what, code))
}

/// The code behind an error; admin operations carry theirs where librdkafka's binding does not look.
pub(crate) fn code_of(error: &KafkaError) -> Option<Code> {
    match error {
        KafkaError::AdminOp(code) => Some(*code),
        other => other.rdkafka_error_code(),
    }
}

fn kind_of(code: Code) -> FaultKind {
    match code {
        code if is_denied(code) => FaultKind::Denied,
        Code::UnknownTopicOrPartition
        | Code::UnknownTopic
        | Code::UnknownPartition
        | Code::UnknownTopicId => FaultKind::Missing,
        Code::BrokerTransportFailure
        | Code::AllBrokersDown
        | Code::Resolve
        | Code::OperationTimedOut
        | Code::MessageTimedOut
        | Code::TimedOutQueue
        | Code::RequestTimedOut
        | Code::NetworkException
        | Code::LeaderNotAvailable
        | Code::NotLeaderForPartition
        | Code::BrokerNotAvailable
        | Code::NotEnoughReplicas
        | Code::NotEnoughReplicasAfterAppend
        | Code::CoordinatorLoadInProgress
        | Code::CoordinatorNotAvailable
        | Code::NotCoordinator
        | Code::WaitingForCoordinator
        | Code::PurgeQueue
        | Code::PurgeInflight
        | Code::KafkaStorageError
        | Code::ThrottlingQuotaExceeded => FaultKind::Unreachable,
        Code::RebalanceInProgress | Code::IllegalGeneration => FaultKind::Conflict,
        code if is_invalid(code) => FaultKind::Invalid,
        _ => FaultKind::Other,
    }
}

fn is_invalid(code: Code) -> bool {
    matches!(
        code,
        Code::MessageSizeTooLarge
            | Code::MessageBatchTooLarge
            | Code::InvalidMessage
            | Code::InvalidMessageSize
            | Code::InvalidRecord
            | Code::InvalidTimestamp
            | Code::InvalidTopic
            | Code::InvalidConfig
            | Code::InvalidRequest
            | Code::InvalidArgument
            | Code::InvalidPartitions
            | Code::InvalidReplicationFactor
            | Code::InvalidGroupId
            | Code::InvalidSessionTimeout
            | Code::InconsistentGroupProtocol
            | Code::PolicyViolation
            | Code::UnsupportedAssignor
            | Code::UnsupportedVersion
            | Code::UnsupportedFeature
    )
}

/// Whether credentials or permissions are at fault.
pub(crate) fn is_denied(code: Code) -> bool {
    is_distrust(code)
        || matches!(
            code,
            Code::TopicAuthorizationFailed
                | Code::GroupAuthorizationFailed
                | Code::ClusterAuthorizationFailed
                | Code::TransactionalIdAuthorizationFailed
        )
}

/// Whether a connection was given up for credentials or certificates. TLS failures belong here: librdkafka reports a
/// connection that broke during the handshake as a transport failure, so that what is left is a certificate nobody
/// trusts.
fn is_distrust(code: Code) -> bool {
    matches!(
        code,
        Code::Authentication
            | Code::SaslAuthenticationFailed
            | Code::UnsupportedSASLMechanism
            | Code::IllegalSASLState
            | Code::SSL
    )
}

/// Whether an error, with what librdkafka said about it, means that a broker does not take this client, or this client
/// not the broker. Under TLS 1.3 a broker looks at the client's certificate after the handshake, so that its alert
/// arrives as the end of a connection that stood.
pub(crate) fn is_refusal(code: Code, reason: &str) -> bool {
    const ALERTS: [&str; 5] =
        ["certificate", "unknown ca", "access denied", "handshake failure", "decrypt error"];
    is_distrust(code)
        || reason
            .split_once(" alert ")
            .is_some_and(|(_, alert)| ALERTS.iter().any(|word| alert.contains(word)))
}

/// Whether librdkafka speaks of a connection that ended before anything was said on it. Brokers that are going down do
/// that too.
pub(crate) fn hangs_up_at_once(reason: &str) -> bool {
    ["APIVERSION_QUERY", "SSL_HANDSHAKE", "PLAINTEXT broker listener"]
        .iter()
        .any(|mark| reason.contains(mark))
}

/// The error of a client that brokers refuse, or that refuses the brokers.
pub(crate) fn refused(code: Code, reason: &str) -> AdapterError {
    AdapterError::new(FaultKind::Denied, format!("Kafka and this client do not trust each other: {code}"))
        .with_hint(remedy(code, reason))
        .with_source(reason)
}

/// What to mend, by what librdkafka said.
fn remedy(code: Code, reason: &str) -> &'static str {
    if reason.contains(" alert ") {
        return "the brokers refuse this client's certificate: check ssl.certificate.location and ssl.key.location, and that the certificate is valid now and from an authority that the brokers know";
    }
    if reason.contains("OAUTHBEARER token") || reason.contains("invalid_token") {
        return "see that backstop.oauthbearer.token.location names a file with a token that is valid now and that the brokers take";
    }
    match code {
        Code::SSL => {
            "check that ssl.ca.location holds the authority of the brokers' certificates, that these name the hosts of the bootstrap servers and are valid now, and that this is a TLS port"
        }
        code => hint(code).unwrap_or("check security.protocol, sasl.mechanism, user name and password"),
    }
}

/// Whether a member of a group cannot go on with this error, whatever it waits for.
pub(crate) fn ends_a_source(code: Code) -> bool {
    is_denied(code)
        || matches!(
            code,
            Code::Fatal
                | Code::OffsetOutOfRange
                | Code::AutoOffsetReset
                | Code::InvalidTopic
                | Code::InvalidGroupId
                | Code::InvalidSessionTimeout
                | Code::InconsistentGroupProtocol
                | Code::UnsupportedAssignor
                | Code::UnsupportedVersion
                | Code::UnsupportedFeature
                | Code::FencedInstanceId
                | Code::UnreleasedInstanceId
        )
}

/// Whether a commit failed only because the partitions have gone to somebody else meanwhile.
pub(crate) fn is_lost_membership(code: Code) -> bool {
    matches!(
        code,
        Code::IllegalGeneration
            | Code::RebalanceInProgress
            | Code::UnknownMemberId
            | Code::AssignmentLost
            | Code::FencedMemberEpoch
            | Code::StaleMemberEpoch
            | Code::NoOffset
    )
}

fn scope_of(code: Code) -> Scope {
    match code {
        Code::MessageSizeTooLarge
        | Code::MessageBatchTooLarge
        | Code::InvalidMessage
        | Code::InvalidMessageSize
        | Code::InvalidRecord
        | Code::InvalidTimestamp => Scope::Message,
        Code::UnknownTopicOrPartition
        | Code::UnknownTopic
        | Code::UnknownPartition
        | Code::UnknownTopicId
        | Code::TopicAuthorizationFailed
        | Code::InvalidTopic
        | Code::PolicyViolation
        // A server error says nothing of its reach. Where it reaches further, every destination meets it by itself.
        | Code::Unknown => Scope::Destination,
        _ => Scope::Broker,
    }
}

fn hint(code: Code) -> Option<&'static str> {
    Some(match code {
        Code::TopicAuthorizationFailed => "grant this client READ and WRITE on the topic, as its role needs",
        Code::GroupAuthorizationFailed => "grant this client READ on the consumer group",
        Code::ClusterAuthorizationFailed => {
            "grant this client IDEMPOTENT_WRITE or the cluster operation that it needs"
        }
        Code::SSL => "check ssl.ca.location and the name in the broker's certificate",
        code if is_denied(code) => "check security.protocol, sasl.mechanism, user name and password",
        Code::UnknownTopicOrPartition | Code::UnknownTopic => "create the topic, or correct its name",
        Code::Unknown => "see the broker's log, which says what failed",
        Code::OffsetOutOfRange | Code::AutoOffsetReset => {
            "messages are gone before they were read: set out_of_range to earliest or latest, or reset the group's offsets"
        }
        Code::InconsistentGroupProtocol => "give all members of the group the same rebalance protocol",
        Code::UnsupportedVersion | Code::UnsupportedFeature | Code::UnsupportedAssignor => {
            "these brokers do not know it: upgrade them, or choose another rebalance protocol"
        }
        Code::FencedInstanceId | Code::UnreleasedInstanceId => {
            "give every running instance its own group.instance.id"
        }
        Code::MessageSizeTooLarge | Code::MessageBatchTooLarge => {
            "raise max.message.bytes of the topic together with the publisher's limit, or send less"
        }
        Code::InvalidRecord => "give the message a key if the topic is compacted, or see the broker's log",
        Code::InvalidTimestamp => {
            "see message.timestamp.before.max.ms and message.timestamp.after.max.ms of the topic"
        }
        Code::InvalidTopic => "correct the name of the topic",
        Code::UnsupportedCompressionType => "set compression.type to one that the topic's brokers know",
        Code::NotEnoughReplicas | Code::NotEnoughReplicasAfterAppend => {
            "bring the topic's replicas back, or lower its min.insync.replicas"
        }
        Code::PolicyViolation => "see the broker's create.topic.policy.class.name",
        code if kind_of(code) == FaultKind::Unreachable => {
            "check the bootstrap servers and that the brokers run"
        }
        _ => return None,
    })
}

/// librdkafka repeats the value in its description, so that for a secret only the name is told.
fn bad_property(name: &str, description: &str) -> AdapterError {
    let error = AdapterError::new(FaultKind::Invalid, format!("the Kafka property {name} cannot be set"))
        .with_hint("see librdkafka's CONFIGURATION.md for its name and its values");
    if is_secret(name) { error } else { error.with_source(description) }
}

#[cfg(test)]
mod taxonomy;

#[cfg(test)]
mod tests {
    use rdkafka::ClientConfig;
    use rdkafka::consumer::BaseConsumer;

    use super::*;

    fn told(error: &AdapterError) -> String {
        let cause = std::error::Error::source(error).map(ToString::to_string);
        format!("{error} {error:?} {:?} {cause:?}", error.hint())
    }

    #[test]
    fn s28_a_secret_property_that_is_refused_is_not_repeated() {
        let mut config = ClientConfig::new();
        config.set("ssl.keystore.passwordx", "hunter2");
        let error = fault("cannot start", &config.create::<BaseConsumer>().map(|_| ()).unwrap_err());
        assert!(!told(&error).contains("hunter2") && told(&error).contains("ssl.keystore.passwordx"));
        let mut config = ClientConfig::new();
        config.set("session.timeout.ms", "soon");
        let error = fault("cannot start", &config.create::<BaseConsumer>().map(|_| ()).unwrap_err());
        assert!(told(&error).contains("session.timeout.ms"), "{}", told(&error));
        assert_eq!(error.kind(), FaultKind::Invalid);
    }

    #[test]
    fn errors_reach_as_far_as_they_should() {
        let scope = |code| publish_fault("t", &KafkaError::MessageProduction(code)).scope();
        assert_eq!(scope(Code::MessageSizeTooLarge), Scope::Message);
        assert_eq!(scope(Code::InvalidMessage), Scope::Message);
        assert_eq!(scope(Code::UnknownTopicOrPartition), Scope::Destination);
        assert_eq!(scope(Code::TopicAuthorizationFailed), Scope::Destination);
        assert_eq!(scope(Code::InvalidTopic), Scope::Destination);
        assert_eq!(scope(Code::Unknown), Scope::Destination);
        for code in [Code::PurgeInflight, Code::PurgeQueue, Code::Fatal, Code::OutOfOrderSequenceNumber] {
            assert_eq!(scope(code), Scope::Broker);
        }
        assert_eq!(scope(Code::NotEnoughReplicas), Scope::Broker);
    }

    /// F47: refused credentials are told from an outage.
    #[test]
    fn credentials_end_a_source_and_an_outage_does_not() {
        for code in [Code::Authentication, Code::GroupAuthorizationFailed, Code::SSL, Code::AutoOffsetReset] {
            assert!(ends_a_source(code), "{code:?}");
        }
        for code in [Code::AllBrokersDown, Code::BrokerTransportFailure, Code::Resolve, Code::PollExceeded] {
            assert!(!ends_a_source(code), "{code:?}");
        }
    }
}
