//! The limit of waiting for the server.
//!
//! A server that vanishes without a word, as in a fail-over or behind a firewall that drops packets, leaves a query
//! waiting for a quarter of an hour, or for ever. The handler's own statements are limited by the handler's time.

use std::future::Future;
use std::time::Duration;

use backstop_core::{AdapterError, FaultKind};
use futures_util::{FutureExt, TryFutureExt};
use tokio::time::timeout;

use crate::failure::failed;

/// Far longer than any statement of the inbox takes, its waits for locks and for a connection included.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// The answer, or an error when there is none within [`PATIENCE`].
pub(crate) fn within<T>(
    doing: &str,
    answer: impl Future<Output = Result<T, AdapterError>>,
) -> impl Future<Output = Result<T, AdapterError>> {
    timeout(PATIENCE, answer).map(move |answer| answer.unwrap_or_else(|_| Err(silent(doing))))
}

/// The same for what sqlx answers; `doing` completes "cannot …".
pub(crate) fn answer_within<T>(
    doing: &str,
    answer: impl Future<Output = Result<T, sqlx::Error>>,
) -> impl Future<Output = Result<T, AdapterError>> {
    within(doing, answer.map_err(move |error| failed(doing)(error)))
}

/// The server did not answer.
pub(crate) fn silent(doing: &str) -> AdapterError {
    let seconds = PATIENCE.as_secs();
    AdapterError::new(FaultKind::Unreachable, format!("cannot {doing}: no answer within {seconds} s"))
        .with_hint(
            "check that the database runs, that the network lets its answers through, and what holds locks",
        )
}
