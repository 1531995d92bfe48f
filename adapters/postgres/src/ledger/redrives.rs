//! Redrives: who may send what, and what became of it.

use backstop_core::lease::Lease;
use backstop_core::ledger::{
    BEHIND_REFUSED, Guard, Letter, LetterFilter, LetterStatus, NewRedrive, Outcome, Phase, PlanGroup,
    Redrive, SILENT_AT_ONCE, Sent, Standing, Verdict,
};
use backstop_core::{AdapterError, FaultKind};
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};

use super::choice::{self, Builder, begin};
use super::redrive_row;
use super::{PgLedger, stored_id};
use crate::failure::{failed, invalid};
use crate::storable::storable;
use crate::{ledger_row, stranded};

/// Whether a later redrive than the one of that number is at the letter `l`: then it says how the letter stands. By the index
/// of the letters alone, for what planners think of redrives, see [`CLAIM`].
macro_rules! is_handed_on {
    ($than:literal) => {
        concat!(
            "coalesce((SELECT true FROM {cohort} AS o WHERE o.letter = l.n AND o.redrive + 0 > ",
            $than,
            " AND o.step || '' IN ('sending', 'waiting') LIMIT 1), false)"
        )
    };
}

/// Takes letters to be sent. The letters that are returned are as they were before. Their outcome is waited for from here
/// on, so that the broker's confirmation leaves their rows alone: each write of a letter's row is one of all its indexes.
/// Rows of the cohort are found by their letters, and by nothing else that an index knows: of a redrive that was just made
/// planners think that it has one letter, and would read all that are pending, or that for each that is taken. The canary
/// has the lowest numbers, and nobody reads on behind it.
const CLAIM: &str = "
    WITH next AS (
        SELECT letter FROM {cohort} WHERE redrive = $1 AND step = 'pending' AND (canary OR NOT $2)
        ORDER BY letter LIMIT least($3, CASE WHEN $2 THEN (
            SELECT letters FROM {redrive_count} WHERE redrive = $1 AND canary AND step = 'pending') END)
    ), locked AS (
        SELECT l.n FROM {letter} AS l WHERE l.n = ANY (ARRAY (SELECT letter FROM next)) AND l.status = $4
        ORDER BY l.n FOR UPDATE
    ), taken AS (
        UPDATE {letter} AS l SET status = 'redriving', redrive = $5, outcome = 'waiting'
        FROM locked WHERE l.n = locked.n RETURNING l.n
    ), stepped AS (
        UPDATE {cohort} AS c
        SET step = CASE WHEN c.letter = ANY (ARRAY (SELECT n FROM taken)) THEN 'sending' ELSE 'dropped' END
        WHERE c.redrive + 0 = $1 AND c.letter = ANY (ARRAY (SELECT letter FROM next)) AND c.step || '' = 'pending'
    ), told AS (
        INSERT INTO {event} (letter, what, detail) SELECT n, 'redriving', $5 FROM taken
    )
    SELECT {columns} FROM {letter} AS l JOIN taken ON taken.n = l.n ORDER BY l.n";

/// A redrive whose letters are settled, locked against being ended meanwhile, and how a letter stands that is being
/// sent: where the redrive has ended since, it is perhaps sent.
const SETTLED: &str = "
    SELECT n, from_status, CASE WHEN run IN ('cancelled', 'stopped') THEN 'waiting' ELSE 'sending' END
    FROM {redrive} WHERE id = $1 FOR SHARE";

/// Letters that the broker has confirmed, unless an outcome came before.
const CONFIRM: &str = concat!(
    "
    WITH locked AS (
        SELECT l.n FROM {letter} AS l WHERE l.id = ANY ($3) ORDER BY l.n FOR UPDATE
    ), stepped AS (
        UPDATE {cohort} AS c SET step = $4, sent_at = clock_timestamp()
        WHERE c.redrive = $1 AND c.letter = ANY (ARRAY (SELECT n FROM locked)) AND c.step = $2 RETURNING c.letter
    ), moved AS (
        UPDATE {letter} AS l SET outcome = $4
        FROM stepped WHERE l.n = stepped.letter AND l.outcome IS DISTINCT FROM $4 AND NOT ",
    is_handed_on!("$1"),
    "
    )
    INSERT INTO {event} (letter, what, detail) SELECT letter, 'redriven', 'confirmed by the broker' FROM stepped"
);

/// Letters that were not sent are what they were before. Their outcome is the one that an earlier redrive waits for, where
/// that had sent them.
const PUT_BACK: &str = concat!(
    "
    WITH told AS (
        SELECT * FROM unnest($3::text[], $4::text[]) AS u (id, reason)
    ), locked AS (
        SELECT l.n, l.id FROM {letter} AS l WHERE l.id = ANY ($3) ORDER BY l.n FOR UPDATE
    ), stepped AS (
        UPDATE {cohort} AS c SET step = $5
        WHERE c.redrive = $1 AND c.letter = ANY (ARRAY (SELECT n FROM locked)) AND c.step = $2 RETURNING c.letter
    ), moved AS (
        UPDATE {letter} AS l SET status = $6, outcome = CASE $6 WHEN 'redriving' THEN (
            SELECT o.step FROM {cohort} AS o
            WHERE o.letter = l.n AND o.redrive <> $1 AND o.step IN ('waiting', 'silent', 'unknown')
            ORDER BY o.redrive DESC LIMIT 1) END
        FROM stepped WHERE l.n = stepped.letter AND l.status = 'redriving' AND NOT ",
    is_handed_on!("$1"),
    "
    )
    INSERT INTO {event} (letter, what, detail)
    SELECT stepped.letter, 'redrive-failed', told.reason
    FROM stepped JOIN locked ON locked.n = stepped.letter JOIN told ON told.id = locked.id"
);

/// Letters behind one that was refused must not pass it.
const REFUSE_FOLLOWERS: &str = "
    WITH stepped AS (
        UPDATE {cohort} AS c SET step = 'refused'
        FROM {letter} AS f, {letter} AS r
        WHERE r.id = ANY ($2) AND r.msg_key IS NOT NULL AND f.msg_key = r.msg_key
        AND f.door IS NOT DISTINCT FROM r.door AND f.place IS NOT DISTINCT FROM r.place
        AND c.redrive = $1 AND c.letter = f.n AND c.step = 'pending' RETURNING c.letter
    )
    INSERT INTO {event} (letter, what, detail) SELECT DISTINCT letter, 'redrive-failed', $3 FROM stepped";

/// Letters that are being sent when their redrive ends: nobody sends them again, and whether they arrived is for their
/// consumer to say.
const LET_GO: &str = "
    WITH flying AS (
        SELECT c.redrive, c.letter FROM {cohort} AS c JOIN {redrive} AS r ON r.n = c.redrive
        WHERE r.id = $1 AND c.step = 'sending'
    ), locked AS (
        SELECT l.n FROM {letter} AS l WHERE l.n = ANY (ARRAY (SELECT letter FROM flying)) ORDER BY l.n FOR UPDATE
    ), stepped AS (
        UPDATE {cohort} AS c SET step = 'waiting', sent_at = clock_timestamp()
        FROM flying JOIN locked ON locked.n = flying.letter
        WHERE c.redrive = flying.redrive AND c.letter = flying.letter AND c.step = 'sending' RETURNING c.letter
    ), moved AS (
        UPDATE {letter} AS l SET outcome = 'waiting' FROM stepped
        WHERE l.n = stepped.letter AND l.status = 'redriving' AND l.outcome IS DISTINCT FROM 'waiting'
    )
    INSERT INTO {event} (letter, what, detail)
    SELECT letter, 'perhaps-redriven', 'its redrive ended while it was being sent' FROM stepped";

/// Letters that somebody else is at are left for the next time. The shortest patience of all is what an index can look for.
const FALL_SILENT: &str = concat!(
    "
    WITH late AS (
        SELECT c.redrive, c.letter FROM {cohort} AS c JOIN {redrive} AS r ON r.n = c.redrive
        WHERE c.step = 'waiting' AND c.sent_at <= statement_timestamp() - make_interval(secs => r.silent_after)
        AND c.sent_at <= statement_timestamp() - make_interval(secs => (SELECT min(silent_after) FROM {redrive}))
        LIMIT $1
    ), locked AS (
        SELECT l.n FROM {letter} AS l WHERE l.n = ANY (ARRAY (SELECT letter FROM late)) ORDER BY l.n
        FOR UPDATE SKIP LOCKED
    ), stepped AS (
        UPDATE {cohort} AS c SET step = 'silent' FROM late JOIN locked ON locked.n = late.letter
        WHERE c.redrive = late.redrive AND c.letter = late.letter AND c.letter = ANY (ARRAY (SELECT n FROM locked))
        AND c.step = 'waiting' RETURNING c.redrive, c.letter
    ), moved AS (
        UPDATE {letter} AS l SET outcome = 'silent' FROM stepped
        WHERE l.n = stepped.letter AND l.status = 'redriving' AND NOT ",
    is_handed_on!("stepped.redrive"),
    "
    ), told AS (
        INSERT INTO {event} (letter, what) SELECT DISTINCT letter, 'silent' FROM stepped
    )
    SELECT count(*) FROM stepped"
);

/// The door of a letter `l`; null where it does not fit the place where the letter was found.
const DOOR: &str = "CASE WHEN right(l.found_in, 4) = '.dlq' \
                    AND l.door = left(l.found_in, -4) || '.redrive' THEN l.door END";

/// The verdict on a letter `l`, and where it is sent; see `Guard`.
fn judge(sql: &mut Builder, guard: &Guard) {
    let foreign: Vec<String> = guard.foreign.iter().map(|name| storable(name)).collect();
    sql.push(format!("CASE WHEN ({DOOR}) IS NULL AND NOT coalesce(l.place = ANY (")).push_bind(foreign);
    sql.push("), false) THEN 'no-target' WHEN l.generation >= ").push_bind(guard.max_generation);
    sql.push(" THEN 'looped' WHEN coalesce(l.first_failed_at, l.seen_at) < ").push_bind(guard.not_before);
    sql.push("::timestamptz THEN 'too-old' ELSE 'send' END");
}

impl PgLedger {
    pub(super) async fn plan_one(
        &self,
        filter: &LetterFilter,
        guard: &Guard,
        most: u64,
    ) -> Result<Vec<PlanGroup>, AdapterError> {
        let foreign: Vec<String> = guard.foreign.iter().map(|name| storable(name)).collect();
        let mut sql =
            begin(&self.tables, "SELECT verdict, consumer, reason, target, away, count(*) FROM (SELECT ");
        judge(&mut sql, guard);
        sql.push(format!(" AS verdict, l.consumer, l.reason, coalesce({DOOR}, CASE WHEN l.place = ANY ("));
        sql.push_bind(foreign);
        sql.push(self.tables.fill(&format!(
            ") THEN l.place END) AS target, ({DOOR}) IS NULL AS away FROM (SELECT l.* FROM {{letter}} AS l WHERE true"
        )));
        choice::meant(&mut sql, &self.tables, filter);
        if let Ok(most) = i64::try_from(most) {
            sql.push(" ORDER BY l.n LIMIT ").push_bind(most);
        }
        sql.push(") AS l) AS judged GROUP BY 1, 2, 3, 4, 5");
        let rows = choice::query(&mut sql).fetch_all(&self.pool).await;
        let rows = rows.map_err(failed("plan a redrive"))?;
        let mut groups: Vec<PlanGroup> = rows.iter().map(plan_group).collect::<Result<_, _>>()?;
        groups.sort_by(|a, b| {
            (a.verdict, &a.consumer, &a.reason, &a.target).cmp(&(
                b.verdict,
                &b.consumer,
                &b.reason,
                &b.target,
            ))
        });
        Ok(groups)
    }

    pub(super) async fn create_one(&self, new: &NewRedrive) -> Result<Redrive, AdapterError> {
        let doing = || failed("make a redrive");
        let from = sendable(&new.filter)?;
        let mut tx = stranded::begin(&self.pool).await.map_err(doing())?;
        let standing = Redrive::beginning(new.canary);
        let insert = "INSERT INTO {redrive} (id, plan, from_status, rate, silent_after, run, phase) \
                      VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (id) DO NOTHING RETURNING n";
        let n: Option<i64> = sqlx::query_scalar(self.sql(insert))
            .bind(stored_id(&new.id))
            .bind(redrive_row::document(new)?)
            .bind(from)
            .bind(new.rate)
            .bind(new.silent_after.as_secs_f64())
            .bind(standing.run.as_str())
            .bind(standing.phase.as_str())
            .fetch_optional(&mut *tx)
            .await
            .map_err(doing())?;
        if let Some(n) = n {
            self.freeze(&mut tx, n, new).await?;
        }
        // Before the commit: one that cannot be read is not made, so that what is said to have failed has failed.
        let row = self.one(&new.id).build().fetch_optional(&mut *tx).await.map_err(doing())?;
        let made = row.as_ref().map(redrive_row::read).transpose()?;
        tx.commit().await.map_err(doing())?;
        made.ok_or_else(|| invalid("the redrive is gone already", "look for it with `redrives list`"))
    }

    async fn freeze(&self, tx: &mut PgConnection, n: i64, new: &NewRedrive) -> Result<(), AdapterError> {
        let mut sql = begin(&self.tables, "INSERT INTO {cohort} (redrive, letter, canary, step) SELECT ");
        sql.push_bind(n).push(", n, row_number() OVER (ORDER BY n) <= ");
        sql.push_bind(i64::try_from(new.canary).unwrap_or(i64::MAX));
        sql.push(self.tables.fill(", 'pending' FROM (SELECT l.n FROM {letter} AS l WHERE "));
        judge(&mut sql, &new.guard);
        sql.push(" = '").push(Verdict::Send.as_str()).push("'");
        choice::meant(&mut sql, &self.tables, &new.filter);
        sql.push(" ORDER BY l.n LIMIT ");
        sql.push_bind(new.limit.map(|limit| i64::try_from(limit).unwrap_or(i64::MAX))).push(") AS chosen");
        choice::query(&mut sql).execute(tx).await.map_err(failed("freeze the letters of a redrive"))?;
        Ok(())
    }

    fn one(&self, id: &str) -> Builder {
        let mut sql = begin(&self.tables, redrive_row::SELECT);
        sql.push(" WHERE r.id = ").push_bind(stored_id(id));
        sql
    }

    pub(super) async fn read_one(&self, id: &str) -> Result<Option<Redrive>, AdapterError> {
        Ok(self.read_redrives(self.one(id)).await?.pop())
    }

    pub(super) async fn read_page(
        &self,
        after: Option<&str>,
        limit: u32,
    ) -> Result<Vec<Redrive>, AdapterError> {
        let mut sql = begin(&self.tables, redrive_row::SELECT);
        if let Some(id) = after {
            sql.push(self.tables.fill(" WHERE r.n < (SELECT n FROM {redrive} WHERE id = "));
            sql.push_bind(stored_id(id)).push(")");
        }
        sql.push(" ORDER BY r.n DESC LIMIT ").push_bind(i64::from(limit));
        self.read_redrives(sql).await
    }

    pub(super) async fn read_running(&self) -> Result<Vec<Redrive>, AdapterError> {
        let mut sql = begin(&self.tables, redrive_row::SELECT);
        sql.push(" WHERE r.run = 'running' ORDER BY r.n");
        self.read_redrives(sql).await
    }

    async fn read_redrives(&self, mut sql: Builder) -> Result<Vec<Redrive>, AdapterError> {
        let rows = sql.build().fetch_all(&self.pool).await.map_err(failed("read redrives"))?;
        rows.iter().map(redrive_row::read).collect()
    }

    pub(super) async fn steer(&self, id: &str, from: &Standing, to: &Standing) -> Result<bool, AdapterError> {
        const STEER: &str = "UPDATE {redrive} SET run = $4, phase = $5, why = $6, forgiven_failures = $7, \
                             forgiven_outcomes = $8 WHERE id = $1 AND run = $2 AND phase = $3";
        let doing = || failed("steer a redrive");
        let number = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        let mut tx = stranded::begin(&self.pool).await.map_err(doing())?;
        let done = sqlx::query(self.sql(STEER))
            .bind(stored_id(id))
            .bind(from.run.as_str())
            .bind(from.phase.as_str())
            .bind(to.run.as_str())
            .bind(to.phase.as_str())
            .bind(to.why.as_deref().map(storable))
            .bind(number(to.forgiven_failures))
            .bind(number(to.forgiven_outcomes))
            .execute(&mut *tx)
            .await
            .map_err(doing())?;
        let steered = done.rows_affected() > 0;
        if steered && to.run.is_over() {
            let query = sqlx::query(self.sql(LET_GO)).bind(stored_id(id));
            query.execute(&mut *tx).await.map_err(doing())?;
        }
        tx.commit().await.map_err(doing())?;
        Ok(steered)
    }

    pub(super) async fn set_rate(&self, id: &str, rate: Option<f64>) -> Result<bool, AdapterError> {
        const RATE: &str = "UPDATE {redrive} SET rate = $2 WHERE id = $1 AND run IN ('running', 'paused')";
        let doing = || failed("change the rate of a redrive");
        let mut tx = stranded::begin(&self.pool).await.map_err(doing())?;
        let done = sqlx::query(self.sql(RATE)).bind(stored_id(id)).bind(rate).execute(&mut *tx).await;
        let done = done.map_err(doing())?;
        tx.commit().await.map_err(doing())?;
        Ok(done.rows_affected() > 0)
    }

    /// The lease is locked against a takeover until the letters are marked, and the redrive against being paused and
    /// against another claim.
    ///
    /// Nobody waits until the marks are on the server's disk: they are there with the settlement that follows. Should the
    /// server die in between, the letters are taken and sent once more, as where the engine dies.
    pub(super) async fn claim(
        &self,
        lease: &Lease,
        id: &str,
        limit: u32,
    ) -> Result<Option<Vec<Letter>>, AdapterError> {
        const STANDS: &str = "SELECT EXISTS (SELECT FROM {lease} WHERE name = $1 AND owner = $2 AND token = $3 FOR SHARE), \
             set_config('synchronous_commit', 'off', true)";
        const RUNS: &str =
            "SELECT n, phase, from_status FROM {redrive} WHERE id = $1 AND run = 'running' FOR UPDATE";
        let doing = || failed("take letters to be redriven");
        let mut tx = stranded::begin(&self.pool).await.map_err(doing())?;
        let stands: bool = sqlx::query_scalar(self.sql(STANDS))
            .bind(&lease.name)
            .bind(&lease.owner)
            .bind(lease.token)
            .fetch_one(&mut *tx)
            .await
            .map_err(doing())?;
        if !stands {
            return Ok(None);
        }
        let runs: Option<(i64, String, String)> = sqlx::query_as(self.sql(RUNS))
            .bind(stored_id(id))
            .fetch_optional(&mut *tx)
            .await
            .map_err(doing())?;
        let Some((n, phase, from)) = runs else { return Ok(Some(Vec::new())) };
        let rows = sqlx::query(self.sql(&CLAIM.replace("{columns}", &ledger_row::columns("l"))))
            .bind(n)
            .bind(phase == Phase::Canary.as_str())
            .bind(i64::from(limit))
            .bind(from)
            .bind(stored_id(id))
            .fetch_all(&mut *tx)
            .await
            .map_err(doing())?;
        tx.commit().await.map_err(doing())?;
        let letters = rows.iter().map(|row| {
            let mut letter = ledger_row::read(row)?;
            (letter.status, letter.redrive) = (LetterStatus::Redriving, Some(id.to_owned()));
            letter.outcome = Some(Outcome::Waiting);
            Ok(letter)
        });
        letters.collect::<Result<_, _>>().map(Some)
    }

    pub(super) async fn in_flight(&self, id: &str) -> Result<Vec<Letter>, AdapterError> {
        let sql = format!(
            "SELECT {} FROM {{cohort}} AS c JOIN {{letter}} AS l ON l.n = c.letter WHERE c.step = 'sending' \
             AND c.redrive = (SELECT n FROM {{redrive}} WHERE id = $1) ORDER BY l.n",
            ledger_row::columns("l")
        );
        let rows = sqlx::query(self.sql(&sql)).bind(stored_id(id)).fetch_all(&self.pool).await;
        rows.map_err(failed("read letters that are being redriven"))?.iter().map(ledger_row::read).collect()
    }

    pub(super) async fn settle(&self, id: &str, sent: &[(String, Sent)]) -> Result<(), AdapterError> {
        let doing = || failed("write down what was redriven");
        let mut tx = stranded::begin(&self.pool).await.map_err(doing())?;
        let settled: Option<(i64, String, String)> = sqlx::query_as(self.sql(SETTLED))
            .bind(stored_id(id))
            .fetch_optional(&mut *tx)
            .await
            .map_err(doing())?;
        let Some((redrive, from, flying)) = settled else { return Ok(()) };
        for (what, step) in [(Sent::Confirmed, "waiting"), (Sent::Unanswered, "unknown")] {
            let ids = ids(sent, |other| *other == what);
            if !ids.is_empty() {
                let query = sqlx::query(self.sql(CONFIRM)).bind(redrive).bind(&flying).bind(ids).bind(step);
                query.execute(&mut *tx).await.map_err(doing())?;
            }
        }
        for step in ["pending", "refused"] {
            let put_back = sent.iter().filter_map(|(id, what)| match (what, step) {
                (Sent::NotTried, "pending") => Some((stored_id(id), "not tried".to_owned())),
                (Sent::Refused(reason), "refused") => Some((stored_id(id), storable(reason))),
                _ => None,
            });
            let (ids, reasons): (Vec<String>, Vec<String>) = put_back.unzip();
            if !ids.is_empty() {
                let query = sqlx::query(self.sql(PUT_BACK)).bind(redrive).bind(&flying).bind(ids);
                let query = query.bind(reasons).bind(step).bind(&from);
                query.execute(&mut *tx).await.map_err(doing())?;
            }
        }
        let refused = ids(sent, |what| matches!(what, Sent::Refused(_)));
        if !refused.is_empty() {
            let query = sqlx::query(self.sql(REFUSE_FOLLOWERS)).bind(redrive).bind(refused);
            let query = query.bind(BEHIND_REFUSED);
            query.execute(&mut *tx).await.map_err(doing())?;
        }
        tx.commit().await.map_err(doing())
    }

    pub(super) async fn silence(&self) -> Result<u64, AdapterError> {
        let doing = || failed("look for letters without an outcome");
        let mut tx = stranded::begin(&self.pool).await.map_err(doing())?;
        let silent: i64 = sqlx::query_scalar(self.sql(FALL_SILENT))
            .bind(i64::from(SILENT_AT_ONCE))
            .fetch_one(&mut *tx)
            .await
            .map_err(doing())?;
        tx.commit().await.map_err(doing())?;
        Ok(u64::try_from(silent).unwrap_or(0))
    }
}

fn ids(sent: &[(String, Sent)], is_meant: impl Fn(&Sent) -> bool) -> Vec<String> {
    sent.iter().filter(|(_, what)| is_meant(what)).map(|(id, _)| stored_id(id)).collect()
}

fn plan_group(row: &PgRow) -> Result<PlanGroup, AdapterError> {
    let read = || -> Result<_, sqlx::Error> {
        let verdict: String = row.try_get(0)?;
        let (target, away): (Option<String>, bool) = (row.try_get(3)?, row.try_get(4)?);
        let letters: i64 = row.try_get(5)?;
        Ok(PlanGroup {
            verdict: Verdict::parse(&verdict).expect("the statement names no others"),
            consumer: row.try_get(1)?,
            reason: row.try_get(2)?,
            foreign: away && target.is_some(),
            target,
            letters: u64::try_from(letters).unwrap_or(0),
        })
    };
    read().map_err(failed("read the plan of a redrive"))
}

/// The status that the letters of a redrive must have.
fn sendable(filter: &LetterFilter) -> Result<&'static str, AdapterError> {
    match filter.status {
        Some(status @ (LetterStatus::Open | LetterStatus::Redriving)) => Ok(status.as_str()),
        _ => Err(AdapterError::new(FaultKind::Invalid, "only open and redriving letters can be redriven")
            .with_hint("ask for the status open or redriving")),
    }
}
