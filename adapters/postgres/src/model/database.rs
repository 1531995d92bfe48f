//! The server, as far as the statements of reader and store see it.

use std::collections::BTreeMap;

use crate::progress::Progress;

/// Names a message: the server that numbered it, the number, and the key. Of one key they ascend as its writers wrote.
pub(super) type Id = u8;

/// Ids of one server, two for each number.
const IDS: i64 = 16;

/// The key of the message.
pub(super) fn key_of(id: Id) -> u8 {
    id % 2
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Row {
    pub(super) id: Id,
    /// Whose transaction wrote it, until that commits.
    pub(super) of: Option<usize>,
}

/// The row that says who owns the outbox.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct LeaseRow {
    pub(super) owner: Option<usize>,
    pub(super) token: u8,
    pub(super) live: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct Database {
    pub(super) rows: BTreeMap<i64, Row>,
    /// The last number given.
    pub(super) last: i64,
    pub(super) lease: LeaseRow,
    /// How often another server has taken over.
    pub(super) server: u8,
    /// Ids whose transaction committed, as bits.
    pub(super) committed: u64,
    /// What was buried.
    pub(super) dead: Vec<Id>,
}

/// What a read brings: numbers and ids, and whether the limit left rows behind.
pub(super) struct Found {
    pub(super) rows: Vec<(i64, Id)>,
    pub(super) cut: bool,
}

impl Database {
    pub(super) fn id(&self, number: i64, key: u8) -> Id {
        Id::try_from(IDS * i64::from(self.server) + 2 * number).expect("few numbers") + key
    }

    pub(super) fn is_owner(&self, relay: usize, token: u8) -> bool {
        self.lease.owner == Some(relay) && self.lease.token == token
    }

    /// The rows that a snapshot shows.
    pub(super) fn visible(&self, dirty: bool) -> impl Iterator<Item = (i64, Id)> {
        let visible = self.rows.iter().filter(move |(_, row)| dirty || row.of.is_none());
        visible.map(|(number, row)| (*number, row.id))
    }

    /// What the statement that reads brings, and what the reader takes of it.
    pub(super) fn claim(&self, progress: &Progress, limit: usize, dirty: bool) -> Found {
        let probes = progress.gaps.probes();
        let probed =
            |number: i64| probes.from.iter().zip(&probes.to).any(|(a, z)| (*a..=*z).contains(&number));
        let (numbers, ids) = progress.ahead.names();
        let named = |number: i64, id: Id| {
            numbers.iter().zip(&ids).any(|(other, name)| *other == number && **name == id.to_string())
        };
        let filled = self.visible(dirty).filter(|(number, _)| probed(*number)).take(limit);
        let beyond = self
            .visible(dirty)
            .filter(|(number, id)| *number > progress.frontier && !named(*number, *id))
            .take(limit);
        let mut rows: Vec<_> = filled.chain(beyond).collect();
        let cut = rows.len() >= limit;
        rows.truncate(limit);
        Found { rows, cut }
    }

    /// Deletes a row by number and id, or by number alone; says which went.
    pub(super) fn remove(&mut self, number: i64, id: Id, by_number: bool) -> Option<Id> {
        let row = self.rows.get(&number).filter(|row| row.of.is_none() && (by_number || row.id == id))?;
        let id = row.id;
        self.rows.remove(&number);
        Some(id)
    }

    pub(super) fn fail_over(&mut self, last: i64, lease: bool) {
        self.rows.retain(|number, row| *number <= last && row.of.is_none());
        self.last = last;
        self.server += 1;
        if lease && self.lease.token > 0 {
            self.lease = LeaseRow { owner: None, token: self.lease.token - 1, live: false };
        }
    }
}
