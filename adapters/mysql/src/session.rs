//! What a handler's transaction sets in its session, and how it is given back.
//!
//! MySQL knows no setting that ends with its transaction, so the session's own values are kept in user variables.
//! Comments that begin with `/*M!` are statements to MariaDB alone, those with `/*!80000` to MySQL alone.

use std::time::Duration;

use backstop_core::inbox::Limits;

/// Begins a transaction that writes, and nothing else.
pub(crate) const BEGIN: &str = "SET TRANSACTION ISOLATION LEVEL READ COMMITTED; START TRANSACTION READ WRITE";

/// Begins a transaction all of whose reads are of one moment.
pub(crate) const SNAPSHOT: &str =
    "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY";

/// Gives back what [`enter`] has set. With autocommit it commits what is open, so it comes after COMMIT or ROLLBACK.
pub(crate) const LEAVE: &str = "SET SESSION autocommit = 1, innodb_lock_wait_timeout = @backstop_row_lock, \
     lock_wait_timeout = @backstop_table_lock, wait_timeout = @backstop_idle \
     /*M!100600 , max_statement_time = @backstop_statement */ /*!80000 , max_execution_time = @backstop_statement */";

const KEEP: &str = "SET @backstop_row_lock = @@SESSION.innodb_lock_wait_timeout, \
     @backstop_table_lock = @@SESSION.lock_wait_timeout, @backstop_idle = @@SESSION.wait_timeout \
     /*M!100600 , @backstop_statement = @@SESSION.max_statement_time */ \
     /*!80000 , @backstop_statement = @@SESSION.max_execution_time */";

/// Longest limit that the settings take, in seconds.
const MAX_SECONDS: u64 = 31_536_000;

/// Begins a handler's transaction, in which the server enforces the limits.
///
/// Autocommit is off: after a deadlock, which rolls back the whole transaction, a handler that swallows the error
/// would otherwise go on outside of any, and each of its further statements would commit by itself.
pub(crate) fn enter(limits: Limits) -> String {
    let (lock, handler) = (seconds(limits.lock), seconds(limits.handler));
    let exact = limits.handler.clamp(Duration::from_millis(1), Duration::from_secs(MAX_SECONDS));
    format!(
        "{KEEP}; SET SESSION autocommit = 0, innodb_lock_wait_timeout = {lock}, lock_wait_timeout = {handler}, \
         wait_timeout = {handler} /*M!100600 , max_statement_time = {:.3} */ \
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

    #[test]
    fn limits_are_rounded_up_and_bounded() {
        assert_eq!(seconds(Duration::ZERO), 1);
        assert_eq!(seconds(Duration::from_millis(1_001)), 2);
        assert_eq!(seconds(Duration::MAX), MAX_SECONDS);
        let limits = Limits { lock: Duration::ZERO, handler: Duration::MAX };
        assert!(enter(limits).contains("max_execution_time = 31536000000 "));
    }
}
