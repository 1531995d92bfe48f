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
use backstop_core::sink::{PublishError, Sink};
use backstop_core::{Destination, report::cut};
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
    /// The broker did not confirm a letter.
    Publish(PublishError),
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

/// Redrives the letters of a plan that still have the status `from`, until all are sent, one fails, or `stop` is
/// cancelled; what was being sent then is finished.
pub async fn redrive(
    ledger: &dyn Ledger,
    sink: &impl Sink,
    plan: &Plan,
    from: LetterStatus,
    stop: &CancellationToken,
) -> (Summary, Result<(), RedriveError>) {
    let mut summary = Summary { left: plan.len() as u64, ..Summary::default() };
    for ids in plan.ids.chunks(CHUNK) {
        if stop.is_cancelled() {
            break;
        }
        summary.left -= ids.len() as u64;
        if let Err(error) = redrive_chunk(ledger, sink, ids, from, &mut summary).await {
            return (summary, Err(error));
        }
    }
    (summary, Ok(()))
}

async fn redrive_chunk(
    ledger: &dyn Ledger,
    sink: &impl Sink,
    ids: &[String],
    from: LetterStatus,
    summary: &mut Summary,
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
    let (sent, error) = send(sink, letters).await;
    summary.sent += sent.len() as u64;
    let confirmed = tell_history(ledger, &sent).await;
    if let Some(error) = error {
        let sent: HashSet<&String> = sent.iter().collect();
        let unsent: Vec<String> = moved.into_iter().filter(|id| !sent.contains(id)).collect();
        let reason = cut(&with_cause(&error), MAX_REASON);
        let put = put_back(ledger, &unsent, from, &reason).await;
        summary.put_back += put.map_err(|error| RedriveError::Stuck(error, unsent.len() as u64))?;
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

/// Sends letters, those of one door and key one after another, and returns the ids of those that were confirmed and
/// the first error. After an error nothing more of that door and key is sent.
async fn send(sink: &impl Sink, letters: Vec<Letter>) -> (Vec<String>, Option<PublishError>) {
    let mut lanes: Vec<Vec<(String, Letter)>> = Vec::new();
    let mut by_key = HashMap::new();
    for letter in letters {
        // A letter has a door here because its plan said so; one that has lost it meanwhile is put back.
        let Some(door) = door(&letter) else { continue };
        let key = letter.envelope.key.clone();
        let lane = match key {
            Some(key) => *by_key.entry((door.clone(), key)).or_insert(lanes.len()),
            None => lanes.len(),
        };
        if lane == lanes.len() {
            lanes.push(Vec::new());
        }
        lanes[lane].push((door, letter));
    }
    let outcomes = join_all(lanes.into_iter().map(|lane| send_in_order(sink, lane))).await;
    let mut sent = Vec::new();
    let mut first = None;
    for (ids, error) in outcomes {
        sent.extend(ids);
        first = first.or(error);
    }
    (sent, first)
}

async fn send_in_order(sink: &impl Sink, lane: Vec<(String, Letter)>) -> (Vec<String>, Option<PublishError>) {
    let mut sent = Vec::with_capacity(lane.len());
    for (door, letter) in lane {
        let envelope = redrive_envelope(&letter.envelope);
        if let Err(error) = sink.publish(&Destination::new(door), envelope).await {
            return (sent, Some(error));
        }
        sent.push(letter.id);
    }
    (sent, None)
}

#[cfg(test)]
#[path = "redrive_tests.rs"]
mod tests;
