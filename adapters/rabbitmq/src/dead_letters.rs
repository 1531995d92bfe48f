//! Quarantine on RabbitMQ.

use backstop_core::dead_letter::{DeadLetter, DeadLetters, rabbitmq_letter_exchange, rabbitmq_letters};
use backstop_core::message::Destination;
use backstop_core::sink::{PublishError, Sink};
use backstop_core::source::SourceInfo;
use backstop_core::{AdapterError, Envelope};

use crate::settings::RabbitSettings;
use crate::sink::{RabbitSink, check_size};
use crate::topology::{self, Share};

/// Publishes dead letters of a queue to the exchange `<queue>.dlx`, which leads to the quorum queue `<queue>.dlq`.
///
/// [`prepare`](DeadLetters::prepare) declares what is missing: exchange (direct, durable), queue and a binding with
/// the queue's name as routing key. Quarantine itself declares nothing: when an operator has deleted the exchange or
/// the binding, it fails with the scope
/// [`Destination`](backstop_core::sink::Scope::Destination) until they are back, and the message stays where it is.
#[derive(Debug, Clone)]
pub struct RabbitDeadLetters {
    sink: RabbitSink,
}

impl RabbitDeadLetters {
    /// Dead letters on that broker; connects at the first use.
    pub fn new(settings: RabbitSettings) -> Self {
        Self::through(RabbitSink::new(settings))
    }

    /// Dead letters through a sink with settings of its own.
    pub fn through(sink: RabbitSink) -> Self {
        Self { sink }
    }

    async fn publish(&self, group: &str, envelope: Envelope) -> Result<(), PublishError> {
        let exchange = Destination::exchange(rabbitmq_letter_exchange(group), group);
        self.sink.publish(&exchange, envelope).await
    }
}

impl DeadLetters for RabbitDeadLetters {
    async fn prepare(&self, source: &SourceInfo) -> Result<(), AdapterError> {
        let link = self.sink.link();
        let (exchange, queue) = (rabbitmq_letter_exchange(&source.group), rabbitmq_letters(&source.group));
        topology::ensure_queue(link, &queue, Share::Competing).await?;
        topology::ensure_exchange(link, &exchange, "direct").await?;
        topology::bind(link, &exchange, &queue, &source.group).await
    }

    async fn quarantine(&self, letter: &DeadLetter) -> Result<(), PublishError> {
        let envelope = letter.to_envelope();
        // Explanations can be spared, the message cannot.
        let too_many_headers = check_size(&envelope, usize::MAX, self.sink.link().frame_max()).is_err();
        let envelope = if too_many_headers { letter.to_minimal_envelope() } else { envelope };
        self.publish(&letter.group, envelope).await
    }
}

#[cfg(test)]
mod tests {
    use backstop_core::sink::Scope;

    #[test]
    fn the_scope_of_a_missing_exchange_is_the_destination() {
        use crate::error::Failure;
        use lapin::protocol::{AMQPError, AMQPSoftError};
        let error = AMQPError::new(AMQPSoftError::NOTFOUND.into(), "NOT_FOUND - no exchange 'x.dlx'".into());
        let failure = Failure::of_channel("exchange x.dlx", lapin::ErrorKind::ProtocolError(error).into());
        assert_eq!(failure.scope, Scope::Destination);
    }
}
