//! The tables of the database in memory.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use backstop_core::dead_rows::BuriedRow;
use backstop_core::held::{Failure, HeldMessage, NewHeld};
use backstop_core::held_keys::HeldState;
use backstop_core::ledger::{AuditEntry, Letter, LetterEvent};
use backstop_core::outbox::OutboxRow;
use backstop_core::{
    AdapterError, ConsumerReport, DeadReason, Envelope, ErrorClass, FaultKind, Headers, MessageKey, Origin,
    Receipt, Via,
};
use chrono::{DateTime, Utc};
use tokio::time::Instant;

use super::ledger::Death;
use super::redrives::RedriveRow;
use super::store::CommitFault;

/// Consumer and message key.
pub(super) type InboxKey = (String, MessageKey);

/// A transaction's number.
pub(super) type TxId = u64;

#[derive(Debug, Default)]
pub(super) struct Data {
    pub(super) inbox: BTreeMap<InboxKey, Instant>,
    pub(super) held: BTreeMap<i64, HeldRow>,
    /// How often messages that are not held were charged.
    pub(super) charges: BTreeMap<InboxKey, u32>,
    /// Receipts that are owed, and since when.
    pub(super) receipts: BTreeMap<i64, (Receipt, Instant)>,
    pub(super) values: BTreeMap<String, String>,
    pub(super) applied: Vec<String>,
    /// Event and text, where a transaction was told which event it is for.
    pub(super) effects: Vec<(String, String)>,
    pub(super) outbox: BTreeMap<i64, OutboxEntry>,
    pub(super) dead: Vec<DeadEntry>,
    /// By time and number.
    pub(super) scheduled: BTreeMap<(DateTime<Utc>, i64), OutboxRow>,
    pub(super) leases: BTreeMap<String, LeaseRow>,
    pub(super) letters: Vec<Letter>,
    /// What the letters tell of, those that died again once for each time.
    pub(super) deaths: Vec<Death>,
    pub(super) events: BTreeMap<String, Vec<LetterEvent>>,
    pub(super) redrives: Vec<RedriveRow>,
    pub(super) audit: Vec<AuditEntry>,
    /// By consumer and instance.
    pub(super) consumers: BTreeMap<(String, String), ConsumerReport>,
    /// Inbox rows that open transactions have written.
    pub(super) working: BTreeMap<InboxKey, TxId>,
    /// Heads that open transactions have claimed.
    pub(super) claimed: BTreeMap<i64, TxId>,
    pub(super) faults: Faults,
    pub(super) ahead: Duration,
    numbers: i64,
}

#[derive(Debug, Default)]
pub(super) struct Faults {
    pub(super) unreachable: bool,
    pub(super) begins: u32,
    pub(super) hold_at_most: Option<usize>,
    pub(super) damaged: bool,
    pub(super) commits: VecDeque<CommitFault>,
}

#[derive(Debug, Clone)]
pub(super) struct HeldRow {
    pub(super) consumer: String,
    pub(super) place: String,
    pub(super) ordering_key: Vec<u8>,
    pub(super) message_key: MessageKey,
    /// When to try again; `None` for a follower, and for one that is quarantined.
    pub(super) due: Option<Instant>,
    pub(super) attempts: u32,
    pub(super) throttled: u32,
    pub(super) condemned: Option<DeadReason>,
    pub(super) crashes: u32,
    pub(super) class: Option<ErrorClass>,
    pub(super) error: Option<String>,
    pub(super) envelope: Envelope,
    pub(super) origin: Origin,
    pub(super) via: Via,
    pub(super) held_since: DateTime<Utc>,
    pub(super) since: Instant,
}

#[derive(Debug, Clone)]
pub(super) struct OutboxEntry {
    pub(super) row: OutboxRow,
    pub(super) created: Instant,
    /// Why it cannot be read as a message.
    pub(super) unreadable: Option<String>,
}

#[derive(Debug)]
pub(super) struct DeadEntry {
    pub(super) buried: BuriedRow,
    /// Why it cannot be read as a message.
    pub(super) unreadable: Option<String>,
}

#[derive(Debug)]
pub(super) struct LeaseRow {
    pub(super) owner: String,
    pub(super) token: i64,
    pub(super) expires: Instant,
    /// What its owner told of itself, and when.
    pub(super) report: Option<(Instant, String)>,
}

impl Data {
    /// Now, by the database's clock.
    pub(super) fn now(&self) -> Instant {
        Instant::now() + self.ahead
    }

    /// Now, as [`now`](Data::now), on the calendar.
    pub(super) fn date(&self) -> DateTime<Utc> {
        Utc::now() + self.ahead
    }

    /// The next number of any table; one that a transaction took and did not commit stays a gap.
    pub(super) fn next_number(&mut self) -> i64 {
        self.numbers += 1;
        self.numbers
    }

    pub(super) fn reachable(&self) -> Result<(), AdapterError> {
        if self.faults.unreachable {
            return Err(unreachable("the database in memory is down because the test wants it to"));
        }
        Ok(())
    }

    /// Whether the tables are sound.
    pub(super) fn sound(&self) -> Result<(), AdapterError> {
        self.reachable()?;
        if self.faults.damaged {
            return Err(AdapterError::new(
                FaultKind::Invalid,
                "the database in memory is damaged because the test wants it to be",
            ));
        }
        Ok(())
    }

    /// Whether a message of this size may be held.
    pub(super) fn may_hold(&self, bytes: usize) -> Result<(), AdapterError> {
        if self.faults.hold_at_most.is_some_and(|limit| bytes > limit) {
            return Err(AdapterError::new(
                FaultKind::Invalid,
                "the message is larger than the test wants the database in memory to hold",
            ));
        }
        Ok(())
    }

    pub(super) fn release(&mut self, tx: TxId) {
        self.working.retain(|_, holder| *holder != tx);
        self.claimed.retain(|_, holder| *holder != tx);
    }

    /// Numbers held of one key, the head first.
    pub(super) fn held_of(&self, consumer: &str, place: &str, ordering_key: &[u8]) -> Vec<i64> {
        let of_key = |row: &HeldRow| {
            row.consumer == consumer && row.place == place && row.ordering_key == ordering_key
        };
        self.held.iter().filter(|(_, row)| of_key(row)).map(|(n, _)| *n).collect()
    }

    pub(super) fn is_held(&self, consumer: &str, message_key: &MessageKey) -> bool {
        self.held_as(consumer, message_key).is_some()
    }

    /// The number of a held message.
    pub(super) fn held_as(&self, consumer: &str, message_key: &MessageKey) -> Option<i64> {
        let is_it = |row: &HeldRow| row.consumer == consumer && row.message_key == *message_key;
        self.held.iter().find(|(_, row)| is_it(row)).map(|(n, _)| *n)
    }

    pub(super) fn insert_held(&mut self, new: &NewHeld<'_>, due: Option<Instant>, failure: Option<&Failure>) {
        let row = HeldRow {
            consumer: new.unit.consumer.to_owned(),
            place: new.unit.place.to_owned(),
            ordering_key: new.unit.ordering_key.to_vec(),
            message_key: new.unit.message_key.clone(),
            due,
            attempts: failure.map_or(0, |failure| failure.attempts),
            throttled: failure.map_or(0, |failure| failure.throttled),
            condemned: failure.and_then(|failure| failure.condemned),
            crashes: failure.map_or(0, |failure| failure.crashes),
            class: failure.map(|failure| failure.class),
            error: failure.map(|failure| failure.error.clone()),
            envelope: new.envelope.clone(),
            origin: new.origin.clone(),
            via: new.via,
            held_since: Utc::now(),
            since: self.now(),
        };
        let n = self.next_number();
        self.held.insert(n, row);
    }

    /// Deletes a head and makes its follower the head.
    pub(super) fn finish_held(&mut self, n: i64) {
        let Some(head) = self.held.remove(&n) else { return };
        let now = self.now();
        let follower = self.held_of(&head.consumer, &head.place, &head.ordering_key).first().copied();
        let follower = follower.and_then(|n| self.held.get_mut(&n));
        if let Some(row) = follower.filter(|row| row.state() == HeldState::Waiting) {
            row.due = Some(now);
        }
    }

    /// Whether the lease is still this owner's with this token.
    pub(super) fn is_current(&self, lease: &backstop_core::lease::Lease) -> bool {
        let row = self.leases.get(&lease.name);
        row.is_some_and(|row| row.owner == lease.owner && row.token == lease.token)
    }

    pub(super) fn tell(&mut self, letter: &str, what: &str, detail: Option<&str>) {
        let event = LetterEvent { at: Utc::now(), what: what.to_owned(), detail: detail.map(str::to_owned) };
        self.events.entry(letter.to_owned()).or_default().push(event);
    }
}

impl HeldRow {
    pub(super) fn to_message(&self, n: i64, now: Instant) -> HeldMessage {
        HeldMessage {
            n,
            place: self.place.clone(),
            ordering_key: self.ordering_key.clone(),
            message_key: self.message_key.clone(),
            envelope: self.envelope.clone(),
            origin: self.origin.clone(),
            via: self.via,
            attempts: self.attempts,
            throttled: self.throttled,
            condemned: self.condemned,
            crashes: self.crashes,
            class: self.class,
            error: self.error.clone(),
            held_since: self.held_since,
            age: now.saturating_duration_since(self.since),
        }
    }

    pub(super) fn state(&self) -> HeldState {
        HeldState::of_row(self.due.is_none(), self.condemned.is_some())
    }

    pub(super) fn is_condemned_as(&self, attempts: u32, headers: &Headers) -> bool {
        self.condemned.is_some() && self.attempts == attempts && self.envelope.headers == *headers
    }

    /// A redriven message takes its place.
    pub(super) fn revive(&mut self, message: &NewHeld<'_>, now: Instant) {
        (self.attempts, self.throttled, self.condemned, self.crashes) = (0, 0, None, 0);
        (self.class, self.error, self.due) = (None, None, Some(now));
        (self.envelope, self.origin, self.via) =
            (message.envelope.clone(), message.origin.clone(), message.via);
        (self.held_since, self.since) = (Utc::now(), now);
    }

    pub(super) fn charge(&mut self, failure: &Failure, now: Instant) {
        if self.class.is_none() {
            (self.held_since, self.since) = (Utc::now(), now);
        }
        self.attempts = failure.attempts;
        self.throttled = failure.throttled;
        self.condemned = failure.condemned;
        self.crashes = failure.crashes;
        self.class = Some(failure.class);
        self.error = Some(failure.error.clone());
        self.due = Some(now + failure.due_in);
    }
}

pub(super) fn unreachable(what: &str) -> AdapterError {
    AdapterError::new(FaultKind::Unreachable, what).with_hint("let the test bring it back")
}
