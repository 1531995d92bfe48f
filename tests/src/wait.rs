//! Waiting for events, with a bound.

use std::future::Future;
use std::time::Duration;

use tokio::time::{Instant, sleep};

/// Looks again and again until `look` says yes.
///
/// # Panics
/// When that takes longer than `limit`; the message says what was waited for.
pub async fn until<F: Future<Output = bool>>(what: &str, limit: Duration, mut look: impl FnMut() -> F) {
    let end = Instant::now() + limit;
    while !look().await {
        assert!(Instant::now() < end, "waited {limit:?} in vain: {what}");
        sleep(Duration::from_millis(50)).await;
    }
}
