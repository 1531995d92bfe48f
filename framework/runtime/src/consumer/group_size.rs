//! How many messages share a transaction now.
//!
//! It begins with one and grows while groups commit: a handler that ends its transactions is found out before it can
//! do so to its neighbours. It shrinks by half with every group that fails, since the work of a failed group is done
//! twice. After a deadlock nothing is shared for a while, and for longer after the next: a server takes about a second
//! to notice one, and handlers that share rows would meet again and again, in groups of any size.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::settings::GroupCommit;

/// How long nothing is shared after a deadlock: the first time, and at most.
const PAUSE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(600));
/// After so many times the last pause without a deadlock the next one counts as the first.
const QUIET: u32 = 10;

/// The size of groups, shared by all workers of a consumer.
#[derive(Debug)]
pub(crate) struct GroupSize {
    now: AtomicUsize,
    most: AtomicUsize,
    pause: Mutex<Pause>,
}

#[derive(Debug)]
struct Pause {
    until: Instant,
    last: Duration,
}

impl GroupSize {
    pub(crate) fn new(settings: GroupCommit) -> Self {
        let pause = Pause { until: Instant::now(), last: Duration::ZERO };
        Self {
            now: AtomicUsize::new(1),
            most: AtomicUsize::new(settings.messages()),
            pause: Mutex::new(pause),
        }
    }

    /// Whether messages share transactions at all.
    pub(crate) fn is_on(&self) -> bool {
        self.most.load(Ordering::Relaxed) > 1
    }

    /// What a group may hold now, at least 1.
    pub(crate) fn now(&self) -> usize {
        self.now.load(Ordering::Relaxed).min(self.most.load(Ordering::Relaxed)).max(1)
    }

    /// A group of that size has committed.
    pub(crate) fn committed(&self, messages: usize) {
        let now = self.now();
        if messages < now || now >= self.most.load(Ordering::Relaxed) {
            return;
        }
        // Held while it grows: a deadlock meanwhile is not to be overwritten.
        let pause = self.pause();
        if pause.until <= Instant::now() {
            self.set(now + now / 8 + 1);
        }
    }

    /// A group failed.
    pub(crate) fn failed(&self) {
        self.set(self.now() / 2);
    }

    /// A group stood in the way of others.
    pub(crate) fn met_others(&self) {
        let mut pause = self.pause();
        self.set(1);
        let now = Instant::now();
        if pause.until <= now {
            if now.saturating_duration_since(pause.until) >= pause.last * QUIET {
                pause.last = Duration::ZERO;
            }
            pause.last = (pause.last * 2).clamp(PAUSE.0, PAUSE.1);
            pause.until = now + pause.last;
        }
    }

    /// A group had time for so many only.
    pub(crate) fn had_time_for(&self, messages: usize) {
        self.set(messages);
    }

    /// No groups from now on.
    pub(crate) fn switch_off(&self) {
        self.most.store(1, Ordering::Relaxed);
    }

    fn pause(&self) -> MutexGuard<'_, Pause> {
        self.pause.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, messages: usize) {
        self.now.store(messages.clamp(1, self.most.load(Ordering::Relaxed).max(1)), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grow(size: &GroupSize, groups: usize) {
        (0..groups).for_each(|_| size.committed(size.now()));
    }

    #[test]
    fn it_grows_with_success_and_halves_with_failure() {
        let size = GroupSize::new(GroupCommit::up_to(20));
        assert_eq!(size.now(), 1);
        grow(&size, 8);
        assert!((9..20).contains(&size.now()), "{}", size.now());
        grow(&size, 12);
        assert_eq!(size.now(), 20);
        size.failed();
        assert_eq!(size.now(), 10);
        size.committed(3);
        assert_eq!(size.now(), 10, "a small group says nothing of larger ones");
        size.had_time_for(4);
        assert_eq!(size.now(), 4);
        (0..9).for_each(|_| size.failed());
        assert_eq!(size.now(), 1);
        size.switch_off();
        grow(&size, 5);
        assert_eq!((size.now(), size.is_on()), (1, false));
    }

    #[tokio::test(start_paused = true)]
    async fn deadlocks_keep_it_small_for_longer_and_longer() {
        let size = GroupSize::new(GroupCommit::up_to(64));
        grow(&size, 100);
        for seconds in [10, 20, 40] {
            // Several groups that meet are one deadlock.
            (0..8).for_each(|_| size.met_others());
            tokio::time::advance(Duration::from_secs(seconds - 1)).await;
            grow(&size, 100);
            assert_eq!(size.now(), 1, "after {seconds} s less one");
            tokio::time::advance(Duration::from_secs(1)).await;
            grow(&size, 100);
            assert_eq!(size.now(), 64, "after {seconds} s");
        }
        tokio::time::advance(Duration::from_secs(400)).await;
        size.met_others();
        tokio::time::advance(PAUSE.0).await;
        grow(&size, 100);
        assert_eq!(size.now(), 64, "after a quiet time it is the first again");
    }
}
