//! What stays unconfirmed: silent destinations are paused, and what would stop everything is given up.

use std::collections::BTreeSet;

use backstop_core::sink::{PublishError, Scope};
use backstop_core::{AdapterError, FaultKind};
use tokio::time::{Duration, Instant, timeout};
use tracing::warn;

use super::engine::{Engine, Phase};
use super::pauses::PauseId;
use super::status::PumpError;

/// Giving up waits for no broker; a publisher that waits nevertheless is cut off.
const ABANDON_LIMIT: Duration = Duration::from_secs(1);
/// Silent destinations may keep one part in so many of what may be under way.
const SHARE: usize = 4;
/// Destinations that are named in a log line.
const NAMED: usize = 5;
const HINT: &str = "check that the destinations still exist and can store: on Kafka a leader and min.insync.replicas \
                    for each partition, on RabbitMQ a majority for quorum queues and no alarm";

impl Engine {
    /// When to look next at what is under way.
    pub(super) fn stall_due(&self) -> Option<Instant> {
        if self.flight.under_way() == 0 || self.stop.is_some() {
            return None;
        }
        Some(match self.phase {
            Phase::Running => self.silence.due(),
            _ => self.abandoned.unwrap_or(self.progress) + self.settings.stall_after,
        })
    }

    /// Ends the wait for confirmations that do not come.
    pub(super) async fn watch_for_stall(&mut self) {
        if self.flight.under_way() == 0 {
            self.abandoned = None;
            return;
        }
        if self.stop.is_some() {
            return;
        }
        let limit = self.settings.stall_after;
        match (self.phase, self.abandoned) {
            (Phase::Running, _) if self.silence.due() <= self.now => {
                if self.pause_silent() {
                    self.abandon().await;
                }
            }
            (Phase::Running, _) => {}
            (_, Some(abandoned)) if abandoned + limit <= self.now => {
                let (under_way, destinations) = (self.flight.under_way(), self.unconfirmed());
                self.fail(PumpError::Unconfirmed { under_way, destinations });
            }
            (_, Some(_)) => {}
            (_, None) => {
                let silent =
                    self.flight.entries().all(|entry| self.silence.is_silent(&entry.destination, self.now));
                if silent || self.progress + limit <= self.now {
                    self.abandon().await;
                }
            }
        }
    }

    /// Pauses destinations that confirm nothing; `true` when they keep so much under way that others suffer.
    fn pause_silent(&mut self) -> bool {
        let silent = self.silence.look(self.now, &self.flight);
        for (destination, held) in &silent {
            let pause = self.pauses.get(&PauseId::Destination(destination.clone()));
            if pause.is_none_or(|pause| pause.fault.is_none()) && self.phase == Phase::Running {
                let seconds = self.settings.stall_after.as_secs();
                let what = format!("{destination} has confirmed nothing for {seconds} s");
                let error = AdapterError::new(FaultKind::Unreachable, what).with_hint(HINT);
                self.pause(destination, held.lowest, &PublishError::new(Scope::Destination, error));
            }
        }
        let rows: usize = silent.values().map(|held| held.rows).sum();
        let bytes: usize = silent.values().map(|held| held.bytes).sum();
        rows > 0
            && (rows * SHARE >= self.publisher.window()
                || bytes * SHARE >= self.settings.in_flight_bytes
                || self.held_back.is_some())
    }

    /// Lets the publisher give up everything under way, and begins again when it has.
    async fn abandon(&mut self) {
        let what =
            format!("no confirmation in time from {}, giving up what is under way", self.unconfirmed());
        let error = AdapterError::new(FaultKind::Unreachable, what).with_hint(HINT);
        self.board.fault(&error);
        let wait = self.broker.failed(&error);
        self.begin_again_after(wait);
        self.abandoned = Some(self.now);
        if timeout(ABANDON_LIMIT, self.publisher.abandon()).await.is_err() {
            warn!("the broker's client does not give up at once what is under way");
        }
    }

    /// The destinations that have something under way.
    fn unconfirmed(&self) -> String {
        let names: BTreeSet<_> = self.flight.entries().map(|entry| &*entry.destination).collect();
        let mut text: Vec<String> = names.iter().take(NAMED).map(ToString::to_string).collect();
        if names.len() > NAMED {
            text.push(format!("{} more", names.len() - NAMED));
        }
        text.join(", ")
    }
}
