//! What the owner of an outbox tells of itself, beside its lease in the database: how fast rows flow, and what waits and
//! why. Whoever can ask the database can read it, from any machine; no key of a message is in it.

use std::sync::Arc;
use std::time::Duration;

use backstop_core::AdapterError;
use backstop_core::lease::{Holder, Lease, Leases};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tracing::{debug, warn};

use crate::exit::with_cause;
use crate::owner::Tenure;
use crate::pump::{Fault, PumpState, PumpStatus};

/// How often the owner tells.
pub const EVERY: Duration = Duration::from_secs(5);
/// The age from which nothing of it can be taken for true any more.
const STALE: Duration = Duration::from_secs(20);
/// Destinations and keys that are named at most.
const NAMED: usize = 10;

/// How the owner of an outbox stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Standing {
    /// The token of the lease under which it was told.
    pub token: i64,
    /// `running`, `waiting` or `draining`.
    pub state: String,
    /// Rows published each second, over the last few seconds.
    pub rate: f64,
    /// How many destinations take nothing now.
    pub paused_destinations: usize,
    /// Ten of them.
    pub paused: Vec<Stuck>,
    /// How many keys are blocked.
    pub blocked_keys: usize,
    /// Ten of them.
    pub blocked: Vec<Stuck>,
    /// Why nothing flows, while it does not.
    pub error: Option<Trouble>,
}

/// Rows that wait for somebody.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stuck {
    /// Where they go.
    pub destination: String,
    /// The lowest of them, where known.
    pub seq: Option<i64>,
    /// Why they wait.
    pub trouble: Trouble,
}

/// An error and its remedy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trouble {
    /// What failed, in one line.
    pub error: String,
    /// How to mend it.
    pub hint: Option<String>,
}

impl From<&Fault> for Trouble {
    fn from(fault: &Fault) -> Self {
        Self { error: fault.what.clone(), hint: fault.hint.clone() }
    }
}

impl Standing {
    fn of(status: &PumpStatus, token: i64, rate: f64) -> Self {
        let stuck =
            |destination: String, seq, fault| Stuck { destination, seq, trouble: Trouble::from(fault) };
        let paused = status.paused.iter().take(NAMED);
        let blocked = status.blocked.iter().take(NAMED);
        let waits = status.state == PumpState::Waiting;
        Self {
            token,
            state: status.state.word().to_owned(),
            rate,
            paused_destinations: status.paused_count,
            paused: paused.map(|it| stuck(it.destination.to_string(), it.from, &it.fault)).collect(),
            blocked_keys: status.blocked_count,
            blocked: blocked.map(|it| stuck(it.destination.to_string(), it.from, &it.fault)).collect(),
            error: status.last_error.as_ref().filter(|_| waits).map(Trouble::from),
        }
    }

    /// What the holder of the lease told a moment ago; `None` where it has not yet, or no longer does.
    pub fn told_by(holder: &Holder) -> Option<Self> {
        let report = holder.report.as_ref().filter(|report| report.age <= STALE)?;
        let standing: Self = serde_json::from_str(&report.text).ok()?;
        (standing.token == holder.lease.token).then_some(standing)
    }
}

/// Tells how the pump stands while the lease is ours, until it is dropped. Nothing waits for it, and its failures stop
/// nothing.
pub(crate) async fn tell(
    leases: Arc<dyn Leases>,
    tenures: watch::Receiver<Option<Tenure>>,
    status: watch::Receiver<PumpStatus>,
) {
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut speed = Speed { at: Instant::now(), published: 0 };
    let mut failing = false;
    loop {
        let asked = ticks.tick().await;
        let now = status.borrow().clone();
        let rate = speed.since(asked, now.published);
        let Some(lease) = tenures.borrow().as_ref().map(|tenure| tenure.lease.clone()) else { continue };
        let Some(token) = now.token.filter(|token| *token == lease.token) else { continue };
        match told(&*leases, &lease, &Standing::of(&now, token, rate)).await {
            Ok(()) => failing = false,
            Err(error) if failing => debug!(%error, "status not written"),
            Err(error) => {
                failing = true;
                let (error, hint) = (with_cause(&error), error.hint().map(str::to_owned));
                warn!(error, hint, "status not written, so that `outbox status` shows less");
            }
        }
    }
}

async fn told(leases: &dyn Leases, lease: &Lease, standing: &Standing) -> Result<(), AdapterError> {
    let text = serde_json::to_string(standing).unwrap_or_default();
    tokio::time::timeout(EVERY, leases.report(lease, &text)).await.unwrap_or(Ok(()))
}

/// Rows published between two looks.
struct Speed {
    at: Instant,
    published: u64,
}

impl Speed {
    fn since(&mut self, now: Instant, published: u64) -> f64 {
        let seconds = (now - self.at).as_secs_f64();
        let rows = published.saturating_sub(self.published);
        *self = Self { at: now, published };
        if seconds > 0.0 { (rows as f64 / seconds * 10.0).round() / 10.0 } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use backstop_core::lease::OwnerReport;

    use super::*;

    #[test]
    fn what_is_old_or_of_another_owner_is_not_believed() {
        let standing = Standing::of(&PumpStatus::default(), 7, 12.5);
        let holder = |token, age| Holder {
            lease: Lease { name: "outbox".into(), owner: "a".into(), token },
            remaining: EVERY,
            report: Some(OwnerReport { text: serde_json::to_string(&standing).expect("JSON"), age }),
        };
        assert_eq!(Standing::told_by(&holder(7, EVERY)), Some(standing.clone()));
        assert_eq!(Standing::told_by(&holder(8, EVERY)), None);
        assert_eq!(Standing::told_by(&holder(7, STALE * 2)), None);
        assert_eq!(Standing::told_by(&Holder { report: None, ..holder(7, EVERY) }), None);
    }

    #[test]
    fn the_rate_is_of_the_time_between_two_looks() {
        let begin = Instant::now();
        let mut speed = Speed { at: begin, published: 0 };
        assert_eq!(speed.since(begin + Duration::from_secs(4), 1_000), 250.0);
        assert_eq!(speed.since(begin + Duration::from_secs(8), 1_001), 0.3);
        assert_eq!(speed.since(begin + Duration::from_secs(8), 1_001), 0.0);
    }
}
