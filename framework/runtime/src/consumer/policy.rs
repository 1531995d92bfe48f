//! What follows a failure: pure data and pure functions.

use std::time::Duration;

use backstop_core::held::HeldMessage;
use backstop_core::{DeadReason, Disposition, ErrorClass, RetryPolicy};

/// Longest wait that a handler may ask for.
const MAX_WAIT: Duration = Duration::from_secs(60 * 60);
/// Waits of a dependency that is down grow with the age of the failure between these. While it is down the breaker lets
/// few of them through; when it is back, they are not to wait for long.
const UNAVAILABLE_WAIT: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(3));

/// When a consumer retries and when it gives up.
#[derive(Debug, Clone)]
pub(crate) struct Policies {
    pub(crate) transient: RetryPolicy,
    pub(crate) throttled: RetryPolicy,
    pub(crate) max_age: Duration,
}

impl Default for Policies {
    fn default() -> Self {
        Self {
            transient: RetryPolicy::default(),
            throttled: RetryPolicy::default().max_attempts(20),
            max_age: Duration::from_secs(24 * 60 * 60),
        }
    }
}

/// What a message has been charged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Charged {
    /// Attempts of all classes.
    pub(crate) attempts: u32,
    /// How many of them were throttled, which have a limit of their own.
    pub(crate) throttled: u32,
}

impl Charged {
    /// What is written down of a held message.
    pub(crate) fn of(head: &HeldMessage) -> Self {
        Self { attempts: head.attempts, throttled: head.throttled }
    }

    /// With one more attempt, of any class but throttled.
    pub(crate) fn with_one_more(self) -> Self {
        Self { attempts: self.attempts.saturating_add(1), ..self }
    }

    fn with_one_more_throttled(self) -> Self {
        Self { throttled: self.throttled.saturating_add(1), ..self.with_one_more() }
    }
}

/// What to do with a message that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// Again after a while, with so much charged.
    Retry { charged: Charged, due_in: Duration },
    /// Give up.
    Quarantine(DeadReason),
}

impl Policies {
    /// Decides. `before` is what was charged before this failure, `age` is how long the message has been failing,
    /// `random` is a number from 0 to 1.
    pub(crate) fn after(&self, failure: Disposition, before: Charged, age: Duration, random: f64) -> Next {
        let (transient, throttled) = (before.with_one_more(), before.with_one_more_throttled());
        let of_transient = || self.transient.delay_after(transient.attempts - transient.throttled, random);
        let of_throttled = || self.throttled.delay_after(throttled.throttled, random);
        let retry = match failure {
            Disposition::Snooze(wait) => Some((before, wait.min(MAX_WAIT))),
            Disposition::Conflict | Disposition::Fail(ErrorClass::Transient) => {
                of_transient().map(|wait| (transient, wait))
            }
            Disposition::RetryAfter(ErrorClass::Transient, wait) => {
                of_transient().map(|_| (transient, wait.min(MAX_WAIT)))
            }
            Disposition::Fail(ErrorClass::Throttled) => of_throttled().map(|wait| (throttled, wait)),
            Disposition::RetryAfter(ErrorClass::Throttled, wait) => {
                of_throttled().map(|_| (throttled, wait.min(MAX_WAIT)))
            }
            Disposition::Fail(ErrorClass::Unavailable) => Some((before, unavailable_wait(age, random))),
            Disposition::RetryAfter(ErrorClass::Unavailable, wait) => Some((before, wait.min(MAX_WAIT))),
            Disposition::Fail(ErrorClass::Undecodable) => return Next::Quarantine(DeadReason::Undecodable),
            _ => return Next::Quarantine(DeadReason::Permanent),
        };
        match retry {
            Some(_) if age >= self.max_age => Next::Quarantine(DeadReason::Expired),
            Some((charged, due_in)) => Next::Retry { charged, due_in },
            None => Next::Quarantine(DeadReason::Exhausted),
        }
    }
}

fn unavailable_wait(age: Duration, random: f64) -> Duration {
    let (least, most) = UNAVAILABLE_WAIT;
    (age / 4).clamp(least, most).mul_f64(0.5 + random.clamp(0.0, 1.0) / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::ZERO;

    fn policies() -> Policies {
        Policies::default()
    }

    fn charged(attempts: u32, throttled: u32) -> Charged {
        Charged { attempts, throttled }
    }

    #[test]
    fn transient_failures_are_charged_until_they_are_exhausted() {
        let fail = Disposition::Fail(ErrorClass::Transient);
        assert_eq!(
            policies().after(fail, charged(0, 0), NOW, 1.0),
            Next::Retry { charged: charged(1, 0), due_in: Duration::from_secs(1) }
        );
        assert_eq!(policies().after(fail, charged(5, 0), NOW, 1.0), Next::Quarantine(DeadReason::Exhausted));
    }

    #[test]
    fn throttled_attempts_have_an_account_of_their_own() {
        let (fail, throttle) =
            (Disposition::Fail(ErrorClass::Transient), Disposition::Fail(ErrorClass::Throttled));
        let next = policies().after(fail, charged(19, 19), NOW, 1.0);
        assert!(
            matches!(next, Next::Retry { charged: Charged { attempts: 20, throttled: 19 }, .. }),
            "{next:?}"
        );
        let next = policies().after(throttle, charged(5, 0), NOW, 1.0);
        assert!(
            matches!(next, Next::Retry { charged: Charged { attempts: 6, throttled: 1 }, .. }),
            "{next:?}"
        );
        let exhausted = Next::Quarantine(DeadReason::Exhausted);
        assert_eq!(policies().after(throttle, charged(19, 19), NOW, 1.0), exhausted);
        assert_eq!(policies().after(fail, charged(24, 19), NOW, 1.0), exhausted);
    }

    #[test]
    fn an_outage_is_never_charged() {
        let down = Disposition::Fail(ErrorClass::Unavailable);
        for minutes in [0, 1, 60, 23 * 60] {
            let next = policies().after(down, charged(3, 1), Duration::from_secs(minutes * 60), 0.5);
            assert!(matches!(next, Next::Retry { charged: Charged { attempts: 3, .. }, .. }), "{next:?}");
        }
        let day = Duration::from_secs(24 * 60 * 60);
        assert_eq!(policies().after(down, charged(3, 1), day, 0.5), Next::Quarantine(DeadReason::Expired));
    }

    #[test]
    fn permanent_failures_are_given_up_at_once() {
        for (class, reason) in [
            (ErrorClass::Permanent, DeadReason::Permanent),
            (ErrorClass::Undecodable, DeadReason::Undecodable),
        ] {
            let next = policies().after(Disposition::Fail(class), charged(0, 0), NOW, 0.0);
            assert_eq!(next, Next::Quarantine(reason));
        }
    }

    #[test]
    fn waits_asked_for_are_bounded() {
        let for_ever = Disposition::RetryAfter(ErrorClass::Throttled, Duration::MAX);
        let Next::Retry { due_in, .. } = policies().after(for_ever, charged(0, 0), NOW, 0.0) else {
            panic!("a retry")
        };
        assert_eq!(due_in, MAX_WAIT);
    }
}
