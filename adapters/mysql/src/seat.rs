//! A connection that is kept for statements which must not take longer than one round trip.
//!
//! A pool looks at a connection before it hands it out, and a transaction begins and ends with statements of its own:
//! five round trips where one has to do.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::TryStreamExt;
use sqlx::mysql::MySqlQueryResult;
use sqlx::{AssertSqlSafe, Either, MySqlConnection, MySqlPool};

use crate::failure::{errors, number};
use crate::session;

/// What a string of statements came to.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    /// Of the first statement.
    pub(crate) first: Option<MySqlQueryResult>,
    /// Rows that came, of all statements.
    pub(crate) rows: u64,
}

/// Keeps one connection; clones share it.
#[derive(Clone, Default)]
pub(crate) struct Seat(Arc<Mutex<Option<MySqlConnection>>>);

impl Seat {
    /// Runs a string of statements: what the first of them did, and how many rows came. What is sent while something
    /// else is under way has a connection of its own. Where the kept one fails, the string is sent again
    /// on a fresh one.
    pub(crate) async fn ask(&self, pool: &MySqlPool, sql: &str) -> Result<Answer, sqlx::Error> {
        if let Some(kept) = self.take() {
            match self.ask_on(kept, sql).await {
                // A connection may have been lost while nobody looked at it, in more ways than one. A lock that was
                // waited for in vain is not free on another one either.
                Err(error) if number(&error) != Some(errors::LOCK_TIMEOUT) => {}
                answer => return answer,
            }
        }
        let mut fresh = pool.acquire().await?.detach();
        sqlx::raw_sql(AssertSqlSafe(session::alone())).execute(&mut fresh).await?;
        self.ask_on(fresh, sql).await
    }

    /// A connection on which something went wrong, or whose answer nobody waits for any more, is closed.
    async fn ask_on(&self, mut connection: MySqlConnection, sql: &str) -> Result<Answer, sqlx::Error> {
        let mut answer = Answer::default();
        {
            let mut parts = sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).fetch_many(&mut connection);
            while let Some(part) = parts.try_next().await? {
                match part {
                    Either::Left(done) => {
                        answer.first.get_or_insert(done);
                    }
                    Either::Right(_) => answer.rows += 1,
                }
            }
        }
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(connection);
        Ok(answer)
    }

    fn take(&self) -> Option<MySqlConnection> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl fmt::Debug for Seat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Seat").finish_non_exhaustive()
    }
}
