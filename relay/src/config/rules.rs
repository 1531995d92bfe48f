//! `[[dead_letters.rules]]`: redrives that the relay makes by itself, each because somebody wrote it.

use std::time::Duration;

use backstop_core::ledger::terms;
use serde::{Deserialize, Serialize};

use super::document::{Located, Section};
use crate::secret::is_unsearchable;

/// Longest text of a filter, in bytes.
const MAX_TEXT: usize = 512;
/// How long what a rule waits for must have stood, unless told.
const WAIT: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(86_400);

/// When letters are redriven by themselves, and which.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RuleConfig {
    /// `name`: by which it is remembered what a rule has done; no two may share one.
    pub name: String,
    /// `after`: what it waits for.
    pub after: RuleTrigger,
    /// `wait`: how long that must have stood. Defaults to 1 min.
    #[serde(serialize_with = "super::duration")]
    pub wait: Duration,
    /// `consumer`: whose breaker or version it looks at, and whose letters it takes.
    pub consumer: String,
    /// `place`: only letters from this topic or queue.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub place: Option<String>,
    /// `class`: only letters whose last error is of this class.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub class: Option<String>,
    /// `reason`: only letters that were given up for this reason.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// `fingerprint`: only letters of this failure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<String>,
    /// `error`: only letters whose error has all these words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// `header`: only letters with this header, `name` or `name=value`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub header: Option<String>,
    /// `key`: only letters with this ordering key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// `since`: only letters that have been dead for at most so long.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "super::optional_duration")]
    pub since: Option<Duration>,
    /// `canary`: letters that are sent first; the rest goes when all of these are handled. Defaults to 10.
    pub canary: u64,
    /// `rate`: most letters a second. Defaults to 50.
    pub rate: u64,
    /// `limit`: most letters of one redrive, the first that the ledger took. Defaults to 10,000.
    pub limit: u64,
    /// `brake`: the share of letters, in percent, above which a redrive pauses when they fail again. Defaults to 5.
    pub brake: u64,
}

/// What a rule waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RuleTrigger {
    /// That the breakers of all instances are closed, after one had been open.
    BreakerClosed,
    /// That all instances have a version that was not there before.
    NewVersion,
}

impl RuleTrigger {
    /// As the configuration spells it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::BreakerClosed => "breaker-closed",
            Self::NewVersion => "new-version",
        }
    }
}

/// All of them; faults are with the reader.
pub(super) fn rules(letters: &mut Section<'_>) -> Vec<RuleConfig> {
    let mut all = Vec::<RuleConfig>::new();
    for section in letters.sections("rules") {
        let place = section.place();
        if let Some(rule) = one(section) {
            if all.iter().any(|other| other.name == rule.name) {
                let what = format!("[dead_letters.rules] name: there are two called {:?}", rule.name);
                letters.fault(place, what, "give each a name of its own: it is remembered by that");
            }
            all.push(rule);
        }
    }
    all
}

fn one(mut section: Section<'_>) -> Option<RuleConfig> {
    let triggers = [RuleTrigger::BreakerClosed, RuleTrigger::NewVersion].map(|it| (it.as_str(), it));
    for (key, hint) in [
        ("name", "give the rule a name, by which it is remembered what it has done"),
        ("after", "use after = \"breaker-closed\" or \"new-version\""),
        ("consumer", "name the consumer whose letters it may send: no rule is for all of them"),
    ] {
        if !section.has(key) {
            section.missing(key, hint);
        }
    }
    let name = super::sections::lease_name(&mut section, "");
    let after = section.choice("after", &triggers);
    let consumer = text(&mut section, "consumer");
    let header = header(&mut section);
    // Zero stands for none: the bounds begin above it.
    let since = section.duration("since", Duration::ZERO, Duration::from_secs(1)..3_660 * DAY);
    let rule = RuleConfig {
        name,
        after: after.unwrap_or(RuleTrigger::NewVersion),
        wait: section.duration("wait", WAIT, Duration::ZERO..DAY),
        consumer: consumer.clone().unwrap_or_default(),
        place: text(&mut section, "place"),
        class: text(&mut section, "class"),
        reason: text(&mut section, "reason"),
        fingerprint: text(&mut section, "fingerprint"),
        error: words(&mut section),
        header,
        key: text(&mut section, "key"),
        since: Some(since).filter(|since| !since.is_zero()),
        canary: section.number("canary", 10, 1..1_000_001),
        rate: section.number("rate", 50, 1..1_000_001),
        limit: section.number("limit", 10_000, 1..10_000_001),
        brake: section.number("brake", 5, 0..101),
    };
    section.finish();
    (after.is_some() && consumer.is_some() && !rule.name.is_empty()).then_some(rule)
}

/// A text that letters may have.
fn text(section: &mut Section<'_>, key: &'static str) -> Option<String> {
    located(section, key).map(|text| text.text)
}

fn located(section: &mut Section<'_>, key: &'static str) -> Option<Located> {
    let text = section.text(key)?;
    if (1..=MAX_TEXT).contains(&text.text.len()) && !text.text.contains(char::is_control) {
        return Some(text);
    }
    let what = format!("{}: {} is nothing that a letter has", section.path(key), text.shown());
    let hint = format!("write 1 to {MAX_TEXT} bytes without control characters, or leave it out");
    section.fault(text.place, what, hint);
    None
}

/// Without a word the rule would take every letter.
fn words(section: &mut Section<'_>) -> Option<String> {
    let error = located(section, "error")?;
    if terms::has_words(&error.text) {
        return Some(error.text);
    }
    let what = format!("{} holds no word", section.path("error"));
    section.fault(error.place, what, "give a word of letters or digits, or leave it out");
    None
}

/// What a rule asks for is printed, and kept with its redrives, so that no secret may be in it.
fn header(section: &mut Section<'_>) -> Option<String> {
    let header = located(section, "header")?;
    let (name, value) = header.text.split_once('=').unzip();
    let (what, hint) = if name.unwrap_or(&header.text).is_empty() {
        ("has no name", "write \"name\" or \"name=value\"")
    } else if value.is_some() && name.is_some_and(is_unsearchable) {
        ("may hold a secret, and rules are shown", "leave its value out, or choose by another header")
    } else {
        return Some(header.text);
    };
    let what = format!("{} {what}", section.path("header"));
    section.fault(header.place, what, hint);
    None
}
