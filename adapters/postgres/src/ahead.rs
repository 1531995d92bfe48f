//! Rows that were returned beyond the last number that the sequence had given before they were read.
//!
//! Most got their number between the two, and the next read passes them. A number that somebody chose stays: were it
//! taken for the place that reading has reached, the numbers that the sequence has yet to give below it would be
//! skipped, or the sequence would seem to have gone backwards for as long as the row is there.

use std::collections::{BTreeMap, BTreeSet};

/// Rows that are kept before it is asked which of them are still there.
const ENOUGH: usize = 1_000;

/// Number to id: another row may come under the number of one that a fail-over lost.
#[derive(Debug, Default)]
#[cfg_attr(test, derive(Clone, PartialEq, Eq, Hash))]
pub(crate) struct Ahead {
    rows: BTreeMap<i64, String>,
    /// How many were left when it was asked the last time.
    left: usize,
}

impl Ahead {
    /// A row was returned.
    pub(crate) fn returned(&mut self, number: i64, id: &str) {
        self.rows.insert(number, id.to_owned());
    }

    /// Takes out the numbers up to `last`, ascending.
    pub(crate) fn pass(&mut self, last: i64) -> Vec<i64> {
        let rest = last.checked_add(1).map(|next| self.rows.split_off(&next)).unwrap_or_default();
        std::mem::replace(&mut self.rows, rest).into_keys().collect()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    pub(crate) fn contains(&self, number: i64) -> bool {
        self.rows.contains_key(&number)
    }

    pub(crate) fn highest(&self) -> Option<i64> {
        self.rows.last_key_value().map(|(number, _)| *number)
    }

    /// Numbers and ids, so that these rows are not read again.
    pub(crate) fn names(&self) -> (Vec<i64>, Vec<&str>) {
        self.rows.iter().map(|(number, id)| (*number, id.as_str())).unzip()
    }

    /// Whether there are so many that it should be asked which of them are still there.
    pub(crate) fn is_due(&self) -> bool {
        self.rows.len() > ENOUGH.max(2 * self.left)
    }

    /// Forgets all but those that are still there.
    pub(crate) fn keep(&mut self, there: &BTreeSet<i64>) {
        self.rows.retain(|number, _| there.contains(number));
        self.left = self.rows.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_passed_once_and_in_order() {
        let mut ahead = Ahead::default();
        for number in [7, 5, i64::MAX, 6] {
            ahead.returned(number, "a");
        }
        assert_eq!(ahead.pass(4), Vec::<i64>::new());
        assert_eq!(ahead.pass(6), [5, 6]);
        assert_eq!((ahead.highest(), ahead.contains(7), ahead.contains(6)), (Some(i64::MAX), true, false));
        assert_eq!(ahead.pass(i64::MAX), [7, i64::MAX]);
        assert_eq!(ahead.names(), (Vec::new(), Vec::new()));
    }

    #[test]
    fn it_asks_ever_less_often() {
        let mut ahead = Ahead::default();
        let mut asked = 0;
        for number in 0..100_000 {
            ahead.returned(number, "a");
            if ahead.is_due() {
                asked += 1;
                ahead.keep(&(0..=number).collect());
            }
        }
        assert!((5..20).contains(&asked), "{asked}");
        ahead.keep(&BTreeSet::from([3]));
        assert_eq!(ahead.pass(i64::MAX), [3]);
    }
}
