//! A bounded part of a topic, read beside every group: what a replay is made from.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::{Duration, Instant};

use backstop_core::message::Envelope;
use backstop_core::origin::Origin;
use backstop_core::{AdapterError, FaultKind};
use chrono::{DateTime, Utc};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::BorrowedMessage;
use rdkafka::types::RDKafkaErrorCode as Code;
use rdkafka::{Message, Offset, TopicPartitionList};

use crate::absence::{missing, unreadable};
use crate::context::Asking;
use crate::decode::envelope;
use crate::fault::{code_of, ends_a_source, fault};
use crate::settings::KafkaSettings;
use crate::topics::{EVENTS, Presence, presence};

/// How long the brokers may take to answer a question.
const ANSWER: Duration = Duration::from_secs(10);
/// One question for the topic, in between which refusals are noticed.
const QUESTION: Duration = Duration::from_secs(1);

/// Where an excerpt begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReadFrom {
    /// At the oldest message of every partition.
    Beginning,
    /// In every partition at the first message that is not older, by the brokers' timestamps.
    Time(DateTime<Utc>),
    /// At these offsets; partitions that are not named are left out.
    Offsets(BTreeMap<i32, i64>),
    /// These offsets and no others, as an earlier excerpt had them.
    Ranges(BTreeMap<i32, Range<i64>>),
}

/// Reads a part of a topic, from where it was told to where the topic ended when it was opened.
///
/// It joins no group and commits nothing: whoever wants to go on later keeps [`ranges`](KafkaExcerpt::ranges). Every
/// method blocks, within bounds; a task calls them where blocking is allowed. Of transactions it reads what is
/// committed.
pub struct KafkaExcerpt {
    member: BaseConsumer<Asking>,
    topic: String,
    left: BTreeMap<i32, Range<i64>>,
    /// Partitions that are done and need not be fetched any more.
    paused: BTreeSet<i32>,
}

impl KafkaExcerpt {
    /// Looks where the topic begins and ends, and is ready to read.
    ///
    /// # Errors
    /// When the topic does not exist or may not be read, when brokers do not answer within 10 s, and when the part
    /// that is wanted is not there (any more).
    pub fn open(settings: &KafkaSettings, topic: &str, from: &ReadFrom) -> Result<Self, AdapterError> {
        // A name that nobody else has. Nothing is committed, so that no group of it is ever seen.
        let group = format!("backstop-replay-{}", std::process::id());
        let fixed = [
            ("group.id", group.as_str()),
            ("enable.auto.commit", "false"),
            ("enable.auto.offset.store", "false"),
            ("enable.partition.eof", "true"),
            ("auto.offset.reset", "error"),
            ("isolation.level", "read_committed"),
        ];
        let config = settings.client_config(&[("socket.keepalive.enable", "true")], &fixed)?;
        let asking = Asking { token: settings.token_file(), ..Asking::default() };
        let member: BaseConsumer<Asking> = config
            .create_with_context(asking)
            .map_err(|error| fault("the Kafka consumer could not be made", &error))?;
        let mut excerpt =
            Self { member, topic: topic.to_owned(), left: BTreeMap::new(), paused: BTreeSet::new() };
        let bounds = excerpt.bounds()?;
        excerpt.left = match from {
            ReadFrom::Beginning => bounds,
            ReadFrom::Time(time) => excerpt.since(*time, bounds)?,
            ReadFrom::Offsets(begins) => {
                let begins = begins.iter().map(|(partition, begin)| (*partition, *begin..i64::MAX));
                within(topic, begins.collect(), &bounds)?
            }
            ReadFrom::Ranges(ranges) => within(topic, ranges.clone(), &bounds)?,
        };
        excerpt.assign()?;
        Ok(excerpt)
    }

    /// The offsets of each partition that are still to be read; an empty range is done.
    pub fn ranges(&self) -> &BTreeMap<i32, Range<i64>> {
        &self.left
    }

    /// Offsets that are still to be read: at least as many as messages, since compacted ones and marks of transactions
    /// count, too.
    pub fn left(&self) -> u64 {
        self.left.values().map(|range| u64::try_from(range.end - range.start).unwrap_or(0)).sum()
    }

    /// The next messages, in the order of each partition: at most `limit`, and as many as come within `patience`. Empty
    /// when nothing came; the part is read when [`left`](KafkaExcerpt::left) is 0.
    ///
    /// # Errors
    /// When waiting cannot help: permissions, or retention that removes messages before they are read.
    pub fn read(
        &mut self,
        limit: usize,
        patience: Duration,
    ) -> Result<Vec<(Envelope, Origin)>, AdapterError> {
        self.pause_done();
        let deadline = Instant::now() + patience;
        let mut messages = Vec::new();
        while messages.len() < limit && self.left() > 0 {
            let Some(event) = self.member.poll(deadline.saturating_duration_since(Instant::now())) else {
                break;
            };
            match event {
                Ok(message) => messages.extend(take(&mut self.left, &message)),
                Err(KafkaError::PartitionEOF(partition)) => {
                    // All there is was handed over before this event, and the end was there from the beginning.
                    if let Some(range) = self.left.get_mut(&partition) {
                        range.start = range.end;
                    }
                }
                Err(error) => self.judge(&error)?,
            }
        }
        Ok(messages)
    }

    fn pause_done(&mut self) {
        let done = self.left.iter().filter(|(_, range)| range.is_empty()).map(|(partition, _)| *partition);
        let done: Vec<i32> = done.filter(|partition| self.paused.insert(*partition)).collect();
        let mut list = TopicPartitionList::new();
        for partition in done {
            list.add_partition(&self.topic, partition);
        }
        // What is fetched all the same is passed over.
        let _ = self.member.pause(&list);
    }

    /// Passes over what waiting may mend.
    fn judge(&self, error: &KafkaError) -> Result<(), AdapterError> {
        if let Some(refusal) = self.member.context().voice.refusal() {
            return Err(refusal);
        }
        match code_of(error) {
            Some(Code::OffsetOutOfRange | Code::AutoOffsetReset) => {
                let what = format!("messages of {} are gone before they were read", self.topic);
                Err(AdapterError::new(FaultKind::Missing, what)
                    .with_hint("begin at a later offset: retention has removed them"))
            }
            Some(code) if ends_a_source(code) => {
                Err(fault(format!("topic {} cannot be read", self.topic), error))
            }
            _ => {
                self.member.context().voice.warn("reading an excerpt", &error.to_string());
                Ok(())
            }
        }
    }

    /// Where each partition begins and ends now.
    fn bounds(&self) -> Result<BTreeMap<i32, Range<i64>>, AdapterError> {
        let what = format!("Kafka does not answer about topic {}", self.topic);
        let partitions =
            match self.ask(&what, |timeout| presence(self.member.client(), &self.topic, timeout))? {
                Presence::Here(partitions) => partitions,
                Presence::Missing => return Err(missing(&self.topic)),
                Presence::Denied => return Err(unreadable(&self.topic)),
            };
        let mut bounds = BTreeMap::new();
        for partition in 0..partitions {
            let ask = |timeout| self.member.fetch_watermarks(&self.topic, partition, timeout);
            let (low, high) = self.ask(&what, ask)?;
            bounds.insert(partition, low..high.max(low));
        }
        Ok(bounds)
    }

    /// From the first message that is not older than `time` on.
    fn since(
        &self,
        time: DateTime<Utc>,
        bounds: BTreeMap<i32, Range<i64>>,
    ) -> Result<BTreeMap<i32, Range<i64>>, AdapterError> {
        let mut wanted = TopicPartitionList::new();
        for partition in bounds.keys() {
            wanted
                .add_partition_offset(&self.topic, *partition, Offset::Offset(time.timestamp_millis().max(0)))
                .map_err(|error| fault("the time cannot be looked up", &error))?;
        }
        let what = format!("Kafka does not say where topic {} was at that time", self.topic);
        let found = self.ask(&what, |timeout| self.member.offsets_for_times(wanted.clone(), timeout))?;
        let begin = |partition: i32, range: &Range<i64>| {
            let element = found.find_partition(&self.topic, partition);
            match element.map(|element| element.offset()) {
                Some(Offset::Offset(offset)) => offset.clamp(range.start, range.end),
                // Nothing is as young as that.
                _ => range.end,
            }
        };
        Ok(bounds
            .into_iter()
            .map(|(partition, range)| (partition, begin(partition, &range)..range.end))
            .collect())
    }

    /// Asks until an answer comes. Refusals show up among the events, while the question itself just times out; and a
    /// token is asked for there.
    fn ask<T>(
        &self,
        silence: &str,
        question: impl Fn(Duration) -> Result<T, KafkaError>,
    ) -> Result<T, AdapterError> {
        let deadline = Instant::now() + ANSWER;
        loop {
            while self.member.poll(EVENTS).is_some() {}
            if let Some(refusal) = self.member.context().voice.refusal() {
                return Err(refusal);
            }
            match question(QUESTION) {
                Ok(answer) => return Ok(answer),
                Err(error) if Instant::now() >= deadline => return Err(fault(silence, &error)),
                Err(_) => {}
            }
        }
    }

    fn assign(&self) -> Result<(), AdapterError> {
        let failed = |error: KafkaError| fault(format!("topic {} cannot be read", self.topic), &error);
        let mut list = TopicPartitionList::new();
        for (partition, range) in self.left.iter().filter(|(_, range)| !range.is_empty()) {
            list.add_partition_offset(&self.topic, *partition, Offset::Offset(range.start))
                .map_err(failed)?;
        }
        self.member.assign(&list).map_err(failed)
    }
}

/// The message, unless it lies behind the end of its partition's part; the part begins behind it then.
fn take(left: &mut BTreeMap<i32, Range<i64>>, message: &BorrowedMessage<'_>) -> Option<(Envelope, Origin)> {
    let range = left.get_mut(&message.partition())?;
    let wanted = message.offset() < range.end;
    range.start = if wanted { message.offset() + 1 } else { range.end };
    let origin = || Origin::Kafka {
        topic: message.topic().to_owned(),
        partition: message.partition(),
        offset: message.offset(),
        timestamp: message.timestamp().to_millis(),
    };
    wanted.then(|| (envelope(message), origin()))
}

/// The ranges that are wanted, as far as the topic reaches.
///
/// # Errors
/// For partitions that the topic does not have, and for offsets that are not there.
fn within(
    topic: &str,
    wanted: BTreeMap<i32, Range<i64>>,
    bounds: &BTreeMap<i32, Range<i64>>,
) -> Result<BTreeMap<i32, Range<i64>>, AdapterError> {
    let absent =
        |what: String, hint: String| Err(AdapterError::new(FaultKind::Missing, what).with_hint(hint));
    let mut ranges = BTreeMap::new();
    for (partition, range) in wanted {
        let Some(there) = bounds.get(&partition) else {
            let what = format!("topic {topic} has no partition {partition}");
            return absent(what, format!("it has {} partitions", bounds.len()));
        };
        let range = range.start..range.end.min(there.end).max(range.start);
        if !range.is_empty() && range.start < there.start {
            let what = format!("offset {} of {topic}/{partition} is gone", range.start);
            return absent(what, format!("the oldest that is left is {}", there.start));
        }
        if range.start > there.end || range.start < 0 {
            let what = format!("topic {topic} has no offset {} in partition {partition}", range.start);
            return absent(what, format!("the next one to be written is {}", there.end));
        }
        ranges.insert(partition, range);
    }
    Ok(ranges)
}

impl std::fmt::Debug for KafkaExcerpt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KafkaExcerpt")
            .field("topic", &self.topic)
            .field("left", &self.left)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges<const N: usize>(parts: [(i32, Range<i64>); N]) -> BTreeMap<i32, Range<i64>> {
        parts.into()
    }

    #[test]
    fn what_is_wanted_is_cut_to_what_was_there() {
        let bounds = ranges([(0, 10..20), (1, 0..0)]);
        let wanted = ranges([(0, 12..i64::MAX), (1, 0..i64::MAX)]);
        assert_eq!(within("t", wanted, &bounds).expect("there"), ranges([(0, 12..20), (1, 0..0)]));
        let end = ranges([(0, 20..i64::MAX)]);
        assert_eq!(within("t", end, &bounds).expect("nothing to read"), ranges([(0, 20..20)]));
    }

    #[test]
    fn what_is_done_may_be_gone_and_what_is_left_may_not() {
        let bounds = ranges([(0, 10..20)]);
        assert!(within("t", ranges([(0, 7..7)]), &bounds).is_ok(), "read before retention took it");
        let error = within("t", ranges([(0, 7..9)]), &bounds).expect_err("never read");
        assert_eq!((error.kind(), error.hint()), (FaultKind::Missing, Some("the oldest that is left is 10")));
        for (partition, begin) in [(1, 0), (0, 21), (0, -1)] {
            assert!(
                within("t", ranges([(partition, begin..i64::MAX)]), &bounds).is_err(),
                "{partition}/{begin}"
            );
        }
    }
}
