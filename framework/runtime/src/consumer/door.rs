//! What comes in through the door: redriven messages, and commands about those that are held.

use std::time::Duration;

use backstop_core::command::{Command, UnknownCommand};
use backstop_core::held::HeldMessages;
use backstop_core::held_keys::{Ended, Ending};
use backstop_core::inbox::Unit;
use backstop_core::{Codec, DeadLetters, Headers, Message, Origin, ReceiptOutcome, crash_point, names};

use crate::consumer::calling::Calls;
use crate::consumer::transactional::Transactional;
use crate::stats::count;

/// After how long a message that is at work is asked for again.
const BUSY_AGAIN: Duration = Duration::from_millis(200);

impl<I, H, C, D> Transactional<I, H, C, D>
where
    I: HeldMessages,
    H: Calls<I::Tx>,
    C: Codec<H::Message>,
    D: DeadLetters,
{
    /// Takes in what came through the door; whether it may be settled.
    pub(crate) async fn come_in(&self, unit: Unit<'_>, message: &Message, origin: &Origin) -> bool {
        match Command::of(&message.headers) {
            None => self.import(unit, message, origin).await,
            Some(Ok(command)) => self.obey(unit, &message.headers, &command).await,
            Some(Err(unknown)) => {
                refuse(unit.consumer, &unknown);
                true
            }
        }
    }

    /// Does what a command says, and owes its receipt. It may come twice: then there is nothing left to do, and the
    /// receipt is owed again.
    async fn obey(&self, unit: Unit<'_>, headers: &Headers, command: &Command) -> bool {
        let (consumer, message) = (unit.consumer, unit.message_key);
        let Command { ending, generation } = command;
        let mut outages = 0;
        loop {
            match self.inbox.end(consumer, message, *ending, *generation).await {
                Ok(Ended::Busy) => {
                    if !self.context.sleep(BUSY_AGAIN).await {
                        return false;
                    }
                }
                Ok(Ended::Done) => {
                    tracing::warn!(%consumer, %message, %ending, "the wait for a message was ended by a command");
                    count(&self.context.stats.ended);
                    self.held_work.arrived();
                    crash_point!("consumer.door.obeyed");
                    return self.owe_obedience(unit, headers, command, Ended::Done).await;
                }
                Ok(ended) => {
                    tracing::info!(%consumer, %message, %ending, ?ended, "a command changed nothing");
                    return self.owe_obedience(unit, headers, command, ended).await;
                }
                Err(error) => {
                    self.report_outage(&error, outages);
                    outages += 1;
                    if !self.context.wait(outages).await {
                        return false;
                    }
                }
            }
        }
    }

    /// A command names the generation of its letter, and a receipt the one of the redrive that would have followed.
    async fn owe_obedience(
        &self,
        unit: Unit<'_>,
        headers: &Headers,
        command: &Command,
        ended: Ended,
    ) -> bool {
        let Some(outcome) = outcome(command.ending, ended) else { return true };
        let mut headers = headers.clone();
        if let Some(generation) = command.generation {
            headers.set(names::REDRIVE_GENERATION, generation.saturating_add(1).to_string());
        }
        self.owe_now(unit.message_key, &headers, outcome).await
    }
}

/// What is told of a command; nothing where the message is still held.
fn outcome(ending: Ending, ended: Ended) -> Option<ReceiptOutcome> {
    match (ended, ending) {
        (Ended::Done, Ending::Skip) => Some(ReceiptOutcome::Skipped),
        (Ended::Done, Ending::Resolve) => Some(ReceiptOutcome::Handled),
        (Ended::Done | Ended::NotHeld, Ending::Release) => Some(ReceiptOutcome::Released),
        (Ended::AlreadyHandled, _) => Some(ReceiptOutcome::AlreadyHandled),
        (Ended::NotHeld | Ended::NotQuarantined | Ended::Redriven | Ended::Busy, _) => None,
    }
}

/// A command that cannot be obeyed is dropped, aloud: it would be unknown again.
pub(crate) fn refuse(consumer: &str, unknown: &UnknownCommand) {
    let hint = "send it from a relay of this consumer's version";
    tracing::error!(%consumer, %unknown, hint, "a command at the door is ignored");
}
