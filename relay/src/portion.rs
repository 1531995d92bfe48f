//! How many letters are read at once, so that large ones take no more memory than small ones.

use backstop_core::ledger::Letter;

/// What a portion should weigh in bytes at most. One letter alone may weigh more.
const BYTES: usize = 8 << 20;
/// What a letter weighs as long as none has been seen.
const UNSEEN: usize = 256 << 10;

/// The next portion of letters, by the size of those that came before. The ledger bounds what it returns by their number
/// alone.
#[derive(Debug)]
pub(crate) struct Portion {
    most: u32,
    each: usize,
}

impl Portion {
    /// Of at most so many letters.
    pub(crate) fn of(most: u32) -> Self {
        Self { most, each: UNSEEN }
    }

    /// How many letters to read next.
    pub(crate) fn next(&self) -> u32 {
        u32::try_from(BYTES / self.each).unwrap_or(self.most).clamp(1, self.most)
    }

    /// Portions grow slowly and shrink at once.
    pub(crate) fn came<'a>(&mut self, letters: impl ExactSizeIterator<Item = &'a Letter>) {
        let count = letters.len();
        let bytes: usize = letters.map(|letter| letter.envelope.size()).sum();
        if let Some(mean) = bytes.checked_div(count) {
            self.each = mean.max(self.each / 2).max(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use backstop_core::message::Envelope;

    use super::*;

    fn letters(count: usize, bytes: usize) -> Vec<Letter> {
        let envelope = Envelope { body: Some(vec![0; bytes].into()), ..Envelope::default() };
        vec![Letter::new("id", "orders.dlq", envelope); count]
    }

    #[test]
    fn many_small_letters_come_at_once_and_large_ones_alone() {
        let mut portion = Portion::of(200);
        assert_eq!(portion.next(), 32);
        for expected in [64, 128, 200, 200] {
            portion.came(letters(3, 100).iter());
            assert_eq!(portion.next(), expected);
        }
        portion.came(letters(4, 1 << 20).iter());
        assert_eq!(portion.next(), 8);
        portion.came(letters(1, 20 << 20).iter());
        assert_eq!(portion.next(), 1);
        portion.came(letters(0, 0).iter());
        assert_eq!(portion.next(), 1, "nothing has been learned");
    }
}
