//! The queue of this process's writers to one file.
//!
//! SQLite's own way to wait for the write lock is to sleep and try again, which is unfair and wastes time when many
//! tasks of one process contend. They wait here instead, first come first served, and only the first of them asks
//! SQLite.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, PoisonError, Weak};

/// Whoever holds the lock is next at SQLite's.
pub(crate) type Queue = Arc<tokio::sync::Mutex<()>>;

static QUEUES: LazyLock<Mutex<HashMap<PathBuf, Weak<tokio::sync::Mutex<()>>>>> =
    LazyLock::new(Mutex::default);

/// The queue of `file`: the same for every pool of this process that has the file open.
pub(crate) fn of(file: &Path) -> Queue {
    let file = file.canonicalize().unwrap_or_else(|_| file.to_owned());
    let mut queues = QUEUES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(queue) = queues.get(&file).and_then(Weak::upgrade) {
        return queue;
    }
    queues.retain(|_, queue| queue.strong_count() > 0);
    let queue = Queue::default();
    queues.insert(file, Arc::downgrade(&queue));
    queue
}
