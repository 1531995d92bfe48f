//! Transactions that stay open: gaps stay open with them, and dead rows in place.

use backstop_core::AdapterError;
use backstop_core::schema::Finding;
use sqlx::PgPool;

use crate::failure::failed;

/// Sessions of other users show the begin of their transactions only to members of `pg_read_all_stats`.
pub(super) async fn oldest(pool: &PgPool) -> Result<Finding, AdapterError> {
    let subject = "open transactions";
    let found: Option<(i32, i64)> = sqlx::query_as(
        "SELECT pid, (extract(epoch FROM clock_timestamp() - xact_start) / 60)::int8 FROM pg_stat_activity \
         WHERE datname = current_database() AND pid <> pg_backend_pid() \
         AND xact_start < clock_timestamp() - interval '5 minutes' ORDER BY xact_start LIMIT 1",
    )
    .fetch_optional(pool)
    .await
    .map_err(failed("look for open transactions"))?;
    Ok(match found {
        None => Finding::fine(subject, "none that can be seen is old"),
        Some((pid, minutes)) => Finding::warning(
            subject,
            format!("one has been open for {minutes} minutes, so that deleted rows cannot be vacuumed"),
            format!("see pid {pid} in pg_stat_activity, and end it"),
        ),
    })
}

/// A prepared transaction that was forgotten keeps gaps open and dead rows in place for ever.
pub(super) async fn prepared(pool: &PgPool) -> Result<Finding, AdapterError> {
    let (old, limit): (i64, String) = sqlx::query_as(
        "SELECT (SELECT count(*) FROM pg_prepared_xacts \
         WHERE database = current_database() AND prepared < now() - interval '5 minutes'), \
         current_setting('max_prepared_transactions')",
    )
    .fetch_one(pool)
    .await
    .map_err(failed("look for prepared transactions"))?;
    Ok(if old > 0 {
        Finding::warning(
            "prepared transactions",
            format!("{old} older than 5 minutes"),
            "commit or roll back what pg_prepared_xacts shows",
        )
    } else {
        Finding::fine("prepared transactions", format!("none is old (max_prepared_transactions = {limit})"))
    })
}
