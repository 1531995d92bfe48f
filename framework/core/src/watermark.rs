//! Which offset may be committed when work finishes out of order.

use std::collections::BTreeSet;

/// The contiguous watermark of one partition.
///
/// Offsets are taken in order and done in any order; [`committable`](Watermark::committable) is the offset below
/// which everything that was taken is done. Offsets that the broker skipped (compaction, transaction markers) are no
/// gaps, since they were never taken.
///
/// ```
/// use backstop_core::watermark::Watermark;
///
/// let mut watermark = Watermark::default();
/// for offset in [5, 6, 9] {
///     watermark.take(offset);
/// }
/// assert!(watermark.done(6));
/// assert_eq!(watermark.committable(), Some(5), "5 is still at work");
/// watermark.done(5);
/// assert_eq!(watermark.committable(), Some(9), "7 and 8 never came");
/// watermark.done(9);
/// assert_eq!(watermark.committable(), Some(10));
/// ```
#[derive(Debug, Default, Clone)]
pub struct Watermark {
    at_work: BTreeSet<i64>,
    next: Option<i64>,
}

impl Watermark {
    /// An offset was handed over.
    pub fn take(&mut self, offset: i64) {
        self.at_work.insert(offset);
        self.next = Some(self.next.map_or(offset + 1, |next| next.max(offset + 1)));
    }

    /// Reading goes back to `offset`: from there on offsets mean other messages now, and those that are at work are
    /// forgotten. What is at work below stays.
    ///
    /// ```
    /// # let mut watermark = backstop_core::watermark::Watermark::default();
    /// (5..9).for_each(|offset| watermark.take(offset));
    /// watermark.rewind(7);
    /// assert_eq!((watermark.committable(), watermark.at_work()), (Some(5), 2));
    /// ```
    pub fn rewind(&mut self, offset: i64) {
        self.at_work.retain(|at_work| *at_work < offset);
        self.next = Some(offset);
    }

    /// An offset is done; `false` when it was not at work.
    pub fn done(&mut self, offset: i64) -> bool {
        self.at_work.remove(&offset)
    }

    /// The offset to commit: the first that is not done; `None` before anything was taken.
    pub fn committable(&self) -> Option<i64> {
        self.at_work.first().copied().or(self.next)
    }

    /// How many offsets are at work.
    pub fn at_work(&self) -> usize {
        self.at_work.len()
    }
}
