//! When each event was where, by the clock that this machine's processes share.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

/// When each event was at one place, in milliseconds since 1970. Clones share what they note.
#[derive(Debug, Default, Clone)]
pub(crate) struct Times(Arc<Mutex<HashMap<usize, f64>>>);

impl Times {
    /// Notes that the event is there now.
    pub(crate) fn note(&self, n: usize) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.note_at(n, now.as_secs_f64() * 1e3);
    }

    /// Notes when the event was there. What was noted first stays.
    pub(crate) fn note_at(&self, n: usize, millis: f64) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(n).or_insert(millis);
    }

    /// How many events were there.
    pub(crate) fn count(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    fn of(&self, n: usize) -> Option<f64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&n).copied()
    }
}

/// Milliseconds from here to there, of those events that were at both.
pub(crate) fn between(here: &Times, there: &Times, events: Range<usize>) -> Vec<f64> {
    events.filter_map(|n| Some((there.of(n)? - here.of(n)?).max(0.0))).collect()
}
