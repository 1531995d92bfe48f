//! The database in memory as a ledger of dead letters.

use backstop_core::AdapterError;
use backstop_core::ledger::{Ledger, Letter, LetterEvent, LetterFilter, LetterStatus};
use futures_core::future::BoxFuture;

use super::data::Data;
use super::outbox::now;
use super::store::Store;

impl Data {
    fn record(&mut self, letters: &[Letter]) -> Result<u64, AdapterError> {
        self.reachable()?;
        let mut new = 0;
        for letter in letters {
            if self.letters.iter().any(|known| known.id == letter.id) {
                continue;
            }
            self.supersede(letter);
            self.letters.push(letter.clone());
            self.tell(&letter.id, "collected", None);
            new += 1;
        }
        Ok(new)
    }

    /// Closes the letters whose message was redriven and failed again: the new letter stands for it from now on.
    fn supersede(&mut self, letter: &Letter) {
        let same = |older: &&mut Letter| {
            matches!(older.status, LetterStatus::Open | LetterStatus::Redriving)
                && older.message_key.is_some()
                && older.message_key == letter.message_key
                && older.consumer == letter.consumer
                && older.generation < letter.generation
        };
        let older: Vec<String> = self
            .letters
            .iter_mut()
            .filter(same)
            .map(|older| {
                older.status = LetterStatus::Superseded;
                older.id.clone()
            })
            .collect();
        for id in older {
            self.tell(&id, "failed-again", Some(&letter.id));
        }
    }

    fn mark(
        &mut self,
        ids: &[String],
        from: LetterStatus,
        to: LetterStatus,
        what: &str,
        detail: Option<&str>,
    ) -> Result<Vec<String>, AdapterError> {
        self.reachable()?;
        let meant =
            self.letters.iter_mut().filter(|letter| letter.status == from && ids.contains(&letter.id));
        let moved: Vec<String> = meant
            .map(|letter| {
                letter.status = to;
                letter.id.clone()
            })
            .collect();
        for id in &moved {
            self.tell(id, what, detail);
        }
        Ok(moved)
    }
}

fn is_meant(letter: &Letter, filter: &LetterFilter) -> bool {
    let one_of = filter.ids.is_empty() || filter.ids.contains(&letter.id);
    let equals = |wanted: &Option<String>, found: &Option<String>| wanted.is_none() || wanted == found;
    one_of
        && equals(&filter.consumer, &letter.consumer)
        && equals(&filter.place, &letter.place)
        && equals(&filter.fingerprint, &letter.fingerprint)
        && filter.status.is_none_or(|status| status == letter.status)
}

impl Ledger for Store {
    fn record<'a>(&'a self, letters: &'a [Letter]) -> BoxFuture<'a, Result<u64, AdapterError>> {
        now(self.shared.change(|data| data.record(letters)))
    }

    fn list<'a>(
        &'a self,
        filter: &'a LetterFilter,
        after: Option<&'a str>,
        limit: u32,
    ) -> BoxFuture<'a, Result<Vec<Letter>, AdapterError>> {
        now(self.shared.look(|data| {
            data.reachable()?;
            let begin = after.map_or(0, |id| {
                let found = data.letters.iter().position(|letter| letter.id == id);
                found.map_or(data.letters.len(), |index| index + 1)
            });
            let meant = data.letters[begin..].iter().filter(|letter| is_meant(letter, filter));
            Ok(meant.take(limit as usize).cloned().collect())
        }))
    }

    fn count<'a>(&'a self, filter: &'a LetterFilter) -> BoxFuture<'a, Result<u64, AdapterError>> {
        now(self.shared.look(|data| {
            data.reachable()?;
            Ok(data.letters.iter().filter(|letter| is_meant(letter, filter)).count() as u64)
        }))
    }

    fn history<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Vec<LetterEvent>, AdapterError>> {
        now(self.shared.look(|data| {
            data.reachable()?;
            Ok(data.events.get(id).cloned().unwrap_or_default())
        }))
    }

    fn mark<'a>(
        &'a self,
        ids: &'a [String],
        from: LetterStatus,
        to: LetterStatus,
        what: &'a str,
        detail: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Vec<String>, AdapterError>> {
        now(self.shared.change(|data| data.mark(ids, from, to, what, detail)))
    }
}
