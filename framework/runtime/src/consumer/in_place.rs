//! Retries in memory: a failed message is tried again while its key waits.

use std::sync::Arc;
use std::time::Duration;

use backstop_core::command::{Command, UnknownCommand};
use backstop_core::held::{Failure, ordering_key};
use backstop_core::source::{Received, Settlement};
use backstop_core::{
    Codec, DeadLetters, DeadReason, Delivery, ErrorClass, Handler, HandlerError, MessageKey,
};
use tokio::time::Instant;

use crate::consumer::context::{Context, Judged, Subject};
use crate::consumer::door;
use crate::consumer::invoke::{Invocation, decode};
use crate::consumer::policy::{Charged, Next};
use crate::control::breaker::Attempt;
use crate::stats::count;

/// What a consumer needs that holds nothing.
#[derive(Debug)]
pub(crate) struct InPlace<H, C, D> {
    pub(crate) context: Arc<Context<D>>,
    pub(crate) handler: H,
    pub(crate) codec: C,
    pub(crate) time_limit: Duration,
    pub(crate) in_place_max: Duration,
    pub(crate) unordered: bool,
    pub(crate) continue_trace: bool,
}

/// How the attempts at a message ended.
#[derive(Debug)]
pub(crate) enum Ended<Tx> {
    /// Handled, with what the handler wrote to.
    Handled(Tx),
    /// Given up.
    GivenUp(GivenUp),
    /// The consumer stops; the message comes again.
    Stopped,
}

/// Why a message is given up.
#[derive(Debug)]
pub(crate) struct GivenUp {
    pub(crate) judged: Judged,
    pub(crate) reason: DeadReason,
    pub(crate) attempts: u32,
    pub(crate) age: Duration,
}

impl<H, C, D> InPlace<H, C, D> {
    /// What the check of numbers says of a message.
    pub(crate) fn numbered<S: Settlement>(&self, received: &Received<S>) -> Result<(), HandlerError> {
        self.context.suspect(received).map_or(Ok(()), |suspect| self.context.judge_number(&suspect))
    }

    /// A message that is given up before it is tried.
    fn refused(&self, error: &HandlerError) -> GivenUp
    where
        D: DeadLetters,
    {
        count(&self.context.stats.failures);
        let judged = self.context.judge(error, |_| None);
        GivenUp { judged, reason: DeadReason::Permanent, attempts: 1, age: Duration::ZERO }
    }

    /// Tries until the message is handled or given up; not at all where it is `numbered` wrongly. Each attempt has a
    /// `fresh` transaction, and has failed if what was written to it is not `sound`.
    pub(crate) async fn attempts<Tx>(
        &self,
        received: &Received<()>,
        numbered: Result<(), HandlerError>,
        fresh: impl Fn() -> Tx + Sync,
        sound: impl Fn(&Tx) -> Result<(), HandlerError> + Sync,
    ) -> Ended<Tx>
    where
        Tx: Send,
        H: Handler<Tx>,
        C: Codec<H::Message>,
        D: DeadLetters,
    {
        if let Err(error) = numbered {
            return Ended::GivenUp(self.refused(&error));
        }
        let (began, mut outages) = (Instant::now(), Duration::ZERO);
        let mut charged = Charged::default();
        let mut _turn = None;
        loop {
            let attempt = self.weighed(received);
            let mut tx = fresh();
            let ended = self.attempt(received, charged.attempts + 1, &mut tx).await;
            let Err(error) = ended.and_then(|()| sound(&tx)) else {
                self.context.succeeded(attempt);
                return Ended::Handled(tx);
            };
            count(&self.context.stats.failures);
            let judged = self.context.weigh(attempt, self.context.judge(&error, |_| None));
            let age = began.elapsed();
            let is_outage = judged.disposition.class() == ErrorClass::Unavailable;
            let attempts = charged.attempts + 1;
            match self.context.policies.after(judged.disposition, charged, age, fastrand::f64()) {
                Next::Retry { charged: now, due_in }
                    if is_outage || (age + due_in).saturating_sub(outages) <= self.in_place_max =>
                {
                    charged = now;
                    self.waits(received, &judged.retried(charged, due_in));
                    if !self.context.sleep(due_in.min(self.in_place_max)).await {
                        return Ended::Stopped;
                    }
                    let (gate, asked) = (&self.context.control.gate, Instant::now());
                    let Some(turn) = gate.again(&self.context.stop).await else { return Ended::Stopped };
                    _turn = Some(turn);
                    // Others may have found that something is down, or somebody has paused the consumer.
                    outages += if is_outage { attempt.began.elapsed() } else { asked.elapsed() };
                }
                Next::Retry { .. } => {
                    return Ended::GivenUp(GivenUp { judged, reason: DeadReason::Exhausted, attempts, age });
                }
                Next::Quarantine(reason) => {
                    return Ended::GivenUp(GivenUp { judged, reason, attempts, age });
                }
            }
        }
    }

    async fn attempt<Tx>(
        &self,
        received: &Received<()>,
        attempt: u32,
        tx: &mut Tx,
    ) -> Result<(), HandlerError>
    where
        H: Handler<Tx>,
        C: Codec<H::Message>,
    {
        let body = decode(&self.codec, &received.message)?;
        let key = identity(received);
        let (message, origin) = (received.message.clone(), received.origin.clone());
        let delivery = Delivery::new(body, message, key, origin, received.via, attempt);
        let invocation = Invocation {
            consumer: &self.context.consumer,
            group: &self.context.group,
            time_limit: self.time_limit,
            continue_trace: self.continue_trace,
            control: &self.context.control,
        };
        invocation.run(&self.handler, &delivery, tx).await.map_err(|failed| failed.error)
    }

    /// Nothing is held here, so that there is nothing to release, skip or resolve.
    pub(crate) fn decline(&self, command: Result<Command, UnknownCommand>) {
        let consumer = &self.context.consumer;
        match command {
            Ok(command) => {
                tracing::warn!(%consumer, ending = %command.ending, "a command changed nothing: this consumer holds nothing");
            }
            Err(unknown) => door::refuse(consumer, &unknown),
        }
    }

    /// The key of a message that was given up goes on.
    pub(crate) fn waits_no_more(&self, received: &Received<()>) {
        self.context.control.waiting.done(self.weighed(received).key);
    }

    /// An attempt, charged to the key under which the message is kept in order.
    fn weighed(&self, received: &Received<()>) -> Attempt {
        Attempt::now(received.origin.place(), &self.ordering_key(received))
    }

    fn waits(&self, received: &Received<()>, failure: &Failure) {
        self.context.waits(received.origin.place(), &self.ordering_key(received), failure);
    }

    fn ordering_key(&self, received: &Received<()>) -> Vec<u8> {
        ordering_key(&received.message, &identity(received), &received.origin, self.unordered)
    }
}

impl GivenUp {
    /// The message, as its letter tells of it.
    pub(crate) fn subject<'a>(&self, received: &'a Received<()>) -> Subject<'a> {
        Subject {
            message: &received.message,
            message_key: received.identity.key(),
            origin: &received.origin,
            via: received.via,
            age: self.age,
        }
    }
}

fn identity(received: &Received<()>) -> MessageKey {
    received.identity.key().cloned().unwrap_or_else(|| MessageKey::new("", b""))
}
