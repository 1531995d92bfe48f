//! What consumers say: receipts of redriven letters, and reports of themselves.

use std::sync::atomic::Ordering;

use backstop_core::ledger::DIED_AGAIN;
use backstop_core::report_in::KEPT;
use backstop_core::{AdapterError, ConsumerReport, FaultKind, Receipt};

use super::PgLedger;
use crate::failure::{failed, failed_or_denied};
use crate::storable::storable;
use crate::stranded;

/// Letters are locked in their order before anything else, here as everywhere. What is on hold is never discarded, and what
/// was discarded is not once more: of a skip it `stays` and has the event alone. A consumer that has skipped a message knows
/// it from that, in the same batch as well. What the history has since the letter died last is not told again, and what was
/// said before that death is not taken: see `Letter::died_since`. Of the lock's row, so as to know of a death meanwhile.
const OUTCOMES: &str = "
    WITH receipt AS (
        SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::text[], $6::text[], $7::text[],
                             $8::timestamptz[])
            AS u (letter, message_key, consumer, generation, outcome, instance, redrive, at)
    ), named AS (
        SELECT l.n, r.outcome, r.instance, r.redrive, r.at FROM receipt AS r JOIN {letter} AS l ON l.id = r.letter
        UNION ALL
        SELECT l.n, r.outcome, r.instance, r.redrive, r.at FROM receipt AS r JOIN {letter} AS l
        ON l.message_key = r.message_key AND l.consumer = r.consumer AND l.generation = r.generation - 1
        WHERE r.letter IS NULL
    ), locked AS (
        SELECT l.n, l.hold IS NOT NULL OR l.status = 'discarded' AS stays, l.status = 'discarded' AS discarded,
               l.dead_at, l.redrive
        FROM {letter} AS l WHERE l.n = ANY (ARRAY (SELECT n FROM named))
        AND l.status IN ('open', 'redriving', 'discarded') ORDER BY l.n FOR UPDATE
    ), found AS (
        SELECT DISTINCT ON (l.n) l.n, l.stays, l.discarded, r.outcome, r.instance
        FROM named AS r JOIN locked AS l ON l.n = r.n
        WHERE NOT (date_trunc('milliseconds', r.at) <= coalesce(date_trunc('milliseconds', l.dead_at), '-infinity')
                   AND (r.redrive = l.redrive) IS NOT TRUE
                   AND EXISTS (SELECT FROM {event} AS e WHERE e.letter = l.n AND e.what = '{died_again}'))
        ORDER BY l.n, array_position(ARRAY['handled', 'skipped', 'already-handled'], r.outcome) NULLS LAST
    ), said AS (
        SELECT f.*, coalesce(told.skipped, false) AS skipped, coalesce(told.released, false) AS released
        FROM found AS f CROSS JOIN LATERAL (
            SELECT bool_or(e.what = 'skipped') AS skipped, bool_or(e.what = 'key-released') AS released
            FROM {event} AS e WHERE f.outcome <> 'handled' AND e.letter = f.n AND e.n > coalesce(
                (SELECT max(d.n) FROM {event} AS d WHERE d.letter = f.n AND d.what = '{died_again}'), 0)
        ) AS told
    ), moved AS (
        UPDATE {letter} AS l SET
            status = CASE s.outcome WHEN 'skipped' THEN 'discarded' ELSE 'resolved' END,
            outcome = CASE s.outcome WHEN 'skipped' THEN l.outcome ELSE 'resolved' END
        FROM said AS s
        WHERE l.n = s.n AND (s.outcome = 'handled' OR s.outcome = 'already-handled' AND NOT (s.discarded AND s.skipped)
                             OR s.outcome = 'skipped' AND NOT s.stays)
        RETURNING l.n, s.outcome
    ), stepped AS (
        UPDATE {cohort} AS c SET step = CASE moved.outcome WHEN 'skipped' THEN 'dropped' ELSE 'resolved' END
        FROM moved WHERE c.letter = moved.n AND c.step IN ('sending', 'waiting', 'silent', 'unknown')
    ), told AS (
        INSERT INTO {event} (letter, what, detail)
        SELECT n, CASE outcome WHEN 'skipped' THEN 'skipped' ELSE 'resolved' END, outcome FROM moved
        UNION ALL
        SELECT n, 'skipped', outcome FROM said WHERE outcome = 'skipped' AND stays AND NOT skipped
        UNION ALL
        SELECT n, 'key-released', instance FROM said
        WHERE outcome NOT IN ('handled', 'already-handled', 'skipped') AND NOT released
    )
    SELECT count(*) FROM moved";

/// Forgets some instances that have not reported for long, or whose clock is far ahead. There are few: they are looked for
/// each time.
const FORGET: &str = "
    DELETE FROM {consumer} AS c USING (
        SELECT consumer, instance FROM {consumer}
        WHERE reported_at NOT BETWEEN now() - make_interval(secs => $1) AND now() + make_interval(secs => $1)
        LIMIT 1000 FOR UPDATE SKIP LOCKED
    ) AS gone
    WHERE c.consumer = gone.consumer AND c.instance = gone.instance";

const MAY_FORGET: &str = "GRANT DELETE ON {consumer} TO the relay's user";

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
        let ids = |field: fn(&Receipt) -> Option<&str>| -> Vec<Option<String>> {
            receipts.iter().map(|receipt| field(receipt).map(storable)).collect()
        };
        let doing = || failed("record outcomes of redriven letters");
        let mut tx = stranded::begin(&self.pool).await.map_err(doing())?;
        let changed: i64 = sqlx::query_scalar(self.sql(&OUTCOMES.replace("{died_again}", DIED_AGAIN)))
            .bind(ids(|receipt| receipt.letter.as_deref()))
            .bind(texts(|receipt| receipt.message_key.as_str()))
            .bind(texts(|receipt| &receipt.consumer))
            .bind(receipts.iter().map(|receipt| i64::from(receipt.generation)).collect::<Vec<_>>())
            .bind(texts(|receipt| receipt.outcome.as_str()))
            .bind(texts(|receipt| &receipt.instance))
            .bind(ids(|receipt| receipt.redrive.as_deref()))
            .bind(receipts.iter().map(|receipt| receipt.at).collect::<Vec<_>>())
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
        tx.commit().await.map_err(doing())?;
        self.forget_reports().await;
        Ok(())
    }

    /// Apart from what is recorded, which must not wait for it: old reports take room, and lost receipts leave letters
    /// open. A user whose permissions are those of an earlier version may not delete them. Said once, until it works.
    async fn forget_reports(&self) {
        let forgotten = async {
            let mut tx = stranded::begin(&self.pool).await?;
            sqlx::query(self.sql(FORGET)).bind(KEPT.as_seconds_f64()).execute(&mut *tx).await?;
            tx.commit().await
        };
        let error = forgotten.await.err();
        let was_said = self.cannot_forget.swap(error.is_some(), Ordering::Relaxed);
        if let Some(error) = error.filter(|_| !was_said) {
            let cause = error.to_string();
            let error = failed_or_denied("forget old reports of consumers", &self.tables, MAY_FORGET)(error);
            tracing::warn!(cause, hint = error.hint(), "{error}; new ones are recorded");
        }
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
