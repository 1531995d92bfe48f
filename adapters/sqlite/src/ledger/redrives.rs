//! Redrives: who may send what, and what became of it.

use backstop_core::lease::Lease;
use backstop_core::ledger::{
    BEHIND_REFUSED, Guard, Letter, LetterFilter, LetterStatus, NewRedrive, Phase, PlanGroup, Redrive,
    SILENT_AT_ONCE, Sent, Standing, Verdict,
};
use backstop_core::{AdapterError, FaultKind};
use sqlx::sqlite::SqliteRow;
use sqlx::{AssertSqlSafe, Row, SqliteConnection};

use super::choice::{self, Builder};
use super::{SqliteLedger, redrive_row};
use crate::commit::commit;
use crate::database::plain;
use crate::error::adapter;
use crate::lease;
use crate::letter_row::{columns, letter};
use crate::time::{NOW, millis};

/// The door of a letter `l`; null where it does not fit the place where the letter was found.
const DOOR: &str = "CASE WHEN substr(l.found_in, -4) = '.dlq' \
                    AND l.door = substr(l.found_in, 1, length(l.found_in) - 4) || '.redrive' THEN l.door END";

/// The verdict on a letter `l`; see `Guard`.
fn judge(sql: &mut Builder, guard: &Guard) {
    let foreign = serde_json::json!(guard.foreign).to_string();
    sql.push(format!(
        "CASE WHEN ({DOOR}) IS NULL AND (l.place IS NULL OR l.place NOT IN (SELECT value FROM json_each("
    ));
    sql.push_bind(foreign).push("))) THEN 'no-target' WHEN l.generation >= ").push_bind(guard.max_generation);
    sql.push(" THEN 'looped' WHEN coalesce(CAST(round(unixepoch(l.first_failed_at, 'subsec') * 1000) AS INTEGER), l.seen_at) < ");
    sql.push_bind(guard.not_before.map(|limit| limit.timestamp_millis()));
    sql.push(" THEN 'too-old' ELSE 'send' END");
}

impl SqliteLedger {
    pub(super) async fn plan(
        &self,
        filter: &LetterFilter,
        guard: &Guard,
        most: u64,
    ) -> Result<Vec<PlanGroup>, AdapterError> {
        let tables = &self.database.tables;
        let foreign = serde_json::json!(guard.foreign).to_string();
        let mut sql = Builder::new("SELECT verdict, consumer, reason, target, away, count(*) FROM (SELECT ");
        judge(&mut sql, guard);
        sql.push(format!(
            " AS verdict, l.consumer, l.reason, \
             coalesce({DOOR}, CASE WHEN l.place IN (SELECT value FROM json_each("
        ));
        sql.push_bind(foreign);
        sql.push(format!(
            ")) THEN l.place END) AS target, ({DOOR}) IS NULL AS away FROM (SELECT l.* FROM {} AS l WHERE 1",
            tables.letter()
        ));
        choice::meant(&mut sql, tables, filter);
        if let Ok(most) = i64::try_from(most) {
            sql.push(" ORDER BY l.n LIMIT ").push_bind(most);
        }
        sql.push(") AS l) GROUP BY 1, 2, 3, 4, 5");
        let mut connection = self.database.connection().await?;
        let rows = sql.build().fetch_all(&mut *connection).await;
        let groups = rows.and_then(|rows| rows.iter().map(plan_group).collect());
        let mut groups: Vec<PlanGroup> = groups.map_err(|error| adapter("cannot plan a redrive", error))?;
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

    pub(super) async fn create(&self, new: &NewRedrive) -> Result<Redrive, AdapterError> {
        let from = sendable(&new.filter)?;
        let standing = Redrive::beginning(new.canary);
        let insert = format!(
            "INSERT INTO {} (id, plan, from_status, rate, silent_after, run, phase) VALUES (?, ?, ?, ?, ?, ?, ?) \
             ON CONFLICT (id) DO NOTHING RETURNING n",
            self.database.tables.redrive()
        );
        let mut tx = self.database.write("cannot make a redrive").await?;
        let n: Option<i64> = sqlx::query_scalar(AssertSqlSafe(insert))
            .bind(&new.id)
            .bind(redrive_row::document(new)?)
            .bind(from)
            .bind(new.rate)
            .bind(millis(new.silent_after))
            .bind(standing.run.as_str())
            .bind(standing.phase.as_str())
            .fetch_optional(&mut *tx)
            .await
            .map_err(|error| adapter("cannot make a redrive", error))?;
        if let Some(n) = n {
            self.freeze(&mut tx, n, new).await?;
        }
        // Before the commit: one that cannot be read is not made, so that what is said to have failed has failed.
        let row = self.one(&new.id).build().fetch_optional(&mut *tx).await;
        let row = row.map_err(|error| adapter("cannot make a redrive", error))?;
        let made = row.as_ref().map(redrive_row::read).transpose()?;
        commit(tx).await.map_err(plain)?;
        made.ok_or_else(|| {
            AdapterError::new(FaultKind::Missing, "the redrive is gone already")
                .with_hint("look for it with `redrives list`")
        })
    }

    async fn freeze(&self, tx: &mut SqliteConnection, n: i64, new: &NewRedrive) -> Result<(), AdapterError> {
        let tables = &self.database.tables;
        let canary = i64::try_from(new.canary).unwrap_or(i64::MAX);
        let limit = new.limit.and_then(|limit| i64::try_from(limit).ok()).unwrap_or(-1);
        let mut sql = Builder::new(format!(
            "INSERT INTO {} (redrive, letter, canary, step) SELECT ",
            tables.redrive_letter()
        ));
        sql.push_bind(n).push(", n, row_number() OVER (ORDER BY n) <= ").push_bind(canary);
        sql.push(format!(", 'pending' FROM (SELECT l.n FROM {} AS l WHERE ", tables.letter()));
        judge(&mut sql, &new.guard);
        sql.push(format!(" = '{}'", Verdict::Send.as_str()));
        choice::meant(&mut sql, tables, &new.filter);
        sql.push(" ORDER BY l.n LIMIT ").push_bind(limit).push(")");
        let frozen = sql.build().execute(tx).await;
        frozen.map(drop).map_err(|error| adapter("cannot freeze the letters of a redrive", error))
    }

    fn one(&self, id: &str) -> Builder {
        let mut sql = redrive_row::select(&self.database.tables);
        sql.push(" WHERE r.id = ").push_bind(id.to_owned());
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
        let tables = &self.database.tables;
        let mut sql = redrive_row::select(tables);
        if let Some(id) = after {
            sql.push(format!(" WHERE r.n < (SELECT n FROM {} WHERE id = ", tables.redrive()));
            sql.push_bind(id.to_owned()).push(")");
        }
        sql.push(" ORDER BY r.n DESC LIMIT ").push_bind(limit);
        self.read_redrives(sql).await
    }

    pub(super) async fn read_running(&self) -> Result<Vec<Redrive>, AdapterError> {
        let mut sql = redrive_row::select(&self.database.tables);
        sql.push(" WHERE r.run = 'running' ORDER BY r.n");
        self.read_redrives(sql).await
    }

    async fn read_redrives(&self, mut sql: Builder) -> Result<Vec<Redrive>, AdapterError> {
        let mut connection = self.database.connection().await?;
        let rows = sql.build().fetch_all(&mut *connection).await;
        let rows = rows.map_err(|error| adapter("cannot read redrives", error))?;
        rows.iter().map(redrive_row::read).collect()
    }

    pub(super) async fn steer(&self, id: &str, from: &Standing, to: &Standing) -> Result<bool, AdapterError> {
        let sql = format!(
            "UPDATE {} SET run = ?4, phase = ?5, why = ?6, forgiven_failures = ?7, forgiven_outcomes = ?8 \
             WHERE id = ?1 AND run = ?2 AND phase = ?3",
            self.database.tables.redrive()
        );
        let number = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        let mut tx = self.database.write("cannot steer a redrive").await?;
        let done = sqlx::query(AssertSqlSafe(sql))
            .bind(id)
            .bind(from.run.as_str())
            .bind(from.phase.as_str())
            .bind(to.run.as_str())
            .bind(to.phase.as_str())
            .bind(to.why.as_deref())
            .bind(number(to.forgiven_failures))
            .bind(number(to.forgiven_outcomes))
            .execute(&mut *tx)
            .await
            .map_err(|error| adapter("cannot steer a redrive", error))?;
        let steered = done.rows_affected() > 0;
        if steered && to.run.is_over() {
            self.let_go(&mut tx, id).await?;
        }
        commit(tx).await.map_err(plain)?;
        Ok(steered)
    }

    /// Letters that are being sent when their redrive ends: nobody sends them again, and whether they arrived is for
    /// their consumer to say.
    async fn let_go(&self, tx: &mut SqliteConnection, id: &str) -> Result<(), AdapterError> {
        let failed = |error| adapter("cannot let letters of a redrive go", error);
        let tables = &self.database.tables;
        let step = format!(
            "UPDATE {} SET step = 'waiting', sent_at = {NOW} WHERE step = 'sending' \
             AND redrive = (SELECT n FROM {} WHERE id = ?) RETURNING letter",
            tables.redrive_letter(),
            tables.redrive()
        );
        let query = sqlx::query_scalar(AssertSqlSafe(step)).bind(id);
        let letters: Vec<i64> = query.fetch_all(&mut *tx).await.map_err(failed)?;
        for n in letters {
            let outcome = format!(
                "UPDATE {} SET outcome = 'waiting' WHERE n = ? AND status = 'redriving'",
                tables.letter()
            );
            sqlx::query(AssertSqlSafe(outcome)).bind(n).execute(&mut *tx).await.map_err(failed)?;
            let why = "its redrive ended while it was being sent";
            self.note(tx, n, "perhaps-redriven", Some(why)).await?;
        }
        Ok(())
    }

    pub(super) async fn set_rate(&self, id: &str, rate: Option<f64>) -> Result<bool, AdapterError> {
        let sql = format!(
            "UPDATE {} SET rate = ? WHERE id = ? AND run IN ('running', 'paused')",
            self.database.tables.redrive()
        );
        let mut tx = self.database.write("cannot change the rate of a redrive").await?;
        let done = sqlx::query(AssertSqlSafe(sql)).bind(rate).bind(id).execute(&mut *tx).await;
        let done = done.map_err(|error| adapter("cannot change the rate of a redrive", error))?;
        commit(tx).await.map_err(plain)?;
        Ok(done.rows_affected() > 0)
    }

    /// In one write transaction: nobody takes the lease over, or pauses the redrive, before it ends.
    pub(super) async fn claim(
        &self,
        lease: &Lease,
        id: &str,
        limit: u32,
    ) -> Result<Option<Vec<Letter>>, AdapterError> {
        let mut tx = self.database.write("cannot take letters to be redriven").await?;
        if !lease::stands(&self.database, &mut tx, lease).await? {
            tx.rollback().await;
            return Ok(None);
        }
        let sql = format!(
            "SELECT n, phase, from_status FROM {} WHERE id = ? AND run = 'running'",
            self.database.tables.redrive()
        );
        let running: Option<(i64, String, String)> = sqlx::query_as(AssertSqlSafe(sql))
            .bind(id)
            .fetch_optional(&mut *tx)
            .await
            .map_err(|error| adapter("cannot read a redrive", error))?;
        let mut claimed = Vec::new();
        if let Some((n, phase, from)) = running {
            let canary = phase == Phase::Canary.as_str();
            for next in self.pending(&mut tx, n, canary, limit).await? {
                claimed.extend(self.take(&mut tx, n, next, &from, id).await?);
            }
        }
        commit(tx).await.map_err(plain)?;
        Ok(Some(claimed))
    }

    /// The numbers of the next letters to be sent.
    async fn pending(
        &self,
        tx: &mut SqliteConnection,
        redrive: i64,
        canary: bool,
        limit: u32,
    ) -> Result<Vec<i64>, AdapterError> {
        let sql = format!(
            "SELECT letter FROM {} WHERE redrive = ? AND step = 'pending' AND (canary OR NOT ?) ORDER BY letter LIMIT ?",
            self.database.tables.redrive_letter()
        );
        let query = sqlx::query_scalar(AssertSqlSafe(sql)).bind(redrive).bind(canary).bind(limit);
        query.fetch_all(tx).await.map_err(|error| adapter("cannot find letters to be redriven", error))
    }

    /// Marks one letter, whose outcome is waited for from here on; `None` when somebody else took it meanwhile.
    async fn take(
        &self,
        tx: &mut SqliteConnection,
        redrive: i64,
        n: i64,
        from: &str,
        id: &str,
    ) -> Result<Option<Letter>, AdapterError> {
        let failed = |error| adapter("cannot take a letter to be redriven", error);
        let sql = format!(
            "UPDATE {} AS l SET status = 'redriving', redrive = ?1, outcome = 'waiting' \
             WHERE n = ?2 AND status = ?3 RETURNING {}",
            self.database.tables.letter(),
            columns("")
        );
        let query = sqlx::query(AssertSqlSafe(sql)).bind(id).bind(n).bind(from);
        let row = query.fetch_optional(&mut *tx).await.map_err(failed)?;
        let step = if row.is_some() { "sending" } else { "dropped" };
        let sql = format!(
            "UPDATE {} SET step = ? WHERE redrive = ? AND letter = ?",
            self.database.tables.redrive_letter()
        );
        let query = sqlx::query(AssertSqlSafe(sql)).bind(step).bind(redrive).bind(n);
        query.execute(&mut *tx).await.map_err(failed)?;
        let Some(row) = row else { return Ok(None) };
        self.note(tx, n, "redriving", Some(id)).await?;
        letter(&row).map(Some)
    }

    pub(super) async fn in_flight(&self, id: &str) -> Result<Vec<Letter>, AdapterError> {
        let tables = &self.database.tables;
        let sql = format!(
            "SELECT {} FROM {} AS c JOIN {} AS l ON l.n = c.letter WHERE c.step = 'sending' \
             AND c.redrive = (SELECT n FROM {} WHERE id = ?) ORDER BY l.n",
            columns("l"),
            tables.redrive_letter(),
            tables.letter(),
            tables.redrive()
        );
        let mut connection = self.database.connection().await?;
        let rows = sqlx::query(AssertSqlSafe(sql)).bind(id).fetch_all(&mut *connection).await;
        let rows = rows.map_err(|error| adapter("cannot read letters that are being redriven", error))?;
        rows.iter().map(letter).collect()
    }

    pub(super) async fn settle(&self, id: &str, sent: &[(String, Sent)]) -> Result<(), AdapterError> {
        let mut tx = self.database.write("cannot write down what was redriven").await?;
        for (letter, what) in sent {
            if let Some((redrive, n, from)) = self.sending(&mut tx, id, letter).await? {
                self.settle_one(&mut tx, redrive, n, &from, what).await?;
            }
        }
        commit(tx).await.map_err(plain)
    }

    /// The redrive and the letter by their numbers, and the status that the letter had, if it is still being sent, or
    /// perhaps sent because its redrive has ended since.
    async fn sending(
        &self,
        tx: &mut SqliteConnection,
        id: &str,
        letter: &str,
    ) -> Result<Option<(i64, i64, String)>, AdapterError> {
        let tables = &self.database.tables;
        let sql = format!(
            "SELECT r.n, l.n, r.from_status FROM {} AS r JOIN {} AS l ON l.id = ?2 \
             JOIN {} AS c ON c.redrive = r.n AND c.letter = l.n WHERE r.id = ?1 \
             AND c.step = CASE WHEN r.run IN ('cancelled', 'stopped') THEN 'waiting' ELSE 'sending' END",
            tables.redrive(),
            tables.letter(),
            tables.redrive_letter()
        );
        let query = sqlx::query_as(AssertSqlSafe(sql)).bind(id).bind(letter);
        query.fetch_optional(tx).await.map_err(|error| adapter("cannot find a letter of a redrive", error))
    }

    async fn settle_one(
        &self,
        tx: &mut SqliteConnection,
        redrive: i64,
        n: i64,
        from: &str,
        what: &Sent,
    ) -> Result<(), AdapterError> {
        let failed = |error| adapter("cannot write down what was redriven", error);
        let letters = self.database.tables.letter();
        let (step, reason) = match what {
            Sent::Confirmed => ("waiting", None),
            Sent::Unanswered => ("unknown", None),
            Sent::NotTried => ("pending", Some("not tried")),
            Sent::Refused(reason) => ("refused", Some(reason.as_str())),
        };
        let sql = format!(
            "UPDATE {} SET step = ?, sent_at = {NOW} WHERE redrive = ? AND letter = ?",
            self.database.tables.redrive_letter()
        );
        let query = sqlx::query(AssertSqlSafe(sql)).bind(step).bind(redrive).bind(n);
        query.execute(&mut *tx).await.map_err(failed)?;
        match reason {
            None => {
                let sql = format!(
                    "UPDATE {letters} SET outcome = ?1 WHERE n = ?2 AND outcome IS NOT ?1 AND NOT {}",
                    self.is_handed_on("?2", "?3")
                );
                let query = sqlx::query(AssertSqlSafe(sql)).bind(step).bind(n).bind(redrive);
                query.execute(&mut *tx).await.map_err(failed)?;
            }
            Some(_) => self.put_back(tx, redrive, n, from).await?,
        }
        match reason {
            None => self.note(tx, n, "redriven", Some("confirmed by the broker")).await?,
            Some(reason) => self.note(tx, n, "redrive-failed", Some(reason)).await?,
        }
        if matches!(what, Sent::Refused(_)) {
            self.refuse_followers(tx, redrive, n).await?;
        }
        Ok(())
    }

    /// A letter that was not sent is what it was before. Its outcome is the one that an earlier redrive waits for, where
    /// that had sent it.
    async fn put_back(
        &self,
        tx: &mut SqliteConnection,
        redrive: i64,
        n: i64,
        from: &str,
    ) -> Result<(), AdapterError> {
        let sql = format!(
            "UPDATE {} AS l SET status = ?1, outcome = CASE ?1 WHEN 'redriving' THEN (SELECT o.step FROM {} AS o \
             WHERE o.letter = l.n AND o.redrive <> ?3 AND o.step IN ('waiting', 'silent', 'unknown') \
             ORDER BY o.redrive DESC LIMIT 1) END WHERE n = ?2 AND status = 'redriving' AND NOT {}",
            self.database.tables.letter(),
            self.database.tables.redrive_letter(),
            self.is_handed_on("?2", "?3")
        );
        let done = sqlx::query(AssertSqlSafe(sql)).bind(from).bind(n).bind(redrive).execute(tx).await;
        done.map(drop).map_err(|error| adapter("cannot put back a letter that was not sent", error))
    }

    /// Whether a later redrive is at the letter: then it says how the letter stands. Both numbers are SQL.
    fn is_handed_on(&self, letter: &str, than: &str) -> String {
        format!(
            "EXISTS (SELECT 1 FROM {} AS h WHERE h.letter = {letter} AND h.redrive > {than} \
             AND h.step IN ('sending', 'waiting'))",
            self.database.tables.redrive_letter()
        )
    }

    /// Letters behind one that was refused must not pass it.
    async fn refuse_followers(
        &self,
        tx: &mut SqliteConnection,
        redrive: i64,
        refused: i64,
    ) -> Result<(), AdapterError> {
        let letters = self.database.tables.letter();
        let sql = format!(
            "UPDATE {} SET step = 'refused' WHERE redrive = ?1 AND step = 'pending' AND letter IN ( \
             SELECT f.n FROM {letters} AS r JOIN {letters} AS f ON f.msg_key = r.msg_key AND f.door IS r.door \
             AND f.place IS r.place WHERE r.n = ?2 AND r.msg_key IS NOT NULL) RETURNING letter",
            self.database.tables.redrive_letter()
        );
        let query = sqlx::query_scalar(AssertSqlSafe(sql)).bind(redrive).bind(refused);
        let followers: Vec<i64> = query
            .fetch_all(&mut *tx)
            .await
            .map_err(|error| adapter("cannot hold letters of a redrive back", error))?;
        for letter in followers {
            self.note(tx, letter, "redrive-failed", Some(BEHIND_REFUSED)).await?;
        }
        Ok(())
    }

    pub(super) async fn silence(&self) -> Result<u64, AdapterError> {
        let failed = |error| adapter("cannot look for letters without an outcome", error);
        let tables = &self.database.tables;
        let (cohort, redrives) = (tables.redrive_letter(), tables.redrive());
        let late = format!(
            "SELECT c.redrive, c.letter FROM {cohort} AS c JOIN {redrives} AS r ON r.n = c.redrive \
             WHERE c.step = 'waiting' AND c.sent_at <= {NOW} - r.silent_after LIMIT {SILENT_AT_ONCE}"
        );
        let mut tx = self.database.write("cannot look for letters without an outcome").await?;
        let late: Vec<(i64, i64)> =
            sqlx::query_as(AssertSqlSafe(late)).fetch_all(&mut *tx).await.map_err(failed)?;
        for (redrive, n) in &late {
            let step = format!("UPDATE {cohort} SET step = 'silent' WHERE redrive = ? AND letter = ?");
            let query = sqlx::query(AssertSqlSafe(step)).bind(redrive).bind(n);
            query.execute(&mut *tx).await.map_err(failed)?;
            let outcome = format!(
                "UPDATE {} SET outcome = 'silent' WHERE n = ?1 AND status = 'redriving' AND NOT {}",
                tables.letter(),
                self.is_handed_on("?1", "?2")
            );
            sqlx::query(AssertSqlSafe(outcome))
                .bind(n)
                .bind(redrive)
                .execute(&mut *tx)
                .await
                .map_err(failed)?;
            self.note(&mut tx, *n, "silent", None).await?;
        }
        commit(tx).await.map_err(plain)?;
        Ok(late.len() as u64)
    }
}

fn plan_group(row: &SqliteRow) -> Result<PlanGroup, sqlx::Error> {
    let verdict: String = row.try_get(0)?;
    let (target, away): (Option<String>, bool) = (row.try_get(3)?, row.try_get(4)?);
    Ok(PlanGroup {
        verdict: Verdict::parse(&verdict).expect("the statement names no others"),
        consumer: row.try_get(1)?,
        reason: row.try_get(2)?,
        foreign: away && target.is_some(),
        target,
        letters: row.try_get::<i64, _>(5)?.unsigned_abs(),
    })
}

/// The status that the letters of a redrive must have.
fn sendable(filter: &LetterFilter) -> Result<&'static str, AdapterError> {
    match filter.status {
        Some(status @ (LetterStatus::Open | LetterStatus::Redriving)) => Ok(status.as_str()),
        _ => Err(AdapterError::new(FaultKind::Invalid, "only open and redriving letters can be redriven")
            .with_hint("ask for the status open or redriving")),
    }
}
