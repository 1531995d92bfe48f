//! Messages that are not handled now and go into the table of held messages together.
//!
//! Whatever cannot be stored in company is stored by itself, where its errors are looked into.

use backstop_core::command::Command;
use backstop_core::held::{HeldMessages, Holding, NewHeld};
use backstop_core::held_run::RUN_BYTES;
use backstop_core::inbox::Unit;
use backstop_core::source::{Received, Settlement};
use backstop_core::{Codec, DeadLetters, Envelope, Identity, Message, MessageKey, Origin, Via};
use futures_util::future::Either;
use tokio::time::Instant;

use crate::consumer::calling::Calls;
use crate::consumer::transactional::Transactional;

/// A redriven message that came through the door.
pub(crate) struct Redriven {
    message: Message,
    key: MessageKey,
    origin: Origin,
    ordering: Vec<u8>,
}

impl Redriven {
    fn unit<'a>(&'a self, consumer: &'a str) -> Unit<'a> {
        Unit { consumer, place: self.origin.place(), ordering_key: &self.ordering, message_key: &self.key }
    }
}

impl<I, H, C, D> Transactional<I, H, C, D>
where
    I: HeldMessages,
    H: Calls<I::Tx>,
    C: Codec<H::Message>,
    D: DeadLetters,
{
    /// The message, where it is to be taken in and nothing else: no live one, and no command.
    pub(crate) fn redriven<S: Settlement>(
        &self,
        received: Received<S>,
    ) -> Either<(Redriven, S), Received<S>> {
        let key = match &received.identity {
            Identity::Declared(key) if received.via == Via::Door => key.clone(),
            _ => return Either::Right(received),
        };
        if Command::of(&received.message.headers).is_some() {
            return Either::Right(received);
        }
        let Received { message, origin, settlement, .. } = received;
        let ordering = self.ordering_key(&message, &key, &origin);
        Either::Left((Redriven { message, key, origin, ordering }, settlement))
    }

    /// Takes redriven messages in, in their order.
    pub(crate) async fn import_several<S: Settlement>(&self, mut batch: Vec<(Redriven, S)>) {
        batch.retain_mut(|(_, settlement)| settlement.begin());
        let consumer = &self.context.consumer;
        let envelopes: Vec<Envelope> =
            batch.iter().map(|(redriven, _)| redriven.message.envelope()).collect();
        let new = batch.iter().zip(&envelopes).map(|((redriven, _), envelope)| NewHeld {
            unit: redriven.unit(consumer),
            envelope,
            origin: &redriven.origin,
            via: Via::Door,
        });
        let stored = self.store_together(&new.collect::<Vec<_>>()).await;
        for ((redriven, settlement), stored) in batch.into_iter().zip(stored) {
            if self.context.stop.is_cancelled() {
                return;
            }
            let Redriven { message, key, origin, .. } = &redriven;
            let done = match stored {
                Some(holding) => self.taken_in(key, &message.headers, holding).await,
                None => self.import(redriven.unit(consumer), message, origin).await,
            };
            if done {
                settlement.settle();
            }
        }
    }

    /// Stores messages, as many in one statement as may be; `None` for those that are to be stored by themselves.
    pub(crate) async fn store_together(&self, messages: &[NewHeld<'_>]) -> Vec<Option<Holding>> {
        let mut answers = Vec::with_capacity(messages.len());
        let mut rest = messages;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(portion(rest));
            let asked = Instant::now();
            let stored = match now.len() {
                1 => Ok(vec![None]),
                _ => self.context.answered(asked, self.inbox.store_all(now).await),
            };
            answers.extend(stored.unwrap_or_else(|error| {
                tracing::debug!(consumer = self.context.consumer, %error, "messages cannot be stored together");
                vec![None; now.len()]
            }));
            rest = later;
        }
        answers
    }
}

/// How many messages go into one statement, at least 1.
fn portion(messages: &[NewHeld<'_>]) -> usize {
    let sizes = messages.iter().scan(0, |before, message| {
        let size = *before;
        *before += message.envelope.size();
        Some(size)
    });
    sizes.take_while(|before| *before < RUN_BYTES).count().max(1)
}
