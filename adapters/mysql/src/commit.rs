//! The proof of a commit.
//!
//! A deadlock rolls the whole transaction back, and DDL commits it behind the handler's back; a handler that swallows
//! the one or runs the other goes on as if nothing had happened. A savepoint lives exactly as long as its
//! transaction. So the string that commits first releases the savepoint that was set when the inbox row was written:
//! an error skips the rest of the string.

use backstop_core::inbox::CommitError;
use backstop_core::{AdapterError, FaultKind};
use sqlx::{AssertSqlSafe, Row};
use tokio::time::timeout;

use crate::failure::{database_error, errors, failed, is_read_only, number};
use crate::inbox::InboxSql;
use crate::patience::{PATIENCE, silent, within};
use crate::scoped::Stopped;
use crate::transaction::MySqlTx;

const COMMIT: &str = "COMMIT AND NO CHAIN NO RELEASE";

/// Runs `before` and commits, in one round trip; nothing of it happens unless the transaction is still the one that
/// `tx` began.
pub(crate) async fn commit(mut tx: MySqlTx, before: &[String], sql: &InboxSql) -> Result<(), CommitError> {
    let mut statements = format!("RELEASE SAVEPOINT {}; ", tx.savepoint);
    for statement in before {
        statements += statement;
        statements += "; ";
    }
    statements += &tx.scoped.ending(COMMIT);
    match timeout(PATIENCE, tx.scoped.run(statements)).await {
        Ok(Ok(_)) => {
            tx.scoped.release();
            Ok(())
        }
        // It has committed; only the connection cannot be given back.
        Ok(Err(stopped)) if stopped.ran > 1 + before.len() => Ok(()),
        Ok(Err(stopped)) => Err(judge(stopped, tx, 1 + before.len(), sql).await),
        Err(_) => Err(CommitError::Unknown(silent("learn what became of the commit"))),
    }
}

/// Whether the transaction is the one that `tx` began. It has a new proof after that.
pub(crate) async fn is_unbroken(tx: &mut MySqlTx) -> Result<bool, AdapterError> {
    const DOING: &str = "learn whether a transaction was ended";
    let renew = format!("RELEASE SAVEPOINT {0}; SAVEPOINT {0}", tx.savepoint);
    within(DOING, async {
        match tx.scoped.run(renew).await {
            Ok(_) => Ok(true),
            Err(stopped) if number(&stopped.error) == Some(errors::NO_SAVEPOINT) => Ok(false),
            Err(stopped) => Err(failed(DOING)(stopped.error)),
        }
    })
    .await
}

async fn judge(stopped: Stopped, tx: MySqlTx, commit: usize, sql: &InboxSql) -> CommitError {
    let Stopped { ran, error } = stopped;
    if ran == 0 && number(&error) == Some(errors::NO_SAVEPOINT) {
        return ended(error, tx, sql).await;
    }
    if database_error(&error).is_some() && (ran < commit || is_certain(&error)) {
        tx.scoped.rollback().await;
        return CommitError::RolledBack(failed("commit")(error));
    }
    CommitError::Unknown(failed("learn what became of the commit")(error))
}

/// The transaction had ended before its commit. Its inbox row tells how: autocommit is off, so that nothing that came
/// after a rollback has stayed, unless the handler committed that too.
async fn ended(error: sqlx::Error, mut tx: MySqlTx, sql: &InboxSql) -> CommitError {
    const ASKING: &str = "learn what became of a transaction that ended before its commit";
    let (consumer, message_key) = &tx.message;
    let committed = async {
        // What the handler did after the end of its transaction is not to be committed by giving the connection back.
        tx.scoped
            .run("ROLLBACK AND NO CHAIN NO RELEASE".to_owned())
            .await
            .map_err(|stopped| stopped.error)?;
        sqlx::query(AssertSqlSafe(sql.is_handled.clone()))
            .bind(consumer.as_bytes())
            .bind(message_key.as_str().as_bytes())
            .fetch_one(&mut *tx.scoped)
            .await?
            .try_get::<i64, _>(0)
    };
    let is_committed = match timeout(PATIENCE, committed).await {
        Ok(Ok(found)) => found != 0,
        // A handler that swallowed a deadlock is here as well as one that committed: nobody is to blame before it is known.
        Ok(Err(lost)) => return CommitError::Unknown(failed(ASKING)(lost)),
        Err(_) => return CommitError::Unknown(silent(ASKING)),
    };
    tx.scoped.rollback().await;
    if is_committed { by_handler(error) } else { rolled_back(error) }
}

fn by_handler(error: sqlx::Error) -> CommitError {
    CommitError::EndedByHandler(
        AdapterError::new(FaultKind::TransactionEnded, "the handler ended the transaction that it was lent")
            .with_hint(
                "leave COMMIT and ROLLBACK to the consumer, and run no DDL, which commits; use `tx.begin()` for \
                 savepoints",
            )
            .with_source(error),
    )
}

fn rolled_back(error: sqlx::Error) -> CommitError {
    CommitError::RolledBack(
        AdapterError::new(FaultKind::Conflict, "the transaction was rolled back before its commit")
            .with_hint(
                "return the errors of statements: a deadlock rolls everything back; and leave ROLLBACK to the \
                 consumer",
            )
            .with_source(error),
    )
}

/// Whether the answer to COMMIT itself says that nothing was committed.
fn is_certain(error: &sqlx::Error) -> bool {
    database_error(error).is_some_and(|error| {
        is_read_only(error) || matches!(error.number(), errors::DEADLOCK | errors::LOCK_TIMEOUT)
    })
}
