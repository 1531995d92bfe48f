//! Which of the acked messages the broker has returned.
//!
//! The broker acks an unroutable message too, and sends it back before that. lapin queues what is sent back and hands
//! one piece to each confirm that it resolves, in the order of resolving, whomever it belongs to; and one `multiple`
//! ack resolves its confirms in no order. So an ack without a piece proves something only about the moment it was
//! resolved: the queue was empty. From that follows when an acked message is known to be stored:
//!
//! - Its own confirm carried nothing: its piece, had there been one, would have been in the queue before its ack, and
//!   so has been handed out before.
//! - A confirm resolved later carried nothing: the same.
//! - Nothing is under way: the queue never holds more pieces than there are returned messages unconfirmed, because a
//!   piece joins it with such a message and each confirm takes one.
//!
//! Otherwise it is held back. "Handed out before" is "seen" only because words come in complete batches: with a word,
//! everything resolved before it is in the same batch or an earlier one, see [`Flights`](super::flights::Flights).

use std::collections::HashMap;

use lapin::message::BasicReturnMessage;
use lapin::types::ShortString;

use super::backlog::Job;
use crate::error::Failure;

/// A message that the broker has sent back, as far as it is needed to recognise it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Returned {
    pub(super) exchange: ShortString,
    pub(super) routing_key: ShortString,
    pub(super) message_id: Option<ShortString>,
    pub(super) body: Vec<u8>,
}

impl From<BasicReturnMessage> for Returned {
    fn from(message: BasicReturnMessage) -> Self {
        let delivery = message.delivery;
        Self {
            exchange: delivery.exchange,
            routing_key: delivery.routing_key,
            message_id: delivery.properties.message_id().clone(),
            body: delivery.data,
        }
    }
}

/// An ack or nack of one message, and the piece that its confirm carried.
#[derive(Debug)]
pub(super) struct Word {
    pub(super) job: Job,
    pub(super) stored: bool,
    pub(super) carried: Option<Returned>,
}

/// Messages that are acked and may yet turn out to have been returned.
#[derive(Debug, Default)]
pub(super) struct Returns {
    held: Vec<Job>,
}

impl Returns {
    pub(super) fn len(&self) -> usize {
        self.held.len()
    }

    /// Takes in a complete batch of words and appends whatever is certain by now to `settled`. `under_way` are the
    /// messages without a word; `complete` says that there are none and that lapin has handed out every piece.
    pub(super) fn sort(
        &mut self,
        words: Vec<Word>,
        under_way: &mut HashMap<u64, Job>,
        complete: bool,
        settled: &mut Vec<(Job, Result<(), Failure>)>,
    ) {
        let some_carried_nothing = words.iter().any(|word| word.carried.is_none());
        let mut sure = Vec::with_capacity(words.len());
        let mut unsure = Vec::new();
        let mut strays = Vec::new();
        for Word { mut job, stored, carried } in words {
            let carried_nothing = carried.is_none();
            match carried {
                Some(piece) if job.is(&piece) => job.returned = true,
                other => strays.extend(other),
            }
            if !stored {
                let failure = Failure::refused(&job.address.describe());
                settled.push((job, Err(failure)));
            } else if carried_nothing || job.returned {
                sure.push(job);
            } else {
                unsure.push(job);
            }
        }
        for piece in &strays {
            let acked = sure.iter_mut().chain(&mut unsure).chain(&mut self.held);
            attribute(piece, acked.chain(under_way.values_mut()));
        }
        self.decide(some_carried_nothing, sure, settled);
        self.held.append(&mut unsure);
        self.decide(complete, Vec::new(), settled);
    }

    /// Settles `sure`, and of what is held whatever has been returned or, if `all` is known, everything.
    fn decide(&mut self, all: bool, mut sure: Vec<Job>, settled: &mut Vec<(Job, Result<(), Failure>)>) {
        sure.extend(self.held.extract_if(.., |job| all || job.returned));
        settled.extend(sure.into_iter().map(|job| {
            let word = if job.returned { Err(Failure::unroutable(&job.address.describe())) } else { Ok(()) };
            (job, word)
        }));
    }

    /// Takes out everything undecided.
    pub(super) fn take_all(&mut self) -> Vec<Job> {
        std::mem::take(&mut self.held)
    }
}

/// Marks the message that the piece is.
fn attribute<'a>(piece: &Returned, mut jobs: impl Iterator<Item = &'a mut Job>) {
    match jobs.find(|job| job.is(piece)) {
        Some(job) => job.returned = true,
        None => tracing::warn!(
            exchange = %piece.exchange,
            routing_key = %piece.routing_key,
            "the broker returned a message that is not under way"
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, VecDeque};

    use backstop_core::Envelope;
    use backstop_core::message::Destination;

    use super::*;
    use crate::address::Address;

    struct Dice(u64);

    impl Dice {
        /// A number below `bound`.
        fn roll(&mut self, bound: usize) -> usize {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            usize::try_from(self.0 >> 33).expect("valid") % bound
        }
    }

    /// A broker behind lapin's bookkeeping of one channel.
    #[derive(Default)]
    struct Channel {
        /// Published, neither returned nor ready to be confirmed.
        fresh: Vec<u64>,
        /// To be confirmed.
        ready: Vec<u64>,
        waiting: VecDeque<Returned>,
        resolved: VecDeque<(u64, Option<Returned>)>,
    }

    impl Channel {
        /// The broker does one thing.
        fn act(&mut self, dice: &mut Dice, missing: impl Fn(u64) -> bool) {
            if !self.fresh.is_empty() && dice.roll(3) > 0 {
                let number = self.fresh.swap_remove(dice.roll(self.fresh.len()));
                if missing(number) {
                    self.waiting.push_back(piece(number));
                }
                return self.ready.push(number);
            }
            // one ack of many, resolved in no order
            let several = if dice.roll(2) == 0 { 1 } else { 1 + dice.roll(self.ready.len().max(1)) };
            for _ in 0..several.min(self.ready.len()) {
                let number = self.ready.swap_remove(dice.roll(self.ready.len()));
                self.resolved.push_back((number, self.waiting.pop_front()));
            }
        }
    }

    fn piece(number: u64) -> Returned {
        let id = number.to_string();
        Returned {
            exchange: "x".into(),
            routing_key: "k".into(),
            message_id: Some(id.clone().into()),
            body: id.into(),
        }
    }

    fn job(number: u64) -> Job {
        let id = number.to_string();
        let envelope = Envelope {
            headers: [("amqp:message-id", Some(id.clone()))].into_iter().collect(),
            body: Some(id.into()),
            ..Envelope::default()
        };
        Job::new(number, None, Address::of(&Destination::exchange("x", "k")).expect("valid"), envelope)
            .expect("valid")
    }

    /// Publishes `count` messages, `window` of them at once, and answers which passed for stored.
    fn run(seed: u64, count: u64, window: usize, missing: impl Fn(u64) -> bool) -> BTreeMap<u64, bool> {
        let mut dice = Dice(seed);
        let (mut channel, mut returns) = (Channel::default(), Returns::default());
        let mut under_way = HashMap::new();
        let (mut next, mut settled) = (0, Vec::new());
        while settled.len() < usize::try_from(count).expect("valid") {
            while next < count && under_way.len() + returns.len() < window {
                under_way.insert(next, job(next));
                channel.fresh.push(next);
                next += 1;
            }
            for _ in 0..=dice.roll(2 * window) {
                channel.act(&mut dice, &missing);
            }
            // a batch is whatever has been resolved up to some moment
            let batch = dice.roll(channel.resolved.len() + 1);
            let word = |(number, carried)| {
                let job = under_way.remove(&number).expect("under way");
                Word { job, stored: true, carried }
            };
            let words = channel.resolved.drain(..batch).map(word).collect();
            let complete = under_way.is_empty();
            returns.sort(words, &mut under_way, complete, &mut settled);
        }
        assert_eq!(returns.len(), 0);
        settled.into_iter().map(|(job, word)| (job.ticket, word.is_ok())).collect()
    }

    /// F32, F34: in every order in which returns and confirms may come.
    #[test]
    fn no_returned_message_passes_for_stored() {
        for seed in 0..200 {
            assert!(run(seed, 300, 50, |_| true).values().all(|stored| !stored), "seed {seed}");
        }
    }

    #[test]
    fn returned_and_stored_are_told_apart() {
        for seed in 0..600 {
            let share = seed % 7 + 1;
            let missing = |number: u64| number * 2_654_435_761 % 8 < share;
            let wrong = run(seed, 300, 1 + usize::try_from(seed % 60).expect("valid"), missing)
                .into_iter()
                .find(|(number, stored)| *stored == missing(*number));
            assert_eq!(wrong, None, "seed {seed}");
        }
    }

    /// One that the broker never confirms must not keep the others from being told.
    #[test]
    fn what_is_held_back_is_told_with_the_next_confirm_that_carries_nothing() {
        let mut returns = Returns::default();
        let mut under_way: HashMap<_, _> = (1..=4).map(|number| (number, job(number))).collect();
        let mut settled = Vec::new();
        let mut word = |number, carried: Option<u64>, settled: &mut Vec<_>| {
            let word = Word {
                job: under_way.remove(&number).expect("under way"),
                stored: true,
                carried: carried.map(piece),
            };
            returns.sort(vec![word], &mut under_way, false, settled);
            settled.drain(..).map(|(job, word)| (job.ticket, word.is_ok())).collect::<Vec<_>>()
        };
        assert_eq!(word(1, Some(2), &mut settled), [], "its own piece may wait behind");
        assert_eq!(word(3, None, &mut settled), [(3, true), (1, true)]);
        assert_eq!(word(2, None, &mut settled), [(2, false)]);
    }
}
