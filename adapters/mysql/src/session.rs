//! What transactions set in their session, and how it is given back.
//!
//! Where a network drops packets without a word, the server does not learn that its client is gone, and keeps its
//! transaction with all locks for as long as TCP hopes. So each one says how long the server is to wait for its next
//! statement: a handler's for as long as the handler may take, Backstop's own for [`IDLE`].
//!
//! MySQL knows no setting that ends with its transaction, so the session's own values are kept in user variables.
//! Comments that begin with `/*M!` are statements to MariaDB alone, those with `/*!80000` to MySQL alone.

use std::time::Duration;

use backstop_core::inbox::Limits;

/// After so many seconds without a word from its client the server ends a transaction of Backstop's own.
const IDLE: u64 = 20;

/// So many seconds Backstop's own statements wait for a lock: longer than [`IDLE`], so that whoever waits behind a client
/// that is gone has the lock in the end, and shorter than the client's [`PATIENCE`](crate::patience::PATIENCE).
const LOCK: u64 = 25;

/// Begins a transaction that writes, and nothing else.
pub(crate) const BEGIN: &str = "SET TRANSACTION ISOLATION LEVEL READ COMMITTED; START TRANSACTION READ WRITE";

const SNAPSHOT: &str =
    "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY";

/// Gives back what [`enter`] has set. With autocommit it commits what is open, so it comes after COMMIT or ROLLBACK.
pub(crate) const LEAVE: &str = "SET SESSION autocommit = 1, innodb_lock_wait_timeout = @backstop_row_lock, \
     lock_wait_timeout = @backstop_table_lock, wait_timeout = @backstop_idle \
     /*M!100600 , max_statement_time = @backstop_statement */ /*!80000 , max_execution_time = @backstop_statement */";

/// Gives back what [`own`] and [`snapshot`] have set.
pub(crate) const LEAVE_OWN: &str = "SET SESSION innodb_lock_wait_timeout = @backstop_row_lock, \
     lock_wait_timeout = @backstop_table_lock, wait_timeout = @backstop_idle";

const KEEP: &str = "SET @backstop_row_lock = @@SESSION.innodb_lock_wait_timeout, \
     @backstop_table_lock = @@SESSION.lock_wait_timeout, @backstop_idle = @@SESSION.wait_timeout";

const KEEP_STATEMENT: &str = "/*M!100600 , @backstop_statement = @@SESSION.max_statement_time */ \
     /*!80000 , @backstop_statement = @@SESSION.max_execution_time */";

/// Longest limit that the settings take, in seconds.
const MAX_SECONDS: u64 = 31_536_000;

/// Begins a transaction of Backstop's own.
pub(crate) fn own() -> String {
    own_with(BEGIN)
}

/// Begins a transaction of Backstop's own all of whose reads are of one moment.
pub(crate) fn snapshot() -> String {
    own_with(SNAPSHOT)
}

fn own_with(begin: &str) -> String {
    format!(
        "{KEEP}, SESSION innodb_lock_wait_timeout = {LOCK}, lock_wait_timeout = {LOCK}, wait_timeout = {IDLE}; \
         {begin}"
    )
}

/// For a connection that is Backstop's alone, and on which every string ends its own transaction.
pub(crate) fn alone() -> String {
    format!("SET SESSION innodb_lock_wait_timeout = {LOCK}, lock_wait_timeout = {LOCK}")
}

/// Lets a handler's transaction wait for a gate as Backstop's own do, however little time its handler has: that one is
/// done by then.
pub(crate) fn at_gate() -> String {
    format!(
        "SET SESSION innodb_lock_wait_timeout = {LOCK} /*M!100600 , max_statement_time = {LOCK} */ \
         /*!80000 , max_execution_time = {} */",
        LOCK * 1_000
    )
}

/// Begins a handler's transaction, in which the server enforces the limits.
///
/// Autocommit is off: after a deadlock, which rolls back the whole transaction, a handler that swallows the error
/// would otherwise go on outside of any, and each of its further statements would commit by itself.
pub(crate) fn enter(limits: Limits) -> String {
    let (lock, handler) = (seconds(limits.lock), seconds(limits.handler));
    let exact = limits.handler.clamp(Duration::from_millis(1), Duration::from_secs(MAX_SECONDS));
    format!(
        "{KEEP} {KEEP_STATEMENT}; SET SESSION autocommit = 0, innodb_lock_wait_timeout = {lock}, \
         lock_wait_timeout = {handler}, wait_timeout = {handler} /*M!100600 , max_statement_time = {:.3} */ \
         /*!80000 , max_execution_time = {} */; {BEGIN}",
        exact.as_secs_f64(),
        exact.as_millis()
    )
}

/// Gives the handler's statements the session's own patience with row locks, up to the handler's time: the short one is
/// for the inbox row.
pub(crate) fn admitted(limits: Limits) -> String {
    format!("SET SESSION innodb_lock_wait_timeout = LEAST(@backstop_row_lock, {})", seconds(limits.handler))
}

/// Whole seconds, rounded up: the settings know no less.
fn seconds(limit: Duration) -> u64 {
    let up = limit.as_secs().saturating_add(u64::from(limit.subsec_nanos() > 0));
    up.clamp(1, MAX_SECONDS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::patience::PATIENCE;

    #[test]
    fn whoever_waits_outlasts_a_client_that_is_gone_and_answers_in_time() {
        assert!(IDLE < LOCK && LOCK < PATIENCE.as_secs());
    }

    #[test]
    fn limits_are_rounded_up_and_bounded() {
        assert_eq!(seconds(Duration::ZERO), 1);
        assert_eq!(seconds(Duration::from_millis(1_001)), 2);
        assert_eq!(seconds(Duration::MAX), MAX_SECONDS);
        let limits = Limits { lock: Duration::ZERO, handler: Duration::MAX };
        assert!(enter(limits).contains("max_execution_time = 31536000000 "));
    }
}
