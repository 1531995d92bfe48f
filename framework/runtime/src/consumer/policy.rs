//! What follows a failure: pure data and pure functions.

use std::time::Duration;

use backstop_core::{DeadReason, Disposition, ErrorClass, RetryPolicy};

/// Longest wait that a handler may ask for.
const MAX_WAIT: Duration = Duration::from_secs(60 * 60);
/// Waits of a dependency that is down grow with the age of the failure between these.
const UNAVAILABLE_WAIT: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

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

/// What to do with a message that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// Again after a while; `attempts` is what is charged then.
    Retry { attempts: u32, due_in: Duration },
    /// Give up.
    Quarantine(DeadReason),
}

impl Policies {
    /// Decides. `charged` counts attempts charged before this failure, `age` is how long the message has been
    /// failing, `random` is a number from 0 to 1.
    pub(crate) fn after(&self, failure: Disposition, charged: u32, age: Duration, random: f64) -> Next {
        let attempt = charged.saturating_add(1);
        let retry = match failure {
            Disposition::Snooze(wait) => Some((charged, wait.min(MAX_WAIT))),
            Disposition::Conflict | Disposition::Fail(ErrorClass::Transient) => {
                self.transient.delay_after(attempt, random).map(|wait| (attempt, wait))
            }
            Disposition::RetryAfter(ErrorClass::Throttled, wait) => {
                self.throttled.delay_after(attempt, random).map(|_| (attempt, wait.min(MAX_WAIT)))
            }
            Disposition::Fail(ErrorClass::Throttled) => {
                self.throttled.delay_after(attempt, random).map(|wait| (attempt, wait))
            }
            Disposition::RetryAfter(ErrorClass::Transient, wait) => {
                self.transient.delay_after(attempt, random).map(|_| (attempt, wait.min(MAX_WAIT)))
            }
            Disposition::Fail(ErrorClass::Unavailable) => Some((charged, unavailable_wait(age, random))),
            Disposition::RetryAfter(ErrorClass::Unavailable, wait) => Some((charged, wait.min(MAX_WAIT))),
            Disposition::Fail(ErrorClass::Undecodable) => return Next::Quarantine(DeadReason::Undecodable),
            _ => return Next::Quarantine(DeadReason::Permanent),
        };
        match retry {
            Some(_) if age >= self.max_age => Next::Quarantine(DeadReason::Expired),
            Some((attempts, due_in)) => Next::Retry { attempts, due_in },
            None => Next::Quarantine(DeadReason::Exhausted),
        }
    }

    /// Why a held message must be given up without another attempt, if it must: it was condemned before, and only its
    /// letter could not be published then.
    pub(crate) fn condemned(&self, class: Option<ErrorClass>, attempts: u32) -> Option<DeadReason> {
        match class? {
            ErrorClass::Permanent => Some(DeadReason::Permanent),
            ErrorClass::Undecodable => Some(DeadReason::Undecodable),
            ErrorClass::Transient if attempts >= self.transient.attempts() => Some(DeadReason::Exhausted),
            ErrorClass::Throttled if attempts >= self.throttled.attempts() => Some(DeadReason::Exhausted),
            _ => None,
        }
    }
}

impl Policies {
    /// Attempts after which every class is exhausted.
    pub(crate) fn most_attempts(&self) -> u32 {
        self.transient.attempts().max(self.throttled.attempts())
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

    #[test]
    fn transient_failures_are_charged_until_they_are_exhausted() {
        let fail = Disposition::Fail(ErrorClass::Transient);
        assert_eq!(
            policies().after(fail, 0, NOW, 1.0),
            Next::Retry { attempts: 1, due_in: Duration::from_secs(1) }
        );
        assert_eq!(policies().after(fail, 5, NOW, 1.0), Next::Quarantine(DeadReason::Exhausted));
    }

    #[test]
    fn an_outage_is_never_charged() {
        let down = Disposition::Fail(ErrorClass::Unavailable);
        for minutes in [0, 1, 60, 23 * 60] {
            let next = policies().after(down, 3, Duration::from_secs(minutes * 60), 0.5);
            assert!(matches!(next, Next::Retry { attempts: 3, .. }), "{next:?}");
        }
        let day = Duration::from_secs(24 * 60 * 60);
        assert_eq!(policies().after(down, 3, day, 0.5), Next::Quarantine(DeadReason::Expired));
    }

    #[test]
    fn permanent_failures_are_given_up_at_once() {
        for (class, reason) in [
            (ErrorClass::Permanent, DeadReason::Permanent),
            (ErrorClass::Undecodable, DeadReason::Undecodable),
        ] {
            assert_eq!(policies().after(Disposition::Fail(class), 0, NOW, 0.0), Next::Quarantine(reason));
            assert_eq!(policies().condemned(Some(class), 0), Some(reason));
        }
        assert_eq!(policies().condemned(None, 99), None, "redriven messages start afresh");
        assert_eq!(policies().condemned(Some(ErrorClass::Transient), 5), None);
    }

    #[test]
    fn waits_asked_for_are_bounded() {
        let for_ever = Disposition::RetryAfter(ErrorClass::Throttled, Duration::MAX);
        let Next::Retry { due_in, .. } = policies().after(for_ever, 0, NOW, 0.0) else { panic!("a retry") };
        assert_eq!(due_in, MAX_WAIT);
    }
}
