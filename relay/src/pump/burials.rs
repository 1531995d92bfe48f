//! Moving rows that can never be sent to the dead, while all else goes on: however long that fails, it concerns nobody
//! but these rows.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use backstop_core::AdapterError;
use backstop_core::lease::Lease;
use backstop_core::outbox::{Claimed, DeadRow, OutboxStore, RowId};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::outage::Outage;
use super::settings::PumpSettings;
use super::settling::guarded;

/// Rows that may wait for their burial. More are forgotten, and read again when burials work.
const MOST: usize = 10_000;

/// Rows of the first burial.
const FIRST: usize = 100;
/// Burials that take longer become smaller, and quicker ones larger: the lease cannot be renewed while rows move.
const QUICK: Duration = Duration::from_millis(500);

/// A burial that has ended.
#[derive(Debug)]
pub(super) struct Buried {
    pub(super) rows: Vec<DeadRow>,
    pub(super) took: Duration,
    /// Of the lease under which it began.
    pub(super) token: i64,
    /// Whether the lease was still ours.
    pub(super) result: Result<bool, AdapterError>,
}

/// Rows that wait for their burial, and those that are being buried.
pub(super) struct Burials {
    store: Arc<dyn OutboxStore>,
    dead: VecDeque<DeadRow>,
    /// All rows that wait, that are being buried, or that were buried since the last read began: what is read may
    /// still contain them, and they are not to be judged twice.
    known: HashSet<RowId>,
    /// Those of them that were buried since the last read began.
    gone: Vec<RowId>,
    /// Rows were forgotten because too many waited.
    overflowed: bool,
    not_before: Instant,
    /// Rows that one burial takes: fewer after one that took long, and after one that failed, so that a row which cannot
    /// be buried keeps no other from it.
    at_once: usize,
    outage: Outage,
    task: JoinSet<Buried>,
}

impl Burials {
    pub(super) fn new(store: Arc<dyn OutboxStore>, settings: &PumpSettings) -> Self {
        Self {
            store,
            dead: VecDeque::new(),
            known: HashSet::new(),
            gone: Vec::new(),
            overflowed: false,
            not_before: Instant::now(),
            at_once: FIRST,
            outage: Outage::new("moving rows to the dead", settings.retry_min, settings.retry_max),
            task: JoinSet::new(),
        }
    }

    /// This row can never be sent. A row that waits already is not taken in twice.
    pub(super) fn add(&mut self, row: DeadRow) {
        if self.known.len() >= MOST {
            self.overflowed = true;
        } else if self.known.insert(name(&row)) {
            self.dead.push_back(row);
        }
    }

    /// Rows that wait, those under way included.
    pub(super) fn unburied(&self) -> usize {
        self.known.len() - self.gone.len()
    }

    /// Whether reading ahead should wait for a burial that is about to come. It does not wait for one that fails.
    pub(super) fn are_behind(&self, rows: usize) -> bool {
        self.dead.len() >= rows && !self.outage.is_on()
    }

    /// Whether a shutdown need not wait: there is nothing to bury, or it fails.
    pub(super) fn are_at_rest(&self) -> bool {
        (self.task.is_empty() && self.dead.is_empty()) || self.outage.is_on()
    }

    /// When to bury next; `None` when nothing waits or a burial is under way.
    pub(super) fn due(&self) -> Option<Instant> {
        (!self.dead.is_empty() && self.task.is_empty()).then_some(self.not_before)
    }

    /// Starts a burial when it is due.
    pub(super) fn start(&mut self, now: Instant, lease: &Lease, limit: Duration) {
        if self.due().is_none_or(|due| due > now) {
            return;
        }
        let rows: Vec<DeadRow> = self.dead.drain(..self.dead.len().min(self.at_once)).collect();
        let (store, lease) = (self.store.clone(), lease.clone());
        self.task.spawn(async move {
            let begun = Instant::now();
            let result = guarded(limit, "burying", store.bury(&lease, &rows)).await;
            Buried { rows, took: begun.elapsed(), token: lease.token, result }
        });
    }

    /// Waits for a burial to end; for ever when there is none. Cancel-safe.
    pub(super) async fn done(&mut self) -> Buried {
        match self.task.join_next().await {
            Some(ended) => ended.expect("burials catch their panics and are never aborted"),
            None => std::future::pending().await,
        }
    }

    /// These rows are dead; `true` when others were forgotten, must be read again, and have room.
    pub(super) fn succeeded(&mut self, rows: &[DeadRow], took: Duration) -> bool {
        self.outage.works();
        self.at_once = if took > QUICK { rows.len() / 2 } else { self.at_once * 2 }.clamp(1, MOST);
        self.gone.extend(rows.iter().map(name));
        self.dead.len() < MOST / 2 && std::mem::take(&mut self.overflowed)
    }

    /// These rows could not be moved: they are tried again, after all others.
    pub(super) fn failed(&mut self, rows: Vec<DeadRow>, error: &AdapterError) {
        self.at_once = (rows.len() / 2).max(1);
        self.not_before = Instant::now() + self.outage.failed(error);
        self.dead.extend(rows);
    }

    /// These rows are to be buried under another lease.
    pub(super) fn again(&mut self, rows: Vec<DeadRow>) {
        self.dead.extend(rows);
    }

    /// Forgets rows: they are still in the outbox, are read again and judged anew.
    pub(super) fn forget(&mut self, rows: &[DeadRow]) {
        for row in rows {
            self.known.remove(&name(row));
        }
    }

    /// Forgets all rows that wait, though not those that are being buried.
    pub(super) fn abandon(&mut self) {
        for row in std::mem::take(&mut self.dead) {
            self.known.remove(&name(&row));
        }
        self.overflowed = false;
    }

    /// A read begins: it cannot bring what was buried before.
    pub(super) fn reading(&mut self) {
        for row in self.gone.drain(..) {
            self.known.remove(&row);
        }
    }

    /// Takes rows out that wait for their burial, or were buried while the read was under way.
    pub(super) fn take_out(&self, claimed: &mut Claimed) {
        if !self.known.is_empty() {
            claimed.rows.retain(|row| !self.known.contains(&row.row_id()));
            claimed.unreadable.retain(|row| !self.known.contains(&name(row)));
        }
    }
}

fn name(row: &DeadRow) -> RowId {
    RowId { seq: row.seq, id: row.id.clone() }
}
