//! The number that a table of Debezium's layout lacks, and what else is looked at there.

use backstop_core::AdapterError;
use backstop_core::schema::{Finding, Migration, Schema};
use futures_core::future::BoxFuture;
use sqlx::{AssertSqlSafe, Executor, PgPool};

use crate::debezium::DebeziumOutbox;
use crate::failure::failed;
use crate::tables::PgTables;

/// The names in it are Debezium's own, in whose place those of the configuration are put. INSERTs that name their columns
/// go on unchanged. Existing rows are rewritten, of which such a table has few.
const STEPS: &[Migration] = &[Migration {
    version: 1,
    name: "numbers for a Debezium outbox",
    up: "SET LOCAL lock_timeout = '5s';\n\
         ALTER TABLE outboxevent ADD COLUMN seq bigint GENERATED ALWAYS AS IDENTITY (CACHE 1);\n\
         CREATE UNIQUE INDEX outboxevent_seq ON outboxevent (seq);",
    down: "SET LOCAL lock_timeout = '5s';\nALTER TABLE outboxevent DROP COLUMN seq;",
}];

const NUMBERED: &str = "SELECT EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass($1) \
                        AND attname = 'seq' AND attidentity <> '' AND NOT attisdropped)";

/// Rows written and rows deleted, as far as the server has counted, and whether any relay has ever owned an outbox.
const DELETIONS: &str = "SELECT n_tup_ins, n_tup_del, EXISTS (SELECT FROM {lease}) \
                         FROM pg_stat_all_tables WHERE relid = to_regclass($1)";

/// What the relay adds to a table of Debezium's layout: the column `seq` with a unique index, and nothing else.
#[derive(Debug, Clone)]
pub struct DebeziumSchema {
    pool: PgPool,
    tables: PgTables,
    table: String,
}

impl DebeziumSchema {
    /// The schema of that table.
    ///
    /// # Errors
    /// As [`DebeziumOutbox::validate`].
    pub fn new(pool: PgPool, tables: PgTables, outbox: &DebeziumOutbox) -> Result<Self, AdapterError> {
        outbox.validate()?;
        let table = outbox.quoted_table(&tables)?;
        Ok(Self { pool, tables, table })
    }

    async fn is_numbered(&self) -> Result<bool, AdapterError> {
        sqlx::query_scalar(NUMBERED)
            .bind(&self.table)
            .fetch_one(&self.pool)
            .await
            .map_err(failed("look for the numbers of the outbox"))
    }

    async fn run(&self, step: &Migration, script: &str) -> Result<(), AdapterError> {
        // The name of an index has no schema: it is that of its table.
        let bare = self.table.rsplit('.').next().unwrap_or(&self.table).trim_matches('"');
        let parts: Vec<String> =
            script.split("outboxevent_seq").map(|part| part.replace("outboxevent", &self.table)).collect();
        let script = parts.join(&format!("\"{bare}_seq\""));
        let mut tx = self.pool.begin().await.map_err(failed("begin a change of the tables"))?;
        let doing = format!("run migration {} ({})", step.version, step.name);
        tx.execute(sqlx::raw_sql(AssertSqlSafe(script))).await.map_err(failed(&doing))?;
        tx.commit().await.map_err(failed("commit a migration"))
    }

    async fn findings(&self) -> Result<Vec<Finding>, AdapterError> {
        let subject = format!("table {}", self.table.replace('"', ""));
        if !self.is_numbered().await? {
            let detail = "does not exist, or has no column seq that numbers its rows";
            return Ok(vec![Finding::error(
                subject,
                detail,
                "name the table in [outbox.debezium], then run `backstop-relay migrate`",
            )]);
        }
        let deletions: Option<(i64, i64, bool)> = sqlx::query_as(AssertSqlSafe(self.tables.fill(DELETIONS)))
            .bind(&self.table)
            .fetch_optional(&self.pool)
            .await
            .map_err(failed("count the deletions of the outbox"))?;
        Ok(vec![match deletions {
            Some((written, deleted @ 1.., false)) => Finding::warning(
                subject,
                format!(
                    "{deleted} of {written} rows were deleted, and not by a relay, because none has run yet"
                ),
                "let the service keep its rows (Quarkus: quarkus.debezium-outbox.remove-after-insert=false): \
                 one that is deleted in its own transaction is never seen by the relay",
            ),
            _ => Finding::fine(subject, "numbers its rows"),
        }])
    }
}

impl Schema for DebeziumSchema {
    fn migrations(&self) -> &'static [Migration] {
        STEPS
    }

    fn applied(&self) -> BoxFuture<'_, Result<Vec<i64>, AdapterError>> {
        Box::pin(async move { Ok(if self.is_numbered().await? { vec![1] } else { Vec::new() }) })
    }

    fn migrate(&self) -> BoxFuture<'_, Result<Vec<i64>, AdapterError>> {
        Box::pin(async move {
            if self.is_numbered().await? {
                return Ok(Vec::new());
            }
            match self.run(&STEPS[0], STEPS[0].up).await {
                // Of two at once, one finds that the other has done it.
                Err(error) if !self.is_numbered().await? => Err(error),
                Err(_) => Ok(Vec::new()),
                Ok(()) => Ok(vec![1]),
            }
        })
    }

    fn revert(&self, version: i64) -> BoxFuture<'_, Result<Vec<i64>, AdapterError>> {
        Box::pin(async move {
            if version >= 1 || !self.is_numbered().await? {
                return Ok(Vec::new());
            }
            self.run(&STEPS[0], STEPS[0].down).await?;
            Ok(vec![1])
        })
    }

    fn check(&self) -> BoxFuture<'_, Result<Vec<Finding>, AdapterError>> {
        Box::pin(self.findings())
    }
}
