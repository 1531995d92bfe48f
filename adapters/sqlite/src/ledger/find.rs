//! Lists, counts and groups.

use backstop_core::AdapterError;
use backstop_core::ledger::{
    COUNT_LIMIT, Letter, LetterFilter, LetterGone, LetterGroup, LetterMinute, StatusCounts,
};
use chrono::DateTime;
use sqlx::sqlite::SqliteRow;
use sqlx::{AssertSqlSafe, Row, SqliteConnection};

use super::SqliteLedger;
use super::choice::{self, Builder};
use crate::error::adapter;
use crate::letter_row::{columns, letter};
use crate::tables::SqliteTables;

/// Where a page begins: behind the letter of that time and number.
pub(super) type Cursor = (i64, i64);

impl SqliteLedger {
    pub(super) async fn read_letters(
        &self,
        filter: &LetterFilter,
        after: Option<&str>,
        limit: u32,
    ) -> Result<Vec<Letter>, AdapterError> {
        let mut connection = self.database.connection().await?;
        let after = match after {
            Some(id) => Some(self.cursor(&mut connection, id).await?),
            None => None,
        };
        let mut sql = list_sql(&self.database.tables, filter, after, limit);
        let rows = sql.build().fetch_all(&mut *connection).await;
        let rows = rows.map_err(|error| adapter("cannot read dead letters", error))?;
        rows.iter().map(letter).collect()
    }

    async fn cursor(&self, connection: &mut SqliteConnection, id: &str) -> Result<Cursor, AdapterError> {
        let sql = format!("SELECT seen_at, n FROM {} WHERE id = ?", self.database.tables.letter());
        let cursor: Option<Cursor> = sqlx::query_as(AssertSqlSafe(sql))
            .bind(id)
            .fetch_optional(connection)
            .await
            .map_err(|error| adapter("cannot read dead letters", error))?;
        cursor.ok_or_else(|| LetterGone::error(id))
    }

    pub(super) async fn count_letters(&self, filter: &LetterFilter) -> Result<u64, AdapterError> {
        let mut connection = self.database.connection().await?;
        let mut sql = count_sql(&self.database.tables, filter);
        let row = sql.build().fetch_one(&mut *connection).await;
        row.and_then(|row| number(&row, 0)).map_err(|error| adapter("cannot count dead letters", error))
    }

    pub(super) async fn read_groups(
        &self,
        filter: &LetterFilter,
        limit: u32,
    ) -> Result<Vec<LetterGroup>, AdapterError> {
        let mut connection = self.database.connection().await?;
        let mut sql = groups_sql(&self.database.tables, filter, limit);
        let rows = sql.build().fetch_all(&mut *connection).await;
        let groups = rows.and_then(|rows| rows.iter().map(group).collect());
        groups.map_err(|error| adapter("cannot group dead letters", error))
    }

    pub(super) async fn recent_minutes(
        &self,
        fingerprint: Option<&str>,
    ) -> Result<Vec<LetterMinute>, AdapterError> {
        let tables = &self.database.tables;
        // Rows that are older stay until another letter of their group comes.
        let sql = format!(
            "SELECT m.minute, sum(m.letters) FROM {} AS m WHERE m.minute > unixepoch() / 60 - 120 \
             AND (?1 IS NULL OR m.grp IN (SELECT g.n FROM {} AS g WHERE g.fingerprint = ?1)) \
             GROUP BY m.minute ORDER BY m.minute",
            tables.letter_minute(),
            tables.letter_group()
        );
        let mut connection = self.database.connection().await?;
        let rows = sqlx::query(AssertSqlSafe(sql)).bind(fingerprint).fetch_all(&mut *connection).await;
        let minutes = rows.and_then(|rows| rows.iter().map(minute).collect());
        minutes.map_err(|error| adapter("cannot count dead letters by the minute", error))
    }
}

/// One page. With what groups have in common, or a status, it is merged from ranges of one index, a range for each group
/// and status, so that a page costs the same wherever it is and whatever is combined.
pub(super) fn list_sql(
    tables: &SqliteTables,
    filter: &LetterFilter,
    after: Option<Cursor>,
    limit: u32,
) -> Builder {
    let by_range =
        !choice::is_selective(filter) && (choice::asks_for_groups(filter) || filter.status.is_some());
    let letters = tables.letter();
    let mut sql = Builder::new(format!("SELECT {} FROM ", columns("l")));
    if by_range {
        // SQLite has no LATERAL: the numbers of each range are an array that its row carries.
        sql.push(format!(
            "(SELECT json_each.value AS n FROM {} AS c JOIN {} AS g ON g.n = c.grp, json_each((SELECT json_group_array(n) \
             FROM (SELECT l.n FROM {letters} AS l WHERE l.grp = c.grp AND l.status = c.status",
            tables.letter_count(),
            tables.letter_group()
        ));
        choice::in_time(&mut sql, filter);
        behind(&mut sql, after);
        sql.push(" ORDER BY l.seen_at, l.n LIMIT ").push_bind(limit);
        sql.push("))) WHERE c.letters > 0");
        choice::of_groups(&mut sql, filter);
        if let Some(status) = choice::status(filter) {
            sql.push(" AND c.status = ").push_bind(status);
        }
        sql.push(format!(") AS page CROSS JOIN {letters} AS l ON l.n = page.n"));
    } else {
        sql.push(format!("{letters} AS l WHERE 1"));
        choice::meant(&mut sql, tables, filter);
        behind(&mut sql, after);
    }
    sql.push(" ORDER BY l.seen_at, l.n LIMIT ").push_bind(limit);
    sql
}

/// The condition that a letter comes after another.
fn behind(sql: &mut Builder, after: Option<Cursor>) {
    if let Some((seen_at, n)) = after {
        sql.push(" AND (l.seen_at, l.n) > (").push_bind(seen_at).push(", ").push_bind(n).push(")");
    }
}

pub(super) fn count_sql(tables: &SqliteTables, filter: &LetterFilter) -> Builder {
    if filter.is_by_group() {
        let mut sql = Builder::new(format!(
            "SELECT coalesce(sum(c.letters), 0) FROM {} AS c JOIN {} AS g ON g.n = c.grp WHERE 1",
            tables.letter_count(),
            tables.letter_group()
        ));
        choice::of_groups(&mut sql, filter);
        if let Some(status) = choice::status(filter) {
            sql.push(" AND c.status = ").push_bind(status);
        }
        return sql;
    }
    let mut sql =
        Builder::new(format!("SELECT count(*) FROM (SELECT 1 FROM {} AS l WHERE 1", tables.letter()));
    choice::meant(&mut sql, tables, filter);
    sql.push(format!(" LIMIT {})", COUNT_LIMIT + 1));
    sql
}

pub(super) fn groups_sql(tables: &SqliteTables, filter: &LetterFilter, limit: u32) -> Builder {
    let mut sql;
    if filter.is_by_group() {
        let counts = tables.letter_count();
        sql = Builder::new(format!("WITH c AS (SELECT grp, status, letters FROM {counts} WHERE letters > 0"));
        if let Some(status) = choice::status(filter) {
            sql.push(" AND status = ").push_bind(status);
        }
        sql.push(")");
    } else {
        let letters = tables.letter();
        sql = Builder::new(format!("WITH found AS (SELECT l.grp, l.status FROM {letters} AS l WHERE 1"));
        choice::meant(&mut sql, tables, filter);
        sql.push(format!(" LIMIT {}), ", COUNT_LIMIT + 1));
        sql.push("c AS (SELECT grp, status, count(*) AS letters FROM found GROUP BY grp, status)");
    }
    let of = |status| format!("sum(CASE c.status WHEN '{status}' THEN c.letters ELSE 0 END)");
    let by_status = ["open", "redriving", "resolved", "discarded", "superseded"].map(of).join(", ");
    sql.push(format!(
        " SELECT g.fingerprint, g.consumer, g.place, g.class, g.reason, g.error_type, g.error, \
         sum(c.letters) AS letters, {by_status}, g.first_seen, g.last_seen, \
         (SELECT coalesce(sum(m.letters), 0) FROM {} AS m WHERE m.grp = g.n AND m.minute > unixepoch() / 60 - 60) \
         FROM c JOIN {} AS g ON g.n = c.grp WHERE 1",
        tables.letter_minute(),
        tables.letter_group()
    ));
    if filter.is_by_group() {
        choice::of_groups(&mut sql, filter);
    }
    sql.push(" GROUP BY g.n ORDER BY letters DESC, g.last_seen DESC, g.n LIMIT ").push_bind(limit);
    sql
}

fn minute(row: &SqliteRow) -> Result<LetterMinute, sqlx::Error> {
    let at = DateTime::from_timestamp_secs(row.try_get::<i64, _>(0)?.saturating_mul(60)).unwrap_or_default();
    Ok(LetterMinute { at, letters: number(row, 1)? })
}

fn group(row: &SqliteRow) -> Result<LetterGroup, sqlx::Error> {
    let time = |column: usize| {
        row.try_get::<i64, _>(column)
            .map(|millis| DateTime::from_timestamp_millis(millis).unwrap_or_default())
    };
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
        first_seen: time(13)?,
        last_seen: time(14)?,
        last_hour: number(row, 15)?,
    })
}

fn number(row: &SqliteRow, column: usize) -> Result<u64, sqlx::Error> {
    Ok(u64::try_from(row.try_get::<i64, _>(column)?).unwrap_or(0))
}
