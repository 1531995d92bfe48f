//! How a rule stands, for people.

use backstop_core::AdapterError;
use backstop_core::ledger::{Ledger, Redrive};
use chrono::{DateTime, Utc};
use serde::Serialize;

use super::watch::{Fired, Memory, Scene};
use super::{Ahead, fire};
use crate::config::{DeadLettersConfig, RuleConfig};

/// How a rule stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
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
}

/// A rule, what it would do and what it did.
#[derive(Debug)]
pub(crate) struct View<'a> {
    pub(crate) rule: &'a RuleConfig,
    /// How many letters it would send now.
    pub(crate) takes: u64,
    pub(crate) standing: Standing,
    /// What it did last, with its redrive as that stands now.
    pub(crate) last: Option<(Fired, Option<Redrive>)>,
}

impl<'a> View<'a> {
    /// Looks at a rule; `memory` is what the relay remembers that attends to rules. Nothing changes.
    pub(crate) async fn of(
        ledger: &dyn Ledger,
        letters: &DeadLettersConfig,
        rule: &'a RuleConfig,
        memory: Option<&Memory>,
        scene: &Scene<'_>,
    ) -> Result<Self, AdapterError> {
        let takes = fire::takes(ledger, &fire::wanted(letters, rule, scene)).await?;
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
        Ok(Self { rule, takes, standing, last: fired.map(|fired| (fired, redrive)) })
    }
}
