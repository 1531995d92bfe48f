//! Short transactions of Backstop's own, which may lose a race for a lock.

use std::future::Future;
use std::time::Duration;

use backstop_core::{AdapterError, FaultKind};
use tokio::time::sleep;
use uuid::Uuid;

use crate::patience::within;

/// Tries before the loser gives up.
const TRIES: u32 = 5;

/// Runs `attempt` until it does not lose a race, a few times at most; each try is bounded by
/// [`PATIENCE`](crate::patience::PATIENCE). A deadlock rolls back the whole transaction, so that nothing is done twice.
pub(crate) async fn contested<T, F: Future<Output = Result<T, AdapterError>>>(
    doing: &str,
    mut attempt: impl FnMut() -> F,
) -> Result<T, AdapterError> {
    let mut tries = 1;
    loop {
        match within(doing, attempt()).await {
            Err(error) if error.kind() == FaultKind::Conflict && tries < TRIES => {
                // Losers that come back together would meet again.
                let jitter = u64::from(Uuid::new_v4().as_bytes()[0]) >> 3;
                sleep(Duration::from_millis(u64::from(tries) * 5 + jitter)).await;
                tries += 1;
            }
            outcome => return outcome,
        }
    }
}
