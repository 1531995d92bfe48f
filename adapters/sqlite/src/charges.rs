//! Charges: what was being handled when a process died.

use std::time::Duration;

use backstop_core::charges::Charges;
use backstop_core::held::{AFTER_CRASH, ClaimError, HeadCharge, Heads, HeldMessage};
use backstop_core::inbox::Limits;
use backstop_core::{AdapterError, MessageKey};
use sqlx::query::Query;
use sqlx::sqlite::SqliteArguments;
use sqlx::{AssertSqlSafe, Sqlite};

use crate::commit::commit;
use crate::database::plain;
use crate::error::adapter;
use crate::inbox::SqliteInbox;
use crate::time::{NOW, millis};

impl SqliteInbox {
    /// Charges the due head that waits longest, in a transaction of its own: the one in which it is handled has not
    /// begun. One that is condemned is not charged, for it is not run.
    pub(crate) async fn charge_head(
        &self,
        consumer: &str,
        limits: Limits,
        heads: Heads,
    ) -> Result<Option<HeldMessage>, ClaimError> {
        const DOING: &str = "cannot charge a held message";
        let Some(mut tx) = self.database.lend(limits).await? else { return Ok(None) };
        let found = self.due_head(&mut tx, consumer, heads).await?;
        let Some(head) = found.as_ref().filter(|head| head.condemned.is_none()) else {
            tx.rollback().await;
            return Ok(found);
        };
        let sql = format!(
            "UPDATE {} SET due_at = {NOW} + ?, crashes = crashes + 1 WHERE n = ?",
            self.database.tables.held()
        );
        let charge = sqlx::query(AssertSqlSafe(sql)).bind(millis(AFTER_CRASH)).bind(head.n);
        charge.execute(&mut *tx).await.map_err(|error| adapter(DOING, error))?;
        let charged = vec![head.unused_charge()];
        commit(tx).await.map_err(|error| ClaimError { error: plain(error), charged })?;
        Ok(found)
    }

    pub(crate) async fn acquit_held(&self, consumer: &str, charge: HeadCharge) -> Result<(), AdapterError> {
        let sql = format!(
            "UPDATE {} SET crashes = ?3, due_at = {NOW} \
             WHERE consumer = ?1 AND n = ?2 AND crashes > ?3 AND crashes <= ?4 AND condemned IS NULL",
            self.database.tables.held()
        );
        let HeadCharge { n, stands, leaves } = charge;
        let query = sqlx::query(AssertSqlSafe(sql)).bind(consumer).bind(n).bind(leaves).bind(stands);
        self.run_alone("cannot take back the charge of a held message", query).await
    }

    /// Forgets charges that nobody has come back to.
    pub(crate) async fn prune_charges(&self, consumer: &str, age: Duration) -> Result<(), AdapterError> {
        let old = format!("{} WHERE consumer = ? AND charged_at < {NOW} - ?", self.database.tables.charge());
        let any = format!("SELECT EXISTS (SELECT 1 FROM {old})");
        let mut connection = self.database.connection().await?;
        let any = sqlx::query_scalar(AssertSqlSafe(any)).bind(consumer).bind(millis(age));
        let any: bool = any
            .fetch_one(&mut *connection)
            .await
            .map_err(|error| adapter("cannot read the charges", error))?;
        drop(connection);
        if !any {
            return Ok(());
        }
        let query = sqlx::query(AssertSqlSafe(format!("DELETE FROM {old}"))).bind(consumer).bind(millis(age));
        self.run_alone("cannot prune the charges", query).await
    }

    /// Runs a statement in a transaction of its own.
    async fn run_alone(
        &self,
        doing: &'static str,
        query: Query<'_, Sqlite, SqliteArguments>,
    ) -> Result<(), AdapterError> {
        let mut tx = self.database.write(doing).await?;
        query.execute(&mut *tx).await.map_err(|error| adapter(doing, error))?;
        commit(tx).await.map_err(plain)
    }
}

impl Charges for SqliteInbox {
    async fn charges(&self, consumer: &str, message_key: &MessageKey) -> Result<u32, AdapterError> {
        let sql = format!(
            "SELECT crashes FROM {} WHERE consumer = ? AND message_key = ?",
            self.database.tables.charge()
        );
        let mut connection = self.database.connection().await?;
        let charges: Option<i64> = sqlx::query_scalar(AssertSqlSafe(sql))
            .bind(consumer)
            .bind(message_key.as_str())
            .fetch_optional(&mut *connection)
            .await
            .map_err(|error| adapter("cannot read the charges of the message", error))?;
        Ok(charges.and_then(|charges| u32::try_from(charges).ok()).unwrap_or_default())
    }

    async fn charge(&self, consumer: &str, message_key: &MessageKey) -> Result<u32, AdapterError> {
        const DOING: &str = "cannot charge the message";
        let sql = format!(
            "INSERT INTO {} (consumer, message_key, crashes, charged_at) VALUES (?, ?, 1, {NOW}) \
             ON CONFLICT (consumer, message_key) DO UPDATE SET crashes = crashes + 1, charged_at = excluded.charged_at \
             RETURNING crashes - 1",
            self.database.tables.charge()
        );
        let mut tx = self.database.write(DOING).await?;
        let before: i64 = sqlx::query_scalar(AssertSqlSafe(sql))
            .bind(consumer)
            .bind(message_key.as_str())
            .fetch_one(&mut *tx)
            .await
            .map_err(|error| adapter(DOING, error))?;
        commit(tx).await.map_err(plain)?;
        Ok(u32::try_from(before).unwrap_or(0))
    }

    async fn acquit(&self, consumer: &str, message_key: &MessageKey, up_to: u32) -> Result<(), AdapterError> {
        let charge = self.database.tables.charge();
        let sql = format!("DELETE FROM {charge} WHERE consumer = ? AND message_key = ? AND crashes <= ?");
        let query = sqlx::query(AssertSqlSafe(sql)).bind(consumer).bind(message_key.as_str()).bind(up_to);
        self.run_alone("cannot take back the charge of the message", query).await
    }
}
