//! How many messages share a transaction now.
//!
//! It begins with one and grows while groups commit: a handler that ends its transactions is found out before it can
//! do so to its neighbours. It shrinks by half with every group that fails, since the work of a failed group is done
//! twice.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::settings::GroupCommit;

/// The size of groups, shared by all workers of a consumer.
#[derive(Debug)]
pub(crate) struct GroupSize {
    now: AtomicUsize,
    most: AtomicUsize,
}

impl GroupSize {
    pub(crate) fn new(settings: GroupCommit) -> Self {
        Self { now: AtomicUsize::new(1), most: AtomicUsize::new(settings.messages()) }
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
        if messages >= now && now < self.most.load(Ordering::Relaxed) {
            self.set(now + now / 8 + 1);
        }
    }

    /// A group failed.
    pub(crate) fn failed(&self) {
        self.set(self.now() / 2);
    }

    /// A group had time for so many only.
    pub(crate) fn had_time_for(&self, messages: usize) {
        self.set(messages);
    }

    /// No groups from now on.
    pub(crate) fn switch_off(&self) {
        self.most.store(1, Ordering::Relaxed);
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
}
