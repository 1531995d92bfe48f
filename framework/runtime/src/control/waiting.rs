//! Keys that wait because one of their messages failed here, and why.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

/// Keys that are told of, at most.
const MOST: usize = 100;
/// After how long without news of a message that was due a key is forgotten: another instance has seen to it.
const STALE: Duration = Duration::from_secs(60);
/// Characters of a key or an error that are told, at most.
const LONGEST: usize = 200;

/// A key that waits because a message of it failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct WaitingKey {
    /// Topic or queue.
    pub place: String,
    /// The key, escaped, redacted and cut.
    pub key: String,
    /// The last error, escaped, redacted and cut.
    pub why: String,
    /// Attempts that are charged so far.
    pub attempts: u32,
    /// Since when it waits, as far as this instance knows: seconds ago.
    pub waits_for_s: u64,
    /// In how many seconds the message is tried again; 0 when it is due.
    pub due_in_s: u64,
}

/// The keys, by the hash under which they are charged.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    keys: Mutex<HashMap<u64, Note>>,
}

#[derive(Debug)]
struct Note {
    place: String,
    key: String,
    why: String,
    attempts: u32,
    since: Instant,
    due: Instant,
}

/// A message failed and will be tried again.
#[derive(Debug)]
pub(crate) struct Failure<'a> {
    pub(crate) place: &'a str,
    pub(crate) key: &'a [u8],
    pub(crate) why: &'a str,
    pub(crate) attempts: u32,
    pub(crate) due_in: Duration,
}

impl Waiting {
    /// A message of the key failed. Where too many keys wait, it is not told of.
    pub(crate) fn note(&self, hash: u64, failure: &Failure<'_>, redact: impl Fn(&str) -> String) {
        let mut keys = self.lock();
        let since = match keys.get(&hash) {
            Some(known) => known.since,
            None => {
                keys.retain(|_, note| note.due.elapsed() < STALE);
                if keys.len() >= MOST {
                    return;
                }
                Instant::now()
            }
        };
        let note = Note {
            place: failure.place.to_owned(),
            key: cut(&redact(&String::from_utf8_lossy(failure.key).escape_debug().to_string())),
            why: cut(failure.why),
            attempts: failure.attempts,
            since,
            due: Instant::now() + failure.due_in,
        };
        keys.insert(hash, note);
    }

    /// The message that failed is done.
    pub(crate) fn done(&self, hash: u64) {
        self.lock().remove(&hash);
    }

    /// The keys that have waited longest, at most [`MOST`].
    pub(crate) fn longest_first(&self) -> Vec<WaitingKey> {
        let mut keys = self.lock();
        keys.retain(|_, note| note.due.elapsed() < STALE);
        let mut notes: Vec<&Note> = keys.values().collect();
        notes.sort_by_key(|note| note.since);
        notes.into_iter().map(Note::tell).collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Note>> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Note {
    fn tell(&self) -> WaitingKey {
        WaitingKey {
            place: self.place.clone(),
            key: self.key.clone(),
            why: self.why.clone(),
            attempts: self.attempts,
            waits_for_s: self.since.elapsed().as_secs(),
            due_in_s: self.due.saturating_duration_since(Instant::now()).as_secs(),
        }
    }
}

/// At most so many characters, with a mark where some are missing.
pub(crate) fn cut(text: &str) -> String {
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(key: &[u8]) -> Failure<'_> {
        let due_in = Duration::from_secs(2);
        Failure { place: "orders", key, why: "card 4711 refused", attempts: 2, due_in }
    }

    #[tokio::test(start_paused = true)]
    async fn the_list_is_bounded_and_forgets_what_is_done() {
        let waiting = Waiting::default();
        let redact = |text: &str| text.replace("4711", "****");
        for hash in 0..500 {
            waiting.note(hash, &failure(b"customer-4711"), redact);
        }
        assert_eq!(waiting.longest_first().len(), MOST);
        let first = &waiting.longest_first()[0];
        assert_eq!((&*first.key, first.attempts, first.due_in_s), ("customer-****", 2, 2));
        (1..500).for_each(|hash| waiting.done(hash));
        assert_eq!(waiting.longest_first().len(), 1);
        tokio::time::advance(STALE + Duration::from_secs(3)).await;
        assert!(waiting.longest_first().is_empty(), "whoever has finished it did not tell");
    }

    #[tokio::test(start_paused = true)]
    async fn it_waits_since_its_first_failure() {
        let waiting = Waiting::default();
        for _ in 0..3 {
            waiting.note(1, &failure(b"a"), str::to_owned);
            tokio::time::advance(Duration::from_secs(10)).await;
        }
        assert_eq!(waiting.longest_first()[0].waits_for_s, 30);
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        assert_eq!(cut(&"ü".repeat(LONGEST)).chars().count(), LONGEST);
        assert_eq!(cut(&"ü".repeat(LONGEST + 1)).chars().count(), LONGEST + 1);
    }
}
