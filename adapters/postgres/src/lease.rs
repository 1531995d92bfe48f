//! Leases, by the server's clock and through any pooler.

use std::time::Duration;

use backstop_core::AdapterError;
use backstop_core::lease::{Holder, Lease, OwnerReport};
use sqlx::{AssertSqlSafe, PgPool};

use crate::failure::failed;
use crate::held_row::seconds;
use crate::storable::storable;
use crate::tables::PgTables;
use crate::time;

/// Takes, renews or leaves alone, in one statement: the row lock decides between contenders.
const ACQUIRE: &str = "
    INSERT INTO {lease} AS l (name, owner, token, expires_at)
    VALUES ($1, $2, 1, clock_timestamp() + make_interval(secs => $3))
    ON CONFLICT (name) DO UPDATE SET
        owner = $2,
        token = l.token + (l.owner IS DISTINCT FROM $2 OR l.expires_at <= clock_timestamp())::int,
        expires_at = clock_timestamp() + make_interval(secs => $3)
    WHERE l.owner = $2 OR l.expires_at <= clock_timestamp()
    RETURNING token";

const RELEASE: &str = "
    UPDATE {lease} SET owner = NULL, expires_at = clock_timestamp() WHERE name = $1 AND owner = $2 AND token = $3";

const HOLDER: &str = "
    SELECT owner, token, extract(epoch FROM {expires_at} - clock_timestamp())::float8, report,
           extract(epoch FROM clock_timestamp() - reported_at)::float8
    FROM {lease}
    WHERE name = $1 AND owner IS NOT NULL AND expires_at > clock_timestamp()";

const REPORT: &str = "
    UPDATE {lease} SET report = $4, reported_at = clock_timestamp() WHERE name = $1 AND owner = $2 AND token = $3";

pub(crate) async fn report(
    pool: &PgPool,
    tables: &PgTables,
    lease: &Lease,
    text: &str,
) -> Result<(), AdapterError> {
    sqlx::query(AssertSqlSafe(tables.fill(REPORT)))
        .bind(&lease.name)
        .bind(&lease.owner)
        .bind(lease.token)
        .bind(storable(text))
        .execute(pool)
        .await
        .map_err(failed("report beside the lease"))?;
    Ok(())
}

pub(crate) async fn holder(
    pool: &PgPool,
    tables: &PgTables,
    name: &str,
) -> Result<Option<Holder>, AdapterError> {
    let sql = HOLDER.replace("{expires_at}", &time::clamped("expires_at"));
    type Found = (String, i64, f64, Option<String>, Option<f64>);
    let found: Option<Found> = sqlx::query_as(AssertSqlSafe(tables.fill(&sql)))
        .bind(name)
        .fetch_optional(pool)
        .await
        .map_err(failed("look for the holder of the lease"))?;
    Ok(found.map(|(owner, token, remaining, text, age)| Holder {
        lease: Lease { name: name.to_owned(), owner, token },
        remaining: seconds(remaining),
        report: text.zip(age).map(|(text, age)| OwnerReport { text, age: seconds(age) }),
    }))
}

pub(crate) async fn acquire(
    pool: &PgPool,
    tables: &PgTables,
    name: &str,
    owner: &str,
    ttl: Duration,
) -> Result<Option<Lease>, AdapterError> {
    let token: Option<i64> = sqlx::query_scalar(AssertSqlSafe(tables.fill(ACQUIRE)))
        .bind(name)
        .bind(owner)
        .bind(ttl.as_secs_f64())
        .fetch_optional(pool)
        .await
        .map_err(failed("take the lease"))?;
    Ok(token.map(|token| Lease { name: name.to_owned(), owner: owner.to_owned(), token }))
}

pub(crate) async fn release(pool: &PgPool, tables: &PgTables, lease: &Lease) -> Result<(), AdapterError> {
    sqlx::query(AssertSqlSafe(tables.fill(RELEASE)))
        .bind(&lease.name)
        .bind(&lease.owner)
        .bind(lease.token)
        .execute(pool)
        .await
        .map_err(failed("give the lease back"))?;
    Ok(())
}
