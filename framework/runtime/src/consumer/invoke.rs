//! Running a handler once: inside its span, its cause and its time limit, and never letting a panic out.

use std::any::Any;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use backstop_core::context::{Cause, scope};
use backstop_core::{BatchHandler, Codec, Delivery, Handler, HandlerError, Message, Outcomes, trace};
use futures_util::FutureExt;
use tracing::{Instrument, Span};

use crate::control::Control;

/// How a handler failed.
#[derive(Debug)]
pub(crate) struct Failed {
    pub(crate) error: HandlerError,
    /// Whether the transaction it was lent may be used again; not when it was cut off in the middle of a statement.
    pub(crate) tx_is_sound: bool,
}

/// A handler did not finish in time.
#[derive(Debug, thiserror::Error)]
#[error("the handler took longer than {0:?}")]
struct TimedOut(Duration);

/// A handler or a codec panicked.
#[derive(Debug, thiserror::Error)]
#[error("panicked: {0}")]
struct Panicked(String);

/// Who handles, and how the span is tied to the producer's.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Invocation<'a> {
    pub(crate) consumer: &'a str,
    pub(crate) group: &'a str,
    pub(crate) time_limit: Duration,
    /// The producer's span becomes the parent, not a link.
    pub(crate) continue_trace: bool,
    pub(crate) control: &'a Control,
}

impl Invocation<'_> {
    /// Runs the handler.
    pub(crate) async fn run<Tx, H: Handler<Tx>>(
        self,
        handler: &H,
        delivery: &Delivery<H::Message>,
        tx: &mut Tx,
    ) -> Result<(), Failed> {
        let key = delivery.message().key.as_ref();
        let _at_work = self.control.handling(delivery.origin(), key, delivery.attempt());
        let handling = scope(Cause::of(delivery.message()), handler.handle(delivery, tx));
        self.guard(handling.instrument(self.span(delivery))).await
    }

    /// Runs the handler of a batch, which is not empty.
    pub(crate) async fn run_batch<Tx, H: BatchHandler<Tx>>(
        self,
        handler: &H,
        batch: &[&Delivery<H::Message>],
        tx: &mut Tx,
    ) -> Result<Outcomes, Failed> {
        self.guard(handler.handle(batch, tx).instrument(self.batch_span(batch))).await
    }

    async fn guard<T>(self, handling: impl Future<Output = Result<T, HandlerError>>) -> Result<T, Failed> {
        match tokio::time::timeout(self.time_limit, AssertUnwindSafe(handling).catch_unwind()).await {
            Ok(Ok(Ok(done))) => Ok(done),
            Ok(Ok(Err(error))) => Err(Failed { error, tx_is_sound: true }),
            Ok(Err(panic)) => {
                let error = HandlerError::transient(Panicked(panic_text(&*panic)));
                Err(Failed { error, tx_is_sound: false })
            }
            Err(_) => {
                Err(Failed { error: HandlerError::transient(TimedOut(self.time_limit)), tx_is_sound: false })
            }
        }
    }

    /// One span, tied to the span of each message's producer by a link: a batch has no one parent.
    fn batch_span<T>(self, batch: &[&Delivery<T>]) -> Span {
        let Some(first) = batch.first() else { return Span::none() };
        let origin = first.origin();
        let span = tracing::info_span!(
            "process",
            otel.name = %format_args!("process {}", origin.place()),
            otel.kind = "consumer",
            messaging.system = origin.system(),
            messaging.operation.name = "process",
            messaging.operation.r#type = "process",
            messaging.destination.name = origin.place(),
            messaging.consumer.group.name = self.group,
            messaging.batch.message_count = batch.len(),
            backstop.consumer = self.consumer,
        );
        if !span.is_disabled() {
            batch.iter().for_each(|delivery| trace::add_link(&span, &delivery.message().headers));
        }
        span
    }

    fn span<T>(self, delivery: &Delivery<T>) -> Span {
        let (message, origin) = (delivery.message(), delivery.origin());
        let span = tracing::info_span!(
            "process",
            otel.name = %format_args!("process {}", origin.place()),
            otel.kind = "consumer",
            messaging.system = origin.system(),
            messaging.operation.name = "process",
            messaging.operation.r#type = "process",
            messaging.destination.name = origin.place(),
            messaging.destination.partition.id = origin.partition(),
            messaging.consumer.group.name = self.group,
            messaging.message.id = message.id,
            backstop.consumer = self.consumer,
            backstop.attempt = delivery.attempt(),
            backstop.via = ?delivery.via(),
        );
        if !span.is_disabled() {
            if self.continue_trace {
                trace::set_parent(&span, &message.headers);
            } else {
                trace::add_link(&span, &message.headers);
            }
        }
        span
    }
}

/// Reads the body; a codec that panics has not read it.
pub(crate) fn decode<M, C: Codec<M>>(codec: &C, message: &Message) -> Result<M, HandlerError> {
    let decoded = std::panic::catch_unwind(AssertUnwindSafe(|| codec.decode(message)));
    decoded
        .map_err(|panic| HandlerError::undecodable(Panicked(panic_text(&*panic))))?
        .map_err(HandlerError::undecodable)
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "without a text".to_owned())
}
