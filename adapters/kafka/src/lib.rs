//! Backstop on Apache Kafka through librdkafka
