//! A filter as SQL.

use backstop_core::ledger::{LetterFilter, LetterStatus, Outcome};
use sqlx::{QueryBuilder, Sqlite};

use crate::tables::SqliteTables;

pub(super) type Builder = QueryBuilder<Sqlite>;

/// Conditions that a row `l` of the letters is meant, each with AND before it.
///
/// What groups have in common is looked up among them, which are few: whatever is combined, what is left to read is a
/// range of one index for each group. A status alone is such a range of every group.
pub(super) fn meant(sql: &mut Builder, tables: &SqliteTables, filter: &LetterFilter) {
    if asks_for_groups(filter) || (filter.status.is_some() && !is_selective(filter)) {
        sql.push(format!(" AND l.grp IN (SELECT g.n FROM {} AS g WHERE 1", tables.letter_group()));
        of_groups(sql, filter);
        sql.push(")");
    }
    if let Some(status) = filter.status {
        sql.push(" AND l.status = ").push_bind(status.as_str());
    }
    in_time(sql, filter);
    selective(sql, tables, filter);
}

/// Whether something is asked for that groups have in common.
pub(super) fn asks_for_groups(filter: &LetterFilter) -> bool {
    let fields = [&filter.fingerprint, &filter.consumer, &filter.place, &filter.class, &filter.reason];
    fields.into_iter().any(Option::is_some)
}

/// Conditions on a group `g`.
pub(super) fn of_groups(sql: &mut Builder, filter: &LetterFilter) {
    let fields = [
        ("fingerprint", &filter.fingerprint),
        ("consumer", &filter.consumer),
        ("place", &filter.place),
        ("class", &filter.class),
        ("reason", &filter.reason),
    ];
    for (column, wanted) in fields {
        if let Some(wanted) = wanted {
            sql.push(format!(" AND g.{column} = ")).push_bind(wanted.clone());
        }
    }
}

/// Conditions on the time of a letter `l`.
pub(super) fn in_time(sql: &mut Builder, filter: &LetterFilter) {
    if let Some(since) = filter.since {
        // Kept in whole milliseconds: what is later than the last of them is the next one.
        sql.push(" AND l.seen_at >= ").push_bind(ceiling(since));
    }
    if let Some(until) = filter.until {
        sql.push(" AND l.seen_at < ").push_bind(ceiling(until));
    }
}

/// The first whole millisecond that is not before a time.
pub(super) fn ceiling(time: chrono::DateTime<chrono::Utc>) -> i64 {
    time.timestamp_millis() + i64::from(!time.timestamp_subsec_nanos().is_multiple_of(1_000_000))
}

/// Whether something is asked for that has an index of its own.
pub(super) fn is_selective(filter: &LetterFilter) -> bool {
    let texts = [&filter.key, &filter.message_key, &filter.error, &filter.redrive];
    !filter.ids.is_empty()
        || texts.into_iter().any(Option::is_some)
        || filter.header.is_some()
        || filter.outcome.is_some()
        || filter.on_hold.is_some()
}

fn selective(sql: &mut Builder, tables: &SqliteTables, filter: &LetterFilter) {
    if !filter.ids.is_empty() {
        let ids = serde_json::json!(filter.ids).to_string();
        sql.push(" AND l.id IN (SELECT value FROM json_each(").push_bind(ids).push("))");
    }
    if let Some(key) = &filter.key {
        sql.push(" AND l.msg_key = ").push_bind(key.as_bytes().to_vec());
    }
    if let Some(message_key) = &filter.message_key {
        sql.push(" AND l.message_key = ").push_bind(message_key.clone());
    }
    for term in filter.terms() {
        sql.push(format!(" AND EXISTS (SELECT 1 FROM {} AS t WHERE t.term = ", tables.letter_term()));
        sql.push_bind(term).push(" AND t.letter = l.n)");
    }
    if let Some(outcome) = filter.outcome.map(Outcome::as_str) {
        sql.push(" AND l.outcome = ").push_bind(outcome);
    }
    if let Some(redrive) = &filter.redrive {
        sql.push(" AND l.redrive = ").push_bind(redrive.clone());
    }
    match filter.on_hold {
        Some(true) => drop(sql.push(" AND l.hold IS NOT NULL")),
        Some(false) => drop(sql.push(" AND l.hold IS NULL")),
        None => {}
    }
}

/// The status that a filter asks for.
pub(super) fn status(filter: &LetterFilter) -> Option<&'static str> {
    filter.status.map(LetterStatus::as_str)
}
