//! Redrives: sends letters of the ledger to their consumer again, through its door.
//!
//! A redrive is a job in the ledger's database: its letters are chosen once, when it is made, so that what fails later is
//! not swept along. The [`Engine`] carries it out; [`send_all`] makes one and waits until it is sent.

pub mod engine;
mod rate;
mod send;

use std::sync::Arc;
use std::time::Duration;

use backstop_core::AdapterError;
use backstop_core::ledger::{
    Guard, Ledger, Letter, LetterFilter, NewRedrive, Phase, PlanGroup, Redrive, Run, Verdict,
};
use backstop_core::sink::Sink;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

pub use engine::{Engine, Trouble};

use crate::encryption::Keyring;
use crate::first_letters::FirstLetters;
use crate::owner::OwnerSettings;
use crate::patience::answer;

/// From so many letters on, a plan without a canary is warned about.
const MANY: u64 = 100;
/// How often a redrive is looked at while somebody waits for it.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What a redrive would do, and what speaks against it. `matching` is the sum of the four numbers after it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// How many letters are meant.
    pub matching: u64,
    /// How many of them would be sent.
    pub to_send: u64,
    /// How many have nowhere to be sent to.
    pub without_target: u64,
    /// How many were redriven too often.
    pub looped: u64,
    /// How many are older than what their consumer remembers.
    pub too_old: u64,
    /// The letters, by what becomes of them, consumer, reason and target.
    pub groups: Vec<PlanGroup>,
    /// What somebody should know before they go on, one sentence each.
    pub warnings: Vec<String>,
    /// Some of the letters that would be sent.
    pub sample: Vec<Letter>,
}

impl Plan {
    /// Looks what a redrive would do. Nothing changes.
    ///
    /// # Errors
    /// When the ledger cannot be asked.
    pub async fn make(
        ledger: &dyn Ledger,
        filter: &LetterFilter,
        guard: &Guard,
        keys: &Keyring,
    ) -> Result<Self, AdapterError> {
        let groups = ledger.plan_redrive(filter, guard, u64::MAX).await?;
        let of =
            |verdict| groups.iter().filter(|group| group.verdict == verdict).map(|group| group.letters).sum();
        let first = FirstLetters::of(ledger, filter, guard, keys).await?;
        let mut plan = Self {
            matching: groups.iter().map(|group| group.letters).sum(),
            to_send: of(Verdict::Send),
            without_target: of(Verdict::NoTarget),
            looped: of(Verdict::Looped),
            too_old: of(Verdict::TooOld),
            warnings: Vec::new(),
            sample: first.sample,
            groups,
        };
        plan.warnings = plan.warn(guard);
        plan.warnings.extend(first.refused.map(|refused| refused.to_string()));
        Ok(plan)
    }

    fn warn(&self, guard: &Guard) -> Vec<String> {
        let mut warnings = Vec::new();
        let sent = || self.groups.iter().filter(|group| group.verdict == Verdict::Send);
        let away: Vec<&str> =
            sent().filter(|group| group.foreign).filter_map(|group| group.target.as_deref()).collect();
        if !away.is_empty() {
            let away = away.join(", ");
            warnings.push(format!(
                "every consumer of {away} sees these letters again, and nobody tells the outcome"
            ));
        }
        if guard.not_before.is_none() && self.to_send > 0 {
            warnings.push(
                "how long consumers remember what they handled is not known: what they have forgotten is applied twice"
                    .to_owned(),
            );
        }
        warnings
    }

    /// The warning that so many letters go out without a canary, if they do.
    pub fn without_canary(&self, canary: u64) -> Option<String> {
        (canary == 0 && self.to_send >= MANY)
            .then(|| format!("{} letters go out without a canary: --canary 10 tries ten first", self.to_send))
    }
}

/// Whether every letter of a redrive is sent, or none will be any more unless somebody resumes it.
pub fn is_sent(redrive: &Redrive) -> bool {
    redrive.standing.run != Run::Running || redrive.standing.phase == Phase::Settling
}

/// Makes a redrive and waits until it is sent; carries it out itself where no other engine does.
///
/// # Errors
/// What holds it up: it stays in the ledger, and goes on when an engine runs.
pub async fn send_all(
    ledger: Arc<dyn Ledger>,
    sink: impl Sink,
    new: &NewRedrive,
    owner: OwnerSettings,
) -> Result<Redrive, Arc<Trouble>> {
    let made = ledger.create_redrive(new).await.map_err(|error| Arc::new(error.into()))?;
    carry_out(Engine::new(ledger, sink, owner), made, |_| {}, is_sent, &CancellationToken::new()).await
}

/// Waits until `done` says so of a redrive, or `stop` is cancelled, and shows it to `look` meanwhile; `engine` carries it
/// out where no other one does.
///
/// # Errors
/// What holds it up.
pub async fn carry_out(
    engine: Engine<impl Sink>,
    made: Redrive,
    mut look: impl FnMut(&Redrive),
    done: impl Fn(&Redrive) -> bool,
    stop: &CancellationToken,
) -> Result<Redrive, Arc<Trouble>> {
    let id = made.plan.id.clone();
    let engine = engine.only(&id);
    let (ledger, trouble) = (engine.ledger(), engine.trouble());
    let ended = CancellationToken::new();
    let watch = async {
        let mut seen = made;
        loop {
            look(&seen);
            let held_up = trouble.borrow().clone();
            if let Some(trouble) = held_up {
                return Err(trouble);
            }
            if done(&seen) || stop.is_cancelled() {
                return Ok(seen);
            }
            tokio::time::sleep(LOOK_EVERY).await;
            match answer(stop, ledger.redrive(&id)).await {
                Ok(Some(now)) => seen = now,
                Ok(None) => return Ok(seen),
                Err(error) => return Err(Arc::new(error.into())),
            }
        }
    };
    let (seen, ()) = tokio::join!(
        async {
            let seen = watch.await;
            ended.cancel();
            seen
        },
        engine.run(ended.clone())
    );
    seen
}

/// A redrive of these letters with the usual settings.
pub fn new_redrive(filter: LetterFilter, guard: Guard) -> NewRedrive {
    NewRedrive {
        id: uuid::Uuid::now_v7().to_string(),
        filter,
        guard,
        limit: None,
        canary: 0,
        rate: None,
        brake: 0.2,
        silent_after: Duration::from_secs(15 * 60),
        created_by: crate::audit::user().unwrap_or_else(|| "unknown".to_owned()),
        because: None,
    }
}

#[cfg(test)]
#[path = "redrive_tests.rs"]
mod tests;
