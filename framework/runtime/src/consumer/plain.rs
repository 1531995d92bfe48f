//! A consumer without a database: at least once, retries in place.

use std::sync::Arc;
use std::time::Duration;

use backstop_core::source::{Received, Settlement};
use backstop_core::{Codec, DeadLetters, DeadReason, Delivery, Handler, HandlerError, MessageKey};
use tokio::time::Instant;

use crate::consumer::context::{Context, Judged, Subject};
use crate::consumer::invoke::{Invocation, decode};
use crate::consumer::policy::{Charged, Next};
use crate::consumer::run::Process;
use crate::stats::count;

/// The parts of a plain consumer, while it runs.
#[derive(Debug)]
pub(crate) struct PlainWork<H, C, D> {
    pub(crate) context: Arc<Context<D>>,
    pub(crate) handler: H,
    pub(crate) codec: C,
    pub(crate) time_limit: Duration,
    pub(crate) in_place_max: Duration,
    pub(crate) unordered: bool,
    pub(crate) continue_trace: bool,
}

impl<S, H, C, D> Process<S> for PlainWork<H, C, D>
where
    S: Settlement,
    H: Handler<()>,
    C: Codec<H::Message>,
    D: DeadLetters,
{
    fn unordered(&self) -> bool {
        self.unordered
    }

    fn at_once(&self) -> usize {
        1
    }

    async fn process(&self, received: Vec<Received<S>>) {
        for received in received {
            self.receive(received).await;
        }
    }

    fn background_tasks(&self) -> usize {
        0
    }

    async fn background(&self, _: usize) {}
}

impl<H, C, D> PlainWork<H, C, D>
where
    H: Handler<()>,
    C: Codec<H::Message>,
    D: DeadLetters,
{
    async fn receive<S: Settlement>(&self, received: Received<S>) {
        let Received { message, identity, origin, via, mut settlement } = received;
        if !settlement.begin() {
            return;
        }
        let received = Received { message, identity, origin, via, settlement: () };
        if self.attempts(&received).await {
            settlement.settle();
        }
    }

    /// Tries until the message is handled or quarantined; `false` when the consumer stops before.
    async fn attempts(&self, received: &Received<()>) -> bool {
        let began = Instant::now();
        let mut charged = Charged::default();
        loop {
            let Err(error) = self.attempt(received, charged.attempts + 1).await else {
                count(&self.context.stats.handled);
                return true;
            };
            count(&self.context.stats.failures);
            let judged = self.context.judge(&error, |_| None);
            let age = began.elapsed();
            match self.context.policies.after(judged.disposition, charged, age, fastrand::f64()) {
                Next::Retry { charged: now, due_in } if age + due_in <= self.in_place_max => {
                    charged = now;
                    if !self.context.sleep(due_in).await {
                        return false;
                    }
                }
                Next::Retry { .. } => {
                    let attempts = charged.attempts + 1;
                    return self.give_up(received, &judged, DeadReason::Exhausted, attempts, age).await;
                }
                Next::Quarantine(reason) => {
                    return self.give_up(received, &judged, reason, charged.attempts + 1, age).await;
                }
            }
        }
    }

    async fn attempt(&self, received: &Received<()>, attempt: u32) -> Result<(), HandlerError> {
        let body = decode(&self.codec, &received.message)?;
        let key = received.identity.key().cloned().unwrap_or_else(|| MessageKey::new("", b""));
        let (message, origin) = (received.message.clone(), received.origin.clone());
        let delivery = Delivery::new(body, message, key, origin, received.via, attempt);
        let invocation = Invocation {
            consumer: &self.context.consumer,
            group: &self.context.group,
            time_limit: self.time_limit,
            continue_trace: self.continue_trace,
        };
        invocation.run(&self.handler, &delivery, &mut ()).await.map_err(|failed| failed.error)
    }

    /// Publishes the letter, for as long as it takes: there is nowhere else to keep the message.
    async fn give_up(
        &self,
        received: &Received<()>,
        judged: &Judged,
        reason: DeadReason,
        attempts: u32,
        age: Duration,
    ) -> bool {
        let subject = Subject {
            message: &received.message,
            message_key: received.identity.key(),
            origin: &received.origin,
            via: received.via,
            age,
        };
        while !self.context.quarantine(subject, judged, reason, attempts).await {
            if !self.context.wait(5).await {
                return false;
            }
        }
        true
    }
}
