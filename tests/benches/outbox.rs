//! An outbox in any database, and what is written into it.

use std::ops::Range;
use std::sync::Arc;

use backstop_core::outbox::OutboxStore;

use crate::Outcome;
use crate::event::Check;

/// An outbox that can be filled and drained.
pub(crate) trait Outbox {
    /// What a relay works on.
    fn store(&self) -> Arc<dyn OutboxStore>;

    /// Commits those rows, numbered in their order.
    async fn fill(&self, backlog: &Backlog) -> Outcome<()>;
}

/// Events, and where each is to go.
#[derive(Debug, Clone)]
pub(crate) struct Backlog {
    events: Range<usize>,
    places: Vec<Option<String>>,
}

impl Backlog {
    /// Those events, all of them for one topic or queue.
    pub(crate) fn to(place: &str, events: Range<usize>) -> Self {
        Self { events, places: vec![Some(place.to_owned())] }
    }

    /// The same in turn for several. Where there is none the event is left out.
    pub(crate) fn spread(places: &[Option<String>], events: Range<usize>) -> Self {
        Self { events, places: places.to_vec() }
    }

    /// Number and destination of each row.
    pub(crate) fn rows(&self) -> impl Iterator<Item = (usize, &str)> {
        self.events.clone().filter_map(|n| Some((n, self.places[n % self.places.len()].as_deref()?)))
    }

    /// Expects all of them to arrive.
    pub(crate) fn check(&self) -> Check {
        Check::new(self.rows().map(|(n, _)| n))
    }
}

/// The head of an INSERT, for databases without COPY.
pub(crate) const INSERT: &str =
    "INSERT INTO backstop_outbox (id, source, destination, `key`, kind, event_time, content_type, payload) ";

/// Rows that one INSERT writes.
const CHUNK: usize = 500;

/// The rows of the backlog, as many at once as one INSERT takes.
pub(crate) fn in_chunks(backlog: &Backlog) -> impl Iterator<Item = Vec<(usize, &str)>> {
    let mut rows = backlog.rows();
    std::iter::from_fn(move || {
        let chunk: Vec<_> = rows.by_ref().take(CHUNK).collect();
        (!chunk.is_empty()).then_some(chunk)
    })
}
