//! The ledger oracle: whether the books of a fault run balance.
//!
//! Producers note what they committed, consumers' effects are read from a table without a unique key, in the order in
//! which they were applied. After the last fault and a quiet backlog, [`Books::audit`] compares the two.
//!
//! ```
//! use backstop_testkit::oracle::{Books, Fact};
//!
//! let mut books = Books::default();
//! books.committed.push(Fact::new("order-7", 1, "a"));
//! books.applied.push(Fact::new("order-7", 1, "a"));
//! books.audit().assert_balanced();
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// One event: its ordering key, its number within the key, its id.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fact {
    /// Ordering key.
    pub key: String,
    /// Grows within the key.
    pub seq: u64,
    /// Unique over all keys.
    pub id: String,
}

impl Fact {
    /// Event `seq` of `key`.
    pub fn new(key: impl Into<String>, seq: u64, id: impl Into<String>) -> Self {
        Self { key: key.into(), seq, id: id.into() }
    }
}

/// Everything that a fault run has noted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Books {
    /// Events whose transaction the producer committed, in any order.
    pub committed: Vec<Fact>,
    /// Events whose effect is in the consumer's database, once for each time it is there, in the order of
    /// application.
    pub applied: Vec<Fact>,
    /// Ids of events whose transaction the producer rolled back.
    pub aborted: BTreeSet<String>,
    /// Ids with an open dead letter.
    pub dead_letters: BTreeSet<String>,
    /// Ids in the outbox's table of dead rows.
    pub dead_rows: BTreeSet<String>,
    /// Ids that the run made fail for good: exactly these must be dead.
    pub injected: BTreeSet<String>,
    /// Ids that left their place in the order because they were quarantined and redriven.
    pub parked: BTreeSet<String>,
    /// Messages that still wait anywhere: outbox rows, consumer lag, held messages.
    pub backlog: u64,
}

/// What is wrong; all empty when the books balance.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Committed, and neither applied nor dead.
    pub lost: BTreeSet<String>,
    /// Applied more than once.
    pub twice: BTreeSet<String>,
    /// Applied after an event of the same key with a higher number.
    pub out_of_order: BTreeSet<String>,
    /// Applied or dead although their transaction rolled back, or though nobody ever committed them.
    pub from_aborted: BTreeSet<String>,
    /// Still waiting.
    pub backlog: u64,
    /// Dead, and not made to fail.
    pub unexpected_dead: BTreeSet<String>,
    /// Made to fail, and not dead.
    pub missing_dead: BTreeSet<String>,
    /// Dead and applied as well.
    pub dead_and_applied: BTreeSet<String>,
}

impl Books {
    /// Compares what was committed with what became of it.
    pub fn audit(&self) -> Verdict {
        let committed: BTreeSet<&String> = self.committed.iter().map(|fact| &fact.id).collect();
        let applied: BTreeSet<&String> = self.applied.iter().map(|fact| &fact.id).collect();
        let dead: BTreeSet<&String> = self.dead_letters.union(&self.dead_rows).collect();
        let injected: BTreeSet<&String> = self.injected.iter().collect();
        let ended: BTreeSet<&String> = applied.union(&dead).copied().collect();
        let never_committed =
            ended.iter().filter(|id| self.aborted.contains(**id) || !committed.contains(*id));
        Verdict {
            lost: owned(committed.difference(&ended)),
            twice: self.twice(),
            out_of_order: self.out_of_order(),
            from_aborted: owned(never_committed),
            backlog: self.backlog,
            unexpected_dead: owned(dead.difference(&injected)),
            missing_dead: owned(injected.difference(&dead)),
            dead_and_applied: owned(dead.intersection(&applied)),
        }
    }

    fn twice(&self) -> BTreeSet<String> {
        let mut seen = BTreeSet::new();
        self.applied.iter().filter(|fact| !seen.insert(&fact.id)).map(|fact| fact.id.clone()).collect()
    }

    /// Only first applications count: a second one is reported as twice.
    fn out_of_order(&self) -> BTreeSet<String> {
        let mut seen = BTreeSet::new();
        let mut highest = BTreeMap::<&str, u64>::new();
        let mut late = BTreeSet::new();
        for fact in &self.applied {
            if !seen.insert(&fact.id) || self.parked.contains(&fact.id) {
                continue;
            }
            let highest = highest.entry(&fact.key).or_default();
            if fact.seq < *highest {
                late.insert(fact.id.clone());
            }
            *highest = (*highest).max(fact.seq);
        }
        late
    }
}

fn owned<'a>(ids: impl Iterator<Item = &'a &'a String>) -> BTreeSet<String> {
    ids.map(|id| (*id).clone()).collect()
}

impl Verdict {
    /// Whether nothing is wrong.
    pub fn is_balanced(&self) -> bool {
        *self == Self::default()
    }

    /// Ends the test unless the books balance.
    ///
    /// # Panics
    /// With the table of what is wrong.
    pub fn assert_balanced(&self) {
        assert!(self.is_balanced(), "the books do not balance\n{self}");
    }
}

/// How many ids a line of the table shows.
const SHOWN: usize = 8;

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines = [
            ("lost", &self.lost),
            ("twice", &self.twice),
            ("out of order", &self.out_of_order),
            ("from aborted", &self.from_aborted),
            ("unexpected dead", &self.unexpected_dead),
            ("missing dead", &self.missing_dead),
            ("dead and applied", &self.dead_and_applied),
        ];
        for (name, ids) in lines {
            write!(f, "{name:<17} {:>6}", ids.len())?;
            for id in ids.iter().take(SHOWN) {
                write!(f, "  {id}")?;
            }
            writeln!(f, "{}", if ids.len() > SHOWN { "  …" } else { "" })?;
        }
        write!(f, "{:<17} {:>6}", "backlog", self.backlog)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(ids: &[&str]) -> BTreeSet<String> {
        ids.iter().map(|id| (*id).to_owned()).collect()
    }

    /// Two keys of two events; `c` was made to fail and is dead.
    fn balanced() -> Books {
        let (a, b) = (Fact::new("k", 1, "a"), Fact::new("k", 2, "b"));
        let (c, d) = (Fact::new("l", 1, "c"), Fact::new("l", 2, "d"));
        Books {
            committed: vec![a.clone(), b.clone(), c, d.clone()],
            applied: vec![d, a, b],
            aborted: set(&["x"]),
            dead_letters: set(&["c"]),
            injected: set(&["c"]),
            ..Books::default()
        }
    }

    fn broken(breaking: impl FnOnce(&mut Books)) -> Verdict {
        let mut books = balanced();
        breaking(&mut books);
        books.audit()
    }

    #[test]
    fn balanced_books_balance() {
        balanced().audit().assert_balanced();
    }

    #[test]
    fn what_is_neither_applied_nor_dead_is_lost() {
        let verdict = broken(|books| books.applied.retain(|fact| fact.id != "b"));
        assert_eq!(verdict, Verdict { lost: set(&["b"]), ..Verdict::default() });
    }

    #[test]
    fn what_is_applied_twice_is_found() {
        let verdict = broken(|books| books.applied.push(Fact::new("k", 1, "a")));
        assert_eq!(verdict, Verdict { twice: set(&["a"]), ..Verdict::default() });
    }

    #[test]
    fn what_overtook_is_found() {
        let verdict = broken(|books| books.applied.reverse());
        assert_eq!(verdict, Verdict { out_of_order: set(&["a"]), ..Verdict::default() });
    }

    #[test]
    fn what_was_parked_may_come_late() {
        let verdict = broken(|books| {
            books.applied.reverse();
            books.parked = set(&["a"]);
        });
        verdict.assert_balanced();
    }

    #[test]
    fn effects_of_aborted_and_unknown_events_are_found() {
        let verdict = broken(|books| {
            books.applied.extend([Fact::new("k", 3, "x"), Fact::new("k", 4, "nobody")]);
        });
        assert_eq!(verdict, Verdict { from_aborted: set(&["nobody", "x"]), ..Verdict::default() });
    }

    #[test]
    fn a_backlog_is_told() {
        let verdict = broken(|books| books.backlog = 3);
        assert_eq!(verdict, Verdict { backlog: 3, ..Verdict::default() });
    }

    #[test]
    fn dead_without_cause_is_found() {
        let verdict = broken(|books| {
            books.applied.retain(|fact| fact.id != "b");
            books.dead_rows = set(&["b"]);
        });
        assert_eq!(verdict, Verdict { unexpected_dead: set(&["b"]), ..Verdict::default() });
    }

    #[test]
    fn alive_although_made_to_fail_is_found() {
        let verdict = broken(|books| books.injected.extend(set(&["d"])));
        assert_eq!(verdict, Verdict { missing_dead: set(&["d"]), ..Verdict::default() });
    }

    #[test]
    fn dead_and_applied_is_found() {
        let verdict = broken(|books| books.applied.push(Fact::new("l", 1, "c")));
        let expected =
            Verdict { dead_and_applied: set(&["c"]), out_of_order: set(&["c"]), ..Verdict::default() };
        assert_eq!(verdict, expected);
    }

    #[test]
    #[should_panic(expected = "lost                   1  b")]
    fn the_table_names_the_culprit() {
        broken(|books| books.applied.retain(|fact| fact.id != "b")).assert_balanced();
    }
}
