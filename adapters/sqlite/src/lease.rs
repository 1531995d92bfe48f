//! Leases, as the outbox and the ledger share them.

use std::time::Duration;

use backstop_core::AdapterError;
use backstop_core::lease::{Holder, LONGEST, Lease, OwnerReport};
use sqlx::{AssertSqlSafe, SqliteConnection};

use crate::commit::commit;
use crate::database::{Database, plain};
use crate::error::adapter;
use crate::time::{NOW, duration, millis};

/// Takes or renews the lease.
///
/// Whoever waits for somebody else's lease only reads.
pub(crate) async fn acquire(
    database: &Database,
    name: &str,
    owner: &str,
    ttl: Duration,
) -> Result<Option<Lease>, AdapterError> {
    let failed = |error| adapter(format!("cannot acquire the lease {name:?}"), error);
    let lease = database.tables.lease();
    // Reaching farther, it was written by a clock that has been set back.
    let lasts = format!("expires_at > {NOW} AND expires_at <= {NOW} + {}", millis(LONGEST));
    let taken = format!("SELECT EXISTS (SELECT 1 FROM {lease} WHERE name = ? AND owner <> ? AND {lasts})");
    let mut connection = database.connection().await?;
    let taken: bool = sqlx::query_scalar(AssertSqlSafe(taken))
        .bind(name)
        .bind(owner)
        .fetch_one(&mut *connection)
        .await
        .map_err(failed)?;
    drop(connection);
    if taken {
        return Ok(None);
    }
    let upsert = format!(
        "INSERT INTO {lease} AS held (name, owner, token, expires_at) VALUES (?, ?, 1, {NOW} + ?) \
         ON CONFLICT (name) DO UPDATE SET \
         token = held.token + (held.owner <> excluded.owner OR NOT ({lasts})), \
         owner = excluded.owner, expires_at = excluded.expires_at \
         WHERE held.owner = excluded.owner OR NOT ({lasts}) RETURNING token",
        lasts = lasts.replace("expires_at", "held.expires_at")
    );
    let mut tx = database.write("cannot acquire the lease").await?;
    let token: Option<i64> = sqlx::query_scalar(AssertSqlSafe(upsert))
        .bind(name)
        .bind(owner)
        .bind(millis(ttl.min(LONGEST)))
        .fetch_optional(&mut *tx)
        .await
        .map_err(failed)?;
    commit(tx).await.map_err(plain)?;
    Ok(token.map(|token| Lease { name: name.to_owned(), owner: owner.to_owned(), token }))
}

/// Who holds the lease.
pub(crate) async fn holder(database: &Database, name: &str) -> Result<Option<Holder>, AdapterError> {
    let table = database.tables.lease();
    let sql = format!(
        "SELECT owner, token, expires_at - {NOW}, report, {NOW} - reported_at FROM {table} \
                 WHERE name = ? AND expires_at > {NOW}"
    );
    let mut connection = database.connection().await?;
    type Found = (String, i64, i64, Option<String>, Option<i64>);
    let found: Option<Found> = sqlx::query_as(AssertSqlSafe(sql))
        .bind(name)
        .fetch_optional(&mut *connection)
        .await
        .map_err(|error| adapter(format!("cannot look for the holder of the lease {name:?}"), error))?;
    Ok(found.map(|(owner, token, remaining, text, age)| Holder {
        lease: Lease { name: name.to_owned(), owner, token },
        remaining: duration(remaining),
        report: text.zip(age).map(|(text, age)| OwnerReport { text, age: duration(age) }),
    }))
}

/// Keeps what the owner tells, if the lease is still the one that was granted.
pub(crate) async fn report(database: &Database, lease: &Lease, text: &str) -> Result<(), AdapterError> {
    let table = database.tables.lease();
    let sql = format!(
        "UPDATE {table} SET report = ?, reported_at = {NOW} WHERE name = ? AND owner = ? AND token = ?"
    );
    let mut tx = database.write("cannot report beside the lease").await?;
    sqlx::query(AssertSqlSafe(sql))
        .bind(text)
        .bind(&lease.name)
        .bind(&lease.owner)
        .bind(lease.token)
        .execute(&mut *tx)
        .await
        .map_err(|error| adapter(format!("cannot report beside the lease {:?}", lease.name), error))?;
    commit(tx).await.map_err(plain)
}

/// Ends the lease, if it is still the one that was granted. Its row stays, so that tokens go on growing.
pub(crate) async fn release(database: &Database, lease: &Lease) -> Result<(), AdapterError> {
    let table = database.tables.lease();
    let sql = format!("UPDATE {table} SET expires_at = 0 WHERE name = ? AND owner = ? AND token = ?");
    let mut tx = database.write("cannot release the lease").await?;
    sqlx::query(AssertSqlSafe(sql))
        .bind(&lease.name)
        .bind(&lease.owner)
        .bind(lease.token)
        .execute(&mut *tx)
        .await
        .map_err(|error| adapter(format!("cannot release the lease {:?}", lease.name), error))?;
    commit(tx).await.map_err(plain)
}

/// Whether the lease is still the one that was granted. Asked inside a write transaction: nobody can take it over
/// before that ends.
pub(crate) async fn stands(
    database: &Database,
    connection: &mut SqliteConnection,
    lease: &Lease,
) -> Result<bool, AdapterError> {
    let table = database.tables.lease();
    let sql = format!("SELECT EXISTS (SELECT 1 FROM {table} WHERE name = ? AND owner = ? AND token = ?)");
    sqlx::query_scalar(AssertSqlSafe(sql))
        .bind(&lease.name)
        .bind(&lease.owner)
        .bind(lease.token)
        .fetch_one(connection)
        .await
        .map_err(|error| adapter(format!("cannot check the lease {:?}", lease.name), error))
}
