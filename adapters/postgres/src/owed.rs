//! Owed receipts: what the consumer has done and has not told yet.

use std::sync::Arc;
use std::time::Duration;

use backstop_core::owed::{Owed, OwedReceipts, needs_inbox_row};
use backstop_core::{AdapterError, FaultKind, Receipt};
use sqlx::postgres::PgArguments;
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, Postgres};

use crate::inbox::PgInbox;
use crate::patience::answer_within;
use crate::tables::PgTables;
use crate::transaction::PgTx;

/// The statements, with the names of the tables.
#[derive(Debug)]
pub(crate) struct OwedSql {
    owe: Arc<str>,
    owe_all: Arc<str>,
    owed: Arc<str>,
    paid: Arc<str>,
    can_owe: Arc<str>,
}

impl OwedSql {
    pub(crate) fn new(tables: &PgTables) -> Self {
        let fill = |statement: &str| Arc::<str>::from(tables.fill(statement));
        Self {
            owe: fill(
                "INSERT INTO {receipt} (consumer, instance, receipt)
                 SELECT $1, $2, $3
                 WHERE $5 OR EXISTS (SELECT FROM {inbox} WHERE consumer = $1 AND message_key = $4)",
            ),
            owe_all: fill(
                "INSERT INTO {receipt} (consumer, instance, receipt)
                 SELECT r.consumer, r.instance, r.receipt
                 FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::boolean[])
                      AS r (consumer, instance, receipt, message_key, is_free)
                 WHERE r.is_free OR EXISTS (
                    SELECT FROM {inbox} AS i WHERE i.consumer = r.consumer AND i.message_key = r.message_key
                 )",
            ),
            owed: fill(
                "SELECT n, receipt FROM {receipt}
                 WHERE consumer = $1 AND (instance = $2 OR owed_since < now() - make_interval(secs => $3))
                 ORDER BY n LIMIT $4",
            ),
            // Told once more after a crash of the server.
            paid: fill(
                "DELETE FROM {receipt} WHERE n = ANY($1)
                 AND (SELECT set_config('synchronous_commit', 'off', true)) IS NOT NULL",
            ),
            can_owe: fill(
                "SELECT bool_and(has_table_privilege(to_regclass($1), right_)) \
                 FROM unnest(ARRAY['SELECT', 'INSERT', 'DELETE']) AS right_",
            ),
        }
    }

    fn owe<'q>(&self, receipt: &'q Receipt) -> Query<'q, Postgres, PgArguments> {
        sqlx::query(AssertSqlSafe(Arc::clone(&self.owe)))
            .bind(receipt.consumer.as_str())
            .bind(receipt.instance.as_str())
            .bind(Owed::text(receipt))
            .bind(receipt.message_key.as_str())
            .bind(!needs_inbox_row(receipt.outcome))
    }
}

impl OwedReceipts for PgInbox {
    async fn owe(&self, tx: &mut PgTx, receipt: &Receipt) -> Result<(), AdapterError> {
        let query = self.owed.owe(receipt);
        answer_within("write down an owed receipt", query.execute(&mut **tx)).await?;
        Ok(())
    }

    async fn owe_all(&self, tx: &mut PgTx, receipts: &[Receipt]) -> Result<(), AdapterError> {
        let texts = |text: fn(&Receipt) -> &str| -> Vec<&str> { receipts.iter().map(text).collect() };
        let query = sqlx::query(AssertSqlSafe(Arc::clone(&self.owed.owe_all)))
            .bind(texts(|receipt| &receipt.consumer))
            .bind(texts(|receipt| &receipt.instance))
            .bind(receipts.iter().map(Owed::text).collect::<Vec<String>>())
            .bind(texts(|receipt| receipt.message_key.as_str()))
            .bind(receipts.iter().map(|receipt| !needs_inbox_row(receipt.outcome)).collect::<Vec<bool>>());
        answer_within("write down owed receipts", query.execute(&mut **tx)).await?;
        Ok(())
    }

    async fn owe_now(&self, receipt: &Receipt) -> Result<(), AdapterError> {
        let query = self.owed.owe(receipt);
        answer_within("write down an owed receipt", query.execute(&self.pool)).await?;
        Ok(())
    }

    async fn owed(
        &self,
        consumer: &str,
        instance: &str,
        others_after: Duration,
        limit: u32,
    ) -> Result<Vec<Owed>, AdapterError> {
        let query = sqlx::query_as::<_, (i64, String)>(AssertSqlSafe(Arc::clone(&self.owed.owed)))
            .bind(consumer)
            .bind(instance)
            .bind(others_after.as_secs_f64())
            .bind(i64::from(limit));
        let rows = answer_within("read owed receipts", query.fetch_all(&self.pool)).await?;
        Ok(rows.into_iter().filter_map(|(n, text)| Owed::read(n, &text)).collect())
    }

    async fn paid(&self, numbers: &[i64]) -> Result<(), AdapterError> {
        let query = sqlx::query(AssertSqlSafe(Arc::clone(&self.owed.paid))).bind(numbers);
        answer_within("delete owed receipts", query.execute(&self.pool)).await?;
        Ok(())
    }

    async fn can_owe(&self) -> Result<(), AdapterError> {
        let table = self.tables.quoted("receipt");
        let query = sqlx::query_scalar::<_, Option<bool>>(AssertSqlSafe(Arc::clone(&self.owed.can_owe)))
            .bind(table.as_str());
        let may = answer_within("look for the table of owed receipts", query.fetch_one(&self.pool)).await?;
        let table = table.replace('"', "");
        match may {
            Some(true) => Ok(()),
            Some(false) => {
                let what = format!("the database user may not write to {table}");
                Err(AdapterError::new(FaultKind::Denied, what)
                    .with_hint("grant the user its permissions: see migrations/README.md"))
            }
            None => {
                let what = format!("there is no table {table}");
                Err(AdapterError::new(FaultKind::Missing, what).with_hint("run `backstop-relay migrate`"))
            }
        }
    }
}
