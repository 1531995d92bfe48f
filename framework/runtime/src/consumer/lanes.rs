//! Lanes: one message of a key at a time, other keys meanwhile.
//!
//! A lane is a hash bucket of keys. Workers take the next jobs of lanes that nobody works on; while they work, those
//! lanes are theirs. There are many more lanes than workers, so that a slow key delays few others.

use std::collections::VecDeque;
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, Semaphore};

/// Lanes per worker: enough that two busy keys seldom share one.
const LANES_PER_WORKER: usize = 32;

/// A queue of jobs per lane, and which lanes are ready.
pub(crate) struct Lanes<J> {
    state: Mutex<State<J>>,
    ready: Semaphore,
    idle: Notify,
    hasher: RandomState,
    lanes: usize,
    workers: usize,
}

struct State<J> {
    queues: Vec<VecDeque<J>>,
    busy: Vec<bool>,
    ready: VecDeque<usize>,
    /// Jobs that nobody has taken.
    queued: usize,
    /// Those, and the ones that are at work.
    unfinished: usize,
    open: bool,
}

/// The right to work on lanes, with their next jobs. Dropping it frees the lanes.
pub(crate) struct Turn<'a, J> {
    lanes: &'a Lanes<J>,
    /// Each lane with the number of jobs that were taken from it.
    taken: Vec<(usize, usize)>,
}

impl<J> Lanes<J> {
    /// Lanes for that many workers.
    pub(crate) fn new(workers: usize) -> Self {
        let lanes = workers * LANES_PER_WORKER;
        let state = State {
            queues: (0..lanes).map(|_| VecDeque::new()).collect(),
            busy: vec![false; lanes],
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
            lanes,
            workers,
        }
    }

    /// Queues jobs, each with what its lane is chosen by.
    pub(crate) fn push(&self, jobs: impl Iterator<Item = (u64, J)>) {
        let mut state = self.lock();
        let mut woken = 0;
        for (hash, job) in jobs {
            let lane = (hash % self.lanes as u64) as usize;
            state.queues[lane].push_back(job);
            state.queued += 1;
            state.unfinished += 1;
            if state.queues[lane].len() == 1 && !state.busy[lane] {
                state.ready.push_back(lane);
                woken += 1;
            }
        }
        drop(state);
        self.ready.add_permits(woken);
    }

    /// What a lane is chosen by.
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
        let queued: Vec<_> = state.queues.iter_mut().map(std::mem::take).collect();
        drop(state);
        self.ready.close();
        drop(queued);
    }

    fn finish(&self, taken: &[(usize, usize)]) {
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
    /// What waits, divided among those who can work on it.
    fn share(&self, workers: usize) -> usize {
        self.queued.div_ceil(self.ready.len().clamp(1, workers.max(1)))
    }

    /// At most so many jobs, of as many ready lanes as it takes.
    fn take(&mut self, most: usize) -> (Vec<(usize, usize)>, Vec<J>) {
        let (mut taken, mut jobs) = (Vec::new(), Vec::new());
        while jobs.len() < most
            && let Some(lane) = self.ready.pop_front()
        {
            let of_lane = (most - jobs.len()).min(self.queues[lane].len());
            jobs.extend(self.queues[lane].drain(..of_lane));
            self.busy[lane] = true;
            self.queued -= of_lane;
            taken.push((lane, of_lane));
        }
        (taken, jobs)
    }

    /// Frees a lane; whether there are more jobs in it.
    fn finish(&mut self, lane: usize, jobs: usize) -> bool {
        self.busy[lane] = false;
        self.unfinished = self.unfinished.saturating_sub(jobs);
        let more = self.open && !self.queues[lane].is_empty();
        if more {
            self.ready.push_back(lane);
        }
        more
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
