//! Rows of redrives.

use backstop_core::ledger::{NewRedrive, Phase, Redrive, Run, Standing, Step, Tally};
use backstop_core::{AdapterError, BoxError, FaultKind};
use chrono::DateTime;
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use super::choice::Builder;
use crate::tables::SqliteTables;

/// What [`read`] expects, without a condition.
pub(super) fn select(tables: &SqliteTables) -> Builder {
    Builder::new(format!(
        "SELECT r.id, r.plan, r.rate, r.run, r.phase, r.why, r.forgiven_failures, r.forgiven_outcomes, r.created_at, \
         (SELECT json_group_array(json_array(c.canary, c.step, c.letters)) FROM {} AS c WHERE c.redrive = r.n) \
         FROM {} AS r",
        tables.redrive_count(),
        tables.redrive()
    ))
}

/// What was asked for, as the column holds it.
pub(super) fn document(new: &NewRedrive) -> Result<String, AdapterError> {
    serde_json::to_string(new).map_err(|error| {
        AdapterError::new(FaultKind::Invalid, "the redrive cannot be written down").with_source(error)
    })
}

pub(super) fn read(row: &SqliteRow) -> Result<Redrive, AdapterError> {
    read_redrive(row).map_err(|error| {
        let id: &str = row.try_get(0).unwrap_or("?");
        AdapterError::new(FaultKind::Invalid, format!("redrive {} cannot be read", id.escape_default()))
            .with_hint("use at least the version of Backstop that wrote it")
            .with_source(error)
    })
}

fn read_redrive(row: &SqliteRow) -> Result<Redrive, BoxError> {
    let mut plan: NewRedrive = serde_json::from_str(row.try_get(1)?)?;
    plan.rate = row.try_get(2)?;
    let number =
        |column: usize| row.try_get::<i64, _>(column).map(|number| u64::try_from(number).unwrap_or(0));
    let standing = Standing {
        run: Run::parse(row.try_get(3)?).ok_or("its state is unknown")?,
        phase: Phase::parse(row.try_get(4)?).ok_or("its phase is unknown")?,
        why: row.try_get(5)?,
        forgiven_failures: number(6)?,
        forgiven_outcomes: number(7)?,
    };
    let created_at = DateTime::from_timestamp_millis(row.try_get(8)?).ok_or("its time is none")?;
    let counts: Vec<(i64, String, i64)> = serde_json::from_str(row.try_get(9)?)?;
    let (mut canary_letters, mut other_letters) = (Tally::default(), Tally::default());
    for (canary, step, letters) in counts {
        let step = Step::parse(&step).ok_or("the state of a letter is unknown")?;
        let tally = if canary == 1 { &mut canary_letters } else { &mut other_letters };
        tally.add(step, u64::try_from(letters).unwrap_or(0));
    }
    Ok(Redrive { plan, created_at, standing, canary_letters, other_letters })
}
