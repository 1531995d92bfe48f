//! What became of the messages for each destination: how many, how long it took, and how failures were charged.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use backstop_core::Destination;
use backstop_core::cloudevents::Binding;
use backstop_core::sink::Scope;

/// Destinations that are told apart at most; writers of rows may name as many as they like.
const TOLD_APART: usize = 100;
/// What the others are called together; no topic and no exchange can have this name.
const OTHERS: &str = "(others)";

/// Upper bounds of the histogram of durations, in seconds: those that OpenTelemetry advises, and two below them.
pub const BOUNDS: [f64; 16] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];

/// Messages for one destination since the start of the process.
#[derive(Debug, Clone, PartialEq)]
pub struct Tally {
    /// The topic, exchange or queue; `(others)` for all after the hundredth.
    pub destination: Arc<str>,
    /// Whose header names its messages have, which tells the kind of broker.
    pub binding: Binding,
    /// Confirmed, duplicates included.
    pub published: u64,
    /// Failed with the scope broker.
    pub failed_broker: u64,
    /// Failed with the scope destination.
    pub failed_destination: u64,
    /// Failed with the scope message.
    pub failed_message: u64,
    /// How many took at most so long from being submitted to being confirmed, and longer than the bound before.
    pub within: [u64; BOUNDS.len()],
    /// The sum of all those durations.
    pub waited: Duration,
}

impl Tally {
    fn new(destination: &str, binding: Binding) -> Self {
        Self {
            destination: destination.into(),
            binding,
            published: 0,
            failed_broker: 0,
            failed_destination: 0,
            failed_message: 0,
            within: [0; BOUNDS.len()],
            waited: Duration::ZERO,
        }
    }

    fn published(&mut self, took: Duration) {
        self.published += 1;
        self.waited += took;
        let seconds = took.as_secs_f64();
        if let Some(place) = BOUNDS.iter().position(|bound| seconds <= *bound) {
            self.within[place] += 1;
        }
    }

    fn failed(&mut self, scope: Scope) {
        match scope {
            Scope::Broker => self.failed_broker += 1,
            Scope::Destination => self.failed_destination += 1,
            Scope::Message => self.failed_message += 1,
        }
    }
}

/// The tallies of one pump, for whoever shows them.
#[derive(Debug, Default)]
pub struct Traffic(Mutex<Book>);

impl Traffic {
    /// How they stand.
    pub fn tallies(&self) -> Vec<Tally> {
        self.open().tallies.clone()
    }

    /// Opens the book once for many messages.
    pub(crate) fn open(&self) -> MutexGuard<'_, Book> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug, Default)]
pub(crate) struct Book {
    tallies: Vec<Tally>,
    places: HashMap<Arc<str>, usize>,
    /// Neighbours mostly share their destination, and then nothing is looked up.
    last: Option<(Arc<Destination>, usize)>,
}

impl Book {
    pub(crate) fn published(&mut self, destination: &Arc<Destination>, binding: Binding, took: Duration) {
        let place = self.place(destination, binding);
        self.tallies[place].published(took);
    }

    pub(crate) fn failed(&mut self, destination: &Arc<Destination>, binding: Binding, scope: Scope) {
        let place = self.place(destination, binding);
        self.tallies[place].failed(scope);
    }

    fn place(&mut self, destination: &Arc<Destination>, binding: Binding) -> usize {
        if let Some((last, place)) = &self.last
            && Arc::ptr_eq(last, destination)
        {
            return *place;
        }
        let name = destination.name.as_str();
        let place = self.places.get(name).copied().unwrap_or_else(|| {
            let is_new = self.tallies.len() < TOLD_APART;
            self.add(if is_new { name } else { OTHERS }, binding)
        });
        self.last = Some((destination.clone(), place));
        place
    }

    fn add(&mut self, name: &str, binding: Binding) -> usize {
        if let Some(place) = self.places.get(name) {
            return *place;
        }
        let tally = Tally::new(name, binding);
        self.places.insert(tally.destination.clone(), self.tallies.len());
        self.tallies.push(tally);
        self.tallies.len() - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_destinations_make_few_tallies_and_nothing_is_left_out() {
        let traffic = Traffic::default();
        for number in 0..1_000 {
            // Routing keys may be as many as there are rows.
            for key in ["a", "b"] {
                let destination = Arc::new(Destination::exchange(format!("x{number}"), key));
                traffic.open().published(&destination, Binding::Amqp, Duration::from_millis(3));
            }
        }
        let tallies = traffic.tallies();
        assert_eq!(tallies.len(), TOLD_APART + 1);
        assert_eq!(tallies.iter().map(|tally| tally.published).sum::<u64>(), 2_000);
        assert_eq!((&*tallies[0].destination, tallies[0].published), ("x0", 2));
        assert_eq!((&*tallies[TOLD_APART].destination, tallies[TOLD_APART].published), (OTHERS, 1_800));
    }

    #[test]
    fn durations_fall_into_their_bounds() {
        let mut tally = Tally::new("x", Binding::Kafka);
        for millis in [1, 2, 10_000, 10_001] {
            tally.published(Duration::from_millis(millis));
        }
        assert_eq!((tally.within[0], tally.within[1], tally.within[15]), (1, 1, 1));
        assert_eq!((tally.published, tally.waited), (4, Duration::from_millis(20_004)));
    }
}
