//! A consumer whose outputs are committed together with the fact that their message is done.

use std::sync::Arc;

use backstop_core::command::Command;
use backstop_core::pipeline::{Aftermath, LetterOutput, Output, Outputs, SettleWith};
use backstop_core::sink::{PublishError, Scope};
use backstop_core::source::Received;
use backstop_core::{Codec, DeadReason, Handler, HandlerError, Via};

use crate::consumer::context::Context;
use crate::consumer::in_place::{Ended, GivenUp, InPlace};
use crate::consumer::run::Process;
use crate::stats::count;

/// The parts of a pipeline, while it runs.
#[derive(Debug)]
pub(crate) struct PipelineWork<H, C, D>(pub(crate) InPlace<H, C, D>);

impl<S, H, C, D> Process<S> for PipelineWork<H, C, D>
where
    S: SettleWith,
    H: Handler<Outputs>,
    C: Codec<H::Message>,
    D: LetterOutput,
{
    fn unordered(&self) -> bool {
        self.0.unordered
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
        usize::from(self.0.context.desk.is_some())
    }

    async fn background(&self, _: usize) {
        self.0.context.report_in(std::future::ready).await;
    }
}

impl<H, C, D> PipelineWork<H, C, D>
where
    H: Handler<Outputs>,
    C: Codec<H::Message>,
    D: LetterOutput,
{
    async fn receive<S: SettleWith>(&self, received: Received<S>) {
        let numbered = self.0.numbered(&received);
        let Received { message, identity, origin, via, mut settlement } = received;
        if !settlement.begin() {
            return;
        }
        let command = (via == Via::Door).then(|| Command::of(&message.headers)).flatten();
        let received = Received { message, identity, origin, via, settlement: () };
        let mut after = After { context: self.0.context.clone(), received, why: None, told: false };
        if let Some(command) = command {
            self.0.decline(command);
            after.told = true;
            return settlement.settle_with(Vec::new(), Box::new(after));
        }
        let fresh = || Outputs::new(S::BINDING);
        let sound = |outputs: &Outputs| {
            let refused = outputs.as_slice().iter().find_map(|output| settlement.check(output).err());
            refused.map_or(Ok(()), |error| Err(HandlerError::permanent(error)))
        };
        let outputs = match self.0.attempts(&after.received, numbered, fresh, sound).await {
            Ended::Handled(outputs) => self.with_receipt(&after.received, outputs),
            Ended::GivenUp(why) => {
                self.0.waits_no_more(&after.received);
                match after.give_up(why) {
                    Some(letter) => letter,
                    // There is no destination: the message stays, and what is behind it waits.
                    None => return self.stand_still(&after).await,
                }
            }
            Ended::Stopped => return,
        };
        settlement.settle_with(outputs, Box::new(after));
    }

    /// The receipt of a redriven message is one of its outputs.
    fn with_receipt(&self, received: &Received<()>, mut outputs: Outputs) -> Vec<Output> {
        if let Some(receipt) = self.0.context.receipt_output(received) {
            outputs.push(receipt);
        }
        outputs.into_vec()
    }

    async fn stand_still(&self, after: &After<D>) {
        let (consumer, origin) = (&self.0.context.consumer, &after.received.origin);
        let error = after.why.as_ref().map(|why| why.judged.report.message.as_str()).unwrap_or_default();
        tracing::error!(%consumer, %origin, error, "a message cannot be handled and there is no dead-letter destination: its partition stands still");
        self.0.context.stop.cancelled().await;
    }
}

/// What follows when a message has been handed over.
struct After<D> {
    context: Arc<Context<D>>,
    received: Received<()>,
    /// Set once the outputs are a letter.
    why: Option<GivenUp>,
    /// Whether it is neither handled nor quarantined: a command.
    told: bool,
}

impl<D: LetterOutput> After<D> {
    fn give_up(&mut self, why: GivenUp) -> Option<Vec<Output>> {
        self.why = Some(why);
        self.letter(false)
    }

    fn letter(&self, small: bool) -> Option<Vec<Output>> {
        let why = self.why.as_ref()?;
        let subject = why.subject(&self.received);
        let letter = self.context.letter(subject, &why.judged, why.reason, why.attempts);
        Some(vec![self.context.dead_letters.output(&letter, small)?])
    }
}

impl<D: LetterOutput> Aftermath for After<D> {
    /// A letter that does not fit goes with the fewest headers; anything else that does not fit makes a letter.
    fn refused(&mut self, error: &PublishError) -> Option<Vec<Output>> {
        if self.why.is_some() {
            return self.letter(true);
        }
        let refusal = HandlerError::permanent(Refusal(error.to_string(), error.scope()));
        let judged = self.context.judge(&refusal, |_| None);
        self.give_up(GivenUp { judged, reason: DeadReason::Permanent, attempts: 1, age: Default::default() })
    }

    fn committed(self: Box<Self>) {
        match &self.why {
            None if self.told => {}
            None => count(&self.context.stats.handled),
            Some(why) => {
                count(&self.context.stats.quarantined);
                let (consumer, origin) = (&self.context.consumer, &self.received.origin);
                let (reason, attempts, error) = (why.reason, why.attempts, &why.judged.report.message);
                tracing::warn!(%consumer, %origin, %reason, attempts, %error, "message quarantined");
            }
        }
    }
}

/// The broker takes an output for nothing it could become by waiting.
#[derive(Debug, thiserror::Error)]
#[error("an output is refused ({1}): {0}")]
struct Refusal(String, Scope);
