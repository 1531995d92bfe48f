//! The suite for brokers: source, settling, sink, the relay's pipeline, dead letters and the door.

pub mod dead_letters;
pub mod door;
pub mod publisher;
mod sample;
pub mod settling;
pub mod sink;
pub mod source;

use std::future::Future;

use backstop_core::DeadLetters;
use backstop_core::sink::{Publisher, Sink};
use backstop_core::source::Source;

/// What a broker can do; each field that is `false` leaves out the cases that need it, or what they ask for.
#[derive(Debug, Clone, Copy)]
pub struct BrokerCapabilities {
    /// Messages of one key come in order although several members share the place. Not so on RabbitMQ.
    pub key_order_over_members: bool,
    /// A message without an id is known by its coordinates. Otherwise its identity is missing.
    pub coordinates_identity: bool,
    /// Settled messages behind an unsettled one come again, as with Kafka's offsets. Otherwise only the unsettled do.
    pub settles_in_order: bool,
    /// Headers without a value.
    pub null_headers: bool,
    /// Several headers of one name.
    pub repeated_headers: bool,
    /// Messages without a body, which are not those with an empty one.
    pub tombstones: bool,
    /// Keys that are not text.
    pub binary_keys: bool,
    /// Messages over [`BrokerHarness::max_bytes`] are refused.
    pub size_limit: bool,
    /// Publishing to a destination that does not exist fails. Not so on a Kafka that creates topics by itself.
    pub missing_destination: bool,
    /// A probe can ask whether a destination exists.
    pub asks_for_destinations: bool,
}

/// One fresh, isolated place (topic or queue) with its dead letters and its door, and clients of it.
///
/// Every method may panic where the broker cannot be reached: the case fails then.
pub trait BrokerHarness: Sized + Send + Sync + 'static {
    /// The adapter's source.
    type Source: Source;
    /// The adapter's sink.
    type Sink: Sink;
    /// The adapter's pipeline.
    type Publisher: Publisher;
    /// The adapter's dead letters.
    type DeadLetters: DeadLetters;

    /// What this broker can do.
    const CAPABILITIES: BrokerCapabilities;

    /// A place of its own for one case, with door and dead-letter destination; with several partitions, where there
    /// are partitions.
    fn fresh() -> impl Future<Output = Self> + Send;

    /// Topic or queue that is read live; a [`Destination`](backstop_core::Destination) without a routing key.
    fn place(&self) -> String;

    /// Consumer group; the queue where there are no groups.
    fn group(&self) -> String;

    /// Topic or queue through which redriven messages come in.
    fn door(&self) -> String;

    /// Another member that reads the place and its door, with at most `window` messages at work.
    fn source(&self, window: usize) -> impl Future<Output = Self::Source> + Send;

    /// A reader of the dead letters.
    fn letters(&self) -> impl Future<Output = Self::Source> + Send;

    /// A sink.
    fn sink(&self) -> impl Future<Output = Self::Sink> + Send;

    /// A pipeline.
    fn publisher(&self) -> impl Future<Output = Self::Publisher> + Send;

    /// The writer of dead letters.
    fn dead_letters(&self) -> impl Future<Output = Self::DeadLetters> + Send;

    /// Largest message that is taken, in bytes of key, headers and body; 0 where the capability says that there is
    /// none.
    fn max_bytes(&self) -> usize;

    /// A topic or queue that does not exist.
    fn missing(&self) -> String {
        format!("{}.missing", self.place())
    }

    /// Removes what [`fresh`](BrokerHarness::fresh) made. Called after a case that passed.
    fn clean_up(self) -> impl Future<Output = ()> + Send {
        std::future::ready(())
    }
}
