//! The proof of a commit.
//!
//! PostgreSQL answers COMMIT with a rollback when a statement before it failed, and sqlx takes that for success. So
//! the string that commits first asks whether this very transaction is still alive and well ([`Proof`]): an error skips
//! the rest of the string. It chains: a ROLLBACK ends the transaction that follows without the warning that one outside of a
//! transaction would leave in the server's log, and sqlx's count of open transactions stays right. Three things can be
//! wrong, and each has its own SQLSTATE.

use backstop_core::inbox::CommitError;
use backstop_core::{AdapterError, FaultKind};
use sqlx::postgres::PgSeverity;
use sqlx::{AssertSqlSafe, Executor};
use tokio::time::timeout;

use crate::failure::{code, database_error, failed};
use crate::patience::{PATIENCE, answer_within, silent};
use crate::proof::Proof;
use crate::scoped::Scoped;
use crate::transaction::PgTx;

/// What the server answers after a statement of the transaction has failed.
const IN_FAILED_TRANSACTION: &str = "25P02";

/// Runs `before`, statements each of which ends with a semicolon, and commits, in one round trip; nothing of it
/// happens unless the transaction is still the one that `tx` began. Returns the next transaction on the connection,
/// which is empty.
pub(crate) async fn commit(mut tx: PgTx, before: &str) -> Result<Scoped, CommitError> {
    let proof = tx.proof.statement();
    let (after, limits) = tx.scoped.next_turn(&tx.proof);
    let sql = format!("{proof}; {before}COMMIT AND CHAIN{after}");
    match timeout(PATIENCE, tx.scoped.execute(sqlx::raw_sql(AssertSqlSafe(sql)))).await {
        Ok(Ok(_)) => {
            tx.scoped.enforces(limits);
            Ok(tx.scoped)
        }
        Ok(Err(error)) => Err(judge(error, tx)),
        Err(_) => Err(CommitError::Unknown(silent("learn what became of the commit"))),
    }
}

/// [`commit`], after which the connection goes back to its pool.
pub(crate) async fn commit_and_release(tx: PgTx, before: &str) -> Result<(), CommitError> {
    commit(tx, before).await.map(Scoped::release)
}

/// Whether the transaction is another one than `tx` began, or none. Its proof is used up by that.
pub(crate) async fn is_ended(tx: &mut PgTx) -> Result<bool, AdapterError> {
    let proof = sqlx::raw_sql(AssertSqlSafe(tx.proof.statement()));
    answer_within("learn whether a transaction was ended", async {
        match tx.scoped.execute(proof).await {
            Ok(_) => Ok(false),
            Err(error) if Proof::is_refuted_by(code(&error)) => Ok(true),
            Err(error) if code(&error) == Some(IN_FAILED_TRANSACTION) => Ok(false),
            Err(error) => Err(error),
        }
    })
    .await
}

fn judge(error: sqlx::Error, tx: PgTx) -> CommitError {
    match code(&error) {
        Some(IN_FAILED_TRANSACTION) => {
            tx.scoped.release();
            CommitError::RolledBack(
                AdapterError::new(
                    FaultKind::Other,
                    "a statement of this transaction had failed before its commit",
                )
                .with_hint(
                    "return the error of the statement, or run it in a savepoint of its own (`tx.begin()`)",
                )
                .with_source(error),
            )
        }
        code if Proof::is_refuted_by(code) => CommitError::EndedByHandler(
            AdapterError::new(
                FaultKind::TransactionEnded,
                "the handler ended the transaction that it was lent",
            )
            .with_hint("leave COMMIT and ROLLBACK to the consumer; use `tx.begin()` for savepoints")
            .with_source(error),
        ),
        Some(_) if is_certain(&error) => {
            tx.scoped.release();
            CommitError::RolledBack(failed("commit")(error))
        }
        _ => CommitError::Unknown(failed("learn what became of the commit")(error)),
    }
}

/// Whether the server itself said that nothing was committed, and stayed.
fn is_certain(error: &sqlx::Error) -> bool {
    database_error(error).is_some_and(|error| {
        let ended = matches!(error.severity(), PgSeverity::Fatal | PgSeverity::Panic);
        !ended && !error.code().starts_with("08") && error.code() != "40003"
    })
}
