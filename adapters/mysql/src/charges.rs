//! Charges: what was being handled when a process died.

use std::time::Duration;

use backstop_core::charges::Charges;
use backstop_core::held::HeadCharge;
use backstop_core::{AdapterError, MessageKey};
use sqlx::AssertSqlSafe;

use crate::contest::{contested, run_contested};
use crate::failure::failed;
use crate::inbox::MySqlInbox;
use crate::literal::bytes;
use crate::patience::within;
use crate::scoped::Scoped;
use crate::time::micros;

impl MySqlInbox {
    pub(crate) async fn acquit_held(&self, consumer: &str, charge: HeadCharge) -> Result<(), AdapterError> {
        let HeadCharge { n, stands, leaves } = charge;
        let (held, consumer) = (self.tables.quoted("held"), bytes(consumer.as_bytes()));
        let sql = format!(
            "UPDATE {held} SET crashes = {leaves}, due_at = UTC_TIMESTAMP(6) \
             WHERE n = {n} AND consumer = {consumer} AND crashes > {leaves} \
             AND crashes <= {stands} AND condemned IS NULL"
        );
        run_contested(&self.pool, "take back the charge of a held message", sql).await.map(drop)
    }

    /// Forgets charges that nobody has come back to.
    pub(crate) async fn prune_charges(&self, consumer: &str, age: Duration) -> Result<(), AdapterError> {
        let (charge, consumer) = (self.tables.quoted("charge"), bytes(consumer.as_bytes()));
        let sql = format!(
            "DELETE FROM {charge} WHERE consumer = {consumer} \
             AND charged_at < UTC_TIMESTAMP(6) - INTERVAL {} MICROSECOND",
            micros(age)
        );
        run_contested(&self.pool, "prune the charges", sql).await.map(drop)
    }

    /// Which row is meant, as a condition.
    fn charge_of(consumer: &str, message_key: &MessageKey) -> String {
        let (consumer, message_key) = (bytes(consumer.as_bytes()), bytes(message_key.as_str().as_bytes()));
        format!("consumer = {consumer} AND message_key = {message_key}")
    }
}

impl Charges for MySqlInbox {
    async fn charges(&self, consumer: &str, message_key: &MessageKey) -> Result<u32, AdapterError> {
        const DOING: &str = "read the charges of the message";
        let charge = self.tables.quoted("charge");
        let read = format!(
            "SELECT CAST(crashes AS SIGNED) FROM {charge} WHERE {}",
            Self::charge_of(consumer, message_key)
        );
        let query = sqlx::query_scalar::<_, i64>(AssertSqlSafe(read));
        let charges =
            within(DOING, async { query.fetch_optional(&self.pool).await.map_err(failed(DOING)) }).await?;
        Ok(charges.and_then(|charges| u32::try_from(charges).ok()).unwrap_or_default())
    }

    async fn charge(&self, consumer: &str, message_key: &MessageKey) -> Result<u32, AdapterError> {
        const DOING: &str = "charge the message";
        let charge = self.tables.quoted("charge");
        let write = format!(
            "INSERT INTO {charge} (consumer, message_key, crashes, charged_at) \
             VALUES ({}, {}, 1, UTC_TIMESTAMP(6)) \
             ON DUPLICATE KEY UPDATE crashes = crashes + 1, charged_at = UTC_TIMESTAMP(6)",
            bytes(consumer.as_bytes()),
            bytes(message_key.as_str().as_bytes())
        );
        let read =
            format!("SELECT crashes - 1 FROM {charge} WHERE {}", Self::charge_of(consumer, message_key));
        contested(DOING, async || {
            let mut scoped = Scoped::begin(&self.pool).await.map_err(failed(DOING))?;
            scoped.run(write.clone()).await.map_err(|stopped| failed(DOING)(stopped.error))?;
            let before: i64 = sqlx::query_scalar(AssertSqlSafe(read.clone()))
                .fetch_one(&mut *scoped)
                .await
                .map_err(failed(DOING))?;
            scoped.commit().await.map_err(failed(DOING))?;
            Ok(u32::try_from(before).unwrap_or(0))
        })
        .await
    }

    async fn acquit(&self, consumer: &str, message_key: &MessageKey, up_to: u32) -> Result<(), AdapterError> {
        let (charge, message) = (self.tables.quoted("charge"), Self::charge_of(consumer, message_key));
        let sql = format!("DELETE FROM {charge} WHERE {message} AND crashes <= {up_to}");
        run_contested(&self.pool, "take back the charge of the message", sql).await.map(drop)
    }
}
