//! Leases, by the server's clock and through any pooler.

use std::time::Duration;

use backstop_core::AdapterError;
use backstop_core::lease::{Holder, LONGEST, Lease, OwnerReport};
use sqlx::{AssertSqlSafe, PgPool, Row};

use crate::failure::failed;
use crate::held_row::seconds;
use crate::hex::hex;
use crate::limits::milliseconds;
use crate::seat::Seat;
use crate::storable::storable;
use crate::tables::PgTables;
use crate::time;

/// Takes, renews or leaves alone, in one statement: the row lock decides between contenders. It is waited for less long
/// than owners wait for an answer, which is a third of `ttl`: a session whose client has gone would wait on, and every
/// try would add one.
fn acquisition(tables: &PgTables, name: &str, owner: &str, ttl: Duration) -> String {
    // Digits have nothing to escape, whatever the settings.
    let text = |text: &str| format!("convert_from(decode('{}', 'hex'), 'UTF8')", hex(text.as_bytes()));
    let (name, owner, longest) = (text(name), text(owner), LONGEST.as_secs());
    let until = format!("clock_timestamp() + make_interval(secs => {})", ttl.min(LONGEST).as_secs_f64());
    let ended = format!(
        "(l.expires_at <= clock_timestamp() OR l.expires_at > clock_timestamp() + make_interval(secs => {longest}))"
    );
    let patience = milliseconds(ttl.min(LONGEST) / 4);
    tables.fill(&format!(
        "SET LOCAL lock_timeout = {patience}; \
         INSERT INTO {{lease}} AS l (name, owner, token, expires_at) VALUES ({name}, {owner}, 1, {until}) \
         ON CONFLICT (name) DO UPDATE SET owner = {owner}, \
         token = l.token + (l.owner IS DISTINCT FROM {owner} OR {ended})::int, expires_at = {until} \
         WHERE l.owner = {owner} OR {ended} RETURNING token"
    ))
}

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

/// One round trip, unless `seat` has no connection yet.
pub(crate) async fn acquire(
    pool: &PgPool,
    seat: &Seat,
    tables: &PgTables,
    name: &str,
    owner: &str,
    ttl: Duration,
) -> Result<Option<Lease>, AdapterError> {
    let token = seat
        .ask(pool, &acquisition(tables, name, owner, ttl))
        .await
        .and_then(|row| row.map(|row| row.try_get(0)).transpose())
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
