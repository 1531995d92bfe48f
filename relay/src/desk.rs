//! What people do with dead letters and see of the relay, whether they ask over the API or in the console: who may do
//! what, what is written into the audit log, and how a failure is told.

pub(crate) mod caller;
pub(crate) mod filter;
mod held;
mod letters;
mod outboxes;
mod plan;
mod redrives;
mod trail;
mod trouble;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use backstop_core::AdapterError;
use backstop_core::ledger::Ledger;
use chrono::{DateTime, TimeDelta, Utc};
use futures_core::future::BoxFuture;
use tokio::sync::OnceCell;
use tokio::time::timeout;

use crate::ask::Doors;
use crate::broker;
use crate::config::Config;
use crate::database::Database;
use crate::encryption::Keyring;
use crate::jobs::Jobs;

use held::HeldIn;

pub(crate) use caller::{Caller, Role};
pub(crate) use held::{HeldLine, HeldLook, endings};
pub(crate) use letters::{Body, Changed, GroupRow, Page, State};
pub(crate) use outboxes::OutboxLook;
pub(crate) use plan::{Order, Plan};
pub(crate) use redrives::{Started, Steer, id_of_key};
pub(crate) use trouble::{Kind, Trouble};

/// How long the ledger's database may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Opens the ledger; asked until it succeeds once.
pub(crate) type OpenLedger =
    Box<dyn Fn() -> BoxFuture<'static, Result<Arc<dyn Ledger>, AdapterError>> + Send + Sync>;

/// Makes the way to doors.
type OpenDoors = Box<dyn Fn() -> Result<Box<dyn Doors>, Trouble> + Send + Sync>;

/// What redrives are bound to, by configuration.
#[derive(Debug, Clone)]
pub(crate) struct Rules {
    /// Topics and queues that letters without a door may be sent back to.
    pub(crate) targets: Vec<String>,
    /// From how many redrives on a letter is left alone.
    pub(crate) max_generation: i64,
    /// How long consumers remember what they have handled; `None` where nobody says.
    pub(crate) inbox_retention: Option<Duration>,
    /// How long an outcome may take before a letter counts as silent.
    pub(crate) silent_after: Duration,
}

impl Rules {
    /// Letters that failed before this time are past what consumers remember.
    pub(crate) fn horizon(&self, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let retention = TimeDelta::from_std(self.inbox_retention?).ok()?;
        now.checked_sub_signed(retention)
    }
}

/// Everything that API and console ask.
pub(crate) struct Desk {
    open: OpenLedger,
    ledger: OnceCell<Arc<dyn Ledger>>,
    /// Bodies of letters come encrypted from the ledger.
    pub(crate) keys: Keyring,
    jobs: Jobs,
    held: Vec<HeldIn>,
    open_doors: OpenDoors,
    doors: OnceLock<Box<dyn Doors>>,
    pub(crate) rules: Rules,
}

impl std::fmt::Debug for Desk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Desk").field("rules", &self.rules).finish_non_exhaustive()
    }
}

impl Desk {
    /// The desk of a relay with this configuration.
    pub(crate) fn of(config: &Config, jobs: Jobs) -> Self {
        let (database, redrive) = (config.ledger().clone(), &config.dead_letters.redrive);
        let rules = Rules {
            targets: redrive.targets.clone(),
            max_generation: i64::from(redrive.max_generation),
            inbox_retention: redrive.inbox_retention,
            silent_after: redrive.silent_after,
        };
        let open = move || -> BoxFuture<'static, _> {
            let database = database.clone();
            Box::pin(async move { Database::open(&database).await?.ledger() })
        };
        let broker = config.broker.clone();
        let open_doors = move || -> Result<Box<dyn Doors>, Trouble> {
            let broker = broker.as_ref().ok_or_else(no_broker)?;
            Ok(Box::new(broker::sink(broker).map_err(|error| Trouble::of(&error))?))
        };
        Self {
            open: Box::new(open),
            ledger: OnceCell::new(),
            keys: Keyring::of(config.dead_letters.encryption.as_ref()),
            jobs,
            held: HeldIn::of(config),
            open_doors: Box::new(open_doors),
            doors: OnceLock::new(),
            rules,
        }
    }

    /// The same with another way to doors.
    #[cfg(test)]
    pub(crate) fn with_doors(mut self, doors: impl Doors + 'static) -> Self {
        self.doors = OnceLock::from(Box::new(doors) as Box<dyn Doors>);
        self
    }

    /// The way to doors, made at the first question; it connects when something is sent.
    fn doors(&self) -> Result<&dyn Doors, Trouble> {
        if let Some(doors) = self.doors.get() {
            return Ok(&**doors);
        }
        let opened = (self.open_doors)()?;
        Ok(&**self.doors.get_or_init(|| opened))
    }

    /// The ledger, opened at the first question.
    pub(crate) async fn ledger(&self) -> Result<&dyn Ledger, Trouble> {
        let opened = in_time(self.ledger.get_or_try_init(|| (self.open)())).await?;
        Ok(&**opened)
    }
}

fn no_broker() -> Trouble {
    Trouble::new(Kind::Failed, "this relay has no [broker] to reach doors through", "add [broker]")
}

/// The answer of a database, or that it takes too long.
async fn in_time<T>(asked: impl Future<Output = Result<T, AdapterError>>) -> Result<T, Trouble> {
    match timeout(PATIENCE, asked).await {
        Ok(answer) => answer.map_err(|error| Trouble::of(&error)),
        Err(_) => Err(Trouble::slow(PATIENCE)),
    }
}
