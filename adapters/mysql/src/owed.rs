//! Owed receipts: what the consumer has done and has not told yet.

use std::sync::Arc;
use std::time::Duration;

use backstop_core::owed::{Owed, OwedReceipts, needs_inbox_row};
use backstop_core::{AdapterError, FaultKind, Receipt};
use sqlx::mysql::MySqlArguments;
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, MySql};

use crate::check;
use crate::contest::{contested, run_contested};
use crate::failure::failed;
use crate::inbox::MySqlInbox;
use crate::patience::within;
use crate::scoped::Scoped;
use crate::tables::MySqlTables;
use crate::time::micros;
use crate::transaction::MySqlTx;

/// The statements, with the names of the tables.
#[derive(Debug)]
pub(crate) struct OwedSql {
    owe: Arc<str>,
    owed: Arc<str>,
}

impl OwedSql {
    pub(crate) fn new(tables: &MySqlTables) -> Self {
        let fill = |statement: &str| Arc::<str>::from(tables.fill(statement));
        Self {
            owe: fill(
                "INSERT INTO {receipt} (consumer, instance, receipt) SELECT ?, ?, ? FROM DUAL \
                 WHERE ? OR EXISTS (SELECT 1 FROM {inbox} WHERE consumer = ? AND message_key = ?)",
            ),
            owed: fill(
                "SELECT n, receipt FROM {receipt} WHERE consumer = ? \
                 AND (instance = ? OR owed_since < UTC_TIMESTAMP(6) - INTERVAL ? MICROSECOND) ORDER BY n LIMIT ?",
            ),
        }
    }

    fn owe<'q>(&self, receipt: &'q Receipt) -> Query<'q, MySql, MySqlArguments> {
        sqlx::query(AssertSqlSafe(Arc::clone(&self.owe)))
            .bind(receipt.consumer.as_bytes())
            .bind(receipt.instance.as_bytes())
            .bind(Owed::text(receipt))
            .bind(!needs_inbox_row(receipt.outcome))
            .bind(receipt.consumer.as_bytes())
            .bind(receipt.message_key.as_str().as_bytes())
    }
}

impl OwedReceipts for MySqlInbox {
    async fn owe(&self, tx: &mut MySqlTx, receipt: &Receipt) -> Result<(), AdapterError> {
        const DOING: &str = "write down an owed receipt";
        let query = self.owed.owe(receipt);
        within(DOING, async { query.execute(&mut **tx).await.map_err(failed(DOING)) }).await?;
        Ok(())
    }

    async fn owe_now(&self, receipt: &Receipt) -> Result<(), AdapterError> {
        const DOING: &str = "write down an owed receipt";
        contested(DOING, async || {
            let mut scoped = Scoped::begin(&self.pool).await.map_err(failed(DOING))?;
            self.owed.owe(receipt).execute(&mut *scoped).await.map_err(failed(DOING))?;
            scoped.commit().await.map_err(failed(DOING))
        })
        .await
    }

    async fn owed(
        &self,
        consumer: &str,
        instance: &str,
        others_after: Duration,
        limit: u32,
    ) -> Result<Vec<Owed>, AdapterError> {
        const DOING: &str = "read owed receipts";
        let query = sqlx::query_as::<_, (i64, String)>(AssertSqlSafe(Arc::clone(&self.owed.owed)))
            .bind(consumer.as_bytes())
            .bind(instance.as_bytes())
            .bind(micros(others_after))
            .bind(limit);
        let rows = within(DOING, async { query.fetch_all(&self.pool).await.map_err(failed(DOING)) }).await?;
        Ok(rows.into_iter().filter_map(|(n, text)| Owed::read(n, &text)).collect())
    }

    async fn paid(&self, numbers: &[i64]) -> Result<(), AdapterError> {
        const DOING: &str = "delete owed receipts";
        if numbers.is_empty() {
            return Ok(());
        }
        let list = numbers.iter().map(i64::to_string).collect::<Vec<_>>().join(", ");
        let sql = format!("DELETE FROM {} WHERE n IN ({list})", self.tables.quoted("receipt"));
        run_contested(&self.pool, DOING, sql).await.map(drop)
    }

    async fn can_owe(&self) -> Result<(), AdapterError> {
        let lacking = check::lacking(&self.pool, &self.tables, "receipt", check::RECEIPT).await?;
        if lacking.is_empty() {
            return Ok(());
        }
        let table = self.tables.quoted("receipt");
        let what = format!("the database user lacks {} on {table}", lacking.join(", "));
        Err(AdapterError::new(FaultKind::Denied, what.replace('`', ""))
            .with_hint("grant the user its permissions: see migrations/README.md"))
    }
}
