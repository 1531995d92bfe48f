//! What to read next, ahead or again, and what to do with the rows.

use std::slice;

use backstop_core::crash_point;
use backstop_core::outbox::{Claimed, OutboxRow, Reread};
use tokio::time::{Duration, Instant, timeout};
use tracing::{info, warn};

use super::engine::{Engine, Phase, Slot};
use super::intake::{Done, Purpose};
use super::pauses::{Pause, PauseId, Reply};
use super::status::Fault;

/// Nothing else is submitted while a destination is probed.
const PROBE_LIMIT: Duration = Duration::from_secs(1);
/// After a probe there is none for so many times as long as it took, so that a broker which does not answer for its
/// many paused destinations costs the others a tenth of the time.
const PROBE_REST: u32 = 9;

impl Engine {
    /// Begins the next read. Reading ahead and reading again take turns.
    pub(super) async fn start_reading(&mut self) {
        if self.phase != Phase::Running || self.stop.is_some() || self.intake.is_reading() {
            return;
        }
        self.drop_unmet_pauses();
        self.burials.reading();
        let ahead = !self.burials.are_behind(self.settings.read_rows)
            && self.intake.due(&self.settings).is_some_and(|due| due <= self.now);
        if (!ahead || !self.read_again_last) && self.read_again().await {
            self.read_again_last = true;
        } else if ahead {
            self.read_again_last = false;
            self.intake.start(Purpose::Ahead, self.settings.read_rows, &self.settings);
        }
    }

    /// Begins a round of a pause whose time has come.
    async fn read_again(&mut self) -> bool {
        if self.pauses.is_empty() || !self.slot.rows.is_empty() || self.unsubmitted().is_some() {
            return false;
        }
        let Some(id) = self.pauses.ready(self.now, self.next_probe <= self.now) else { return false };
        if !self.probe(&id).await {
            return false;
        }
        self.purge(&id);
        let Some((what, rows)) = self.pauses.begin(&id) else { return false };
        self.rereading = Some(id);
        self.intake.start(Purpose::Again(what), rows, &self.settings);
        true
    }

    /// Asks the broker whether a destination that failed would take something. Silence is no answer: then a row
    /// finds out.
    async fn probe(&mut self, id: &PauseId) -> bool {
        let Some(destination) = self.pauses.get(id).and_then(|pause| pause.wants_probe()) else {
            return true;
        };
        let begun = Instant::now();
        let probe = self.publisher.probe(slice::from_ref(&*destination));
        let answer = timeout(PROBE_LIMIT, probe).await;
        self.next_probe = Instant::now() + begun.elapsed() * PROBE_REST;
        let Some(error) = answer.ok().and_then(|errors| errors.into_iter().next()) else {
            return true;
        };
        if let Some(pause) = self.pauses.get(id) {
            let fault = Fault::from(error.error());
            if pause.fault.as_ref().is_none_or(|before| before.what != fault.what) {
                warn!(%destination, %error, hint = error.error().hint(), "destination stays paused");
            }
            pause.wait_on(fault);
            self.board.urgent();
        }
        false
    }

    /// Takes in a read that has ended.
    pub(super) fn read(&mut self, done: Done) {
        let bytes = done.bytes();
        let rereading = self.rereading.take();
        let mut claimed = match done.result {
            Ok(claimed) => claimed,
            Err(error) => {
                let wait = self.reads.failed(&error);
                self.database_failed(wait, &error);
                return;
            }
        };
        self.reads.works();
        // Otherwise the reader is reset before it reads on, and the rows come again.
        if self.phase != Phase::Running || self.stop.is_some() {
            return;
        }
        self.board.status.stragglers += claimed.stragglers;
        if claimed.stragglers > 0 {
            warn!(
                rows = claimed.stragglers,
                "rows that only the full scan found: a writer numbers rows by itself"
            );
        }
        let last = last_of(&claimed);
        self.burials.take_out(&mut claimed);
        claimed.unreadable.drain(..).for_each(|row| self.burials.add(row));
        if !claimed.rows.is_empty() {
            crash_point!("relay.claimed");
        }
        match (done.purpose, rereading) {
            (Purpose::Again(what), Some(id)) => self.read_for_round(&id, &what, claimed, last),
            (Purpose::Again(_), None) => {}
            (Purpose::Ahead, _) => self.intake.buffer(claimed.rows, bytes, claimed.more, &self.settings),
        }
    }

    fn read_for_round(&mut self, id: &PauseId, what: &Reread, mut claimed: Claimed, read_to: Option<i64>) {
        if let PauseId::Key(order) = id {
            let names = &self.names;
            claimed
                .rows
                .retain(|row| names.order(&row.destination, row.message.key.as_ref(), row.seq) == *order);
            // A row without a key is the only one of its kind.
            claimed.more &= what.key.is_some();
        }
        if let Some(read_to) = read_to.filter(|_| claimed.rows.is_empty() && claimed.more) {
            self.pauses.read_on(id, read_to + 1);
            return;
        }
        let last = claimed.rows.last().map(|row: &OutboxRow| row.seq);
        let alone = claimed.rows.len() == 1;
        let round = match self.pauses.reread(id, last, claimed.more) {
            Reply::Round => Some(id.clone()),
            Reply::Over(pause) | Reply::Empty(pause) => {
                self.resumed(&pause);
                None
            }
            Reply::Stale => return,
        };
        self.slot = Slot { round, alone, rows: claimed.rows.into() };
    }

    /// Ends rounds that have settled.
    pub(super) fn end_rounds(&mut self) {
        if self.pauses.is_empty() || self.phase != Phase::Running {
            return;
        }
        let unsubmitted = self.unsubmitted().cloned();
        for pause in self.pauses.end_rounds(unsubmitted.as_ref(), &self.settings) {
            self.resumed(&pause);
        }
    }

    fn drop_unmet_pauses(&mut self) {
        if !self.pauses.is_empty() && self.intake.reached_end && self.intake.buffered() == 0 {
            for pause in self.pauses.drop_unmet() {
                self.resumed(&pause);
            }
        }
    }

    fn resumed(&mut self, pause: &Pause) {
        if pause.was_told() {
            let destination = &pause.destination;
            match &pause.key {
                None => info!(%destination, "destination resumed"),
                Some(_) => info!(%destination, "key resumed"),
            }
        }
        self.board.urgent();
    }
}

/// The highest number that a read brought.
fn last_of(claimed: &Claimed) -> Option<i64> {
    let rows = claimed.rows.iter().map(|row| row.seq);
    rows.chain(claimed.unreadable.iter().map(|row| row.seq)).max()
}
