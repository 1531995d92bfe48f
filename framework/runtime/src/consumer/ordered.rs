//! Keeping the order of a key whose head was given up: it stays where it is, and what comes after it waits.

use backstop_core::held::{HeldMessages, Holding};
use backstop_core::inbox::Unit;
use backstop_core::{Codec, DeadLetters, DeadReason, Headers, MessageKey, crash_point};

use crate::consumer::calling::Calls;
use crate::consumer::context::{Judged, LETTER_LEASE, Subject};
use crate::consumer::policy::Charged;
use crate::consumer::transactional::Transactional;
use crate::stats::count;

impl<I, H, C, D> Transactional<I, H, C, D>
where
    I: HeldMessages,
    H: Calls<I::Tx>,
    C: Codec<H::Message>,
    D: DeadLetters,
{
    /// Gives up a live message that failed for good the first time: as with a head, it is written down first, then
    /// its letter is published, then it is quarantined. Whether it may be settled.
    pub(crate) async fn condemn_live(
        &self,
        unit: Unit<'_>,
        subject: Subject<'_>,
        judged: &Judged,
        reason: DeadReason,
        charged: Charged,
    ) -> bool {
        let failure = judged.condemned(reason, charged, LETTER_LEASE);
        match self.write_down(unit, subject, &failure).await {
            Ok(Holding::AlreadyHandled) => self.note(Holding::AlreadyHandled, &self.context.stats.held),
            Ok(_) => {
                count(&self.context.stats.held);
                crash_point!("consumer.held");
                if self.context.quarantine(subject, judged, reason, charged.attempts).await {
                    crash_point!("consumer.held.quarantined");
                    let headers = subject.message.envelope().headers;
                    self.park(unit.message_key, charged.attempts, &headers).await;
                }
                true
            }
            Err(settled) => settled,
        }
    }

    /// Quarantines a message whose letter is confirmed. Where that fails, it falls due with its letter again.
    pub(crate) async fn park(&self, message_key: &MessageKey, attempts: u32, headers: &Headers) {
        let consumer = &self.context.consumer;
        match self.inbox.park(consumer, message_key, attempts, headers).await {
            Ok(()) => {
                crash_point!("consumer.held.parked");
                tracing::warn!(%consumer, message = %message_key, "its key waits until it is redriven, released, skipped or resolved");
            }
            Err(error) => {
                tracing::warn!(%consumer, message = %message_key, %error, "quarantined, but still due; will be repeated");
            }
        }
    }

    /// Says that keys wait for somebody.
    pub(crate) async fn remind(&self) {
        let consumer = &self.context.consumer;
        match self.inbox.summary(consumer).await {
            Ok(held) if held.quarantined > 0 => {
                let (keys, messages) = (held.quarantined, held.messages);
                let hint = "redrive their letters, or `backstop-relay held list`, `release` or `skip`";
                tracing::warn!(%consumer, keys, messages, oldest = ?held.oldest, hint, "keys wait behind quarantined messages");
            }
            Ok(_) => {}
            Err(error) => tracing::debug!(%consumer, %error, "held messages could not be counted"),
        }
    }
}
