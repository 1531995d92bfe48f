//! What is under way of a partition for as long as it is ours: the window, the watermark and the settlements.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Instant;

use backstop_core::source::Settlement;
use backstop_core::watermark::Watermark;

use crate::context::lock;
use crate::flow::{Flow, crossed};

/// What the metadata of a commit says of the partition's owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mark {
    /// It has messages under way. Found by the next owner: it did not leave in order, and may have died of one of them.
    Dirty,
    /// It has none, and has left in order.
    Clean,
}

impl Mark {
    /// As commits carry it.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Dirty => "dirty",
            Self::Clean => "clean",
        }
    }
}

/// How many assignments there were.
static ASSIGNMENTS: AtomicU64 = AtomicU64::new(0);

/// Which partition.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Place {
    pub(crate) topic: String,
    pub(crate) partition: i32,
}

/// One partition, from its assignment to its revocation. An assignment that follows is another one, so that a
/// settlement of this one cannot touch it.
#[derive(Debug)]
pub(crate) struct Assigned {
    /// Its number among all assignments of the process.
    epoch: u64,
    pub(crate) place: Place,
    flow: Arc<Flow>,
    state: Mutex<State>,
    idle: Condvar,
}

#[derive(Debug, Default)]
struct State {
    watermark: Watermark,
    last: Option<i64>,
    /// Each of a lower offset than the one after it.
    rewinds: Vec<Rewind>,
    messages: usize,
    bytes: usize,
    begun: usize,
    /// How many messages were handed over so far.
    taken: u64,
    /// The first of them that was dropped unsettled.
    broken: Option<u64>,
    revoked: bool,
    gone: bool,
    /// Where reading began, when the group had no committed offset and must not look for a beginning again.
    floor: Option<i64>,
    /// What the last commit said, confirmed or not.
    sent: Option<i64>,
    /// What the broker has confirmed.
    stored: Option<i64>,
    /// Whether commits say, or may say, that messages are under way.
    dirty: bool,
    /// Whether what comes next may be handed over without another commit that says so.
    marked: bool,
    suspicion: Suspicion,
}

/// Reading went back: offsets from this one on that were taken before mean other messages now.
#[derive(Debug)]
struct Rewind {
    offset: i64,
    /// How many messages had been taken by then.
    taken: u64,
}

/// Which messages an owner that did not leave in order may have had at work. It had no more than a window of messages
/// that are not handled, and none that came after its end.
#[derive(Debug, Default)]
struct Suspicion {
    /// Messages that are still to be found which had not been handled.
    left: usize,
    /// The first offset that it cannot have had.
    until: i64,
}

impl Suspicion {
    fn is_over(&self, watermark: i64) -> bool {
        self.left == 0 || watermark >= self.until
    }
}

impl Assigned {
    /// A partition whose group has committed `stored`; `floor` is committed even if no message ever comes.
    pub(crate) fn new(place: Place, flow: Arc<Flow>, stored: Option<i64>, floor: Option<i64>) -> Self {
        let state = State { stored, sent: stored, floor, ..State::default() };
        let epoch = ASSIGNMENTS.fetch_add(1, Ordering::Relaxed);
        Self { epoch, place, flow, state: Mutex::new(state), idle: Condvar::new() }
    }

    /// The same partition where its last owner did not leave in order; what that owner can have had ends before
    /// `until`.
    pub(crate) fn found_dirty(self, until: i64) -> Self {
        let mut state = lock(&self.state);
        (state.dirty, state.marked) = (true, true);
        state.suspicion = Suspicion { left: self.flow.partition_window.messages, until };
        drop(state);
        self
    }

    /// Counts a message that is about to be handed over.
    pub(crate) fn take(self: &Arc<Self>, offset: i64, bytes: usize) -> KafkaSettlement {
        let mut state = lock(&self.state);
        if state.last.is_some_and(|last| offset <= last) {
            state.rewind(offset);
        }
        state.last = Some(offset);
        state.watermark.take(offset);
        state.messages += 1;
        state.bytes += bytes;
        let suspect = !state.suspicion.is_over(offset);
        let number = state.taken;
        state.taken += 1;
        drop(state);
        self.flow.add(bytes);
        KafkaSettlement { assigned: self.clone(), offset, number, bytes, begun: false, open: true, suspect }
    }

    /// What is to be committed as dirty before anything that was taken is handed over, if that is not done yet.
    pub(crate) fn to_mark(&self) -> Option<i64> {
        let state = lock(&self.state);
        if state.marked { None } else { state.watermark.committable() }
    }

    /// The broker has confirmed a commit that says dirty.
    pub(crate) fn marked(&self, offset: i64) {
        let mut state = lock(&self.state);
        (state.dirty, state.marked, state.stored) = (true, true, Some(offset));
    }

    /// Whether something that the last owner may have died of is still to be done.
    pub(crate) fn is_suspected(&self) -> bool {
        let state = lock(&self.state);
        state.watermark.committable().or(state.stored).is_some_and(|offset| !state.suspicion.is_over(offset))
    }

    /// Everything below that position was read. Where nothing of it is left to be done, nothing is under suspicion any
    /// more, although the first offset that is not done may be lower: a log can end in markers of transactions, which
    /// take offsets and are handed over to nobody.
    pub(crate) fn read_to(&self, position: i64) {
        let mut state = lock(&self.state);
        if position >= state.suspicion.until && state.watermark.at_work() == 0 {
            state.suspicion.left = 0;
        }
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
    pub(crate) fn take_commit(&self) -> Option<(i64, Mark)> {
        let mut state = lock(&self.state);
        let offset = state.moved_past(state.sent)?;
        state.sent = Some(offset);
        // Whatever was read was handed over.
        state.dirty |= state.last.is_some();
        Some((offset, if state.dirty { Mark::Dirty } else { Mark::Clean }))
    }

    /// The offset to commit for the last time, if the watermark or the mark have changed since the last confirmed
    /// commit. What is still at work, or not cleared of suspicion, stays dirty.
    pub(crate) fn last_commit(&self) -> Option<(i64, Mark)> {
        let state = lock(&self.state);
        let offset = state.watermark.committable().or(state.floor).or(state.stored)?;
        let clean = state.begun == 0 && state.suspicion.is_over(offset);
        let changed = Some(offset) != state.stored || (state.dirty && clean);
        changed.then_some((offset, if state.dirty && !clean { Mark::Dirty } else { Mark::Clean }))
    }

    /// The first offset that is not done; before anything was read, what is committed.
    pub(crate) fn watermark(&self) -> Option<i64> {
        let state = lock(&self.state);
        state.watermark.committable().or(state.stored).or(state.floor)
    }

    pub(crate) fn is_revoked(&self) -> bool {
        lock(&self.state).revoked
    }

    /// It is not ours any more: whatever is under way of it must not be committed.
    pub(crate) fn leave(&self) {
        let mut state = lock(&self.state);
        (state.revoked, state.gone) = (true, true);
    }

    pub(crate) fn is_gone(&self) -> bool {
        lock(&self.state).gone
    }

    /// The number of the first message that was dropped unsettled: nothing behind it can be committed in its order.
    pub(crate) fn broken(&self) -> Option<u64> {
        lock(&self.state).broken
    }

    /// The broker has confirmed a commit.
    pub(crate) fn stored(&self, offset: i64) {
        let mut state = lock(&self.state);
        state.stored = Some(offset);
    }

    /// The broker has confirmed the last commit.
    pub(crate) fn left_at(&self, offset: i64, mark: Mark) {
        let mut state = lock(&self.state);
        (state.stored, state.dirty) = (Some(offset), mark == Mark::Dirty);
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

    fn finish(&self, settlement: &KafkaSettlement, outcome: Outcome) {
        let mut state = lock(&self.state);
        if outcome != Outcome::Dropped {
            state.done(settlement);
        } else {
            state.broken = Some(state.broken.map_or(settlement.number, |first| first.min(settlement.number)));
        }
        if settlement.suspect && outcome == Outcome::Settled && state.suspicion.left > 0 {
            state.suspicion.left -= 1;
            // What comes next is handled as usual: how far the suspects are is stored before.
            state.marked &= state.suspicion.left > 0;
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
        let has_room = crossed(self.flow.partition_window, before, (state.messages, state.bytes));
        drop(state);
        if self.flow.release(settlement.bytes) || has_room {
            self.flow.notify();
        }
    }
}

impl State {
    /// The topic was made anew, or its end was cut off: offsets from this one on mean other messages now. Those below may
    /// still be there, and what is at work of them holds commits back as before.
    fn rewind(&mut self, offset: i64) {
        if self.messages == 0 {
            self.rewinds.clear();
        }
        // A rewind further back covers those that came before it.
        self.rewinds.retain(|rewind| rewind.offset < offset);
        self.rewinds.push(Rewind { offset, taken: self.taken });
        self.watermark.rewind(offset);
        self.suspicion.until = self.suspicion.until.min(offset);
    }

    /// Counts a message as done, unless its offset is another one's by now.
    fn done(&mut self, settlement: &KafkaSettlement) {
        let KafkaSettlement { offset, number, .. } = settlement;
        if !self.rewinds.iter().any(|rewind| *number < rewind.taken && *offset >= rewind.offset) {
            self.watermark.done(*offset);
        }
    }

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
    pub(crate) assigned: Arc<Assigned>,
    pub(crate) offset: i64,
    /// Which message of this assignment it is, counted from 0.
    pub(crate) number: u64,
    bytes: usize,
    begun: bool,
    open: bool,
    suspect: bool,
}

/// How a message came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Settled,
    /// It had been handled before.
    Known,
    Dropped,
}

impl KafkaSettlement {
    fn end(mut self, outcome: Outcome) {
        self.open = false;
        self.assigned.finish(&self, outcome);
    }
}

impl Settlement for KafkaSettlement {
    fn begin(&mut self) -> bool {
        if !self.begun {
            self.begun = self.assigned.begin();
        }
        self.begun
    }

    fn is_suspect(&self) -> bool {
        self.suspect
    }

    fn settle(self) {
        self.end(Outcome::Settled);
    }

    fn settle_known(self) {
        self.end(Outcome::Known);
    }

    fn epoch(&self) -> u64 {
        self.assigned.epoch
    }
}

impl Drop for KafkaSettlement {
    fn drop(&mut self) {
        if self.open {
            self.assigned.finish(self, Outcome::Dropped);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::options::Window;

    fn flow(messages: usize) -> Arc<Flow> {
        let window = Window { messages, bytes: 1_000 };
        Arc::new(Flow::new(window, window))
    }

    fn place() -> Place {
        Place { topic: "orders".to_owned(), partition: 0 }
    }

    fn assigned(flow: &Arc<Flow>) -> Arc<Assigned> {
        Arc::new(Assigned::new(place(), flow.clone(), None, None))
    }

    #[test]
    fn only_the_contiguous_part_is_committed_and_only_when_it_moved() {
        let flow = flow(100);
        let partition = assigned(&flow);
        let mut taken: Vec<_> = (10..13).map(|offset| partition.take(offset, 1)).collect();
        taken.pop().expect("three were taken").settle();
        assert_eq!(partition.take_commit(), Some((10, Mark::Dirty)), "reading began at 10");
        assert_eq!(partition.take_commit(), None);
        taken.remove(0).settle();
        assert_eq!(partition.take_commit(), Some((11, Mark::Dirty)));
        drop(taken);
        assert_eq!(partition.take_commit(), None, "11 was dropped unsettled");
        assert_eq!(flow.load(), (0, 0));
    }

    #[test]
    fn the_watermark_is_told_before_and_after_the_first_message() {
        let partition = Arc::new(Assigned::new(place(), flow(100), Some(7), None));
        assert_eq!(partition.watermark(), Some(7));
        let (first, second) = (partition.take(9, 1), partition.take(10, 1));
        second.settle();
        assert_eq!(partition.watermark(), Some(9));
        first.settle();
        assert_eq!(partition.watermark(), Some(11));
        assert_eq!(assigned(&flow(1)).watermark(), None);
    }

    #[test]
    fn a_failed_commit_is_sent_again_and_the_last_one_trusts_only_what_was_confirmed() {
        let partition = assigned(&flow(100));
        partition.take(5, 1).settle();
        assert_eq!(partition.take_commit(), Some((6, Mark::Dirty)));
        assert_eq!(partition.last_commit(), Some((6, Mark::Clean)));
        partition.forget_sent();
        assert_eq!(partition.take_commit(), Some((6, Mark::Dirty)));
        partition.stored(6);
        assert_eq!((partition.take_commit(), partition.last_commit()), (None, Some((6, Mark::Clean))));
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
        assert_eq!(new.take_commit(), Some((1, Mark::Dirty)), "1 is at work again");
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
        assert_eq!(partition.last_commit(), Some((2, Mark::Clean)));
    }

    #[test]
    fn messages_and_bytes_fill_the_window_and_worthwhile_room_is_told() {
        let flow = flow(20);
        let partition = assigned(&flow);
        let mut taken: Vec<_> = (0..20).map(|offset| partition.take(offset, 1)).collect();
        assert!(partition.is_full() && flow.is_full());
        taken.pop();
        assert!(!partition.is_full() && !partition.has_room() && !flow.is_signalled());
        taken.pop();
        assert!(partition.has_room() && flow.has_room() && flow.is_signalled());
        let _large = partition.take(99, 1_000);
        assert!(partition.is_full());
    }

    #[test]
    fn offsets_that_begin_again_are_committed() {
        let partition = Assigned::new(place(), flow(100), Some(500), None);
        let partition = Arc::new(partition);
        partition.take(500, 1).settle();
        assert_eq!(partition.take_commit(), Some((501, Mark::Dirty)));
        partition.take(0, 1).settle();
        assert_eq!(partition.take_commit(), Some((1, Mark::Dirty)));
    }

    #[test]
    fn what_is_at_work_below_a_rewind_holds_the_commit_back() {
        let partition = assigned(&flow(100));
        let mut taken: Vec<_> = (0..6).map(|offset| partition.take(offset, 1)).collect();
        let below = taken.remove(2);
        taken.into_iter().take(3).for_each(Settlement::settle);
        partition.take(4, 1).settle();
        assert_eq!(partition.watermark(), Some(2), "2 is still there, and at work");
        below.settle();
        assert_eq!(partition.watermark(), Some(5));
    }

    #[test]
    fn a_late_settlement_does_not_settle_the_new_message_of_its_offset() {
        let partition = assigned(&flow(100));
        let mut old: Vec<_> = (0..20).map(|offset| partition.take(offset, 1)).collect();
        let late = old.split_off(10);
        old.into_iter().for_each(Settlement::settle);
        let mut new: Vec<_> = (10..20).map(|offset| partition.take(offset, 1)).collect();
        // Once more, not as far back.
        new.truncate(5);
        let newest = partition.take(15, 1);
        late.into_iter().for_each(Settlement::settle);
        assert_eq!(partition.watermark(), Some(10), "the new 10 to 15 are at work");
        new.into_iter().for_each(Settlement::settle);
        assert_eq!(partition.watermark(), Some(15));
        newest.settle();
        assert_eq!(partition.watermark(), Some(16));
    }

    #[test]
    fn the_place_where_reading_began_is_committed_although_nothing_came() {
        let partition = Assigned::new(place(), flow(1), None, Some(40));
        assert_eq!(partition.take_commit(), Some((40, Mark::Clean)));
    }

    /// A partition that was found dirty at offset 0, with that much of it before its end.
    fn found_dirty(window: usize, until: i64) -> Arc<Assigned> {
        Arc::new(Assigned::new(place(), flow(window), Some(0), None).found_dirty(until))
    }

    #[test]
    fn what_is_taken_is_marked_once_and_the_end_says_clean() {
        let partition = Arc::new(Assigned::new(place(), flow(100), Some(7), None));
        assert_eq!((partition.to_mark(), partition.last_commit()), (None, None), "nothing was taken");
        let mut first = partition.take(7, 1);
        assert!(first.begin() && !first.is_suspect());
        assert_eq!(partition.to_mark(), Some(7));
        partition.marked(7);
        let second = partition.take(8, 1);
        assert_eq!((partition.to_mark(), partition.take_commit()), (None, None), "no further commit");
        assert_eq!(partition.last_commit(), None, "it is at work: what is stored says dirty already");
        first.settle();
        assert_eq!(partition.take_commit(), Some((8, Mark::Dirty)));
        partition.stored(8);
        drop(second);
        assert_eq!(partition.last_commit(), Some((8, Mark::Clean)), "although the watermark has not moved");
        partition.left_at(8, Mark::Clean);
        assert_eq!(partition.last_commit(), None, "it is said once");
    }

    #[test]
    fn what_is_at_work_at_the_end_stays_dirty() {
        let partition = assigned(&flow(100));
        let (settled, mut begun) = (partition.take(1, 1), partition.take(2, 1));
        partition.marked(1);
        assert!(begun.begin());
        settled.settle();
        assert_eq!(partition.last_commit(), Some((2, Mark::Dirty)));
        drop(begun);
        assert_eq!(partition.last_commit(), Some((2, Mark::Clean)));
    }

    #[test]
    fn a_window_of_messages_that_were_not_handled_is_under_suspicion() {
        let partition = found_dirty(3, 100);
        assert!(partition.to_mark().is_none(), "the mark is there");
        for offset in 0..20 {
            let known = partition.take(offset, 1);
            assert!(known.is_suspect());
            known.settle_known();
        }
        assert_eq!(partition.last_commit(), Some((20, Mark::Dirty)), "it is not over");
        for offset in 20..23 {
            let fresh = partition.take(offset, 1);
            assert!(fresh.is_suspect());
            fresh.settle();
        }
        assert!(!partition.is_suspected());
        let trusted = partition.take(23, 1);
        assert!(!trusted.is_suspect());
        assert_eq!(partition.to_mark(), Some(23), "how far the suspects are is stored first");
        drop(trusted);
        assert_eq!(partition.last_commit(), Some((23, Mark::Clean)));
    }

    #[test]
    fn what_is_dropped_stays_under_suspicion() {
        let partition = found_dirty(1, 100);
        drop(partition.take(0, 1));
        assert!(partition.is_suspected() && partition.take(1, 1).is_suspect());
        assert_eq!(partition.last_commit(), None, "what is stored says so already");
    }

    #[test]
    fn suspicion_ends_with_a_log_that_ends_in_markers() {
        // Offsets 1 and 3 are markers.
        let partition = found_dirty(100, 4);
        partition.take(0, 1).settle();
        partition.read_to(2);
        assert!(partition.is_suspected(), "there is more to read");
        let last = partition.take(2, 1);
        partition.read_to(4);
        assert!(partition.is_suspected(), "2 is at work");
        last.settle();
        assert_eq!(partition.last_commit(), Some((3, Mark::Dirty)));
        partition.read_to(4);
        assert_eq!((partition.is_suspected(), partition.last_commit()), (false, Some((3, Mark::Clean))));
        let dropped = found_dirty(100, 4);
        drop(dropped.take(0, 1));
        dropped.read_to(4);
        assert!(dropped.is_suspected(), "0 was not handled");
    }

    #[test]
    fn what_came_later_cannot_have_been_at_work() {
        let partition = found_dirty(100, 2);
        let taken: Vec<_> = (0..3).map(|offset| partition.take(offset, 1)).collect();
        assert_eq!(taken.iter().map(Settlement::is_suspect).collect::<Vec<_>>(), [true, true, false]);
        assert!(partition.is_suspected());
        taken.into_iter().take(2).for_each(Settlement::settle);
        assert!(!partition.is_suspected());
        assert_eq!(partition.last_commit(), Some((2, Mark::Clean)), "all that it can have had is done");
        let idle = found_dirty(100, 0);
        assert_eq!(idle.last_commit(), Some((0, Mark::Clean)), "its owner was idle");
    }
}
