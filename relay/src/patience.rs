//! The limit of waiting for the ledger, for work that is done under a lease.
//!
//! A server that vanishes without a word leaves a query waiting for as long as TCP hopes, and a lock that somebody keeps has
//! no end at all. The lease would be renewed over another connection meanwhile, and no other relay would take over.

use std::error::Error as _;
use std::time::Duration;

use backstop_core::{AdapterError, FaultKind};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

/// How long the ledger may take to answer before the connection counts as lost.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);

/// How long it may take once the term has ended: what was done is to be written down, if that can be.
const LAST: Duration = Duration::from_secs(5);

/// The answer, or an error when there is none in time.
pub(crate) async fn answer<T>(
    term: &CancellationToken,
    asked: impl Future<Output = Result<T, AdapterError>>,
) -> Result<T, AdapterError> {
    let too_late = async {
        tokio::select! {
            () = sleep(LIMIT) => {}
            () = async { term.cancelled().await; sleep(LAST).await } => {}
        }
    };
    tokio::select! {
        biased;
        answer = asked => answer,
        () = too_late => Err(silent()),
    }
}

/// Nothing came back.
#[derive(Debug, thiserror::Error)]
#[error("no answer")]
struct Silence;

/// Whether an error is that the ledger did not answer.
pub(crate) fn is_silence(error: &AdapterError) -> bool {
    error.source().is_some_and(|cause| cause.is::<Silence>())
}

/// The ledger did not answer.
pub(crate) fn silent() -> AdapterError {
    AdapterError::new(FaultKind::Unreachable, "the ledger has not answered in time")
        .with_source(Silence)
        .with_hint("look for a lock on the ledger's tables, or a lost connection")
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn silence_ends_and_sooner_once_the_term_has_ended() {
        let (begun, term) = (Instant::now(), CancellationToken::new());
        let error = answer(&term, pending::<Result<(), _>>()).await.expect_err("nobody answers");
        assert_eq!((error.kind(), begun.elapsed().as_secs()), (FaultKind::Unreachable, LIMIT.as_secs()));
        term.cancel();
        answer(&term, pending::<Result<(), _>>()).await.expect_err("nobody answers");
        assert_eq!(begun.elapsed().as_secs(), (LIMIT + LAST).as_secs());
        answer(&term, async { Ok(()) }).await.expect("what is answered at once is heard");
    }
}
