//! What consumers say: receipts of redriven letters, and reports of themselves; and what people do by hand.

use backstop_core::ledger::{Change, DIED_AGAIN, LetterFilter};
use backstop_core::report_in::KEPT;
use backstop_core::{AdapterError, ConsumerReport, FaultKind, Receipt, ReceiptOutcome};
use sqlx::{AssertSqlSafe, SqliteConnection};

use super::SqliteLedger;
use super::choice::{self, Builder};
use crate::commit::commit;
use crate::database::plain;
use crate::error::adapter;
use crate::time::NOW;

/// A letter that a receipt belongs to.
struct Addressee {
    n: i64,
    held: bool,
    discarded: bool,
    /// Whether its consumer has skipped the message since it died last.
    skipped: bool,
}

impl SqliteLedger {
    pub(super) async fn take_receipts(&self, receipts: &[Receipt]) -> Result<u64, AdapterError> {
        let mut changed = 0;
        let mut tx = self.database.write("cannot record outcomes").await?;
        for receipt in receipts {
            if let Some(letter) = self.addressee(&mut tx, receipt).await? {
                changed += u64::from(self.take_receipt(&mut tx, &letter, receipt).await?);
            }
        }
        commit(tx).await.map_err(plain)?;
        Ok(changed)
    }

    /// The letter that a receipt belongs to: one that waits for an outcome, or else one that was discarded. None that died
    /// again since the receipt was written, see `Letter::died_since`.
    async fn addressee(
        &self,
        tx: &mut SqliteConnection,
        receipt: &Receipt,
    ) -> Result<Option<Addressee>, AdapterError> {
        let condition = match &receipt.letter {
            Some(_) => "id = ?1",
            None => "message_key = ?2 AND consumer = ?3 AND generation = ?4 - 1",
        };
        let sql = format!(
            "SELECT n, hold IS NOT NULL AS held, status = 'discarded' AS discarded, \
             'skipped' IS (SELECT e.what FROM {events} AS e WHERE e.letter = l.n AND e.what IN ('skipped', '{DIED_AGAIN}') \
             ORDER BY e.n DESC LIMIT 1) AS skipped \
             FROM {letters} AS l WHERE ?1 IS ?1 AND ?2 IS ?2 AND ?3 IS ?3 AND ?4 IS ?4 \
             AND {condition} AND status IN ('open', 'redriving', 'discarded') \
             AND NOT (l.dead_at IS NOT NULL AND ?5 <= l.seen_at AND (?6 = l.redrive) IS NOT TRUE \
                      AND EXISTS (SELECT 1 FROM {events} AS e WHERE e.letter = l.n AND e.what = '{DIED_AGAIN}')) \
             ORDER BY discarded, n LIMIT 1",
            events = self.database.tables.letter_event(),
            letters = self.database.tables.letter()
        );
        let found: Option<(i64, bool, bool, bool)> = sqlx::query_as(AssertSqlSafe(sql))
            .bind(receipt.letter.as_deref())
            .bind(receipt.message_key.as_str())
            .bind(&receipt.consumer)
            .bind(receipt.generation)
            .bind(receipt.at.timestamp_millis())
            .bind(receipt.redrive.as_deref())
            .fetch_optional(tx)
            .await
            .map_err(|error| adapter("cannot find the letter of a receipt", error))?;
        Ok(found.map(|(n, held, discarded, skipped)| Addressee { n, held, discarded, skipped }))
    }

    /// Whether the letter changed. What is on hold is never discarded, and what was discarded is not once more: of a skip
    /// it has the event alone. A consumer that has skipped it knows it from that.
    async fn take_receipt(
        &self,
        tx: &mut SqliteConnection,
        &Addressee { n, held, discarded, skipped }: &Addressee,
        receipt: &Receipt,
    ) -> Result<bool, AdapterError> {
        let (set, step, what) = match receipt.outcome {
            ReceiptOutcome::AlreadyHandled if discarded && skipped => return Ok(false),
            ReceiptOutcome::Handled | ReceiptOutcome::AlreadyHandled => {
                ("status = 'resolved', outcome = 'resolved'", "resolved", "resolved")
            }
            ReceiptOutcome::Skipped if !held && !discarded => ("status = 'discarded'", "dropped", "skipped"),
            ReceiptOutcome::Skipped => {
                self.note_once(tx, n, "skipped", receipt.outcome.as_str()).await?;
                return Ok(false);
            }
            _ => {
                self.note_once(tx, n, "key-released", &receipt.instance).await?;
                return Ok(false);
            }
        };
        let sql = format!("UPDATE {} SET {set} WHERE n = ?", self.database.tables.letter());
        let query = sqlx::query(AssertSqlSafe(sql)).bind(n);
        query.execute(&mut *tx).await.map_err(|error| adapter("cannot record an outcome", error))?;
        self.step_everywhere(tx, n, step).await?;
        self.note(tx, n, what, Some(receipt.outcome.as_str())).await?;
        Ok(true)
    }

    /// Writes what the history does not have since the letter died last.
    async fn note_once(
        &self,
        tx: &mut SqliteConnection,
        n: i64,
        what: &str,
        detail: &str,
    ) -> Result<(), AdapterError> {
        let events = self.database.tables.letter_event();
        let sql = format!(
            "INSERT INTO {events} (letter, what, detail) SELECT ?1, ?2, ?3 \
             WHERE ?2 IS NOT (SELECT e.what FROM {events} AS e WHERE e.letter = ?1 AND e.what IN (?2, '{DIED_AGAIN}') \
             ORDER BY e.n DESC LIMIT 1)"
        );
        let query = sqlx::query(AssertSqlSafe(sql)).bind(n).bind(what).bind(detail);
        query.execute(tx).await.map_err(|error| adapter("cannot write a letter's history", error))?;
        Ok(())
    }

    pub(super) async fn take_reports(&self, reports: &[ConsumerReport]) -> Result<(), AdapterError> {
        let sql = format!(
            "INSERT INTO {} (consumer, instance, reported_at, report) VALUES (?, ?, ?, ?) \
             ON CONFLICT (consumer, instance) DO UPDATE SET reported_at = excluded.reported_at, report = excluded.report \
             WHERE excluded.reported_at >= reported_at",
            self.database.tables.consumer()
        );
        let mut tx = self.database.write("cannot record reports of consumers").await?;
        for report in reports {
            let document = serde_json::to_string(report).map_err(|error| {
                AdapterError::new(FaultKind::Invalid, "a consumer's report cannot be written")
                    .with_source(error)
            })?;
            sqlx::query(AssertSqlSafe(sql.clone()))
                .bind(&report.consumer)
                .bind(&report.instance)
                .bind(report.at.timestamp_millis())
                .bind(document)
                .execute(&mut *tx)
                .await
                .map_err(|error| adapter("cannot record a report of a consumer", error))?;
        }
        self.forget_reports(&mut tx).await?;
        commit(tx).await.map_err(plain)
    }

    /// Forgets some instances that have not reported for long, or whose clock is far ahead. There are few: they are
    /// looked for each time.
    async fn forget_reports(&self, tx: &mut SqliteConnection) -> Result<(), AdapterError> {
        let sql = format!(
            "DELETE FROM {consumers} WHERE (consumer, instance) IN (SELECT consumer, instance FROM {consumers} \
             WHERE abs({NOW} - reported_at) > ? LIMIT 1000)",
            consumers = self.database.tables.consumer()
        );
        let done = sqlx::query(AssertSqlSafe(sql)).bind(KEPT.num_milliseconds()).execute(tx).await;
        done.map(drop).map_err(|error| adapter("cannot forget old reports of consumers", error))
    }

    pub(super) async fn read_reports(&self) -> Result<Vec<ConsumerReport>, AdapterError> {
        let sql =
            format!("SELECT report FROM {} ORDER BY consumer, instance", self.database.tables.consumer());
        let mut connection = self.database.connection().await?;
        let reports: Vec<String> = sqlx::query_scalar(AssertSqlSafe(sql))
            .fetch_all(&mut *connection)
            .await
            .map_err(|error| adapter("cannot read reports of consumers", error))?;
        let read = |report: &String| serde_json::from_str(report);
        reports.iter().map(read).collect::<Result<_, _>>().map_err(|error| {
            AdapterError::new(FaultKind::Invalid, "a consumer's report cannot be read")
                .with_hint("use at least the version of Backstop that wrote it")
                .with_source(error)
        })
    }

    pub(super) async fn tell_all(
        &self,
        filter: &LetterFilter,
        what: &str,
        detail: Option<&str>,
    ) -> Result<u64, AdapterError> {
        let tables = &self.database.tables;
        let mut sql = Builder::new(format!("SELECT l.n FROM {} AS l WHERE 1", tables.letter()));
        choice::meant(&mut sql, tables, filter);
        let mut tx = self.database.write("cannot tell of dead letters").await?;
        let found = sql.push(" ORDER BY l.n").build_query_scalar().fetch_all(&mut *tx).await;
        let meant: Vec<i64> = found.map_err(|error| adapter("cannot tell of dead letters", error))?;
        for n in &meant {
            self.note(&mut tx, *n, what, detail).await?;
        }
        commit(tx).await.map_err(plain)?;
        Ok(meant.len() as u64)
    }

    pub(super) async fn change_letters(
        &self,
        filter: &LetterFilter,
        change: &Change,
        limit: u32,
    ) -> Result<u64, AdapterError> {
        let failed = |error| adapter("cannot change dead letters", error);
        let (applies, set, value) = match change {
            Change::Discard { .. } => {
                (" AND l.hold IS NULL AND l.status IN ('open', 'redriving')", "status", Some("discarded"))
            }
            Change::Hold { because } => (" AND l.hold IS NULL", "hold", Some(because.as_str())),
            Change::Release { .. } => (" AND l.hold IS NOT NULL", "hold", None),
        };
        let tables = &self.database.tables;
        let mut sql = Builder::new(format!("UPDATE {} SET {set} = ", tables.letter()));
        sql.push_bind(value.map(str::to_owned));
        sql.push(format!(" WHERE n IN (SELECT l.n FROM {} AS l WHERE 1", tables.letter()));
        choice::meant(&mut sql, tables, filter);
        sql.push(applies).push(" ORDER BY l.n LIMIT ").push_bind(limit).push(") RETURNING n");
        let mut tx = self.database.write("cannot change dead letters").await?;
        let done: Vec<i64> = sql.build_query_scalar().fetch_all(&mut *tx).await.map_err(failed)?;
        for n in &done {
            if matches!(change, Change::Discard { .. }) {
                self.step_everywhere(&mut tx, *n, "dropped").await?;
            }
            self.note(&mut tx, *n, change.event(), Some(change.because())).await?;
        }
        commit(tx).await.map_err(plain)?;
        Ok(done.len() as u64)
    }
}
