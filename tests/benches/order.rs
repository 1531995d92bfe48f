//! Whether the messages of each key are handled one at a time, in their order, each once.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::event::KEYS;

/// How far each key is, for all workers. It costs them next to nothing, so that it may watch what is measured.
#[derive(Debug)]
pub(crate) struct Order {
    /// Of each key what [`after`] says of its last message, and one more while that is at work.
    keys: Vec<AtomicUsize>,
    handled: AtomicUsize,
    strays: AtomicUsize,
}

impl Default for Order {
    fn default() -> Self {
        let keys = (0..KEYS).map(|_| AtomicUsize::new(0)).collect();
        Self { keys, handled: AtomicUsize::new(0), strays: AtomicUsize::new(0) }
    }
}

impl Order {
    /// A message is begun.
    pub(crate) fn begin(&self, key: usize, n: usize) {
        let before = self.keys[key].swap(after(n) + 1, Ordering::Relaxed);
        if before >= after(n) || !before.is_multiple_of(2) {
            self.strays.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// It is done.
    pub(crate) fn end(&self, key: usize, n: usize) {
        if self.keys[key].swap(after(n), Ordering::Relaxed) != after(n) + 1 {
            self.strays.fetch_add(1, Ordering::Relaxed);
        }
        self.handled.fetch_add(1, Ordering::Relaxed);
    }

    /// All of so many messages were handled, each once: in a rising order none can come again.
    ///
    /// # Errors
    /// When it was otherwise.
    pub(crate) fn check(&self, messages: usize) -> Result<(), String> {
        match (self.handled.load(Ordering::Relaxed), self.strays.load(Ordering::Relaxed)) {
            (handled, 0) if handled == messages => Ok(()),
            (handled, strays) => Err(format!(
                "of {messages} messages {handled} were handled; {strays} times a key was not in its order"
            )),
        }
    }
}

/// A key whose last message this was, as an even number.
fn after(n: usize) -> usize {
    2 * (n + 1)
}
