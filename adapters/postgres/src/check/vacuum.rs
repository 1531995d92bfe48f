//! Whether deleted rows leave the outbox.

use backstop_core::AdapterError;
use backstop_core::schema::Finding;
use sqlx::postgres::PgRow;
use sqlx::{FromRow, PgPool, Row};

use crate::failure::failed;
use crate::tables::PgTables;

/// What migration 1 sets: every row is deleted soon, so that vacuum goes by their count.
const SETTINGS: [(&str, &str); 5] = [
    ("autovacuum_vacuum_scale_factor", "0"),
    ("autovacuum_vacuum_threshold", "10000"),
    ("autovacuum_vacuum_cost_delay", "0"),
    ("autovacuum_analyze_scale_factor", "0"),
    ("autovacuum_analyze_threshold", "50000"),
];
/// Deleted rows that are many where nobody has vacuumed for five minutes.
const MANY: i64 = 100_000;

struct State {
    options: Vec<String>,
    dead: i64,
    /// Since the last vacuum, or for ever.
    minutes: Option<i64>,
    on: bool,
}

impl<'r> FromRow<'r, PgRow> for State {
    fn from_row(row: &'r PgRow) -> sqlx::Result<Self> {
        Ok(Self {
            options: row.try_get("options")?,
            dead: row.try_get("dead")?,
            minutes: row.try_get("minutes")?,
            on: row.try_get("on")?,
        })
    }
}

pub(super) async fn check(pool: &PgPool, tables: &PgTables) -> Result<Vec<Finding>, AdapterError> {
    let table = tables.outbox();
    let state: Option<State> = sqlx::query_as(
        "SELECT coalesce(c.reloptions, '{}') AS options, coalesce(s.n_dead_tup, 0) AS dead, \
         (extract(epoch FROM clock_timestamp() - greatest(s.last_vacuum, s.last_autovacuum)) / 60)::int8 AS minutes, \
         current_setting('autovacuum')::bool AND current_setting('track_counts')::bool AS on \
         FROM pg_class c LEFT JOIN pg_stat_all_tables s ON s.relid = c.oid WHERE c.oid = to_regclass($1)",
    )
    .bind(&table)
    .fetch_optional(pool)
    .await
    .map_err(failed("look at the vacuum of the outbox"))?;
    Ok(state.map_or_else(Vec::new, |state| vec![settings(&table, &state), bloat(&table, &state)]))
}

/// Settings of another value were chosen by somebody; those that are gone were lost, as by a copy of the table.
fn settings(table: &str, state: &State) -> Finding {
    let subject = "autovacuum";
    let has = |name: &str| state.options.iter().any(|option| option.split('=').next() == Some(name));
    let off =
        |value: &&str| state.options.iter().any(|option| option == &format!("autovacuum_enabled={value}"));
    let lost: Vec<String> = SETTINGS
        .iter()
        .filter(|(name, _)| !has(name))
        .map(|(name, value)| format!("{name} = {value}"))
        .collect();
    if !state.on {
        Finding::warning(subject, "off for the whole server", "set autovacuum and track_counts to on")
    } else if ["false", "off", "0", "no"].iter().any(off) {
        let remedy = format!("ALTER TABLE {table} RESET (autovacuum_enabled)");
        Finding::warning(subject, "off for the outbox", remedy)
    } else if lost.is_empty() {
        Finding::fine(subject, "goes by the count of deleted rows")
    } else {
        let remedy = format!("ALTER TABLE {table} SET ({})", lost.join(", "));
        Finding::warning(subject, "has lost settings of the outbox, so that it comes late", remedy)
    }
}

fn bloat(table: &str, state: &State) -> Finding {
    let subject = "deleted rows";
    let detail = match state.minutes {
        Some(minutes) => format!("{}, vacuumed {minutes} minutes ago", state.dead),
        None => format!("{}, never vacuumed", state.dead),
    };
    if state.dead > MANY && state.minutes.is_none_or(|minutes| minutes >= 5) {
        let remedy =
            format!("end what keeps them (old transactions, replication slots), then VACUUM {table}");
        Finding::warning(subject, detail, remedy)
    } else {
        Finding::fine(subject, detail)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_settings_are_those_of_the_migration() {
        let made = crate::schema::MIGRATIONS[0].up;
        for (name, value) in SETTINGS {
            assert!(made.contains(&format!("{name} = {value}")), "{name}");
        }
        assert_eq!(made.matches("    autovacuum_").count(), SETTINGS.len());
    }
}
