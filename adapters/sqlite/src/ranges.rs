//! A set of row numbers, kept as ranges: numbers that are read one after another take the room of one.

/// Sorted, disjoint, inclusive ranges.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Ranges(Vec<(i64, i64)>);

impl Ranges {
    /// Adds a number.
    pub(crate) fn insert(&mut self, number: i64) {
        let at = self.0.partition_point(|(_, end)| *end < number);
        if self.0.get(at).is_some_and(|(start, _)| *start <= number) {
            return;
        }
        let joins_left = at > 0 && self.0[at - 1].1.checked_add(1) == Some(number);
        let joins_right = self.0.get(at).is_some_and(|(start, _)| number.checked_add(1) == Some(*start));
        match (joins_left, joins_right) {
            (true, true) => {
                self.0[at - 1].1 = self.0[at].1;
                self.0.remove(at);
            }
            (true, false) => self.0[at - 1].1 = number,
            (false, true) => self.0[at].0 = number,
            (false, false) => self.0.insert(at, (number, number)),
        }
    }

    /// Whether a number is in the set.
    pub(crate) fn contains(&self, number: i64) -> bool {
        let at = self.0.partition_point(|(_, end)| *end < number);
        self.0.get(at).is_some_and(|(start, _)| *start <= number)
    }

    /// Empties the set.
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_a_set() {
        let mut ranges = Ranges::default();
        let mut model = std::collections::BTreeSet::new();
        let mut number: i64 = 7;
        for _ in 0..2_000 {
            number = (number * 1_103_515_245 + 12_345) % 1_000;
            ranges.insert(number);
            model.insert(number);
        }
        for number in -2..1_002 {
            assert_eq!(ranges.contains(number), model.contains(&number), "{number}");
        }
        assert!(ranges.0.windows(2).all(|pair| pair[0].1 + 1 < pair[1].0), "{ranges:?}");
    }

    #[test]
    fn neighbours_take_one_range() {
        let mut ranges = Ranges::default();
        for number in [1, 2, 3, 5, 4, i64::MAX, i64::MIN] {
            ranges.insert(number);
        }
        assert_eq!(ranges.0, [(i64::MIN, i64::MIN), (1, 5), (i64::MAX, i64::MAX)]);
    }
}
