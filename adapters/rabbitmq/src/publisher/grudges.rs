//! What has failed and the relay does not know of yet.
//!
//! Between a failure and the moment the relay is told of it, the relay may submit more of the same key. Sent, such a
//! message would overtake the failed one, which is submitted again later. So every message says how many failures of
//! its worker the relay knew of, and a message that could not know of a failure it must wait for is failed too.

use std::collections::{HashMap, VecDeque};

use super::backlog::Job;
use crate::error::Failure;

/// Whom a failure concerns.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Subject {
    Lane(u64),
    Exchange(String),
}

/// Failures that messages already submitted must share.
#[derive(Debug, Default)]
pub(super) struct Grudges {
    /// Failures reported so far.
    failures: u64,
    /// By subject, the number of its last failure.
    held: HashMap<Subject, (u64, Failure)>,
    /// The same in the order of failing, to forget them by.
    order: VecDeque<(u64, Subject)>,
}

impl Grudges {
    /// Failures reported so far.
    pub(super) fn failures(&self) -> u64 {
        self.failures
    }

    /// Counts a failed message; what comes behind it in its lane must fail too.
    pub(super) fn record(&mut self, job: &Job, failure: &Failure) {
        self.failures += 1;
        if let Some(lane) = job.lane {
            self.hold(Subject::Lane(lane), failure);
        }
    }

    /// Whatever is submitted to this exchange before the relay knows fails too.
    pub(super) fn record_exchange(&mut self, exchange: &str, failure: &Failure) {
        self.hold(Subject::Exchange(exchange.to_owned()), failure);
    }

    fn hold(&mut self, subject: Subject, failure: &Failure) {
        self.held.insert(subject.clone(), (self.failures, failure.clone()));
        self.order.push_back((self.failures, subject));
    }

    /// The failure that a message must share, if it was submitted before the relay could know.
    pub(super) fn against(&mut self, job: &Job) -> Option<Failure> {
        self.forget(job.failures_seen);
        if self.held.is_empty() {
            return None;
        }
        let lane = job.lane.and_then(|lane| self.held.get(&Subject::Lane(lane)));
        let held = lane.or_else(|| {
            let exchange = job.address.exchange.as_str();
            (!exchange.is_empty()).then(|| self.held.get(&Subject::Exchange(exchange.to_owned()))).flatten()
        });
        held.map(|(_, failure)| failure.clone())
    }

    /// Forgets what the relay knows: messages come in the order of submission, so none will come that did not know.
    fn forget(&mut self, seen: u64) {
        while self.order.front().is_some_and(|(number, _)| *number <= seen) {
            let Some((number, subject)) = self.order.pop_front() else { return };
            if self.held.get(&subject).is_some_and(|(last, _)| *last == number) {
                self.held.remove(&subject);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::publisher::backlog::tests::job;
    use backstop_core::FaultKind;
    use backstop_core::sink::Scope;

    fn failure() -> Failure {
        Failure::new(Scope::Destination, FaultKind::Missing, "gone")
    }

    #[test]
    fn what_was_submitted_before_the_relay_knew_fails_too() {
        let mut grudges = Grudges::default();
        grudges.record(&job(1, Some(7)), &failure());
        assert_eq!(grudges.against(&job(2, Some(7))), Some(failure()));
        assert_eq!(grudges.against(&job(3, Some(8))), None, "another key");
        let mut again = job(1, Some(7));
        again.failures_seen = grudges.failures();
        assert_eq!(grudges.against(&again), None, "the relay knows now");
        assert!(grudges.held.is_empty() && grudges.order.is_empty());
    }

    #[test]
    fn an_exchange_that_is_gone_fails_all_its_keys() {
        let mut grudges = Grudges::default();
        grudges.record(&job(1, None), &failure());
        grudges.record_exchange("x", &failure());
        assert_eq!(grudges.against(&job(2, Some(9))), Some(failure()));
        assert_eq!(grudges.against(&job(3, None)), Some(failure()));
    }
}
