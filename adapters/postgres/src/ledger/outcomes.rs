//! What consumers say: receipts of redriven letters, and reports of themselves.

use backstop_core::{AdapterError, ConsumerReport, FaultKind, Receipt};

use super::PgLedger;
use crate::failure::failed;
use crate::storable::storable;
use crate::stranded;

/// Letters are locked in their order before anything else, here as everywhere. What is on hold is never discarded: of a
/// skip it has the event alone.
const OUTCOMES: &str = "
    WITH receipt AS (
        SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::text[], $6::text[])
            AS u (letter, message_key, consumer, generation, outcome, instance)
    ), named AS (
        SELECT l.n, r.outcome, r.instance FROM receipt AS r JOIN {letter} AS l ON l.id = r.letter
        UNION ALL
        SELECT l.n, r.outcome, r.instance FROM receipt AS r JOIN {letter} AS l
        ON l.message_key = r.message_key AND l.consumer = r.consumer AND l.generation = r.generation - 1
        WHERE r.letter IS NULL
    ), found AS (
        SELECT DISTINCT ON (n) n, outcome, instance FROM named
        ORDER BY n, array_position(ARRAY['handled', 'already-handled', 'skipped'], outcome) NULLS LAST
    ), locked AS (
        SELECT l.n, l.hold IS NOT NULL AS held FROM {letter} AS l WHERE l.n = ANY (ARRAY (SELECT n FROM found))
        AND l.status IN ('open', 'redriving') ORDER BY l.n FOR UPDATE
    ), moved AS (
        UPDATE {letter} AS l SET
            status = CASE f.outcome WHEN 'skipped' THEN 'discarded' ELSE 'resolved' END,
            outcome = CASE f.outcome WHEN 'skipped' THEN l.outcome ELSE 'resolved' END
        FROM found AS f JOIN locked ON locked.n = f.n
        WHERE l.n = f.n AND (f.outcome IN ('handled', 'already-handled') OR f.outcome = 'skipped' AND NOT locked.held)
        RETURNING l.n, f.outcome
    ), stepped AS (
        UPDATE {cohort} AS c SET step = CASE moved.outcome WHEN 'skipped' THEN 'dropped' ELSE 'resolved' END
        FROM moved WHERE c.letter = moved.n AND c.step IN ('sending', 'waiting', 'silent', 'unknown')
    ), told AS (
        INSERT INTO {event} (letter, what, detail)
        SELECT n, CASE outcome WHEN 'skipped' THEN 'skipped' ELSE 'resolved' END, outcome FROM moved
        UNION ALL
        SELECT f.n, 'skipped', f.outcome FROM found AS f JOIN locked ON locked.n = f.n
        WHERE f.outcome = 'skipped' AND locked.held
        AND NOT EXISTS (SELECT FROM {event} AS e WHERE e.letter = f.n AND e.what = 'skipped')
        UNION ALL
        SELECT f.n, 'key-released', f.instance FROM found AS f JOIN locked ON locked.n = f.n
        WHERE f.outcome NOT IN ('handled', 'already-handled', 'skipped')
        AND NOT EXISTS (SELECT FROM {event} AS e WHERE e.letter = f.n AND e.what = 'key-released')
    )
    SELECT count(*) FROM moved";

/// In the order of the instances, so that two that do the same do not lock each other up.
const REPORTS: &str = "
    INSERT INTO {consumer} AS c (consumer, instance, reported_at, report)
    SELECT DISTINCT ON (u.consumer, u.instance) u.consumer, u.instance, u.at, u.report
    FROM unnest($1::text[], $2::text[], $3::timestamptz[], $4::text[]) AS u (consumer, instance, at, report)
    ORDER BY u.consumer, u.instance, u.at DESC
    ON CONFLICT (consumer, instance) DO UPDATE
    SET reported_at = excluded.reported_at, report = excluded.report, received_at = now()
    WHERE excluded.reported_at >= c.reported_at";

impl PgLedger {
    pub(super) async fn take_receipts(&self, receipts: &[Receipt]) -> Result<u64, AdapterError> {
        let texts = |field: fn(&Receipt) -> &str| -> Vec<String> {
            receipts.iter().map(|receipt| storable(field(receipt))).collect()
        };
        let letters: Vec<Option<String>> =
            receipts.iter().map(|receipt| receipt.letter.as_deref().map(storable)).collect();
        let doing = || failed("record outcomes of redriven letters");
        let mut tx = stranded::begin(&self.pool).await.map_err(doing())?;
        let changed: i64 = sqlx::query_scalar(self.sql(OUTCOMES))
            .bind(letters)
            .bind(texts(|receipt| receipt.message_key.as_str()))
            .bind(texts(|receipt| &receipt.consumer))
            .bind(receipts.iter().map(|receipt| i64::from(receipt.generation)).collect::<Vec<_>>())
            .bind(texts(|receipt| receipt.outcome.as_str()))
            .bind(texts(|receipt| &receipt.instance))
            .fetch_one(&mut *tx)
            .await
            .map_err(doing())?;
        tx.commit().await.map_err(doing())?;
        Ok(u64::try_from(changed).unwrap_or(0))
    }

    pub(super) async fn take_reports(&self, reports: &[ConsumerReport]) -> Result<(), AdapterError> {
        let texts = |field: fn(&ConsumerReport) -> &str| -> Vec<String> {
            reports.iter().map(|report| storable(field(report))).collect()
        };
        let documents: Result<Vec<String>, _> = reports.iter().map(serde_json::to_string).collect();
        let documents = documents.map_err(|error| {
            AdapterError::new(FaultKind::Invalid, "a consumer's report cannot be written").with_source(error)
        })?;
        let doing = || failed("record reports of consumers");
        let mut tx = stranded::begin(&self.pool).await.map_err(doing())?;
        sqlx::query(self.sql(REPORTS))
            .bind(texts(|report| &report.consumer))
            .bind(texts(|report| &report.instance))
            .bind(reports.iter().map(|report| report.at).collect::<Vec<_>>())
            .bind(documents.iter().map(|text| storable(text)).collect::<Vec<_>>())
            .execute(&mut *tx)
            .await
            .map_err(doing())?;
        tx.commit().await.map_err(doing())
    }

    pub(super) async fn read_reports(&self) -> Result<Vec<ConsumerReport>, AdapterError> {
        let reports: Vec<String> =
            sqlx::query_scalar(self.sql("SELECT report FROM {consumer} ORDER BY consumer, instance"))
                .fetch_all(&self.pool)
                .await
                .map_err(failed("read reports of consumers"))?;
        let read = |report: &String| serde_json::from_str(report);
        reports.iter().map(read).collect::<Result<_, _>>().map_err(|error| {
            AdapterError::new(FaultKind::Invalid, "a consumer's report cannot be read")
                .with_hint("use at least the version of Backstop that wrote it")
                .with_source(error)
        })
    }
}
