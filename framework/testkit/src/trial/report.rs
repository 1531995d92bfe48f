//! What has come of a series of runs.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use backstop::{Message, MessageKey};

use super::outside::Effect;
use super::running::Outcome;
use crate::oracle::{Books, Fact, Verdict};

/// What a series of runs has shown. Each began in a world of its own, with the same events.
#[derive(Debug, Default)]
#[must_use = "a report says nothing before it is asserted"]
pub struct Report {
    runs: usize,
    findings: Vec<Finding>,
}

/// A run that did not end as it should.
#[derive(Debug, Clone)]
pub struct Finding {
    /// What befell it.
    pub run: String,
    /// How its books stand.
    pub verdict: Verdict,
    /// Values of the database that differ from those of the undisturbed run, in words.
    pub differences: Vec<String>,
    /// Why it did not come to its end, if it did not.
    pub not_done: Option<String>,
}

impl Report {
    /// How many runs there were.
    pub fn runs(&self) -> usize {
        self.runs
    }

    /// Runs that did not end as they should.
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// Ends the test unless each event had its effects exactly once, none was lost, and those of a key came in its
    /// order, in every run.
    ///
    /// # Panics
    /// With what was found, and what had befallen that run.
    pub fn assert_exactly_once(&self) {
        assert!(self.findings.is_empty(), "{self}");
    }

    pub(super) fn add(&mut self, finding: Finding) {
        self.runs += 1;
        let sound = finding.verdict.is_balanced();
        if !sound || !finding.differences.is_empty() || finding.not_done.is_some() {
            self.findings.push(finding);
        }
    }

    pub(super) fn absorb(&mut self, other: Self) {
        self.runs += other.runs;
        self.findings.extend(other.findings);
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let runs = if self.runs == 1 { "run" } else { "runs" };
        if self.findings.is_empty() {
            return write!(f, "{} {runs}: exactly one effect, no loss, key order kept", self.runs);
        }
        write!(f, "{} of {} {runs} went wrong", self.findings.len(), self.runs)?;
        self.findings.iter().try_for_each(|finding| write!(f, "\n{finding}"))
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.run)?;
        let Verdict { lost, twice, out_of_order, from_aborted, backlog, .. } = &self.verdict;
        let Verdict { unexpected_dead, missing_dead, dead_and_applied, .. } = &self.verdict;
        let named = [
            ("lost", lost),
            ("twice", twice),
            ("out of order", out_of_order),
            ("not in the undisturbed run", from_aborted),
            ("dead, and not expected to be", unexpected_dead),
            ("not dead, and expected to be", missing_dead),
            ("dead, and yet with effects", dead_and_applied),
        ];
        for (name, ids) in named.into_iter().filter(|(_, ids)| !ids.is_empty()) {
            let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
            write!(f, "\n  {name}: {}", ids.join(", "))?;
        }
        self.differences.iter().try_for_each(|difference| write!(f, "\n  {difference}"))?;
        if *backlog > 0 {
            write!(f, "\n  still waiting: {backlog}")?;
        }
        self.not_done.iter().try_for_each(|why| write!(f, "\n  {why}"))
    }
}

/// What an undisturbed run came to: what every other is to come to.
#[derive(Debug)]
pub(super) struct Expected {
    /// Key and place within the key of each event, by its identity.
    events: BTreeMap<String, (String, u64)>,
    names: BTreeMap<MessageKey, String>,
    dead: BTreeSet<String>,
    inside: BTreeSet<Effect>,
    outside: BTreeSet<Effect>,
    state: BTreeMap<String, String>,
}

impl Expected {
    pub(super) fn new(delivered: &[Message], dead: BTreeSet<String>, reference: &Outcome) -> Self {
        let (mut events, mut names) = (BTreeMap::new(), BTreeMap::new());
        let mut in_key = BTreeMap::<String, u64>::new();
        for event in delivered {
            let key = event.key.as_ref().map_or("", |key| std::str::from_utf8(key).unwrap_or("?"));
            let seq = in_key.entry(key.to_owned()).or_default();
            *seq += 1;
            events.entry(event.id.clone()).or_insert((key.to_owned(), *seq));
            names.insert(MessageKey::new(&event.source, event.id.as_bytes()), event.id.clone());
        }
        Self {
            events,
            names,
            dead,
            inside: reference.inside.iter().cloned().collect(),
            outside: reference.outside.iter().cloned().collect(),
            state: reference.state.clone(),
        }
    }

    pub(super) fn compare(&self, run: String, outcome: Outcome) -> Finding {
        let mut books = Books { backlog: outcome.backlog, injected: self.dead.clone(), ..Books::default() };
        let named = |key: &MessageKey| self.names.get(key).cloned().unwrap_or_else(|| key.to_string());
        books.dead_letters = outcome.letters.iter().map(named).collect();
        for (id, (key, seq)) in &self.events {
            if books.dead_letters.contains(id) || self.dead.contains(id) || !self.has_effects(id) {
                books.committed.push(Fact::new(key, *seq, id));
            }
        }
        let lanes =
            [("database", &self.inside, &outcome.inside), ("outside", &self.outside, &outcome.outside)];
        for (lane, expected, found) in lanes {
            let of_events = expected.iter().filter(|effect| self.events.contains_key(&effect.event));
            books.committed.extend(of_events.map(|effect| self.fact(lane, effect)));
            books.applied.extend(found.iter().map(|effect| self.fact(lane, effect)));
        }
        let differences = self.differences(&outcome.state);
        Finding { run, verdict: books.audit(), differences, not_done: outcome.ended }
    }

    fn has_effects(&self, event: &str) -> bool {
        self.inside.iter().chain(&self.outside).any(|effect| effect.event == event)
    }

    /// Order is kept within the database and outside of it, each by itself.
    fn fact(&self, lane: &str, effect: &Effect) -> Fact {
        let (key, seq) = self.events.get(&effect.event).map_or(("?", 0), |(key, seq)| (key.as_str(), *seq));
        Fact::new(format!("{lane}/{key}"), seq, format!("{} ({}, {lane})", effect.event, effect.what))
    }

    fn differences(&self, state: &BTreeMap<String, String>) -> Vec<String> {
        let names: BTreeSet<&String> = self.state.keys().chain(state.keys()).collect();
        let shown = |values: &BTreeMap<String, String>, name: &String| {
            values.get(name).map_or_else(|| "nothing".to_owned(), |value| format!("{value:?}"))
        };
        let differ = names.into_iter().filter(|name| self.state.get(*name) != state.get(*name));
        differ
            .map(|name| format!("{name} is {}, undisturbed {}", shown(state, name), shown(&self.state, name)))
            .collect()
    }
}
