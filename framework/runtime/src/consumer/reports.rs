//! Reports of the consumer itself, now and then and whenever its state changes.

use std::future::Future;

use backstop_core::ConsumerReport;
use backstop_core::held::HeldMessages;
use backstop_core::report_in::{BreakerState, ConsumerState, EVERY};
use tokio::time::{Instant, sleep_until, timeout};

use crate::consumer::context::Context;
use crate::consumer::receipts::FAREWELL_LIMIT;
use crate::consumer::transactional::Transactional;
use crate::control::breaker::BreakerPhase;

/// Longest version that is told, in bytes.
const MAX_VERSION: usize = 64;

impl<D> Context<D> {
    /// Reports until the consumer stops; `facts` adds what is known beside the state.
    pub(crate) async fn report_in<F: Future<Output = ConsumerReport>>(
        &self,
        facts: impl Fn(ConsumerReport) -> F,
    ) {
        let mut changes = self.control.gate.changes();
        while !self.stop.is_cancelled() {
            changes.borrow_and_update();
            let Some(report) = self.report() else { return };
            let told = (report.state, report.breaker);
            self.send_report(facts(report).await).await;
            let due = Instant::now() + EVERY;
            while self.standing() == told {
                tokio::select! {
                    () = sleep_until(due) => break,
                    // The sender lives as long as this context.
                    _ = changes.changed() => {}
                    () = self.stop.cancelled() => return,
                }
            }
        }
    }

    /// The last report of a consumer that ends in order.
    pub(crate) async fn sign_off(&self) {
        if let Some(report) = self.report() {
            let report = ConsumerReport { state: ConsumerState::Stopped, breaker: None, lag: None, ..report };
            // Silence tells the same, only later.
            let _ = timeout(FAREWELL_LIMIT, self.send_report(report)).await;
        }
    }

    /// How it stands: what a report is sent for at once.
    fn standing(&self) -> (ConsumerState, Option<BreakerState>) {
        let gate = &self.control.gate;
        let state = if gate.is_paused() { ConsumerState::Paused } else { ConsumerState::Running };
        let breaker = match gate.state().0 {
            BreakerPhase::Closed => BreakerState::Closed,
            BreakerPhase::Closing => BreakerState::Probing,
            BreakerPhase::Open => BreakerState::Open,
        };
        (state, Some(breaker))
    }

    /// A report with what is known without asking anybody; `None` where nobody wants reports.
    fn report(&self) -> Option<ConsumerReport> {
        let desk = self.desk.as_ref()?;
        let (state, breaker) = self.standing();
        let mut report = ConsumerReport::new(&self.consumer, &desk.instance, state);
        report.breaker = breaker;
        let closings = self.control.gate.closings();
        (report.breaker_closings, report.breaker_closed_at) = (Some(closings.number), closings.last);
        let lags: Vec<u64> = self.control.partitions().iter().filter_map(|partition| partition.lag).collect();
        report.lag = (!lags.is_empty()).then(|| lags.iter().sum());
        let version: String = self.version.chars().filter(|letter| !letter.is_control()).collect();
        let version = backstop_core::report::cut(&version, MAX_VERSION);
        report.version = Some(version).filter(|version| !version.is_empty());
        Some(report)
    }

    /// Publishes a report once: the next one says more than a late one.
    async fn send_report(&self, report: ConsumerReport) {
        if let Err(error) = self.tell(report.to_message()).await {
            let (consumer, hint) = (&self.consumer, error.error().hint());
            tracing::warn!(%consumer, %error, hint, "the consumer could not report in");
        }
    }
}

impl<I: HeldMessages, H, C, D> Transactional<I, H, C, D> {
    /// A report with what the database knows.
    pub(crate) async fn facts(&self, mut report: ConsumerReport) -> ConsumerReport {
        report.inbox_retention_seconds = Some(self.retention.as_secs());
        if let Ok(summary) = self.inbox.summary(&self.context.consumer).await {
            report.held = Some(summary.messages);
            report.oldest_held_seconds = summary.oldest.map(|age| age.as_secs());
        }
        report
    }
}
