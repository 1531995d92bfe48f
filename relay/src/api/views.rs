//! What the API tells, field by field.

use std::collections::BTreeMap;

use backstop_core::ledger::{
    Letter, LetterEvent, LetterMinute, PlanGroup, Redrive, StatusCounts, Tally, Verdict,
};
use backstop_core::report::escaped;
use chrono::{DateTime, Utc};
use serde::Serialize;
use utoipa::ToSchema;

use crate::desk::filter::without_secrets;
use crate::desk::{Changed, GroupRow, Plan};
use crate::encryption::{Keyring, key_of, size_of};
use crate::first_letters::Refused;
use crate::secret::hidden_headers;

/// A page of a list.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct PageView<T> {
    pub(super) items: Vec<T>,
    /// What `after` is to be for the next page; absent on the last one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) next: Option<String>,
}

/// How many letters stand where.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct StatusView {
    open: u64,
    redriving: u64,
    resolved: u64,
    discarded: u64,
    /// Failed again after a redrive: a newer letter stands for them.
    superseded: u64,
}

impl From<&StatusCounts> for StatusView {
    fn from(counts: &StatusCounts) -> Self {
        let StatusCounts { open, redriving, resolved, discarded, superseded } = *counts;
        Self { open, redriving, resolved, discarded, superseded }
    }
}

/// How many letters died in a minute.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct MinuteView {
    /// The minute's beginning.
    at: DateTime<Utc>,
    /// Letters of any status.
    letters: u64,
}

impl From<&LetterMinute> for MinuteView {
    fn from(minute: &LetterMinute) -> Self {
        let LetterMinute { at, letters } = *minute;
        Self { at, letters }
    }
}

/// Letters that failed alike.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct GroupView {
    /// Absent for letters that were collected without one.
    fingerprint: Option<String>,
    error_type: Option<String>,
    /// Text of the first letter's error.
    error: Option<String>,
    class: Option<String>,
    reason: Option<String>,
    consumers: Vec<String>,
    places: Vec<String>,
    /// The sum of `by_status`.
    letters: u64,
    by_status: StatusView,
    first_seen: DateTime<Utc>,
    last_seen: DateTime<Utc>,
    /// Letters of any status that died in the last 60 minutes.
    last_hour: u64,
}

impl From<&GroupRow> for GroupView {
    fn from(row: &GroupRow) -> Self {
        Self {
            fingerprint: row.fingerprint.clone(),
            error_type: row.error_type.clone(),
            error: row.error.clone(),
            class: row.class.clone(),
            reason: row.reason.clone(),
            consumers: row.consumers.keys().flatten().cloned().collect(),
            places: row.places.keys().flatten().cloned().collect(),
            letters: row.by_status.sum(),
            by_status: (&row.by_status).into(),
            first_seen: row.first_seen,
            last_seen: row.last_seen,
            last_hour: row.last_hour,
        }
    }
}

/// A dead letter, without its body.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct LetterView {
    id: String,
    message_key: Option<String>,
    consumer: Option<String>,
    /// Where it was read from before it failed.
    place: Option<String>,
    /// Where the letter was found.
    found_in: String,
    /// Where it is redriven to; absent for letters of strangers.
    door: Option<String>,
    reason: Option<String>,
    class: Option<String>,
    error_type: Option<String>,
    error: Option<String>,
    fingerprint: Option<String>,
    attempts: Option<i64>,
    /// How often it had been redriven when it failed.
    generation: i64,
    first_failed_at: Option<DateTime<Utc>>,
    dead_at: Option<DateTime<Utc>>,
    collected_at: DateTime<Utc>,
    status: String,
    /// How its last redrive ended, or stands.
    outcome: Option<String>,
    /// The redrive that sent it last.
    redrive: Option<String>,
    /// Why it is under legal hold.
    hold: Option<String>,
    /// The ordering key, escaped; U+FFFD stands for what is not UTF-8.
    key: Option<String>,
    /// Size of the body in bytes; absent for a tombstone.
    body_bytes: Option<usize>,
    /// The id of the key that the body is encrypted with in the ledger.
    encrypted_with: Option<String>,
}

impl From<&Letter> for LetterView {
    fn from(letter: &Letter) -> Self {
        Self {
            id: letter.id.clone(),
            message_key: letter.message_key.clone(),
            consumer: letter.consumer.clone(),
            place: letter.place.clone(),
            found_in: letter.found_in.clone(),
            door: letter.door.clone(),
            reason: letter.reason.clone(),
            class: letter.class.clone(),
            error_type: letter.error_type.clone(),
            error: letter.error.clone(),
            fingerprint: letter.fingerprint.clone(),
            attempts: letter.attempts,
            generation: letter.generation,
            first_failed_at: letter.first_failed_at,
            dead_at: letter.dead_at,
            collected_at: letter.collected_at,
            status: letter.status.as_str().to_owned(),
            outcome: letter.outcome.map(|outcome| outcome.as_str().to_owned()),
            redrive: letter.redrive.clone(),
            hold: letter.hold.clone(),
            key: letter.envelope.key.as_ref().map(|key| escaped(&String::from_utf8_lossy(key))),
            body_bytes: size_of(letter),
            encrypted_with: key_of(letter).map(|key| key.to_string()),
        }
    }
}

/// A letter, its headers and what happened to it.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct LetterStory {
    #[serde(flatten)]
    letter: LetterView,
    /// Why its body can neither be shown nor sent.
    unreadable: Option<String>,
    headers: Vec<HeaderView>,
    history: Vec<EventView>,
}

/// A header. The value of one whose name announces a secret is left out.
#[derive(Debug, Serialize, ToSchema)]
struct HeaderView {
    name: String,
    /// Escaped; U+FFFD stands for what is not UTF-8.
    value: Option<String>,
    bytes: usize,
}

/// Something that happened to a letter.
#[derive(Debug, Serialize, ToSchema)]
struct EventView {
    at: DateTime<Utc>,
    what: String,
    detail: Option<String>,
}

impl LetterStory {
    pub(super) fn new(letter: &Letter, history: Vec<LetterEvent>, keys: &Keyring) -> Self {
        let is_hidden = hidden_headers(&letter.envelope.headers);
        let header = |(name, value): (&str, Option<&bytes::Bytes>)| HeaderView {
            name: escaped(name),
            value: value.filter(|_| !is_hidden(name)).map(|value| escaped(&String::from_utf8_lossy(value))),
            bytes: value.map_or(0, bytes::Bytes::len),
        };
        let event = |event: LetterEvent| EventView { at: event.at, what: event.what, detail: event.detail };
        Self {
            letter: letter.into(),
            unreadable: keys.locked(letter).map(|locked| format!("{locked}; {}", locked.hint())),
            headers: letter.envelope.headers.iter().map(header).collect(),
            history: history.into_iter().map(event).collect(),
        }
    }
}

/// How far a change of letters came.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ChangedView {
    /// Letters that were changed now.
    letters: u64,
    /// Letters of the filter that stay as they are, because they are under legal hold.
    held: u64,
    /// Whether all was done; otherwise ask again to go on.
    complete: bool,
}

impl From<Changed> for ChangedView {
    fn from(changed: Changed) -> Self {
        let Changed { letters, held, complete } = changed;
        Self { letters, held, complete }
    }
}

/// A dry run.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct PlanView {
    /// All letters that match, or the first 50,000 of them: the sum of the five below.
    matched: u64,
    /// Whether more match, which a redrive of this plan leaves alone.
    more: bool,
    would_send: u64,
    /// Sendable, but over `limit`.
    over_limit: u64,
    /// Older than what their consumer remembers.
    too_old: u64,
    /// Redriven too often.
    looped: u64,
    /// Nowhere to send them to.
    no_target: u64,
    /// Letters that would go first.
    canary: u64,
    /// Those of the first 50 letters that would be sent, but refused, because they cannot be opened; absent where there are
    /// none. `would_send` counts them: the database knows no keys.
    refused: Option<RefusedView>,
    /// Those that match, by what would become of them.
    groups: Vec<PlanGroupView>,
}

/// Letters that would be refused, because their bodies cannot be opened.
#[derive(Debug, Serialize, ToSchema)]
struct RefusedView {
    /// How many of those that were looked at.
    letters: u64,
    /// How many were looked at, the first of those that match.
    of_first: u32,
    /// The id of the first.
    first: String,
    /// Why that cannot be opened, with the id of a key that is missing.
    why: String,
    hint: String,
}

impl From<&Refused> for RefusedView {
    fn from(refused: &Refused) -> Self {
        let Refused { letters, of, first, locked } = refused;
        Self {
            letters: *letters,
            of_first: *of,
            first: first.clone(),
            why: locked.to_string(),
            hint: locked.hint().to_owned(),
        }
    }
}

/// Letters that a redrive would treat alike.
#[derive(Debug, Serialize, ToSchema)]
struct PlanGroupView {
    /// `send`, `no-target`, `looped` or `too-old`.
    verdict: String,
    consumer: Option<String>,
    reason: Option<String>,
    target: Option<String>,
    /// Whether every consumer at the target sees them again.
    foreign: bool,
    letters: u64,
}

impl From<&Plan> for PlanView {
    fn from(plan: &Plan) -> Self {
        let group = |group: &PlanGroup| PlanGroupView {
            verdict: group.verdict.as_str().to_owned(),
            consumer: group.consumer.clone(),
            reason: group.reason.clone(),
            target: group.target.clone(),
            foreign: group.foreign,
            letters: group.letters,
        };
        Self {
            matched: plan.matched(),
            more: plan.more,
            would_send: plan.to_send(),
            over_limit: plan.over_limit(),
            too_old: plan.of(Verdict::TooOld),
            looped: plan.of(Verdict::Looped),
            no_target: plan.of(Verdict::NoTarget),
            canary: plan.canary(),
            refused: plan.refused.as_ref().map(RefusedView::from),
            groups: plan.groups.iter().map(group).collect(),
        }
    }
}

/// Where the letters of a redrive stand.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct TallyView {
    pending: u64,
    sending: u64,
    waiting: u64,
    resolved: u64,
    failed_again: u64,
    silent: u64,
    /// Sent to where nobody tells outcomes.
    unknown: u64,
    /// Not taken by the broker.
    refused: u64,
    /// Left out, because somebody else had taken them meanwhile.
    dropped: u64,
}

impl From<Tally> for TallyView {
    fn from(tally: Tally) -> Self {
        let Tally { pending, sending, waiting, resolved, failed_again, silent, unknown, refused, dropped } =
            tally;
        Self { pending, sending, waiting, resolved, failed_again, silent, unknown, refused, dropped }
    }
}

/// A redrive.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct RedriveView {
    id: String,
    created_at: DateTime<Utc>,
    created_by: String,
    because: Option<String>,
    /// `running`, `paused`, `done`, `cancelled` or `stopped`.
    run: String,
    /// `canary`, `sending` or `settling`.
    phase: String,
    /// Why it does not go on.
    why: Option<String>,
    /// All letters: the sum of `letters`.
    cohort: u64,
    letters: TallyView,
    canary_letters: TallyView,
    canary: u64,
    /// Letters a second; absent where there is no limit.
    rate: Option<f64>,
    /// The share of letters that may fail again before it pauses, from 0 to 1.
    brake: f64,
    silent_after_seconds: f64,
    /// The filter that was frozen, by field.
    filter: BTreeMap<String, serde_json::Value>,
}

impl From<&Redrive> for RedriveView {
    fn from(redrive: &Redrive) -> Self {
        let Redrive { plan, standing, .. } = redrive;
        // The filter is a struct of texts: it always has a JSON form.
        let filter = serde_json::to_value(without_secrets(plan.filter.clone()));
        let filter = filter.ok().and_then(|filter| serde_json::from_value(filter).ok());
        Self {
            id: plan.id.clone(),
            created_at: redrive.created_at,
            created_by: plan.created_by.clone(),
            because: plan.because.clone(),
            run: standing.run.as_str().to_owned(),
            phase: standing.phase.as_str().to_owned(),
            why: standing.why.clone(),
            cohort: redrive.letters().sum(),
            letters: redrive.letters().into(),
            canary_letters: redrive.canary_letters.into(),
            canary: plan.canary,
            rate: plan.rate,
            brake: plan.brake,
            silent_after_seconds: plan.silent_after.as_secs_f64(),
            filter: filter.unwrap_or_default(),
        }
    }
}
