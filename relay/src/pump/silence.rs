//! Destinations that take messages and confirm none, while the broker says nothing of it: a deleted topic, a partition
//! without a leader, a queue without its majority.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use backstop_core::Destination;
use tokio::time::Instant;

use super::flight::{Entry, Flight};

/// What a silent destination keeps under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Held {
    /// Its lowest row.
    pub(super) lowest: i64,
    /// How many rows.
    pub(super) rows: usize,
    /// Their bytes.
    pub(super) bytes: usize,
}

/// Finds silent destinations. Suspected is who has a message under way for half the limit; silent is who then confirms
/// nothing for the other half. A destination whose messages wait long but are confirmed one after another is not silent.
#[derive(Debug)]
pub(super) struct Silence {
    limit: Duration,
    looked: Instant,
    /// Since when.
    suspects: HashMap<Arc<Destination>, Instant>,
}

impl Silence {
    pub(super) fn new(limit: Duration, now: Instant) -> Self {
        Self { limit, looked: now, suspects: HashMap::new() }
    }

    /// The broker has answered for a message of this destination, in whatever way.
    pub(super) fn heard(&mut self, destination: &Arc<Destination>) {
        if !self.suspects.is_empty() {
            self.suspects.remove(destination);
        }
    }

    /// When to look next.
    pub(super) fn due(&self) -> Instant {
        self.looked + self.limit / 4
    }

    /// Whether a destination that has something under way is silent.
    pub(super) fn is_silent(&self, destination: &Arc<Destination>, now: Instant) -> bool {
        self.suspects.get(destination).is_some_and(|since| *since + self.limit / 2 <= now)
    }

    /// Looks at what is under way and returns the destinations that are silent, by name.
    pub(super) fn look(&mut self, now: Instant, flight: &Flight) -> BTreeMap<Arc<Destination>, Held> {
        self.looked = now;
        let mut silent = BTreeMap::new();
        for Entry { seq, destination, bytes, since, .. } in flight.entries() {
            if self.is_silent(destination, now) {
                let none = Held { lowest: *seq, rows: 0, bytes: 0 };
                let held = silent.entry(destination.clone()).or_insert(none);
                held.lowest = held.lowest.min(*seq);
                held.rows += 1;
                held.bytes += bytes;
            } else if *since + self.limit / 2 <= now && !self.suspects.contains_key(destination) {
                self.suspects.insert(destination.clone(), now);
            }
        }
        silent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(40);

    fn depart(flight: &mut Flight, seq: i64, destination: &Arc<Destination>, since: Instant) -> u64 {
        let ticket = flight.ticket();
        flight.depart(Entry {
            seq,
            id: "".into(),
            order: 0,
            destination: destination.clone(),
            bytes: 10,
            since,
        });
        ticket
    }

    #[test]
    fn who_confirms_nothing_is_silent_and_who_is_only_slow_is_not() {
        let (dead, slow) = (Arc::new(Destination::new("dead")), Arc::new(Destination::new("slow")));
        let begun = Instant::now();
        let (mut silence, mut flight) = (Silence::new(LIMIT, begun), Flight::default());
        depart(&mut flight, 7, &dead, begun);
        depart(&mut flight, 5, &dead, begun);
        let tickets: Vec<u64> = (10..40).map(|seq| depart(&mut flight, seq, &slow, begun)).collect();
        for (step, ticket) in tickets.into_iter().take(20).enumerate() {
            let now = begun + LIMIT / 4 * u32::try_from(step).expect("few");
            let silent = silence.look(now, &flight);
            let expected = (step >= 4).then(|| (dead.clone(), Held { lowest: 5, rows: 2, bytes: 20 }));
            assert_eq!(silent, expected.into_iter().collect(), "at step {step}");
            let entry = flight.land(ticket).expect("under way");
            silence.heard(&entry.destination);
        }
        silence.heard(&dead);
        assert!(!silence.is_silent(&dead, begun + LIMIT * 9));
    }
}
