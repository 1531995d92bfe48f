//! Leases, by the server's clock and through any pooler.
//!
//! Times are those at which a statement began. One that then waited for the row's lock thinks it earlier than it is,
//! and so takes a lease rather too late than too early.

use std::time::Duration;

use backstop_core::AdapterError;
use backstop_core::lease::{Holder, LONGEST, Lease, OwnerReport};
use sqlx::{AssertSqlSafe, MySqlPool};

use crate::contest::contested;
use crate::failure::failed;
use crate::literal;
use crate::scoped::Scoped;
use crate::seat::{Answer, Seat};
use crate::tables::MySqlTables;
use crate::time::micros;

/// Tokens begin with 1.
const CREATE: &str =
    "INSERT IGNORE INTO {lease} (name, owner, token, expires_at) VALUES (?, NULL, 0, UTC_TIMESTAMP(6))";

/// Takes, renews or leaves alone, in one string: the row lock decides between contenders. The last statement tells
/// whether there is a row at all. Committed in so many words, because a server may have autocommit off.
///
/// Assignments are made from left to right, so that the token is reckoned from what was there before.
fn acquisition(tables: &MySqlTables, name: &str, owner: &str, ttl: Duration) -> String {
    let (name, owner) = (literal::bytes(name.as_bytes()), literal::bytes(owner.as_bytes()));
    let (micros, longest) = (micros(ttl.min(LONGEST)), LONGEST.as_secs());
    let ended = format!(
        "(expires_at <= UTC_TIMESTAMP(6) OR expires_at > UTC_TIMESTAMP(6) + INTERVAL {longest} SECOND)"
    );
    tables.fill(&format!(
        "UPDATE {{lease}} SET token = LAST_INSERT_ID(token + IF(owner <=> {owner} AND NOT {ended}, 0, 1)), \
         owner = {owner}, expires_at = UTC_TIMESTAMP(6) + INTERVAL {micros} MICROSECOND \
         WHERE name = {name} AND (owner <=> {owner} OR {ended}); \
         COMMIT AND NO CHAIN NO RELEASE; SELECT 1 FROM {{lease}} WHERE name = {name}"
    ))
}

/// Keeps the lease from being taken over until the transaction ends.
const FENCE: &str = "SELECT 1 FROM {lease} WHERE name = ? AND owner = ? AND token = ? LOCK IN SHARE MODE";

const RELEASE: &str = "UPDATE {lease} SET owner = NULL, expires_at = UTC_TIMESTAMP(6) \
                       WHERE name = ? AND owner = ? AND token = ?";

/// A lease that is held, and for how many microseconds more.
const HOLDER: &str = "SELECT owner, token, TIMESTAMPDIFF(MICROSECOND, UTC_TIMESTAMP(6), expires_at), report, \
                      TIMESTAMPDIFF(MICROSECOND, reported_at, UTC_TIMESTAMP(6)) FROM {lease} \
                      WHERE name = ? AND owner IS NOT NULL AND expires_at > UTC_TIMESTAMP(6)";

const REPORT: &str = "UPDATE {lease} SET report = ?, reported_at = UTC_TIMESTAMP(6) \
                      WHERE name = ? AND owner = ? AND token = ?";

pub(crate) async fn report(
    pool: &MySqlPool,
    tables: &MySqlTables,
    lease: &Lease,
    text: &str,
) -> Result<(), AdapterError> {
    sqlx::query(AssertSqlSafe(tables.fill(REPORT)))
        .bind(text)
        .bind(lease.name.as_bytes())
        .bind(lease.owner.as_bytes())
        .bind(lease.token)
        .execute(pool)
        .await
        .map_err(failed("report beside the lease"))?;
    Ok(())
}

pub(crate) async fn holder(
    pool: &MySqlPool,
    tables: &MySqlTables,
    name: &str,
) -> Result<Option<Holder>, AdapterError> {
    let doing = || failed("look for the holder of the lease");
    type Found = (Vec<u8>, i64, i64, Option<String>, Option<i64>);
    let found: Option<Found> = sqlx::query_as(AssertSqlSafe(tables.fill(HOLDER)))
        .bind(name.as_bytes())
        .fetch_optional(pool)
        .await
        .map_err(doing())?;
    let micros = |number: i64| Duration::from_micros(number.try_into().unwrap_or_default());
    Ok(found.map(|(owner, token, remaining, text, age)| {
        let owner = String::from_utf8_lossy(&owner).into_owned();
        Holder {
            lease: Lease { name: name.to_owned(), owner, token },
            remaining: micros(remaining),
            report: text.zip(age).map(|(text, age)| OwnerReport { text, age: micros(age) }),
        }
    }))
}

/// One round trip, unless `seat` has no connection yet or nobody ever had this lease.
pub(crate) async fn acquire(
    pool: &MySqlPool,
    seat: &Seat,
    tables: &MySqlTables,
    name: &str,
    owner: &str,
    ttl: Duration,
) -> Result<Option<Lease>, AdapterError> {
    const DOING: &str = "take the lease";
    let take = acquisition(tables, name, owner, ttl);
    let token = contested(DOING, async || {
        let answer = seat.ask(pool, &take).await.map_err(failed(DOING))?;
        if answer.rows > 0 {
            return Ok(token(&answer));
        }
        create(pool, tables, name).await.map_err(failed(DOING))?;
        Ok(token(&seat.ask(pool, &take).await.map_err(failed(DOING))?))
    });
    let lease = |token| Lease { name: name.to_owned(), owner: owner.to_owned(), token };
    Ok(token.await?.map(lease))
}

/// The token that was granted, if one was.
fn token(answer: &Answer) -> Option<i64> {
    let granted = answer.first.as_ref().filter(|first| first.rows_affected() > 0)?;
    i64::try_from(granted.last_insert_id()).ok()
}

async fn create(pool: &MySqlPool, tables: &MySqlTables, name: &str) -> Result<(), sqlx::Error> {
    let mut scoped = Scoped::begin(pool).await?;
    let create = sqlx::query(AssertSqlSafe(tables.fill(CREATE))).bind(name.as_bytes());
    create.execute(&mut *scoped).await?;
    scoped.commit().await
}

/// Whether the lease is still that owner's; nobody can take it over before the transaction ends.
pub(crate) async fn stands(
    scoped: &mut Scoped,
    tables: &MySqlTables,
    lease: &Lease,
) -> Result<bool, sqlx::Error> {
    let fence = sqlx::query(AssertSqlSafe(tables.fill(FENCE)))
        .bind(lease.name.as_bytes())
        .bind(lease.owner.as_bytes())
        .bind(lease.token);
    Ok(fence.fetch_optional(&mut **scoped).await?.is_some())
}

pub(crate) async fn release(
    pool: &MySqlPool,
    tables: &MySqlTables,
    lease: &Lease,
) -> Result<(), AdapterError> {
    const DOING: &str = "give the lease back";
    contested(DOING, async || {
        let mut scoped = Scoped::begin(pool).await.map_err(failed(DOING))?;
        sqlx::query(AssertSqlSafe(tables.fill(RELEASE)))
            .bind(lease.name.as_bytes())
            .bind(lease.owner.as_bytes())
            .bind(lease.token)
            .execute(&mut *scoped)
            .await
            .map_err(failed(DOING))?;
        scoped.commit().await.map_err(failed(DOING))
    })
    .await
}
