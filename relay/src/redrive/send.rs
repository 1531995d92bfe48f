//! Sends letters to where they belong, those of one target and key one after another.

use std::collections::{HashMap, HashSet};

use backstop_core::dead_letter::redrive_envelope;
use backstop_core::ledger::{BEHIND_REFUSED, Guard, Letter, Sent};
use backstop_core::report::cut;
use backstop_core::sink::{PublishError, Scope, Sink};
use backstop_core::{Destination, Envelope, names};
use bytes::Bytes;
use futures_util::future::join_all;

use crate::encryption::Keyring;
use crate::exit::with_cause;
use crate::redact::is_redacted;

/// Longest reason in a letter's history, in bytes.
const MAX_REASON: usize = 1_000;

/// What became of some letters.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// Each letter that is settled, by its id.
    pub(super) settled: Vec<(String, Sent)>,
    /// The broker takes nothing now: letters that are not settled are to be sent again.
    pub(super) broker: Option<PublishError>,
    /// A target takes nothing now: its letters are put back.
    pub(super) target: Option<(String, PublishError)>,
}

/// Letters of one target and key, which go one after another; or a single one without a key.
struct Lane {
    target: String,
    foreign: bool,
    letters: Vec<Letter>,
}

/// Sends letters of the redrive `id`; after an error nothing more of that target and key.
pub(super) async fn send(
    sink: &impl Sink,
    keys: &Keyring,
    id: &str,
    guard: &Guard,
    letters: Vec<Letter>,
) -> Outcome {
    let mut outcome = Outcome::default();
    let lanes = lanes(letters, keys, guard, &mut outcome);
    for (lane, sent, error) in join_all(lanes.into_iter().map(|lane| send_in_order(sink, id, lane))).await {
        note(lane, sent, error, &mut outcome);
    }
    outcome
}

/// Sorts letters into lanes, with their bodies as they were; those that cannot be sent go to the outcome.
fn lanes(letters: Vec<Letter>, keys: &Keyring, guard: &Guard, outcome: &mut Outcome) -> Vec<Lane> {
    let mut lanes: Vec<Lane> = Vec::new();
    let mut by_key = HashMap::<(String, Bytes), usize>::new();
    let mut stuck = HashSet::<(String, Bytes)>::new();
    for mut letter in letters {
        let target = guard.target(&letter).map(str::to_owned);
        let lane = target.clone().zip(letter.envelope.key.clone());
        if is_redacted(&letter.envelope) {
            let reason = "it was redacted: its message is no longer what it was".to_owned();
            stuck.extend(lane);
            outcome.settled.push((letter.id, Sent::Refused(reason)));
            continue;
        }
        let Some(target) = target else {
            outcome.settled.push((letter.id, Sent::Refused("it has no door any more".to_owned())));
            continue;
        };
        if lane.as_ref().is_some_and(|lane| stuck.contains(lane)) {
            outcome.settled.push((letter.id, Sent::Refused(BEHIND_REFUSED.to_owned())));
            continue;
        }
        if let Err(locked) = keys.open(&mut letter) {
            // It can be sent once its key is there: later letters of its key wait for that.
            stuck.extend(lane);
            outcome.settled.push((letter.id, Sent::Refused(format!("{locked}; {}", locked.hint()))));
            continue;
        }
        let next = lanes.len();
        let at = lane.map_or(next, |lane| *by_key.entry(lane).or_insert(next));
        if at == next {
            let foreign = letter.sound_door().is_none();
            lanes.push(Lane { target, foreign, letters: Vec::new() });
        }
        lanes[at].letters.push(letter);
    }
    lanes
}

/// Returns how many letters of the lane were confirmed, and the error of the next.
async fn send_in_order(sink: &impl Sink, id: &str, lane: Lane) -> (Lane, usize, Option<PublishError>) {
    let destination = Destination::new(lane.target.clone());
    for (sent, letter) in lane.letters.iter().enumerate() {
        if let Err(error) = sink.publish(&destination, envelope(letter, id)).await {
            return (lane, sent, Some(error));
        }
    }
    let sent = lane.letters.len();
    (lane, sent, None)
}

fn envelope(letter: &Letter, id: &str) -> Envelope {
    let mut envelope = redrive_envelope(&letter.envelope);
    envelope.headers.set(names::REDRIVE_ID, id.to_owned());
    envelope
}

fn note(lane: Lane, sent: usize, error: Option<PublishError>, outcome: &mut Outcome) {
    let confirmed = if lane.foreign { Sent::Unanswered } else { Sent::Confirmed };
    let mut ids = lane.letters.into_iter().map(|letter| letter.id);
    outcome.settled.extend(ids.by_ref().take(sent).map(|id| (id, confirmed.clone())));
    let Some(error) = error else { return };
    match error.scope() {
        Scope::Broker => drop(outcome.broker.get_or_insert(error)),
        Scope::Destination => {
            outcome.settled.extend(ids.map(|id| (id, Sent::NotTried)));
            outcome.target.get_or_insert((lane.target, error));
        }
        Scope::Message => {
            let reason = cut(&with_cause(&error), MAX_REASON);
            outcome.settled.extend(ids.by_ref().take(1).map(|id| (id, Sent::Refused(reason.clone()))));
            let behind = Sent::Refused(BEHIND_REFUSED.to_owned());
            outcome.settled.extend(ids.map(|id| (id, behind.clone())));
        }
    }
}
