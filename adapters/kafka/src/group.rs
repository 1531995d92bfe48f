//! Membership in the consumer group: what is assigned, what is given back, what is committed.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::thread;
use std::time::{Duration, Instant};

use backstop_core::AdapterError;
use backstop_core::origin::Via;
use rdkafka::client::{ClientContext, OAuthToken};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::base_consumer::PartitionQueue;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext, RebalanceProtocol as Mode};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::types::{RDKafkaErrorCode as Code, RDKafkaRespErr};
use rdkafka::{Offset, Statistics, TopicPartitionList};

use crate::assignment::{Assigned, Mark, Place};
use crate::context::{Voice, lock};
use crate::exchange::{Exchange, Order};
use crate::fault::{code_of, coded, ends_a_source, fault, is_lost_membership};
use crate::flow::Flow;
use crate::options::{Options, StartFrom};
use crate::progress::Progress;
use crate::token::TokenFile;

/// One question to the coordinator about committed offsets.
const LOOKUP: Duration = Duration::from_secs(5);
/// The time from one question to the next.
const LOOKUP_PAUSE: Duration = Duration::from_millis(200);
/// How long a member that is leaving is given to have left: before a rebalance is answered, and before a second one is.
const TO_HAVE_LEFT: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(2)];

/// A consumer of ours.
pub(crate) type Member = BaseConsumer<Group>;

/// The callbacks of one member, and what it owns. They run on the polling thread.
pub(crate) struct Group {
    /// Whose callbacks these are.
    member: OnceLock<Weak<Member>>,
    pub(crate) voice: Voice,
    pub(crate) table: Mutex<Table>,
    flow: Arc<Flow>,
    options: Arc<Options>,
    doors: Vec<String>,
    token: TokenFile,
    progress: Progress,
    /// Where there are transactions, offsets are committed in them, and never by the member itself.
    pub(crate) exchange: Option<Arc<Exchange>>,
    failure: Mutex<Option<AdapterError>>,
    joined: AtomicBool,
    /// The member leaves: nothing more is taken.
    leaving: AtomicBool,
    /// Whether a rebalance was answered since.
    answered: AtomicBool,
}

/// The partitions that are ours now.
#[derive(Default)]
pub(crate) struct Table {
    topics: HashMap<String, Vec<Option<Slot>>>,
    /// How often it was changed.
    version: u64,
}

/// One of them.
pub(crate) struct Slot {
    pub(crate) assigned: Arc<Assigned>,
    pub(crate) via: Via,
    /// What librdkafka has fetched of it, until whoever polls takes that over.
    pub(crate) fetched: Option<PartitionQueue<Group>>,
}

impl Table {
    pub(crate) fn get(&self, topic: &str, partition: i32) -> Option<&Slot> {
        self.topics.get(topic)?.get(usize::try_from(partition).ok()?)?.as_ref()
    }

    /// All partitions with their topic and number.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, i32, &Slot)> {
        self.topics.iter().flat_map(|(topic, slots)| {
            (0..)
                .zip(slots)
                .filter_map(move |(partition, slot)| Some((topic.as_str(), partition, slot.as_ref()?)))
        })
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (&str, i32, &mut Slot)> {
        self.topics.iter_mut().flat_map(|(topic, slots)| {
            (0..)
                .zip(slots)
                .filter_map(move |(partition, slot)| Some((topic.as_str(), partition, slot.as_mut()?)))
        })
    }

    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    /// Whether that assignment is ours still.
    pub(crate) fn has(&self, assigned: &Arc<Assigned>) -> bool {
        let place = &assigned.place;
        self.get(&place.topic, place.partition).is_some_and(|slot| Arc::ptr_eq(&slot.assigned, assigned))
    }

    fn insert(&mut self, topic: &str, partition: i32, slot: Slot) {
        let Ok(index) = usize::try_from(partition) else { return };
        self.version += 1;
        let slots = self.topics.entry(topic.to_owned()).or_default();
        if slots.len() <= index {
            slots.resize_with(index + 1, || None);
        }
        slots[index] = Some(slot);
    }

    fn remove(&mut self, topic: &str, partition: i32) -> Option<Slot> {
        self.version += 1;
        self.topics.get_mut(topic)?.get_mut(usize::try_from(partition).ok()?)?.take()
    }
}

/// Partitions that are being given back.
type Leaving = Vec<(String, i32, Arc<Assigned>)>;

impl Group {
    pub(crate) fn new(
        flow: Arc<Flow>,
        options: Arc<Options>,
        doors: Vec<String>,
        progress: Progress,
        exchange: Option<Arc<Exchange>>,
    ) -> Self {
        Self {
            member: OnceLock::new(),
            voice: Voice::default(),
            table: Mutex::default(),
            token: options.settings.token_file(),
            progress,
            exchange,
            flow,
            options,
            doors,
            failure: Mutex::new(None),
            joined: AtomicBool::new(false),
            leaving: AtomicBool::new(false),
            answered: AtomicBool::new(false),
        }
    }

    /// Tells whose callbacks these are, before it subscribes.
    pub(crate) fn is_of(&self, member: &Arc<Member>) {
        self.member.get_or_init(|| Arc::downgrade(member));
    }

    /// A queue of its own for what is fetched of a partition, which wakes whoever polls. Made before the partition is
    /// assigned: messages that were fetched before would come by the member's queue.
    fn queue_of(&self, topic: &str, partition: i32) -> Option<PartitionQueue<Self>> {
        let member = self.member.get()?.upgrade()?;
        let mut queue = member.split_partition_queue(topic, partition)?;
        let flow = self.flow.clone();
        queue.set_nonempty_callback(move || flow.notify());
        Some(queue)
    }

    /// What a callback, or the thread of transactions, has found that ends the source.
    pub(crate) fn take_failure(&self) -> Option<AdapterError> {
        let failure = lock(&self.failure).take();
        failure.or_else(|| self.exchange.as_ref()?.take_failure())
    }

    /// Whether the group has answered.
    pub(crate) fn has_joined(&self) -> bool {
        self.joined.load(Ordering::Relaxed)
    }

    /// Sends the watermarks that have moved; the answers come to `commit_callback`.
    pub(crate) fn commit_moved(&self, member: &Member) {
        if member.assignment_lost() {
            lock(&self.table).iter().for_each(|(_, _, slot)| slot.assigned.revoke());
            return;
        }
        if self.exchange.is_some() {
            return;
        }
        let mut offsets = TopicPartitionList::new();
        for (topic, partition, slot) in lock(&self.table).iter() {
            if let Some((offset, mark)) = slot.assigned.take_commit() {
                add(&mut offsets, topic, partition, offset, mark);
            }
        }
        if offsets.count() > 0
            && let Err(error) = member.commit(&offsets, CommitMode::Async)
        {
            self.commit_failed(&error, &offsets);
        }
    }

    /// Commits of each partition from which something was taken for the first time that messages are under way, and
    /// waits for the answer: a message that fells the process at once is to be found out too. Where that fails, the
    /// messages go on without it; whether it succeeded.
    pub(crate) fn mark_dirty(&self, member: &Member) -> bool {
        // A pipeline's offsets are committed in its transactions, without marks.
        if self.exchange.is_some() {
            return true;
        }
        let unmarked: Vec<_> = lock(&self.table)
            .iter()
            .filter_map(|(topic, partition, slot)| {
                let offset = slot.assigned.to_mark()?;
                Some((topic.to_owned(), partition, slot.assigned.clone(), offset))
            })
            .collect();
        if unmarked.is_empty() {
            return true;
        }
        let mut offsets = TopicPartitionList::with_capacity(unmarked.len());
        for (topic, partition, _, offset) in &unmarked {
            add(&mut offsets, topic, *partition, *offset, Mark::Dirty);
        }
        match member.commit(&offsets, CommitMode::Sync) {
            Ok(()) => {
                unmarked.iter().for_each(|(_, _, assigned, offset)| assigned.marked(*offset));
                true
            }
            Err(error) => {
                tracing::debug!(%error, "kafka: messages are handed over without a mark of it");
                false
            }
        }
    }

    /// Whether messages are suspected to have felled an earlier owner.
    pub(crate) fn is_suspicious(&self) -> bool {
        lock(&self.table).iter().any(|(_, _, slot)| slot.assigned.is_suspected())
    }

    /// Refuses what has not begun, waits for what has, and commits for the last time.
    pub(crate) fn settle_all(&self, member: &Member) -> Result<(), AdapterError> {
        let all: Leaving = lock(&self.table)
            .iter()
            .map(|(topic, partition, slot)| (topic.to_owned(), partition, slot.assigned.clone()))
            .collect();
        let settled = self.settle(member, &all);
        all.iter().for_each(|(_, _, assigned)| assigned.leave());
        settled
    }

    fn settle(&self, member: &Member, leaving: &Leaving) -> Result<(), AdapterError> {
        leaving.iter().for_each(|(_, _, assigned)| assigned.revoke());
        if let Some(exchange) = &self.exchange {
            // The generation may be another one already, and this thread is busy here until everything is committed.
            exchange.stand(member);
            exchange.order(Order::Look);
        }
        if member.assignment_lost() {
            tracing::warn!("kafka: partitions were lost: what is under way of them comes again elsewhere");
            return Ok(());
        }
        let deadline = Instant::now() + self.options.revoke_wait;
        for (topic, partition, assigned) in leaving {
            if !assigned.wait_idle(deadline) {
                tracing::warn!(
                    topic,
                    partition,
                    "kafka: work was still going on when the partition was given back"
                );
            }
        }
        if self.exchange.is_some() {
            return Ok(());
        }
        Self::tell_positions(member, leaving);
        let moved: Vec<_> = leaving
            .iter()
            .filter_map(|(topic, partition, assigned)| {
                Some((topic, *partition, assigned, assigned.last_commit()?))
            })
            .collect();
        if moved.is_empty() {
            return Ok(());
        }
        let mut offsets = TopicPartitionList::with_capacity(moved.len());
        for (topic, partition, _, (offset, mark)) in &moved {
            add(&mut offsets, topic, *partition, *offset, *mark);
        }
        match member.commit(&offsets, CommitMode::Sync) {
            Ok(()) => {
                moved.iter().for_each(|(_, _, assigned, (offset, mark))| assigned.left_at(*offset, *mark));
                Ok(())
            }
            Err(error) if code_of(&error).is_some_and(is_lost_membership) => {
                tracing::warn!(%error, "kafka: the last commit came too late: its messages come again");
                Ok(())
            }
            Err(error) => Err(fault("the last offsets could not be committed", &error)),
        }
    }

    /// Tells partitions under suspicion how far they were read.
    fn tell_positions(member: &Member, leaving: &Leaving) {
        if !leaving.iter().any(|(_, _, assigned)| assigned.is_suspected()) {
            return;
        }
        let Ok(positions) = member.position() else { return };
        for (topic, partition, assigned) in leaving {
            let found = positions.find_partition(topic, *partition).map(|element| element.offset());
            if let Some(Offset::Offset(position)) = found {
                assigned.read_to(position);
            }
        }
    }

    /// The member is about to leave.
    pub(crate) fn leaves(&self) {
        self.leaving.store(true, Ordering::Relaxed);
    }

    /// Whether a rebalance is an old one that the member found in its queue when it had left: librdkafka never answers
    /// what is asked about it, and may leave at the same moment. It leaves by itself where it needs no answer, mostly at
    /// once, and after the one that it may need: so a rebalance waits for that, and is answered only if it stays.
    fn has_left(&self, member: &Member) -> bool {
        if self.leaving.load(Ordering::Relaxed) {
            let answered = self.answered.swap(true, Ordering::Relaxed);
            let until = Instant::now() + TO_HAVE_LEFT[usize::from(answered)];
            while !member.closed() && Instant::now() < until {
                thread::sleep(Duration::from_millis(5));
            }
        }
        member.closed()
    }

    fn assign(&self, member: &Member, partitions: &TopicPartitionList) {
        if self.has_left(member) {
            return;
        }
        self.joined.store(true, Ordering::Relaxed);
        if let Some(exchange) = &self.exchange {
            // Looking for the beginning may take a while, and what is ours already goes on.
            exchange.stand(member);
        }
        let positions = if partitions.count() == 0 || self.flow.is_closing() {
            partitions.clone()
        } else {
            self.positions(member, partitions)
        };
        let result = match member.rebalance_protocol() {
            Mode::Cooperative => member.incremental_assign(&positions),
            _ => member.assign(&positions),
        };
        self.leave_alone(member, partitions);
        match result {
            Ok(()) if partitions.count() > 0 => tracing::info!("kafka: assigned {}", named(partitions)),
            Ok(()) => {}
            Err(error) => self.fail(fault("an assignment could not be taken", &error)),
        }
    }

    /// Pauses for good what the group has given us and the source does not read. What comes of it before, nobody
    /// takes: it is not in the table.
    fn leave_alone(&self, member: &Member, partitions: &TopicPartitionList) {
        let mut left_out = TopicPartitionList::new();
        for (topic, partition) in partitions.to_topic_map().into_keys() {
            if self.options.leaves_out(&topic) {
                left_out.add_partition(&topic, partition);
            }
        }
        if left_out.count() == 0 {
            return;
        }
        tracing::info!("kafka: letters and doors that a pattern matches are not read: {}", named(&left_out));
        if let Err(error) = member.pause(&left_out) {
            tracing::warn!(%error, "kafka: partitions that are not read could not be paused");
        }
    }

    /// Where to begin in each partition; makes those that are read ours.
    fn positions(&self, member: &Member, partitions: &TopicPartitionList) -> TopicPartitionList {
        let mut known = self.committed(member, partitions);
        let mut begin_at = Vec::new();
        for element in known.as_ref().unwrap_or(partitions).elements() {
            let (topic, partition) = (element.topic(), element.partition());
            if self.options.leaves_out(topic) {
                begin_at.push((topic.to_owned(), partition, Offset::End));
                continue;
            }
            let is_door = self.doors.iter().any(|door| door == topic);
            let (mut stored, mut floor) = (None, None);
            match element.offset() {
                Offset::Offset(offset) => stored = Some(offset),
                _ if known.is_none() => {}
                _ if is_door || self.options.start_from == StartFrom::Earliest => {
                    begin_at.push((topic.to_owned(), partition, Offset::Beginning));
                }
                _ => {
                    // The end of now is written down, or a restart before the first message would skip some.
                    floor = member.fetch_watermarks(topic, partition, LOOKUP).ok().map(|(_, high)| high);
                    begin_at.push((topic.to_owned(), partition, floor.map_or(Offset::End, Offset::Offset)));
                }
            }
            let via = if is_door { Via::Door } else { Via::Live };
            let place = Place { topic: topic.to_owned(), partition };
            let assigned = Assigned::new(place, self.flow.clone(), stored, floor);
            let assigned = if element.metadata() == Mark::Dirty.as_str() && known.is_some() && !is_door {
                assigned.found_dirty(self.end_of(member, topic, partition))
            } else {
                assigned
            };
            let assigned = Arc::new(assigned);
            if let (Some(exchange), Some(floor)) = (&self.exchange, floor) {
                exchange.order(Order::Floor(assigned.clone(), floor));
            }
            let fetched = self.queue_of(topic, partition);
            lock(&self.table).insert(topic, partition, Slot { assigned, via, fetched });
        }
        let positions = known.get_or_insert_with(|| partitions.clone());
        for (topic, partition, offset) in begin_at {
            if let Err(error) = positions.set_partition_offset(&topic, partition, offset) {
                tracing::warn!(topic, partition, %error, "kafka: the position to begin at was not taken");
            }
        }
        known.unwrap_or_else(|| partitions.clone())
    }

    /// The end of a partition whose last owner did not leave in order; where nobody tells, it has none.
    fn end_of(&self, member: &Member, topic: &str, partition: i32) -> i64 {
        tracing::warn!(
            topic,
            partition,
            "kafka: the last owner did not leave in order: what it may have been at is under suspicion"
        );
        member.fetch_watermarks(topic, partition, LOOKUP).map_or(i64::MAX, |(_, end)| end)
    }

    /// The committed offsets, waited for as long as it takes: without them, librdkafka would begin where
    /// `out_of_range` says. `None` when the source is closing or has failed.
    fn committed(&self, member: &Member, partitions: &TopicPartitionList) -> Option<TopicPartitionList> {
        while !self.flow.is_closing() {
            let answer = member.committed_offsets(partitions.clone(), LOOKUP);
            let error = match answer.map(|list| (first_error(&list), list)) {
                Ok((None, list)) => return Some(list),
                Ok((Some(error), _)) | Err(error) => error,
            };
            self.voice.warn("committed offsets", &error.to_string());
            if let Some(code) = code_of(&error).filter(|code| ends_a_source(*code)) {
                self.fail(coded("committed offsets cannot be read", code));
                return None;
            }
            self.flow.wait(LOOKUP_PAUSE);
        }
        None
    }

    fn give_back(&self, member: &Member, partitions: &TopicPartitionList) {
        let leaving: Leaving = {
            let mut table = lock(&self.table);
            let take = |(topic, partition): (String, i32)| {
                table.remove(&topic, partition).map(|slot| (topic, partition, slot.assigned))
            };
            partitions.to_topic_map().into_keys().filter_map(take).collect()
        };
        if self.has_left(member) {
            return leaving.iter().for_each(|(_, _, assigned)| assigned.leave());
        }
        if let Err(error) = self.settle(member, &leaving) {
            tracing::warn!(%error, "kafka: partitions go without their last commit: its messages come again");
        }
        leaving.iter().for_each(|(_, _, assigned)| assigned.leave());
        let result = match member.rebalance_protocol() {
            Mode::Cooperative => member.incremental_unassign(partitions),
            _ => member.unassign(),
        };
        match result {
            Ok(()) => tracing::info!("kafka: gave back {}", named(partitions)),
            Err(error) => self.fail(fault("partitions could not be given back", &error)),
        }
    }

    fn commit_failed(&self, error: &KafkaError, offsets: &TopicPartitionList) {
        for element in offsets.elements() {
            if let Some(slot) = lock(&self.table).get(element.topic(), element.partition()) {
                slot.assigned.forget_sent();
            }
        }
        match code_of(error) {
            Some(code) if is_lost_membership(code) => {
                tracing::debug!(%error, "kafka: a commit came too late")
            }
            Some(code) if ends_a_source(code) => self.fail(coded("offsets cannot be committed", code)),
            _ => self.voice.warn("commit", &error.to_string()),
        }
    }

    fn fail(&self, error: AdapterError) {
        lock(&self.failure).get_or_insert(error);
    }
}

impl ClientContext for Group {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        self.voice.line(level, facility, text);
    }

    fn stats(&self, statistics: Statistics) {
        let table = lock(&self.table);
        let ours = table.iter();
        let ours = ours.map(|(topic, partition, slot)| (topic.to_owned(), partition, slot.assigned.clone()));
        self.progress.update(ours, &statistics);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.voice.error(&error, reason);
    }

    fn generate_oauth_token(&self, _: Option<&str>) -> Result<OAuthToken, Box<dyn std::error::Error>> {
        self.token.read()
    }
}

impl ConsumerContext for Group {
    fn rebalance(&self, member: &Member, event: RDKafkaRespErr, partitions: &mut TopicPartitionList) {
        match Code::from(event) {
            Code::AssignPartitions => self.assign(member, partitions),
            Code::RevokePartitions => self.give_back(member, partitions),
            other => self.fail(coded("the group could not be rebalanced", other)),
        }
    }

    fn commit_callback(&self, result: KafkaResult<()>, offsets: &TopicPartitionList) {
        if let Err(error) = result {
            return self.commit_failed(&error, offsets);
        }
        let table = lock(&self.table);
        for element in offsets.elements() {
            if let (Some(slot), Offset::Offset(offset), Ok(())) =
                (table.get(element.topic(), element.partition()), element.offset(), element.error())
            {
                slot.assigned.stored(offset);
            }
        }
    }
}

/// The first error that an answer carries for one of its partitions.
pub(crate) fn first_error(answer: &TopicPartitionList) -> Option<KafkaError> {
    answer.elements().iter().find_map(|element| element.error().err())
}

fn add(offsets: &mut TopicPartitionList, topic: &str, partition: i32, offset: i64, mark: Mark) {
    let mut element = offsets.add_partition(topic, partition);
    element.set_offset(Offset::Offset(offset)).expect("offsets that the broker gave out can be represented");
    element.set_metadata(mark.as_str());
}

fn named(partitions: &TopicPartitionList) -> String {
    let mut names: Vec<_> = partitions.to_topic_map().into_keys().collect();
    names.sort_unstable();
    let mut text: Vec<_> =
        names.iter().take(20).map(|(topic, partition)| format!("{topic}/{partition}")).collect();
    if names.len() > text.len() {
        text.push(format!("and {} more", names.len() - text.len()));
    }
    text.join(" ")
}
