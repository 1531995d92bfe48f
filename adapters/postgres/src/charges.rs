//! Charges: what was being handled when a process died.
//!
//! They are to outlive the consumer's process, not the server's, so that nobody waits until they are on its disk.

use std::sync::Arc;
use std::time::Duration;

use backstop_core::charges::Charges;
use backstop_core::held::HeadCharge;
use backstop_core::{AdapterError, MessageKey};
use sqlx::postgres::PgArguments;
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, Postgres};

use crate::held_sql::integer;
use crate::inbox::PgInbox;
use crate::patience::answer_within;
use crate::tables::PgTables;

/// The statements, with the names of the tables.
#[derive(Debug)]
pub(crate) struct ChargesSql {
    charges: Arc<str>,
    charge: Arc<str>,
    acquit: Arc<str>,
    acquit_heads: Arc<str>,
    prune: Arc<str>,
}

impl ChargesSql {
    pub(crate) fn new(tables: &PgTables) -> Self {
        let fill = |statement: &str| Arc::<str>::from(tables.fill(statement));
        Self {
            charges: fill("SELECT crashes FROM {charge} WHERE consumer = $1 AND message_key = $2"),
            charge: fill(
                "INSERT INTO {charge} AS c (consumer, message_key, crashes, charged_at)
                 SELECT $1, $2, 1, now() FROM (SELECT set_config('synchronous_commit', 'off', true) OFFSET 0) AS soon
                 ON CONFLICT (consumer, message_key) DO UPDATE SET crashes = c.crashes + 1, charged_at = now()
                 RETURNING crashes - 1",
            ),
            acquit: fill(
                "DELETE FROM {charge} WHERE consumer = $1 AND message_key = $2 AND crashes <= $3
                 AND (SELECT set_config('synchronous_commit', 'off', true)) IS NOT NULL",
            ),
            acquit_heads: fill(
                "UPDATE {held} AS h SET crashes = c.leaves, due_at = clock_timestamp()
                 FROM unnest($2::bigint[], $3::integer[], $4::integer[]) AS c (n, leaves, stands)
                 WHERE h.consumer = $1 AND h.n = c.n AND h.crashes > c.leaves AND h.crashes <= c.stands
                 AND h.condemned IS NULL AND (SELECT set_config('synchronous_commit', 'off', true)) IS NOT NULL",
            ),
            prune: fill(
                "DELETE FROM {charge} WHERE consumer = $1 AND charged_at < now() - make_interval(secs => $2)",
            ),
        }
    }

    fn about<'q>(&self, sql: &Arc<str>, consumer: &'q str) -> Query<'q, Postgres, PgArguments> {
        sqlx::query(AssertSqlSafe(Arc::clone(sql))).bind(consumer)
    }
}

impl PgInbox {
    pub(crate) async fn acquit_held(
        &self,
        consumer: &str,
        charges: &[HeadCharge],
    ) -> Result<(), AdapterError> {
        let counts = |count: fn(&HeadCharge) -> u32| -> Vec<i32> {
            charges.iter().map(|charge| integer(count(charge))).collect()
        };
        let query = self
            .charges
            .about(&self.charges.acquit_heads, consumer)
            .bind(charges.iter().map(|charge| charge.n).collect::<Vec<i64>>())
            .bind(counts(|charge| charge.leaves))
            .bind(counts(|charge| charge.stands));
        answer_within("take back the charges of held messages", query.execute(&self.pool)).await?;
        Ok(())
    }

    /// Forgets charges that nobody has come back to.
    pub(crate) async fn prune_charges(&self, consumer: &str, age: Duration) -> Result<(), AdapterError> {
        let query = self.charges.about(&self.charges.prune, consumer).bind(age.as_secs_f64());
        answer_within("prune the charges", query.execute(&self.pool)).await?;
        Ok(())
    }
}

impl Charges for PgInbox {
    async fn charges(&self, consumer: &str, message_key: &MessageKey) -> Result<u32, AdapterError> {
        let query = sqlx::query_scalar::<_, i32>(AssertSqlSafe(Arc::clone(&self.charges.charges)))
            .bind(consumer)
            .bind(message_key.as_str());
        let charges =
            answer_within("read the charges of the message", query.fetch_optional(&self.pool)).await?;
        Ok(charges.unwrap_or_default().unsigned_abs())
    }

    async fn charge(&self, consumer: &str, message_key: &MessageKey) -> Result<u32, AdapterError> {
        let query = sqlx::query_scalar::<_, i32>(AssertSqlSafe(Arc::clone(&self.charges.charge)))
            .bind(consumer)
            .bind(message_key.as_str());
        let before = answer_within("charge the message", query.fetch_one(&self.pool)).await?;
        Ok(before.unsigned_abs())
    }

    async fn acquit(&self, consumer: &str, message_key: &MessageKey, up_to: u32) -> Result<(), AdapterError> {
        let query = self.charges.about(&self.charges.acquit, consumer);
        let query = query.bind(message_key.as_str()).bind(integer(up_to));
        answer_within("take back the charge of the message", query.execute(&self.pool)).await?;
        Ok(())
    }
}
