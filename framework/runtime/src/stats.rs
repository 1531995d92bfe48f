//! What a consumer has done so far.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counters of a running consumer; cheap to read at any time.
        #[derive(Debug, Default)]
        pub struct Stats {
            $(pub(crate) $name: AtomicU64,)*
        }

        /// What the counters said at one moment.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
        #[non_exhaustive]
        pub struct Snapshot {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Stats {
            /// Reads all counters.
            pub fn snapshot(&self) -> Snapshot {
                Snapshot { $($name: self.$name.load(Ordering::Relaxed),)* }
            }
        }
    };
}

counters! {
    /// Messages whose effects are committed.
    handled,
    /// Messages that the inbox knew already.
    duplicates,
    /// Messages that committed in a transaction which they shared.
    grouped,
    /// Shared transactions that did not commit; their messages were handled again, uncharged.
    regrouped,
    /// Failed attempts, of whatever class.
    failures,
    /// Messages that were put into the held table after a failure.
    held,
    /// Messages that were appended behind a held one of their key.
    waiting,
    /// Redriven messages that came in through the door.
    redriven,
    /// Messages that may have felled a process and were handled by themselves, charged before.
    suspects,
    /// Messages that were quarantined.
    quarantined,
    /// Messages whose wait was ended by a command through the door.
    ended,
    /// Messages without an id of their own, told apart by Kafka's coordinates.
    without_id,
    /// Gaps in the numbers of a key, however many messages each lacks.
    gaps,
    /// Messages that came after a later one of their key, as their numbers tell.
    reordered,
    /// Messages whose numbers were to be checked, and that have none.
    unnumbered,
}

pub(crate) fn count(counter: &AtomicU64) {
    count_all(counter, 1);
}

pub(crate) fn count_all(counter: &AtomicU64, events: usize) {
    counter.fetch_add(events as u64, Ordering::Relaxed);
}
