//! Held messages that share a transaction.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use backstop_core::AdapterError;
use backstop_core::held::{AFTER_CRASH, ClaimError, HeadCharge, HeldMessage};
use backstop_core::held_run::{ClaimedRun, RUN_BYTES, RunChoice, RunClaim};
use backstop_core::inbox::{Limits, Standing};
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Executor, Row};

use crate::failure::failed;
use crate::held_row::read_message;
use crate::held_sql::{literal, text_literal};
use crate::inbox::{PgInbox, is_busy, settings};
use crate::of_key::elder;
use crate::patience::answer_within;
use crate::proof::Proof;
use crate::tables::PgTables;
use crate::time;
use crate::transaction::PgTx;

/// Due heads that have never failed, each with those right behind it that have not either. Only heads are locked: nobody
/// runs what is behind them. Where somebody ends the wait for one of those meanwhile, the charge does not find it.
const CLAIM: &str = concat!(
    "
    WITH heads AS MATERIALIZED (
        SELECT n, place, ordering_key, due_at FROM {held} AS h
        WHERE consumer = $1 AND state = 'retry' AND due_at <= clock_timestamp() AND crashes = 0
          AND class IS NULL AND condemned IS NULL AND n <> ALL($3)
          AND n = ",
    elder!("h.consumer", "h.place", "h.ordering_key"),
    "
        ORDER BY due_at LIMIT $2
        FOR NO KEY UPDATE OF h SKIP LOCKED
    ), joined AS (
        SELECT f.n, h.n AS head, h.due_at, f.size, bool_and(f.is_fit) OVER (PARTITION BY h.n ORDER BY f.n) AS is_joined
        FROM heads AS h CROSS JOIN LATERAL (
            SELECT l.n, octet_length(l.headers) + coalesce(octet_length(l.body), 0) AS size,
                   l.crashes = 0 AND l.class IS NULL AND l.condemned IS NULL AND l.n <> ALL($3) AS is_fit
            FROM {held} AS l
            WHERE l.consumer = $1 AND l.place = h.place
              AND sha256(l.ordering_key) BETWEEN sha256(h.ordering_key) AND sha256(h.ordering_key)
            ORDER BY sha256(l.ordering_key), l.n
            LIMIT (SELECT greatest(1, $2 / greatest(1, count(*))) FROM heads)
        ) AS f
    ), run AS (
        SELECT n, head, due_at, sum(size) OVER (ORDER BY due_at, head, n) - size AS before
        FROM joined WHERE is_joined
    )
    SELECT m.n, place, ordering_key, message_key, msg_key, headers, body, origin::text, via, attempts, class, error,
           {held_since}, extract(epoch FROM clock_timestamp() - {held_since})::float8, throttled, condemned, crashes
    FROM run JOIN {held} AS m ON m.n = run.n
    WHERE run.before < $4
    ORDER BY run.due_at, run.head, run.n"
);

/// Locks the charged messages again and writes their inbox rows, in the order of their keys, so that two instances with the
/// same messages wait for each other in one direction only. The session's own lock timeout is given back after the last.
const ADMIT: &str = "
    WITH again AS MATERIALIZED (
        SELECT consumer, message_key FROM {held}
        WHERE n = ANY('{{numbers}}') AND crashes = 1 AND class IS NULL AND condemned IS NULL
        FOR NO KEY UPDATE SKIP LOCKED
    ), fresh AS (
        INSERT INTO {inbox} (consumer, message_key)
        SELECT consumer, message_key FROM again ORDER BY message_key
        ON CONFLICT DO NOTHING
        RETURNING message_key
    )
    SELECT pg_current_xact_id()::text, (SELECT count(*) FROM again), coalesce(fresh, ARRAY[]::text[]),
           set_config('lock_timeout', current_setting('backstop.lock_timeout'), true)
    FROM (SELECT array_agg(message_key) AS fresh FROM fresh) AS answer";

/// The statements with the names of the tables filled in.
#[derive(Debug)]
pub(crate) struct RunsSql {
    claim: Arc<str>,
    admit: String,
    table: String,
}

/// The inbox's answer to a run.
struct Admitted {
    xid: String,
    locked: usize,
    fresh: Vec<String>,
}

impl RunsSql {
    pub(crate) fn new(tables: &PgTables) -> Self {
        let claim = CLAIM.replace("{held_since}", &time::clamped("held_since"));
        Self { claim: tables.fill(&claim).into(), admit: tables.fill(ADMIT), table: tables.quoted("held") }
    }

    /// Charges messages and commits that, and admits them in the transaction that follows. The charges are to outlive this
    /// process, not the server's.
    fn charge_and_admit(&self, members: &[HeldMessage], limits: Limits) -> String {
        let (table, pause, numbers) = (&self.table, AFTER_CRASH.as_secs_f64(), numbers(members));
        format!(
            "SET LOCAL synchronous_commit = off; \
             UPDATE {table} SET crashes = crashes + 1, due_at = CASE WHEN state = 'retry' \
             THEN clock_timestamp() + make_interval(secs => {pause}) ELSE due_at END \
             WHERE n = ANY('{{{numbers}}}') AND crashes = 0 AND class IS NULL AND condemned IS NULL; \
             COMMIT AND CHAIN; {}; {}",
            settings(limits),
            self.admit.replace("{numbers}", &numbers)
        )
    }

    /// Ends a run inside the string that commits. Rows are deleted in the order of their numbers: each waits for those who
    /// are appending to its key, and an importer that holds on to several keys goes the same way. Then, in a statement of
    /// its own that sees whoever was appended meanwhile, the lowest of each key becomes its head.
    pub(crate) fn finish(&self, consumer: &str, done: &[HeldMessage], left: &[HeldMessage]) -> String {
        let (table, consumer) = (&self.table, text_literal(consumer));
        let keys: BTreeSet<(&str, &[u8])> =
            done.iter().map(|message| (message.place.as_str(), &*message.ordering_key)).collect();
        let keys: Vec<String> =
            keys.iter().map(|(place, key)| format!("({}, {})", text_literal(place), literal(key))).collect();
        let mut sql = String::new();
        if !left.is_empty() {
            sql += &format!(
                "UPDATE {table} SET crashes = 0, due_at = clock_timestamp() WHERE n = ANY('{{{}}}'); ",
                numbers(left)
            );
        }
        if !done.is_empty() {
            sql += &format!(
                "DELETE FROM {table} WHERE n = ANY(ARRAY(\
                 SELECT n FROM {table} WHERE n = ANY('{{{}}}') ORDER BY n FOR UPDATE)); \
                 UPDATE {table} SET state = 'retry', due_at = clock_timestamp() \
                 WHERE state = 'waiting' AND condemned IS NULL AND n = ANY(ARRAY(\
                 SELECT (SELECT l.n FROM {table} AS l WHERE l.consumer = {consumer} AND l.place = k.place \
                 AND sha256(l.ordering_key) BETWEEN sha256(k.ordering_key) AND sha256(k.ordering_key) \
                 ORDER BY sha256(l.ordering_key), l.n LIMIT 1) \
                 FROM (VALUES {}) AS k (place, ordering_key))); ",
                numbers(done),
                keys.join(", ")
            );
        }
        sql
    }
}

fn numbers(messages: &[HeldMessage]) -> String {
    let numbers: Vec<String> = messages.iter().map(|message| message.n.to_string()).collect();
    numbers.join(",")
}

impl PgInbox {
    pub(crate) async fn claim_held_run(
        &self,
        consumer: &str,
        limits: Limits,
        choice: RunChoice<'_>,
    ) -> Result<RunClaim<PgTx>, ClaimError> {
        let mut scoped = self.begin_scoped(limits).await?;
        let query = sqlx::query(AssertSqlSafe(Arc::clone(&self.runs.claim)))
            .bind(consumer)
            .bind(i64::try_from(choice.most).unwrap_or(i64::MAX))
            .bind(choice.apart)
            .bind(i64::try_from(RUN_BYTES).unwrap_or(i64::MAX));
        let rows = answer_within("claim held messages", query.fetch_all(&mut *scoped)).await?;
        let members = match readable(&rows) {
            Ok(members) if members.is_empty() => {
                scoped.release();
                return Ok(RunClaim::Nothing);
            }
            Ok(members) => members,
            // Claimed by itself, it is put off.
            Err(unreadable) => {
                scoped.release();
                return Ok(RunClaim::Apart(vec![unreadable]));
            }
        };
        let charged: Vec<HeadCharge> = members.iter().map(HeldMessage::unused_charge).collect();
        let tx = PgTx { scoped, proof: Proof::Xid(String::new()) };
        match self.take_run(tx, members, limits).await {
            Ok(RunClaim::Apart(apart)) => match self.acquit_held(consumer, &charged).await {
                Ok(()) => Ok(RunClaim::Apart(apart)),
                Err(error) => Err(ClaimError { error, charged }),
            },
            Ok(claim) => Ok(claim),
            Err(error) => Err(ClaimError { error, charged }),
        }
    }

    /// Charges claimed messages and writes their inbox rows; [`RunClaim::Apart`] where somebody else is at one of them.
    async fn take_run(
        &self,
        mut tx: PgTx,
        members: Vec<HeldMessage>,
        limits: Limits,
    ) -> Result<RunClaim<PgTx>, AdapterError> {
        let apart =
            |members: &[HeldMessage]| RunClaim::Apart(members.iter().map(|member| member.n).collect());
        let sql = sqlx::raw_sql(AssertSqlSafe(self.runs.charge_and_admit(&members, limits)));
        let answer = answer_within("charge held messages", async {
            match tx.scoped.fetch_all(sql).await {
                Ok(rows) => Ok(Some(rows)),
                Err(error) if is_busy(&error) => Ok(None),
                Err(error) => Err(error),
            }
        });
        let Some(rows) = answer.await? else {
            tx.scoped.release();
            return Ok(apart(&members));
        };
        let admitted = rows.last().map(admitted).transpose();
        let admitted = admitted.map_err(failed("write the inbox rows of held messages"))?;
        let Some(Admitted { xid, fresh, .. }) = admitted.filter(|found| found.locked == members.len()) else {
            tx.scoped.release();
            return Ok(apart(&members));
        };
        tx.proof = Proof::Xid(xid);
        let fresh: HashSet<&str> = fresh.iter().map(String::as_str).collect();
        let standing = |member: &HeldMessage| match fresh.contains(member.message_key.as_str()) {
            true => Standing::Fresh,
            false => Standing::Duplicate,
        };
        let standings = members.iter().map(standing).collect();
        Ok(RunClaim::Shared(ClaimedRun { tx, members, standings }))
    }
}

/// The messages, or the number of the first that cannot be read.
fn readable(rows: &[PgRow]) -> Result<Vec<HeldMessage>, i64> {
    rows.iter().map(|row| read_message(row).map_err(|_| row.try_get(0).unwrap_or_default())).collect()
}

fn admitted(row: &PgRow) -> Result<Admitted, sqlx::Error> {
    let locked: i64 = row.try_get(1)?;
    Ok(Admitted { xid: row.try_get(0)?, locked: locked.unsigned_abs() as usize, fresh: row.try_get(2)? })
}
