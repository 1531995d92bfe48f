//! The thread that polls: it collects batches, keeps the windows, commits on its timer and leaves in order.

use std::sync::Arc;
use std::time::{Duration, Instant};

use backstop_core::source::Received;
use backstop_core::{AdapterError, Via};
use rdkafka::Message;
use rdkafka::consumer::Consumer;
use rdkafka::error::KafkaError;
use rdkafka::message::BorrowedMessage;
use rdkafka::types::RDKafkaErrorCode as Code;
use tokio::sync::mpsc::UnboundedSender;

use crate::absence::Absence;
use crate::assignment::{Assigned, KafkaSettlement};
use crate::context::lock;
use crate::decode;
use crate::fault::{code_of, ends_a_source, fault};
use crate::flow::Flow;
use crate::group::Member;
use crate::options::Options;
use crate::queues::Queues;
use crate::start::{QUESTION, ended};
use crate::topics::presence;

/// Messages in one batch at most.
const BATCH: usize = 256;
/// Longest wait for messages or room while there are partitions: how soon the group and the brokers are heard, who do not
/// end it.
const LISTEN: Duration = Duration::from_millis(10);
/// Longest wait without partitions: how soon a source that is closing is noticed.
const IDLE: Duration = Duration::from_millis(50);

/// What goes to the consumer loop.
pub(crate) type Batch = Result<Vec<Received<KafkaSettlement>>, AdapterError>;

/// The polling side of one source. The channel is bounded by what goes through it: every message counts against the
/// windows until it is settled or dropped, and polling stops when they are full.
pub(crate) struct Poller {
    /// Before the member, which they keep alive.
    queues: Queues,
    member: Arc<Member>,
    options: Arc<Options>,
    flow: Arc<Flow>,
    out: UnboundedSender<Batch>,
    next_commit: Instant,
    /// When a mark that failed is tried again.
    next_mark: Instant,
    absence: Absence,
    /// Whether the group is still to be asked for an assignment that fits the subscription.
    to_rejoin: bool,
}

impl Poller {
    pub(crate) fn new(
        member: Arc<Member>,
        options: Arc<Options>,
        flow: Arc<Flow>,
        out: UnboundedSender<Batch>,
    ) -> Self {
        let next_commit = Instant::now() + options.commit_interval;
        let to_rejoin = options.static_member.is_some();
        Self {
            queues: Queues::default(),
            member,
            options,
            flow,
            out,
            next_commit,
            next_mark: Instant::now(),
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
        self.queues.close(&mut lock(&context.table));
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
        self.collect()
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

    /// Hands over what is there and has room; where there is nothing, waits for it.
    fn collect(&mut self) -> Result<(), AdapterError> {
        let mut batch = Vec::new();
        let mut outcome = self.listen(Duration::ZERO, &mut batch);
        self.queues.update(&mut lock(&self.member.context().table));
        if outcome.is_ok() {
            let (options, room) = (&self.options, BATCH.saturating_sub(batch.len()));
            let failed = self.queues.take(room, &self.flow, |message, assigned, via| {
                batch.push(received(options, message, assigned, via));
            });
            outcome = failed.map_or(Ok(()), |error| self.judge(&error));
        }
        if batch.is_empty() && outcome.is_ok() {
            let left = self.next_commit.saturating_duration_since(Instant::now());
            if self.queues.are_none() {
                outcome = self.listen(IDLE.min(left), &mut batch);
            } else {
                self.flow.wait(LISTEN.min(left));
            }
        }
        if !batch.is_empty() {
            self.mark();
            // A closed channel means that the source was dropped; the settlements go with the batch.
            let _ = self.out.send(Ok(batch));
        }
        outcome
    }

    /// Hears what the group and the brokers have to say; rebalances are answered in here. A message comes this way only
    /// where its partition has no queue of its own.
    fn listen(
        &mut self,
        pace: Duration,
        batch: &mut Vec<Received<KafkaSettlement>>,
    ) -> Result<(), AdapterError> {
        let mut heard = self.member.poll(pace);
        let mut outcome = Ok(());
        while let Some(event) = heard {
            match event {
                Ok(message) => {
                    let table = lock(&self.member.context().table);
                    if let Some(slot) = table.get(message.topic(), message.partition()) {
                        batch.push(received(&self.options, &message, &slot.assigned, slot.via));
                    }
                }
                Err(error) => outcome = self.judge(&error),
            }
            if batch.len() >= BATCH || outcome.is_err() {
                break;
            }
            heard = self.member.poll(Duration::ZERO);
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

/// The message as it is handed over.
fn received(
    options: &Options,
    message: &BorrowedMessage<'_>,
    assigned: &Arc<Assigned>,
    via: Via,
) -> Received<KafkaSettlement> {
    let envelope = decode::envelope(message);
    let settlement = assigned.take(message.offset(), envelope.size());
    let door_of = match via {
        Via::Door => options.door_of(message.topic()),
        Via::Live => None,
    };
    decode::received(envelope, message, door_of, options.id_header.as_deref(), settlement)
}
