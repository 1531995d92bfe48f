//! How far a source is: its watermarks, and the ends of its partitions as librdkafka has heard of them.

use std::sync::{Arc, Mutex};

use backstop_core::source::{PartitionProgress, SourceProgress};
use rdkafka::Statistics;
use rdkafka::statistics::Partition;

use crate::assignment::Assigned;
use crate::context::lock;

/// What was known when librdkafka told of itself last.
#[derive(Debug, Clone, Default)]
pub(crate) struct Progress {
    partitions: Arc<Mutex<Vec<Known>>>,
}

#[derive(Debug)]
struct Known {
    place: String,
    partition: i32,
    assigned: Arc<Assigned>,
    end: Option<i64>,
}

impl Progress {
    /// Takes over the ends that the statistics tell, of the partitions that are ours.
    pub(crate) fn update(
        &self,
        ours: impl Iterator<Item = (String, i32, Arc<Assigned>)>,
        statistics: &Statistics,
    ) {
        let known = ours.map(|(place, partition, assigned)| {
            let told = statistics.topics.get(&place).and_then(|topic| topic.partitions.get(&partition));
            Known { place, partition, assigned, end: told.and_then(end) }
        });
        *lock(&self.partitions) = known.collect();
    }
}

impl SourceProgress for Progress {
    fn partitions(&self) -> Vec<PartitionProgress> {
        lock(&self.partitions).iter().filter(|known| !known.assigned.is_revoked()).map(Known::tell).collect()
    }
}

impl Known {
    fn tell(&self) -> PartitionProgress {
        let watermark = self.assigned.watermark();
        let lag = |(end, watermark): (i64, i64)| end.saturating_sub(watermark).max(0).unsigned_abs();
        PartitionProgress {
            place: self.place.clone(),
            partition: Some(self.partition),
            watermark,
            lag: self.end.zip(watermark).map(lag),
        }
    }
}

/// Where a reader of committed messages ends; negative numbers say that it is not known.
fn end(partition: &Partition) -> Option<i64> {
    [partition.ls_offset, partition.hi_offset].into_iter().find(|offset| *offset >= 0)
}
