//! Rows of redrives.

use backstop_core::ledger::{NewRedrive, Phase, Redrive, Run, Standing, Step, Tally};
use backstop_core::{AdapterError, BoxError, FaultKind};
use sqlx::Row;
use sqlx::postgres::PgRow;

/// What [`read`] expects, without a condition.
pub(super) const SELECT: &str = "
    SELECT r.id, r.plan, r.rate, r.run, r.phase, r.why, r.forgiven_failures, r.forgiven_outcomes, r.created_at,
           (SELECT coalesce(json_agg(json_build_array(c.canary, c.step, c.letters)), '[]')::text
            FROM {redrive_count} AS c WHERE c.redrive = r.n)
    FROM {redrive} AS r";

/// What was asked for, as the column holds it.
pub(super) fn document(new: &NewRedrive) -> Result<String, AdapterError> {
    serde_json::to_string(new).map_err(|error| {
        AdapterError::new(FaultKind::Invalid, "the redrive cannot be written down").with_source(error)
    })
}

pub(super) fn read(row: &PgRow) -> Result<Redrive, AdapterError> {
    read_redrive(row).map_err(|error| {
        let id: &str = row.try_get(0).unwrap_or("?");
        AdapterError::new(FaultKind::Invalid, format!("redrive {} cannot be read", id.escape_default()))
            .with_hint("use at least the version of Backstop that wrote it")
            .with_source(error)
    })
}

fn read_redrive(row: &PgRow) -> Result<Redrive, BoxError> {
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
    let counts: Vec<(bool, String, i64)> = serde_json::from_str(row.try_get(9)?)?;
    let (mut canary_letters, mut other_letters) = (Tally::default(), Tally::default());
    for (canary, step, letters) in counts {
        let step = Step::parse(&step).ok_or("the state of a letter is unknown")?;
        let tally = if canary { &mut canary_letters } else { &mut other_letters };
        tally.add(step, u64::try_from(letters).unwrap_or(0));
    }
    Ok(Redrive { plan, created_at: row.try_get(8)?, standing, canary_letters, other_letters })
}
