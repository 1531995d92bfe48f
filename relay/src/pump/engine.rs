//! The loop: follow the lease, submit, write back, read, and then wait for whatever comes first.

use std::collections::VecDeque;
use std::sync::Arc;

use backstop_core::AdapterError;
use backstop_core::lease::Lease;
use backstop_core::outbox::{OutboxRow, OutboxStore};
use backstop_core::sink::{Confirmation, Publisher};
use tokio::sync::watch;
use tokio::time::{Duration, Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::burials::{Burials, Buried};
use super::flight::{Flight, Names};
use super::intake::{Done, Intake};
use super::outage::Outage;
use super::pauses::{PauseId, Pauses};
use super::promotions::{Promoted, Promotions};
use super::settings::PumpSettings;
use super::settling::{Deleted, Settling};
use super::silence::Silence;
use super::status::{BlockedKey, Board, LISTED, PausedDestination, PumpError, PumpReport, PumpState};
use super::submit::Ready;
use super::traffic::Traffic;
use crate::owner::{Owner, Tenure};

/// How long a publisher that says it is full, with nothing under way, is left alone.
const FULL_RETRY: Duration = Duration::from_millis(5);

/// Where the work stands while the lease is ours, and without it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// No lease.
    Standby,
    /// Rows flow.
    Running,
    /// Something failed: begin again then, once everything has settled.
    Waiting { until: Instant },
}

/// Rows that were read again; they go before the buffer.
#[derive(Default)]
pub(super) struct Slot {
    /// The pause whose round they are; `None` when it is over.
    pub(super) round: Option<PauseId>,
    /// Whether the round is a single row.
    pub(super) alone: bool,
    pub(super) rows: VecDeque<OutboxRow>,
}

enum Event {
    Shutdown,
    Lease(bool),
    Read(Done),
    Deleted(Deleted),
    Buried(Buried),
    Promoted(Promoted),
    Confirmed,
    Tick,
}

pub(super) struct Engine {
    pub(super) publisher: Box<dyn Publisher>,
    pub(super) settings: PumpSettings,
    pub(super) board: Board,
    tenures: watch::Receiver<Option<Tenure>>,
    pub(super) lease_errors: watch::Receiver<Option<Arc<AdapterError>>>,
    pub(super) term: Option<Lease>,
    pub(super) term_until: Instant,
    /// A token that the database refused, and until when we believed in it: what is granted for longer is a new answer,
    /// even under the same token, as by a database that has lost its newest lease.
    pub(super) refused: Option<(i64, Instant)>,
    pub(super) phase: Phase,
    pub(super) now: Instant,
    pub(super) names: Names,
    pub(super) intake: Intake,
    pub(super) slot: Slot,
    pub(super) rereading: Option<PauseId>,
    pub(super) read_again_last: bool,
    pub(super) held_back: Option<Ready>,
    pub(super) full_until: Option<Instant>,
    pub(super) flight: Flight,
    pub(super) confirmations: Vec<Confirmation>,
    pub(super) settling: Settling,
    pub(super) burials: Burials,
    pub(super) promotions: Promotions,
    pub(super) pauses: Pauses,
    pub(super) broker: Outage,
    pub(super) reads: Outage,
    pub(super) writes: Outage,
    pub(super) progress: Instant,
    /// When the broker confirmed something last, or this term began.
    pub(super) last_published: Instant,
    /// When a destination may be probed next.
    pub(super) next_probe: Instant,
    pub(super) silence: Silence,
    pub(super) traffic: Arc<Traffic>,
    /// When everything under way was given up; until it has settled.
    pub(super) abandoned: Option<Instant>,
    /// The database may be another one by now, with other rows under the same numbers: what is confirmed before
    /// reading begins again must not be deleted.
    pub(super) forget: bool,
    pub(super) stop: Option<Instant>,
    pub(super) failure: Option<PumpError>,
}

impl Engine {
    pub(super) fn new(
        store: Arc<dyn OutboxStore>,
        publisher: Box<dyn Publisher>,
        settings: PumpSettings,
        board: Board,
        owner: &Owner,
    ) -> Self {
        let now = Instant::now();
        let outage = |what| Outage::new(what, settings.retry_min, settings.retry_max);
        Self {
            publisher,
            board,
            tenures: owner.tenures(),
            lease_errors: owner.errors(),
            term: None,
            term_until: now,
            refused: None,
            phase: Phase::Standby,
            now,
            names: Names::default(),
            intake: Intake::new(store.clone()),
            slot: Slot::default(),
            rereading: None,
            read_again_last: false,
            held_back: None,
            full_until: None,
            flight: Flight::default(),
            confirmations: Vec::new(),
            settling: Settling::new(store.clone()),
            burials: Burials::new(store.clone(), &settings),
            promotions: Promotions::new(store, &settings),
            pauses: Pauses::default(),
            broker: outage("broker"),
            reads: outage("reading the outbox"),
            writes: outage("writing to the outbox"),
            progress: now,
            last_published: now,
            next_probe: now,
            silence: Silence::new(settings.stall_after, now),
            traffic: Arc::default(),
            abandoned: None,
            forget: false,
            stop: None,
            failure: None,
            settings,
        }
    }

    pub(super) async fn run(&mut self, shutdown: &CancellationToken) -> Result<PumpReport, PumpError> {
        loop {
            self.now = Instant::now();
            self.follow_lease();
            if self.is_over() {
                break;
            }
            self.begin_again_if_due();
            // Before rows are submitted, so that the database works meanwhile; and after, because that made room.
            self.start_reading().await;
            let more = self.submit();
            let flush = self.phase != Phase::Running || self.stop.is_some();
            self.settling.start(self.now, flush, &self.settings);
            self.bury();
            self.promote();
            self.end_rounds();
            self.start_reading().await;
            self.watch_for_stall().await;
            self.show_status();
            let event = self.next_event(more, flush, shutdown).await;
            self.handle(event);
        }
        self.board.urgent();
        self.show_status();
        match self.failure.take() {
            Some(error) => Err(error),
            None => Ok(PumpReport {
                status: self.board.status.clone(),
                unconfirmed: self.flight.under_way(),
                undeleted: self.settling.undeleted(),
            }),
        }
    }

    async fn next_event(&mut self, more: bool, flush: bool, shutdown: &CancellationToken) -> Event {
        let wake = self.wake_at(flush);
        let under_way = self.flight.under_way() > 0;
        tokio::select! {
            biased;
            () = shutdown.cancelled(), if self.stop.is_none() => Event::Shutdown,
            changed = self.tenures.changed(), if self.failure.is_none() => Event::Lease(changed.is_ok()),
            changed = self.lease_errors.changed(), if self.failure.is_none() => Event::Lease(changed.is_ok()),
            done = self.intake.done() => Event::Read(done),
            deleted = self.settling.done() => Event::Deleted(deleted),
            buried = self.burials.done() => Event::Buried(buried),
            promoted = self.promotions.done() => Event::Promoted(promoted),
            () = self.publisher.confirmations(&mut self.confirmations), if under_way => Event::Confirmed,
            () = tokio::task::yield_now(), if more => Event::Tick,
            () = sleep_until(wake) => Event::Tick,
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Tick => return,
            Event::Shutdown => self.stop(),
            Event::Lease(true) => {}
            Event::Lease(false) => self.fail(PumpError::OwnerLost),
            Event::Read(done) => self.read(done),
            Event::Deleted(deleted) => self.deleted(deleted),
            Event::Buried(buried) => self.buried(buried),
            Event::Promoted(promoted) => self.promoted(promoted),
            Event::Confirmed => self.confirmed(),
        }
        self.board.touch();
    }

    /// The next moment at which something is to be done without an event. What is overdue waits for an event.
    fn wake_at(&self, flush: bool) -> Instant {
        let running = self.phase == Phase::Running && self.stop.is_none();
        let waiting = match self.phase {
            Phase::Waiting { until } => Some(until),
            Phase::Standby | Phase::Running => None,
        };
        let moments = [
            self.settling.due(flush, &self.settings),
            self.burials.due().filter(|_| self.phase == Phase::Running),
            self.intake.due(&self.settings).filter(|_| running && !self.intake.is_reading()),
            self.pauses.due().map(|due| due.max(self.next_probe)).filter(|_| running),
            self.promotions.due().filter(|_| running),
            self.term.is_some().then_some(self.term_until),
            self.stall_due(),
            waiting,
            self.full_until,
            self.board.due(),
            self.stop,
        ];
        let next = moments.into_iter().flatten().filter(|moment| *moment > self.now).min();
        next.unwrap_or_else(|| self.now + Duration::from_secs(60))
    }

    fn follow_lease(&mut self) {
        let tenure = self.tenures.borrow_and_update();
        let live = tenure.as_ref().filter(|tenure| {
            let is_refused = |(token, until)| token == tenure.lease.token && tenure.until <= until;
            self.now < tenure.until && !self.refused.is_some_and(is_refused)
        });
        let same = match (&self.term, live) {
            (Some(term), Some(tenure)) => term.token == tenure.lease.token,
            (None, None) => true,
            _ => false,
        };
        if same {
            self.term_until = live.map_or(self.now, |tenure| tenure.until);
            return;
        }
        let next = live.cloned();
        drop(tenure);
        self.leave_term();
        if let Some(tenure) = next
            && self.stop.is_none()
            && self.has_settled()
        {
            self.begin_term(tenure);
        }
    }

    fn begin_term(&mut self, tenure: Tenure) {
        info!(token = tenure.lease.token, "owner of the outbox, reading from the lowest pending row");
        self.board.status.token = Some(tenure.lease.token);
        self.term = Some(tenure.lease);
        self.term_until = tenure.until;
        self.last_published = self.now;
        self.pauses.clear();
        self.begin();
    }

    /// The lease is not ours: nothing is sent, read or buried. What is confirmed may be deleted, since it is
    /// published, unless the lease ran out because nobody could ask the database.
    pub(super) fn leave_term(&mut self) {
        if self.term.take().is_some() {
            if self.term_until <= self.now {
                self.forget_confirmed();
            }
            self.board.status.token = None;
            self.phase = Phase::Standby;
            self.board.urgent();
        }
        self.forget_rows();
        self.burials.abandon();
    }

    /// Whether nothing is under way anywhere. Burials are not waited for: what is read is compared with them.
    fn has_settled(&self) -> bool {
        self.flight.under_way() == 0 && self.settling.undeleted() == 0 && !self.intake.is_reading()
    }

    fn begin_again_if_due(&mut self) {
        if let Phase::Waiting { until } = self.phase
            && until <= self.now
            && self.stop.is_none()
            && self.has_settled()
        {
            self.begin();
        }
    }

    fn begin(&mut self) {
        self.forget_rows();
        self.pauses.reset();
        self.intake.reset();
        self.rereading = None;
        self.forget = false;
        self.phase = Phase::Running;
        self.progress = self.now;
        self.board.urgent();
    }

    /// Drops everything that was read and not submitted.
    fn forget_rows(&mut self) {
        self.intake.clear();
        self.slot = Slot::default();
        self.held_back = None;
        self.full_until = None;
    }

    /// Something that concerns every row failed: let everything settle, wait, and begin again. Rows that wait for their
    /// burial come again with the others.
    pub(super) fn begin_again_after(&mut self, wait: Duration) {
        let later = self.now + wait;
        self.phase = match self.phase {
            Phase::Standby => return,
            Phase::Running => Phase::Waiting { until: later },
            Phase::Waiting { until } => Phase::Waiting { until: until.max(later) },
        };
        self.forget_rows();
        self.burials.abandon();
        self.board.urgent();
    }

    fn stop(&mut self) {
        info!(under_way = self.flight.under_way(), undeleted = self.settling.undeleted(), "shutting down");
        self.stop = Some(self.now + self.settings.drain_timeout);
        self.forget_rows();
        self.board.urgent();
    }

    pub(super) fn fail(&mut self, error: PumpError) {
        if self.failure.is_none() {
            self.failure = Some(error);
        }
        if self.stop.is_none() {
            self.stop();
        }
    }

    fn is_over(&self) -> bool {
        let settled = self.flight.under_way() == 0
            && self.settling.undeleted() == 0
            && self.burials.are_at_rest()
            && self.promotions.are_at_rest();
        self.stop.is_some_and(|deadline| settled || deadline <= self.now)
    }

    pub(super) fn database_failed(&mut self, wait: Duration, error: &AdapterError) {
        self.board.fault(error);
        if error.kind() == backstop_core::FaultKind::Unreachable {
            self.forget_confirmed();
        }
        self.begin_again_after(wait);
    }

    fn forget_confirmed(&mut self) {
        self.forget = true;
        self.settling.abandon();
    }

    fn show_status(&mut self) {
        if self.board.due().is_none_or(|due| due > self.now) {
            return;
        }
        let trouble = self.trouble();
        let status = &mut self.board.status;
        status.trouble = trouble;
        status.state = match self.phase {
            _ if self.stop.is_some() => PumpState::Draining,
            Phase::Standby => PumpState::Standby,
            Phase::Running => PumpState::Running,
            Phase::Waiting { .. } => PumpState::Waiting,
        };
        status.under_way = self.flight.under_way();
        status.undeleted = self.settling.undeleted();
        status.unburied = self.burials.unburied();
        status.buffered = self.intake.buffered();
        let paused = self.pauses.destinations().filter_map(|pause| {
            let fault = pause.fault.clone()?;
            Some(PausedDestination { destination: (*pause.destination).clone(), from: pause.from, fault })
        });
        status.paused = paused.take(LISTED).collect();
        status.paused_count = self.pauses.destinations().filter(|pause| pause.fault.is_some()).count();
        let blocked = self.pauses.keys().filter_map(|pause| {
            let (destination, key) = ((*pause.destination).clone(), pause.key.clone());
            Some(BlockedKey { destination, key, from: pause.from, fault: pause.fault.clone()? })
        });
        status.blocked = blocked.take(LISTED).collect();
        status.blocked_count = self.pauses.keys().len();
        self.board.show(self.now);
    }

    pub(super) fn full(&mut self) {
        self.full_until = Some(self.now + FULL_RETRY);
    }
}
