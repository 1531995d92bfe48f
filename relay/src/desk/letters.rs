//! Letters and their groups, as people look at them.

use std::collections::BTreeMap;

use backstop_core::ledger::{
    Letter, LetterEvent, LetterFilter, LetterGroup, LetterMinute, LetterStatus, StatusCounts,
};
use backstop_core::report::{cut, escaped};
use chrono::{DateTime, TimeDelta, Utc};

use super::trail::Deed;
use super::{Caller, Desk, Trouble, in_time};

/// Most groups of the ledger that are looked at.
const GROUPS: u32 = 1_000;
/// Longest reason, in bytes.
const MAX_REASON: usize = 500;
/// Longest id of a letter, in bytes.
pub(super) const MAX_ID: usize = 128;
/// A group without a new letter for this long is quiet.
const QUIET: TimeDelta = TimeDelta::minutes(5);

/// Letters, and where the next page begins.
#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) letters: Vec<Letter>,
    /// The id after which the next page begins; `None` where there is none.
    pub(crate) next: Option<String>,
}

/// What fails alike: every letter of one fingerprint.
#[derive(Debug, Clone)]
pub(crate) struct GroupRow {
    /// `None` for letters that were collected without one.
    pub(crate) fingerprint: Option<String>,
    pub(crate) error_type: Option<String>,
    pub(crate) error: Option<String>,
    pub(crate) class: Option<String>,
    pub(crate) reason: Option<String>,
    /// Letters by consumer; `None` where they do not say.
    pub(crate) consumers: BTreeMap<Option<String>, StatusCounts>,
    /// Letters by topic or queue; `None` where they do not say.
    pub(crate) places: BTreeMap<Option<String>, StatusCounts>,
    pub(crate) by_status: StatusCounts,
    pub(crate) first_seen: DateTime<Utc>,
    pub(crate) last_seen: DateTime<Utc>,
    pub(crate) last_hour: u64,
}

/// Whether a group is still failing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// New letters in the last five minutes.
    Growing,
    /// None for that long.
    Quiet(TimeDelta),
}

impl GroupRow {
    fn new(group: &LetterGroup) -> Self {
        Self {
            fingerprint: group.fingerprint.clone(),
            error_type: group.error_type.clone(),
            error: group.error.clone(),
            class: group.class.clone(),
            reason: group.reason.clone(),
            consumers: BTreeMap::new(),
            places: BTreeMap::new(),
            by_status: StatusCounts::default(),
            first_seen: group.first_seen,
            last_seen: group.last_seen,
            last_hour: 0,
        }
    }

    fn add(&mut self, group: &LetterGroup) {
        plus(&mut self.by_status, &group.by_status);
        plus(self.consumers.entry(group.consumer.clone()).or_default(), &group.by_status);
        plus(self.places.entry(group.place.clone()).or_default(), &group.by_status);
        self.first_seen = self.first_seen.min(group.first_seen);
        self.last_seen = self.last_seen.max(group.last_seen);
        self.last_hour += group.last_hour;
    }

    pub(crate) fn state(&self, now: DateTime<Utc>) -> State {
        let since = now - self.last_seen;
        if since < QUIET { State::Growing } else { State::Quiet(since) }
    }
}

fn plus(sum: &mut StatusCounts, more: &StatusCounts) {
    sum.add(LetterStatus::Open, more.open);
    sum.add(LetterStatus::Redriving, more.redriving);
    sum.add(LetterStatus::Resolved, more.resolved);
    sum.add(LetterStatus::Discarded, more.discarded);
    sum.add(LetterStatus::Superseded, more.superseded);
}

/// The ledger's groups, put together by fingerprint; those with most open letters first.
fn by_fingerprint(groups: &[LetterGroup]) -> Vec<GroupRow> {
    let mut rows: BTreeMap<Option<&str>, GroupRow> = BTreeMap::new();
    for group in groups {
        rows.entry(group.fingerprint.as_deref()).or_insert_with(|| GroupRow::new(group)).add(group);
    }
    let mut rows: Vec<GroupRow> = rows.into_values().collect();
    rows.sort_by_key(|row| (std::cmp::Reverse(row.by_status.open), std::cmp::Reverse(row.last_seen)));
    rows
}

/// A body that was revealed.
#[derive(Debug)]
pub(crate) struct Body {
    pub(crate) content_type: Option<String>,
    /// `None` for a tombstone.
    pub(crate) bytes: Option<bytes::Bytes>,
}

impl Desk {
    /// Groups with letters that are meant, put together by fingerprint.
    pub(crate) async fn groups(&self, filter: &LetterFilter) -> Result<Vec<GroupRow>, Trouble> {
        let groups = in_time(self.ledger().await?.groups(filter, GROUPS)).await?;
        Ok(by_fingerprint(&groups))
    }

    /// One group, whatever its letters stand at.
    pub(crate) async fn group(&self, fingerprint: &str) -> Result<GroupRow, Trouble> {
        let filter = LetterFilter { fingerprint: Some(fingerprint.to_owned()), ..LetterFilter::default() };
        let mut rows = self.groups(&filter).await?;
        let none = || Trouble::missing(format!("there is no group {:?}", escaped(&cut(fingerprint, 64))));
        rows.pop().ok_or_else(none)
    }

    /// When letters of a group died of late, or letters of any.
    pub(crate) async fn minutes(&self, fingerprint: Option<&str>) -> Result<Vec<LetterMinute>, Trouble> {
        in_time(self.ledger().await?.minutes(fingerprint)).await
    }

    /// How many letters are meant; more than 10,000 come as 10,001 unless only groups are asked for.
    pub(crate) async fn count(&self, filter: &LetterFilter) -> Result<u64, Trouble> {
        in_time(self.ledger().await?.count(filter)).await
    }

    /// A page of letters, from after `after` on.
    pub(crate) async fn letters(
        &self,
        filter: &LetterFilter,
        after: Option<&str>,
        limit: u32,
    ) -> Result<Page, Trouble> {
        let mut letters = in_time(self.ledger().await?.list(filter, after, limit + 1)).await?;
        let more = letters.len() > limit as usize;
        letters.truncate(limit as usize);
        let next = letters.last().filter(|_| more).map(|letter| letter.id.clone());
        Ok(Page { letters, next })
    }

    /// One letter and what happened to it.
    pub(crate) async fn letter(&self, id: &str) -> Result<(Letter, Vec<LetterEvent>), Trouble> {
        let letter = self.letter_alone(id).await?;
        let history = in_time(self.ledger().await?.history(&letter.id)).await?;
        Ok((letter, history))
    }

    pub(super) async fn letter_alone(&self, id: &str) -> Result<Letter, Trouble> {
        let known = id.len() <= MAX_ID && !id.contains('\0');
        let filter = LetterFilter { ids: vec![id.to_owned()], ..LetterFilter::default() };
        let found = match known {
            true => in_time(self.ledger().await?.list(&filter, None, 1)).await?,
            false => Vec::new(),
        };
        let none = || Trouble::missing(format!("there is no dead letter {:?}", escaped(&cut(id, 64))));
        found.into_iter().next().ok_or_else(none)
    }

    /// The body of a letter. Whoever sees it is written down before they do.
    pub(crate) async fn reveal(
        &self,
        who: &Caller,
        id: &str,
        because: Option<&str>,
    ) -> Result<Body, Trouble> {
        let because = reason(because);
        let object = escaped(&cut(id, MAX_ID));
        let deed = Deed::new(who, "letters.reveal", object, because.as_deref());
        let open = async {
            let mut letter = self.letter_alone(id).await?;
            self.keys.open(&mut letter).map_err(|locked| Trouble::locked(&locked))?;
            Ok(letter)
        };
        let Letter { envelope, .. } = self.recorded(&deed, open, |_| Some(1)).await?;
        let content_type = envelope.headers.get_str(backstop_core::names::CONTENT_TYPE).map(escaped);
        Ok(Body { content_type, bytes: envelope.body })
    }
}

/// Somebody gave no reason for what needs one.
pub(super) fn no_reason() -> Trouble {
    Trouble::invalid("a reason is needed", "say why, in a few words")
}

/// What somebody gives as a reason, in one line; `None` where they give none.
pub(super) fn reason(text: Option<&str>) -> Option<String> {
    text.map(|text| cut(&escaped(text.trim()), MAX_REASON)).filter(|text| !text.is_empty())
}
