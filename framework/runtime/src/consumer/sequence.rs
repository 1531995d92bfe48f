//! Whether the messages of a key come without gaps and in the order of the numbers that their producer gave them.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, PoisonError};

use backstop_core::source::{Received, Settlement};
use backstop_core::{HandlerError, MessageKey, Origin, Via};
use opentelemetry::KeyValue;
use opentelemetry::metrics::Counter;

use crate::settings::SequenceCheck;
use crate::stats::{Stats, count};

/// Of so many numbers up to the highest it is known which were seen.
const WINDOW: u64 = u64::BITS as u64;

/// What is wrong with a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
enum Finding {
    /// Numbers before it have not come.
    #[error("{missing} messages of its key are missing before number {number}")]
    Gap { number: u64, missing: u64 },
    /// A later one came before it.
    #[error("number {number} of its key came after number {highest}")]
    Reordered { number: u64, highest: u64 },
    /// There is none.
    #[error("the message has no number")]
    Unnumbered,
}

impl Finding {
    const fn name(self) -> &'static str {
        match self {
            Self::Gap { .. } => "gap",
            Self::Reordered { .. } => "reordered",
            Self::Unnumbered => "unnumbered",
        }
    }
}

/// Where a key is.
#[derive(Debug, Clone, Copy)]
struct Place {
    /// The stretch of reading in which that is known.
    epoch: u64,
    highest: u64,
    /// Bit `n` is set where `highest - n` was seen, or came before the first one that was, and cannot be judged.
    seen: u64,
}

impl Place {
    fn beginning(epoch: u64, number: u64) -> Self {
        Self { epoch, highest: number, seen: u64::MAX }
    }

    /// Goes on to `number`. One that was seen before is a duplicate and no finding; nor is one that is so far behind
    /// that nobody knows.
    fn take(&mut self, number: u64) -> Option<Finding> {
        if let Some(ahead) = number.checked_sub(self.highest).filter(|ahead| *ahead > 0) {
            self.seen = if ahead < WINDOW { self.seen << ahead } else { 0 } | 1;
            self.highest = number;
            return (ahead > 1).then_some(Finding::Gap { number, missing: ahead - 1 });
        }
        let behind = self.highest - number;
        if behind >= WINDOW || self.seen & (1 << behind) != 0 {
            return None;
        }
        self.seen |= 1 << behind;
        Some(Finding::Reordered { number, highest: self.highest })
    }
}

/// Where keys are, those that were seen lately; by their hashes, so that long keys cost no more than short ones.
#[derive(Debug)]
struct Places {
    young: HashMap<u64, Place>,
    old: HashMap<u64, Place>,
    /// Keys in each of the two.
    half: usize,
}

impl Places {
    fn new(keys: usize) -> Self {
        Self { young: HashMap::new(), old: HashMap::new(), half: keys.div_ceil(2).max(1) }
    }

    fn take(&mut self, key: u64, epoch: u64, number: u64) -> Option<Finding> {
        let known = self.young.get(&key).copied().or_else(|| self.old.remove(&key));
        let (place, finding) = match known.filter(|place| place.epoch == epoch) {
            Some(mut place) => {
                let finding = place.take(number);
                (place, finding)
            }
            None => (Place::beginning(epoch, number), None),
        };
        self.young.insert(key, place);
        if self.young.len() > self.half {
            self.old = std::mem::take(&mut self.young);
        }
        finding
    }
}

/// A message about which there is something to say.
#[derive(Debug)]
pub(crate) struct Suspect {
    finding: Finding,
    origin: Origin,
    message_key: Option<MessageKey>,
}

impl Suspect {
    /// Who it is, where it would be no finding at all if it had been handled before.
    pub(crate) fn perhaps_handled(&self) -> Option<&MessageKey> {
        self.message_key.as_ref().filter(|_| matches!(self.finding, Finding::Reordered { .. }))
    }
}

/// The check of a running consumer.
pub(crate) struct Sequences {
    check: SequenceCheck,
    consumer: String,
    places: Mutex<Places>,
    hasher: RandomState,
    stats: Arc<Stats>,
    findings: Counter<u64>,
}

impl Sequences {
    pub(crate) fn new(check: SequenceCheck, consumer: &str, stats: Arc<Stats>) -> Self {
        let findings = opentelemetry::global::meter("backstop")
            .u64_counter("backstop_sequence_findings")
            .with_description(
                "Gaps, reordered messages and messages without a number, by the check of their sequence.",
            )
            .build();
        let places = Mutex::new(Places::new(check.remembered()));
        Self { check, consumer: consumer.to_owned(), places, hasher: RandomState::new(), stats, findings }
    }

    /// Looks at a message when it first gets its turn. Asked once for each delivery, in the order of its key.
    pub(crate) fn suspect<S: Settlement>(&self, received: &Received<S>) -> Option<Suspect> {
        let finding = self.find(received)?;
        let message_key = received.identity.key().cloned();
        Some(Suspect { finding, origin: received.origin.clone(), message_key })
    }

    /// Tells of it; the error is what the message is to fail with.
    pub(crate) fn judge(&self, suspect: &Suspect) -> Result<(), HandlerError> {
        self.tell(suspect);
        let refused = match suspect.finding {
            Finding::Gap { .. } => self.check.refuses_gaps(),
            Finding::Reordered { .. } => self.check.refuses_reordered(),
            Finding::Unnumbered => false,
        };
        if refused { Err(HandlerError::permanent(suspect.finding)) } else { Ok(()) }
    }

    /// What came through the door was redriven out of its order on purpose.
    fn find<S: Settlement>(&self, received: &Received<S>) -> Option<Finding> {
        let key = received.message.key.as_ref().filter(|_| received.via == Via::Live)?;
        let text = received.message.headers.get_str(self.check.name());
        let Some(number) = text.and_then(|text| text.parse().ok()) else { return Some(Finding::Unnumbered) };
        let key = self.hasher.hash_one((received.origin.place(), &key[..]));
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        places.take(key, received.settlement.epoch(), number)
    }

    /// Counts all, and warns of the first and then ever less often.
    fn tell(&self, Suspect { finding, origin, .. }: &Suspect) {
        let counter = match finding {
            Finding::Gap { .. } => &self.stats.gaps,
            Finding::Reordered { .. } => &self.stats.reordered,
            Finding::Unnumbered => &self.stats.unnumbered,
        };
        count(counter);
        let labels =
            [KeyValue::new("consumer", self.consumer.clone()), KeyValue::new("finding", finding.name())];
        self.findings.add(1, &labels);
        let times = counter.load(std::sync::atomic::Ordering::Relaxed);
        if times.is_power_of_two() {
            let consumer = &self.consumer;
            let hint = "numbers are read from the header that sequence_check names";
            tracing::warn!(%consumer, %origin, %finding, times, hint, "the sequence of a key is not whole");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(numbers: &[u64]) -> Vec<Finding> {
        let mut places = Places::new(8);
        numbers.iter().filter_map(|number| places.take(1, 0, *number)).collect()
    }

    #[test]
    fn a_whole_sequence_has_no_findings_from_whatever_number_on() {
        assert_eq!(findings(&[1, 2, 3, 4]), []);
        assert_eq!(findings(&[17, 18, 19]), []);
        assert_eq!(findings(&[u64::MAX - 1, u64::MAX]), []);
    }

    #[test]
    fn a_duplicate_is_never_a_finding() {
        assert_eq!(findings(&[1, 1, 2, 2, 3, 1, 2, 3, 4]), []);
        assert_eq!(findings(&[7, 8, 5, 6, 7, 8, 9]), [], "what came before the first one cannot be judged");
        let far: Vec<u64> = (1..=200).chain(1..=201).collect();
        assert_eq!(findings(&far), []);
    }

    #[test]
    fn a_gap_is_told_once_and_a_late_one_as_reordered() {
        assert_eq!(
            findings(&[1, 2, 5, 3, 3, 4, 5, 6]),
            [
                Finding::Gap { number: 5, missing: 2 },
                Finding::Reordered { number: 3, highest: 5 },
                Finding::Reordered { number: 4, highest: 5 },
            ]
        );
        let wide = [1, 1_000, 999, 937, 936];
        assert_eq!(
            findings(&wide),
            [
                Finding::Gap { number: 1_000, missing: 998 },
                Finding::Reordered { number: 999, highest: 1_000 },
                Finding::Reordered { number: 937, highest: 1_000 },
            ],
            "the window ends 63 before the highest"
        );
    }

    #[test]
    fn another_stretch_of_reading_begins_anew() {
        let mut places = Places::new(8);
        assert_eq!(places.take(1, 1, 5), None);
        assert_eq!(places.take(1, 2, 90), None, "others have handled what is between");
        assert_eq!(places.take(1, 2, 92), Some(Finding::Gap { number: 92, missing: 1 }));
    }

    #[test]
    fn what_is_remembered_is_bounded_and_keys_in_use_stay() {
        let mut places = Places::new(100);
        for number in 0..10_000 {
            assert_eq!(places.take(0, 0, number), None);
            assert_eq!(places.take(1 + number, 0, 7), None);
            assert!(places.young.len() + places.old.len() <= 102);
        }
        assert!(places.take(0, 0, 10_001).is_some(), "the key in use is remembered");
        assert_eq!(places.take(1, 0, 100), None, "the first of the others is not");
    }
}
