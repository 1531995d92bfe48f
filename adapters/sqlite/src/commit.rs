//! Committing with proof.

use backstop_core::inbox::CommitError;
use backstop_core::{AdapterError, FaultKind};

use crate::error::{adapter, code, primary};
use crate::tx::SqliteTx;

/// Proves that the transaction is the one that was lent.
///
/// It was begun with a savepoint of a name of its own. COMMIT and ROLLBACK delete savepoints, so one that can still
/// be released proves that neither has happened: not a COMMIT with a new BEGIN after it either, and not one of the
/// rollbacks that SQLite itself does after some errors (disk full, `RAISE(ROLLBACK)`, an interrupted write).
pub(crate) async fn prove(tx: &mut SqliteTx) -> Result<(), CommitError> {
    match tx.release().await {
        Ok(()) => {}
        Err(error) if primary(&error) == Some(code::ERROR) => {
            return Err(CommitError::EndedByHandler(ended(error)));
        }
        Err(error) => {
            return Err(CommitError::RolledBack(adapter("the transaction cannot be used any more", error)));
        }
    }
    if tx.depth() != 1 {
        let what = "a nested transaction was left open";
        return Err(CommitError::RolledBack(
            AdapterError::new(FaultKind::Other, what)
                .with_hint("commit or drop what `begin` returned before the handler ends"),
        ));
    }
    Ok(())
}

/// Commits a transaction that is proved, or that nobody was lent.
pub(crate) async fn commit(mut tx: SqliteTx) -> Result<(), CommitError> {
    let Err(error) = tx.end().await else {
        return Ok(());
    };
    let unknown = match &error {
        sqlx::Error::WorkerCrashed | sqlx::Error::Io(_) => true,
        other => primary(other) == Some(code::IOERR),
    };
    let error = adapter("the commit failed", error);
    // A refused commit (a deferred foreign key) leaves the transaction open; it ends with its connection.
    Err(if unknown { CommitError::Unknown(error) } else { CommitError::RolledBack(error) })
}

fn ended(error: sqlx::Error) -> AdapterError {
    let what = "the transaction had ended before its commit";
    AdapterError::new(FaultKind::TransactionEnded, what)
        .with_hint(
            "leave COMMIT and ROLLBACK to Backstop, and return errors of the database instead of going on after them",
        )
        .with_source(error)
}
