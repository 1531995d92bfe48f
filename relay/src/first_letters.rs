//! The first letters that a redrive would send, before it is made: some of them to look at, and whether all can be opened.
//!
//! How many letters match is the database's to count, which knows no keys. So that a plan can say that a key is missing, the
//! first letters are read.

use std::fmt;

use backstop_core::AdapterError;
use backstop_core::ledger::{Guard, Ledger, Letter, LetterFilter, Verdict};

use crate::encryption::{Keyring, Locked};

/// Letters that are looked at, at most, whatever becomes of them.
const LOOKED_AT: u32 = 50;
/// From how many bytes on no more of them are looked at: a page of the console asks every few seconds.
const BYTES: usize = 4 << 20;
/// Letters that are read first, as long as nobody knows how large they are.
const FIRST: u32 = 4;
/// Letters that are kept to be shown.
const SAMPLE: usize = 5;

/// The first letters that a redrive would send.
#[derive(Debug, Default)]
pub(crate) struct FirstLetters {
    /// Some of those that can be opened.
    pub(crate) sample: Vec<Letter>,
    /// Those that cannot.
    pub(crate) refused: Option<Refused>,
}

/// Letters that a redrive would refuse to send, because their bodies cannot be opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refused {
    /// How many of those that were looked at.
    pub(crate) letters: u64,
    /// How many were looked at, at most.
    pub(crate) of: u32,
    /// The id of the first.
    pub(crate) first: String,
    /// Why that cannot be opened.
    pub(crate) locked: Locked,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { letters, of, locked, .. } = self;
        write!(f, "{letters} of the first {of} letters would be refused, the first because {locked}: ")?;
        f.write_str(locked.hint())
    }
}

impl FirstLetters {
    /// Looks at the first letters of that filter. Nothing changes.
    pub(crate) async fn of(
        ledger: &dyn Ledger,
        filter: &LetterFilter,
        guard: &Guard,
        keys: &Keyring,
    ) -> Result<Self, AdapterError> {
        let (mut found, mut at) = (Self::default(), None::<String>);
        let (mut looked, mut bytes, mut most) = (0, 0, FIRST);
        while most > 0 && bytes < BYTES {
            let read = ledger.list(filter, at.as_deref(), most).await?;
            let count = u32::try_from(read.len()).unwrap_or(most);
            looked += count;
            bytes += read.iter().map(|letter| letter.envelope.size()).sum::<usize>();
            most = if count < most { 0 } else { (LOOKED_AT - looked).min(most * 4) };
            at = read.last().map(|letter| letter.id.clone());
            let sent = read.into_iter().filter(|letter| guard.verdict(letter) == Verdict::Send);
            sent.for_each(|letter| found.take(letter, keys));
        }
        if let Some(refused) = &mut found.refused
            && most > 0
        {
            refused.of = looked;
        }
        Ok(found)
    }

    fn take(&mut self, letter: Letter, keys: &Keyring) {
        match (keys.locked(&letter), &mut self.refused) {
            (Some(_), Some(refused)) => refused.letters += 1,
            (Some(locked), none) => {
                *none = Some(Refused { letters: 1, of: LOOKED_AT, first: letter.id, locked })
            }
            (None, _) if self.sample.len() < SAMPLE => self.sample.push(letter),
            (None, _) => {}
        }
    }
}
