//! Lanes: one message of a key at a time, other keys meanwhile.
//!
//! A lane is a key that has messages here, by its hash. Workers take the next jobs of lanes that nobody works on; while
//! they work, those lanes are theirs. Ready lanes have their turns one after another, however much waits in each.

use std::collections::VecDeque;
use std::collections::hash_map::{Entry, HashMap};
use std::hash::{BuildHasher, BuildHasherDefault, Hash, Hasher, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, Semaphore};

/// Empty queues that are kept for the next lanes, and how long each may have become.
const SPARE: (usize, usize) = (1_024, 8);

/// A queue of jobs per lane, and which lanes are ready.
pub(crate) struct Lanes<J> {
    state: Mutex<State<J>>,
    ready: Semaphore,
    idle: Notify,
    hasher: RandomState,
    workers: usize,
}

struct State<J> {
    /// Those that have jobs, or are worked on.
    lanes: HashMap<u64, Lane<J>, BuildHasherDefault<Hashed>>,
    spare: Vec<VecDeque<J>>,
    ready: VecDeque<u64>,
    /// Jobs that nobody has taken.
    queued: usize,
    /// Those, and the ones that are at work.
    unfinished: usize,
    open: bool,
}

struct Lane<J> {
    queue: VecDeque<J>,
    busy: bool,
}

/// What lanes are found by is a hash already.
#[derive(Default)]
struct Hashed(u64);

impl Hasher for Hashed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.0 = self.0.rotate_left(8) ^ u64::from(*byte));
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

/// The right to work on lanes, with their next jobs. Dropping it frees the lanes.
pub(crate) struct Turn<'a, J> {
    lanes: &'a Lanes<J>,
    /// Each lane with the number of jobs that were taken from it.
    taken: Vec<(u64, usize)>,
}

impl<J> Lanes<J> {
    /// Lanes for that many workers.
    pub(crate) fn new(workers: usize) -> Self {
        let state = State {
            lanes: HashMap::default(),
            spare: Vec::new(),
            ready: VecDeque::new(),
            queued: 0,
            unfinished: 0,
            open: true,
        };
        Self {
            state: Mutex::new(state),
            ready: Semaphore::new(0),
            idle: Notify::new(),
            hasher: RandomState::new(),
            workers,
        }
    }

    /// Queues jobs, each with the hash of its lane.
    pub(crate) fn push(&self, jobs: impl Iterator<Item = (u64, J)>) {
        let mut state = self.lock();
        let woken = jobs.map(|(lane, job)| usize::from(state.push(lane, job))).sum();
        drop(state);
        self.ready.add_permits(woken);
    }

    /// The lane of a key.
    pub(crate) fn hash(&self, key: impl Hash) -> u64 {
        self.hasher.hash_one(key)
    }

    /// Jobs that were pushed and are not done.
    pub(crate) fn unfinished(&self) -> usize {
        self.lock().unfinished
    }

    /// Waits until every job that was pushed is done.
    pub(crate) async fn drained(&self) {
        loop {
            let idle = self.idle.notified();
            if self.lock().unfinished == 0 {
                return;
            }
            idle.await;
        }
    }

    /// Waits for jobs whose lanes are free, in the order of each lane; `None` when closed.
    ///
    /// There are at most `most`, and no more than this worker's share of what waits: as long as there are idle workers
    /// jobs run beside each other rather than in one hand.
    pub(crate) async fn next(&self, most: usize) -> Option<(Turn<'_, J>, Vec<J>)> {
        loop {
            self.ready.acquire().await.ok()?.forget();
            let mut state = self.lock();
            let share = state.share(self.workers).clamp(1, most.max(1));
            let (taken, jobs) = state.take(share);
            drop(state);
            // Each ready lane has a permit; one of them was acquired above.
            self.ready.forget_permits(taken.len().saturating_sub(1));
            if !jobs.is_empty() {
                return Some((Turn { lanes: self, taken }, jobs));
            }
        }
    }

    /// Takes nothing more: what has not begun is dropped, workers end after what they are at.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        state.open = false;
        state.ready.clear();
        state.queued = 0;
        let queued: Vec<_> = state.lanes.values_mut().map(|lane| std::mem::take(&mut lane.queue)).collect();
        drop(state);
        self.ready.close();
        drop(queued);
    }

    fn finish(&self, taken: &[(u64, usize)]) {
        let mut state = self.lock();
        let more: usize = taken.iter().map(|(lane, jobs)| usize::from(state.finish(*lane, *jobs))).sum();
        let idle = state.unfinished == 0;
        drop(state);
        if more > 0 {
            self.ready.add_permits(more);
        }
        if idle {
            self.idle.notify_waiters();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<J>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<J> State<J> {
    /// Queues a job; whether its lane is ready by that.
    fn push(&mut self, hash: u64, job: J) -> bool {
        let spare = &mut self.spare;
        let new = || Lane { queue: spare.pop().unwrap_or_default(), busy: false };
        let lane = self.lanes.entry(hash).or_insert_with(new);
        lane.queue.push_back(job);
        self.queued += 1;
        self.unfinished += 1;
        let ready = lane.queue.len() == 1 && !lane.busy;
        if ready {
            self.ready.push_back(hash);
        }
        ready
    }

    /// What waits, divided among those who can work on it.
    fn share(&self, workers: usize) -> usize {
        self.queued.div_ceil(self.ready.len().clamp(1, workers.max(1)))
    }

    /// At most so many jobs, of as many ready lanes as it takes.
    fn take(&mut self, most: usize) -> (Vec<(u64, usize)>, Vec<J>) {
        let (mut taken, mut jobs) = (Vec::new(), Vec::new());
        while jobs.len() < most
            && let Some(hash) = self.ready.pop_front()
        {
            let Some(lane) = self.lanes.get_mut(&hash) else { continue };
            let of_lane = (most - jobs.len()).min(lane.queue.len());
            jobs.extend(lane.queue.drain(..of_lane));
            lane.busy = true;
            self.queued -= of_lane;
            taken.push((hash, of_lane));
        }
        (taken, jobs)
    }

    /// Frees a lane; whether there are more jobs in it.
    fn finish(&mut self, hash: u64, jobs: usize) -> bool {
        self.unfinished = self.unfinished.saturating_sub(jobs);
        let Entry::Occupied(mut lane) = self.lanes.entry(hash) else { return false };
        if self.open && !lane.get().queue.is_empty() {
            lane.get_mut().busy = false;
            self.ready.push_back(hash);
            return true;
        }
        let Lane { queue, .. } = lane.remove();
        if self.spare.len() < SPARE.0 && queue.capacity() <= SPARE.1 {
            self.spare.push(queue);
        }
        false
    }
}

impl<J> Drop for Turn<'_, J> {
    fn drop(&mut self) {
        self.lanes.finish(&self.taken);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[tokio::test]
    async fn jobs_of_a_key_run_one_after_another_and_in_order() {
        for most in [1, 16] {
            in_order(most).await;
        }
    }

    async fn in_order(most: usize) {
        let lanes = Arc::new(Lanes::new(4));
        lanes.push((0..3_000_u64).map(|n| (lanes.hash(n % 7), n)));
        let seen: Arc<[Mutex<Vec<u64>>; 7]> = Arc::default();
        let done = Arc::new(AtomicUsize::new(0));
        let workers: Vec<_> = (0..4)
            .map(|_| {
                let (lanes, seen, done) = (lanes.clone(), seen.clone(), done.clone());
                tokio::spawn(async move {
                    while let Some((_turn, jobs)) = lanes.next(most).await {
                        for n in jobs {
                            tokio::task::yield_now().await;
                            seen[(n % 7) as usize].lock().expect("no panic").push(n);
                            if done.fetch_add(1, Ordering::SeqCst) == 2_999 {
                                lanes.close();
                            }
                        }
                    }
                })
            })
            .collect();
        for worker in workers {
            worker.await.expect("no panic");
        }
        for (key, seen) in seen.iter().enumerate() {
            let expected: Vec<u64> = (0..3_000).filter(|n| n % 7 == key as u64).collect();
            assert_eq!(*seen.lock().expect("no panic"), expected);
        }
    }

    #[tokio::test]
    async fn closing_drops_what_has_not_begun() {
        let lanes = Lanes::new(1);
        let job = Arc::new(());
        lanes.push([(0, job.clone()), (0, job.clone())].into_iter());
        let (turn, first) = lanes.next(1).await.expect("a job");
        lanes.close();
        assert_eq!(Arc::strong_count(&job), 2, "the second is gone, the first is at work");
        drop((turn, first));
        assert!(lanes.next(1).await.is_none());
    }

    #[tokio::test]
    async fn a_worker_takes_its_share_and_no_more() {
        let lanes = Lanes::new(4);
        lanes.push((0..4_u64).map(|n| (n, n)));
        let (one, jobs) = lanes.next(64).await.expect("a job");
        assert_eq!(jobs, [0], "there are workers for the others");
        lanes.push((0..56_u64).map(|n| (4 + n % 8, n)));
        let (two, jobs) = lanes.next(64).await.expect("jobs");
        assert_eq!(jobs.len(), 59_usize.div_ceil(4));
        let (three, jobs) = lanes.next(5).await.expect("jobs");
        assert_eq!(jobs.len(), 5, "and never more than it asks for");
        drop((one, two, three));
        let mut rest = 0;
        while rest < 59 - 15 - 5 {
            rest += lanes.next(64).await.expect("jobs").1.len();
        }
        assert_eq!((rest, lanes.lock().unfinished, lanes.ready.available_permits()), (39, 0, 0));
        assert!(lanes.lock().lanes.is_empty(), "a lane goes with its last job");
    }

    #[tokio::test]
    async fn no_two_keys_share_a_lane() {
        let lanes = Lanes::new(2);
        lanes.push((0..20_000_u64).map(|n| (lanes.hash(n), n)));
        let mut turns = Vec::new();
        while turns.len() < 20_000 {
            let (turn, jobs) = lanes.next(1).await.expect("every key has its turn at once");
            assert_eq!(jobs.len(), 1);
            turns.push(turn);
        }
    }

    #[tokio::test]
    async fn one_lane_is_the_business_of_one_worker() {
        let lanes = Lanes::new(16);
        lanes.push((0..40_u64).map(|n| (7, n)));
        let (turn, jobs) = lanes.next(32).await.expect("jobs");
        assert_eq!(jobs, (0..32).collect::<Vec<_>>());
        drop(turn);
        assert_eq!(lanes.next(32).await.expect("jobs").1, (32..40).collect::<Vec<_>>());
    }
}
