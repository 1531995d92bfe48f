//! What is under way over all partitions of a source, and the thread that waits for room.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::context::lock;
use crate::options::Window;

/// What is under way over all partitions, and the signal that there is room again.
#[derive(Debug)]
pub(crate) struct Flow {
    /// The window of each partition.
    pub(crate) partition_window: Window,
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

    pub(crate) fn notify(&self) {
        *lock(&self.signalled) = true;
        self.signal.notify_one();
    }

    #[cfg(test)]
    pub(crate) fn is_signalled(&self) -> bool {
        *lock(&self.signalled)
    }

    /// How many messages and bytes are under way.
    pub(crate) fn load(&self) -> (usize, usize) {
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

    pub(crate) fn add(&self, bytes: usize) {
        self.messages.fetch_add(1, Ordering::AcqRel);
        self.bytes.fetch_add(bytes, Ordering::AcqRel);
    }

    /// Gives one message back; `true` when that was what the total was waiting for.
    pub(crate) fn release(&self, bytes: usize) -> bool {
        let messages = self.messages.fetch_sub(1, Ordering::AcqRel);
        let held = self.bytes.fetch_sub(bytes, Ordering::AcqRel);
        crossed(self.total_window, (messages, held), (messages - 1, held - bytes))
    }
}

/// Whether there was no worthwhile room in a window before, and is now.
pub(crate) fn crossed(window: Window, before: (usize, usize), after: (usize, usize)) -> bool {
    window.has_room(after.0, after.1) && !window.has_room(before.0, before.1)
}
