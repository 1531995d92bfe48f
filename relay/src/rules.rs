//! Rules: redrives that the relay makes by itself, after a breaker closed or a new version of a consumer reported in. None,
//! unless somebody wrote it.
//!
//! One relay attends to the rules of a ledger, by lease, and what each has seen is kept beside that lease. The redrive of
//! a rule has an id that is made of the rule and of what it fired for: whoever makes it a second time, after a crash or
//! because the lease was lost meanwhile, finds the first.

mod fire;
mod look;
mod view;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use backstop_core::AdapterError;
use backstop_core::lease::{Lease, Leases};
use backstop_core::ledger::{AuditFilter, AuditStep, Ledger, Redrive, Run};
use chrono::TimeDelta;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::config::{DeadLettersConfig, RuleConfig};
use crate::exit::with_cause;
use crate::owner::{Owner, OwnerSettings};
use crate::patience::answer;

pub(crate) use look::{Look, NoRule, named};
pub(crate) use view::{Standing, View, choice};
pub(crate) use watch::{Fired, Scene};

use watch::{Memory, Watch};

/// How often consumers are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Redrives that are read at once, to find one that a rule waits for.
const PAGE: u32 = 100;
/// What is said where nobody wrote a rule.
pub(crate) const NONE: &str = "no rules: nothing is redriven unless somebody asks for it";
/// What somebody does who lets a rule fire again after its redrive came to a bad end.
pub(crate) const RESUME: &str = "rules resume";

/// The lease of whoever attends to the rules of a ledger.
pub(crate) fn lease_name(letters: &DeadLettersConfig) -> String {
    format!("{}.rules", letters.name)
}

/// Attends to rules until it is stopped.
pub(crate) struct Keeper {
    ledger: Arc<dyn Ledger>,
    letters: DeadLettersConfig,
    owner: OwnerSettings,
    look_every: Duration,
}

impl Keeper {
    /// A keeper of the rules in this configuration.
    pub(crate) fn new(ledger: Arc<dyn Ledger>, letters: DeadLettersConfig) -> Self {
        let owner =
            OwnerSettings { lease: lease_name(&letters), ttl: letters.lease_ttl, ..OwnerSettings::default() };
        Self { ledger, letters, owner, look_every: LOOK_EVERY }
    }

    /// The same, which looks at consumers more often.
    #[cfg(test)]
    pub(crate) fn looking_every(mut self, time: Duration) -> Self {
        self.look_every = time;
        self
    }

    /// Works until `stop` is cancelled. It has no errors: whatever fails is logged and tried again.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let leases: Arc<dyn Leases> = self.ledger.clone();
        let owner = Owner::start(leases, self.owner.clone());
        while let Some(lease) = owner.granted(&stop).await {
            let term = stop.child_token();
            tokio::select! {
                () = term.cancelled() => {}
                () = self.attend_all(&lease, &term) => {}
                never = owner.cancel_when_lost(&lease, &term) => match never {},
            }
        }
        owner.release().await;
    }

    async fn attend_all(&self, lease: &Lease, term: &CancellationToken) {
        loop {
            if let Err(error) = self.round(lease, term).await {
                warn!(cause = %with_cause(&error), "rules wait for the ledger");
            }
            tokio::time::sleep(self.look_every).await;
        }
    }

    /// Looks at every consumer once. What is remembered is read anew each time, so that whoever has lost the lease acts
    /// on nothing old.
    async fn round(&self, lease: &Lease, term: &CancellationToken) -> Result<(), AdapterError> {
        let holder = answer(term, self.ledger.holder(&lease.name)).await?;
        let Some(holder) = holder.filter(|holder| holder.lease == *lease) else { return Ok(()) };
        let before = holder.report.map(|report| Memory::read(&report.text)).unwrap_or_default();
        let reports = answer(term, self.ledger.consumers()).await?;
        let now = answer(term, self.ledger.time()).await?;
        let mut memory = before.clone();
        memory.keep(&self.letters.rules);
        for rule in &self.letters.rules {
            let scene = Scene::of(rule, &reports, now);
            if let Err(error) = self.attend(rule, &scene, &mut memory, term).await {
                warn!(rule = rule.name, cause = %with_cause(&error), "a rule is held up; trying again");
            }
        }
        match memory.text().filter(|_| memory != before) {
            Some(text) => answer(term, self.ledger.report(lease, &text)).await,
            None => Ok(()),
        }
    }

    async fn attend(
        &self,
        rule: &RuleConfig,
        scene: &Scene<'_>,
        memory: &mut Memory,
        term: &CancellationToken,
    ) -> Result<(), AdapterError> {
        let Some(watch) = memory.rules.get_mut(&rule.name) else {
            memory.rules.extend(Watch::begin(rule, scene).map(|watch| (rule.name.clone(), watch)));
            return Ok(());
        };
        let Some(waiting) = watch.look(scene).cloned() else { return Ok(()) };
        let stood = scene.now() - waiting.since;
        if TimeDelta::from_std(rule.wait).is_ok_and(|wait| stood < wait) {
            return Ok(());
        }
        let event = &waiting.event;
        let ahead = match answer(term, fire::is_made(&*self.ledger, rule, event)).await? {
            true => Ahead::Free,
            false => answer(term, Ahead::of(&*self.ledger, watch, scene)).await?,
        };
        match ahead {
            Ahead::Behind(_) => {}
            Ahead::Resting(why) => {
                info!(rule = rule.name, why, "a rule does not fire");
                watch.pass_over();
            }
            Ahead::Free => {
                let fire = fire::fire(&*self.ledger, &self.letters, rule, event, scene);
                let made = answer(term, fire).await?;
                let redrive = made.map(|redrive| redrive.plan.id);
                info!(rule = rule.name, after = %event, redrive, "a rule has fired");
                watch.fire(Fired { after: event.to_string(), at: scene.now(), redrive }, scene);
            }
        }
        Ok(())
    }
}

/// What redrives leave a rule free to do.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Ahead {
    /// To fire.
    Free,
    /// To wait until the redrive with this id is over.
    Behind(String),
    /// To rest, for this reason: until a new version reports in, or somebody resumes it.
    Resting(String),
}

impl Ahead {
    async fn of(ledger: &dyn Ledger, watch: &Watch, scene: &Scene<'_>) -> Result<Self, AdapterError> {
        if let Some(why) = bad_end(ledger, watch, scene).await? {
            return Ok(Self::Resting(why));
        }
        // Of whomever it is: somebody who has paused one wants its letters left alone.
        let is_in_the_way = |redrive: &&Redrive| {
            let consumer = redrive.plan.filter.consumer.as_deref();
            !redrive.standing.run.is_over() && consumer.is_none_or(|consumer| consumer == scene.consumer())
        };
        let mut after: Option<String> = None;
        loop {
            let page = ledger.redrives(after.as_deref(), PAGE).await?;
            if let Some(other) = page.iter().find(is_in_the_way) {
                return Ok(Self::Behind(other.plan.id.clone()));
            }
            match page.last().filter(|_| page.len() == PAGE as usize) {
                Some(last) => after = Some(last.plan.id.clone()),
                None => return Ok(Self::Free),
            }
        }
    }
}

/// Why a rule rests: its last redrive was stopped by its canary, or cancelled, and nothing has changed since.
async fn bad_end(
    ledger: &dyn Ledger,
    watch: &Watch,
    scene: &Scene<'_>,
) -> Result<Option<String>, AdapterError> {
    let Some(id) = watch.fired.as_ref().and_then(|fired| fired.redrive.as_deref()) else { return Ok(None) };
    let Some(last) = ledger.redrive(id).await? else { return Ok(None) };
    let run = last.standing.run;
    let ended_badly = matches!(run, Run::Stopped | Run::Cancelled);
    if !ended_badly || watch.has_news(scene) || is_resumed(ledger, id).await? {
        return Ok(None);
    }
    let why = last.standing.why.as_deref().unwrap_or("nobody said why");
    Ok(Some(format!("its last redrive was {}: {why}", run.as_str())))
}

/// Whether somebody has resumed the rule whose last redrive this is.
async fn is_resumed(ledger: &dyn Ledger, redrive: &str) -> Result<bool, AdapterError> {
    let resumed = AuditFilter {
        action: Some(RESUME.to_owned()),
        redrive: Some(redrive.to_owned()),
        ..AuditFilter::default()
    };
    Ok(ledger.read_audit(&resumed, 10).await?.iter().any(|entry| entry.entry.step == AuditStep::Done))
}

#[cfg(test)]
#[path = "rules/tests.rs"]
mod tests;
