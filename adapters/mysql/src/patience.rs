//! The limit of waiting for the server.
//!
//! A server that vanishes without a word, as in a fail-over or behind a firewall that drops packets, leaves a query
//! waiting for a quarter of an hour, or for ever. The handler's own statements are limited by the handler's time.

use std::future::Future;
use std::time::Duration;

use backstop_core::{AdapterError, FaultKind};
use tokio::time::timeout;

/// Far longer than any statement of the inbox takes, its waits for locks and for a connection included.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// The answer, or an error when there is none within [`PATIENCE`].
pub(crate) async fn within<T>(
    doing: &str,
    answer: impl Future<Output = Result<T, AdapterError>>,
) -> Result<T, AdapterError> {
    timeout(PATIENCE, answer).await.unwrap_or_else(|_| Err(silent(doing)))
}

/// The server did not answer.
pub(crate) fn silent(doing: &str) -> AdapterError {
    let seconds = PATIENCE.as_secs();
    AdapterError::new(FaultKind::Unreachable, format!("cannot {doing}: no answer within {seconds} s"))
        .with_hint(
            "check that the database runs, that the network lets its answers through, and what holds locks",
        )
}
