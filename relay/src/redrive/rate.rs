//! How many letters may be sent now.

use std::time::Duration;

use tokio::time::{Instant, sleep};

/// What was not used of the rate may be used for so long afterwards, so that short waits for database and broker do not
/// slow a redrive down.
const BURST: f64 = 0.25;

/// A bucket of tokens, one for each letter. It begins all but empty.
#[derive(Debug)]
pub(super) struct Bucket {
    tokens: f64,
    filled: Instant,
}

impl Bucket {
    pub(super) fn new() -> Self {
        Self { tokens: 1.0, filled: Instant::now() }
    }

    /// Waits until at least one letter may be sent at `rate` letters a second, and says how many, at most `most`. They
    /// count as sent.
    pub(super) async fn take(&mut self, rate: Option<f64>, most: u32) -> u32 {
        let Some(rate) = rate.filter(|rate| rate.is_finite() && *rate > 0.0) else { return most };
        loop {
            self.fill(rate);
            if self.tokens >= 1.0 {
                let taken = self.tokens.floor().min(f64::from(most));
                self.tokens -= taken;
                return taken as u32;
            }
            sleep(Duration::from_secs_f64(((1.0 - self.tokens) / rate).clamp(0.001, 60.0))).await;
        }
    }

    /// Gives back what was not sent after all.
    pub(super) fn give_back(&mut self, letters: u32) {
        self.tokens += f64::from(letters);
    }

    fn fill(&mut self, rate: f64) {
        let now = Instant::now();
        let fresh = now.duration_since(self.filled).as_secs_f64() * rate;
        self.tokens = (self.tokens + fresh).min((rate * BURST).max(1.0));
        self.filled = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn taken_in(seconds: u64, rate: f64, bucket: &mut Bucket) -> f64 {
        let until = Instant::now() + Duration::from_secs(seconds);
        let mut taken = 0;
        while Instant::now() < until {
            taken += bucket.take(Some(rate), 250).await;
            sleep(Duration::from_millis(7)).await;
        }
        f64::from(taken)
    }

    #[tokio::test(start_paused = true)]
    async fn the_rate_is_kept_and_can_be_changed() {
        let mut bucket = Bucket::new();
        for rate in [2_000.0, 10.0, 500.0, 3.5] {
            let expected = rate * 30.0;
            let taken = taken_in(30, rate, &mut bucket).await;
            assert!((taken - expected).abs() < expected * 0.05, "{taken} at {rate}/s");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_long_rest_is_no_licence_for_a_flood() {
        let mut bucket = Bucket::new();
        bucket.take(Some(100.0), 1).await;
        sleep(Duration::from_secs(3_600)).await;
        assert_eq!(bucket.take(Some(100.0), 1_000).await, 25);
        assert_eq!(Bucket::new().take(None, 250).await, 250, "without a rate there is nothing to wait for");
    }
}
