//! The thread of transactions: it takes along what has been handed over, in the order of each partition, and commits it
//! with the offsets.

use std::collections::BTreeMap;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use backstop_core::pipeline::Output;
use backstop_core::sink::{PublishError, Scope};
use backstop_core::source::Settlement as _;
use backstop_core::{AdapterError, FaultKind};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::{Offset, TopicPartitionList};
use uuid::Uuid;

use crate::assignment::Assigned;
use crate::context::{Asking, Voice};
use crate::exchange::{Entry, Exchange, Order};
use crate::fault::{code_of, coded, fault};
use crate::group::first_error;
use crate::options::{Options, Transactions};
use crate::producer::{Failure, TransactionalProducer, is_fenced};

/// How long nothing is waited for.
const IDLE: Duration = Duration::from_millis(500);
/// How soon it is looked again at what cannot go on by a message alone.
const TICK: Duration = Duration::from_millis(20);
/// How long a partition waits at least whose output is refused.
const REFUSED: Duration = Duration::from_secs(1);
/// How many times as long it waits as it took to be refused: nothing else is committed meanwhile.
const REFUSED_FACTOR: u32 = 10;
/// Waits after failures that follow each other grow from the first to the second.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(500));
/// A producer that is fenced so often within the time shares its id with another one.
const FENCES: (u32, Duration) = (3, Duration::from_secs(60));
/// One question for committed offsets.
const LOOKUP: Duration = Duration::from_secs(5);

/// The state of the thread.
pub(crate) struct Transactor {
    exchange: Arc<Exchange>,
    options: Arc<Options>,
    transactions: Transactions,
    todo: mpsc::Receiver<Order>,
    id: String,
    producer: Option<TransactionalProducer>,
    lines: Vec<Line>,
    /// Since when something can be committed.
    ready: Option<Instant>,
    /// So many messages go one by one, because one of them is refused and it is not known which.
    alone: usize,
    /// What the last commit moved, when it is not known whether it did.
    unsure: Vec<Moved>,
    failures: u32,
    fences: (u32, Instant),
    voice: Voice,
}

/// What was handed over of one partition.
struct Line {
    assigned: Arc<Assigned>,
    /// The number of the first message that is not committed.
    next: u64,
    floor: Option<i64>,
    waiting: BTreeMap<u64, Entry>,
    /// Until when it waits because an output is refused.
    blocked: Option<Instant>,
}

/// How far a transaction brings a partition.
#[derive(Clone)]
struct Moved {
    assigned: Arc<Assigned>,
    /// The number of the first message that is not in it.
    end: u64,
    offset: i64,
}

/// What goes into one transaction.
#[derive(Default)]
struct Chosen {
    moved: Vec<Moved>,
    messages: usize,
    bytes: usize,
    is_full: bool,
}

impl Line {
    fn new(assigned: Arc<Assigned>) -> Self {
        Self { assigned, next: 0, floor: None, waiting: BTreeMap::new(), blocked: None }
    }

    /// Whether what was refused is to be tried again.
    fn is_on_trial(&self) -> bool {
        !self.waiting.is_empty() && self.blocked.is_some_and(|until| Instant::now() >= until)
    }

    /// Takes along what is next, within the bounds.
    fn choose(&self, chosen: &mut Chosen, messages: usize, bytes: usize) {
        let mut moved = self.floor.map(|offset| (self.next, offset));
        for (number, (_, entry)) in (self.next..).zip(self.waiting.range(self.next..)) {
            if entry.settlement.number != number {
                break;
            }
            if chosen.messages >= messages || chosen.bytes >= bytes {
                chosen.is_full = true;
                break;
            }
            chosen.messages += 1;
            chosen.bytes += entry.outputs.iter().map(|output| output.envelope.size()).sum::<usize>();
            moved = Some((number + 1, entry.settlement.offset + 1));
        }
        if let Some((end, offset)) = moved {
            chosen.moved.push(Moved { assigned: self.assigned.clone(), end, offset });
        }
    }

    /// Everything up to there is committed.
    fn advance(&mut self, moved: &Moved) {
        let rest = self.waiting.split_off(&moved.end);
        for entry in std::mem::replace(&mut self.waiting, rest).into_values() {
            entry.settlement.settle();
            entry.aftermath.committed();
        }
        (self.next, self.floor, self.blocked) = (moved.end, None, None);
        self.assigned.stored(moved.offset);
    }
}

impl Transactor {
    pub(crate) fn new(exchange: Arc<Exchange>, options: Arc<Options>, todo: mpsc::Receiver<Order>) -> Self {
        let transactions = options.transactions.clone().unwrap_or_default();
        let fresh = || format!("{}-{}", options.group, Uuid::new_v4().simple());
        let id = transactions.id.clone().unwrap_or_else(fresh);
        Self {
            exchange,
            options,
            transactions,
            todo,
            id,
            producer: None,
            lines: Vec::new(),
            ready: None,
            alone: 0,
            unsure: Vec::new(),
            failures: 0,
            fences: (0, Instant::now()),
            voice: Voice::default(),
        }
    }

    /// Commits until the source has ended, or something cannot be mended by waiting. What is left is dropped, and comes
    /// again to whoever is next.
    pub(crate) fn run(mut self) {
        while !self.exchange.has_ended() {
            if let Err(error) = self.turn() {
                self.exchange.fail(error);
                return;
            }
        }
    }

    fn turn(&mut self) -> Result<(), AdapterError> {
        // Before the first message, so that what a crash has left open is ended as soon as possible.
        if !self.has_producer()? {
            return Ok(());
        }
        self.listen();
        self.tidy();
        let chosen = self.choose();
        if chosen.moved.is_empty() {
            self.ready = None;
            return Ok(());
        }
        let waited = self.ready.get_or_insert_with(Instant::now).elapsed();
        if chosen.is_full || waited >= self.transactions.linger { self.commit(&chosen) } else { Ok(()) }
    }

    /// Waits for something to do.
    fn listen(&mut self) {
        let wait = match self.ready {
            Some(since) => self.transactions.linger.saturating_sub(since.elapsed()),
            None if self.lines.iter().any(|line| !line.waiting.is_empty()) => TICK,
            None => IDLE,
        };
        if let Ok(order) = self.todo.recv_timeout(wait) {
            self.take(order);
        }
        while let Ok(order) = self.todo.try_recv() {
            self.take(order);
        }
    }

    fn take(&mut self, order: Order) {
        match order {
            Order::Commit(entry) => {
                let assigned = entry.settlement.assigned.clone();
                self.line(&assigned).waiting.insert(entry.settlement.number, entry);
            }
            Order::Floor(assigned, floor) => self.line(&assigned).floor = Some(floor),
            Order::Look => {}
        }
    }

    fn line(&mut self, assigned: &Arc<Assigned>) -> &mut Line {
        let at = self.lines.iter().position(|line| Arc::ptr_eq(&line.assigned, assigned));
        let at = at.unwrap_or_else(|| {
            self.lines.push(Line::new(assigned.clone()));
            self.lines.len() - 1
        });
        &mut self.lines[at]
    }

    /// Drops what cannot be committed any more, so that nobody waits for it.
    fn tidy(&mut self) {
        self.lines.retain(|line| !line.assigned.is_gone());
        for line in &mut self.lines {
            if let Some(broken) = line.assigned.broken() {
                line.waiting.split_off(&broken);
            }
            if line.blocked.is_some() && line.assigned.is_revoked() {
                line.waiting.clear();
            }
        }
    }

    fn choose(&self) -> Chosen {
        let most = if self.alone > 0 { 1 } else { self.transactions.messages };
        choose(&self.lines, most, self.transactions.bytes)
    }

    fn commit(&mut self, chosen: &Chosen) -> Result<(), AdapterError> {
        // In this order: a partition that is still ours after the standing was taken was so by that standing, or the
        // brokers refuse it. The other way round, a partition that was lost in between could be committed by the standing
        // of a later membership.
        let standing = self.exchange.standing();
        let is_ours = chosen.moved.iter().all(|moved| !moved.assigned.is_gone());
        let (Some(standing), Some(producer), true) = (standing, &self.producer, is_ours) else {
            thread::sleep(TICK);
            return Ok(());
        };
        let outputs = chosen.moved.iter().flat_map(|moved| self.outputs(moved));
        let began = Instant::now();
        match producer.transact(outputs, &offsets(&chosen.moved), &standing) {
            Ok(()) => {
                self.advance(&chosen.moved);
                self.alone = self.alone.saturating_sub(chosen.messages);
                (self.failures, self.ready) = (0, None);
                // Everybody's turn to be first, where not all find room.
                if !self.lines.is_empty() {
                    self.lines.rotate_left(1);
                }
                Ok(())
            }
            Err(failure) => self.fail(chosen, failure, began.elapsed()),
        }
    }

    fn outputs(&self, moved: &Moved) -> impl Iterator<Item = &Output> {
        let line = self.lines.iter().find(|line| Arc::ptr_eq(&line.assigned, &moved.assigned));
        let entries = line.into_iter().flat_map(|line| line.waiting.range(line.next..moved.end));
        entries.flat_map(|(_, entry)| &entry.outputs)
    }

    fn advance(&mut self, moved: &[Moved]) {
        for moved in moved {
            if let Some(line) =
                self.lines.iter_mut().find(|line| Arc::ptr_eq(&line.assigned, &moved.assigned))
            {
                line.advance(moved);
            }
        }
    }

    fn fail(&mut self, chosen: &Chosen, failure: Failure, took: Duration) -> Result<(), AdapterError> {
        match failure {
            Failure::Refused(error) if chosen.messages == 1 => self.refuse(chosen, &error, took),
            Failure::Refused(error) => {
                tracing::info!(%error, messages = chosen.messages, "kafka: a transaction was aborted and is repeated message by message");
                self.alone = chosen.messages;
            }
            Failure::Aborted(error) => {
                tracing::info!(%error, messages = chosen.messages, "kafka: a transaction was aborted and is repeated");
                self.back_off();
            }
            Failure::Replace { error, unsure } => {
                if unsure {
                    self.unsure.clone_from(&chosen.moved);
                }
                return self.replace(&error);
            }
            Failure::Stop(error) => return Err(error),
            Failure::GivenUp => {}
        }
        Ok(())
    }

    /// One message alone is refused.
    fn refuse(&mut self, chosen: &Chosen, error: &PublishError, took: Duration) {
        self.alone = self.alone.saturating_sub(1);
        let is_guilty = |line: &Line| {
            line.waiting.contains_key(&line.next)
                && chosen.moved.iter().any(|moved| Arc::ptr_eq(&line.assigned, &moved.assigned))
        };
        let Some(line) = self.lines.iter_mut().find(|line| is_guilty(line)) else { return };
        let Some(entry) = line.waiting.get_mut(&line.next) else { return };
        let place = &entry.settlement.assigned.place;
        let (topic, partition, offset) = (&place.topic, place.partition, entry.settlement.offset);
        let instead = if error.scope() == Scope::Message { entry.aftermath.refused(error) } else { None };
        match instead.filter(|instead| *instead != entry.outputs) {
            Some(instead) => entry.outputs = instead,
            None => {
                let hint = error.error().hint();
                tracing::warn!(topic, partition, offset, %error, hint, "kafka: an output of a message cannot be published; its partition waits");
                line.blocked = Some(Instant::now() + REFUSED.max(took * REFUSED_FACTOR));
            }
        }
    }

    /// Lets the producer go. One that is fenced once was away for too long; one that is fenced again and again has a
    /// rival, and goes.
    fn replace(&mut self, error: &KafkaError) -> Result<(), AdapterError> {
        self.producer = None;
        tracing::warn!(%error, id = self.id, "kafka: the transactional producer cannot go on and is made anew");
        // Nobody else has an id that was made up here: its fences are time-outs of the broker's.
        if is_fenced(error) && self.transactions.id.is_some() {
            let (count, since) = self.fences;
            self.fences = if since.elapsed() < FENCES.1 { (count + 1, since) } else { (1, Instant::now()) };
            if self.fences.0 >= FENCES.0 {
                let what = format!("another producer uses the transactional id {}", self.id);
                return Err(AdapterError::new(FaultKind::Conflict, what)
                    .with_hint("give every running instance a transactional id of its own"));
            }
        }
        self.back_off();
        Ok(())
    }

    /// Waits before the next try, longer from time to time.
    fn back_off(&mut self) {
        let wait = BACKOFF.0.saturating_mul(1 << self.failures.min(8)).min(BACKOFF.1);
        self.failures += 1;
        thread::sleep(wait);
    }

    /// Sees to it that there is a producer, and that it is known what the one before has committed.
    fn has_producer(&mut self) -> Result<bool, AdapterError> {
        if self.producer.is_none() {
            let exchange = self.exchange.clone();
            match TransactionalProducer::start(&self.options, &self.transactions, &self.id, exchange) {
                Ok(producer) => self.producer = Some(producer),
                Err(Failure::Stop(error)) => return Err(error),
                Err(Failure::Replace { error, .. } | Failure::Aborted(error)) => {
                    return self.replace(&error).map(|()| false);
                }
                Err(Failure::Refused(_) | Failure::GivenUp) => return Ok(false),
            }
        }
        if self.unsure.is_empty() {
            return Ok(true);
        }
        // The new producer has ended what the old one began, one way or the other, and the offsets tell which.
        self.unsure.retain(|moved| !moved.assigned.is_gone());
        match self.was_committed() {
            Ok(true) => {
                let moved = std::mem::take(&mut self.unsure);
                self.advance(&moved);
            }
            Ok(false) => self.unsure.clear(),
            Err(error) => {
                self.voice.warn("committed offsets", &error.to_string());
                self.back_off();
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether the offsets of the last commit are there. They are all there, or none is; but a partition that went
    /// meanwhile may have been committed further by its new owner, and says nothing of the others.
    fn was_committed(&self) -> Result<bool, AdapterError> {
        if self.unsure.is_empty() {
            return Ok(false);
        }
        let asking = Asking { token: self.options.settings.token_file(), ..Asking::default() };
        let what = "committed offsets could not be read";
        let client: BaseConsumer<Asking> = self
            .options
            .consumer_config()?
            .create_with_context(asking)
            .map_err(|error| fault(what, &error))?;
        let answer =
            client.committed_offsets(offsets(&self.unsure), LOOKUP).map_err(|error| fault(what, &error))?;
        if let Some(error) = first_error(&answer) {
            return Err(code_of(&error).map_or_else(|| fault(what, &error), |code| coded(what, code)));
        }
        let is_there = |moved: &Moved| {
            let place = &moved.assigned.place;
            let found = answer.find_partition(&place.topic, place.partition).map(|element| element.offset());
            matches!(found, Some(Offset::Offset(offset)) if offset >= moved.offset)
        };
        Ok(self.unsure.iter().all(is_there))
    }
}

/// What is next of all partitions. What was refused is tried again by itself, or it would take others down with it time
/// and again.
fn choose(lines: &[Line], messages: usize, bytes: usize) -> Chosen {
    let mut chosen = Chosen::default();
    if let Some(on_trial) = lines.iter().find(|line| line.is_on_trial()) {
        on_trial.choose(&mut chosen, 1, bytes);
    }
    if chosen.moved.is_empty() {
        let free = lines.iter().filter(|line| line.blocked.is_none());
        free.for_each(|line| line.choose(&mut chosen, messages, bytes));
    }
    chosen
}

fn offsets(moved: &[Moved]) -> TopicPartitionList {
    let mut offsets = TopicPartitionList::with_capacity(moved.len());
    for Moved { assigned, offset, .. } in moved {
        offsets
            .add_partition_offset(&assigned.place.topic, assigned.place.partition, Offset::Offset(*offset))
            .expect("offsets that the broker gave out can be represented");
    }
    offsets
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::assignment::Place;
    use crate::flow::Flow;
    use crate::options::Window;
    use backstop_core::pipeline::Aftermath;

    struct Nothing;

    impl Aftermath for Nothing {
        fn refused(&mut self, _: &PublishError) -> Option<Vec<Output>> {
            None
        }

        fn committed(self: Box<Self>) {}
    }

    /// A partition of which so many messages are handed over.
    fn line(partition: i32, messages: i64) -> Line {
        let window = Window { messages: 100, bytes: 1_000 };
        let flow = Arc::new(Flow::new(window, window));
        let place = Place { topic: "orders".to_owned(), partition };
        let assigned = Arc::new(Assigned::new(place, flow, None, None));
        let mut line = Line::new(assigned.clone());
        for offset in 0..messages {
            let settlement = assigned.take(offset, 1);
            let entry = Entry { settlement, outputs: Vec::new(), aftermath: Box::new(Nothing) };
            line.waiting.insert(entry.settlement.number, entry);
        }
        line
    }

    fn chosen(lines: &[Line]) -> Vec<(i32, u64)> {
        let chosen = choose(lines, 100, 1_000);
        chosen.moved.iter().map(|moved| (moved.assigned.place.partition, moved.end)).collect()
    }

    #[test]
    fn what_was_refused_waits_and_is_tried_again_by_itself() {
        let mut lines = [line(0, 3), line(1, 3)];
        assert_eq!(chosen(&lines), [(0, 3), (1, 3)]);
        lines[1].blocked = Some(Instant::now() + Duration::from_secs(600));
        assert_eq!(chosen(&lines), [(0, 3)], "it waits");
        lines[1].blocked = Some(Instant::now());
        assert_eq!(chosen(&lines), [(1, 1)], "alone, and one message");
        lines[1].waiting.clear();
        assert_eq!(chosen(&lines), [(0, 3)], "nothing is left of it");
    }
}
