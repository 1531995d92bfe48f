//! Lists, counts and groups.

use backstop_core::AdapterError;
use backstop_core::ledger::{
    COUNT_LIMIT, Letter, LetterFilter, LetterGone, LetterGroup, LetterMinute, StatusCounts,
};
use sqlx::Row;
use sqlx::postgres::PgRow;

use super::choice::{self, Builder, begin};
use super::{PgLedger, stored_id};
use crate::failure::failed;
use crate::tables::PgTables;
use crate::{ledger_row, time};

/// Letters by group, with the numbers that are shown of them; the statement before it names what is counted `c`.
const GROUPS: &str = "
    SELECT g.fingerprint, g.consumer, g.place, g.class, g.reason, g.error_type, g.error,
           sum(c.letters)::bigint AS letters,
           coalesce(sum(c.letters) FILTER (WHERE c.status = 'open'), 0)::bigint,
           coalesce(sum(c.letters) FILTER (WHERE c.status = 'redriving'), 0)::bigint,
           coalesce(sum(c.letters) FILTER (WHERE c.status = 'resolved'), 0)::bigint,
           coalesce(sum(c.letters) FILTER (WHERE c.status = 'discarded'), 0)::bigint,
           coalesce(sum(c.letters) FILTER (WHERE c.status = 'superseded'), 0)::bigint,
           {first_seen}, {last_seen},
           (SELECT coalesce(sum(m.letters), 0)::bigint FROM {minute} AS m
            WHERE m.grp = g.n AND m.minute > now() - interval '60 minutes')
    FROM c JOIN {group} AS g ON g.n = c.grp WHERE true";

/// Rows that are older stay until another letter of their group comes.
const MINUTES: &str = "
    SELECT m.minute, sum(m.letters)::bigint FROM {minute} AS m WHERE m.minute > now() - interval '2 hours'
    GROUP BY m.minute ORDER BY m.minute";
/// The array has the rows looked up by their key.
const MINUTES_OF_GROUP: &str = "
    SELECT m.minute, sum(m.letters)::bigint FROM {minute} AS m
    WHERE m.minute > now() - interval '2 hours'
      AND m.grp = ANY (ARRAY (SELECT g.n FROM {group} AS g WHERE g.fingerprint = $1))
    GROUP BY m.minute ORDER BY m.minute";

impl PgLedger {
    pub(super) async fn list_some(
        &self,
        filter: &LetterFilter,
        after: Option<&str>,
        limit: u32,
    ) -> Result<Vec<Letter>, AdapterError> {
        let mut sql = list_sql(&self.tables, filter, after, limit);
        let rows =
            choice::query(&mut sql).fetch_all(&self.pool).await.map_err(failed("list dead letters"))?;
        // Nothing comes after a letter that is gone, which would look like the end.
        if let Some(id) = after.filter(|_| rows.is_empty()) {
            self.is_there(id).await?;
        }
        rows.iter().map(ledger_row::read).collect()
    }

    async fn is_there(&self, id: &str) -> Result<(), AdapterError> {
        let there = sqlx::query_scalar(self.sql("SELECT EXISTS (SELECT FROM {letter} WHERE id = $1)"));
        match there.bind(stored_id(id)).fetch_one(&self.pool).await.map_err(failed("list dead letters"))? {
            true => Ok(()),
            false => Err(LetterGone::error(id)),
        }
    }

    pub(super) async fn count_some(&self, filter: &LetterFilter) -> Result<u64, AdapterError> {
        let mut sql = count_sql(&self.tables, filter);
        let row = choice::query(&mut sql).fetch_one(&self.pool).await;
        row.and_then(|row| number(&row, 0)).map_err(failed("count dead letters"))
    }

    pub(super) async fn group_some(
        &self,
        filter: &LetterFilter,
        limit: u32,
    ) -> Result<Vec<LetterGroup>, AdapterError> {
        let mut sql = groups_sql(&self.tables, filter, limit);
        let rows = choice::query(&mut sql).fetch_all(&self.pool).await;
        let groups = rows.and_then(|rows| rows.iter().map(group).collect());
        groups.map_err(failed("group dead letters"))
    }

    pub(super) async fn recent_minutes(
        &self,
        fingerprint: Option<&str>,
    ) -> Result<Vec<LetterMinute>, AdapterError> {
        let query = match fingerprint {
            Some(fingerprint) => sqlx::query(self.sql(MINUTES_OF_GROUP)).bind(fingerprint),
            None => sqlx::query(self.sql(MINUTES)),
        };
        let minutes = query.fetch_all(&self.pool).await;
        let read = |row: &PgRow| Ok(LetterMinute { at: row.try_get(0)?, letters: number(row, 1)? });
        let minutes = minutes.and_then(|rows| rows.iter().map(read).collect());
        minutes.map_err(failed("count dead letters by the minute"))
    }
}

/// One page. Without a selective condition it is merged from ranges of one index, a range for each group and status, so
/// that a page costs the same wherever it is and whatever is combined.
pub(super) fn list_sql(tables: &PgTables, filter: &LetterFilter, after: Option<&str>, limit: u32) -> Builder {
    let columns = ledger_row::columns("l");
    let mut sql = begin(tables, &format!("SELECT {columns} FROM "));
    if is_by_range(filter) {
        sql.push("(SELECT r.n");
        in_each_range(&mut sql, tables, filter, |sql| {
            behind(sql, tables, after);
            sql.push(" ORDER BY l.seen_at, l.n LIMIT ").push_bind(i64::from(limit));
        });
        sql.push(" ORDER BY r.seen_at, r.n LIMIT ").push_bind(i64::from(limit));
        sql.push(tables.fill(") AS page JOIN {letter} AS l ON l.n = page.n ORDER BY l.seen_at, l.n"));
    } else {
        sql.push(tables.fill("{letter} AS l WHERE true"));
        choice::meant(&mut sql, tables, filter);
        behind(&mut sql, tables, after);
        sql.push(" ORDER BY l.seen_at, l.n LIMIT ").push_bind(i64::from(limit));
    }
    sql
}

/// Whether letters are looked for in ranges of one index, a range for each group and status.
fn is_by_range(filter: &LetterFilter) -> bool {
    !choice::is_selective(filter) && (choice::asks_for_groups(filter) || filter.status.is_some())
}

/// Letters that are meant as rows `r` of each range `c`, as far as `part` goes. Whoever wants a number of them reads
/// no more ranges than it takes.
fn in_each_range(
    sql: &mut Builder,
    tables: &PgTables,
    filter: &LetterFilter,
    part: impl FnOnce(&mut Builder),
) {
    sql.push(tables.fill(
        " FROM {count} AS c JOIN {group} AS g ON g.n = c.grp CROSS JOIN LATERAL \
         (SELECT l.seen_at, l.n FROM {letter} AS l WHERE l.grp = c.grp AND l.status = c.status",
    ));
    choice::in_time(sql, filter);
    choice::selective(sql, filter);
    part(sql);
    sql.push(") AS r WHERE c.letters > 0");
    choice::of_groups(sql, filter);
    if let Some(status) = choice::status(filter) {
        sql.push(" AND c.status = ").push_bind(status);
    }
}

/// The first letters that are found, of which the statement before it names columns.
fn found(sql: &mut Builder, tables: &PgTables, filter: &LetterFilter) {
    if is_by_range(filter) {
        // Otherwise the ranges would be planned as one join.
        in_each_range(sql, tables, filter, |sql| {
            sql.push(" OFFSET 0");
        });
    } else {
        sql.push(tables.fill(" FROM (SELECT l.grp, l.status FROM {letter} AS l WHERE true"));
        choice::meant(sql, tables, filter);
        sql.push(") AS c");
    }
    sql.push(format!(" LIMIT {}", COUNT_LIMIT + 1));
}

/// The condition that a letter comes after another.
fn behind(sql: &mut Builder, tables: &PgTables, after: Option<&str>) {
    if let Some(id) = after {
        for (open, column) in [(" AND (l.seen_at, l.n) > ((", "seen_at"), (", (", "n")] {
            sql.push(format!("{open}SELECT {column} FROM {} WHERE id = ", tables.quoted("letter")));
            sql.push_bind(stored_id(id)).push(")");
        }
        sql.push(")");
    }
}

pub(super) fn count_sql(tables: &PgTables, filter: &LetterFilter) -> Builder {
    if filter.is_by_group() {
        let counts = "SELECT coalesce(sum(c.letters), 0)::bigint FROM {count} AS c \
                      JOIN {group} AS g ON g.n = c.grp WHERE true";
        let mut sql = begin(tables, counts);
        choice::of_groups(&mut sql, filter);
        if let Some(status) = choice::status(filter) {
            sql.push(" AND c.status = ").push_bind(status);
        }
        return sql;
    }
    let mut sql = begin(tables, "SELECT count(*) FROM (SELECT 1");
    found(&mut sql, tables, filter);
    sql.push(") AS found");
    sql
}

pub(super) fn groups_sql(tables: &PgTables, filter: &LetterFilter, limit: u32) -> Builder {
    let groups = GROUPS
        .replace("{first_seen}", &time::clamped("g.first_seen"))
        .replace("{last_seen}", &time::clamped("g.last_seen"));
    let mut sql;
    if filter.is_by_group() {
        sql = begin(tables, "WITH c AS (SELECT grp, status, letters FROM {count} WHERE letters > 0");
        if let Some(status) = choice::status(filter) {
            sql.push(" AND status = ").push_bind(status);
        }
        sql.push(")").push(tables.fill(&groups));
        choice::of_groups(&mut sql, filter);
    } else {
        sql = begin(tables, "WITH found AS (SELECT c.grp, c.status");
        found(&mut sql, tables, filter);
        sql.push("), c AS (SELECT grp, status, count(*) AS letters FROM found GROUP BY grp, status)");
        sql.push(tables.fill(&groups));
    }
    sql.push(" GROUP BY g.n ORDER BY letters DESC, g.last_seen DESC, g.n LIMIT ").push_bind(i64::from(limit));
    sql
}

fn group(row: &PgRow) -> Result<LetterGroup, sqlx::Error> {
    Ok(LetterGroup {
        fingerprint: row.try_get(0)?,
        consumer: row.try_get(1)?,
        place: row.try_get(2)?,
        class: row.try_get(3)?,
        reason: row.try_get(4)?,
        error_type: row.try_get(5)?,
        error: row.try_get(6)?,
        letters: number(row, 7)?,
        by_status: StatusCounts {
            open: number(row, 8)?,
            redriving: number(row, 9)?,
            resolved: number(row, 10)?,
            discarded: number(row, 11)?,
            superseded: number(row, 12)?,
        },
        first_seen: row.try_get(13)?,
        last_seen: row.try_get(14)?,
        last_hour: number(row, 15)?,
    })
}

fn number(row: &PgRow, column: usize) -> Result<u64, sqlx::Error> {
    Ok(u64::try_from(row.try_get::<i64, _>(column)?).unwrap_or(0))
}
