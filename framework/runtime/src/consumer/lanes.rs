//! Lanes: one message of a key at a time, other keys meanwhile.
//!
//! A lane is a hash bucket of keys. Workers take the next job of a lane that nobody works on; while they work, the
//! lane is theirs. There are many more lanes than workers, so that a slow key delays few others.

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
}

struct State<J> {
    queues: Vec<VecDeque<J>>,
    busy: Vec<bool>,
    ready: VecDeque<usize>,
    unfinished: usize,
    open: bool,
}

/// The right to work on a lane, with its next job. Dropping it frees the lane.
pub(crate) struct Turn<'a, J> {
    lanes: &'a Lanes<J>,
    lane: usize,
}

impl<J> Lanes<J> {
    /// Lanes for that many workers.
    pub(crate) fn new(workers: usize) -> Self {
        let lanes = workers * LANES_PER_WORKER;
        let state = State {
            queues: (0..lanes).map(|_| VecDeque::new()).collect(),
            busy: vec![false; lanes],
            ready: VecDeque::new(),
            unfinished: 0,
            open: true,
        };
        Self {
            state: Mutex::new(state),
            ready: Semaphore::new(0),
            idle: Notify::new(),
            hasher: RandomState::new(),
            lanes,
        }
    }

    /// Queues jobs, each with what its lane is chosen by.
    pub(crate) fn push(&self, jobs: impl Iterator<Item = (u64, J)>) {
        let mut state = self.lock();
        let mut woken = 0;
        for (hash, job) in jobs {
            let lane = (hash % self.lanes as u64) as usize;
            state.queues[lane].push_back(job);
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

    /// Waits for a job whose lane is free; `None` when closed.
    pub(crate) async fn next(&self) -> Option<(Turn<'_, J>, J)> {
        loop {
            self.ready.acquire().await.ok()?.forget();
            let mut state = self.lock();
            let Some(lane) = state.ready.pop_front() else { continue };
            let Some(job) = state.queues[lane].pop_front() else { continue };
            state.busy[lane] = true;
            return Some((Turn { lanes: self, lane }, job));
        }
    }

    /// Takes nothing more: what has not begun is dropped, workers end after what they are at.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        state.open = false;
        state.ready.clear();
        let queued: Vec<_> = state.queues.iter_mut().map(std::mem::take).collect();
        drop(state);
        self.ready.close();
        drop(queued);
    }

    fn finish(&self, lane: usize) {
        let mut state = self.lock();
        state.busy[lane] = false;
        state.unfinished = state.unfinished.saturating_sub(1);
        let idle = state.unfinished == 0;
        let more = state.open && !state.queues[lane].is_empty();
        if more {
            state.ready.push_back(lane);
        }
        drop(state);
        if more {
            self.ready.add_permits(1);
        }
        if idle {
            self.idle.notify_waiters();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<J>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<J> Drop for Turn<'_, J> {
    fn drop(&mut self) {
        self.lanes.finish(self.lane);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[tokio::test]
    async fn jobs_of_a_key_run_one_after_another_and_in_order() {
        let lanes = Arc::new(Lanes::new(4));
        lanes.push((0..3_000_u64).map(|n| (lanes.hash(n % 7), n)));
        let seen: Arc<[Mutex<Vec<u64>>; 7]> = Arc::default();
        let done = Arc::new(AtomicUsize::new(0));
        let workers: Vec<_> = (0..4)
            .map(|_| {
                let (lanes, seen, done) = (lanes.clone(), seen.clone(), done.clone());
                tokio::spawn(async move {
                    while let Some((_turn, n)) = lanes.next().await {
                        tokio::task::yield_now().await;
                        seen[(n % 7) as usize].lock().expect("no panic").push(n);
                        if done.fetch_add(1, Ordering::SeqCst) == 2_999 {
                            lanes.close();
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
        let (turn, first) = lanes.next().await.expect("a job");
        lanes.close();
        assert_eq!(Arc::strong_count(&job), 2, "the second is gone, the first is at work");
        drop((turn, first));
        assert!(lanes.next().await.is_none());
    }
}
