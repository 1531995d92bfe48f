//! `dead-letters redrive`

use std::io;

use backstop_core::ledger::LetterStatus;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::broker;
use crate::cli::{Redrive, Status};
use crate::commands::{Context, confirm, database};
use crate::exit::{Exit, Failure};
use crate::output::{self, counted, or_dash};
use crate::redrive::{Plan, RedriveError, Summary, redrive};
use crate::supervise::until_signalled;

pub(super) async fn run(context: &Context, args: Redrive) -> Result<Exit, Failure> {
    let from = status(args.filter.status)?;
    let broker = context.broker()?;
    let ledger = context.ledger().await?;
    let plan = Plan::make(&*ledger, &args.filter.in_ledger(), args.limit).await.map_err(database)?;
    if plan.is_empty() || args.dry_run {
        if context.is_json() {
            output::json(&json!({ "plan": plan }))?;
        } else {
            print_plan(&plan)?;
        }
        return nothing_sent(&plan);
    }
    if !context.is_json() {
        print_plan(&plan)?;
    }
    if !args.yes {
        confirm(&format!("redrive {}?", counted(plan.len() as u64, "letter")), "nothing was redriven")?;
    }
    let sink = broker::sink(broker).map_err(|error| Failure::broker(&error))?;
    let stop = CancellationToken::new();
    let mut done = None;
    let signalled = until_signalled(stop.clone(), async {
        done = Some(redrive(&*ledger, &sink, &plan, from, &stop).await);
        Ok(())
    })
    .await;
    signalled.map_err(cut_short)?;
    let (summary, result) = done.expect("the work ended without an error, so it left its outcome");
    report(context, &plan, summary)?;
    result.map_err(|error| failure(&error))?;
    if summary.left > 0 {
        let what = format!("stopped by a signal; {} letters were not tried", summary.left);
        return Err(Failure::new(Exit::Failed, what, "run the command again for the rest"));
    }
    Ok(Exit::Ok)
}

/// Letters without a door are refused in words; when there are no others, that is a failure.
fn nothing_sent(plan: &Plan) -> Result<Exit, Failure> {
    if plan.is_empty() && plan.without_door > 0 {
        return Err(Failure::new(
            Exit::Failed,
            format!("none of the {} letters has a door: no Backstop consumer wrote them", plan.without_door),
            "send them again with the tools of their own system",
        ));
    }
    Ok(Exit::Ok)
}

/// What is sent is open, or was left in between by a crash.
fn status(status: Status) -> Result<LetterStatus, Failure> {
    match status {
        Status::Open => Ok(LetterStatus::Open),
        Status::Redriving => Ok(LetterStatus::Redriving),
        _ => Err(Failure::new(
            Exit::Usage,
            "only letters with status open or redriving can be redriven",
            "use --status open, or --status redriving for letters that a crash left behind",
        )),
    }
}

fn print_plan(plan: &Plan) -> io::Result<()> {
    if !plan.is_empty() {
        let row = |group: &crate::redrive::Group| {
            vec![
                group.letters.to_string(),
                or_dash(group.consumer.as_deref()),
                or_dash(group.reason.as_deref()),
                group.door.clone(),
            ]
        };
        output::table(&["LETTERS", "CONSUMER", "REASON", "TO"], plan.groups.iter().map(row))?;
    }
    if plan.without_door > 0 {
        output::line(format!("{} letters have no door and are left alone", plan.without_door))?;
    }
    if plan.is_empty() && plan.without_door == 0 {
        output::line("no letters")?;
    }
    Ok(())
}

fn report(context: &Context, plan: &Plan, summary: Summary) -> io::Result<()> {
    if context.is_json() {
        return output::json(&json!({ "plan": plan, "summary": summary }));
    }
    let mut text = format!("{} sent", counted(summary.sent, "letter"));
    for (count, what) in [
        (summary.taken, "taken by somebody else meanwhile"),
        (summary.put_back, "put back"),
        (summary.left, "not tried"),
    ] {
        if count > 0 {
            text.push_str(&format!(", {count} {what}"));
        }
    }
    output::line(text)
}

/// A second signal leaves letters marked.
fn cut_short(mut failure: Failure) -> Failure {
    if failure.exit() == Exit::Interrupted {
        failure.add(
            "stopped at once: letters that were being sent may stay in status redriving",
            "send them again with --status redriving; copies are absorbed",
        );
    }
    failure
}

/// How a redrive that stopped ends the program.
pub(crate) fn failure(error: &RedriveError) -> Failure {
    match error {
        RedriveError::Ledger(error) => Failure::database(error),
        RedriveError::Publish(error) => Failure::publish(error),
        RedriveError::Refused(error) => {
            let mut failure = Failure::publish(error);
            failure.add(
                "letters were refused and put back; the error above is the first",
                "their histories say why: `backstop-relay dead-letters show ID`; mend the cause and redrive them again",
            );
            failure
        }
        RedriveError::Stuck(error, letters) => {
            let mut failure = Failure::database(error);
            failure.add(
                format!("{letters} letters stay in status redriving"),
                "send them again with --status redriving; copies are absorbed",
            );
            failure
        }
    }
}
