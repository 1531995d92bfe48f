//! A connection that is kept for statements which must not take longer than one round trip.
//!
//! A pool looks at a connection before it hands it out, and a statement that takes parameters is prepared wherever that
//! was not done before: three round trips where one has to do.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, PgConnection, PgPool};

use crate::failure::{LOCK_NOT_AVAILABLE, code};

/// Keeps one connection; clones share it.
#[derive(Clone, Default)]
pub(crate) struct Seat(Arc<Mutex<Option<PgConnection>>>);

impl Seat {
    /// The first row that a statement without parameters answers with. A statement that is sent while another one is
    /// under way has a connection of its own. Where the kept one fails, the statement is sent again
    /// on a fresh one.
    pub(crate) async fn ask(&self, pool: &PgPool, sql: &str) -> Result<Option<PgRow>, sqlx::Error> {
        if let Some(kept) = self.take() {
            match self.ask_on(kept, sql).await {
                // A connection may have been lost while nobody looked at it, in more ways than one. A lock that was
                // waited for in vain is not free on another one either.
                Err(error) if code(&error) != Some(LOCK_NOT_AVAILABLE) => {}
                answer => return answer,
            }
        }
        let fresh = pool.acquire().await?.detach();
        self.ask_on(fresh, sql).await
    }

    /// A connection on which something went wrong, or whose answer nobody waits for any more, is closed.
    async fn ask_on(&self, mut connection: PgConnection, sql: &str) -> Result<Option<PgRow>, sqlx::Error> {
        let rows = sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).fetch_all(&mut connection).await?;
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(connection);
        Ok(rows.into_iter().next())
    }

    fn take(&self) -> Option<PgConnection> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl fmt::Debug for Seat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Seat").finish_non_exhaustive()
    }
}
