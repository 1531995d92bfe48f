//! Who may still write a row of the outbox under a number that it has taken.
//!
//! A transaction takes a metadata lock on a table before its first number of it, and keeps it to its end; the
//! performance schema shows them. What it cannot show are transactions of XA that were prepared and then left by their
//! connection: these have their rows written and locked, so that [`locked`] finds them.

use std::time::{Duration, Instant};

use sqlx::{AssertSqlSafe, MySqlPool};

use crate::failure::is_busy;
use crate::scoped::Scoped;
use crate::tables::MySqlTables;

/// The least time between two looks: locks are searched among those of all sessions.
const PAUSE: Duration = Duration::from_millis(20);
/// How long it counts whether locks can be seen at all.
const RETRY: Duration = Duration::from_secs(60);

/// Whether metadata locks are recorded, and this server alone gives the numbers: where several do, as in a cluster, each
/// skips those of the others, and knows none of their locks.
const RECORDED: &str = "SELECT COUNT(*) FROM performance_schema.setup_instruments \
     WHERE NAME = 'wait/lock/metadata/sql/mdl' AND ENABLED = 'YES' AND @@GLOBAL.auto_increment_increment = 1";

/// How many nodes write, where they are of Galera.
const NODES: &str = "SHOW GLOBAL STATUS LIKE 'wsrep_cluster_size'";

/// How many locks could not be recorded for want of room.
const LOST: &str = "SHOW GLOBAL STATUS LIKE 'Performance_schema_metadata_lock_lost'";

/// Looks at the metadata locks on one outbox.
#[derive(Debug)]
pub(crate) struct Witness {
    holders: String,
    next: Instant,
    /// When it was asked last whether locks can be seen, if they could.
    seen: Option<Instant>,
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
        Self { holders, next: Instant::now(), seen: None }
    }

    /// Everything that may write to the outbox at this moment, by names that are not used twice; `None` if that is not
    /// shown, or was asked for only just now.
    pub(crate) async fn look(&mut self, pool: &MySqlPool) -> Option<Vec<String>> {
        if Instant::now() < self.next {
            return None;
        }
        let answer = self.ask(pool).await.unwrap_or_else(|error| {
            tracing::debug!(%error, "who writes to the outbox cannot be seen: missing numbers stay open");
            None
        });
        if answer.is_none() {
            self.seen = None;
        }
        self.next = Instant::now() + if answer.is_some() { PAUSE } else { RETRY };
        answer
    }

    async fn ask(&mut self, pool: &MySqlPool) -> Result<Option<Vec<String>>, sqlx::Error> {
        let mut connection = pool.acquire().await?;
        if self.seen.is_none_or(|seen| seen.elapsed() >= RETRY) {
            let recorded: i64 = sqlx::query_scalar(RECORDED).fetch_one(&mut *connection).await?;
            let nodes: Option<(String, String)> =
                sqlx::query_as(NODES).fetch_optional(&mut *connection).await?;
            if recorded == 0 || nodes.is_some_and(|(_, nodes)| !matches!(nodes.as_str(), "0" | "1")) {
                return Ok(None);
            }
            self.seen = Some(Instant::now());
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
        Err(error) if is_busy(&error) => Ok(true),
        Err(error) => Err(error),
    }
}
