//! Sends letters of the ledger to their consumer again, through its door.
//!
//! The letters are chosen once, when the plan is made; what fails later is not swept along. Each is marked
//! `redriving` before it is sent, so that two operators cannot send it twice, and is put back when the broker does
//! not confirm it. Letters of one key go one after another, in the ledger's order. A letter that a crash left in
//! `redriving` may be sent again by asking for that status: its consumer's inbox absorbs the copy.

use std::collections::{BTreeMap, HashMap, HashSet};

use backstop_core::AdapterError;
use backstop_core::dead_letter::{door_of_letters, redrive_envelope};
use backstop_core::ledger::{Ledger, Letter, LetterFilter, LetterStatus};
use backstop_core::sink::{PublishError, Scope, Sink};
use backstop_core::{Destination, report::cut};
use bytes::Bytes;
use futures_util::future::join_all;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::exit::with_cause;

/// Letters that are marked and sent together.
const CHUNK: usize = 100;
/// Letters in one page of the ledger while planning.
const PAGE: u32 = 500;
/// Longest reason in a letter's history, in bytes.
const MAX_REASON: usize = 1_000;

/// Which letters are to be redriven, and where to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// Letters that can be redriven, by consumer, reason and door.
    pub groups: Vec<Group>,
    /// Letters that cannot, because they have no door.
    pub without_door: u64,
    /// Their ids, in the ledger's order.
    #[serde(skip)]
    ids: Vec<String>,
}

/// Letters that have consumer, reason and door in common.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Group {
    /// Consumer; `None` where the letters do not say.
    pub consumer: Option<String>,
    /// Why they were given up.
    pub reason: Option<String>,
    /// Where they are sent.
    pub door: String,
    /// How many.
    pub letters: u64,
}

/// What became of a redrive.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// Letters that the broker has confirmed.
    pub sent: u64,
    /// Letters that somebody else had taken meanwhile.
    pub taken: u64,
    /// Letters that were put back.
    pub put_back: u64,
    /// Letters that were not tried any more.
    pub left: u64,
}

/// Why a redrive stopped.
#[derive(Debug)]
pub enum RedriveError {
    /// The ledger's database failed.
    Ledger(AdapterError),
    /// The broker takes nothing now.
    Publish(PublishError),
    /// Letters were refused and put back, with those behind them; the others were sent. The first refusal.
    Refused(PublishError),
    /// The ledger's database failed while letters were to be put back, so that these stay in `redriving`.
    Stuck(AdapterError, u64),
}

impl Plan {
    /// How many letters can be redriven.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// Chooses letters, oldest first, at most `limit` of those that have a door.
    ///
    /// # Errors
    /// When the ledger cannot be asked.
    pub async fn make(
        ledger: &dyn Ledger,
        filter: &LetterFilter,
        limit: Option<u32>,
    ) -> Result<Self, AdapterError> {
        let mut plan = Self::default();
        let mut groups = BTreeMap::<_, u64>::new();
        let limit = limit.map_or(usize::MAX, |limit| limit as usize);
        let mut after = None;
        while plan.len() < limit {
            let page = ledger.list(filter, after.as_deref(), PAGE).await?;
            let Some(last) = page.last() else { break };
            after = Some(last.id.clone());
            for letter in page {
                match door(&letter) {
                    None => plan.without_door += 1,
                    Some(_) if plan.len() >= limit => break,
                    Some(door) => {
                        *groups.entry((letter.consumer, letter.reason, door)).or_default() += 1;
                        plan.ids.push(letter.id);
                    }
                }
            }
        }
        let group = |((consumer, reason, door), letters)| Group { consumer, reason, door, letters };
        plan.groups = groups.into_iter().map(group).collect();
        Ok(plan)
    }
}

/// The letter's door. The ledger's word is checked against the place where the letter was found, so that a row that
/// was tampered with reaches no other destination.
fn door(letter: &Letter) -> Option<String> {
    letter.door.clone().filter(|door| door_of_letters(&letter.found_in).as_ref() == Some(door))
}

/// Redrives the letters of a plan that still have the status `from`, until all have been tried, the broker fails, or
/// `stop` is cancelled; what was being sent then is finished. A letter that is refused is put back, and with it the
/// later ones of its door and key, or of its door when that is what refuses; others go on.
pub async fn redrive(
    ledger: &dyn Ledger,
    sink: &impl Sink,
    plan: &Plan,
    from: LetterStatus,
    stop: &CancellationToken,
) -> (Summary, Result<(), RedriveError>) {
    let mut summary = Summary { left: plan.len() as u64, ..Summary::default() };
    let mut refusals = Refusals::default();
    for ids in plan.ids.chunks(CHUNK) {
        if stop.is_cancelled() {
            break;
        }
        summary.left -= ids.len() as u64;
        if let Err(error) = redrive_chunk(ledger, sink, ids, from, &mut summary, &mut refusals).await {
            return (summary, Err(error));
        }
    }
    (summary, refusals.first.map_or(Ok(()), |first| Err(RedriveError::Refused(first))))
}

async fn redrive_chunk(
    ledger: &dyn Ledger,
    sink: &impl Sink,
    ids: &[String],
    from: LetterStatus,
    summary: &mut Summary,
    refusals: &mut Refusals,
) -> Result<(), RedriveError> {
    let moved = ledger.mark(ids, from, LetterStatus::Redriving, "redriving", None).await;
    let moved = moved.map_err(RedriveError::Ledger)?;
    summary.taken += (ids.len() - moved.len()) as u64;
    if moved.is_empty() {
        return Ok(());
    }
    let filter = LetterFilter { ids: moved.clone(), ..LetterFilter::default() };
    let letters = match ledger.list(&filter, None, CHUNK as u32).await {
        Ok(letters) => letters,
        Err(error) => {
            let put = put_back(ledger, &moved, from, "the ledger could not be read").await;
            summary.put_back += put.map_err(|error| RedriveError::Stuck(error, moved.len() as u64))?;
            return Err(RedriveError::Ledger(error));
        }
    };
    let Outcome { sent, unsent, broker } = send(sink, letters, refusals).await;
    summary.sent += sent.len() as u64;
    let confirmed = tell_history(ledger, &sent).await;
    let mut stuck: u64 = unsent.values().map(|ids| ids.len() as u64).sum();
    for (reason, ids) in unsent {
        let put = put_back(ledger, &ids, from, &reason).await;
        summary.put_back += put.map_err(|error| RedriveError::Stuck(error, stuck))?;
        stuck -= ids.len() as u64;
    }
    if let Some(error) = broker {
        return Err(RedriveError::Publish(error));
    }
    confirmed.map_err(RedriveError::Ledger)
}

async fn tell_history(ledger: &dyn Ledger, sent: &[String]) -> Result<(), AdapterError> {
    const REDRIVING: LetterStatus = LetterStatus::Redriving;
    if sent.is_empty() {
        return Ok(());
    }
    ledger.mark(sent, REDRIVING, REDRIVING, "redriven", Some("confirmed by the broker")).await.map(drop)
}

async fn put_back(
    ledger: &dyn Ledger,
    ids: &[String],
    to: LetterStatus,
    reason: &str,
) -> Result<u64, AdapterError> {
    let back = ledger.mark(ids, LetterStatus::Redriving, to, "redrive-failed", Some(reason)).await?;
    Ok(back.len() as u64)
}

/// What was refused in this redrive, and what must therefore not be sent.
#[derive(Default)]
struct Refusals {
    first: Option<PublishError>,
    doors: HashSet<String>,
    keys: HashSet<(String, Bytes)>,
}

impl Refusals {
    fn hold_back(&self, door: &str, key: Option<&Bytes>) -> bool {
        self.doors.contains(door)
            || key.is_some_and(|key| self.keys.contains(&(door.to_owned(), key.clone())))
    }

    fn add(&mut self, door: String, key: Option<Bytes>, error: PublishError) {
        match (error.scope(), key) {
            (Scope::Destination, _) => drop(self.doors.insert(door)),
            (_, Some(key)) => drop(self.keys.insert((door, key))),
            (_, None) => {}
        }
        self.first.get_or_insert(error);
    }
}

/// What became of a chunk.
#[derive(Default)]
struct Outcome {
    /// Ids of letters that the broker has confirmed.
    sent: Vec<String>,
    /// Ids of the others, by the reason why.
    unsent: BTreeMap<String, Vec<String>>,
    /// The broker failed.
    broker: Option<PublishError>,
}

/// Letters of one door and key, which go one after another; or a single one without a key.
struct Lane {
    door: String,
    key: Option<Bytes>,
    letters: Vec<Letter>,
}

/// Sends letters, those of one door and key one after another; after an error nothing more of that lane.
async fn send(sink: &impl Sink, letters: Vec<Letter>, refusals: &mut Refusals) -> Outcome {
    let mut outcome = Outcome::default();
    let lanes = lanes(letters, refusals, &mut outcome);
    for (lane, sent, error) in join_all(lanes.into_iter().map(|lane| send_in_order(sink, lane))).await {
        let mut ids = lane.letters.into_iter().map(|letter| letter.id);
        outcome.sent.extend(ids.by_ref().take(sent));
        let Some(error) = error else { continue };
        outcome.unsent.entry(cut(&with_cause(&error), MAX_REASON)).or_default().extend(ids);
        match error.scope() {
            Scope::Broker => drop(outcome.broker.get_or_insert(error)),
            Scope::Destination | Scope::Message => refusals.add(lane.door, lane.key, error),
        }
    }
    outcome
}

/// Sorts letters into lanes; those that must not be sent go to the outcome.
fn lanes(letters: Vec<Letter>, refusals: &Refusals, outcome: &mut Outcome) -> Vec<Lane> {
    let mut lanes: Vec<Lane> = Vec::new();
    let mut by_key = HashMap::new();
    for letter in letters {
        let key = letter.envelope.key.clone();
        // A letter has a door here because its plan said so, unless it has lost it meanwhile.
        let unsent = match door(&letter) {
            None => "it has no door any more",
            Some(door) if refusals.hold_back(&door, key.as_ref()) => "an earlier letter was refused",
            Some(door) => {
                let next = lanes.len();
                let at = match &key {
                    Some(key) => *by_key.entry((door.clone(), key.clone())).or_insert(next),
                    None => next,
                };
                if at == next {
                    lanes.push(Lane { door, key, letters: Vec::new() });
                }
                lanes[at].letters.push(letter);
                continue;
            }
        };
        outcome.unsent.entry(unsent.to_owned()).or_default().push(letter.id);
    }
    lanes
}

/// Returns how many letters of the lane were confirmed, and the error of the next.
async fn send_in_order(sink: &impl Sink, lane: Lane) -> (Lane, usize, Option<PublishError>) {
    let destination = Destination::new(lane.door.clone());
    for (sent, letter) in lane.letters.iter().enumerate() {
        if let Err(error) = sink.publish(&destination, redrive_envelope(&letter.envelope)).await {
            return (lane, sent, Some(error));
        }
    }
    let sent = lane.letters.len();
    (lane, sent, None)
}

#[cfg(test)]
#[path = "redrive_tests.rs"]
mod tests;
