//! The limits of a handler's transaction, as settings of the session.
//!
//! A setting for one transaction costs the server more than the handler's own statement may: it is set, looked for
//! among all settings at the end, and taken back. So a connection that handles one message after another has the
//! limits set for the session, once, and its own values are given back before anybody else gets it.

use std::time::Duration;

use backstop_core::inbox::Limits;

/// Gives the session its own values back in a transaction of its own, and leaves it in an empty one. Nothing changes
/// where [`enforce`] was rolled back.
pub(crate) const RESTORE: &str = "ROLLBACK AND CHAIN; \
     SELECT set_config('statement_timeout', \
                coalesce(nullif(current_setting('backstop.statement', true), ''), current_setting('statement_timeout')), \
                false), \
            set_config('idle_in_transaction_session_timeout', \
                coalesce(nullif(current_setting('backstop.idle', true), ''), \
                         current_setting('idle_in_transaction_session_timeout')), false), \
            set_config('backstop.statement', '', false), set_config('backstop.idle', '', false); \
     COMMIT AND CHAIN";

/// Keeps the session's own values aside and sets the limits for all its transactions.
pub(crate) fn enforce(limits: Limits) -> String {
    let limit = milliseconds(limits.handler);
    format!(
        "SELECT set_config('backstop.statement', current_setting('statement_timeout'), false), \
         set_config('backstop.idle', current_setting('idle_in_transaction_session_timeout'), false), \
         set_config('statement_timeout', '{limit}', false), \
         set_config('idle_in_transaction_session_timeout', '{limit}', false)"
    )
}

/// Whole milliseconds, at least 1: PostgreSQL takes 0 for "no limit".
pub(crate) fn milliseconds(limit: Duration) -> i32 {
    i32::try_from(limit.as_millis()).unwrap_or(i32::MAX).max(1)
}

/// A limit as the server shows it: in the largest unit that leaves no remainder.
pub(crate) fn shown(limit: Duration) -> String {
    let limit = milliseconds(limit);
    let units = [(86_400_000, "d"), (3_600_000, "h"), (60_000, "min"), (1_000, "s")];
    let unit = units.into_iter().find(|(length, _)| limit % length == 0);
    unit.map_or_else(|| format!("{limit}ms"), |(length, name)| format!("{}{name}", limit / length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_shown_as_the_server_does() {
        let cases = [(1, "1ms"), (1_500, "1500ms"), (30_000, "30s"), (90_000, "90s"), (7_200_000, "2h")];
        for (limit, text) in cases {
            assert_eq!(shown(Duration::from_millis(limit)), text);
        }
        assert_eq!(shown(Duration::ZERO), "1ms");
    }
}
