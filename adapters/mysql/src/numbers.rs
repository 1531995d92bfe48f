//! Numbers of the outbox, without their rows.

use backstop_core::AdapterError;
use futures_util::TryStreamExt;
use sqlx::{AssertSqlSafe, Row};

use crate::failure::failed;
use crate::scoped::Scoped;
use crate::tables::MySqlTables;

/// The lowest number. Servers take the one below, written in SQL, for a decimal fraction.
pub(crate) const LOWEST: i64 = i64::MIN + 1;

/// Numbers that are there, kept as ranges: those that follow one another take the room of one.
#[derive(Debug, Default)]
pub(crate) struct Numbers(Vec<(i64, i64)>);

impl Numbers {
    /// The numbers from `from` to `to`.
    pub(crate) async fn read(
        scoped: &mut Scoped,
        outbox: &str,
        from: i64,
        to: i64,
    ) -> Result<Self, AdapterError> {
        let sql = format!(
            "SELECT seq FROM {outbox} FORCE INDEX (PRIMARY) WHERE seq BETWEEN {from} AND {to} ORDER BY seq"
        );
        let mut numbers = Self::default();
        let mut rows = sqlx::raw_sql(AssertSqlSafe(sql)).fetch(&mut **scoped);
        while let Some(row) = rows.try_next().await.map_err(failed("scan the outbox"))? {
            numbers.push(row.try_get(0).map_err(failed("scan the outbox"))?);
        }
        Ok(numbers)
    }

    fn push(&mut self, number: i64) {
        match self.0.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(number) => *last = number,
            _ => self.0.push((number, number)),
        }
    }

    /// One by one, ascending.
    pub(crate) fn iter(&self) -> impl Iterator<Item = i64> {
        self.0.iter().flat_map(|(from, to)| *from..=*to)
    }

    /// The ranges up to `end` that hold neither one of these nor one of `others`, which are ascending and apart.
    pub(crate) fn absent(&self, others: impl IntoIterator<Item = (i64, i64)>, end: i64) -> Vec<(i64, i64)> {
        let mut taken: Vec<(i64, i64)> = others.into_iter().chain(self.0.iter().copied()).collect();
        taken.sort_unstable();
        let mut absent = Vec::new();
        let mut next = LOWEST;
        for (from, to) in taken {
            if next < from {
                absent.push((next, from - 1));
            }
            next = next.max(to.saturating_add(1));
        }
        if next <= end {
            absent.push((next, end));
        }
        absent
    }
}

/// Ranges as a condition.
pub(crate) fn condition(ranges: &[(i64, i64)]) -> String {
    use std::fmt::Write;
    let mut condition = String::with_capacity(40 * ranges.len());
    for (nth, (from, to)) in ranges.iter().enumerate() {
        let or = if nth == 0 { "(" } else { " OR " };
        let range = if from == to { format!("seq = {from}") } else { format!("seq BETWEEN {from} AND {to}") };
        write!(condition, "{or}{range}").expect("writing to a String cannot fail");
    }
    condition.push(')');
    condition
}

/// Reads the number that the outbox's counter gives next. MySQL answers from statistics of yesterday unless it is told
/// not to; that setting is the session's, and is given back.
pub(crate) fn counter(tables: &MySqlTables) -> String {
    format!(
        "SELECT CAST(AUTO_INCREMENT AS SIGNED) FROM information_schema.TABLES \
         WHERE TABLE_SCHEMA = {} AND TABLE_NAME = '{}'",
        tables.schema_expression(),
        tables.name("outbox")
    )
}

const FRESH: &str = "SET @backstop_expiry = 0 /*!80000 + @@SESSION.information_schema_stats_expiry, \
     SESSION information_schema_stats_expiry = 0 */";
const AS_BEFORE: &str = "SET @backstop_expiry = @backstop_expiry /*!80000 , SESSION information_schema_stats_expiry = @backstop_expiry */";

/// What the counter gives next; `None` where it cannot be seen.
pub(crate) async fn next(scoped: &mut Scoped, counter: &str) -> Result<Option<i64>, AdapterError> {
    let sql = format!("{FRESH}; {counter}; {AS_BEFORE}");
    let mut next = None;
    let mut rows = sqlx::raw_sql(AssertSqlSafe(sql)).fetch(&mut **scoped);
    while let Some(row) = rows.try_next().await.map_err(failed("read the outbox's counter"))? {
        next = row.try_get(0).map_err(failed("read the outbox's counter"))?;
    }
    Ok(next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_absent_is_neither_here_nor_there() {
        let mut numbers = Numbers::default();
        [3, 4, 5, 9].into_iter().for_each(|number| numbers.push(number));
        assert_eq!(numbers.0, [(3, 5), (9, 9)]);
        assert_eq!(numbers.iter().collect::<Vec<_>>(), [3, 4, 5, 9]);
        let absent = numbers.absent([(0, 1), (6, 7)], 12);
        assert_eq!(absent, [(LOWEST, -1), (2, 2), (8, 8), (10, 12)]);
        assert_eq!(Numbers::default().absent([(LOWEST, i64::MAX - 1)], i64::MAX - 1), []);
    }

    #[test]
    fn ranges_make_a_condition() {
        assert_eq!(condition(&[(1, 1), (3, 5)]), "(seq = 1 OR seq BETWEEN 3 AND 5)");
    }
}
