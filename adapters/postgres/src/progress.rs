//! How far a reader has come, without any I/O: what a read returned, and which numbers below it may still get a row.

use crate::ahead::Ahead;
use crate::gaps::{Gaps, Look, between};

/// Where one reader stands in the numbers of the outbox.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone, PartialEq, Eq, Hash))]
pub(crate) struct Progress {
    /// Every number up to here was returned, or is in a gap. Where the sequence may be read it has given all of them.
    pub(crate) frontier: i64,
    pub(crate) gaps: Gaps,
    /// What was returned beyond the frontier.
    pub(crate) ahead: Ahead,
    /// The server that was read, by the time of its start.
    server: Option<String>,
}

/// What was found out between two reads.
#[derive(Debug, Clone, Copy)]
#[cfg_attr(test, derive(PartialEq, Eq, Hash))]
pub(crate) struct Before {
    /// The last number that the sequence had given, where it may be read.
    pub(crate) last: Option<i64>,
    /// Gaps up to this look close if the read finds nothing in them.
    pub(crate) ripe: Look,
}

impl Progress {
    pub(crate) fn new() -> Self {
        Self { frontier: i64::MIN, gaps: Gaps::default(), ahead: Ahead::default(), server: None }
    }

    /// Takes in which server is read next, and where its sequence stands. Forgets everything, and says so, if numbers
    /// that were passed may be given to other rows: the sequence stands lower, or another server has taken over. That
    /// one may have lost the newest numbers and have given them again since, before anybody looked.
    pub(crate) fn meet(&mut self, server: &str, last: Option<i64>) -> bool {
        let other = self.server.as_deref().is_some_and(|known| known != server);
        let forgets = other || last.is_some_and(|last| last < self.frontier);
        if forgets {
            *self = Self::new();
        }
        self.server.get_or_insert_with(|| server.to_owned());
        forgets
    }

    /// Whether a read would find nothing, so that there is no need for it: everything that this server's sequence has
    /// given was taken in, and no number is waited for.
    pub(crate) fn is_complete(&self, server: &str, last: Option<i64>) -> bool {
        self.awaits_nothing() && self.server.as_deref() == Some(server) && last == Some(self.frontier)
    }

    /// Whether no row is to come from below the highest number that was returned.
    pub(crate) fn awaits_nothing(&self) -> bool {
        self.gaps.is_empty() && self.ahead.is_empty()
    }

    /// Whether a row of that number is one for a read to come.
    pub(crate) fn is_unread(&self, number: i64) -> bool {
        self.gaps.is_open(number)
            || self.gaps.is_closed(number)
            || (number > self.frontier && !self.ahead.contains(number))
    }

    /// Takes in the rows that one read returned, by number and id, ascending. `cut` says that it left rows behind.
    pub(crate) fn advance(&mut self, rows: &[(i64, &str)], cut: bool, before: Before) {
        let Self { frontier, gaps, ahead, .. } = self;
        let Before { last, ripe } = before;
        let start = *frontier;
        let (filled, beyond) = rows.split_at(rows.partition_point(|(number, _)| *number <= start));
        filled.iter().for_each(|(number, _)| gaps.found(*number));
        let highest = beyond.last().map(|(number, _)| *number);
        // Rows of gaps come first: a cut leaves none of them behind once a row beyond the frontier was read.
        if !cut || highest.is_some() {
            gaps.close(ripe);
        }
        // A cut leaves rows behind beyond the highest one. What the sequence had not given before this read was given
        // since, mostly; but if somebody chose the number, rows below it are still to come, and show no gap.
        let bound = if cut { highest.unwrap_or(start) } else { i64::MAX }.min(last.unwrap_or(i64::MAX));
        let (within, further) = beyond.split_at(beyond.partition_point(|(number, _)| *number <= bound));
        further.iter().for_each(|(number, id)| ahead.returned(*number, id));
        let mut reached = ahead.pass(bound);
        reached.extend(within.iter().map(|(number, _)| *number));
        reached.sort_unstable();
        reached.dedup();
        *frontier = reached.last().copied().unwrap_or(start);
        gaps.open(between(start, reached));
        if let Some(last) = last
            && !cut
            && *frontier == start
            && last > start
        {
            // Nothing is there up to the last number given: rolled back, deleted or still open. The next read need
            // not walk over it again.
            gaps.open([(start.saturating_add(1), last)]);
            *frontier = last;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(progress: &mut Progress, rows: &[(i64, &str)], cut: bool, last: i64) {
        assert!(!progress.meet("this", Some(last)));
        let ripe = progress.gaps.observe(Vec::new());
        progress.advance(rows, cut, Before { last: Some(last), ripe });
    }

    #[test]
    fn nothing_needs_to_be_read_only_where_everything_given_was_taken_in() {
        let mut progress = Progress::new();
        assert!(!progress.is_complete("this", Some(0)), "nothing is known yet");
        read(&mut progress, &[(1, "a"), (2, "b")], true, 4);
        assert!(!progress.is_complete("this", Some(4)), "the read was cut");
        read(&mut progress, &[(4, "d")], false, 4);
        assert!(!progress.is_complete("this", Some(4)), "3 may still come");
        read(&mut progress, &[], false, 4);
        assert!(progress.is_complete("this", Some(4)), "nobody is left to write it");
        for (server, last) in [("this", Some(5)), ("this", Some(3)), ("this", None), ("another", Some(4))] {
            assert!(!progress.is_complete(server, last), "{server} {last:?}");
        }
        read(&mut progress, &[(9, "chosen")], false, 4);
        assert!(!progress.is_complete("this", Some(4)), "a row is ahead of the sequence");
    }
}
