//! Fixtures are written from each product's public documentation of its headers; none was made by the product itself.

use proptest::prelude::*;

use super::*;

fn headers(pairs: &[(&str, &[u8])]) -> Headers {
    pairs.iter().map(|(name, value)| (*name, Some(value.to_vec()))).collect()
}

/// Dialect, place, consumer, type of the error, its text.
type Summary<'t> = [Option<&'t str>; 5];

fn summary(told: &Told) -> Summary<'_> {
    [
        Some(told.dialect),
        told.place.as_deref(),
        told.consumer.as_deref(),
        told.error_type.as_deref(),
        told.error.as_deref(),
    ]
}

#[test]
fn spring_kafka() {
    let letter = headers(&[
        ("kafka_dlt-original-topic", b"orders"),
        ("kafka_dlt-original-partition", &3_i32.to_be_bytes()),
        ("kafka_dlt-original-offset", &17_i64.to_be_bytes()),
        ("kafka_dlt-original-timestamp", &1_767_323_045_678_i64.to_be_bytes()),
        ("kafka_dlt-original-timestamp-type", b"CREATE_TIME"),
        ("kafka_dlt-original-consumer-group", b"stock"),
        ("kafka_dlt-exception-fqcn", b"org.springframework.kafka.listener.ListenerExecutionFailedException"),
        ("kafka_dlt-exception-cause-fqcn", b"java.lang.IllegalStateException"),
        ("kafka_dlt-exception-message", b"no warehouse"),
        ("kafka_dlt-exception-stacktrace", b"at \xe2\x80\xa6"),
        ("kafka_deliveryAttempt", &4_i32.to_be_bytes()),
    ]);
    let told = read(&letter).expect("known");
    let expected = ["Spring Kafka", "orders", "stock", "java.lang.IllegalStateException", "no warehouse"];
    assert_eq!(summary(&told), expected.map(Some));
    assert_eq!(told.attempts, Some(4));
}

#[test]
fn spring_kafka_on_its_retry_topics() {
    let letter = headers(&[
        ("kafka_original-topic", b"orders"),
        ("kafka_exception-fqcn", b"java.io.IOException"),
        ("kafka_exception-message", b"timed out"),
        ("retry_topic-attempts", &2_i32.to_be_bytes()),
    ]);
    let told = read(&letter).expect("known");
    assert_eq!((told.place.as_deref(), told.attempts), (Some("orders"), Some(2)));
}

#[test]
fn kafka_connect() {
    let letter = headers(&[
        ("__connect.errors.topic", b"orders"),
        ("__connect.errors.partition", b"3"),
        ("__connect.errors.offset", b"17"),
        ("__connect.errors.connector.name", b"warehouse-sink"),
        ("__connect.errors.task.id", b"0"),
        ("__connect.errors.stage", b"VALUE_CONVERTER"),
        ("__connect.errors.class.name", b"org.apache.kafka.connect.json.JsonConverter"),
        ("__connect.errors.exception.class.name", b"org.apache.kafka.connect.errors.DataException"),
        ("__connect.errors.exception.message", b"Converting byte[] failed"),
    ]);
    let told = read(&letter).expect("known");
    let class = "org.apache.kafka.connect.errors.DataException";
    assert_eq!(
        summary(&told),
        ["Kafka Connect", "orders", "warehouse-sink", class, "Converting byte[] failed"].map(Some)
    );
    assert_eq!(told.reason.as_deref(), Some("VALUE_CONVERTER"));
}

#[test]
fn kafka_streams() {
    let letter = headers(&[
        ("__streams.errors.exception", b"org.apache.kafka.common.errors.SerializationException"),
        ("__streams.errors.message", b"Size of data is not 8"),
        ("__streams.errors.topic", b"orders"),
        ("__streams.errors.partition", b"3"),
        ("__streams.errors.offset", b"17"),
    ]);
    let class = "org.apache.kafka.common.errors.SerializationException";
    let expected = [Some("Kafka Streams"), Some("orders"), None, Some(class), Some("Size of data is not 8")];
    assert_eq!(summary(&read(&letter).expect("known")), expected);
}

#[test]
fn share_groups_of_kip_1191() {
    let letter = headers(&[
        ("__dlq.errors.topic", b"orders"),
        ("__dlq.errors.partition", b"3"),
        ("__dlq.errors.offset", b"17"),
        ("__dlq.errors.group", b"stock"),
        ("__dlq.errors.delivery.count", b"5"),
        ("__dlq.errors.message", b"Offset delivery count exceeded the threshold."),
    ]);
    let told = read(&letter).expect("known");
    let text = "Offset delivery count exceeded the threshold.";
    assert_eq!(summary(&told), [Some("Kafka share group"), Some("orders"), Some("stock"), None, Some(text)]);
    assert_eq!(told.attempts, Some(5));
}

#[test]
fn smallrye() {
    let letter = headers(&[
        ("dead-letter-exception-class-name", b"java.lang.IllegalArgumentException"),
        ("dead-letter-cause-class-name", b"java.io.IOException"),
        ("dead-letter-reason", b"no warehouse"),
        ("dead-letter-cause", b"timed out"),
        ("dead-letter-topic", b"orders"),
        ("dead-letter-partition", b"3"),
        ("dead-letter-offset", b"17"),
    ]);
    let class = "java.lang.IllegalArgumentException";
    let expected = [Some("SmallRye"), Some("orders"), None, Some(class), Some("no warehouse")];
    assert_eq!(summary(&read(&letter).expect("known")), expected);
}

#[test]
fn masstransit() {
    let letter = headers(&[
        ("MT-Reason", b"fault"),
        ("MT-Fault-ExceptionType", b"System.InvalidOperationException"),
        ("MT-Fault-Message", b"no warehouse"),
        ("MT-Fault-ConsumerType", b"Shop.ReserveStock"),
        ("MT-Fault-InputAddress", b"rabbitmq://broker.internal/shop/reserve-stock?durable=true"),
        ("MT-Fault-Timestamp", b"2026-01-02T03:04:05.678Z"),
        ("MT-Fault-RetryCount", b"4"),
    ]);
    let told = read(&letter).expect("known");
    let class = "System.InvalidOperationException";
    assert_eq!(
        summary(&told),
        ["MassTransit", "reserve-stock", "Shop.ReserveStock", class, "no warehouse"].map(Some)
    );
    assert_eq!((told.attempts, told.dead_at.is_some()), (Some(5), true));
}

#[test]
fn nservicebus() {
    let letter = headers(&[
        ("NServiceBus.FailedQ", b"ReserveStock@WAREHOUSE-7"),
        ("NServiceBus.ProcessingEndpoint", b"ReserveStock"),
        ("NServiceBus.ExceptionInfo.ExceptionType", b"System.Exception"),
        ("NServiceBus.ExceptionInfo.Message", b"no warehouse"),
        ("NServiceBus.TimeOfFailure", b"2026-01-02 03:04:05:678901 Z"),
    ]);
    let told = read(&letter).expect("known");
    assert_eq!(
        summary(&told),
        ["NServiceBus", "ReserveStock", "ReserveStock", "System.Exception", "no warehouse"].map(Some)
    );
    let dead_at = told.dead_at.map(|at| at.to_rfc3339());
    assert_eq!(dead_at.as_deref(), Some("2026-01-02T03:04:05.678901+00:00"));
}

#[test]
fn rabbitmqs_own() {
    let letter = headers(&[
        ("x-first-death-queue", b"orders"),
        ("x-first-death-reason", b"delivery_limit"),
        ("x-first-death-exchange", b""),
        ("x-last-death-queue", b"orders.retry"),
        ("x-last-death-reason", b"expired"),
    ]);
    let told = read(&letter).expect("known");
    assert_eq!(
        summary(&told),
        [Some("RabbitMQ"), Some("orders"), None, None, Some("delivery_limit").map(|_| "delivered too often")]
    );
    assert_eq!(told.reason.as_deref(), Some("delivery_limit"));
}

/// A letter of an application on RabbitMQ has the broker's headers as well: the application knows more.
#[test]
fn who_says_most_counts() {
    let both = headers(&[
        ("x-first-death-queue", b"orders"),
        ("x-first-death-reason", b"rejected"),
        ("MT-Reason", b"fault"),
        ("MT-Fault-Message", b"no warehouse"),
    ]);
    assert_eq!(read(&both).expect("known").dialect, "MassTransit");
    let ours = headers(&[
        ("backstop-dead-letter-id", b"6d1b25c8-52f1-4f0e-9c4b-7f6a3f0c8b11"),
        ("backstop-consumer", b"stock"),
        ("__dlq.errors.topic", b"orders"),
    ]);
    assert_eq!(read(&ours).expect("known").dialect, "Backstop");
    assert_eq!(read(&headers(&[("x-region", b"eu")])), None);
    let forged = headers(&[("backstop-dead-letter-id", b"mine"), ("backstop-reason", b"forged")]);
    assert_eq!(read(&forged), None);
}

/// S4, S5: whatever the values are, reading them ends, and times and numbers are such that every database has them.
#[test]
fn s4_odd_values_are_read_without_a_panic() {
    const NAMES: [&str; 9] = [
        "kafka_dlt-original-topic",
        "kafka_deliveryAttempt",
        "__dlq.errors.topic",
        "__dlq.errors.delivery.count",
        "MT-Reason",
        "MT-Fault-Timestamp",
        "MT-Fault-InputAddress",
        "NServiceBus.FailedQ",
        "NServiceBus.TimeOfFailure",
    ];
    let value = prop_oneof![
        any::<Vec<u8>>(),
        "[0-9TZ:. +-]{0,40}".prop_map(String::into_bytes),
        Just(b"9223372036854775807".to_vec()),
        Just(b"+262142-12-31 23:59:59:999999 Z".to_vec()),
    ];
    let pairs = prop::collection::vec((0..NAMES.len(), value), 0..9);
    proptest!(|(pairs in pairs)| {
        let headers: Headers = pairs.into_iter().map(|(name, value)| (NAMES[name], Some(value))).collect();
        if let Some(told) = read(&headers) {
            prop_assert!(told.dead_at.is_none_or(|at| (0..=253_402_300_799).contains(&at.timestamp())));
        }
    });
}
