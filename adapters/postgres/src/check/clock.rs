//! The server's clock.

use backstop_core::AdapterError;
use backstop_core::schema::Finding;
use chrono::{DateTime, Utc};
use sqlx::PgPool;

use crate::failure::failed;

pub(super) async fn check(pool: &PgPool) -> Result<Finding, AdapterError> {
    let mut connection = pool.acquire().await.map_err(failed("connect"))?;
    let asked = Utc::now();
    let theirs: DateTime<Utc> = sqlx::query_scalar("SELECT clock_timestamp()")
        .fetch_one(&mut *connection)
        .await
        .map_err(failed("ask for the server's time"))?;
    Ok(Finding::clock(asked, theirs, Utc::now()))
}
