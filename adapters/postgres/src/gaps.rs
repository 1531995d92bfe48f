//! Numbers of the outbox that were not there when their neighbours were read.
//!
//! A number that is missing was rolled back, or belongs to a transaction that is still open and may yet commit. Any
//! such transaction held a lock on the table just after the read that showed the gap, because it takes the lock
//! before the number. Once all holders of that moment are gone, one more read decides.

use std::collections::{BTreeMap, HashMap, HashSet};

/// Transactions that hold a row-exclusive lock on the outbox, as `pg_locks.virtualtransaction` names them; a name is
/// never used again while the server runs.
pub(crate) type Holders = HashSet<String>;

/// Most ranges that one read probes; beyond that, neighbours are probed together.
const MAX_PROBES: usize = 10_000;
/// Most closed ranges that are kept for the full scan; the lowest are forgotten first.
const MAX_CLOSED: usize = 100_000;

/// The gaps of one reader.
#[derive(Debug, Default)]
pub(crate) struct Gaps {
    /// First number to (last number, group).
    open: BTreeMap<i64, (i64, u64)>,
    /// For each group, the gaps of one read: who of its holders is left; `None` until they have been asked for.
    groups: HashMap<u64, Option<Holders>>,
    /// First to last number of gaps that were found to be nobody's.
    closed: BTreeMap<i64, i64>,
    last_group: u64,
}

/// Ranges to probe.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Probes {
    pub(crate) from: Vec<i64>,
    pub(crate) to: Vec<i64>,
    /// How many numbers in the ranges are no gaps: a probe may bring as many rows that are known.
    pub(crate) known: i64,
}

impl Gaps {
    pub(crate) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// Takes in who holds locks now. Returns the groups all of whose holders are gone: they close if the next read
    /// still finds nothing in them.
    pub(crate) fn observe(&mut self, now: &Holders) -> HashSet<u64> {
        let mut ripe = HashSet::new();
        for (group, holders) in &mut self.groups {
            match holders {
                Some(holders) => holders.retain(|holder| now.contains(holder)),
                None => *holders = Some(now.clone()),
            }
            if holders.as_ref().is_some_and(HashSet::is_empty) {
                ripe.insert(*group);
            }
        }
        ripe
    }

    /// The ranges to probe in the next read, in ascending order.
    pub(crate) fn probes(&self) -> Probes {
        let chunk = self.open.len().div_ceil(MAX_PROBES).max(1);
        let ranges: Vec<(i64, i64)> = self.open.iter().map(|(from, (to, _))| (*from, *to)).collect();
        let mut probes = Probes::default();
        for chunk in ranges.chunks(chunk) {
            probes.from.push(chunk[0].0);
            probes.to.push(chunk[chunk.len() - 1].1);
            let known = |pair: &[(i64, i64)]| pair[1].0.saturating_sub(pair[0].1).saturating_sub(1);
            probes.known = probes.known.saturating_add(chunk.windows(2).map(known).sum());
        }
        probes
    }

    /// Whether the number is in a gap that is open.
    pub(crate) fn is_open(&self, number: i64) -> bool {
        self.open.range(..=number).next_back().is_some_and(|(_, (to, _))| number <= *to)
    }

    /// Whether the number is in a gap that was closed.
    pub(crate) fn is_closed(&self, number: i64) -> bool {
        self.closed.range(..=number).next_back().is_some_and(|(_, to)| number <= *to)
    }

    /// A number in an open gap was found.
    pub(crate) fn found(&mut self, number: i64) {
        let Some((&from, &(to, group))) = self.open.range(..=number).next_back() else { return };
        if number > to {
            return;
        }
        self.open.remove(&from);
        if from < number {
            self.open.insert(from, (number - 1, group));
        }
        if number < to {
            self.open.insert(number + 1, (to, group));
        }
    }

    /// A number in a closed gap was found after all.
    pub(crate) fn straggled(&mut self, number: i64) {
        let Some((&from, &to)) = self.closed.range(..=number).next_back() else { return };
        if number > to {
            return;
        }
        self.closed.remove(&from);
        if from < number {
            self.closed.insert(from, number - 1);
        }
        if number < to {
            self.closed.insert(number + 1, to);
        }
    }

    /// Opens the gaps that one read showed: `ranges` of first and last number.
    pub(crate) fn open(&mut self, ranges: impl IntoIterator<Item = (i64, i64)>) {
        let group = self.last_group + 1;
        let before = self.open.len();
        self.open.extend(ranges.into_iter().map(|(from, to)| (from, (to, group))));
        if self.open.len() > before {
            self.last_group = group;
            self.groups.insert(group, None);
        }
    }

    /// Closes the gaps of these groups: a read that began after all their holders were gone found nothing.
    pub(crate) fn close(&mut self, ripe: &HashSet<u64>) {
        if ripe.is_empty() {
            return;
        }
        let closed = &mut self.closed;
        self.open.retain(|from, (to, group)| {
            let keep = !ripe.contains(group);
            if !keep {
                closed.insert(*from, *to);
            }
            keep
        });
        self.groups.retain(|group, _| !ripe.contains(group));
        while self.closed.len() > MAX_CLOSED {
            self.closed.pop_first();
        }
    }
}

/// The ranges between `after` and the numbers that were found beyond it, ascending.
pub(crate) fn between(after: i64, found: impl IntoIterator<Item = i64>) -> Vec<(i64, i64)> {
    let mut expected = after.saturating_add(1);
    let mut ranges = Vec::new();
    for number in found {
        if expected < number {
            ranges.push((expected, number - 1));
        }
        expected = number.saturating_add(1);
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holders(names: &[&str]) -> Holders {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn a_gap_closes_only_after_a_read_that_began_without_its_holders() {
        let mut gaps = Gaps::default();
        gaps.open(between(0, [1, 4, 6]));
        assert_eq!(gaps.observe(&holders(&["3/7", "4/1"])), HashSet::new());
        let ripe = gaps.observe(&holders(&["4/1", "9/9"]));
        assert!(ripe.is_empty(), "one of its holders is left, and later ones do not count");
        let ripe = gaps.observe(&holders(&["9/9"]));
        assert_eq!(ripe.len(), 1);
        assert!(
            gaps.is_open(2) && gaps.is_open(3) && gaps.is_open(5),
            "open until the read has found nothing"
        );
        gaps.close(&ripe);
        assert!(gaps.is_empty() && gaps.is_closed(2) && gaps.is_closed(5) && !gaps.is_closed(4));
    }

    #[test]
    fn nobody_at_work_closes_at_the_next_read() {
        let mut gaps = Gaps::default();
        gaps.open(between(0, [3]));
        let ripe = gaps.observe(&Holders::new());
        gaps.found(2);
        gaps.close(&ripe);
        assert!(gaps.is_closed(1) && !gaps.is_closed(2));
        gaps.straggled(1);
        assert!(!gaps.is_closed(1));
    }

    #[test]
    fn found_numbers_split_ranges() {
        let mut gaps = Gaps::default();
        gaps.open([(1, 9)]);
        for number in [5, 1, 9, 5, 42] {
            gaps.found(number);
        }
        let probes = gaps.probes();
        assert_eq!((probes.from, probes.to, probes.known), (vec![2, 6], vec![4, 8], 0));
    }

    #[test]
    fn too_many_gaps_are_probed_together() {
        let mut gaps = Gaps::default();
        gaps.open((0..25_000).map(|n| (3 * n, 3 * n)));
        let probes = gaps.probes();
        assert!(probes.from.len() <= MAX_PROBES);
        assert_eq!((probes.from[0], probes.to[0]), (0, 6));
        let covered: i64 = probes.from.iter().zip(&probes.to).map(|(from, to)| to - from + 1).sum();
        assert_eq!(covered - probes.known, 25_000);
    }
}
