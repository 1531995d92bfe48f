//! What is under way at the publisher: for each ticket the little that is needed when it comes back.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use backstop_core::Destination;
use bytes::Bytes;
use std::collections::HashSet;
use tokio::time::Instant;

/// A row that was submitted and is not yet settled. Its message is not kept: it is read again if need be.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) seq: i64,
    /// The message's id: a number alone does not name a row.
    pub(super) id: Arc<str>,
    /// Which rows must not overtake one another: equal for rows of one destination and key, and no two rows without
    /// a key share it.
    pub(super) order: u64,
    pub(super) destination: Arc<Destination>,
    /// What it weighs against the bound in bytes while under way.
    pub(super) bytes: usize,
    /// When it was submitted.
    pub(super) since: Instant,
}

/// Entries by ticket. Tickets are never used twice, so that a confirmation which comes twice confirms nothing else.
#[derive(Debug, Default)]
pub(super) struct Flight {
    slots: Vec<(u32, Option<Entry>)>,
    free: Vec<u32>,
    bytes: usize,
}

impl Flight {
    /// The ticket that the next [`depart`](Flight::depart) will use.
    pub(super) fn ticket(&self) -> u64 {
        match self.free.last() {
            Some(&index) => join(self.slots[index as usize].0, index),
            None => join(0, u32::try_from(self.slots.len()).expect("the window is far below 2^32")),
        }
    }

    /// Keeps an entry that was submitted with [`ticket`](Flight::ticket).
    pub(super) fn depart(&mut self, entry: Entry) {
        self.bytes += entry.bytes;
        match self.free.pop() {
            Some(index) => self.slots[index as usize].1 = Some(entry),
            None => self.slots.push((0, Some(entry))),
        }
    }

    /// Takes out the entry of a confirmed ticket; `None` for a ticket that is not under way.
    pub(super) fn land(&mut self, ticket: u64) -> Option<Entry> {
        let index = u32::try_from(ticket & u64::from(u32::MAX)).ok()?;
        let slot = self.slots.get_mut(index as usize)?;
        if u64::from(slot.0) != ticket >> 32 {
            return None;
        }
        let entry = slot.1.take()?;
        slot.0 = slot.0.wrapping_add(1);
        self.free.push(index);
        self.bytes -= entry.bytes;
        Some(entry)
    }

    pub(super) fn under_way(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.slots.iter().filter_map(|(_, entry)| entry.as_ref())
    }
}

fn join(generation: u32, index: u32) -> u64 {
    u64::from(generation) << 32 | u64::from(index)
}

/// Turns destinations and keys into things that are cheap to keep for each row.
#[derive(Debug, Default)]
pub(super) struct Names {
    known: HashSet<Arc<Destination>>,
    last: Option<Arc<Destination>>,
    hasher: RandomState,
}

/// Destinations remembered at most; routing keys may be as many as there are rows.
const REMEMBERED: usize = 4_096;

impl Names {
    /// The shared form of a destination; neighbours mostly share it, and then nothing is looked up.
    pub(super) fn share(&mut self, destination: Destination) -> Arc<Destination> {
        if let Some(last) = &self.last
            && **last == destination
        {
            return last.clone();
        }
        let shared = match self.known.get(&destination) {
            Some(known) => known.clone(),
            None => {
                if self.known.len() >= REMEMBERED {
                    self.known.clear();
                }
                let shared = Arc::new(destination);
                self.known.insert(shared.clone());
                shared
            }
        };
        self.last = Some(shared.clone());
        shared
    }

    /// See [`Entry::order`]. A keyed hash of 64 bits: two keys that share it by chance would wait for each other.
    pub(super) fn order(&self, destination: &Destination, key: Option<&Bytes>, seq: i64) -> u64 {
        match key {
            Some(key) => self.hasher.hash_one((destination, 0_u8, key)),
            None => self.hasher.hash_one((destination, 1_u8, seq)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(seq: i64) -> Entry {
        Entry {
            seq,
            id: "".into(),
            order: 0,
            destination: Arc::new(Destination::new("orders")),
            bytes: 10,
            since: Instant::now(),
        }
    }

    #[test]
    fn a_ticket_lands_once_and_is_never_used_again() {
        let mut flight = Flight::default();
        let first = flight.ticket();
        flight.depart(entry(1));
        assert_eq!((flight.under_way(), flight.bytes()), (1, 10));
        assert_eq!(flight.land(first).map(|entry| entry.seq), Some(1));
        let second = flight.ticket();
        flight.depart(entry(2));
        assert_ne!(first, second);
        assert!(flight.land(first).is_none(), "a late echo confirms nothing");
        assert!(flight.land(77).is_none());
        assert_eq!(flight.land(second).map(|entry| entry.seq), Some(2));
        assert_eq!((flight.under_way(), flight.bytes()), (0, 0));
    }

    #[test]
    fn rows_without_a_key_share_no_order() {
        let mut names = Names::default();
        let orders = names.share(Destination::new("orders"));
        let key = Bytes::from_static(b"k");
        assert_eq!(names.order(&orders, Some(&key), 1), names.order(&orders, Some(&key), 2));
        assert_ne!(names.order(&orders, None, 1), names.order(&orders, None, 2));
        assert!(Arc::ptr_eq(&orders, &names.share(Destination::new("orders"))));
    }
}
