//! Looking at rules: what they are looked at with, all of them or one by its name.

use backstop_core::ledger::{Ledger, NewRedrive};
use backstop_core::report::{cut, escaped};
use backstop_core::{AdapterError, ConsumerReport};
use chrono::{DateTime, Utc};

use super::view::View;
use super::watch::{Memory, Scene};
use super::{fire, lease_name};
use crate::config::{DeadLettersConfig, RuleConfig};

/// What rules are looked at with, as of one moment.
pub(crate) struct Look<'l> {
    ledger: &'l dyn Ledger,
    letters: &'l DeadLettersConfig,
    reports: Vec<ConsumerReport>,
    now: DateTime<Utc>,
    memory: Option<Memory>,
}

impl<'l> Look<'l> {
    /// A look at the rules of that configuration, now.
    pub(crate) async fn at(
        ledger: &'l dyn Ledger,
        letters: &'l DeadLettersConfig,
    ) -> Result<Self, AdapterError> {
        let holder = ledger.holder(&lease_name(letters)).await?;
        let memory = holder.and_then(|holder| holder.report).map(|report| Memory::read(&report.text));
        let (reports, now) = (ledger.consumers().await?, ledger.time().await?);
        Ok(Self { ledger, letters, reports, now, memory })
    }

    /// The redrive that this rule would make.
    pub(crate) fn wanted(&self, rule: &RuleConfig) -> NewRedrive {
        fire::wanted(self.letters, rule, &Scene::of(rule, &self.reports, self.now))
    }

    /// One rule, of whose letters at most `judged` are judged.
    pub(crate) async fn view(&self, rule: &'l RuleConfig, judged: u64) -> Result<View<'l>, AdapterError> {
        let scene = Scene::of(rule, &self.reports, self.now);
        View::of(self.ledger, self.letters, rule, self.memory.as_ref(), &scene, judged).await
    }

    /// All of them, in the order of the configuration.
    pub(crate) async fn views(&self, judged: u64) -> Result<Vec<View<'l>>, AdapterError> {
        let mut views = Vec::with_capacity(self.letters.rules.len());
        // One after another: to count a rule's letters keeps the database busy, and it has more to do.
        for rule in &self.letters.rules {
            views.push(self.view(rule, judged).await?);
        }
        Ok(views)
    }
}

/// That there is no rule of a name.
#[derive(Debug)]
pub(crate) struct NoRule {
    pub(crate) what: String,
    /// Which there are.
    pub(crate) hint: String,
}

/// The rule of that name.
pub(crate) fn named<'l>(letters: &'l DeadLettersConfig, name: &str) -> Result<&'l RuleConfig, NoRule> {
    letters.rules.iter().find(|rule| rule.name == name).ok_or_else(|| {
        let names: Vec<&str> = letters.rules.iter().map(|rule| rule.name.as_str()).collect();
        let hint = match names.is_empty() {
            true => "write one with [[dead_letters.rules]]".to_owned(),
            false => format!("name one of {}", names.join(", ")),
        };
        NoRule { what: format!("there is no rule {:?}", escaped(&cut(name, 64))), hint }
    })
}
