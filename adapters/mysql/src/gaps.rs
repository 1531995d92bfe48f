//! Numbers of the outbox that were not there when their neighbours were read.
//!
//! A number that is missing was rolled back, or belongs to a transaction that is still open and may yet commit. Any
//! such transaction held a metadata lock on the table just after the read that showed the gap, because it takes the
//! lock before the number, and keeps it to its end. Once all holders of that moment are gone, one more read decides.
//! Where locks may not be looked at, gaps stay open.
//!
//! Locks are looked at once between two reads, and a gap waits for those who held one at the first look after it was
//! shown and at every look since. So whoever an older gap waits for, a younger one waits for too: it is enough to know
//! of each holder since which look it has been there, and of each gap after which look it was shown.

use std::collections::{BTreeMap, HashMap};

/// Most gaps that are looked up one by one in every read; beyond that, neighbours are merged, and what still is more
/// than this is looked through as a whole.
pub(crate) const MAX_PROBES: usize = 500;
/// Most closed ranges that are kept for the full scan; the lowest are forgotten first.
const MAX_CLOSED: usize = 100_000;

/// The number of a look at the locks.
pub(crate) type Look = u64;

/// The gaps of one reader.
#[derive(Debug, Default)]
pub(crate) struct Gaps {
    /// First number to (last number, first look after it was shown). Looks ascend with the numbers, because gaps are
    /// shown beyond all that was read before.
    open: BTreeMap<i64, (i64, Look)>,
    /// First to last number of gaps that were found to be nobody's.
    closed: BTreeMap<i64, i64>,
    /// Metadata locks on the outbox that let their holders write, by names of [`crate::witness`], and the look since
    /// which they have been held.
    holders: HashMap<String, Look>,
    look: Look,
}

impl Gaps {
    pub(crate) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// Takes in who holds locks now. Gaps whose first look is at most the one returned close if the next read still
    /// finds nothing in them: all their holders are gone.
    pub(crate) fn observe(&mut self, now: Vec<String>) -> Look {
        self.look += 1;
        let before = std::mem::take(&mut self.holders);
        let since = |name: String| {
            let since = before.get(&name).copied().unwrap_or(self.look);
            (name, since)
        };
        self.holders = now.into_iter().map(since).collect();
        self.holders.values().min().map_or(self.look, |since| since - 1)
    }

    /// The ranges, ascending.
    pub(crate) fn ranges(&self) -> impl Iterator<Item = (i64, i64)> {
        self.open.iter().map(|(from, (to, _))| (*from, *to))
    }

    /// The ranges that close unless something is found in them.
    pub(crate) fn ripe(&self, ripe: Look) -> Vec<(i64, i64)> {
        let ripe = self.open.iter().take_while(|(_, (_, look))| *look <= ripe);
        ripe.take(MAX_PROBES).map(|(from, (to, _))| (*from, *to)).collect()
    }

    /// Whether there are too many to be looked up one by one.
    pub(crate) fn are_many(&self) -> bool {
        self.open.len() > MAX_PROBES
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

    /// Closes these ranges, which [`ripe`](Gaps::ripe) gave and in which a read that began after all their holders
    /// were gone found nothing.
    pub(crate) fn close(&mut self, ranges: &[(i64, i64)]) {
        for (from, to) in ranges {
            // One in which a row was found since is another range now.
            if self.open.get(from).is_some_and(|(last, _)| last == to) {
                self.open.remove(from);
                self.closed.insert(*from, *to);
            }
        }
        self.forget();
    }

    /// Everything that was read of and is neither there nor in a gap that is open: should one of these come again, the
    /// full scan is to tell.
    pub(crate) fn closed(&mut self, ranges: impl IntoIterator<Item = (i64, i64)>) {
        self.closed = ranges.into_iter().collect();
        self.forget();
    }

    fn forget(&mut self) {
        while self.closed.len() > MAX_CLOSED {
            self.closed.pop_first();
        }
    }

    /// Merges neighbours between which no row is left. `rows` are all that are there, ascending; those in gaps, which
    /// are found by the same read, do not count.
    ///
    /// A gap of several looks waits for whom the last of them waits for, which is for all.
    pub(crate) fn merge(&mut self, rows: impl IntoIterator<Item = i64>) {
        let mut rows =
            rows.into_iter().filter(|row| !self.is_open(*row)).collect::<Vec<_>>().into_iter().peekable();
        let mut merged: BTreeMap<i64, (i64, Look)> = BTreeMap::new();
        for (from, (to, look)) in std::mem::take(&mut self.open) {
            let mut apart = false;
            while rows.next_if(|row| *row < from).is_some() {
                apart = true;
            }
            match merged.last_entry().filter(|_| !apart) {
                Some(mut last) => *last.get_mut() = (to, look),
                None => {
                    merged.insert(from, (to, look));
                }
            }
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn ranges(gaps: &Gaps) -> Vec<(i64, i64)> {
        gaps.ranges().collect()
    }

    fn close(gaps: &mut Gaps, ripe: Look) {
        let ripe = gaps.ripe(ripe);
        gaps.close(&ripe);
    }

    #[test]
    fn a_gap_closes_only_after_a_read_that_began_without_its_holders() {
        let mut gaps = Gaps::default();
        gaps.open(between(0, [1, 4, 6]));
        for holders in [&["3/7", "4/1"][..], &["4/1", "9/9", "9/9"]] {
            let ripe = gaps.observe(names(holders));
            close(&mut gaps, ripe);
            assert!(gaps.is_open(2), "one of its holders is left");
        }
        let ripe = gaps.observe(names(&["9/9"]));
        assert!(gaps.is_open(3) && gaps.is_open(5), "open until the read has found nothing");
        close(&mut gaps, ripe);
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
        close(&mut gaps, ripe);
        assert!(gaps.is_closed(1) && !gaps.is_closed(2));
        assert!(gaps.is_open(7), "whom it waits for has not been asked yet");
        gaps.straggled(1);
        assert!(!gaps.is_closed(1));
    }

    #[test]
    fn a_range_in_which_a_row_was_found_stays_open() {
        let mut gaps = Gaps::default();
        gaps.open([(1, 3)]);
        let look = gaps.observe(Vec::new());
        let ripe = gaps.ripe(look);
        gaps.found(2);
        gaps.close(&ripe);
        assert_eq!(ranges(&gaps), [(1, 1), (3, 3)]);
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
            close(&mut gaps, ripe);
            let left: Vec<i64> = model.iter().map(|(number, _)| *number).collect();
            assert_eq!(gaps.ranges().map(|(from, _)| from).collect::<Vec<_>>(), left, "read {read}");
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
    fn neighbours_are_merged_over_rows_that_are_gone() {
        let mut gaps = Gaps::default();
        for n in 0..1_000 {
            gaps.observe(names(&["1/1"]));
            gaps.open([(3 * n + 1, 3 * n + 1)]);
        }
        assert!(gaps.are_many());
        gaps.closed.insert(5, 5);
        // Of the rows, 300 and 1500 are left; 301 is one that came late.
        gaps.merge([300, 301, 1_500]);
        assert_eq!(ranges(&gaps), [(1, 298), (301, 1_498), (1_501, 2_998)]);
        assert!(gaps.is_open(5) && !gaps.is_closed(5));
        let ripe = gaps.observe(names(&["2/2"]));
        close(&mut gaps, ripe);
        assert_eq!(ranges(&gaps), [(1_501, 2_998)], "the last gap has not been asked about yet");
    }
}
