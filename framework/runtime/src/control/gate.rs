//! Where attempts wait while something is down, or somebody wants the consumer to wait.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use opentelemetry::KeyValue;
use opentelemetry::metrics::Gauge;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::control::breaker::{Admission, Attempt, Breaker, BreakerCause, BreakerPhase, Outcome};

/// The breaker, the switch beside it, and who is under way.
#[derive(Debug)]
pub(crate) struct Gate {
    breaker: Mutex<Breaker>,
    paused: AtomicBool,
    /// Whether everything passes at once, without a look at the breaker.
    wide: AtomicBool,
    at_work: AtomicUsize,
    /// Whoever has this is the next to pass; others wait for it in their order, so that probes rotate over keys.
    next: tokio::sync::Mutex<()>,
    changed: watch::Sender<()>,
    /// When the breaker changed last, or somebody paused or resumed.
    changed_at: Mutex<Instant>,
    closings: Mutex<Closings>,
    voice: OnceLock<Voice>,
}

/// How often the breaker has closed after it had been open, and when last.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Closings {
    pub(crate) number: u64,
    pub(crate) last: Option<DateTime<Utc>>,
}

/// What the source is to be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Appetite {
    Everything,
    /// As much as probes need: more only when nothing waits.
    Probes,
    Nothing,
}

/// Who speaks of changes.
#[derive(Debug)]
struct Voice {
    consumer: String,
    gauge: Gauge<u64>,
}

/// Something is under way until this is dropped.
#[derive(Debug)]
pub(crate) struct Pass<'a> {
    gate: &'a Gate,
    /// When it was admitted, where that was asked for.
    admitted: Option<Instant>,
    /// Whether it is counted by itself, and not as part of another one.
    counted: bool,
}

impl Default for Gate {
    fn default() -> Self {
        Self {
            breaker: Mutex::new(Breaker::new(1)),
            paused: AtomicBool::new(false),
            wide: AtomicBool::new(true),
            at_work: AtomicUsize::new(0),
            next: tokio::sync::Mutex::new(()),
            changed: watch::Sender::new(()),
            changed_at: Mutex::new(Instant::now()),
            closings: Mutex::default(),
            voice: OnceLock::new(),
        }
    }
}

impl Gate {
    /// Tells how many pass at once when nothing is down, and who speaks.
    pub(crate) fn start(&self, consumer: &str, workers: usize) {
        let meter = opentelemetry::global::meter("backstop");
        let gauge = meter
            .u64_gauge("backstop_breaker_state")
            .with_description("0 while the breaker is closed, 1 while it closes, 2 while it is open.")
            .build();
        let voice = self.voice.get_or_init(|| Voice { consumer: consumer.to_owned(), gauge });
        let mut breaker = self.lock();
        breaker.set_workers(workers);
        voice.record(breaker.state().0);
    }

    /// Waits until an attempt may begin; `None` when the consumer stops before.
    pub(crate) async fn pass(&self, stop: &CancellationToken) -> Option<Pass<'_>> {
        self.at_work.fetch_add(1, Ordering::SeqCst);
        if self.is_wide() {
            return Some(Pass { gate: self, admitted: None, counted: true });
        }
        self.at_work.fetch_sub(1, Ordering::SeqCst);
        let admitted = self.wait(stop).await?;
        Some(Pass { gate: self, admitted: Some(admitted), counted: true })
    }

    /// Waits again in the middle of what has a [`pass`](Gate::pass); `None` when the consumer stops before.
    pub(crate) async fn again(&self, stop: &CancellationToken) -> Option<Pass<'_>> {
        if self.is_wide() {
            return Some(Pass { gate: self, admitted: None, counted: false });
        }
        self.at_work.fetch_sub(1, Ordering::SeqCst);
        self.changed.send_replace(());
        let admitted = self.wait(stop).await;
        if admitted.is_none() {
            // The pass that it has counts it out.
            self.at_work.fetch_add(1, Ordering::SeqCst);
        }
        Some(Pass { gate: self, admitted: Some(admitted?), counted: false })
    }

    async fn wait(&self, stop: &CancellationToken) -> Option<Instant> {
        let admitted = async {
            let _next = self.next.lock().await;
            let mut changes = self.changed.subscribe();
            loop {
                changes.borrow_and_update();
                match self.admit() {
                    Ok(admitted) => return admitted,
                    // The sender lives as long as the gate.
                    Err(None) => {
                        let _ = changes.changed().await;
                    }
                    Err(Some(until)) => {
                        tokio::select! {
                            _ = changes.changed() => {}
                            () = sleep_until(until) => {}
                        }
                    }
                }
            }
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => None,
            admitted = admitted => Some(admitted),
        }
    }

    /// When it was admitted, or when to ask again.
    fn admit(&self) -> Result<Instant, Option<Instant>> {
        if self.is_paused() {
            return Err(None);
        }
        let now = Instant::now();
        match self.change(|breaker| breaker.admit(self.at_work.load(Ordering::SeqCst), now)) {
            Admission::Go => {
                self.at_work.fetch_add(1, Ordering::SeqCst);
                Ok(now)
            }
            Admission::Wait(until) => Err(until),
        }
    }

    /// Whether everything passes at once.
    pub(crate) fn is_wide(&self) -> bool {
        self.wide.load(Ordering::SeqCst)
    }

    /// What the source is to be asked for now.
    pub(crate) fn appetite(&self) -> Appetite {
        if self.is_wide() {
            return Appetite::Everything;
        }
        match self.state() {
            _ if self.is_paused() => Appetite::Nothing,
            (_, Some((BreakerCause::Operator, _))) => Appetite::Nothing,
            (BreakerPhase::Open, _) => Appetite::Probes,
            _ => Appetite::Everything,
        }
    }

    /// Rings with each change of what passes.
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// How the breaker stands, and since when and why where it is open.
    pub(crate) fn state(&self) -> (BreakerPhase, Option<(BreakerCause, Instant)>) {
        let now = Instant::now();
        self.change(|breaker| {
            breaker.tick(now);
            breaker.state()
        })
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.paused.load(Ordering::SeqCst)
    }

    pub(crate) fn set_paused(&self, paused: bool) {
        self.change(|_| self.paused.store(paused, Ordering::SeqCst));
        self.ring();
    }

    pub(crate) fn open(&self) {
        self.change(|breaker| breaker.force_open(Instant::now()));
    }

    pub(crate) fn close(&self) {
        self.change(|breaker| breaker.force_close(Instant::now()));
    }

    pub(crate) fn database_lost(&self) {
        self.change(|breaker| breaker.database_lost(Instant::now()));
    }

    /// The database has answered what was asked then.
    pub(crate) fn database_answered(&self, asked: Instant) {
        if !self.is_wide() {
            self.change(|breaker| breaker.database_answered(asked, Instant::now()));
        }
    }

    /// An attempt has ended; whether it is charged although it was unavailable.
    pub(crate) fn ended(&self, attempt: Attempt, outcome: Outcome) -> bool {
        self.change(|breaker| breaker.ended(attempt, outcome, Instant::now()))
    }

    /// Changes the breaker, and tells of it.
    fn change<R>(&self, change: impl FnOnce(&mut Breaker) -> R) -> R {
        let mut breaker = self.lock();
        let before = breaker.state();
        let result = change(&mut breaker);
        let after = breaker.state();
        self.wide.store(after.0 == BreakerPhase::Closed && !self.is_paused(), Ordering::SeqCst);
        if before.0 != BreakerPhase::Closed && after.0 == BreakerPhase::Closed {
            let mut closings = self.closings.lock().unwrap_or_else(PoisonError::into_inner);
            *closings = Closings { number: closings.number + 1, last: Some(Utc::now()) };
        }
        drop(breaker);
        if before != after {
            if let Some(voice) = self.voice.get() {
                voice.tell(after.0, after.1.map(|(cause, _)| cause));
            }
            self.ring();
        }
        result
    }

    fn ring(&self) {
        *self.changed_at.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        self.changed.send_replace(());
    }

    /// How often the breaker has closed, and when last. Whoever was told before that it is closed finds that closing here.
    pub(crate) fn closings(&self) -> Closings {
        *self.closings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For how long it has been as it is.
    pub(crate) fn unchanged_for(&self) -> Duration {
        self.changed_at.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }

    fn lock(&self) -> MutexGuard<'_, Breaker> {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        if self.counted {
            self.gate.at_work.fetch_sub(1, Ordering::SeqCst);
        }
        if self.gate.is_wide() {
            return;
        }
        if let Some(admitted) = self.admitted {
            self.gate.change(|breaker| breaker.given_back(admitted, Instant::now()));
        }
        self.gate.changed.send_replace(());
    }
}

impl Voice {
    fn tell(&self, state: BreakerPhase, cause: Option<BreakerCause>) {
        self.record(state);
        let consumer = &self.consumer;
        match state {
            BreakerPhase::Open => {
                let cause = cause.map(tracing::field::display);
                tracing::warn!(%consumer, cause, "the breaker opens: the source is paused");
            }
            BreakerPhase::Closing => tracing::info!(%consumer, "the breaker closes by degrees"),
            BreakerPhase::Closed => tracing::info!(%consumer, "the breaker is closed"),
        }
    }

    fn record(&self, state: BreakerPhase) {
        let value = match state {
            BreakerPhase::Closed => 0,
            BreakerPhase::Closing => 1,
            BreakerPhase::Open => 2,
        };
        self.gauge.record(value, &[KeyValue::new("consumer", self.consumer.clone())]);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn gate() -> (Arc<Gate>, CancellationToken) {
        let gate = Gate::default();
        gate.start("tests", 4);
        (Arc::new(gate), CancellationToken::new())
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_waits_passes_in_turn_while_something_is_down() {
        let (gate, stop) = gate();
        gate.database_lost();
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = tokio::task::JoinSet::new();
        for key in 0..3 {
            let (gate, stop, order) = (gate.clone(), stop.clone(), order.clone());
            tasks.spawn(async move {
                for _ in 0..3 {
                    let pass = gate.pass(&stop).await.expect("nobody stops it");
                    order.lock().expect("no panic").push(key);
                    gate.database_lost();
                    drop(pass);
                }
            });
            tokio::task::yield_now().await;
        }
        while tasks.join_next().await.is_some() {}
        assert_eq!(*order.lock().expect("no panic"), [0, 1, 2, 0, 1, 2, 0, 1, 2]);
    }

    #[tokio::test(start_paused = true)]
    async fn it_opens_by_degrees_for_those_that_wait_in_the_middle_of_something_too() {
        let (gate, stop) = gate();
        let mut outer = Vec::new();
        for _ in 0..4 {
            outer.push(gate.pass(&stop).await.expect("wide open"));
        }
        gate.database_lost();
        let began = Instant::now();
        let (a, b) = tokio::join!(
            async {
                let pass = gate.again(&stop).await.expect("a probe");
                gate.database_answered(began + Duration::from_millis(1));
                drop(pass);
                began.elapsed()
            },
            async {
                drop(gate.again(&stop).await.expect("after the probe"));
                began.elapsed()
            },
        );
        assert_eq!(a, Duration::from_millis(250));
        assert!(b <= Duration::from_secs(3), "the others do not count while they wait: {b:?}");
        drop(outer);
        assert_eq!(gate.at_work.load(Ordering::SeqCst), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_holds_everybody_back_until_it_ends_or_the_consumer_stops() {
        let (gate, stop) = gate();
        gate.set_paused(true);
        assert_eq!(gate.appetite(), Appetite::Nothing);
        let waited = tokio::time::timeout(Duration::from_secs(3_600), gate.pass(&stop)).await;
        assert!(waited.is_err(), "nothing passes");
        gate.set_paused(false);
        assert!(gate.pass(&stop).await.is_some());
        gate.set_paused(true);
        let stopping = stop.clone();
        let (passed, ()) = tokio::join!(gate.pass(&stop), async move { stopping.cancel() });
        assert!(passed.is_none());
        assert_eq!(gate.at_work.load(Ordering::SeqCst), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_closing_is_counted_once_and_keeps_its_time() {
        let (gate, _) = gate();
        assert_eq!(gate.closings(), Closings::default());
        let mut before = None;
        for number in 1..=2 {
            gate.open();
            gate.close();
            assert_eq!(gate.closings().number, number - 1, "it closes by degrees");
            tokio::time::sleep(Duration::from_secs(5)).await;
            assert_eq!(gate.state().0, BreakerPhase::Closed);
            let closings = gate.closings();
            assert_eq!(closings.number, number);
            assert!(closings.last.is_some() && closings.last >= before, "{closings:?}");
            before = closings.last;
            gate.state();
            assert_eq!(gate.closings(), closings);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_source_is_asked_for_what_probes_need() {
        let (gate, _) = gate();
        assert_eq!(gate.appetite(), Appetite::Everything);
        gate.database_lost();
        assert_eq!(gate.appetite(), Appetite::Probes);
        gate.open();
        assert_eq!(gate.appetite(), Appetite::Nothing);
        gate.close();
        assert_eq!(gate.appetite(), Appetite::Everything);
    }
}
