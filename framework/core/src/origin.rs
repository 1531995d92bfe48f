//! Where a message came from.

use serde::{Deserialize, Serialize};

/// Where the broker had the message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "broker", rename_all = "lowercase")]
#[non_exhaustive]
pub enum Origin {
    /// A Kafka record.
    Kafka {
        /// Topic.
        topic: String,
        /// Partition.
        partition: i32,
        /// Offset.
        offset: i64,
        /// Broker timestamp in milliseconds since the epoch.
        timestamp: Option<i64>,
    },
    /// A RabbitMQ delivery.
    RabbitMq {
        /// Exchange it was published to; empty for the default exchange.
        exchange: String,
        /// Routing key it was published with.
        routing_key: String,
        /// Queue it was read from.
        queue: String,
        /// Whether the broker has delivered it before.
        redelivered: bool,
    },
}

impl Origin {
    /// The topic or queue.
    pub fn place(&self) -> &str {
        match self {
            Self::Kafka { topic, .. } => topic,
            Self::RabbitMq { queue, .. } => queue,
        }
    }

    /// The Kafka partition; `None` on RabbitMQ.
    pub fn partition(&self) -> Option<i32> {
        match self {
            Self::Kafka { partition, .. } => Some(*partition),
            Self::RabbitMq { .. } => None,
        }
    }

    /// `kafka` or `rabbitmq`, as `messaging.system` wants it.
    pub fn system(&self) -> &'static str {
        match self {
            Self::Kafka { .. } => "kafka",
            Self::RabbitMq { .. } => "rabbitmq",
        }
    }
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Kafka { topic, partition, offset, .. } => write!(f, "{topic}/{partition}/{offset}"),
            Self::RabbitMq { queue, .. } => f.write_str(queue),
        }
    }
}

/// How a message came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Via {
    /// From its topic or queue.
    Live,
    /// Redriven, through the door that only this consumer reads; its `backstop-*` headers are ours.
    Door,
}
