//! What came of it: confirmations, failures by their scope, and writes to the outbox.

use std::sync::Arc;
use std::time::Duration;

use backstop_core::outbox::DeadRow;
use backstop_core::sink::{PublishError, Scope};
use backstop_core::{AdapterError, Destination, FaultKind, crash_point};
use tracing::{debug, error, warn};

use super::burials::Buried;
use super::engine::{Engine, Phase};
use super::flight::Entry;
use super::pauses::{Alone, PauseId};
use super::promotions::Promoted;
use super::settings::OnUnsendable;
use super::settling::Deleted;
use super::status::{Fault, PumpError};
use crate::exit::with_cause;

impl Engine {
    /// Takes in the confirmations that have come.
    pub(super) fn confirmed(&mut self) {
        self.progress = self.now;
        self.full_until = None;
        let traffic = self.traffic.clone();
        let mut book = traffic.open();
        let mut confirmations = std::mem::take(&mut self.confirmations);
        for confirmation in confirmations.drain(..) {
            let Some(entry) = self.flight.land(confirmation.ticket) else {
                debug!(ticket = confirmation.ticket, "confirmation of something that is not under way");
                continue;
            };
            self.silence.heard(&entry.destination);
            let binding = self.publisher.binding(&entry.destination);
            match confirmation.result {
                Ok(()) => {
                    book.published(&entry.destination, binding, self.now.duration_since(entry.since));
                    self.published(entry);
                }
                Err(error) => {
                    book.failed(&entry.destination, binding, error.scope());
                    self.failed(entry, error);
                }
            }
        }
        self.confirmations = confirmations;
    }

    fn published(&mut self, entry: Entry) {
        crash_point!("relay.published");
        self.board.status.published += 1;
        self.last_published = self.now;
        self.broker.works();
        if self.forget {
            self.pauses.settled(&entry);
        } else {
            self.settling.confirmed(entry, self.now);
        }
    }

    fn failed(&mut self, entry: Entry, error: PublishError) {
        self.pauses.settled(&entry);
        if self.phase == Phase::Standby {
            return;
        }
        match error.scope() {
            Scope::Broker => self.broker_failed(&error),
            Scope::Destination => self.pause(&entry.destination, entry.seq, &error),
            Scope::Message => self.refused_later(entry, error),
        }
    }

    pub(super) fn broker_failed(&mut self, error: &PublishError) {
        // What fails after the first is the same outage.
        if self.phase == Phase::Running {
            self.board.fault(error.error());
            let wait = self.broker.failed(error.error());
            self.begin_again_after(wait);
        }
    }

    /// A destination takes nothing: its rows wait in the database.
    pub(super) fn pause(&mut self, destination: &Arc<Destination>, seq: i64, error: &PublishError) {
        let known = self.pauses.get(&PauseId::Destination(destination.clone())).is_some();
        if !known && self.pauses.destinations().len() >= self.settings.pauses {
            let error = AdapterError::new(
                FaultKind::Other,
                format!(
                    "more than {} destinations are paused, the last because {error}",
                    self.settings.pauses
                ),
            );
            self.board.fault(&error);
            let wait = self.broker.failed(&error);
            self.begin_again_after(wait);
            return;
        }
        let fault = Fault::from(error.error());
        let unsettled = self.flight.entries().chain(self.settling.entries());
        let pause = self.pauses.destination(destination, unsettled, &self.settings);
        let news = pause.fault.as_ref().is_none_or(|before| before.what != fault.what);
        pause.fail(seq, fault);
        if news {
            let hint = error.error().hint();
            warn!(%destination, error = with_cause(error.error()), hint, from = seq, "destination paused, others go on");
            self.board.fault(error.error());
        }
        self.leave_round(&PauseId::Destination(destination.clone()));
    }

    /// The broker refused a message that had company: only a refusal of it alone counts.
    fn refused_later(&mut self, entry: Entry, error: PublishError) {
        let by_key = PauseId::Key(entry.order);
        if let Some(pause) = self.pauses.get(&by_key) {
            pause.fail(entry.seq, Fault::from(error.error()));
            self.leave_round(&by_key);
            return;
        }
        let id = PauseId::Destination(entry.destination.clone());
        if let Some(pause) = self.pauses.get(&id)
            && pause.is_settled()
            && let Some(row) = pause.alone.take_if(|row| row.seq == entry.seq)
        {
            pause.judged();
            self.unsendable(&entry.destination, row, error);
            return;
        }
        let unsettled = self.flight.entries().chain(self.settling.entries());
        let pause = self.pauses.destination(&entry.destination, unsettled, &self.settings);
        pause.suspect(entry.seq);
        debug!(destination = %entry.destination, seq = entry.seq, %error, "refused in company, sending apart");
        self.leave_round(&id);
    }

    /// Rows of a failed round that were not submitted meet the pause like any others.
    fn leave_round(&mut self, id: &PauseId) {
        if self.slot.round.as_ref() == Some(id) {
            self.slot.round = None;
            self.slot.alone = false;
        }
        if let Some(ready) = &mut self.held_back {
            ready.leave_round(id);
        }
    }

    /// This row can never be sent.
    pub(super) fn unsendable(&mut self, destination: &Arc<Destination>, row: Alone, error: PublishError) {
        match self.settings.on_unsendable {
            // Otherwise the row comes again with all others.
            OnUnsendable::Dead if self.phase == Phase::Running => {
                let (reason, error) = ("unsendable".to_owned(), error.to_string());
                self.burials.add(DeadRow { seq: row.seq, id: row.id, reason, error });
            }
            OnUnsendable::Dead => {}
            OnUnsendable::BlockKey => self.block(destination, &row, &error),
            OnUnsendable::Stop => {
                let hint = error.error().hint();
                error!(seq = row.seq, %destination, %error, hint, "row cannot be sent, stopping");
                self.fail(PumpError::Unsendable {
                    seq: row.seq,
                    destination: (**destination).clone(),
                    error,
                });
            }
        }
    }

    fn block(&mut self, destination: &Arc<Destination>, row: &Alone, error: &PublishError) {
        let known = self.pauses.get(&PauseId::Key(row.order)).is_some();
        if !known && self.pauses.keys().len() >= self.settings.pauses {
            self.pause(destination, row.seq, error);
            return;
        }
        let unsettled = self.flight.entries().chain(self.settling.entries());
        let pause = self.pauses.key(destination, row, unsettled, &self.settings);
        pause.fail(row.seq, Fault::from(error.error()));
        if !known {
            let hint = error.error().hint();
            warn!(seq = row.seq, %destination, %error, hint, "row cannot be sent, its key waits");
            self.board.fault(error.error());
        }
        self.leave_round(&PauseId::Key(row.order));
    }

    /// Takes in a batch of deletes that has ended.
    pub(super) fn deleted(&mut self, deleted: Deleted) {
        let entries = self.settling.take(deleted.batch);
        match deleted.result {
            Ok(()) => {
                crash_point!("relay.deleted");
                self.writes.works();
                self.board.status.deleted += entries.len() as u64;
                entries.iter().for_each(|entry| self.pauses.settled(entry));
            }
            Err(error) => {
                let wait = self.writes.failed(&error);
                self.board.fault(&error);
                if error.kind() == FaultKind::Unreachable {
                    self.database_failed(wait, &error);
                } else if !self.forget {
                    self.settling.delete_again(entries, wait);
                }
            }
        }
    }

    /// Starts a burial when one is due. Only while rows flow: before that they are read again anyway.
    pub(super) fn bury(&mut self) {
        if self.phase == Phase::Running
            && let Some(lease) = &self.term
        {
            self.burials.start(self.now, lease, self.settings.database_timeout);
        }
    }

    /// Takes in a burial that has ended. Its failure, of whatever kind, is the business of its rows alone: a database
    /// that is gone shows in reads as well.
    pub(super) fn buried(&mut self, Buried { rows, took, token, result }: Buried) {
        let running = self.phase == Phase::Running;
        match result {
            Ok(true) => {
                self.tell_of_dead(&rows);
                if self.burials.succeeded(&rows, took) {
                    self.begin_again_after(Duration::ZERO);
                }
            }
            Ok(false) if running && self.term.as_ref().is_some_and(|term| term.token != token) => {
                self.burials.again(rows);
            }
            Ok(false) => {
                self.burials.forget(&rows);
                self.refuse(token, "the lease is another owner's by now, nothing was moved to the dead");
            }
            Err(error) => {
                self.board.fault(&error);
                self.burials.failed(rows, &error);
                if !running {
                    self.burials.abandon();
                }
            }
        }
    }

    /// Moves scheduled rows on when they are due. Only while rows flow: a broker that is away needs no more of them.
    pub(super) fn promote(&mut self) {
        if self.phase == Phase::Running
            && self.stop.is_none()
            && let Some(lease) = &self.term
        {
            let caught_up = self.intake.is_caught_up() && self.unsubmitted().is_none();
            self.promotions.start(self.now, lease, caught_up, self.settings.database_timeout);
        }
    }

    /// Takes in a promotion that has ended. Its failure concerns scheduled rows alone.
    pub(super) fn promoted(&mut self, Promoted { token, result }: Promoted) {
        match result {
            Ok(Some(rows)) => {
                self.promotions.succeeded(rows);
                if rows > 0 {
                    self.board.status.promoted += rows;
                    self.intake.rows_were_written();
                }
            }
            Ok(None) => {
                self.refuse(token, "the lease is another owner's by now, no scheduled row was moved");
            }
            Err(error) => {
                self.board.fault(&error);
                self.promotions.failed(&error);
            }
        }
    }

    /// The database says that the token is stale, although we believed in it.
    fn refuse(&mut self, token: i64, what: &str) {
        if self.term.as_ref().is_some_and(|term| term.token == token) {
            warn!(what);
            self.refused = Some((token, self.term_until));
            self.leave_term();
        }
    }

    fn tell_of_dead(&mut self, rows: &[DeadRow]) {
        self.board.status.dead += rows.len() as u64;
        self.board.urgent();
        if let Some(first) = rows.first() {
            let (rows, seq, reason) = (rows.len(), first.seq, &first.reason);
            warn!(rows, seq, reason, error = first.error, "rows moved to the dead; the first is shown");
        }
    }
}
