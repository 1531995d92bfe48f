//! Numbers of the outbox that were not there when their neighbours were read.
//!
//! A number that is missing was rolled back, or belongs to a transaction that is still open and may yet commit. Any
//! such transaction held a lock on the table just after the read that showed the gap, because it takes the lock
//! before the number. Once all holders of that moment are gone, one more read decides.
//!
//! Locks are looked at once between two reads, and a gap waits for those who held one at the first look after it was
//! shown and at every look since. So whoever an older gap waits for, a younger one waits for too: it is enough to know
//! of each holder since which look it has been there, and of each gap after which look it was shown.

use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Most gaps that are kept apart; beyond that, neighbours are merged. Each is looked up by every read.
const MAX_OPEN: usize = 10_000;
/// Most closed ranges that are kept for the full scan; the lowest are forgotten first.
const MAX_CLOSED: usize = 100_000;

/// How names begin of transactions that were prepared before the server was started: no session has this number.
const RECOVERED: &str = "-1/";

/// The number of a look at the locks.
pub(crate) type Look = u64;

/// The gaps of one reader.
#[derive(Debug, Default)]
#[cfg_attr(test, derive(Clone, PartialEq, Eq))]
pub(crate) struct Gaps {
    /// First number to (last number, first look after it was shown). Looks ascend with the numbers, because gaps are
    /// shown beyond all that was read before.
    open: BTreeMap<i64, (i64, Look)>,
    /// First to last number of gaps that were found to be nobody's.
    closed: BTreeMap<i64, i64>,
    /// Transactions that hold a row-exclusive lock on the outbox, as `pg_locks.virtualtransaction` names them, and
    /// the look since which they have held it. A name is never used again while the server runs.
    holders: HashMap<String, Look>,
    look: Look,
}

/// Ranges to probe.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Probes {
    pub(crate) from: Vec<i64>,
    pub(crate) to: Vec<i64>,
}

impl Gaps {
    pub(crate) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// Takes in who holds locks now. Gaps whose first look is at most the one returned close if the next read still
    /// finds nothing in them: all their holders are gone. Every gap waits for a transaction that was prepared before
    /// the server was started: it had another name then.
    pub(crate) fn observe(&mut self, now: Vec<String>) -> Look {
        self.look += 1;
        let before = std::mem::take(&mut self.holders);
        let since = |name: String| {
            let since = if name.starts_with(RECOVERED) { 0 } else { self.look };
            let since = before.get(&name).copied().unwrap_or(since);
            (name, since)
        };
        self.holders = now.into_iter().map(since).collect();
        self.holders.values().min().map_or(self.look, |since| since.saturating_sub(1))
    }

    /// The ranges to probe in the next read, in ascending order.
    pub(crate) fn probes(&self) -> Probes {
        let (from, to) = self.open.iter().map(|(from, (to, _))| (*from, *to)).unzip();
        Probes { from, to }
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
        let Some((&from, &(to, look))) = self.open.range(..=number).next_back() else { return };
        if number > to {
            return;
        }
        self.open.remove(&from);
        if from < number {
            self.open.insert(from, (number - 1, look));
        }
        if number < to {
            self.open.insert(number + 1, (to, look));
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

    /// Opens the gaps that one read showed: `ranges` of first and last number, beyond all that were open.
    pub(crate) fn open(&mut self, ranges: impl IntoIterator<Item = (i64, i64)>) {
        let look = self.look + 1;
        self.open.extend(ranges.into_iter().map(|(from, to)| (from, (to, look))));
    }

    /// Closes the gaps whose first look is at most `ripe`: a read that began after all their holders were gone found
    /// nothing.
    pub(crate) fn close(&mut self, ripe: Look) {
        while let Some(entry) = self.open.first_entry().filter(|entry| entry.get().1 <= ripe) {
            let (from, (to, _)) = entry.remove_entry();
            self.closed.insert(from, to);
        }
        while self.closed.len() > MAX_CLOSED {
            self.closed.pop_first();
        }
    }

    /// Where the lowest gap begins, if there are too many: then they are to be [merged](Gaps::merge).
    pub(crate) fn overflow(&self) -> Option<i64> {
        self.open.first_key_value().filter(|_| self.open.len() > MAX_OPEN).map(|(from, _)| *from)
    }

    /// The gap below a row that was returned and is still there: it must not be merged with the next.
    pub(crate) fn below(&self, row: i64) -> Option<i64> {
        if self.is_open(row) || self.is_closed(row) {
            return None;
        }
        self.open.range(..row).next_back().map(|(from, _)| *from)
    }

    /// Merges neighbours, except those in `apart` with the next: the rows between them are gone, or one of them would
    /// be returned again. If that leaves too many, the lowest are merged all the same.
    ///
    /// A gap of several looks waits for whom the last of them waits for, which is for all.
    pub(crate) fn merge(&mut self, apart: &BTreeSet<i64>) {
        let mut spare = apart.len().saturating_sub(MAX_OPEN / 2);
        let mut merged: BTreeMap<i64, (i64, Look)> = BTreeMap::new();
        let mut joins = false;
        for (from, (to, look)) in std::mem::take(&mut self.open) {
            match merged.last_entry().filter(|_| joins) {
                Some(mut last) => *last.get_mut() = (to, look),
                None => {
                    merged.insert(from, (to, look));
                }
            }
            joins = !apart.contains(&from) || spare > 0;
            spare = spare.saturating_sub(usize::from(apart.contains(&from)));
        }
        self.open = merged;
        let open = &self.open;
        self.closed.retain(|from, _| open.range(..=*from).next_back().is_none_or(|(_, (to, _))| from > to));
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

/// For the model, whose states must not differ by how often was looked.
#[cfg(test)]
mod canonical {
    use std::hash::{Hash, Hasher};

    use super::*;

    impl Gaps {
        /// Numbers the looks anew, in the same order, and joins what is closed. No more than that order counts.
        pub(crate) fn renumber(&mut self) {
            if self.open.is_empty() {
                // Then the holders are not asked for, and the next look forgets them.
                self.holders.clear();
            }
            for (from, to) in std::mem::take(&mut self.closed) {
                match self.closed.last_entry().filter(|last| *last.get() == from - 1) {
                    Some(mut last) => *last.get_mut() = to,
                    None => drop(self.closed.insert(from, to)),
                }
            }
            let next = self.look + 1;
            let looks = self.open.values().map(|(_, look)| *look).chain(self.holders.values().copied());
            let looks: BTreeSet<Look> = looks.filter(|look| (1..self.look).contains(look)).collect();
            let last = looks.len() as Look + 1;
            let rank = |look: Look| match look {
                0 => 0,
                look if look == next => last + 1,
                look => looks.range(..look).count() as Look + 1,
            };
            self.open.values_mut().for_each(|(_, look)| *look = rank(*look));
            self.holders.values_mut().for_each(|look| *look = rank(*look));
            self.look = last;
        }
    }

    impl Hash for Gaps {
        fn hash<H: Hasher>(&self, state: &mut H) {
            let mut holders: Vec<_> = self.holders.iter().collect();
            holders.sort_unstable();
            (&self.open, &self.closed, holders, self.look).hash(state);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn ranges(gaps: &Gaps) -> Vec<(i64, i64)> {
        let Probes { from, to } = gaps.probes();
        from.into_iter().zip(to).collect()
    }

    /// F14: the rule.
    #[test]
    fn a_gap_closes_only_after_a_read_that_began_without_its_holders() {
        let mut gaps = Gaps::default();
        gaps.open(between(0, [1, 4, 6]));
        for holders in [&["3/7", "4/1"][..], &["4/1", "9/9", "9/9"]] {
            let ripe = gaps.observe(names(holders));
            gaps.close(ripe);
            assert!(gaps.is_open(2), "one of its holders is left");
        }
        let ripe = gaps.observe(names(&["9/9"]));
        assert!(gaps.is_open(3) && gaps.is_open(5), "open until the read has found nothing");
        gaps.close(ripe);
        assert!(gaps.is_empty(), "later holders do not count");
        assert!(gaps.is_closed(2) && gaps.is_closed(5) && !gaps.is_closed(4));
    }

    #[test]
    fn nobody_at_work_closes_at_the_next_read() {
        let mut gaps = Gaps::default();
        gaps.open(between(0, [3]));
        let ripe = gaps.observe(Vec::new());
        gaps.found(2);
        gaps.open([(7, 7)]);
        gaps.close(ripe);
        assert!(gaps.is_closed(1) && !gaps.is_closed(2));
        assert!(gaps.is_open(7), "whom it waits for has not been asked yet");
        gaps.straggled(1);
        assert!(!gaps.is_closed(1));
    }

    #[test]
    fn a_prepared_transaction_is_waited_for_under_its_new_name() {
        let mut gaps = Gaps::default();
        gaps.open([(1, 1)]);
        for (holder, closes) in [("3/7", false), ("-1/740", false), ("5/1", true)] {
            let ripe = gaps.observe(names(&[holder]));
            gaps.close(ripe);
            assert_eq!(gaps.is_closed(1), closes, "{holder}");
        }
    }

    /// The plain reading of the rule, with the holders of every read kept apart.
    #[test]
    fn it_closes_what_the_rule_closes() {
        let mut gaps = Gaps::default();
        let mut model: Vec<(i64, Option<BTreeSet<String>>)> = Vec::new();
        let mut state: u64 = 42;
        let mut random = |bound: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % bound
        };
        let mut holding: BTreeSet<String> = BTreeSet::new();
        let mut born = 0;
        for read in 0..5_000 {
            holding.retain(|_| random(3) > 0);
            for _ in 0..random(3) {
                born += 1;
                holding.insert(born.to_string());
            }
            let ripe = gaps.observe(holding.iter().cloned().collect());
            for (_, holders) in &mut model {
                match holders {
                    Some(holders) => holders.retain(|name| holding.contains(name)),
                    None => *holders = Some(holding.clone()),
                }
            }
            model.retain(|(_, holders)| holders.as_ref().is_none_or(|holders| !holders.is_empty()));
            gaps.close(ripe);
            let left: Vec<i64> = model.iter().map(|(number, _)| *number).collect();
            assert_eq!(gaps.probes().from, left, "read {read}");
            if random(2) == 0 {
                gaps.open([(10 * read, 10 * read)]);
                model.push((10 * read, None));
            }
        }
    }

    #[test]
    fn found_numbers_split_ranges() {
        let mut gaps = Gaps::default();
        gaps.open([(1, 9)]);
        for number in [5, 1, 9, 5, 42] {
            gaps.found(number);
        }
        assert_eq!(ranges(&gaps), [(2, 4), (6, 8)]);
    }

    #[test]
    fn one_long_writer_costs_no_more_than_what_is_open() {
        let mut gaps = Gaps::default();
        for read in 0..100_000_i64 {
            let others = (0..8).map(|n| format!("{n}/{read}"));
            let ripe = gaps.observe(others.chain(["1/1".to_owned()]).collect());
            gaps.close(ripe);
            gaps.open([(3 * read, 3 * read + 1)]);
            // The writers that were late have committed.
            gaps.found(3 * read - 3);
            gaps.found(3 * read - 2);
        }
        assert_eq!((gaps.open.len(), gaps.holders.len()), (1, 9));
        assert!(gaps.holders.capacity() < 64, "{}", gaps.holders.capacity());
    }

    #[test]
    fn too_many_are_merged_over_rows_that_are_gone() {
        let mut gaps = Gaps::default();
        assert_eq!(gaps.overflow(), None);
        for n in 0..MAX_OPEN as i64 {
            gaps.observe(names(&["1/1"]));
            gaps.open([(3 * n + 1, 3 * n + 1)]);
        }
        assert_eq!(gaps.overflow(), None);
        gaps.closed.insert(5, 5);
        gaps.open([(30_001, 30_001)]);
        assert_eq!(gaps.overflow(), Some(1));
        // Of the rows, 300 and 15000 are left; 5 is one that was missed, and is found now.
        let apart = [5, 300, 15_000].into_iter().filter_map(|row| gaps.below(row)).collect();
        gaps.merge(&apart);
        assert_eq!(ranges(&gaps), [(1, 298), (301, 14_998), (15_001, 30_001)]);
        assert!(gaps.is_open(5) && !gaps.is_closed(5));
        let ripe = gaps.observe(names(&["2/2"]));
        gaps.close(ripe);
        assert_eq!(ranges(&gaps), [(15_001, 30_001)], "the last gap has not been asked about yet");
        let ripe = gaps.observe(Vec::new());
        gaps.close(ripe);
        assert!(gaps.is_empty() && gaps.is_closed(20_000));
    }

    #[test]
    fn the_bound_holds_even_if_rows_are_returned_again() {
        let mut gaps = Gaps::default();
        gaps.open((0..25_000).map(|n| (3 * n, 3 * n)));
        let apart = (0..25_000).filter_map(|n| gaps.below(3 * n + 1)).collect();
        gaps.merge(&apart);
        let left = ranges(&gaps);
        assert!((MAX_OPEN / 2..=MAX_OPEN / 2 + 1).contains(&left.len()), "{}", left.len());
        assert!(left[0].1 > 50_000 && left[1].0 == left[1].1, "the lowest give way: {:?}", &left[..2]);
        assert_eq!(left.last(), Some(&(74_997, 74_997)));
    }
}
