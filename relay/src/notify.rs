//! Tells people what happens to dead letters: a group is new or grows, a redrive is over.
//!
//! One notifier a ledger, by lease. What it has told and what it still has to tell is kept beside the lease, so that a
//! restart neither forgets nor repeats it; a crash between an answer and that note repeats one notice, with its id.

pub(crate) mod news;
pub(crate) mod send;
mod state;

use std::sync::Arc;
use std::time::Duration;

use backstop_core::AdapterError;
use backstop_core::lease::{Lease, Leases};
use backstop_core::ledger::{Ledger, LetterFilter, LetterStatus};
use chrono::Utc;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use self::send::Sender;
use self::state::State;
use crate::config::NotifyConfig;
use crate::exit::with_cause;
use crate::owner::{Owner, OwnerSettings};
use crate::patience::answer;

/// How often the ledger is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Groups and redrives that are looked at.
const GROUPS: u32 = 1_000;
const REDRIVES: u32 = 100;
/// Notices that are sent to one target before the ledger is looked at again.
const AT_ONCE: usize = 10;

/// Sends notices until it is stopped.
pub(crate) struct Notifier {
    ledger: Arc<dyn Ledger>,
    targets: Vec<(NotifyConfig, Sender)>,
    owner: OwnerSettings,
    look_every: Duration,
}

impl Notifier {
    /// A notifier that works while it holds the lease of `owner`.
    ///
    /// # Errors
    /// When no TLS client can be made.
    pub(crate) fn new(
        ledger: Arc<dyn Ledger>,
        targets: &[NotifyConfig],
        owner: OwnerSettings,
    ) -> Result<Self, AdapterError> {
        let with_sender = |config: &NotifyConfig| Ok((config.clone(), Sender::new(config)?));
        let targets = targets.iter().map(with_sender).collect::<Result<_, AdapterError>>()?;
        Ok(Self { ledger, targets, owner, look_every: LOOK_EVERY })
    }

    /// The same, which looks more often.
    #[cfg(test)]
    fn looking_every(mut self, look_every: Duration) -> Self {
        self.look_every = look_every;
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
                () = self.attend(&lease, &term) => {}
                never = owner.cancel_when_lost(&lease, &term) => match never {},
            }
        }
        owner.release().await;
    }

    async fn attend(&self, lease: &Lease, term: &CancellationToken) {
        let mut state = loop {
            match answer(term, self.remembered(lease)).await {
                Ok(state) => break state,
                Err(error) => warn!(cause = %with_cause(&error), "what was told is not known; trying again"),
            }
            tokio::time::sleep(self.look_every).await;
        };
        loop {
            if let Err(error) = self.round(lease, &mut state, term).await {
                warn!(cause = %with_cause(&error), "notices wait for the ledger");
            }
            tokio::time::sleep(self.look_every).await;
        }
    }

    async fn remembered(&self, lease: &Lease) -> Result<State, AdapterError> {
        let holder = self.ledger.holder(&lease.name).await?;
        let report = holder.and_then(|holder| holder.report);
        Ok(report.map(|report| State::read(&report.text)).unwrap_or_default())
    }

    /// Looks for news, writes them down, and sends what is due.
    async fn round(
        &self,
        lease: &Lease,
        state: &mut State,
        term: &CancellationToken,
    ) -> Result<(), AdapterError> {
        let open = LetterFilter::of_status(LetterStatus::Open);
        let groups = answer(term, self.ledger.groups(&open, GROUPS)).await?;
        let redrives = answer(term, self.ledger.redrives(None, REDRIVES)).await?;
        let now = Utc::now();
        for (config, _) in &self.targets {
            for news in news::of(config, &groups, &redrives, now) {
                state.take(&config.name, news, now);
            }
        }
        state.prune(now);
        answer(term, self.remember(lease, state)).await?;
        for (config, sender) in &self.targets {
            for _ in 0..AT_ONCE {
                let Some(waiting) = state.due(&config.name, Utc::now()) else { break };
                let sent = sender.send(&waiting.notice).await;
                match &sent {
                    Ok(()) => info!(to = config.name, event = waiting.notice.event, "notice sent"),
                    Err(why) => warn!(to = config.name, why, "a notice was not taken"),
                }
                if !state.settle(&config.name, sent.is_ok(), Utc::now()) {
                    warn!(to = config.name, "a notice was given up: nobody took it for a day");
                }
                answer(term, self.remember(lease, state)).await?;
            }
        }
        Ok(())
    }

    async fn remember(&self, lease: &Lease, state: &mut State) -> Result<(), AdapterError> {
        if let Some(text) = state.changed() {
            self.ledger.report(lease, &text).await?;
            state.kept();
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "notify/tests.rs"]
mod tests;
