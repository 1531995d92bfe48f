//! `dead-letters discard` and `dead-letters hold`

use backstop_core::ledger::{COUNT_LIMIT, Change, Ledger, LetterFilter, LetterStatus};
use serde_json::json;

use crate::audit::Action;
use crate::cli::{LetterChange, Status};
use crate::commands::dead_letters::many;
use crate::commands::{Context, confirm, database};
use crate::exit::{Exit, Failure};
use crate::output::{self, counted};

/// Letters that one statement changes.
const AT_ONCE: u32 = 1_000;

pub(super) async fn discard(context: &Context, args: &LetterChange) -> Result<Exit, Failure> {
    let given_up = [Some(LetterStatus::Open), Some(LetterStatus::Redriving)];
    if !given_up.contains(&args.filter.status.in_ledger()) {
        return Err(Failure::new(
            Exit::Usage,
            "only letters with status open or redriving can be discarded",
            "use --status open, or --status redriving for letters whose outcome will never come",
        ));
    }
    let change = Change::Discard { because: args.because.clone() };
    carry_out(context, args, &change, "dead-letters discard", "give up for good:", "discarded").await
}

pub(super) async fn hold(context: &Context, args: &LetterChange, end: bool) -> Result<Exit, Failure> {
    let because = args.because.clone();
    if end {
        let change = Change::Release { because };
        return carry_out(context, args, &change, "dead-letters hold --end", "end the hold of", "released")
            .await;
    }
    carry_out(context, args, &Change::Hold { because }, "dead-letters hold", "put on hold:", "put on hold")
        .await
}

async fn carry_out(
    context: &Context,
    args: &LetterChange,
    change: &Change,
    what: &str,
    question: &str,
    done: &str,
) -> Result<Exit, Failure> {
    let ledger = context.ledger().await?;
    let filter = args.filter.in_ledger();
    let kept = on_hold(&*ledger, &filter, change).await?;
    let applicable = applicable(filter.clone(), change);
    let meant = ledger.count(&applicable).await.map_err(database)?;
    if meant == 0 || args.dry_run {
        return report(context, &applicable, meant, None, kept, done);
    }
    if !args.yes {
        let letters = if meant == 1 { "letter" } else { "letters" };
        confirm(&format!("{question} {} {letters}?", many(&applicable, meant)), "nothing was changed")?;
    }
    let choice = args.filter.to_string();
    let action = Action::on_letters(&ledger, what, &choice, Some(change.because()));
    action.begins(meant).await?;
    let counted = (meant <= COUNT_LIMIT || applicable.is_by_group()).then_some(meant);
    let changed = change_all(&*ledger, &filter, change, counted, &action).await?;
    action.ended(changed).await;
    report(context, &applicable, meant, Some(changed), kept, done)
}

/// Changes no more letters than were counted: they go in the order in which the ledger took them, so that those which come
/// in meanwhile are left.
async fn change_all(
    ledger: &dyn Ledger,
    filter: &LetterFilter,
    change: &Change,
    counted: Option<u64>,
    action: &Action<'_>,
) -> Result<u64, Failure> {
    let (mut changed, mut left) = (0, counted.unwrap_or(u64::MAX));
    while left > 0 {
        let chunk = u32::try_from(left).map_or(AT_ONCE, |left| left.min(AT_ONCE));
        match ledger.change(filter, change, chunk).await {
            Ok(0) => break,
            Ok(more) => (changed, left) = (changed + more, left.saturating_sub(more)),
            Err(error) => {
                action.failed(changed, &error.to_string()).await;
                return Err(Failure::database(&error));
            }
        }
    }
    Ok(changed)
}

/// How many letters stay as they are because somebody holds them.
async fn on_hold(ledger: &dyn Ledger, filter: &LetterFilter, change: &Change) -> Result<u64, Failure> {
    if !matches!(change, Change::Discard { .. }) {
        return Ok(0);
    }
    let held = LetterFilter { on_hold: Some(true), ..filter.clone() };
    ledger.count(&held).await.map_err(database)
}

/// The letters to which the change does anything.
fn applicable(filter: LetterFilter, change: &Change) -> LetterFilter {
    let on_hold = matches!(change, Change::Release { .. });
    match filter.on_hold {
        Some(_) => filter,
        None => LetterFilter { on_hold: Some(on_hold), ..filter },
    }
}

fn report(
    context: &Context,
    filter: &LetterFilter,
    meant: u64,
    changed: Option<u64>,
    kept: u64,
    done: &str,
) -> Result<Exit, Failure> {
    if context.is_json() {
        output::json(&json!({ "matching": meant, "changed": changed, "on_hold": kept }))?;
        return Ok(Exit::Ok);
    }
    match changed {
        Some(changed) => output::line(format!("{} {done}", counted(changed, "letter")))?,
        None if meant == 0 => output::line("no letters")?,
        None if meant == 1 => output::line(format!("1 letter would be {done}"))?,
        None => output::line(format!("{} letters would be {done}", many(filter, meant)))?,
    }
    if kept > 0 {
        output::line(format!("{} on legal hold, left alone", counted(kept, "letter")))?;
    }
    Ok(Exit::Ok)
}

/// Whether a redrive can be made of letters with this status.
pub(super) fn redrivable(status: Status) -> Result<LetterStatus, Failure> {
    match status {
        Status::Open => Ok(LetterStatus::Open),
        Status::Redriving => Ok(LetterStatus::Redriving),
        _ => Err(Failure::new(
            Exit::Usage,
            "only letters with status open or redriving can be redriven",
            "use --status open, or --status redriving for letters without an outcome",
        )),
    }
}
