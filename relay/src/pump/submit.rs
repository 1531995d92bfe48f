//! Handing rows to the publisher: read-again ones first, then the buffer, within the bounds of what may be under way.

use std::sync::Arc;

use backstop_core::outbox::{OutboxRow, RowId};
use backstop_core::sink::{PublishError, Refused, Scope};
use backstop_core::{Destination, Envelope, cloudevents, crash_point};
use bytes::Bytes;
use tokio::time::Instant;
use tracing::{Span, info_span, trace};

use super::engine::{Engine, Phase};
use super::flight::Entry;
use super::pauses::{Alone, PauseId};
use super::settings::OnUnsendable;

/// Rows submitted in one go, before other events are looked at.
const CHUNK: usize = 1_024;

/// A row in the broker's form.
pub(super) struct Ready {
    seq: i64,
    id: Arc<str>,
    order: u64,
    destination: Arc<Destination>,
    /// The pause whose round it belongs to.
    round: Option<PauseId>,
    envelope: Envelope,
}

impl Ready {
    /// Its round has failed.
    pub(super) fn leave_round(&mut self, id: &PauseId) {
        self.round.take_if(|round| round == id);
    }
}

impl Engine {
    /// Submits what may be submitted; `true` when more could follow at once.
    pub(super) fn submit(&mut self) -> bool {
        // A probe may have taken time since the lease was looked at.
        if self.phase != Phase::Running || self.stop.is_some() || Instant::now() >= self.term_until {
            return false;
        }
        if self.full_until.is_some_and(|until| until > self.now) {
            return false;
        }
        self.full_until = None;
        if self.held_back.is_none() && self.slot.rows.is_empty() && self.intake.buffered() == 0 {
            return false;
        }
        let span = info_span!(
            "send",
            otel.kind = "client",
            messaging.operation.r#type = "send",
            messaging.batch.message_count = tracing::field::Empty
        );
        let (sent, more) = span.in_scope(|| self.submit_chunk());
        Span::record(&span, "messaging.batch.message_count", sent);
        more
    }

    fn submit_chunk(&mut self) -> (usize, bool) {
        let window = self.publisher.window();
        for sent in 0..CHUNK {
            let under_way = self.flight.under_way();
            if under_way >= window
                || self.flight.bytes() >= self.settings.in_flight_bytes
                || under_way + self.settling.undeleted() >= self.settings.unsettled_rows
            {
                return (sent, false);
            }
            let Some(ready) = self.next_ready() else { return (sent, false) };
            if !self.send(ready) {
                return (sent, false);
            }
        }
        (CHUNK, true)
    }

    /// The next row that no pause stops.
    fn next_ready(&mut self) -> Option<Ready> {
        if let Some(ready) = self.held_back.take()
            && !self.pauses.stops(&ready.destination, ready.order, ready.seq, ready.round.as_ref())
        {
            return Some(ready);
        }
        loop {
            let (row, round) = match self.slot.rows.pop_front() {
                Some(row) => (row, self.slot.round.clone()),
                None => (self.intake.pop()?, None),
            };
            let OutboxRow { seq, destination, message } = row;
            let destination = self.names.share(destination);
            let order = self.names.order(&destination, message.key.as_ref(), seq);
            if !self.pauses.is_empty() && self.pauses.stops(&destination, order, seq, round.as_ref()) {
                continue;
            }
            let id = Arc::<str>::from(message.id.as_str());
            self.remember_if_alone(
                round.as_ref(),
                RowId { seq, id: id.clone() },
                order,
                message.key.as_ref(),
            );
            let envelope = cloudevents::encode(message, self.publisher.binding(&destination));
            return Some(Ready { seq, id, order, destination, round, envelope });
        }
    }

    fn remember_if_alone(&mut self, round: Option<&PauseId>, row: RowId, order: u64, key: Option<&Bytes>) {
        if self.slot.alone
            && let Some(round) = round
            && let Some(pause) = self.pauses.get(round)
        {
            pause.alone = Some(Alone { seq: row.seq, id: row.id, order, key: key.cloned() });
        }
    }

    /// Submits one row; `false` when no other may follow now.
    fn send(&mut self, ready: Ready) -> bool {
        let Ready { seq, id, order, destination, round, envelope } = ready;
        let bytes = envelope.size();
        let block = self.settings.on_unsendable == OnUnsendable::BlockKey;
        let key = if block { envelope.key.clone() } else { None };
        match self.publisher.submit(self.flight.ticket(), &destination, envelope) {
            Ok(()) => {
                trace!(seq, %destination, "submitted");
                if self.flight.under_way() == 0 {
                    self.progress = self.now;
                }
                let entry = Entry { seq, id, order, destination, bytes, since: self.now };
                self.pauses.departed(&entry);
                self.flight.depart(entry);
                crash_point!("relay.submitted");
                true
            }
            Err(Refused::Full(envelope)) => {
                self.held_back = Some(Ready { seq, id, order, destination, round, envelope });
                self.full();
                false
            }
            Err(Refused::Failed(error)) => {
                self.refused(Alone { seq, id, order, key }, &destination, error);
                self.phase == Phase::Running && self.stop.is_none()
            }
        }
    }

    fn refused(&mut self, row: Alone, destination: &Arc<Destination>, error: PublishError) {
        let binding = self.publisher.binding(destination);
        self.traffic.open().failed(destination, binding, error.scope());
        match error.scope() {
            Scope::Broker => self.broker_failed(&error),
            Scope::Destination => self.pause(destination, row.seq, &error),
            Scope::Message => self.unsendable(destination, row, error),
        }
    }

    /// The pause that has rows which were read again but not yet submitted.
    pub(super) fn unsubmitted(&self) -> Option<&PauseId> {
        match &self.held_back {
            Some(Ready { round: Some(round), .. }) => Some(round),
            _ if self.slot.rows.is_empty() => None,
            _ => self.slot.round.as_ref(),
        }
    }

    /// Drops rows of a pause that wait to be submitted; the pause reads them again.
    pub(super) fn purge(&mut self, id: &PauseId) {
        let Self { pauses, intake, names, held_back, .. } = self;
        let Some(pause) = pauses.get(id) else { return };
        if held_back.as_ref().is_some_and(|ready| match id {
            PauseId::Destination(destination) => ready.destination == *destination,
            PauseId::Key(order) => ready.order == *order,
        }) && let Some(ready) = held_back.take()
        {
            pause.skip(ready.seq);
        }
        intake.drop_if(|row| {
            let meets = row.destination == *pause.destination
                && match id {
                    PauseId::Destination(_) => true,
                    PauseId::Key(order) => {
                        names.order(&row.destination, row.message.key.as_ref(), row.seq) == *order
                    }
                };
            if meets {
                pause.skip(row.seq);
            }
            meets
        });
    }
}
