//! Either broker: topics or queues, the driver alone, and what has arrived.

use backstop_tests::program;

use crate::event::Check;
use crate::servers::Servers;
use crate::{Outcome, kafka, rabbitmq};

/// Which broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Broker {
    Kafka,
    RabbitMq,
}

impl Broker {
    /// Both.
    pub(crate) const ALL: [Self; 2] = [Self::Kafka, Self::RabbitMq];

    /// As it is shown.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Kafka => "Kafka",
            Self::RabbitMq => "RabbitMQ",
        }
    }

    /// Makes a topic or quorum queue.
    pub(crate) async fn create(self, servers: &Servers, place: &str) -> Outcome<()> {
        match self {
            Self::Kafka => kafka::create_topic(servers, place).await,
            Self::RabbitMq => rabbitmq::create_queue(servers, place).await,
        }
    }

    /// Deletes it.
    pub(crate) async fn delete(self, servers: &Servers, place: &str) -> Outcome<()> {
        match self {
            Self::Kafka => kafka::delete_topics(servers, &[place]).await,
            Self::RabbitMq => rabbitmq::delete_queue(servers, place).await,
        }
    }

    /// Sends the events with the driver alone; messages a second.
    pub(crate) async fn send_alone(self, servers: &Servers, place: &str, events: usize) -> Outcome<f64> {
        match self {
            Self::Kafka => kafka::produce(servers, place, events).await,
            Self::RabbitMq => rabbitmq::publish(servers, place, events).await,
        }
    }

    /// Shows `check` all that has arrived there.
    pub(crate) async fn read_back(self, servers: &Servers, place: &str, check: Check) -> Outcome<Check> {
        match self {
            Self::Kafka => kafka::read_back(servers, place, check).await,
            Self::RabbitMq => rabbitmq::read_back(servers, place, check).await,
        }
    }
}

impl From<Broker> for program::Broker {
    fn from(broker: Broker) -> Self {
        match broker {
            Broker::Kafka => Self::Kafka,
            Broker::RabbitMq => Self::RabbitMq,
        }
    }
}
