//! The handler of the tests: applies an event to the ledger, or fails as the event asks it to.

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::Duration;

use backstop::{BatchHandler, Delivery, Handler, HandlerError, Outcomes};
use backstop_postgres::PgTx;
use serde::{Deserialize, Serialize};

/// An event of the tests.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Event {
    /// Its key, again.
    pub key: String,
    /// Its number among those of its key.
    pub seq: i64,
    /// What is to go wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fail: Option<Fail>,
}

/// What is to go wrong, until the handler is mended, unless it says otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fail {
    /// A transient error on the first attempts, then success.
    Transient(u32),
    /// A transient error for ever.
    Always,
    /// A permanent error.
    Permanent,
    /// A permanent error, also when the handler is mended.
    Hopeless,
    /// A panic for ever.
    Panic,
    /// A failed statement that the handler swallows; on the first attempts only.
    Swallow(u32),
    /// A raw COMMIT in the handler's transaction, after its effect.
    RawCommit,
    /// A statement that runs for longer than the handler may; on the first attempts only.
    Sleep(u32),
    /// A thread that is blocked for longer than the handler may take; on the first attempts only.
    Block(u32),
    /// The end of the process, without a word, after so many transient errors.
    Abort(u32),
}

/// How long a thread is blocked.
const BLOCKED: Duration = Duration::from_millis(700);

/// An event cannot be applied.
#[derive(Debug, thiserror::Error)]
#[error("event {seq} of {key} is not to be applied")]
struct Refused {
    key: String,
    seq: i64,
}

/// Applies events to `applied`, exactly as often as it is called.
#[derive(Debug, Clone)]
pub struct Apply {
    /// The consumer's name, for the ledger.
    pub consumer: String,
    /// How long each event takes.
    pub work: Duration,
    /// Whether events cannot make it fail.
    pub immune: bool,
}

impl Handler<PgTx> for Apply {
    type Message = Event;

    async fn handle(&self, delivery: &Delivery<Event>, tx: &mut PgTx) -> Result<(), HandlerError> {
        let event = delivery.body();
        let fail = match event.fail {
            Some(fail) if !self.immune && (fail == Fail::Hopeless || !mended(tx).await?) => Some(fail),
            _ => None,
        };
        let early = |times: u32| delivery.attempt() <= times;
        match fail {
            Some(Fail::Transient(times)) if early(times) => {
                return Err(HandlerError::transient(refused(event)));
            }
            Some(Fail::Always) => return Err(HandlerError::transient(refused(event))),
            Some(Fail::Permanent | Fail::Hopeless) => return Err(HandlerError::permanent(refused(event))),
            Some(Fail::Panic) => panic!("event {} of {} panics", event.seq, event.key),
            Some(Fail::Abort(errors)) if early(errors) => {
                return Err(HandlerError::transient(refused(event)));
            }
            Some(Fail::Abort(_)) => std::process::abort(),
            Some(Fail::Block(times)) if early(times) => std::thread::sleep(BLOCKED),
            Some(Fail::Sleep(times)) if early(times) => {
                sqlx::query("SELECT pg_sleep(60)").execute(&mut **tx).await?;
            }
            _ => {}
        }
        self.apply(delivery, tx).await?;
        match fail {
            Some(Fail::Swallow(times)) if early(times) => {
                let swallowed = sqlx::query("SELECT 1 / 0").execute(&mut **tx).await;
                assert!(swallowed.is_err(), "division by zero fails");
            }
            Some(Fail::RawCommit) => {
                sqlx::raw_sql("COMMIT").execute(&mut **tx).await?;
            }
            _ => {}
        }
        Ok(())
    }
}

impl Apply {
    async fn apply(&self, delivery: &Delivery<Event>, tx: &mut PgTx) -> Result<(), HandlerError> {
        let event = delivery.body();
        let turn = Turn::take(&self.consumer, &event.key);
        if !self.work.is_zero() {
            tokio::time::sleep(self.work).await;
        }
        sqlx::query("INSERT INTO applied (consumer, id, key, seq, overlap) VALUES ($1, $2, $3, $4, $5)")
            .bind(&self.consumer)
            .bind(&delivery.message().id)
            .bind(&event.key)
            .bind(event.seq)
            .bind(turn.overlaps)
            .execute(&mut **tx)
            .await?;
        Ok(())
    }
}

/// The same for several events in one transaction.
#[derive(Debug, Clone)]
pub struct ApplyAll(pub Apply);

impl BatchHandler<PgTx> for ApplyAll {
    type Message = Event;

    async fn handle(&self, batch: &[&Delivery<Event>], tx: &mut PgTx) -> Result<Outcomes, HandlerError> {
        let mut outcomes = Outcomes::handled();
        for (at, delivery) in batch.iter().enumerate() {
            if let Err(error) = self.0.handle(delivery, tx).await {
                outcomes.fail(at, error);
            }
        }
        Ok(outcomes)
    }
}

/// The keys that this process is at, whatever instance of a consumer has them.
static RUNNING: LazyLock<Mutex<HashMap<(String, String), u32>>> = LazyLock::new(Mutex::default);

/// One event of a key is at work in this process.
#[derive(Debug)]
struct Turn {
    name: (String, String),
    overlaps: bool,
}

impl Turn {
    fn take(consumer: &str, key: &str) -> Self {
        let name = (consumer.to_owned(), key.to_owned());
        let mut running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
        let count = running.entry(name.clone()).or_default();
        *count += 1;
        let overlaps = *count > 1;
        drop(running);
        Self { name, overlaps }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = running.get_mut(&self.name) {
            *count -= 1;
        }
    }
}

async fn mended(tx: &mut PgTx) -> Result<bool, HandlerError> {
    Ok(sqlx::query_scalar("SELECT mended FROM control").fetch_one(&mut **tx).await?)
}

fn refused(event: &Event) -> Refused {
    Refused { key: event.key.clone(), seq: event.seq }
}
