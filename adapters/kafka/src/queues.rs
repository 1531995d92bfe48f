//! What librdkafka has fetched, partition by partition: read in turns, so that one whose window is full keeps no other
//! waiting, and nothing that was fetched has to be thrown away.

use std::sync::Arc;
use std::time::{Duration, Instant};

use backstop_core::Via;
use rdkafka::consumer::base_consumer::PartitionQueue;
use rdkafka::error::KafkaError;
use rdkafka::message::BorrowedMessage;

use crate::assignment::Assigned;
use crate::flow::Flow;
use crate::group::{Group, Table};

/// Messages of one partition in a row, before the next one has its turn.
const IN_A_ROW: usize = 64;
/// How long worthwhile room is waited for when there is too much under way. After that what there is is taken: a slow key
/// that fills most of a window, or partitions that stay full, must not keep the others waiting for ever.
const PATIENCE: Duration = Duration::from_millis(10);

/// The queues of the partitions that are ours.
#[derive(Default)]
pub(crate) struct Queues {
    all: Vec<Queue>,
    /// Whose turn it is.
    next: usize,
    /// Which version of the table they are from.
    version: u64,
    total: Fullness,
}

/// One of them.
struct Queue {
    fetched: PartitionQueue<Group>,
    assigned: Arc<Assigned>,
    via: Via,
    window: Fullness,
}

/// Whether a window was full, and since when.
#[derive(Debug, Default)]
struct Fullness(Option<Instant>);

impl Fullness {
    /// Whether to take nothing: it is full, or was a short while ago and has no worthwhile room yet.
    fn waits(&mut self, is_full: bool, has_room: impl FnOnce() -> bool) -> bool {
        if is_full {
            self.0.get_or_insert_with(Instant::now);
            return true;
        }
        let waits = self.0.is_some_and(|since| since.elapsed() < PATIENCE && !has_room());
        if !waits {
            self.0 = None;
        }
        waits
    }
}

impl Queues {
    /// Drops the queues of partitions that have gone, and takes over those that have come.
    pub(crate) fn update(&mut self, table: &mut Table) {
        if self.version == table.version() {
            return;
        }
        self.version = table.version();
        self.all.retain(|queue| table.has(&queue.assigned));
        let new = table.iter_mut().filter_map(|(_, _, slot)| {
            let fetched = slot.fetched.take()?;
            Some(Queue {
                fetched,
                assigned: slot.assigned.clone(),
                via: slot.via,
                window: Fullness::default(),
            })
        });
        self.all.extend(new);
    }

    /// Drops all of them, those too that were not taken over. They would keep the member from leaving.
    pub(crate) fn close(&mut self, table: &mut Table) {
        self.all.clear();
        table.iter_mut().for_each(|(_, _, slot)| slot.fetched = None);
    }

    pub(crate) fn are_none(&self) -> bool {
        self.all.is_empty()
    }

    /// Takes messages that are there and have room, at most so many; the error is the first one that a queue brought.
    pub(crate) fn take(
        &mut self,
        most: usize,
        flow: &Flow,
        mut admit: impl FnMut(&BorrowedMessage<'_>, &Arc<Assigned>, Via),
    ) -> Option<KafkaError> {
        let mut left = most;
        for _ in 0..self.all.len() {
            if left == 0 || self.total.waits(flow.is_full(), || flow.has_room()) {
                break;
            }
            self.next = (self.next + 1) % self.all.len();
            let queue = &mut self.all[self.next];
            for _ in 0..IN_A_ROW.min(left) {
                let window = &queue.assigned;
                if flow.is_full() || queue.window.waits(window.is_full(), || window.has_room()) {
                    break;
                }
                match queue.fetched.poll(Duration::ZERO) {
                    Some(Ok(message)) => admit(&message, &queue.assigned, queue.via),
                    Some(Err(error)) => return Some(error),
                    None => break,
                }
                left -= 1;
            }
        }
        None
    }
}
