//! What a rule has seen of its consumer, and what it waits for: pure, from what consumers say of themselves.

use std::collections::BTreeMap;
use std::fmt;

use backstop_core::ConsumerReport;
use backstop_core::report_in::{self, BreakerState, ConsumerState};
use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::config::{RuleConfig, RuleTrigger};

/// Versions of one consumer that are remembered. One that is forgotten fires no rule again all the same: its redrive is
/// in the ledger under the same id.
const VERSIONS: usize = 500;

/// What is remembered of every rule, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Memory {
    pub(super) rules: BTreeMap<String, Watch>,
}

impl Memory {
    /// What was kept. Where that cannot be read every rule begins anew, and fires for nothing that has been.
    pub(crate) fn read(text: &str) -> Self {
        serde_json::from_str(text).unwrap_or_else(|error| {
            warn!(%error, "what rules have seen is not known: they begin anew");
            Self::default()
        })
    }

    /// What is remembered of a rule, unless it waits for something else now.
    pub(crate) fn of(&self, rule: &RuleConfig) -> Option<&Watch> {
        self.rules.get(&rule.name).filter(|watch| watch.is_of(rule))
    }

    /// The text to keep.
    pub(super) fn text(&self) -> Option<String> {
        serde_json::to_string(self).ok()
    }

    /// Forgets rules that nobody has written any more: one that is written again begins anew.
    pub(super) fn keep(&mut self, rules: &[RuleConfig]) {
        self.rules.retain(|name, watch| rules.iter().any(|rule| rule.name == *name && watch.is_of(rule)));
    }
}

/// What is remembered of a rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Watch {
    after: RuleTrigger,
    consumer: String,
    /// Closings of the breaker up to then are done with.
    closed: DateTime<Utc>,
    /// Versions that are no news.
    versions: Vec<String>,
    /// What has happened, and must stand for a while.
    pub(super) waiting: Option<Waiting>,
    /// What it did last.
    pub(crate) fired: Option<Fired>,
}

/// Something that has happened, and since when it is known, by the clock of the ledger's database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Waiting {
    pub(super) event: Event,
    pub(super) since: DateTime<Utc>,
}

/// What a rule did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Fired {
    /// After what, in words.
    pub(crate) after: String,
    pub(crate) at: DateTime<Utc>,
    /// The redrive that it made; `None` where there was nothing to send.
    pub(crate) redrive: Option<String>,
}

/// What rules wait for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Event {
    /// The breaker closed then, by the consumer's clock.
    Closed(DateTime<Utc>),
    /// This version reported in.
    Version(String),
}

impl Event {
    /// The same for the same event, and no other.
    pub(super) fn key(&self) -> String {
        match self {
            Self::Closed(at) => format!("closed {}", at.to_rfc3339_opts(SecondsFormat::Nanos, true)),
            Self::Version(version) => format!("version {version}"),
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed(at) => {
                write!(f, "its breaker closed at {}", at.to_rfc3339_opts(SecondsFormat::Secs, true))
            }
            Self::Version(version) => write!(f, "version {version} reported in"),
        }
    }
}

/// Why a rule cannot fire, and what helps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Blind {
    pub(crate) why: String,
    pub(crate) remedy: &'static str,
}

/// What a consumer says of itself.
#[derive(Debug)]
pub(crate) struct Scene<'a> {
    consumer: &'a str,
    reports: Vec<&'a ConsumerReport>,
    now: DateTime<Utc>,
}

impl<'a> Scene<'a> {
    /// What the rule's consumer says, at this time of the ledger's database.
    pub(crate) fn of(rule: &'a RuleConfig, reports: &'a [ConsumerReport], now: DateTime<Utc>) -> Self {
        let consumer = &rule.consumer;
        let reports = reports.iter().filter(|report| report.consumer == *consumer).collect();
        Self { consumer, reports, now }
    }

    /// Instances that are there.
    fn there(&self) -> impl Iterator<Item = &'a ConsumerReport> {
        let oldest = TimeDelta::from_std(3 * report_in::EVERY).map_or(self.now, |silent| self.now - silent);
        self.reports
            .iter()
            .copied()
            .filter(move |report| report.state != ConsumerState::Stopped && report.at >= oldest)
    }

    /// Whether messages flow: what comes through the door would be handled.
    fn is_well(&self) -> bool {
        let away = |report: &ConsumerReport| {
            matches!(report.breaker, Some(BreakerState::Open | BreakerState::Probing))
        };
        !self.there().any(away) && self.there().any(|report| report.state == ConsumerState::Running)
    }

    /// When a breaker closed last. One that closes in the future, by a clock that is wrong, has not closed yet.
    fn closed_at(&self) -> Option<DateTime<Utc>> {
        self.reports.iter().filter_map(|report| report.breaker_closed_at).filter(|at| *at <= self.now).max()
    }

    /// The version that every instance has.
    fn version(&self) -> Option<&'a str> {
        let mut versions = self.there().map(|report| report.version.as_deref());
        let first = versions.next()??;
        versions.all(|version| version == Some(first)).then_some(first)
    }

    /// The shortest time for which an instance remembers what it has handled.
    pub(super) fn inbox_retention(&self) -> Option<TimeDelta> {
        let shortest = self.there().filter_map(|report| report.inbox_retention_seconds).min()?;
        TimeDelta::try_seconds(i64::try_from(shortest).ok()?)
    }

    pub(super) fn consumer(&self) -> &'a str {
        self.consumer
    }

    pub(super) fn now(&self) -> DateTime<Utc> {
        self.now
    }

    /// Why a rule that waits for this would wait for ever; `None` where it would not.
    pub(crate) fn blind(&self, after: RuleTrigger) -> Option<Blind> {
        let consumer = self.consumer;
        let tells = |report: &ConsumerReport| match after {
            RuleTrigger::BreakerClosed => report.breaker_closings.is_some(),
            RuleTrigger::NewVersion => report.version.is_some(),
        };
        let (why, remedy) = if self.reports.is_empty() {
            (
                format!("{consumer} does not report in"),
                "give it `.receipts(…)`, and check how its name is spelt",
            )
        } else if self.there().next().is_none() {
            (format!("no instance of {consumer} is there"), "start it: it counts from its first report on")
        } else if self.there().any(tells) {
            return None;
        } else {
            match after {
                RuleTrigger::BreakerClosed => (
                    format!("{consumer} does not tell when its breaker closes"),
                    "build it with a version of Backstop that does",
                ),
                RuleTrigger::NewVersion => {
                    (format!("{consumer} does not tell its version"), "give it `.version(…)`")
                }
            }
        };
        Some(Blind { why, remedy })
    }
}

impl Watch {
    /// Begins to watch: what is there now is no news. `None` while nobody is there who could tell.
    pub(super) fn begin(rule: &RuleConfig, scene: &Scene<'_>) -> Option<Self> {
        scene.there().next()?;
        let mut watch = Self {
            after: rule.after,
            consumer: rule.consumer.clone(),
            closed: scene.closed_at().map_or(scene.now, |at| at.max(scene.now)),
            versions: Vec::new(),
            waiting: None,
            fired: None,
        };
        watch.learn(scene);
        Some(watch)
    }

    fn is_of(&self, rule: &RuleConfig) -> bool {
        self.after == rule.after && self.consumer == rule.consumer
    }

    /// What has happened, and since when; it is forgotten when it no longer stands.
    pub(super) fn look(&mut self, scene: &Scene<'_>) -> Option<&Waiting> {
        let event = self.event(scene);
        if self.waiting.as_ref().map(|waiting| &waiting.event) != event.as_ref() {
            self.waiting = event.map(|event| Waiting { event, since: scene.now });
        }
        self.waiting.as_ref()
    }

    fn event(&self, scene: &Scene<'_>) -> Option<Event> {
        if !scene.is_well() {
            return None;
        }
        match self.after {
            RuleTrigger::BreakerClosed => scene.closed_at().filter(|at| *at > self.closed).map(Event::Closed),
            RuleTrigger::NewVersion => {
                let version = scene.version().filter(|version| self.is_new(version))?;
                Some(Event::Version(version.to_owned()))
            }
        }
    }

    fn is_new(&self, version: &str) -> bool {
        !self.versions.iter().any(|known| known == version)
    }

    /// Whether an instance has a version that was not there when the rule fired last, or began.
    pub(super) fn has_news(&self, scene: &Scene<'_>) -> bool {
        scene.there().filter_map(|report| report.version.as_deref()).any(|version| self.is_new(version))
    }

    /// The rule has fired for what it waited for, and never will again.
    pub(super) fn fire(&mut self, fired: Fired, scene: &Scene<'_>) {
        self.pass_over();
        self.fired = Some(fired);
        if self.after == RuleTrigger::BreakerClosed {
            self.learn(scene);
        }
    }

    /// What it waited for is done with.
    pub(super) fn pass_over(&mut self) {
        match self.waiting.take().map(|waiting| waiting.event) {
            Some(Event::Closed(at)) => self.closed = self.closed.max(at),
            Some(Event::Version(version)) => self.know(version),
            None => {}
        }
    }

    /// Every version that was ever told is no news.
    fn learn(&mut self, scene: &Scene<'_>) {
        for version in scene.reports.iter().filter_map(|report| report.version.as_deref()) {
            self.know(version.to_owned());
        }
    }

    fn know(&mut self, version: String) {
        if self.is_new(&version) {
            self.versions.push(version);
            let surplus = self.versions.len().saturating_sub(VERSIONS);
            self.versions.drain(..surplus);
        }
    }
}

#[cfg(test)]
#[path = "watch_tests.rs"]
mod tests;
