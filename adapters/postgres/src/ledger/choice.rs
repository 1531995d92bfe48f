//! A filter as SQL.

use backstop_core::ledger::{LetterFilter, LetterStatus, Outcome};
use sqlx::postgres::PgArguments;
use sqlx::query::Query;
use sqlx::{Postgres, QueryBuilder};

use super::{stored, stored_id};
use crate::storable::storable;
use crate::tables::PgTables;

pub(super) type Builder = QueryBuilder<Postgres>;

/// The statement, planned each time for the values that it has. One that is prepared is planned for any value after a few
/// times, and then takes a word that every letter has for a rare one.
pub(super) fn query(sql: &mut Builder) -> Query<'_, Postgres, PgArguments> {
    sql.build().persistent(false)
}

/// A statement that begins so, with the names of tables filled in.
pub(super) fn begin(tables: &PgTables, sql: &str) -> Builder {
    Builder::new(tables.fill(sql))
}

/// Conditions that a row `l` of the letters is meant, each with AND before it.
///
/// What groups have in common is looked up among them, which are few: whatever is combined, what is left to read is a
/// range of one index for each group. A status alone is such a range of every group.
pub(super) fn meant(sql: &mut Builder, tables: &PgTables, filter: &LetterFilter) {
    if asks_for_groups(filter) || (filter.status.is_some() && !is_selective(filter)) {
        sql.push(tables.fill(" AND l.grp = ANY (ARRAY (SELECT g.n FROM {group} AS g WHERE true"));
        of_groups(sql, filter);
        sql.push("))");
    }
    if let Some(status) = filter.status {
        sql.push(" AND l.status = ").push_bind(status.as_str());
    }
    in_time(sql, filter);
    selective(sql, filter);
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
        if let Some(wanted) = stored(wanted.as_deref()) {
            sql.push(format!(" AND g.{column} = ")).push_bind(wanted);
        }
    }
}

/// Conditions on the time of a letter `l`.
pub(super) fn in_time(sql: &mut Builder, filter: &LetterFilter) {
    if let Some(since) = filter.since {
        sql.push(" AND l.seen_at >= ").push_bind(since);
    }
    if let Some(until) = filter.until {
        sql.push(" AND l.seen_at < ").push_bind(until);
    }
}

/// Whether something is asked for that has an index of its own.
pub(super) fn is_selective(filter: &LetterFilter) -> bool {
    let texts = [&filter.key, &filter.message_key, &filter.error, &filter.redrive];
    !filter.ids.is_empty()
        || texts.into_iter().any(Option::is_some)
        || filter.header.is_some()
        || filter.outcome.is_some()
        || filter.on_hold == Some(true)
}

/// Conditions on a letter `l` that are not on its group, status and time.
pub(super) fn selective(sql: &mut Builder, filter: &LetterFilter) {
    if !filter.ids.is_empty() {
        let ids: Vec<String> = filter.ids.iter().map(|id| stored_id(id)).collect();
        sql.push(" AND l.id = ANY (").push_bind(ids).push(")");
    }
    if let Some(key) = &filter.key {
        sql.push(" AND l.msg_key = ").push_bind(key.as_bytes().to_vec());
    }
    if let Some(message_key) = stored(filter.message_key.as_deref()) {
        sql.push(" AND l.message_key = ").push_bind(message_key);
    }
    let terms: Vec<String> = filter.terms().iter().map(|term| storable(term)).collect();
    if !terms.is_empty() {
        sql.push(" AND l.terms @> ").push_bind(terms);
    }
    if let Some(outcome) = filter.outcome.map(Outcome::as_str) {
        sql.push(" AND l.outcome = ").push_bind(outcome);
    }
    if let Some(redrive) = stored(filter.redrive.as_deref()) {
        sql.push(" AND l.redrive = ").push_bind(redrive);
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
