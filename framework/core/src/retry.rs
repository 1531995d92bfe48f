//! Retry policies: plain data, asked for a delay.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// When to try again, and when to give up.
///
/// A policy holds no clock and no state: asking it twice changes nothing. Delays grow by `factor` from `first_delay`
/// up to `max_delay`, and with `jitter` (full, on by default) the actual delay is drawn evenly from zero to that.
///
/// ```
/// use std::time::Duration;
/// use backstop_core::RetryPolicy;
///
/// let policy = RetryPolicy::exponential(Duration::from_secs(1)).max_attempts(3);
/// assert_eq!(policy.delay_after(1, 1.0), Some(Duration::from_secs(1)));
/// assert_eq!(policy.delay_after(2, 0.5), Some(Duration::from_secs(1)), "half of two seconds");
/// assert_eq!(policy.delay_after(3, 1.0), None, "attempts used up");
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RetryPolicy {
    /// Milliseconds before the second attempt.
    first_delay_ms: u64,
    /// By how much each delay is longer than the one before.
    #[serde(default = "default_factor")]
    factor: f64,
    /// The longest delay, in milliseconds.
    #[serde(default = "default_max_delay_ms")]
    max_delay_ms: u64,
    /// Attempts in all, the first included.
    #[serde(default = "default_max_attempts")]
    max_attempts: u32,
    /// Whether delays are drawn at random.
    #[serde(default = "default_jitter")]
    jitter: bool,
}

const fn default_factor() -> f64 {
    2.0
}
const fn default_max_delay_ms() -> u64 {
    16_000
}
const fn default_max_attempts() -> u32 {
    6
}
const fn default_jitter() -> bool {
    true
}

impl Default for RetryPolicy {
    /// 1 s × 2 up to 16 s, 6 attempts, full jitter.
    fn default() -> Self {
        Self::exponential(Duration::from_secs(1))
    }
}

impl RetryPolicy {
    /// Delays that double from `first`. Defaults: up to 16 s, 6 attempts, full jitter.
    pub const fn exponential(first: Duration) -> Self {
        Self {
            first_delay_ms: first.as_millis() as u64,
            factor: default_factor(),
            max_delay_ms: default_max_delay_ms(),
            max_attempts: default_max_attempts(),
            jitter: default_jitter(),
        }
    }

    /// The same delay each time, without jitter. Defaults: 6 attempts.
    pub const fn fixed(delay: Duration) -> Self {
        let mut policy = Self::exponential(delay);
        policy.factor = 1.0;
        policy.max_delay_ms = policy.first_delay_ms;
        policy.jitter = false;
        policy
    }

    /// Sets by how much each delay is longer than the one before; below 1 counts as 1. Defaults to 2.
    #[must_use]
    pub const fn factor(mut self, factor: f64) -> Self {
        self.factor = factor;
        self
    }

    /// Sets the longest delay. Defaults to 16 s.
    #[must_use]
    pub const fn max_delay(mut self, delay: Duration) -> Self {
        self.max_delay_ms = delay.as_millis() as u64;
        self
    }

    /// Sets the attempts in all, the first included; zero counts as one. Defaults to 6.
    #[must_use]
    pub const fn max_attempts(mut self, attempts: u32) -> Self {
        self.max_attempts = attempts;
        self
    }

    /// Sets whether delays are drawn at random. Defaults to true; without, keys that failed together come back
    /// together.
    #[must_use]
    pub const fn jitter(mut self, jitter: bool) -> Self {
        self.jitter = jitter;
        self
    }

    /// Attempts in all.
    pub fn attempts(&self) -> u32 {
        self.max_attempts.max(1)
    }

    /// How long to wait after `attempt` (the first is 1) has failed; `None` when the attempts are used up.
    ///
    /// `random` is a number from 0 to 1 that the caller draws; outside of that it is clamped.
    pub fn delay_after(&self, attempt: u32, random: f64) -> Option<Duration> {
        if attempt >= self.attempts() {
            return None;
        }
        let exponent = i32::try_from(attempt.saturating_sub(1)).unwrap_or(i32::MAX);
        let full = self.first_delay_ms as f64 * self.factor.max(1.0).powi(exponent);
        let capped =
            if full.is_finite() { full.min(self.max_delay_ms as f64) } else { self.max_delay_ms as f64 };
        let share = if self.jitter && !random.is_nan() { random.clamp(0.0, 1.0) } else { 1.0 };
        Some(Duration::from_millis((capped * share) as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_to_the_cap_and_end() {
        let policy = RetryPolicy::default();
        let delays: Vec<_> =
            (1..=6).map(|attempt| policy.delay_after(attempt, 1.0).map(|d| d.as_secs())).collect();
        assert_eq!(delays, [Some(1), Some(2), Some(4), Some(8), Some(16), None]);
    }

    #[test]
    fn odd_numbers_neither_panic_nor_wait_for_ever() {
        let policy = RetryPolicy::exponential(Duration::from_secs(1)).factor(f64::MAX).max_attempts(u32::MAX);
        for attempt in [0, 1, 2, 1_000, u32::MAX - 1] {
            for random in [-1.0, 0.0, 2.0, f64::NAN, f64::INFINITY] {
                let delay = policy.delay_after(attempt, random).expect("attempts are left");
                assert!(delay <= Duration::from_secs(16));
            }
        }
        assert_eq!(policy.max_attempts(0).delay_after(1, 0.5), None);
    }

    #[test]
    fn a_policy_is_read_from_configuration() {
        let policy: RetryPolicy = serde_json::from_str(r#"{"first_delay_ms": 1000}"#).expect("valid");
        assert_eq!(policy, RetryPolicy::default());
        assert!(serde_json::from_str::<RetryPolicy>(r#"{"first_delay_ms": 1, "speed": 2}"#).is_err());
    }
}
