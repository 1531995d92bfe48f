//! Reading from the broker in memory.

use std::sync::Arc;

use backstop_core::cloudevents::decode;
use backstop_core::dead_letter::{kafka_door, origin_at_door};
use backstop_core::source::{PartitionProgress, Received, Settlement, Source, SourceInfo, SourceProgress};
use backstop_core::{AdapterError, Origin, Via};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::broker::{DEFAULT_PARTITIONS, Shared, State};
use super::group::{GRACE, Taken};

/// Messages that a source has handed over and not got back, at most, unless told otherwise.
pub const DEFAULT_WINDOW: usize = 256;

/// A member of a consumer group. Dropping it is a crash: what it had begun is delivered again, and what it was handed is
/// under suspicion.
#[derive(Debug)]
pub struct MemorySource {
    shared: Arc<Shared>,
    changes: watch::Receiver<()>,
    group: String,
    topics: Vec<String>,
    member: u64,
    window: usize,
    ends_when_idle: bool,
    id_header: Option<String>,
}

impl MemorySource {
    pub(super) fn join(shared: Arc<Shared>, group: &str, topics: Vec<String>) -> Self {
        let doors = topics.iter().map(|topic| kafka_door(topic, group));
        let places: Vec<String> = topics.iter().cloned().chain(doors).collect();
        let changes = shared.changes();
        let member = shared.change(|state| {
            for place in &places {
                state.create(place, DEFAULT_PARTITIONS);
            }
            let member = state.next_member();
            state.groups.entry(group.to_owned()).or_default().join(member, places, &state.topics);
            member
        });
        let group = group.to_owned();
        let window = DEFAULT_WINDOW;
        Self { shared, changes, group, topics, member, window, ends_when_idle: false, id_header: None }
    }

    /// Sets how many messages may be at work at once; zero counts as one. Defaults to [`DEFAULT_WINDOW`].
    #[must_use]
    pub fn window(mut self, messages: usize) -> Self {
        self.window = messages.max(1);
        self
    }

    /// Ends the source when every message of its topics and doors is settled, so that a test or example ends by
    /// itself. Defaults to going on for ever.
    #[must_use]
    pub fn ends_when_idle(mut self) -> Self {
        self.ends_when_idle = true;
        self
    }

    /// Names the header that holds the id of messages without a CloudEvents id. Defaults to none.
    #[must_use]
    pub fn id_header(mut self, name: impl Into<String>) -> Self {
        self.id_header = Some(name.into());
        self
    }

    fn take(&self) -> Vec<Received<MemorySettlement>> {
        self.shared.look(|state| {
            let Some(group) = state.groups.get_mut(&self.group) else { return Vec::new() };
            let taken = group.take(self.member, self.window, &state.topics);
            taken.into_iter().filter_map(|taken| self.receive(state, taken)).collect()
        })
    }

    fn receive(&self, state: &State, taken: Taken) -> Option<Received<MemorySettlement>> {
        let (place, partition) = &taken.slot;
        let records = state.topics.get(place)?.partitions.get(usize::try_from(*partition).ok()?)?;
        let record = records.get(usize::try_from(taken.offset).ok()?)?;
        let here = Origin::Kafka {
            topic: place.clone(),
            partition: *partition,
            offset: taken.offset,
            timestamp: Some(record.timestamp),
        };
        let live = self.topics.contains(place);
        let (via, origin) = if live {
            (Via::Live, here)
        } else {
            let own = self.topics.iter().find(|topic| kafka_door(topic, &self.group) == *place);
            let original = own.and_then(|topic| origin_at_door(&record.envelope.headers, topic));
            (Via::Door, original.unwrap_or(here))
        };
        let (message, identity) = decode(record.envelope.clone(), &origin, via, self.id_header.as_deref());
        let settlement = MemorySettlement {
            shared: self.shared.clone(),
            group: self.group.clone(),
            member: self.member,
            taken,
            begun: false,
            settled: false,
        };
        Some(Received { message, identity, origin, via, settlement })
    }

    fn is_idle(&self) -> bool {
        self.shared.look(|state| {
            state.groups.get(&self.group).is_none_or(|group| group.unsettled(&state.topics) == 0)
        })
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.shared.look(|state| state.groups.get(&self.group)?.next_deadline(self.member))
    }

    fn owns_any(&self) -> bool {
        self.shared.look(|state| state.groups.get(&self.group).is_some_and(|group| group.owns(self.member)))
    }
}

impl Source for MemorySource {
    type Settlement = MemorySettlement;

    fn describe(&self) -> SourceInfo {
        SourceInfo { system: "memory", group: self.group.clone(), places: self.topics.clone() }
    }

    fn progress(&self) -> Option<Arc<dyn SourceProgress>> {
        let (shared, group, member) = (self.shared.clone(), self.group.clone(), self.member);
        Some(Arc::new(MemoryProgress { shared, group, member }))
    }

    async fn next(&mut self) -> Result<Option<Vec<Received<MemorySettlement>>>, AdapterError> {
        loop {
            self.changes.borrow_and_update();
            let batch = self.take();
            if !batch.is_empty() {
                return Ok(Some(batch));
            }
            if self.ends_when_idle && self.is_idle() {
                return Ok(None);
            }
            let deadline = self.next_deadline();
            tokio::select! {
                // The sender lives in `shared`, which this source holds.
                _ = self.changes.changed() => {}
                () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {}
            }
        }
    }

    async fn close(mut self) -> Result<(), AdapterError> {
        self.shared.change(|state| {
            if let Some(group) = state.groups.get_mut(&self.group) {
                group.leave(self.member);
            }
        });
        let deadline = Instant::now() + GRACE;
        while self.owns_any() && timeout_at(deadline, self.changes.changed()).await.is_ok() {}
        Ok(())
    }
}

impl Drop for MemorySource {
    fn drop(&mut self) {
        self.shared.change(|state| {
            if let Some(group) = state.groups.get_mut(&self.group) {
                group.expel(self.member);
            }
        });
    }
}

/// How far one member is.
struct MemoryProgress {
    shared: Arc<Shared>,
    group: String,
    member: u64,
}

impl SourceProgress for MemoryProgress {
    fn partitions(&self) -> Vec<PartitionProgress> {
        self.shared.look(|state| {
            let group = state.groups.get(&self.group);
            group.map_or_else(Vec::new, |group| group.progress(self.member, &state.topics))
        })
    }
}

/// Settles one message of a [`MemorySource`].
#[derive(Debug)]
pub struct MemorySettlement {
    shared: Arc<Shared>,
    group: String,
    member: u64,
    taken: Taken,
    begun: bool,
    settled: bool,
}

impl Settlement for MemorySettlement {
    fn begin(&mut self) -> bool {
        let ours = self.shared.look(|state| {
            state.groups.get_mut(&self.group).is_some_and(|group| group.begin(self.member, &self.taken))
        });
        self.begun |= ours;
        ours
    }

    fn is_suspect(&self) -> bool {
        self.taken.suspect
    }

    fn epoch(&self) -> u64 {
        self.taken.epoch
    }

    fn settle(mut self) {
        // What settling does is done by the drop that follows.
        self.settled = true;
    }
}

impl Drop for MemorySettlement {
    fn drop(&mut self) {
        self.shared.change(|state| {
            if let Some(group) = state.groups.get_mut(&self.group) {
                group.give_back(self.member, &self.taken, self.begun, self.settled);
            }
        });
    }
}
