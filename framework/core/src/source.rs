//! The reading side of a broker.

use std::future::Future;
use std::sync::Arc;

use serde::Serialize;

use crate::adapter_error::AdapterError;
use crate::identity::Identity;
use crate::message::Message;
use crate::origin::{Origin, Via};

/// A message as a source hands it over.
#[derive(Debug)]
pub struct Received<S> {
    /// The message; its headers are the wire's, all of them.
    pub message: Message,
    /// How its identity was found.
    pub identity: Identity,
    /// Where the broker had it.
    pub origin: Origin,
    /// From the topic or queue, or through the door.
    pub via: Via,
    /// How to tell the broker that it is done.
    pub settlement: S,
}

/// Tells the broker that one message is done.
///
/// Dropping it without [`settle`](Settlement::settle) leaves the message unsettled: the broker delivers it again to
/// whoever is next. Neither method waits.
pub trait Settlement: Send + 'static {
    /// Claims the right to start work. `false` means that the source has taken the message back (partition revoked,
    /// channel closed): drop it unprocessed, another owner has it.
    ///
    /// After `true` the source waits a bounded time for `settle` or drop before it lets the partition go.
    fn begin(&mut self) -> bool;

    /// Whether a process may have died of this message: it was handed over to one that did not leave in order. Such a
    /// message shares no transaction, and is charged before it is handled. Defaults to no.
    fn is_suspect(&self) -> bool {
        false
    }

    /// Which unbroken stretch of reading the message belongs to: another one after each loss of its partition or
    /// channel, since others may have handled messages meanwhile. Defaults to 0, for sources that cannot tell.
    fn epoch(&self) -> u64 {
        0
    }

    /// The message is done for good: its effects are committed, or its failure is durable elsewhere. The broker
    /// forgets it, when everything before it is done too.
    fn settle(self);

    /// The same for a suspect that turned out to have been handled before: it is not counted among those that may have
    /// been at work when the process died. Defaults to [`settle`](Settlement::settle).
    fn settle_known(self)
    where
        Self: Sized,
    {
        self.settle();
    }
}

/// What a consumer reads from.
///
/// A source keeps its own bound: it counts, per partition and in all, what it has handed over and what has come back
/// settled or dropped, and stops fetching at its limit. It reconnects by itself; an error it returns is final.
pub trait Source: Send + 'static {
    /// The handle that settles one message.
    type Settlement: Settlement;

    /// What this source reads, for names of destinations, spans and logs.
    fn describe(&self) -> SourceInfo;

    /// Where it can be seen, from anywhere and while it runs, how far the source is. Defaults to nowhere.
    fn progress(&self) -> Option<Arc<dyn SourceProgress>> {
        None
    }

    /// The next messages, in order per partition; `None` when the source has ended.
    ///
    /// Never returns an empty vector. Cancel-safe: a dropped call loses nothing.
    ///
    /// # Errors
    /// Only what waiting cannot mend: credentials refused, topic missing, offset out of range under `stop`.
    fn next(
        &mut self,
    ) -> impl Future<Output = Result<Option<Vec<Received<Self::Settlement>>>, AdapterError>> + Send;

    /// Settles what is settled, gives partitions back and leaves the group.
    ///
    /// # Errors
    /// When the last settlements could not be stored; their messages come again.
    fn close(self) -> impl Future<Output = Result<(), AdapterError>> + Send;
}

/// What a source reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceInfo {
    /// `kafka`, `rabbitmq` or `memory`, as `messaging.system` wants it.
    pub system: &'static str,
    /// Kafka's consumer group; on RabbitMQ the queue stands for it.
    pub group: String,
    /// Topics or queues, without doors.
    pub places: Vec<String>,
}

/// Tells how far a source is.
pub trait SourceProgress: Send + Sync + 'static {
    /// The partitions that are this source's now, as far as it has heard of them. Does not wait for the broker.
    fn partitions(&self) -> Vec<PartitionProgress>;
}

/// How far a source is in one partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PartitionProgress {
    /// Topic or queue, doors included.
    pub place: String,
    /// Its number; `None` where there are no partitions.
    pub partition: Option<i32>,
    /// The first offset that is not settled: all before it are. `None` before anything was read.
    pub watermark: Option<i64>,
    /// Offsets from the watermark to the end of the partition, where the end is known. It may be some seconds old, and
    /// older while nothing is read.
    pub lag: Option<u64>,
}
