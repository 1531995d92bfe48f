//! Leases, by the server's clock and through any pooler.
//!
//! Times are those at which a statement began. One that then waited for the row's lock thinks it earlier than it is,
//! and so takes a lease rather too late than too early.

use std::time::Duration;

use backstop_core::AdapterError;
use backstop_core::lease::{Holder, Lease, OwnerReport};
use sqlx::{AssertSqlSafe, MySqlPool, Row};

use crate::contest::contested;
use crate::failure::failed;
use crate::scoped::Scoped;
use crate::tables::MySqlTables;
use crate::time::micros;

const CREATE: &str =
    "INSERT IGNORE INTO {lease} (name, owner, token, expires_at) VALUES (?, NULL, 0, UTC_TIMESTAMP(6))";

/// Locks the row: contenders come one after another.
const LOOK: &str = "SELECT token, owner <=> ? AS ours, expires_at <= UTC_TIMESTAMP(6) AS ended FROM {lease} \
                    WHERE name = ? FOR UPDATE";

const TAKE: &str = "UPDATE {lease} SET owner = ?, token = ?, expires_at = UTC_TIMESTAMP(6) + INTERVAL ? MICROSECOND WHERE name = ?";

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

pub(crate) async fn acquire(
    pool: &MySqlPool,
    tables: &MySqlTables,
    name: &str,
    owner: &str,
    ttl: Duration,
) -> Result<Option<Lease>, AdapterError> {
    const DOING: &str = "take the lease";
    contested(DOING, async || {
        let mut scoped = Scoped::begin(pool).await.map_err(failed(DOING))?;
        let token = take(&mut scoped, tables, name, owner, ttl).await.map_err(failed(DOING))?;
        match token {
            Some(_) => scoped.commit().await.map_err(failed(DOING))?,
            None => scoped.rollback().await,
        }
        Ok(token.map(|token| Lease { name: name.to_owned(), owner: owner.to_owned(), token }))
    })
    .await
}

async fn take(
    scoped: &mut Scoped,
    tables: &MySqlTables,
    name: &str,
    owner: &str,
    ttl: Duration,
) -> Result<Option<i64>, sqlx::Error> {
    let row = loop {
        let look = sqlx::query(AssertSqlSafe(tables.fill(LOOK))).bind(owner.as_bytes()).bind(name.as_bytes());
        if let Some(row) = look.fetch_optional(&mut **scoped).await? {
            break row;
        }
        let create = sqlx::query(AssertSqlSafe(tables.fill(CREATE))).bind(name.as_bytes());
        create.execute(&mut **scoped).await?;
    };
    let (token, ours, ended): (i64, i64, i64) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
    if ours == 0 && ended == 0 {
        return Ok(None);
    }
    let token = if ours != 0 && ended == 0 { token } else { token + 1 };
    sqlx::query(AssertSqlSafe(tables.fill(TAKE)))
        .bind(owner.as_bytes())
        .bind(token)
        .bind(micros(ttl))
        .bind(name.as_bytes())
        .execute(&mut **scoped)
        .await?;
    Ok(Some(token))
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
