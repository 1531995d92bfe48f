//! What people do with dead letters and see of the relay, whether they ask over the API or in the console: who may do
//! what, what is written into the audit log, and how a failure is told.

pub(crate) mod caller;
mod changes;
mod edit;
pub(crate) mod filter;
mod held;
mod letters;
mod outboxes;
mod plan;
mod redrives;
mod rules;
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
use crate::config::{Config, DeadLettersConfig};
use crate::database::Database;
use crate::edit::Editing;
use crate::encryption::Keyring;
use crate::jobs::Jobs;

use held::HeldIn;

pub(crate) use caller::{Caller, Role};
pub(crate) use changes::{Changed, Choice, Meant};
pub(crate) use held::{HeldLine, HeldLook, endings};
pub(crate) use letters::{Body, GroupRow, Page, State};
pub(crate) use outboxes::OutboxLook;
pub(crate) use plan::{Order, Plan};
pub(crate) use redrives::{Started, Steer, id_of_key};
pub(crate) use trouble::{Done, Kind, Trouble};

/// How long the ledger's database may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Letters that are judged for a plan; each takes some 1.5 µs.
const JUDGED: u64 = 50_000;
/// How long each of several databases may take that are on one page: the rest of the page must fit into the time of the
/// answer, too.
const GLANCE: Duration = Duration::from_secs(4);

/// Opens the ledger; asked until it succeeds once.
pub(crate) type OpenLedger =
    Box<dyn Fn() -> BoxFuture<'static, Result<Arc<dyn Ledger>, AdapterError>> + Send + Sync>;

/// Makes the way to doors.
type OpenDoors = Box<dyn Fn() -> Result<Box<dyn Doors>, Trouble> + Send + Sync>;

/// What redrives are bound to, by configuration.
#[derive(Debug, Clone)]
pub(crate) struct Bounds {
    /// Topics and queues that letters without a door may be sent back to.
    pub(crate) targets: Vec<String>,
    /// From how many redrives on a letter is left alone.
    pub(crate) max_generation: i64,
    /// How long consumers remember what they have handled; `None` where nobody says.
    pub(crate) inbox_retention: Option<Duration>,
    /// How long an outcome may take before a letter counts as silent.
    pub(crate) silent_after: Duration,
    /// Letters that are judged for a plan at most: as many as fit into the time of an answer.
    pub(crate) judged: u64,
}

impl Bounds {
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
    pub(crate) bounds: Bounds,
    /// Where the rules are that make redrives by themselves.
    letters: DeadLettersConfig,
    pub(crate) editing: Editing,
}

impl std::fmt::Debug for Desk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Desk").field("bounds", &self.bounds).finish_non_exhaustive()
    }
}

impl Desk {
    /// The desk of a relay with this configuration.
    pub(crate) fn of(config: &Config, jobs: Jobs) -> Self {
        let (database, redrive) = (config.ledger().clone(), &config.dead_letters.redrive);
        let bounds = Bounds {
            targets: redrive.targets.clone(),
            max_generation: i64::from(redrive.max_generation),
            inbox_retention: redrive.inbox_retention,
            silent_after: redrive.silent_after,
            judged: JUDGED,
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
            bounds,
            letters: config.dead_letters.clone(),
            editing: Editing::of(&config.dead_letters),
        }
    }

    /// The same with another way to doors.
    #[cfg(test)]
    pub(crate) fn with_doors(mut self, doors: impl Doors + 'static) -> Self {
        self.doors = OnceLock::from(Box::new(doors) as Box<dyn Doors>);
        self
    }

    /// The same with plans of at most so many letters.
    #[cfg(test)]
    pub(crate) fn judging(mut self, letters: u64) -> Self {
        self.bounds.judged = letters;
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

/// The same for what changes something, of which nobody may know whether it did when it fails; `look` shows it.
async fn in_time_or_unknown<T>(
    look: &'static str,
    asked: impl Future<Output = Result<T, AdapterError>>,
) -> Result<T, Trouble> {
    match timeout(PATIENCE, asked).await {
        Ok(answer) => answer.map_err(|error| Trouble::of_change(&error, look)),
        Err(_) => Err(Trouble::slow(PATIENCE).unknown(look)),
    }
}

/// What one of several databases on a page says, or that it takes too long for that.
async fn glance<T>(look: impl Future<Output = Result<T, Trouble>>) -> Result<T, Trouble> {
    timeout(GLANCE, look).await.unwrap_or_else(|_| Err(Trouble::slow(GLANCE)))
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use backstop_core::held_keys::HeldFilter;
    use backstop_postgres::{PgOutboxStore, PgTables};
    use sqlx::PgPool;
    use tokio::net::TcpListener;
    use tokio::sync::watch;
    use tokio::time::Instant;

    use super::*;
    use crate::config::Environment;
    use crate::pump::PumpStatus;

    /// The desk of a relay with outboxes in four databases, none of which answers.
    fn desk(server: &TcpListener) -> Desk {
        let names = ["a", "b", "c", "d"].map(str::to_owned);
        let url = |name: &str| format!("postgres://x@{}/{name}", server.local_addr().expect("an address"));
        let mut text = format!("[database]\nurl = \"{}\"\n", url("a"));
        let jobs = Jobs::new(names.clone());
        for name in &names {
            let outbox = format!("[[outbox]]\nname = \"{name}\"\ndatabase = {{ url = \"{}\" }}\n", url(name));
            text.write_str(&outbox).expect("a string takes everything");
            let pool = PgPool::connect_lazy(&url(name)).expect("a URL");
            let store = Arc::new(PgOutboxStore::new(pool, PgTables::default()));
            let (_sender, status) = watch::channel(PumpStatus::default());
            jobs.started(name, store, status, Arc::default());
        }
        Desk::of(&Config::parse(&text, &Environment::default()).expect("sound"), jobs)
    }

    #[tokio::test(start_paused = true)]
    async fn databases_that_are_silent_are_waited_for_side_by_side() {
        let server = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let desk = desk(&server);
        let begun = Instant::now();
        let outboxes = desk.outboxes().await;
        assert_eq!(outboxes.iter().filter(|look| look.trouble.is_some()).count(), 4);
        // A timer is up to a millisecond late.
        let most = GLANCE + Duration::from_millis(5);
        assert!(begun.elapsed() <= most, "{:?}", begun.elapsed());
        let begun = Instant::now();
        let held = desk.held(&HeldFilter::default(), 10).await.expect("looked at");
        assert_eq!(held.iter().filter(|look| look.trouble.is_some()).count(), 4);
        assert!(begun.elapsed() <= most, "{:?}", begun.elapsed());
    }
}
