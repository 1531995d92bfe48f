//! Which letters are meant: one filter for lists, counts, groups, redrives and changes.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{Letter, LetterStatus, Outcome, terms};

/// Which letters are meant. Every field that is set narrows it; the default means all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LetterFilter {
    /// Exactly these; any where there are none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ids: Vec<String>,
    /// With this fingerprint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<String>,
    /// Of this consumer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub consumer: Option<String>,
    /// From this topic or queue.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub place: Option<String>,
    /// Whose last error is of this class.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub class: Option<String>,
    /// Given up for this reason.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// With this status.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<LetterStatus>,
    /// Dead at this time or later; see [`Letter::seen_at`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<DateTime<Utc>>,
    /// Dead before this time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<DateTime<Utc>>,
    /// With exactly this ordering key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Of the message with this identity.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message_key: Option<String>,
    /// With this header.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub header: Option<HeaderFilter>,
    /// Whose error has all words of this text, in any order and case.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Whose last redrive ended, or stands, so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
    /// Last sent by the redrive with this id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub redrive: Option<String>,
    /// Whether they are under legal hold.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_hold: Option<bool>,
}

/// A header that a letter has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeaderFilter {
    /// Its name, in any case.
    pub name: String,
    /// Its value, to the letter; any where there is none. Values over [`MAX_VALUE`](terms::MAX_VALUE) bytes are not
    /// found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
}

impl LetterFilter {
    /// Whether the letter is meant.
    pub fn matches(&self, letter: &Letter) -> bool {
        let same = |wanted: &Option<String>, found: &Option<String>| wanted.is_none() || wanted == found;
        let key = letter.envelope.key.as_deref();
        let seen = letter.seen_at();
        (self.ids.is_empty() || self.ids.contains(&letter.id))
            && same(&self.fingerprint, &letter.fingerprint)
            && same(&self.consumer, &letter.consumer)
            && same(&self.place, &letter.place)
            && same(&self.class, &letter.class)
            && same(&self.reason, &letter.reason)
            && self.status.is_none_or(|status| status == letter.status)
            && self.since.is_none_or(|since| seen >= since)
            && self.until.is_none_or(|until| seen < until)
            && self.key.as_ref().is_none_or(|wanted| key == Some(wanted.as_bytes()))
            && same(&self.message_key, &letter.message_key)
            && self.outcome.is_none_or(|outcome| letter.outcome == Some(outcome))
            && same(&self.redrive, &letter.redrive)
            && self.on_hold.is_none_or(|held| held == letter.hold.is_some())
            && self.has_terms(letter)
    }

    fn has_terms(&self, letter: &Letter) -> bool {
        let wanted = self.terms();
        wanted.is_empty() || {
            let found = terms::of_letter(letter);
            wanted.iter().all(|term| found.contains(term))
        }
    }

    /// What [`header`](Self::header) and [`error`](Self::error) ask of a letter's [terms](terms::of_letter): all of
    /// these.
    pub fn terms(&self) -> Vec<String> {
        let words = self.error.iter().flat_map(|text| terms::of_error(text));
        let header = self.header.iter().map(|header| terms::of_header(&header.name, header.value.as_deref()));
        words.chain(header).collect()
    }

    /// Whether only what groups have in common, and the status, are asked for: counts of such a filter are exact and
    /// cost the same however many letters there are.
    pub fn is_by_group(&self) -> bool {
        let of_groups = Self {
            fingerprint: self.fingerprint.clone(),
            consumer: self.consumer.clone(),
            place: self.place.clone(),
            class: self.class.clone(),
            reason: self.reason.clone(),
            status: self.status,
            ..Self::default()
        };
        *self == of_groups
    }

    /// The letters with these ids.
    pub fn of_ids(ids: &[String]) -> Self {
        Self { ids: ids.to_vec(), ..Self::default() }
    }

    /// The letters with this status.
    pub fn of_status(status: LetterStatus) -> Self {
        Self { status: Some(status), ..Self::default() }
    }
}
