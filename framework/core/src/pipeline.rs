//! Read, process, write: what comes of a message is published together with the fact that the message is done.

use crate::cloudevents::{self, Binding};
use crate::dead_letter::{DeadLetter, DeadLetters};
use crate::message::{Destination, Envelope, Outgoing};
use crate::sink::PublishError;
use crate::source::Settlement;
use crate::trace;

/// A message that is to be published, as the broker will carry it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Where it goes.
    pub destination: Destination,
    /// What goes there.
    pub envelope: Envelope,
}

/// What a handler in a pipeline publishes: the `Tx` of its [`Handler`](crate::Handler).
///
/// Nothing is published while the handler runs. What it has sent goes to the broker in one transaction with the
/// position of the message that it handles, after it has returned `Ok`; when it fails it has sent nothing.
///
/// ```
/// use backstop_core::pipeline::Outputs;
/// use backstop_core::{Delivery, Handler, HandlerError, Message, Outgoing};
///
/// struct Invoice;
///
/// impl Handler<Outputs> for Invoice {
///     type Message = u32;
///
///     async fn handle(&self, order: &Delivery<u32>, out: &mut Outputs) -> Result<(), HandlerError> {
///         let invoice = Message::new("invoice").id(order.message_key().as_str()).json(&(order.body() * 119 / 100))?;
///         out.send(Outgoing::to("invoices", invoice));
///         Ok(())
///     }
/// }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outputs {
    binding: Binding,
    outputs: Vec<Output>,
}

impl Outputs {
    /// None yet; the consumer loop and tests make them.
    pub fn new(binding: Binding) -> Self {
        Self { binding, outputs: Vec::new() }
    }

    /// Publishes a message when the one that is handled is done. It inherits the current trace context, the correlation
    /// id, and the handled message as its cause, unless it names its own. Messages of one key and destination are
    /// stored in the order in which they are sent.
    pub fn send(&mut self, outgoing: Outgoing) {
        let Outgoing { destination, mut message } = outgoing;
        trace::inject_current(&mut message.headers);
        self.push(Output { destination, envelope: cloudevents::encode(message, self.binding) });
    }

    /// Publishes an envelope as it is.
    pub fn push(&mut self, output: Output) {
        self.outputs.push(output);
    }

    /// What was sent so far, in order.
    pub fn as_slice(&self) -> &[Output] {
        &self.outputs
    }

    /// What was sent, in order.
    pub fn into_vec(self) -> Vec<Output> {
        self.outputs
    }
}

/// Settles a message together with what came of it: both become visible, or neither.
///
/// Dropping it unsettled publishes nothing, and the message comes again.
#[diagnostic::on_unimplemented(
    message = "this source cannot publish and settle in one transaction",
    note = "a pipeline reads from a source that can, such as `KafkaPipeline`"
)]
pub trait SettleWith: Settlement + Sync {
    /// The header names of what is published.
    const BINDING: Binding;

    /// Whether an output can be published, as far as that is known without asking the broker.
    ///
    /// # Errors
    /// With the scope that tells whom to charge.
    fn check(&self, output: &Output) -> Result<(), PublishError>;

    /// Publishes the outputs and settles the message, in one transaction which it may share with others. Does not wait.
    /// What was handed over of one partition is committed in the order of the partition, and nothing is committed
    /// before everything in front of it has been handed over.
    ///
    /// Outages are waited out, and a destination that is missing or denied is waited for.
    fn settle_with(self, outputs: Vec<Output>, aftermath: Box<dyn Aftermath>);
}

/// What follows after a message was handed over.
pub trait Aftermath: Send {
    /// The broker refuses an output for its own sake, such as for its size. What is to be published in place of all the
    /// outputs; `None` to wait, after which the same outputs are tried again. What is given may be refused, too.
    fn refused(&mut self, error: &PublishError) -> Option<Vec<Output>>;

    /// Outputs and position are committed.
    fn committed(self: Box<Self>);
}

/// Dead letters that can be published in somebody else's transaction.
#[diagnostic::on_unimplemented(
    message = "dead letters of a pipeline must go to the broker that it publishes to",
    note = "call `.dead_letter(KafkaDeadLetters::new(…))`; `.dead_letter(StopPartition)` stops at what it would give up"
)]
pub trait LetterOutput: DeadLetters {
    /// The letter and where it goes, with the fewest headers where it is to be `small`; `None` where there is no
    /// destination.
    fn output(&self, letter: &DeadLetter, small: bool) -> Option<Output>;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Message;
    use crate::names;

    #[test]
    fn what_is_sent_is_encoded_and_kept_in_order() {
        let mut outputs = Outputs::new(Binding::Kafka);
        for id in ["1", "2"] {
            outputs.send(Outgoing::to("out", Message::new("x").id(id).key("k")));
        }
        let ids: Vec<_> = outputs.as_slice().iter().map(|it| it.envelope.headers.get_str("ce_id")).collect();
        assert_eq!(ids, [Some("1"), Some("2")]);
        let last = outputs.into_vec().pop().expect("two were sent");
        assert_eq!((last.destination.name.as_str(), last.envelope.key.as_deref()), ("out", Some(&b"k"[..])));
        assert_eq!(last.envelope.headers.get(names::CAUSATION_ID), None, "nobody is handling anything");
    }
}
