//! How a rule stands, for people: the same on the command line, over the API and in the console.

use backstop_core::AdapterError;
use backstop_core::ledger::{Ledger, NewRedrive, Redrive};
use chrono::{DateTime, Utc};
use serde::Serialize;
use utoipa::ToSchema;

use super::fire::Takes;
use super::watch::{Fired, Memory, Scene};
use super::{Ahead, fire};
use crate::config::{DeadLettersConfig, RuleConfig};

/// How a rule stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(tag = "state", rename_all = "kebab-case")]
#[schema(as = RuleStanding)]
pub(crate) enum Standing {
    /// It cannot fire.
    Blocked {
        /// Why.
        why: String,
        /// What helps.
        remedy: String,
    },
    /// No relay attends to it, or has looked yet.
    Unattended,
    /// It waits for what it is for.
    Watching,
    /// That has happened, and must stand for a while, or until another redrive is over.
    Waiting {
        /// What.
        after: String,
        /// Since when.
        since: DateTime<Utc>,
        /// The redrive that it waits for, too.
        #[serde(skip_serializing_if = "Option::is_none")]
        behind: Option<String>,
    },
    /// It does not fire again for now.
    Resting {
        /// Why.
        why: String,
    },
}

impl Standing {
    /// That a rule cannot fire: by the configuration, or because its consumer does not tell what it waits for.
    pub(crate) fn blocked(letters: &DeadLettersConfig, rule: &RuleConfig, scene: &Scene<'_>) -> Option<Self> {
        let (why, remedy) = if !letters.enabled {
            ("this relay does not attend to dead letters".to_owned(), "set enabled = true in [dead_letters]")
        } else if letters.receipts.is_empty() {
            let why = "this relay does not read what consumers report".to_owned();
            (why, "name in [dead_letters] receipts where they publish it")
        } else {
            let blind = scene.blind(rule.after)?;
            (blind.why, blind.remedy)
        };
        Some(Self::Blocked { why, remedy: remedy.to_owned() })
    }

    /// The same in a few words.
    pub(crate) const fn words(&self) -> &'static str {
        match self {
            Self::Blocked { .. } => "cannot fire",
            Self::Unattended => "no relay attends to it yet",
            Self::Watching => "watching",
            Self::Waiting { .. } => "waits",
            Self::Resting { .. } => "rests",
        }
    }
}

/// Which letters a rule takes, as its section says.
pub(crate) fn choice(rule: &RuleConfig) -> String {
    let since = rule.since.map(|since| humantime::format_duration(since).to_string());
    let all = [
        ("consumer", Some(&rule.consumer)),
        ("place", rule.place.as_ref()),
        ("class", rule.class.as_ref()),
        ("reason", rule.reason.as_ref()),
        ("fingerprint", rule.fingerprint.as_ref()),
        ("error", rule.error.as_ref()),
        ("header", rule.header.as_ref()),
        ("key", rule.key.as_ref()),
        ("since", since.as_ref()),
    ];
    let given = all.into_iter().filter_map(|(name, value)| Some(format!("{name}={}", value?)));
    given.collect::<Vec<_>>().join(" ")
}

/// A rule, what it would do and what it did.
#[derive(Debug)]
pub(crate) struct View<'a> {
    pub(crate) rule: &'a RuleConfig,
    /// The redrive that it would make now.
    pub(crate) wanted: NewRedrive,
    /// How many letters that takes.
    pub(crate) takes: Takes,
    pub(crate) standing: Standing,
    /// What it did last, with its redrive as that stands now.
    pub(crate) last: Option<(Fired, Option<Redrive>)>,
}

impl<'a> View<'a> {
    /// Looks at a rule; `memory` is what the relay remembers that attends to rules. Of its letters at most `judged` are
    /// judged. Nothing changes.
    pub(super) async fn of(
        ledger: &dyn Ledger,
        letters: &DeadLettersConfig,
        rule: &'a RuleConfig,
        memory: Option<&Memory>,
        scene: &Scene<'_>,
        judged: u64,
    ) -> Result<Self, AdapterError> {
        let wanted = fire::wanted(letters, rule, scene);
        let takes = fire::takes(ledger, &wanted, judged).await?;
        let watch = memory.and_then(|memory| memory.of(rule));
        let fired = watch.and_then(|watch| watch.fired.clone());
        let redrive = match fired.as_ref().and_then(|fired| fired.redrive.as_deref()) {
            Some(id) => ledger.redrive(id).await?,
            None => None,
        };
        let ahead = match watch {
            Some(watch) => Some(Ahead::of(ledger, watch, scene).await?),
            None => None,
        };
        let waiting = watch.and_then(|watch| watch.waiting.as_ref());
        let standing = match (ahead, Standing::blocked(letters, rule, scene), waiting) {
            (Some(Ahead::Resting(why)), ..) => Standing::Resting { why },
            (_, Some(blocked), _) => blocked,
            (None, ..) => Standing::Unattended,
            (Some(ahead), None, Some(waiting)) => Standing::Waiting {
                after: waiting.event.to_string(),
                since: waiting.since,
                behind: if let Ahead::Behind(id) = ahead { Some(id) } else { None },
            },
            (Some(_), None, None) => Standing::Watching,
        };
        Ok(Self { rule, wanted, takes, standing, last: fired.map(|fired| (fired, redrive)) })
    }

    /// The redrive after whose bad end the rule rests.
    ///
    /// # Errors
    /// That it does not rest, so that there is nothing to resume.
    pub(crate) fn rests_after(&self) -> Result<&str, String> {
        match (&self.standing, &self.last) {
            (Standing::Resting { .. }, Some((_, Some(Redrive { plan, .. })))) => Ok(&plan.id),
            _ => Err(format!("rule {} does not rest", self.rule.name)),
        }
    }

    /// Looked at once more after somebody resumed it: the entry in the audit log is what the relay goes by.
    ///
    /// # Errors
    /// That the rule rests all the same.
    pub(crate) fn is_resumed(&self) -> Result<(), String> {
        match &self.standing {
            Standing::Resting { why } => Err(format!("rule {} still rests: {why}", self.rule.name)),
            _ => Ok(()),
        }
    }
}
