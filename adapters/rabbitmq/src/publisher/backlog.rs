//! Messages that wait to be sent, each key's in order.

use std::collections::{HashMap, VecDeque};

use backstop_core::Envelope;
use bytes::Bytes;
use lapin::BasicProperties;
use lapin::types::ShortString;

use super::returns::Returned;
use crate::address::Address;
use crate::error::Failure;
use crate::wire;

/// A message to be published.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) ticket: u64,
    /// Hash of destination and key; messages of one lane are sent one after the other.
    pub(super) lane: Option<u64>,
    pub(super) address: Address,
    /// What is sent; kept, so that it can be sent again.
    envelope: Envelope,
    /// The envelope's properties, until they are sent for the first time.
    properties: Option<BasicProperties>,
    /// AMQP's `message_id`, by which a returned message is recognised.
    message_id: Option<ShortString>,
    /// Failures of its worker that the relay knew of when it submitted this.
    pub(super) failures_seen: u64,
    /// How often it has been sent.
    pub(super) tries: u32,
    /// The broker has returned it; its confirm is still to come.
    pub(super) returned: bool,
}

impl Job {
    /// Fails where AMQP cannot carry the envelope.
    pub(super) fn new(
        ticket: u64,
        lane: Option<u64>,
        address: Address,
        envelope: Envelope,
    ) -> Result<Self, Failure> {
        let properties = wire::encode(&envelope)?;
        let message_id = properties.message_id().clone();
        let properties = Some(properties);
        let (failures_seen, tries, returned) = (0, 0, false);
        Ok(Self { ticket, lane, address, envelope, properties, message_id, failures_seen, tries, returned })
    }

    /// The properties to send.
    pub(super) fn properties(&mut self) -> BasicProperties {
        self.properties
            .take()
            .unwrap_or_else(|| wire::encode(&self.envelope).expect("it has been encoded before"))
    }

    /// The body to send; AMQP has no other way to send none than an empty one.
    pub(super) fn body(&self) -> Bytes {
        self.envelope.body.clone().unwrap_or_default()
    }

    /// Whether this is the message that the broker has sent back, and is not known for it yet.
    pub(super) fn is(&self, piece: &Returned) -> bool {
        !self.returned
            && piece.message_id == self.message_id
            && piece.routing_key == self.address.routing_key
            && piece.exchange == self.address.exchange
            && piece.body == self.body()
    }
}

/// What waits: heads that may be sent, and behind each busy lane its followers.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    ready: VecDeque<Job>,
    /// A lane is here while one of its messages is ready or under way.
    lanes: HashMap<u64, VecDeque<Job>>,
}

impl Backlog {
    /// Takes a message in: ready, unless its lane is busy.
    pub(super) fn admit(&mut self, job: Job) {
        let Some(lane) = job.lane else { return self.ready.push_back(job) };
        match self.lanes.get_mut(&lane) {
            Some(followers) => followers.push_back(job),
            None => {
                self.lanes.insert(lane, VecDeque::new());
                self.ready.push_back(job);
            }
        }
    }

    /// The next message that may be sent.
    pub(super) fn next(&mut self) -> Option<Job> {
        self.ready.pop_front()
    }

    pub(super) fn is_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// A message of the lane has been confirmed: the next one may go.
    pub(super) fn advance(&mut self, lane: u64) {
        let Some(followers) = self.lanes.get_mut(&lane) else { return };
        match followers.pop_front() {
            Some(next) => self.ready.push_back(next),
            None => {
                self.lanes.remove(&lane);
            }
        }
    }

    /// The lane's message under way has failed: hands its followers out, and the lane is free.
    pub(super) fn give_up(&mut self, lane: u64) -> VecDeque<Job> {
        self.lanes.remove(&lane).unwrap_or_default()
    }

    /// Takes out everything ready that goes to an exchange. The followers stay until their lane is given up.
    pub(super) fn take_ready_for(&mut self, exchange: &str) -> Vec<Job> {
        let (taken, kept) = std::mem::take(&mut self.ready)
            .into_iter()
            .partition(|job| job.address.exchange.as_str() == exchange);
        self.ready = kept;
        Vec::from(taken)
    }

    /// Takes out everything.
    pub(super) fn take_all(&mut self) -> Vec<Job> {
        let mut all: Vec<Job> = std::mem::take(&mut self.ready).into();
        all.extend(std::mem::take(&mut self.lanes).into_values().flatten());
        all
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use backstop_core::message::Destination;

    pub(in super::super) fn job(ticket: u64, lane: Option<u64>) -> Job {
        let address = Address::of(&Destination::exchange("x", "k")).expect("valid");
        Job::new(ticket, lane, address, Envelope::default()).expect("valid")
    }

    fn tickets(jobs: impl IntoIterator<Item = Job>) -> Vec<u64> {
        jobs.into_iter().map(|job| job.ticket).collect()
    }

    #[test]
    fn one_message_of_a_lane_is_ready_at_a_time() {
        let mut backlog = Backlog::default();
        for (ticket, lane) in [(1, Some(7)), (2, Some(7)), (3, None), (4, Some(8))] {
            backlog.admit(job(ticket, lane));
        }
        assert_eq!(tickets(std::iter::from_fn(|| backlog.next())), [1, 3, 4]);
        backlog.advance(7);
        assert_eq!(tickets(std::iter::from_fn(|| backlog.next())), [2]);
        backlog.advance(7);
        backlog.admit(job(5, Some(7)));
        assert_eq!(tickets(backlog.next()), [5], "the lane was free again");
    }

    #[test]
    fn a_failed_lane_hands_out_its_followers_only() {
        let mut backlog = Backlog::default();
        for (ticket, lane) in [(1, Some(7)), (2, Some(7)), (3, Some(8)), (4, Some(8))] {
            backlog.admit(job(ticket, lane));
        }
        assert_eq!(backlog.next().map(|job| job.ticket), Some(1));
        assert_eq!(tickets(backlog.give_up(7)), [2]);
        assert_eq!(tickets(backlog.take_all()), [3, 4]);
    }
}
