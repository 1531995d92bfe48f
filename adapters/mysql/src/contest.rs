//! Short transactions of Backstop's own, which may lose a race for a lock.

use std::future::Future;
use std::time::Duration;

use backstop_core::{AdapterError, FaultKind};
use sqlx::MySqlPool;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use crate::failure::failed;
use crate::patience::within;
use crate::scoped::Scoped;

/// Tries before the loser gives up.
const TRIES: u32 = 5;

/// Whoever has waited for longer has lost no race, and gives up: somebody sits on the lock.
const HASTE: Duration = Duration::from_secs(15);

/// Runs `attempt` until it does not lose a race, a few times at most; each try is bounded by
/// [`PATIENCE`](crate::patience::PATIENCE). A deadlock rolls back the whole transaction, so that nothing is done twice.
pub(crate) async fn contested<T, F: Future<Output = Result<T, AdapterError>>>(
    doing: &str,
    mut attempt: impl FnMut() -> F,
) -> Result<T, AdapterError> {
    let (began, mut tries) = (Instant::now(), 1);
    loop {
        match within(doing, attempt()).await {
            Err(error) if error.kind() == FaultKind::Conflict && tries < TRIES && began.elapsed() < HASTE => {
                // Losers that come back together would meet again.
                let jitter = u64::from(Uuid::new_v4().as_bytes()[0]) >> 3;
                sleep(Duration::from_millis(u64::from(tries) * 5 + jitter)).await;
                tries += 1;
            }
            outcome => return outcome,
        }
    }
}

/// Runs statements in a transaction of their own, as [`contested`] does it; how many rows each has changed.
pub(crate) async fn run_contested(
    pool: &MySqlPool,
    doing: &str,
    sql: String,
) -> Result<Vec<u64>, AdapterError> {
    contested(doing, async || {
        let mut scoped = Scoped::begin(pool).await.map_err(failed(doing))?;
        let changed = scoped.run(sql.clone()).await.map_err(|stopped| failed(doing)(stopped.error))?;
        scoped.commit().await.map_err(failed(doing))?;
        Ok(changed)
    })
    .await
}
