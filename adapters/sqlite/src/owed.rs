//! Owed receipts: what the consumer has done and has not told yet.

use std::time::Duration;

use backstop_core::owed::{Owed, OwedReceipts, needs_inbox_row};
use backstop_core::{AdapterError, Receipt};
use sqlx::{AssertSqlSafe, SqliteConnection};

use crate::commit::commit;
use crate::database::plain;
use crate::error::adapter;
use crate::inbox::SqliteInbox;
use crate::time::{NOW, millis};
use crate::tx::SqliteTx;

impl SqliteInbox {
    async fn write_owed(
        &self,
        connection: &mut SqliteConnection,
        receipt: &Receipt,
    ) -> Result<(), AdapterError> {
        let (table, inbox) = (self.database.tables.receipt(), self.database.tables.inbox());
        let sql = format!(
            "INSERT INTO {table} (consumer, instance, receipt, owed_since) SELECT ?1, ?2, ?3, {NOW} \
             WHERE ?5 OR EXISTS (SELECT 1 FROM {inbox} WHERE consumer = ?1 AND message_key = ?4)"
        );
        sqlx::query(AssertSqlSafe(sql))
            .bind(receipt.consumer.as_str())
            .bind(receipt.instance.as_str())
            .bind(Owed::text(receipt))
            .bind(receipt.message_key.as_str())
            .bind(!needs_inbox_row(receipt.outcome))
            .execute(connection)
            .await
            .map_err(|error| adapter("cannot write down an owed receipt", error))?;
        Ok(())
    }
}

impl OwedReceipts for SqliteInbox {
    async fn owe(&self, tx: &mut SqliteTx, receipt: &Receipt) -> Result<(), AdapterError> {
        self.write_owed(tx, receipt).await
    }

    async fn owe_now(&self, receipt: &Receipt) -> Result<(), AdapterError> {
        let mut tx = self.database.write("cannot write down an owed receipt").await?;
        self.write_owed(&mut tx, receipt).await?;
        commit(tx).await.map_err(plain)
    }

    async fn owed(
        &self,
        consumer: &str,
        instance: &str,
        others_after: Duration,
        limit: u32,
    ) -> Result<Vec<Owed>, AdapterError> {
        let sql = format!(
            "SELECT n, receipt FROM {} WHERE consumer = ? AND (instance = ? OR owed_since < {NOW} - ?) \
             ORDER BY n LIMIT ?",
            self.database.tables.receipt()
        );
        let mut connection = self.database.connection().await?;
        let rows = sqlx::query_as::<_, (i64, String)>(AssertSqlSafe(sql))
            .bind(consumer)
            .bind(instance)
            .bind(millis(others_after))
            .bind(limit)
            .fetch_all(&mut *connection)
            .await
            .map_err(|error| adapter("cannot read owed receipts", error))?;
        Ok(rows.into_iter().filter_map(|(n, text)| Owed::read(n, &text)).collect())
    }

    async fn paid(&self, numbers: &[i64]) -> Result<(), AdapterError> {
        if numbers.is_empty() {
            return Ok(());
        }
        let list = numbers.iter().map(i64::to_string).collect::<Vec<_>>().join(", ");
        let sql = format!("DELETE FROM {} WHERE n IN ({list})", self.database.tables.receipt());
        let mut tx = self.database.write("cannot delete owed receipts").await?;
        let deleted = sqlx::query(AssertSqlSafe(sql)).execute(&mut *tx).await;
        deleted.map_err(|error| adapter("cannot delete owed receipts", error))?;
        commit(tx).await.map_err(plain)
    }

    async fn can_owe(&self) -> Result<(), AdapterError> {
        let table = self.database.tables.receipt();
        let mut connection = self.database.connection().await?;
        sqlx::query(AssertSqlSafe(format!("SELECT 1 FROM {table} LIMIT 0")))
            .fetch_optional(&mut *connection)
            .await
            .map_err(|error| {
                adapter(format!("the table of owed receipts ({table}) cannot be read"), error)
            })?;
        Ok(())
    }
}
