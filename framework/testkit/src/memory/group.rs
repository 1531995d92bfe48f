//! Consumer groups: who owns which partition, and how far it is settled.

use std::collections::BTreeMap;
use std::time::Duration;

use backstop_core::source::PartitionProgress;
use backstop_core::watermark::Watermark;
use tokio::time::Instant;

use super::broker::Topic;

/// How long a partition waits for begun messages before it goes to its next owner.
pub(super) const GRACE: Duration = Duration::from_secs(5);

/// Topic and partition.
pub(super) type Slot = (String, i32);

#[derive(Debug, Default)]
pub(super) struct Group {
    members: BTreeMap<u64, Member>,
    partitions: BTreeMap<Slot, Assigned>,
}

#[derive(Debug)]
struct Member {
    /// Topics and doors.
    places: Vec<String>,
    /// Handed over and neither settled nor dropped.
    outstanding: usize,
}

#[derive(Debug, Default)]
struct Assigned {
    committed: i64,
    position: i64,
    watermark: Watermark,
    owner: Option<u64>,
    /// Who is to own it; differs from the owner while begun messages hold it back.
    target: Option<u64>,
    /// Grows with every change of owner, so that settlements of an earlier one count no more.
    epoch: u64,
    begun: usize,
    deadline: Option<Instant>,
    /// Up to here, exclusively, a member that was lost may have been at work.
    suspect_until: i64,
}

/// What a settlement needs to know to be recognised.
#[derive(Debug, Clone)]
pub(super) struct Taken {
    pub(super) slot: Slot,
    pub(super) epoch: u64,
    pub(super) offset: i64,
    pub(super) suspect: bool,
}

impl Group {
    pub(super) fn join(&mut self, member: u64, places: Vec<String>, topics: &BTreeMap<String, Topic>) {
        for place in &places {
            let count = topics.get(place).map_or(0, |topic| topic.partitions.len());
            for partition in 0..count {
                self.partitions.entry((place.clone(), partition as i32)).or_default();
            }
        }
        self.members.insert(member, Member { places, outstanding: 0 });
        self.rebalance();
    }

    /// The member takes nothing new; its partitions go on as soon as nothing begun holds them back.
    pub(super) fn leave(&mut self, member: u64) {
        self.members.remove(&member);
        self.rebalance();
    }

    /// The member is gone at once, as after a crash: whatever it has begun counts no more.
    pub(super) fn expel(&mut self, member: u64) {
        for assigned in self.partitions.values_mut().filter(|assigned| assigned.owner == Some(member)) {
            assigned.suspect_until = assigned.suspect_until.max(assigned.position);
            assigned.pass_to(None);
        }
        self.leave(member);
    }

    fn rebalance(&mut self) {
        let now = Instant::now();
        for (index, ((place, _), assigned)) in self.partitions.iter_mut().enumerate() {
            let readers = self.members.iter().filter(|(_, member)| member.places.contains(place));
            let readers: Vec<u64> = readers.map(|(id, _)| *id).collect();
            assigned.target = (!readers.is_empty()).then(|| readers[index % readers.len()]);
            assigned.hand_over(now);
        }
    }

    /// Up to `window` messages at work of what the member owns, in order per partition.
    pub(super) fn take(
        &mut self,
        member: u64,
        window: usize,
        topics: &BTreeMap<String, Topic>,
    ) -> Vec<Taken> {
        let now = Instant::now();
        let Some(reader) = self.members.get_mut(&member) else { return Vec::new() };
        let mut taken = Vec::new();
        for (slot, assigned) in &mut self.partitions {
            assigned.hand_over(now);
            if assigned.owner != Some(member) || assigned.target != Some(member) {
                continue;
            }
            let end = length(topics, slot);
            while assigned.position < end && reader.outstanding < window {
                let offset = assigned.position;
                assigned.watermark.take(offset);
                assigned.position += 1;
                reader.outstanding += 1;
                let suspect = offset < assigned.suspect_until;
                taken.push(Taken { slot: slot.clone(), epoch: assigned.epoch, offset, suspect });
            }
        }
        taken
    }

    /// When a partition that is to be the member's will be so at the latest.
    pub(super) fn next_deadline(&self, member: u64) -> Option<Instant> {
        let awaited = self.partitions.values().filter(|assigned| assigned.target == Some(member));
        awaited.filter_map(|assigned| assigned.deadline).min()
    }

    pub(super) fn begin(&mut self, member: u64, taken: &Taken) -> bool {
        let Some(assigned) = self.partitions.get_mut(&taken.slot) else { return false };
        let ours = assigned.epoch == taken.epoch && assigned.target == Some(member);
        if ours {
            assigned.begun += 1;
        }
        ours
    }

    /// A message came back: settled or dropped.
    pub(super) fn give_back(&mut self, member: u64, taken: &Taken, begun: bool, settled: bool) {
        if let Some(reader) = self.members.get_mut(&member) {
            reader.outstanding = reader.outstanding.saturating_sub(1);
        }
        let Some(assigned) = self.partitions.get_mut(&taken.slot) else { return };
        if assigned.epoch != taken.epoch {
            return;
        }
        if settled && assigned.watermark.done(taken.offset) {
            assigned.committed = assigned.watermark.committable().unwrap_or(assigned.committed);
        }
        if begun {
            assigned.begun = assigned.begun.saturating_sub(1);
        }
        assigned.hand_over(Instant::now());
    }

    /// Whether the member still owns anything.
    pub(super) fn owns(&self, member: u64) -> bool {
        self.partitions.values().any(|assigned| assigned.owner == Some(member))
    }

    /// How far the member is in each of its partitions.
    pub(super) fn progress(&self, member: u64, topics: &BTreeMap<String, Topic>) -> Vec<PartitionProgress> {
        let owned = self.partitions.iter().filter(|(_, assigned)| assigned.owner == Some(member));
        owned
            .map(|(slot, assigned)| PartitionProgress {
                place: slot.0.clone(),
                partition: Some(slot.1),
                watermark: Some(assigned.committed),
                lag: Some((length(topics, slot) - assigned.committed).max(0).unsigned_abs()),
            })
            .collect()
    }

    pub(super) fn unsettled(&self, topics: &BTreeMap<String, Topic>) -> u64 {
        let left =
            |(slot, assigned): (&Slot, &Assigned)| (length(topics, slot) - assigned.committed).max(0) as u64;
        self.partitions.iter().map(left).sum()
    }
}

impl Assigned {
    fn hand_over(&mut self, now: Instant) {
        if self.owner == self.target {
            self.deadline = None;
        } else if self.begun == 0 || self.deadline.is_some_and(|deadline| deadline <= now) {
            self.pass_to(self.target);
        } else if self.deadline.is_none() {
            self.deadline = Some(now + GRACE);
        }
    }

    /// The next owner begins at what is committed.
    fn pass_to(&mut self, owner: Option<u64>) {
        self.owner = owner;
        self.epoch += 1;
        self.begun = 0;
        self.position = self.committed;
        self.watermark = Watermark::default();
        self.deadline = None;
    }
}

fn length(topics: &BTreeMap<String, Topic>, (place, partition): &Slot) -> i64 {
    let records = topics.get(place).and_then(|topic| topic.partitions.get(*partition as usize));
    records.map_or(0, |records| records.len() as i64)
}
