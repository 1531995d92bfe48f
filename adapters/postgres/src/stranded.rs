//! Transactions that end by themselves when nobody is left to end them.
//!
//! Where a network drops packets without a word, the server does not learn that its client is gone: it keeps the
//! transaction with its locks and its snapshot for as long as TCP hopes, and each new try may queue behind it. So the
//! server is told how long to wait: in each transaction anew, since a setting of the session would be another client's
//! behind a pooler.

use sqlx::PgPool;

use crate::scoped::Scoped;

/// How long the server waits for a lock, for the next statement and for a client to take what was sent. As long as
/// [`PATIENCE`](crate::patience::PATIENCE), after which the client has given up, too.
pub(crate) const LIMITS: &str = "SET LOCAL lock_timeout = '30s'; SET LOCAL idle_in_transaction_session_timeout = '30s'; \
                      SET LOCAL tcp_user_timeout = '30s'";

/// What begins such a transaction.
pub(crate) fn beginning() -> String {
    format!("BEGIN ISOLATION LEVEL READ COMMITTED; {LIMITS}")
}

/// Begins such a transaction.
pub(crate) async fn begin(pool: &PgPool) -> Result<Scoped, sqlx::Error> {
    Scoped::begin(pool, beginning()).await
}
