//! Who may still write a row of the outbox under a number that it has taken.
//!
//! A transaction takes a metadata lock on a table before its first number of it, and keeps it to its end; the
//! performance schema shows them. What it cannot show are transactions of XA that were prepared and then left by their
//! connection: these have their rows written and locked, so that [`locked`] finds them.

use std::time::{Duration, Instant};

use sqlx::{AssertSqlSafe, MySqlPool};

use crate::failure::{is_busy, number};
use crate::scoped::Scoped;
use crate::tables::MySqlTables;

/// The least time between two looks: locks are searched among those of all sessions.
const PAUSE: Duration = Duration::from_millis(20);
/// How long to wait before it is asked again whether locks are shown.
const RETRY: Duration = Duration::from_secs(60);

/// Whether metadata locks are recorded, and all of them.
const RECORDED: &str = "SELECT COUNT(*) FROM performance_schema.setup_instruments \
     WHERE NAME = 'wait/lock/metadata/sql/mdl' AND ENABLED = 'YES'";

/// How many could not be recorded for want of room.
const LOST: &str = "SHOW GLOBAL STATUS LIKE 'Performance_schema_metadata_lock_lost'";

/// Looks at the metadata locks on one outbox.
#[derive(Debug)]
pub(crate) struct Witness {
    holders: String,
    next: Instant,
    shown: bool,
}

impl Witness {
    pub(crate) fn new(tables: &MySqlTables) -> Self {
        // Names may be kept in lowercase, depending on the server; taking in too many locks is harmless.
        let holders = format!(
            "SELECT CAST(CONCAT_WS('/', OWNER_THREAD_ID, OWNER_EVENT_ID, OBJECT_INSTANCE_BEGIN) AS CHAR) \
             FROM performance_schema.metadata_locks WHERE OBJECT_TYPE = 'TABLE' \
             AND LOWER(OBJECT_SCHEMA) = LOWER({}) AND LOWER(OBJECT_NAME) = '{}' \
             AND LOCK_TYPE NOT IN ('SHARED', 'SHARED_HIGH_PRIO', 'SHARED_READ', 'SHARED_READ_ONLY')",
            tables.schema_expression(),
            tables.name("outbox").to_ascii_lowercase()
        );
        Self { holders, next: Instant::now(), shown: false }
    }

    /// Everything that may write to the outbox at this moment, by names that are not used twice; `None` if that is not
    /// shown, or was asked for only just now.
    pub(crate) async fn look(&mut self, pool: &MySqlPool) -> Option<Vec<String>> {
        if Instant::now() < self.next {
            return None;
        }
        let answer = self.ask(pool).await;
        let (pause, shown) = match answer {
            Ok(Some(_)) => (PAUSE, true),
            Ok(None) | Err(_) => (RETRY, false),
        };
        if let Err(error) = &answer {
            tracing::debug!(%error, "who writes to the outbox cannot be seen: missing numbers stay open");
        }
        self.next = Instant::now() + pause;
        self.shown = shown;
        answer.ok().flatten()
    }

    async fn ask(&self, pool: &MySqlPool) -> Result<Option<Vec<String>>, sqlx::Error> {
        let mut connection = pool.acquire().await?;
        if !self.shown {
            let recorded: i64 = sqlx::query_scalar(RECORDED).fetch_one(&mut *connection).await?;
            if recorded == 0 {
                return Ok(None);
            }
        }
        let holders =
            sqlx::query_scalar(AssertSqlSafe(self.holders.clone())).fetch_all(&mut *connection).await?;
        let lost: Option<(String, String)> = sqlx::query_as(LOST).fetch_optional(&mut *connection).await?;
        let complete = lost.is_some_and(|(_, lost)| lost == "0");
        Ok(complete.then_some(holders))
    }
}

/// Whether a row in one of the ranges exists, committed or not. `condition` says which.
pub(crate) async fn locked(pool: &MySqlPool, outbox: &str, condition: &str) -> Result<bool, sqlx::Error> {
    let sql =
        format!("SELECT seq FROM {outbox} FORCE INDEX (PRIMARY) WHERE {condition} LIMIT 1 FOR UPDATE NOWAIT");
    let mut scoped = Scoped::begin(pool).await?;
    let found =
        sqlx::query_scalar::<_, i64>(AssertSqlSafe(sql)).persistent(false).fetch_optional(&mut *scoped).await;
    scoped.rollback().await;
    match found {
        Ok(found) => Ok(found.is_some()),
        Err(error) if is_busy(&error) || number(&error) == Some(1969) => Ok(true),
        Err(error) => Err(error),
    }
}
