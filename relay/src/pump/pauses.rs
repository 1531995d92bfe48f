//! Paused destinations and blocked keys: what is remembered of them while their rows stay in the database, and the
//! rounds in which they are tried again.
//!
//! A pause keeps no rows. Rows that meet it are skipped and only the lowest number is kept. A **round** begins when
//! nothing of the pause is under way or undeleted: rows are read again from that number, few at first, and submitted;
//! it ends when all of them are settled. After a round that passed, the next one is larger; when nothing is left the
//! pause is over. So rows of one key never overtake a failed one, however long it fails.

use std::collections::HashMap;
use std::sync::Arc;

use backstop_core::Destination;
use backstop_core::outbox::Reread;
use bytes::Bytes;
use tokio::time::Instant;

use super::flight::Entry;
use super::outage::Delays;
use super::settings::PumpSettings;
use super::status::Fault;

/// Rows of the first round after suspects appeared; a quarter of it after each round that fails.
const FIRST_SUSPECTS: usize = 64;

/// Which pause.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum PauseId {
    /// All of a destination.
    Destination(Arc<Destination>),
    /// Rows of this [`order`](Entry::order).
    Key(u64),
}

/// The single row of a round, so that a refusal is surely its own.
#[derive(Debug, Clone)]
pub(super) struct Alone {
    pub(super) seq: i64,
    /// The message's id.
    pub(super) id: Arc<str>,
    pub(super) order: u64,
    pub(super) key: Option<Bytes>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// For its time, and for what is under way.
    Waiting,
    /// For the rows that are read again, from this number on.
    Reading { from: i64 },
    /// For the rows of the round to settle; what was not read begins at `next`.
    Round { next: Option<i64> },
}

/// A destination or key that takes nothing from the ordinary flow.
#[derive(Debug)]
pub(super) struct Pause {
    pub(super) destination: Arc<Destination>,
    pub(super) key: Option<Bytes>,
    /// The lowest row to read again.
    pub(super) from: Option<i64>,
    /// Why nothing flows; `None` while only suspects are told apart.
    pub(super) fault: Option<Fault>,
    stage: Stage,
    until: Instant,
    unsettled: usize,
    rows: usize,
    /// Whether a round passed since the last failure.
    proven: bool,
    /// Rows up to here were refused in company: their rounds shrink until one is refused alone.
    suspects: Option<i64>,
    /// The row of a round of one.
    pub(super) alone: Option<Alone>,
    /// Whether it ever failed, rather than only told suspects apart.
    failed: bool,
    delays: Delays,
}

impl Pause {
    fn new(destination: Arc<Destination>, key: Option<Bytes>, delays: Delays, unsettled: usize) -> Self {
        Self {
            destination,
            key,
            from: None,
            fault: None,
            stage: Stage::Waiting,
            until: Instant::now(),
            unsettled,
            rows: 1,
            proven: false,
            suspects: None,
            alone: None,
            failed: false,
            delays,
        }
    }

    /// A row that must be read again.
    pub(super) fn skip(&mut self, seq: i64) {
        self.from = Some(self.from.map_or(seq, |from| from.min(seq)));
    }

    /// The destination or key does not take `seq`: wait, and begin with a single row.
    pub(super) fn fail(&mut self, seq: i64, fault: Fault) {
        self.stop_reading(seq);
        // Rows that fail together are one failure, not many.
        if self.stage != Stage::Waiting || self.fault.is_none() {
            self.until = Instant::now() + self.delays.next();
        }
        self.stage = Stage::Waiting;
        self.fault = Some(fault);
        self.failed = true;
        (self.rows, self.proven, self.alone) = (1, false, None);
    }

    fn stop_reading(&mut self, failed: i64) {
        self.skip(failed);
        if let Stage::Reading { from } = self.stage {
            self.skip(from);
        }
    }

    /// Still fails, as a probe says.
    pub(super) fn wait_on(&mut self, fault: Fault) {
        self.until = Instant::now() + self.delays.next();
        self.fault = Some(fault);
    }

    /// The destination to ask about before a row is risked.
    pub(super) fn wants_probe(&self) -> Option<Arc<Destination>> {
        (self.failed && !self.proven).then(|| self.destination.clone())
    }

    /// Whether its beginning was logged, so that its end should be.
    pub(super) fn was_told(&self) -> bool {
        self.failed
    }

    /// `seq` was refused, perhaps for a neighbour's sake: find out with fewer.
    pub(super) fn suspect(&mut self, seq: i64) {
        self.stop_reading(seq);
        match self.stage {
            Stage::Round { .. } => self.rows = (self.rows / 4).max(1),
            _ if self.suspects.is_none() && self.fault.is_none() => self.rows = FIRST_SUSPECTS,
            _ => {}
        }
        self.suspects = Some(self.suspects.map_or(seq, |to| to.max(seq)));
        self.stage = Stage::Waiting;
        self.alone = None;
    }

    /// The row of a round of one was given its verdict: the round goes on without it.
    pub(super) fn judged(&mut self) {
        self.alone = None;
        self.proven = true;
    }

    pub(super) fn is_settled(&self) -> bool {
        self.unsettled == 0
    }

    /// After a reset the rows come again by themselves.
    fn reset(&mut self) {
        self.stage = Stage::Waiting;
        self.from = None;
        self.unsettled = 0;
        self.alone = None;
        self.proven = false;
        self.rows = if self.fault.is_none() { FIRST_SUSPECTS } else { 1 };
    }

    fn is_ready(&self, now: Instant) -> bool {
        self.stage == Stage::Waiting && self.from.is_some() && self.is_settled() && self.until <= now
    }

    /// A settled round has passed; `true` when the pause is over.
    fn round_passed(&mut self, settings: &PumpSettings) -> bool {
        let Stage::Round { next } = self.stage else { return false };
        if let Some(next) = next {
            self.skip(next);
        }
        self.stage = Stage::Waiting;
        self.proven = true;
        self.alone = None;
        self.fault = None;
        self.delays.reset();
        self.until = Instant::now();
        self.rows = (self.rows * 4).min(settings.read_rows);
        self.suspects = self.suspects.filter(|to| self.from.is_some_and(|from| from <= *to));
        self.from.is_none()
    }
}

/// What the rows of a reread mean.
pub(super) enum Reply {
    /// The rows are the last ones: the pause is over, and whatever comes after them flows.
    Over(Pause),
    /// The rows make a round.
    Round,
    /// Nothing is left.
    Empty(Pause),
    /// The pause failed or went meanwhile.
    Stale,
}

/// All pauses.
#[derive(Debug, Default)]
pub(super) struct Pauses {
    destinations: HashMap<Arc<Destination>, Pause>,
    keys: HashMap<u64, Pause>,
}

impl Pauses {
    pub(super) fn is_empty(&self) -> bool {
        self.destinations.is_empty() && self.keys.is_empty()
    }

    pub(super) fn destinations(&self) -> impl ExactSizeIterator<Item = &Pause> {
        self.destinations.values()
    }

    pub(super) fn keys(&self) -> impl ExactSizeIterator<Item = &Pause> {
        self.keys.values()
    }

    fn all(&mut self) -> impl Iterator<Item = &mut Pause> {
        self.destinations.values_mut().chain(self.keys.values_mut())
    }

    pub(super) fn get(&mut self, id: &PauseId) -> Option<&mut Pause> {
        match id {
            PauseId::Destination(destination) => self.destinations.get_mut(destination),
            PauseId::Key(order) => self.keys.get_mut(order),
        }
    }

    /// Whether a row must not be sent now; it is remembered then. `round` may pass its own pause.
    pub(super) fn stops(
        &mut self,
        destination: &Destination,
        order: u64,
        seq: i64,
        round: Option<&PauseId>,
    ) -> bool {
        let own = matches!(round, Some(PauseId::Destination(own)) if **own == *destination);
        if !own && let Some(pause) = self.destinations.get_mut(destination) {
            pause.skip(seq);
            return true;
        }
        let own = matches!(round, Some(PauseId::Key(own)) if *own == order);
        if !own && let Some(pause) = self.keys.get_mut(&order) {
            pause.skip(seq);
            return true;
        }
        false
    }

    /// The destination's pause, made if need be; `unsettled` are all rows that are not settled.
    pub(super) fn destination<'a>(
        &mut self,
        destination: &Arc<Destination>,
        unsettled: impl Iterator<Item = &'a Entry>,
        settings: &PumpSettings,
    ) -> &mut Pause {
        self.destinations.entry(destination.clone()).or_insert_with(|| {
            let unsettled = unsettled.filter(|entry| entry.destination == *destination).count();
            let delays = Delays::new(settings.pause_min, settings.pause_max);
            Pause::new(destination.clone(), None, delays, unsettled)
        })
    }

    /// The key's pause, made if need be.
    pub(super) fn key<'a>(
        &mut self,
        destination: &Arc<Destination>,
        row: &Alone,
        unsettled: impl Iterator<Item = &'a Entry>,
        settings: &PumpSettings,
    ) -> &mut Pause {
        self.keys.entry(row.order).or_insert_with(|| {
            let unsettled = unsettled.filter(|entry| entry.order == row.order).count();
            let delays = Delays::new(settings.blocked_retry, settings.blocked_retry);
            Pause::new(destination.clone(), row.key.clone(), delays, unsettled)
        })
    }

    /// A row was submitted.
    pub(super) fn departed(&mut self, entry: &Entry) {
        self.count(entry, |unsettled| *unsettled += 1);
    }

    /// A row is no longer under way, nor confirmed and undeleted.
    pub(super) fn settled(&mut self, entry: &Entry) {
        self.count(entry, |unsettled| *unsettled = unsettled.saturating_sub(1));
    }

    fn count(&mut self, entry: &Entry, mut change: impl FnMut(&mut usize)) {
        if self.is_empty() {
            return;
        }
        if let Some(pause) = self.destinations.get_mut(&entry.destination) {
            change(&mut pause.unsettled);
        }
        if let Some(pause) = self.keys.get_mut(&entry.order) {
            change(&mut pause.unsettled);
        }
    }

    /// A pause that may be tried now; without a probe unless one may be sent. Keys of a paused destination wait for it.
    pub(super) fn ready(&self, now: Instant, may_probe: bool) -> Option<PauseId> {
        let is_ready = |pause: &&Pause| pause.is_ready(now) && (may_probe || pause.wants_probe().is_none());
        let destination = self.destinations.values().filter(is_ready).min_by_key(|pause| pause.until);
        if let Some(pause) = destination {
            return Some(PauseId::Destination(pause.destination.clone()));
        }
        let keys = self
            .keys
            .iter()
            .filter(|(_, pause)| is_ready(pause) && !self.destinations.contains_key(&pause.destination));
        keys.min_by_key(|(_, pause)| pause.until).map(|(order, _)| PauseId::Key(*order))
    }

    /// When the next pause's time comes; those that wait for rows to settle are not counted.
    pub(super) fn due(&self) -> Option<Instant> {
        let all = self.destinations.values().chain(self.keys.values());
        all.filter(|pause| pause.stage == Stage::Waiting && pause.from.is_some() && pause.is_settled())
            .map(|pause| pause.until)
            .min()
    }

    /// What to read again for a pause that is ready, and how many rows.
    pub(super) fn begin(&mut self, id: &PauseId) -> Option<(Reread, usize)> {
        let pause = self.get(id)?;
        let from = pause.from.take()?;
        pause.stage = Stage::Reading { from };
        let what = Reread { destination: (*pause.destination).clone(), key: pause.key.clone(), from };
        Some((what, pause.rows))
    }

    /// Rows were read again: up to `last`, and perhaps there are more.
    pub(super) fn reread(&mut self, id: &PauseId, last: Option<i64>, more: bool) -> Reply {
        let Some(pause) = self.get(id) else { return Reply::Stale };
        if !matches!(pause.stage, Stage::Reading { .. }) {
            return Reply::Stale;
        }
        let next = last.filter(|_| more).map(|last| last + 1);
        pause.stage = Stage::Round { next };
        let over = next.is_none() && pause.proven && pause.suspects.is_none() && pause.from.is_none();
        let empty = last.is_none() && !more && pause.from.is_none();
        match (empty, over) {
            (true, _) => self.remove(id).map_or(Reply::Stale, Reply::Empty),
            (_, true) => self.remove(id).map_or(Reply::Stale, Reply::Over),
            _ => Reply::Round,
        }
    }

    /// What was read again is no business of the pause, and there is more, from `next` on.
    pub(super) fn read_on(&mut self, id: &PauseId, next: i64) {
        if let Some(pause) = self.get(id)
            && matches!(pause.stage, Stage::Reading { .. })
        {
            pause.stage = Stage::Waiting;
            pause.skip(next);
        }
    }

    /// Ends rounds whose rows have all settled, but for the one whose rows still wait to be submitted; returns the
    /// pauses that are over.
    pub(super) fn end_rounds(
        &mut self,
        unsubmitted: Option<&PauseId>,
        settings: &PumpSettings,
    ) -> Vec<Pause> {
        let mut over = Vec::new();
        let held = |id: PauseId| unsubmitted == Some(&id);
        let ended = |pause: &Pause| matches!(pause.stage, Stage::Round { .. }) && pause.is_settled();
        let destinations = self.destinations.extract_if(|_, pause| {
            ended(pause)
                && !held(PauseId::Destination(pause.destination.clone()))
                && pause.round_passed(settings)
        });
        over.extend(destinations.map(|(_, pause)| pause));
        let keys = self.keys.extract_if(|order, pause| {
            ended(pause) && !held(PauseId::Key(*order)) && pause.round_passed(settings)
        });
        over.extend(keys.map(|(_, pause)| pause));
        over
    }

    fn remove(&mut self, id: &PauseId) -> Option<Pause> {
        match id {
            PauseId::Destination(destination) => self.destinations.remove(destination),
            PauseId::Key(order) => self.keys.remove(order),
        }
    }

    /// All rows come again: nothing is remembered but that the pauses are.
    pub(super) fn reset(&mut self) {
        self.all().for_each(Pause::reset);
    }

    /// Removes pauses that no row has met since the reset, once all rows have been read.
    pub(super) fn drop_unmet(&mut self) -> Vec<Pause> {
        let unmet = |pause: &Pause| pause.from.is_none() && pause.stage == Stage::Waiting;
        let destinations = self.destinations.extract_if(|_, pause| unmet(pause)).map(|(_, pause)| pause);
        let mut gone: Vec<Pause> = destinations.collect();
        gone.extend(self.keys.extract_if(|_, pause| unmet(pause)).map(|(_, pause)| pause));
        gone
    }

    pub(super) fn clear(&mut self) {
        self.destinations.clear();
        self.keys.clear();
    }
}
