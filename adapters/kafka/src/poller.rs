//! The thread that polls: it collects batches, keeps the windows, commits on its timer and leaves in order.

use std::sync::Arc;
use std::time::{Duration, Instant};

use backstop_core::source::Received;
use backstop_core::{AdapterError, Via};
use rdkafka::consumer::Consumer;
use rdkafka::error::KafkaError;
use rdkafka::message::BorrowedMessage;
use rdkafka::types::RDKafkaErrorCode as Code;
use rdkafka::{Message, TopicPartitionList};
use tokio::sync::mpsc::UnboundedSender;

use crate::absence::Absence;
use crate::assignment::KafkaSettlement;
use crate::context::lock;
use crate::decode;
use crate::fault::{code_of, ends_a_source, fault};
use crate::flow::Flow;
use crate::group::{Member, Slot};
use crate::options::Options;
use crate::start::{QUESTION, ended};
use crate::topics::presence;

/// Messages in one batch at most.
const BATCH: usize = 256;
/// Longest poll while nothing is paused: how soon a source that is closing is noticed.
const IDLE: Duration = Duration::from_millis(50);
/// Longest poll while some partitions are paused: how soon they resume.
const PAUSED: Duration = Duration::from_millis(2);
/// Longest wait while all partitions are paused; room again ends it at once.
const STANDING: Duration = Duration::from_millis(20);
/// How long a full window is given before its partition is paused: librdkafka throws away what it has fetched of a
/// paused partition and fetches it again, which a handler that is only a little slower is not worth.
const GRACE: Duration = Duration::from_millis(10);

/// What goes to the consumer loop.
pub(crate) type Batch = Result<Vec<Received<KafkaSettlement>>, AdapterError>;

/// The polling side of one source. The channel is bounded by what goes through it: every message counts against the
/// windows until it is settled or dropped, and polling stops when they are full.
pub(crate) struct Poller {
    member: Member,
    options: Arc<Options>,
    flow: Arc<Flow>,
    out: UnboundedSender<Batch>,
    next_commit: Instant,
    /// When a mark that failed is tried again.
    next_mark: Instant,
    paused: usize,
    crowded: bool,
    absence: Absence,
    /// Whether the group is still to be asked for an assignment that fits the subscription.
    to_rejoin: bool,
}

impl Poller {
    pub(crate) fn new(
        member: Member,
        options: Arc<Options>,
        flow: Arc<Flow>,
        out: UnboundedSender<Batch>,
    ) -> Self {
        let next_commit = Instant::now() + options.commit_interval;
        let to_rejoin = options.static_member.is_some();
        Self {
            member,
            options,
            flow,
            out,
            next_commit,
            next_mark: Instant::now(),
            paused: 0,
            crowded: false,
            absence: Absence::default(),
            to_rejoin,
        }
    }

    /// Polls until the source is closed or something ends it, then gives everything back.
    pub(crate) fn run(mut self) -> Result<(), AdapterError> {
        while !self.flow.is_closing() && !self.out.is_closed() {
            if let Err(error) = self.turn() {
                self.flow.close();
                // The loop hears of it at once, so that it can end what has begun.
                let _ = self.out.send(Err(error));
            }
        }
        self.flow.close();
        let context = self.member.context();
        let settled = context.settle_all(&self.member);
        // Leaving may take its time, and transactions have nothing to wait for any more.
        context.exchange.iter().for_each(|exchange| exchange.end());
        context.leaves();
        settled
    }

    fn turn(&mut self) -> Result<(), AdapterError> {
        if let Some(failure) = self.member.context().take_failure() {
            return Err(failure);
        }
        if let Some(exchange) = &self.member.context().exchange {
            exchange.stand(&self.member);
        }
        // How far suspects are is told as soon as it is known: whoever comes next is to examine the others.
        if Instant::now() >= self.next_commit || self.member.context().is_suspicious() {
            self.member.context().commit_moved(&self.member);
            self.next_commit = Instant::now() + self.options.commit_interval;
        }
        if self.to_rejoin && self.member.context().has_joined() {
            self.to_rejoin = false;
            self.rejoin()?;
        }
        let (member, options) = (&self.member, &self.options);
        self.absence.look(Instant::now(), options.named_topics(), |topic| {
            presence(member.client(), topic, QUESTION)
        })?;
        let pace = self.regulate()?;
        self.collect(pace)
    }

    /// Subscribes to the same once more. A static member is given at first what the one before it had, although topics
    /// may have come since that match its patterns; a member that asks again is given what fits.
    fn rejoin(&self) -> Result<(), AdapterError> {
        let failed = |error: KafkaError| fault("the topics could not be subscribed to", &error);
        let subscription = self.member.subscription().map_err(failed)?;
        let topics: Vec<String> =
            subscription.elements().iter().map(|element| element.topic().to_owned()).collect();
        let topics: Vec<&str> = topics.iter().map(String::as_str).collect();
        self.member.subscribe(&topics).map_err(failed)
    }

    /// Pauses what is full, resumes what has room again; how long to poll.
    fn regulate(&mut self) -> Result<Duration, AdapterError> {
        if std::mem::take(&mut self.crowded) && !self.has_drained() {
            self.pause_full();
        }
        // Counted each time, because a rebalance takes paused partitions away and brings fresh ones.
        let (paused, all) = {
            let table = lock(&self.member.context().table);
            table
                .iter()
                .fold((0, 0), |(paused, all), (_, _, slot)| (paused + usize::from(slot.paused), all + 1))
        };
        self.paused = paused;
        if paused == 0 {
            let left = self.next_commit.saturating_duration_since(Instant::now());
            return Ok(IDLE.min(left));
        }
        if self.resume_relieved() == 0 && paused == all {
            self.flow.wait(STANDING);
            return Ok(Duration::ZERO);
        }
        Ok(PAUSED)
    }

    /// Gives full windows a short while; whether that was enough.
    fn has_drained(&self) -> bool {
        let deadline = Instant::now() + GRACE;
        loop {
            let roomy = |slot: &Slot| slot.paused || slot.assigned.has_room();
            let drained = self.flow.has_room()
                && lock(&self.member.context().table).iter().all(|(_, _, slot)| roomy(slot));
            if drained || Instant::now() >= deadline || self.flow.is_closing() {
                return drained;
            }
            self.flow.wait(Duration::from_millis(1));
        }
    }

    fn pause_full(&self) {
        let total = self.flow.is_full();
        self.switch(true, |slot| !slot.paused && (total || slot.assigned.is_full()));
    }

    fn resume_relieved(&self) -> usize {
        if !self.flow.is_relieved() {
            return 0;
        }
        self.switch(false, |slot| slot.paused && slot.assigned.is_relieved())
    }

    /// Pauses or resumes the partitions chosen; how many there were.
    fn switch(&self, pause: bool, chosen: impl Fn(&Slot) -> bool) -> usize {
        let mut table = lock(&self.member.context().table);
        let mut partitions = TopicPartitionList::new();
        for (topic, partition, slot) in table.iter_mut().filter(|(_, _, slot)| chosen(slot)) {
            partitions.add_partition(topic, partition);
            slot.paused = pause;
        }
        drop(table);
        if partitions.count() > 0 {
            let result = if pause { self.member.pause(&partitions) } else { self.member.resume(&partitions) };
            if let Err(error) = result {
                tracing::warn!(%error, pause, "kafka: partitions could not be paused or resumed");
            }
        }
        partitions.count()
    }

    /// Waits for a first message and takes along what is there already.
    fn collect(&mut self, pace: Duration) -> Result<(), AdapterError> {
        let mut batch = Vec::new();
        let mut polled = self.member.poll(pace);
        let mut outcome = Ok(());
        while let Some(event) = polled {
            match event {
                Ok(message) => {
                    let (received, full) = self.admit(&message);
                    batch.extend(received);
                    self.crowded = full;
                }
                Err(error) => outcome = self.judge(&error),
            }
            if batch.len() >= BATCH || self.crowded || outcome.is_err() {
                break;
            }
            polled = self.member.poll(Duration::ZERO);
        }
        if !batch.is_empty() {
            self.mark();
            // A closed channel means that the source was dropped; the settlements go with the batch.
            let _ = self.out.send(Ok(batch));
        }
        outcome
    }

    /// Has it stored that messages are under way, before they are. While that fails it is tried from time to time only:
    /// nothing is polled meanwhile.
    fn mark(&mut self) {
        let began = Instant::now();
        if began >= self.next_mark && !self.member.context().mark_dirty(&self.member) {
            let pause = began.elapsed() * 10;
            self.next_mark = Instant::now() + pause.max(self.options.commit_interval);
        }
    }

    /// The message as it is handed over, and whether a window is full with it.
    fn admit(&self, message: &BorrowedMessage<'_>) -> (Option<Received<KafkaSettlement>>, bool) {
        let (assigned, via) = {
            let table = lock(&self.member.context().table);
            match table.get(message.topic(), message.partition()) {
                Some(slot) => (slot.assigned.clone(), slot.via),
                None => return (None, false),
            }
        };
        let envelope = decode::envelope(message);
        let settlement = assigned.take(message.offset(), envelope.size());
        let door_of = match via {
            Via::Door => self.options.door_of(message.topic()),
            Via::Live => None,
        };
        let received =
            decode::received(envelope, message, door_of, self.options.id_header.as_deref(), settlement);
        (Some(received), assigned.is_full() || self.flow.is_full())
    }

    /// Whether an error ends the source.
    fn judge(&mut self, error: &KafkaError) -> Result<(), AdapterError> {
        let fatal = matches!(error, KafkaError::MessageConsumptionFatal(_));
        match code_of(error) {
            Some(code) if fatal || ends_a_source(code) => Err(ended(&self.member, error, code)),
            Some(Code::UnknownTopicOrPartition | Code::UnknownTopic | Code::UnknownTopicId) => {
                // A door that is missing was told at start-up; a topic that is missing ends the source.
                self.absence.suspect();
                Ok(())
            }
            _ => {
                let voice = &self.member.context().voice;
                voice.warn("the consumer waits", &error.to_string());
                voice.refusal().map_or(Ok(()), Err)
            }
        }
    }
}
