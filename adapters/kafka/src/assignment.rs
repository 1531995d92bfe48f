//! What is under way of a partition for as long as it is ours: the window, the watermark and the settlements.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use backstop_core::source::Settlement;
use backstop_core::watermark::Watermark;

use crate::context::lock;
use crate::options::Window;

/// What is under way over all partitions, and the signal that there is room again.
#[derive(Debug)]
pub(crate) struct Flow {
    partition_window: Window,
    total_window: Window,
    messages: AtomicUsize,
    bytes: AtomicUsize,
    closing: AtomicBool,
    signalled: Mutex<bool>,
    signal: Condvar,
}

impl Flow {
    pub(crate) fn new(partition_window: Window, total_window: Window) -> Self {
        Self {
            partition_window,
            total_window,
            messages: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            closing: AtomicBool::new(false),
            signalled: Mutex::new(false),
            signal: Condvar::new(),
        }
    }

    /// Asks the polling thread to end.
    pub(crate) fn close(&self) {
        self.closing.store(true, Ordering::Release);
        self.notify();
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    /// Waits until there may be room, the source is closing, or the time is over.
    pub(crate) fn wait(&self, at_most: Duration) {
        let guard = lock(&self.signalled);
        let (mut signalled, _) = self
            .signal
            .wait_timeout_while(guard, at_most, |signalled| !*signalled)
            .unwrap_or_else(PoisonError::into_inner);
        *signalled = false;
    }

    fn notify(&self) {
        *lock(&self.signalled) = true;
        self.signal.notify_one();
    }

    fn load(&self) -> (usize, usize) {
        (self.messages.load(Ordering::Acquire), self.bytes.load(Ordering::Acquire))
    }

    pub(crate) fn is_full(&self) -> bool {
        let (messages, bytes) = self.load();
        self.total_window.is_full(messages, bytes)
    }

    pub(crate) fn has_room(&self) -> bool {
        let (messages, bytes) = self.load();
        self.total_window.has_room(messages, bytes)
    }

    pub(crate) fn is_relieved(&self) -> bool {
        let (messages, bytes) = self.load();
        self.total_window.is_relieved(messages, bytes)
    }

    fn add(&self, bytes: usize) {
        self.messages.fetch_add(1, Ordering::AcqRel);
        self.bytes.fetch_add(bytes, Ordering::AcqRel);
    }

    /// Gives one message back; `true` when that was what the total was waiting for.
    fn release(&self, bytes: usize) -> bool {
        let messages = self.messages.fetch_sub(1, Ordering::AcqRel);
        let held = self.bytes.fetch_sub(bytes, Ordering::AcqRel);
        crossed(self.total_window, (messages, held), (messages - 1, held - bytes))
    }
}

/// Whether a window was not relieved before and is now.
fn crossed(window: Window, before: (usize, usize), after: (usize, usize)) -> bool {
    window.is_relieved(after.0, after.1) && !window.is_relieved(before.0, before.1)
}

/// One partition, from its assignment to its revocation. An assignment that follows is another one, so that a
/// settlement of this one cannot touch it.
#[derive(Debug)]
pub(crate) struct Assigned {
    flow: Arc<Flow>,
    state: Mutex<State>,
    idle: Condvar,
}

#[derive(Debug, Default)]
struct State {
    watermark: Watermark,
    last: Option<i64>,
    messages: usize,
    bytes: usize,
    begun: usize,
    revoked: bool,
    /// Where reading began, when the group had no committed offset and must not look for a beginning again.
    floor: Option<i64>,
    /// What the last commit said, confirmed or not.
    sent: Option<i64>,
    /// What the broker has confirmed.
    stored: Option<i64>,
}

impl Assigned {
    /// A partition whose group has committed `stored`; `floor` is committed even if no message ever comes.
    pub(crate) fn new(flow: Arc<Flow>, stored: Option<i64>, floor: Option<i64>) -> Self {
        let state = State { stored, sent: stored, floor, ..State::default() };
        Self { flow, state: Mutex::new(state), idle: Condvar::new() }
    }

    /// Counts a message that is about to be handed over.
    pub(crate) fn take(self: &Arc<Self>, offset: i64, bytes: usize) -> KafkaSettlement {
        let mut state = lock(&self.state);
        if state.last.is_some_and(|last| offset <= last) {
            // The topic was made anew, or its end was cut off: the old offsets mean other messages now.
            state.watermark = Watermark::default();
        }
        state.last = Some(offset);
        state.watermark.take(offset);
        state.messages += 1;
        state.bytes += bytes;
        drop(state);
        self.flow.add(bytes);
        KafkaSettlement { assigned: self.clone(), offset, bytes, begun: false, open: true }
    }

    fn load(&self) -> (usize, usize) {
        let state = lock(&self.state);
        (state.messages, state.bytes)
    }

    pub(crate) fn is_full(&self) -> bool {
        let (messages, bytes) = self.load();
        self.flow.partition_window.is_full(messages, bytes)
    }

    pub(crate) fn has_room(&self) -> bool {
        let (messages, bytes) = self.load();
        self.flow.partition_window.has_room(messages, bytes)
    }

    pub(crate) fn is_relieved(&self) -> bool {
        let (messages, bytes) = self.load();
        self.flow.partition_window.is_relieved(messages, bytes)
    }

    /// Refuses every message that has not begun.
    pub(crate) fn revoke(&self) {
        lock(&self.state).revoked = true;
    }

    /// Waits until everything that has begun is settled or dropped; `false` when the deadline came first.
    pub(crate) fn wait_idle(&self, deadline: Instant) -> bool {
        let state = lock(&self.state);
        let left = deadline.saturating_duration_since(Instant::now());
        let (state, _) = self
            .idle
            .wait_timeout_while(state, left, |state| state.begun > 0)
            .unwrap_or_else(PoisonError::into_inner);
        state.begun == 0
    }

    /// The offset to commit now, if the watermark has moved since the last commit that was sent.
    pub(crate) fn take_commit(&self) -> Option<i64> {
        let mut state = lock(&self.state);
        let offset = state.moved_past(state.sent)?;
        state.sent = Some(offset);
        Some(offset)
    }

    /// The offset to commit for the last time, if the watermark has moved since the last confirmed commit.
    pub(crate) fn last_commit(&self) -> Option<i64> {
        let state = lock(&self.state);
        state.moved_past(state.stored)
    }

    /// The broker has confirmed a commit.
    pub(crate) fn stored(&self, offset: i64) {
        let mut state = lock(&self.state);
        state.stored = Some(offset);
    }

    /// A commit has failed: what is not confirmed is to be sent again.
    pub(crate) fn forget_sent(&self) {
        let mut state = lock(&self.state);
        state.sent = state.stored;
    }

    fn begin(&self) -> bool {
        let mut state = lock(&self.state);
        let ours = !state.revoked && !self.flow.is_closing();
        state.begun += usize::from(ours);
        ours
    }

    fn finish(&self, settlement: &KafkaSettlement, settled: bool) {
        let mut state = lock(&self.state);
        if settled {
            state.watermark.done(settlement.offset);
        }
        if settlement.begun {
            state.begun -= 1;
            if state.begun == 0 && state.revoked {
                self.idle.notify_all();
            }
        }
        let before = (state.messages, state.bytes);
        state.messages -= 1;
        state.bytes -= settlement.bytes;
        let relieved = crossed(self.flow.partition_window, before, (state.messages, state.bytes));
        drop(state);
        if self.flow.release(settlement.bytes) || relieved {
            self.flow.notify();
        }
    }
}

impl State {
    fn moved_past(&self, known: Option<i64>) -> Option<i64> {
        self.watermark.committable().or(self.floor).filter(|offset| Some(*offset) != known)
    }
}

/// Tells a Kafka source that one message is done.
///
/// Offsets are committed up to the first message that is not done, on the source's timer, when the partition is
/// taken away and when the source is closed. A message that is dropped unsettled therefore holds the commits of its
/// partition back until another owner, or this one after a restart, has read it again.
#[derive(Debug)]
pub struct KafkaSettlement {
    assigned: Arc<Assigned>,
    offset: i64,
    bytes: usize,
    begun: bool,
    open: bool,
}

impl Settlement for KafkaSettlement {
    fn begin(&mut self) -> bool {
        if !self.begun {
            self.begun = self.assigned.begin();
        }
        self.begun
    }

    fn settle(mut self) {
        self.open = false;
        self.assigned.finish(&self, true);
    }
}

impl Drop for KafkaSettlement {
    fn drop(&mut self) {
        if self.open {
            self.assigned.finish(self, false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(messages: usize) -> Arc<Flow> {
        let window = Window { messages, bytes: 1_000 };
        Arc::new(Flow::new(window, window))
    }

    fn assigned(flow: &Arc<Flow>) -> Arc<Assigned> {
        Arc::new(Assigned::new(flow.clone(), None, None))
    }

    #[test]
    fn only_the_contiguous_part_is_committed_and_only_when_it_moved() {
        let flow = flow(100);
        let partition = assigned(&flow);
        let mut taken: Vec<_> = (10..13).map(|offset| partition.take(offset, 1)).collect();
        taken.pop().expect("three were taken").settle();
        assert_eq!(partition.take_commit(), Some(10), "reading began at 10");
        assert_eq!(partition.take_commit(), None);
        taken.remove(0).settle();
        assert_eq!(partition.take_commit(), Some(11));
        drop(taken);
        assert_eq!(partition.take_commit(), None, "11 was dropped unsettled");
        assert_eq!(flow.load(), (0, 0));
    }

    #[test]
    fn a_failed_commit_is_sent_again_and_the_last_one_trusts_only_what_was_confirmed() {
        let partition = assigned(&flow(100));
        partition.take(5, 1).settle();
        assert_eq!(partition.take_commit(), Some(6));
        assert_eq!(partition.last_commit(), Some(6));
        partition.forget_sent();
        assert_eq!(partition.take_commit(), Some(6));
        partition.stored(6);
        assert_eq!((partition.take_commit(), partition.last_commit()), (None, None));
    }

    #[test]
    fn after_a_revoke_nothing_begins_and_old_settlements_do_not_reach_the_next_assignment() {
        let flow = flow(100);
        let old = assigned(&flow);
        let (mut begun, mut waiting) = (old.take(1, 1), old.take(2, 1));
        assert!(begun.begin());
        old.revoke();
        assert!(!waiting.begin());
        assert!(begun.begin(), "what has begun may go on");
        let new = assigned(&flow);
        let again = new.take(1, 1);
        begun.settle();
        assert_eq!(new.take_commit(), Some(1), "1 is at work again");
        drop((waiting, again));
    }

    #[test]
    fn a_revoke_waits_for_what_has_begun_but_not_for_ever() {
        let partition = assigned(&flow(100));
        let mut begun = partition.take(1, 1);
        assert!(begun.begin());
        partition.revoke();
        assert!(!partition.wait_idle(Instant::now() + Duration::from_millis(5)));
        let waiter = {
            let partition = partition.clone();
            std::thread::spawn(move || partition.wait_idle(Instant::now() + Duration::from_secs(30)))
        };
        begun.settle();
        assert!(waiter.join().expect("no panic"));
        assert_eq!(partition.last_commit(), Some(2));
    }

    #[test]
    fn messages_and_bytes_fill_the_window_and_half_relieves_it() {
        let flow = flow(4);
        let partition = assigned(&flow);
        let mut taken: Vec<_> = (0..4).map(|offset| partition.take(offset, 1)).collect();
        assert!(partition.is_full() && flow.is_full());
        taken.truncate(3);
        assert!(!partition.is_full() && !partition.is_relieved());
        taken.truncate(2);
        assert!(partition.is_relieved() && flow.is_relieved() && *lock(&flow.signalled));
        let _large = partition.take(9, 1_000);
        assert!(partition.is_full());
    }

    #[test]
    fn offsets_that_begin_again_are_committed() {
        let partition = Assigned::new(flow(100), Some(500), None);
        let partition = Arc::new(partition);
        partition.take(500, 1).settle();
        assert_eq!(partition.take_commit(), Some(501));
        partition.take(0, 1).settle();
        assert_eq!(partition.take_commit(), Some(1));
    }

    #[test]
    fn the_place_where_reading_began_is_committed_although_nothing_came() {
        let partition = Assigned::new(flow(1), None, Some(40));
        assert_eq!(partition.take_commit(), Some(40));
    }
}
