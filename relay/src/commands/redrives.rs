//! `redrives …`

use std::cell::RefCell;
use std::sync::Arc;

use backstop_core::ledger::course::NotNow;
use backstop_core::ledger::{Ledger, Redrive, Standing};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use crate::audit::Action;
use crate::cli::RedrivesCommand;
use crate::commands::outbox::time;
use crate::commands::redrive::{ended, follow};
use crate::commands::{Context, database};
use crate::desk::filter::without_secrets;
use crate::exit::{Exit, Failure};
use crate::output;

pub(super) async fn run(context: &Context, command: RedrivesCommand) -> Result<Exit, Failure> {
    let ledger = context.ledger().await?;
    match command {
        RedrivesCommand::List { limit, after } => list(context, &*ledger, after.as_deref(), limit).await?,
        RedrivesCommand::Show { id } => show(context, &find(&*ledger, &id).await?)?,
        RedrivesCommand::Watch { id } => {
            let seen = Box::pin(follow(context, find(&*ledger, &id).await?, true)).await?;
            show(context, &seen)?;
            return ended(&seen);
        }
        RedrivesCommand::Pause { id, because } => {
            let why = because.as_deref().unwrap_or("an operator paused it");
            let what = ("redrives pause", because.as_deref());
            steer(context, &ledger, &id, what, |redrive| redrive.paused(why)).await?;
        }
        RedrivesCommand::Resume { id } => {
            steer(context, &ledger, &id, ("redrives resume", None), Redrive::resumed).await?;
        }
        RedrivesCommand::Cancel { id, because } => {
            let why = || Some(because.clone().unwrap_or_else(|| "an operator cancelled it".to_owned()));
            let what = ("redrives cancel", because.as_deref());
            steer(context, &ledger, &id, what, |redrive| redrive.cancelled(why())).await?;
        }
        RedrivesCommand::Rate { id, rate } => set_rate(context, &ledger, &id, rate).await?,
    }
    Ok(Exit::Ok)
}

async fn find(ledger: &dyn Ledger, id: &str) -> Result<Redrive, Failure> {
    let found = ledger.redrive(id).await.map_err(database)?;
    found.ok_or_else(|| {
        Failure::new(Exit::Failed, format!("there is no redrive {id}"), "look for it with redrives list")
    })
}

async fn list(
    context: &Context,
    ledger: &dyn Ledger,
    after: Option<&str>,
    limit: u32,
) -> Result<(), Failure> {
    let redrives = ledger.redrives(after, limit).await.map_err(database)?;
    if context.is_json() {
        let redrives: Vec<Redrive> = redrives.iter().map(shown).collect();
        return Ok(output::json(&json!({ "redrives": redrives }))?);
    }
    if redrives.is_empty() {
        return Ok(output::line("no redrives")?);
    }
    let row = |redrive: &Redrive| {
        let letters = redrive.letters();
        vec![
            redrive.plan.id.clone(),
            time(redrive.created_at),
            redrive.plan.created_by.clone(),
            standing(redrive),
            letters.sum().to_string(),
            letters.sent().to_string(),
            letters.resolved.to_string(),
            letters.failed_again.to_string(),
            letters.silent.to_string(),
        ]
    };
    let header = ["ID", "MADE", "BY", "STATE", "LETTERS", "SENT", "RESOLVED", "FAILED AGAIN", "SILENT"];
    Ok(output::table(&header, redrives.iter().map(row))?)
}

fn standing(redrive: &Redrive) -> String {
    let Standing { run, phase, .. } = &redrive.standing;
    if run.is_over() { run.as_str().to_owned() } else { format!("{}, {}", run.as_str(), phase.as_str()) }
}

/// The redrive as it may be printed: whoever makes it may choose letters by a secret, and many read what was made.
pub(super) fn shown(redrive: &Redrive) -> Redrive {
    let mut shown = redrive.clone();
    shown.plan.filter = without_secrets(shown.plan.filter);
    shown
}

fn show(context: &Context, redrive: &Redrive) -> Result<(), Failure> {
    let redrive = &shown(redrive);
    if context.is_json() {
        return Ok(output::json(redrive)?);
    }
    let plan = &redrive.plan;
    let filter = serde_json::to_string(&plan.filter).unwrap_or_default();
    let fields = [
        ("id", Some(plan.id.clone())),
        ("made", Some(format!("{} by {}", time(redrive.created_at), plan.created_by))),
        ("because", plan.because.clone()),
        ("letters", Some(filter)),
        ("canary", (plan.canary > 0).then(|| plan.canary.to_string())),
        ("rate", plan.rate.map(|rate| format!("{rate} a second"))),
        ("state", Some(standing(redrive))),
        ("why", redrive.standing.why.clone()),
    ];
    for (name, value) in fields {
        if let Some(value) = value {
            output::line(format!("{name:<16}{}", backstop_core::report::escaped(&value)))?;
        }
    }
    output::line("")?;
    let (canary, rest, all) = (redrive.canary_letters, redrive.other_letters, redrive.letters());
    let rows = [
        ("not sent", canary.unsent(), rest.unsent(), all.unsent()),
        ("waiting", canary.waiting, rest.waiting, all.waiting),
        ("resolved", canary.resolved, rest.resolved, all.resolved),
        ("failed again", canary.failed_again, rest.failed_again, all.failed_again),
        ("silent", canary.silent, rest.silent, all.silent),
        ("unknown", canary.unknown, rest.unknown, all.unknown),
        ("refused", canary.refused, rest.refused, all.refused),
        ("dropped", canary.dropped, rest.dropped, all.dropped),
        ("together", canary.sum(), rest.sum(), all.sum()),
    ];
    let rows = rows.map(|(name, canary, rest, all)| {
        vec![name.to_owned(), canary.to_string(), rest.to_string(), all.to_string()]
    });
    Ok(output::table(&["OUTCOME", "CANARY", "OTHERS", "ALL"], rows)?)
}

/// Asks again where the engine was quicker.
async fn steer(
    context: &Context,
    ledger: &Arc<dyn Ledger>,
    id: &str,
    (what, because): (&str, Option<&str>),
    wish: impl Fn(&Redrive) -> Result<Standing, NotNow>,
) -> Result<(), Failure> {
    let action = Action::on_letters(ledger, what, id, because).about(id);
    action.begins(find(&**ledger, id).await?.letters().sum()).await?;
    loop {
        let redrive = find(&**ledger, id).await?;
        let to = match wish(&redrive) {
            Ok(to) => to,
            Err(error) => {
                action.failed(0, &error.to_string()).await;
                return Err(not_now(&error, id));
            }
        };
        if ledger.steer_redrive(id, &redrive.standing, &to).await.map_err(database)? {
            action.ended(redrive.letters().sum()).await;
            return told(context, &**ledger, id).await;
        }
    }
}

async fn set_rate(context: &Context, ledger: &Arc<dyn Ledger>, id: &str, rate: f64) -> Result<(), Failure> {
    let redrive = find(&**ledger, id).await?;
    let choice = format!("rate={rate}");
    let action = Action::on_letters(ledger, "redrives rate", &choice, None).about(id);
    action.begins(redrive.letters().sum()).await?;
    if !ledger.set_redrive_rate(id, Some(rate)).await.map_err(database)? {
        let error = NotNow(redrive.standing.run);
        action.failed(0, &error.to_string()).await;
        return Err(not_now(&error, id));
    }
    action.ended(redrive.letters().sum()).await;
    told(context, &**ledger, id).await
}

fn not_now(error: &NotNow, id: &str) -> Failure {
    Failure::new(Exit::Failed, error.to_string(), format!("look at it with `redrives show {id}`"))
}

async fn told(context: &Context, ledger: &dyn Ledger, id: &str) -> Result<(), Failure> {
    let redrive = find(ledger, id).await?;
    if context.is_json() {
        return Ok(output::json(&shown(&redrive))?);
    }
    Ok(output::line(format!("redrive {id}: {}", standing(&redrive)))?)
}

/// A bar on a terminal, with the rate and the time that is left; nothing elsewhere.
pub(super) struct Progress {
    bar: RefCell<Option<ProgressBar>>,
    silent: bool,
}

impl Progress {
    pub(super) fn new(context: &Context) -> Self {
        Self { bar: RefCell::new(None), silent: context.is_json() }
    }

    pub(super) fn show(&self, redrive: &Redrive) {
        if self.silent {
            return;
        }
        let letters = redrive.letters();
        let mut bar = self.bar.borrow_mut();
        let bar = bar.get_or_insert_with(|| {
            let template = "{bar:30} {pos}/{len} sent, {per_sec:.0}, {eta} left; {msg}";
            let style =
                ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
            ProgressBar::new(letters.sum()).with_style(style)
        });
        bar.set_position(letters.sum() - letters.unsent());
        bar.set_message(format!("{} resolved, {} failed again", letters.resolved, letters.failed_again));
    }

    pub(super) fn end(&self) {
        if let Some(bar) = self.bar.borrow_mut().take() {
            bar.finish_and_clear();
        }
    }
}
