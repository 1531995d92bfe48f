//! Waiting for something that is down: when to try again, and one line in the log for each change.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use backstop_core::AdapterError;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::exit::with_cause;

/// Delays that double from `min` to `max` for ever, each of them somewhere between the half and the whole.
#[derive(Debug)]
pub(super) struct Delays {
    builder: ExponentialBuilder,
    delays: ExponentialBackoff,
    max: Duration,
}

impl Delays {
    pub(super) fn new(min: Duration, max: Duration) -> Self {
        // `backon` adds up to as much again: nobody waits for longer than the `max` that was asked for.
        let builder = ExponentialBuilder::default()
            .with_min_delay(min / 2)
            .with_max_delay(max / 2)
            .without_max_times()
            .with_jitter();
        Self { builder, delays: builder.build(), max }
    }

    pub(super) fn next(&mut self) -> Duration {
        self.delays.next().unwrap_or(self.max)
    }

    pub(super) fn reset(&mut self) {
        self.delays = self.builder.build();
    }
}

/// The broker or the database, as far as it fails.
#[derive(Debug)]
pub(super) struct Outage {
    what: &'static str,
    delays: Delays,
    down: Option<(Instant, String)>,
}

impl Outage {
    pub(super) fn new(what: &'static str, min: Duration, max: Duration) -> Self {
        Self { what, delays: Delays::new(min, max), down: None }
    }

    /// It failed; returns how long to wait.
    pub(super) fn failed(&mut self, error: &AdapterError) -> Duration {
        let text = error.to_string();
        let wait = self.delays.next();
        let known = self.down.as_ref().is_some_and(|(_, before)| *before == text);
        if !known {
            warn!(
                of = self.what,
                error = with_cause(error),
                hint = error.hint(),
                "outage, waiting for it to end"
            );
            let since = self.down.take().map_or_else(Instant::now, |(since, _)| since);
            self.down = Some((since, text));
        }
        wait
    }

    /// Whether it failed last time.
    pub(super) fn is_on(&self) -> bool {
        self.down.is_some()
    }

    /// Since when it fails.
    pub(super) fn since(&self) -> Option<Instant> {
        self.down.as_ref().map(|(since, _)| *since)
    }

    /// It works.
    pub(super) fn works(&mut self) {
        if let Some((since, _)) = self.down.take() {
            self.delays.reset();
            info!(of = self.what, seconds = since.elapsed().as_secs_f64(), "outage over");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_delay_is_longer_than_asked_nor_shorter_than_half() {
        let (min, max) = (Duration::from_millis(200), Duration::from_secs(10));
        for _ in 0..100 {
            let mut delays = Delays::new(min, max);
            let mut whole = min;
            for _ in 0..12 {
                let delay = delays.next();
                assert!(delay >= whole / 2 && delay <= whole, "{delay:?} of {whole:?}");
                whole = (whole * 2).min(max);
            }
        }
    }
}
