//! Messages that may have felled a process: each is charged before it is handled.
//!
//! They are tried beside each other at first. A process that dies meanwhile leaves those charged that were at work, and
//! they are handled one by one from then on: whoever fells the process once more has done it, as far as anybody can
//! tell. Whatever comes to an end, its charges are taken back.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use backstop_core::held::HeldMessages;
use backstop_core::inbox::Unit;
use backstop_core::{
    Codec, DeadLetters, DeadReason, HandlerError, Message, MessageKey, Origin, Via, crash_point,
};
use futures_util::future::{Either, join_all};
use opentelemetry::KeyValue;
use opentelemetry::metrics::Counter;
use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::consumer::calling::Calls;
use crate::consumer::context::{Judged, Subject};
use crate::consumer::live::subject_of;
use crate::consumer::receipts::FAREWELL_LIMIT;
use crate::consumer::transactional::Transactional;
use crate::stats::{Stats, count};

/// The charge of a message that is handled now.
#[derive(Debug, Clone, Copy)]
struct Charge {
    /// How many charges stand with it.
    stands: u32,
    /// How many of them this process may have made: tries that seemed to fail may have been written down all the same.
    own: u32,
}

/// What one process knows of its suspects.
#[derive(Debug)]
pub(crate) struct Suspects {
    /// Held by whoever handles one of them: for writing where it was charged before.
    turns: RwLock<()>,
    /// From so many charges on a message is not run any more.
    pub(crate) max_crashes: u32,
    /// Who is charged now.
    charged: Mutex<BTreeMap<MessageKey, Charge>>,
    handled: Counter<u64>,
    given_up: Counter<u64>,
    labels: [KeyValue; 1],
}

impl Suspects {
    pub(crate) fn new(consumer: &str, max_crashes: u32) -> Self {
        let meter = opentelemetry::global::meter("backstop");
        let counter = |name, what| meter.u64_counter(name).with_description(what).build();
        Self {
            turns: RwLock::new(()),
            max_crashes,
            charged: Mutex::default(),
            handled: counter(
                "backstop_suspects",
                "Messages that may have felled a process, and were charged before they were handled.",
            ),
            given_up: counter("backstop_crashed", "Messages that felled their process too often."),
            labels: [KeyValue::new("consumer", consumer.to_owned())],
        }
    }

    /// One of them is about to be handled.
    pub(crate) fn count_handled(&self, stats: &Stats) {
        count(&stats.suspects);
        self.handled.add(1, &self.labels);
    }

    /// One of them is given up.
    pub(crate) fn count_given_up(&self) {
        self.given_up.add(1, &self.labels);
    }

    /// Waits until it may be handled: where it was charged before, until no other suspect is handled here. `None` when
    /// the consumer stops.
    async fn turn(&self, was_charged: bool, stop: &CancellationToken) -> Option<Turn<'_>> {
        let turn = async {
            match was_charged {
                true => Turn::Alone { _guard: self.turns.write().await },
                false => Turn::BesideOthers { _guard: self.turns.read().await },
            }
        };
        stop.run_until_cancelled(turn).await
    }

    /// The turn of one that was charged before, if no other suspect is handled here.
    pub(crate) fn turn_alone(&self) -> Option<Turn<'_>> {
        Some(Turn::Alone { _guard: self.turns.try_write().ok()? })
    }

    fn charged(&self) -> std::sync::MutexGuard<'_, BTreeMap<MessageKey, Charge>> {
        self.charged.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right to handle a suspect.
#[derive(Debug)]
pub(crate) enum Turn<'a> {
    BesideOthers { _guard: RwLockReadGuard<'a, ()> },
    Alone { _guard: RwLockWriteGuard<'a, ()> },
}

/// What became of a suspect.
pub(crate) enum Examined {
    /// It may be settled.
    Done,
    /// The same: it had been handled before.
    Known,
    /// The consumer stops.
    Left,
}

/// A message was being handled each time that its process died.
#[derive(Debug, thiserror::Error)]
#[error("the process died {0} times in a row while it handled this message")]
struct Crashed(u32);

impl<I, H, C, D> Transactional<I, H, C, D>
where
    I: HeldMessages,
    H: Calls<I::Tx>,
    C: Codec<H::Message>,
    D: DeadLetters,
{
    /// Handles a suspect of a topic or queue as any other message, but charged. Nothing of it is looked at before, not
    /// even its body: what reads it may be what the process died of.
    pub(crate) async fn examine(
        &self,
        message: Message,
        key: &MessageKey,
        origin: &Origin,
        sequence: Result<(), HandlerError>,
    ) -> Examined {
        match self.outcome(key).await {
            Ok(false) => {}
            Ok(true) => {
                count(&self.context.stats.duplicates);
                return Examined::Known;
            }
            Err(_) => return Examined::Left,
        }
        let Some(charges) = self.charges(key).await else { return Examined::Left };
        let Some(_turn) = self.suspects.turn(charges > 0, &self.context.stop).await else {
            return Examined::Left;
        };
        let Some(crashes) = self.charge(key).await else { return Examined::Left };
        crash_point!("consumer.charged");
        let done = if crashes < self.suspects.max_crashes {
            self.suspects.count_handled(&self.context.stats);
            let done = self.work(message, key, origin, Via::Live, sequence).await;
            self.acquit(key).await;
            done
        } else {
            // It stays charged: it comes again if this process dies before its settlement is stored.
            self.suspects.charged().remove(key);
            let ordering = self.ordering_key(&message, key, origin);
            let consumer = &self.context.consumer;
            let unit = Unit { consumer, place: origin.place(), ordering_key: &ordering, message_key: key };
            self.give_up_crashed(unit, subject_of(unit, &message, origin, Via::Live), crashes).await
        };
        if done { Examined::Done } else { Examined::Left }
    }

    /// How many charges of a message stand; `None` when the consumer stops.
    async fn charges(&self, key: &MessageKey) -> Option<u32> {
        let asked = self.asked(|| self.inbox.charges(&self.context.consumer, key)).await;
        asked.ok().map(|(charges, _)| charges)
    }

    /// Charges a message, and says how often before in a row it was charged in vain; `None` when the consumer stops.
    async fn charge(&self, key: &MessageKey) -> Option<u32> {
        let charge = || self.inbox.charge(&self.context.consumer, key);
        let (before, failed) = self.asked(charge).await.ok()?;
        let charge = Charge { stands: before.saturating_add(1), own: failed.saturating_add(1) };
        self.suspects.charged().insert(key.clone(), charge);
        Some(charge.stands.saturating_sub(charge.own))
    }

    /// The message has come to an end here, so that nobody died of it.
    async fn acquit(&self, key: &MessageKey) {
        let Some(Charge { stands, .. }) = self.suspects.charged().get(key).copied() else { return };
        if self.until_taken(|| self.inbox.acquit(&self.context.consumer, key, stands)).await {
            self.suspects.charged().remove(key);
        }
    }

    /// Gives a message up that has just failed and would be tried again, where it was given up before because it felled
    /// its process: it comes again when nobody stored that it was settled, and not always under suspicion. Whether it may
    /// be settled; `None` where it may be tried.
    pub(crate) async fn give_up_once_more(&self, unit: Unit<'_>, subject: Subject<'_>) -> Option<bool> {
        let key = unit.message_key;
        let Some(charges) = self.charges(key).await else { return Some(false) };
        let own = self.suspects.charged().get(key).map_or(0, |charge| charge.own);
        let crashes = charges.saturating_sub(own);
        if crashes < self.suspects.max_crashes {
            return None;
        }
        Some(self.give_up_crashed(unit, subject, crashes).await)
    }

    /// Gives up a live message that has felled its process too often. Whether it may be settled.
    async fn give_up_crashed(&self, unit: Unit<'_>, subject: Subject<'_>, crashes: u32) -> bool {
        let judged = self.crashed(crashes);
        self.suspects.count_given_up();
        self.give_up_live(unit, subject, &judged, DeadReason::CrashedProcess, crashes).await
    }

    /// Charges a held message that is given up where those are charged that are not held: it comes again from its topic
    /// if the process that held it died before its settlement was stored.
    pub(crate) async fn remember_crashes(&self, key: &MessageKey) {
        let consumer = &self.context.consumer;
        for _ in 0..self.suspects.max_crashes {
            if let Err(error) = self.inbox.charge(consumer, key).await {
                return tracing::debug!(%consumer, %error, "a message that is given up may be tried again");
            }
        }
    }

    /// What is said of a message that has felled its process so often.
    pub(crate) fn crashed(&self, crashes: u32) -> Judged {
        Judged { crashes, ..self.judge(&HandlerError::permanent(Crashed(crashes))) }
    }

    /// Takes back the charges of what was dropped at the end, unfinished: the process did not die of it.
    pub(crate) async fn acquit_dropped(&self) {
        let consumer = &self.context.consumer;
        let charged = std::mem::take(&mut *self.suspects.charged());
        let messages =
            charged.iter().map(|(key, charge)| Either::Left(self.inbox.acquit(consumer, key, charge.stands)));
        let heads = self.held_work.unfinished();
        let heads = heads
            .map(|charge| Either::Right(async move { self.inbox.acquit_heads(consumer, &[charge]).await }));
        // Beside each other: one whose row is locked by what it was dropped in keeps none of the others waiting.
        let acquittals = messages.chain(heads).map(|acquittal| async {
            match timeout(FAREWELL_LIMIT, acquittal).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%consumer, %error, "a charge was not taken back"),
                Err(_) => tracing::debug!(%consumer, "a charge was not taken back in time"),
            }
        });
        join_all(acquittals).await;
    }
}
