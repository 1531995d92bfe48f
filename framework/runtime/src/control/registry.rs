//! What is being worked on, for whoever wants to know what takes so long.

use std::sync::{Mutex, MutexGuard, PoisonError};

use backstop_core::Origin;
use bytes::Bytes;
use tokio::time::Instant;

/// Entries that come and go, in places that are used again.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    slots: Mutex<Slots>,
}

#[derive(Debug, Default)]
struct Slots {
    entries: Vec<Option<Entry>>,
    free: Vec<usize>,
}

/// A message that is being worked on.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) origin: Origin,
    pub(crate) key: Option<Bytes>,
    pub(crate) attempt: u32,
    pub(crate) since: Instant,
}

/// It is being worked on until this is dropped.
#[derive(Debug)]
pub(crate) struct Registered<'a> {
    registry: &'a Registry,
    slot: usize,
}

impl Registry {
    /// Adds an entry.
    pub(crate) fn enter(&self, entry: Entry) -> Registered<'_> {
        let mut slots = self.lock();
        let slot = match slots.free.pop() {
            Some(slot) => {
                slots.entries[slot] = Some(entry);
                slot
            }
            None => {
                slots.entries.push(Some(entry));
                slots.entries.len() - 1
            }
        };
        drop(slots);
        Registered { registry: self, slot }
    }

    /// All entries, the oldest first.
    pub(crate) fn oldest_first(&self) -> Vec<Entry> {
        let mut entries: Vec<Entry> = self.lock().entries.iter().flatten().cloned().collect();
        entries.sort_by_key(|entry| entry.since);
        entries
    }

    fn lock(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        let mut slots = self.registry.lock();
        slots.entries[self.slot] = None;
        slots.free.push(self.slot);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn entry(offset: i64, since: Instant) -> Entry {
        let origin = Origin::Kafka { topic: "t".to_owned(), partition: 0, offset, timestamp: None };
        Entry { origin, key: None, attempt: 1, since }
    }

    #[test]
    fn the_oldest_comes_first_and_places_are_used_again() {
        let registry = Registry::default();
        let now = Instant::now();
        let later = now + Duration::from_secs(1);
        let first = registry.enter(entry(1, later));
        drop(registry.enter(entry(2, now)));
        let third = registry.enter(entry(3, now));
        let offsets: Vec<_> = registry
            .oldest_first()
            .iter()
            .map(|entry| match entry.origin {
                Origin::Kafka { offset, .. } => offset,
                _ => panic!("from Kafka"),
            })
            .collect();
        assert_eq!(offsets, [3, 1]);
        drop((first, third));
        assert!(registry.oldest_first().is_empty());
        assert_eq!(registry.lock().entries.len(), 2);
    }
}
