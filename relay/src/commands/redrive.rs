//! `dead-letters redrive`

use std::io;

use backstop_core::ledger::{Guard, LetterFilter, NewRedrive, PlanGroup, Redrive, Run, Verdict};
use chrono::Utc;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::audit::Action;
use crate::broker;
use crate::cli;
use crate::commands::letter_changes::redrivable;
use crate::commands::redrives::{Progress, shown};
use crate::commands::{Context, confirm, database};
use crate::exit::{Exit, Failure};
use crate::output::{self, counted, or_dash};
use crate::owner::OwnerSettings;
use crate::patience::answer;
use crate::redrive::{Engine, Plan, Trouble, carry_out, is_sent, new_redrive};
use crate::supervise::until_signalled;

/// What became of the letters of a redrive that ended early.
const LEFT: &str = "what was not sent is open, what was being sent waits for its outcome";

pub(super) async fn run(context: &Context, args: cli::Redrive) -> Result<Exit, Failure> {
    redrivable(args.filter.status)?;
    context.broker()?;
    let new = wanted(context, &args)?;
    let cli::Redrive { wait, dry_run, yes, .. } = args;
    let wish = Wish {
        new,
        what: "dead-letters redrive",
        choice: args.filter.to_string(),
        left_alone: "see the plan: letters without a door need --accept-fanout, old ones --include-old",
        wait,
        dry_run,
        yes,
    };
    by_hand(context, wish).await
}

/// A redrive that somebody asks for on the command line.
pub(super) struct Wish {
    pub(super) new: NewRedrive,
    /// The command.
    pub(super) what: &'static str,
    /// Which letters, as the operator chose.
    pub(super) choice: String,
    /// The remedy where letters match and none would be sent.
    pub(super) left_alone: &'static str,
    /// Whether to wait for every outcome.
    pub(super) wait: bool,
    pub(super) dry_run: bool,
    /// Whether not to ask.
    pub(super) yes: bool,
}

/// Prints the plan, asks, and carries the redrive out.
pub(super) async fn by_hand(context: &Context, wish: Wish) -> Result<Exit, Failure> {
    let Wish { new, what, choice, .. } = &wish;
    let ledger = context.ledger().await?;
    let keys = context.keys();
    let mut plan = Plan::make(&*ledger, &new.filter, &new.guard, &keys).await.map_err(database)?;
    plan.warnings.extend(plan.without_canary(new.canary));
    let to_send = new.limit.map_or(plan.to_send, |limit| limit.min(plan.to_send));
    if to_send == 0 || wish.dry_run {
        if context.is_json() {
            output::json(&json!({ "plan": plan }))?;
        } else {
            print_plan(&plan)?;
        }
        return nothing_sent(&plan, to_send, wish.left_alone);
    }
    if !context.is_json() {
        print_plan(&plan)?;
    }
    if !wish.yes {
        confirm(&format!("redrive {}?", counted(to_send, "letter")), "nothing was redriven")?;
    }
    let action = Action::on_letters(&ledger, what, choice, new.because.as_deref()).about(&new.id);
    action.begins(to_send).await?;
    let made = ledger.create_redrive(new).await.map_err(database)?;
    let seen = match Box::pin(follow(context, made, wish.wait)).await {
        Ok(seen) => seen,
        Err(failure) => {
            action.failed(to_send, &failure.to_string()).await;
            return Err(failure);
        }
    };
    action.ended(seen.letters().sent()).await;
    if context.is_json() {
        output::json(&json!({ "plan": plan, "redrive": shown(&seen) }))?;
    } else {
        print_outcome(&seen)?;
    }
    ended(&seen)
}

/// The redrive that the command line asks for.
fn wanted(context: &Context, args: &cli::Redrive) -> Result<NewRedrive, Failure> {
    let config = &context.config.dead_letters.redrive;
    let mut guard = Guard { max_generation: i64::from(config.max_generation), ..Guard::default() };
    if let Some(retention) = config.inbox_retention.filter(|_| !args.include_old) {
        guard.not_before =
            chrono::TimeDelta::from_std(retention).ok().map(|retention| Utc::now() - retention);
    }
    if args.accept_fanout {
        guard.foreign = config.targets.clone();
        if guard.foreign.is_empty() {
            return Err(Failure::new(
                Exit::Configuration,
                "no topic or queue may be sent back to",
                "name those that may in [dead_letters.redrive]: targets = [\"orders\"]",
            ));
        }
    }
    let filter: LetterFilter = args.filter.in_ledger();
    Ok(NewRedrive {
        limit: args.limit,
        canary: args.canary,
        rate: args.rate,
        brake: f64::from(args.brake) / 100.0,
        silent_after: config.silent_after,
        because: args.because.clone(),
        ..new_redrive(filter, guard)
    })
}

/// Waits for a redrive, with a bar on a terminal; carries it out where no relay does.
pub(super) async fn follow(context: &Context, made: Redrive, to_the_end: bool) -> Result<Redrive, Failure> {
    let ledger = context.ledger().await?;
    let sink = broker::sink(context.broker()?).map_err(|error| Failure::broker(&error))?;
    let id = made.plan.id.clone();
    let stop = CancellationToken::new();
    let progress = Progress::new(context);
    let done = |redrive: &Redrive| {
        if to_the_end { redrive.standing.run != Run::Running } else { is_sent(redrive) }
    };
    let mut followed = None;
    let signalled = until_signalled(stop.clone(), async {
        let look = |redrive: &Redrive| progress.show(redrive);
        let engine = Engine::new(ledger.clone(), sink, owner(context)).opening(context.keys());
        let work = carry_out(engine, made, look, done, &stop);
        followed = Some(Box::pin(work).await);
        Ok(())
    })
    .await;
    progress.end();
    signalled?;
    let followed = followed.expect("the work ended without an error, so it left its outcome");
    let seen = match followed {
        Ok(seen) => seen,
        Err(trouble) => return Err(held_up(&*ledger, &id, &trouble).await),
    };
    if !done(&seen) {
        let what = format!("stopped by a signal; redrive {id} is not done");
        return Err(Failure::new(Exit::Failed, what, goes_on(&id)));
    }
    Ok(seen)
}

/// What the engines of a ledger lease, by a name that no configuration can give: two that went by the names of theirs
/// would send the same letters at once.
const LEASE: &str = "redrives:";

/// What the engines of this ledger lease.
pub(crate) fn owner(context: &Context) -> OwnerSettings {
    let ttl = context.config.dead_letters.lease_ttl;
    OwnerSettings { lease: LEASE.to_owned(), ttl, ..OwnerSettings::default() }
}

fn goes_on(id: &str) -> String {
    format!("it goes on with `redrives watch {id}`, or where `run` collects; `redrives cancel {id}` ends it")
}

/// Nobody looks after the redrive any more once this command has ended: it is paused, if that is possible.
async fn held_up(ledger: &dyn backstop_core::ledger::Ledger, id: &str, trouble: &Trouble) -> Failure {
    let term = CancellationToken::new();
    if let Ok(Some(redrive)) = answer(&term, ledger.redrive(id)).await
        && let Ok(to) = redrive.paused(crate::exit::with_cause(trouble))
    {
        // What cannot be paused goes on in the next engine, which is as good.
        drop(answer(&term, ledger.steer_redrive(id, &redrive.standing, &to)).await);
    }
    let mut failure = failure(trouble);
    failure.add(
        format!("redrive {id} is paused"),
        format!("mend the cause, then `redrives resume {id}`; or end it with `redrives cancel {id}`"),
    );
    failure
}

/// How a redrive that is held up ends the program.
pub(crate) fn failure(trouble: &Trouble) -> Failure {
    match trouble {
        Trouble::Ledger(error) => Failure::database(error),
        Trouble::Broker(error) | Trouble::Target(_, error) => Failure::publish(error),
    }
}

/// Letters that cannot be sent are refused in words; when there are no others, that is a failure.
fn nothing_sent(plan: &Plan, to_send: u64, hint: &str) -> Result<Exit, Failure> {
    if to_send == 0 && plan.matching > 0 {
        return Err(Failure::new(
            Exit::Failed,
            format!("none of the {} letters can be redriven", plan.matching),
            hint,
        ));
    }
    Ok(Exit::Ok)
}

fn print_plan(plan: &Plan) -> io::Result<()> {
    if plan.matching == 0 {
        return output::line("no letters");
    }
    let sent = plan.groups.iter().filter(|group| group.verdict == Verdict::Send);
    if plan.to_send > 0 {
        let row = |group: &PlanGroup| {
            vec![
                group.letters.to_string(),
                or_dash(group.consumer.as_deref()),
                or_dash(group.reason.as_deref()),
                or_dash(group.target.as_deref()),
            ]
        };
        output::table(&["LETTERS", "CONSUMER", "REASON", "TO"], sent.map(row))?;
    }
    let numbers = [
        (plan.matching, "match"),
        (plan.without_target, "have no door and are left alone"),
        (plan.looped, "were redriven too often and are left alone"),
        (plan.too_old, "are older than what consumers remember and are left alone"),
        (plan.to_send, "would be sent"),
    ];
    for (letters, what) in numbers {
        if letters > 0 {
            output::line(format!("{letters} {what}"))?;
        }
    }
    plan.warnings.iter().try_for_each(|warning| output::line(format!("warning: {warning}")))
}

fn print_outcome(redrive: &Redrive) -> io::Result<()> {
    let letters = redrive.letters();
    let mut text = format!("{} sent", counted(letters.sent(), "letter"));
    for (count, what) in [
        (letters.resolved, "handled"),
        (letters.failed_again, "failed again"),
        (letters.silent, "silent"),
        (letters.dropped, "taken by somebody else meanwhile"),
        (letters.refused, "refused and put back"),
        (letters.unsent(), "not sent"),
    ] {
        if count > 0 {
            text.push_str(&format!(", {count} {what}"));
        }
    }
    output::line(text)?;
    output::line(format!("redrive {}: outcomes with `redrives show`", redrive.plan.id))
}

/// How a redrive that nobody waits for any more ends the program.
pub(super) fn ended(redrive: &Redrive) -> Result<Exit, Failure> {
    let id = &redrive.plan.id;
    let why = redrive.standing.why.as_deref().unwrap_or("nobody said why");
    let (what, hint) = match redrive.standing.run {
        Run::Stopped => {
            (format!("redrive {id} ended itself: {why}"), format!("{LEFT}; mend the cause and make another"))
        }
        Run::Paused => {
            (format!("redrive {id} is paused: {why}"), format!("mend the cause, then `redrives resume {id}`"))
        }
        Run::Cancelled => (format!("redrive {id} was cancelled: {why}"), LEFT.to_owned()),
        Run::Running | Run::Done if redrive.letters().refused > 0 => (
            format!("{} letters were refused and put back", redrive.letters().refused),
            "their histories say why: `dead-letters show ID`; mend the cause and redrive them again"
                .to_owned(),
        ),
        Run::Running | Run::Done => return Ok(Exit::Ok),
    };
    Err(Failure::new(Exit::Failed, what, hint))
}
