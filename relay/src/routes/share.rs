//! What one broker may keep of all that may be under way, so that none of several holds the others up.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use backstop_core::Destination;
use tokio::time::Instant;

/// For how long a broker whose share is used up is waited for, and measured.
const MEASURE: Duration = Duration::from_secs(1);
/// A share that was not asked for so long was not used up all the time.
const LAPSE: Duration = Duration::from_millis(250);
/// For how long a broker counts as slow after a measurement.
const SLOW: Duration = Duration::from_secs(10);
/// Destinations that are turned away for a slow broker. Further ones wait for it, as each that is turned away costs
/// reads of its own later.
const TURNED_AWAY: usize = 100;

/// One broker's share.
#[derive(Debug)]
pub(super) struct Share {
    /// How many bytes it may have under way; one message may exceed it alone.
    most_bytes: usize,
    bytes: usize,
    /// Their bytes by ticket.
    under_way: HashMap<u64, usize>,
    full: Option<Full>,
    slow_until: Option<Instant>,
    turned_away: HashSet<Destination>,
}

/// A share that is used up again and again.
#[derive(Debug)]
struct Full {
    since: Instant,
    last: Instant,
    /// Messages that were settled since.
    settled: usize,
}

impl Share {
    pub(super) fn new(most_bytes: usize) -> Self {
        Self {
            most_bytes,
            bytes: 0,
            under_way: HashMap::new(),
            full: None,
            slow_until: None,
            turned_away: HashSet::new(),
        }
    }

    pub(super) fn has_room(&self, bytes: usize) -> bool {
        self.under_way.is_empty() || self.bytes.saturating_add(bytes) <= self.most_bytes
    }

    pub(super) fn departed(&mut self, ticket: u64, bytes: usize) {
        self.under_way.insert(ticket, bytes);
        self.bytes += bytes;
    }

    pub(super) fn settled(&mut self, ticket: u64) {
        self.bytes -= self.under_way.remove(&ticket).unwrap_or_default();
        if let Some(full) = &mut self.full {
            full.settled += 1;
        }
    }

    /// There is no room for a message of this destination; `true` when it is to be turned away, because the broker needs
    /// longer than [`MEASURE`] for what it has.
    pub(super) fn turns_away(&mut self, destination: &Destination, now: Instant) -> bool {
        let begins = || Full { since: now, last: now, settled: 0 };
        let full = self.full.get_or_insert_with(begins);
        if full.last + LAPSE < now {
            *full = begins();
        }
        full.last = now;
        if full.since + MEASURE <= now {
            let is_slow = full.settled < self.under_way.len();
            *full = begins();
            self.slow_until = is_slow.then(|| now + SLOW);
            self.turned_away.clear();
        }
        if self.slow_until.is_none_or(|until| until <= now) {
            return false;
        }
        if self.turned_away.len() < TURNED_AWAY && !self.turned_away.contains(destination) {
            self.turned_away.insert(destination.clone());
        }
        self.turned_away.contains(destination)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(share: &mut Share, begun: Instant, millis: u64) -> bool {
        share.turns_away(&Destination::new("audit"), begun + Duration::from_millis(millis))
    }

    fn filled() -> Share {
        let mut share = Share::new(100);
        (0..10).for_each(|ticket| share.departed(ticket, 10));
        share
    }

    #[test]
    fn bytes_are_bounded_and_one_message_may_exceed_them_alone() {
        let mut share = Share::new(100);
        assert!(share.has_room(1_000));
        share.departed(1, 60);
        assert!(share.has_room(40) && !share.has_room(41));
        share.settled(1);
        share.settled(1);
        assert!(share.has_room(1_000));
    }

    #[test]
    fn a_broker_that_needs_long_for_what_it_has_is_slow_and_one_that_is_busy_is_not() {
        for (settled_each, slow) in [(0, false), (1, false), (3, true)].map(|(n, fast)| (n, !fast)) {
            let (mut share, begun) = (filled(), Instant::now());
            for step in 0..5 {
                assert!(!at(&mut share, begun, step * 200), "waited for a second");
                for ticket in 0..settled_each {
                    share.settled(ticket);
                    share.departed(ticket, 10);
                }
            }
            assert_eq!(at(&mut share, begun, 1_000), slow, "{settled_each} in 200 ms");
            assert_eq!(at(&mut share, begun, 1_001), slow, "from then on at once");
            assert!(!at(&mut share, begun, 12_000), "and it gets another chance");
        }
    }

    #[test]
    fn a_share_that_is_full_now_and_then_is_not_used_up() {
        let (mut share, begun) = (filled(), Instant::now());
        for step in 0..20 {
            assert!(!at(&mut share, begun, step * 300));
        }
    }

    #[test]
    fn only_so_many_destinations_are_turned_away() {
        let (mut share, begun) = (filled(), Instant::now());
        assert!((0..=5).any(|step| at(&mut share, begun, step * 200)));
        let now = begun + MEASURE;
        let turned = (0..500).filter(|n| share.turns_away(&Destination::new(format!("d{n}")), now)).count();
        assert_eq!(turned, TURNED_AWAY - 1);
        assert!(at(&mut share, begun, 1_100), "those that were go on to be");
    }
}
