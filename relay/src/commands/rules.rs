//! `rules …`

use backstop_core::ledger::Ledger;
use backstop_core::schema::Finding;
use chrono::Utc;
use serde_json::{Value, json};

use crate::audit::{self, Action};
use crate::cli::{RuleRun, RulesCommand};
use crate::commands::outbox::time;
use crate::commands::redrive::{Wish, by_hand};
use crate::commands::{Context, database};
use crate::config::{Config, RuleConfig};
use crate::exit::{Exit, Failure};
use crate::output::{self, or_dash};
use crate::rules::{self, Fired, Look, NONE, NoRule, RESUME, Scene, Standing, View, choice};

/// Every letter is judged, however many match.
const EVERY: u64 = u64::MAX;

pub(super) async fn run(context: &Context, command: RulesCommand) -> Result<Exit, Failure> {
    match command {
        RulesCommand::List => list(context).await?,
        RulesCommand::Run(args) => return run_one(context, args).await,
        RulesCommand::Resume { name, because } => resume(context, &name, &because).await?,
    }
    Ok(Exit::Ok)
}

/// What rules are looked at with.
async fn look<'a>(context: &'a Context, ledger: &'a dyn Ledger) -> Result<Look<'a>, Failure> {
    Look::at(ledger, &context.config.dead_letters).await.map_err(database)
}

fn named<'a>(context: &'a Context, name: &str) -> Result<&'a RuleConfig, Failure> {
    rules::named(&context.config.dead_letters, name).map_err(|NoRule { what, hint }| {
        let what = format!("{what} in {}", context.global.config.display());
        Failure::new(Exit::Usage, what, hint)
    })
}

async fn list(context: &Context) -> Result<(), Failure> {
    let rules = &context.config.dead_letters.rules;
    if rules.is_empty() && !context.is_json() {
        return Ok(output::line(NONE)?);
    }
    let ledger = context.ledger().await?;
    let views = look(context, &*ledger).await?.views(EVERY).await.map_err(database)?;
    if context.is_json() {
        let rules: Vec<Value> = views.iter().map(document).collect();
        return Ok(output::json(&json!({ "rules": rules }))?);
    }
    let header = ["NAME", "AFTER", "LETTERS", "SENDS NOW", "STANDS", "LAST FIRED", "REDRIVE", "STATE"];
    output::table(&header, views.iter().map(row))?;
    for view in &views {
        if let Standing::Blocked { remedy, .. } = &view.standing {
            output::line(format!("mend {}: {remedy}", view.rule.name))?;
        }
    }
    Ok(())
}

fn row(view: &View<'_>) -> Vec<String> {
    let redrive = view.last.as_ref().and_then(|(_, redrive)| redrive.as_ref());
    let made = |fired: &Fired| fired.redrive.clone().unwrap_or_else(|| "nothing to send".to_owned());
    vec![
        view.rule.name.clone(),
        view.rule.after.as_str().to_owned(),
        choice(view.rule),
        view.takes.sent.to_string(),
        stands(&view.standing),
        or_dash(view.last.as_ref().map(|(fired, _)| time(fired.at)).as_deref()),
        or_dash(view.last.as_ref().map(|(fired, _)| made(fired)).as_deref()),
        or_dash(redrive.map(|redrive| redrive.standing.run.as_str())),
    ]
}

fn stands(standing: &Standing) -> String {
    let words = standing.words();
    match standing {
        Standing::Unattended | Standing::Watching => words.to_owned(),
        Standing::Blocked { why, .. } | Standing::Resting { why } => format!("{words}: {why}"),
        Standing::Waiting { after, since, behind } => {
            let behind = behind.as_ref().map(|id| format!("; redrive {id} is not over")).unwrap_or_default();
            format!("{words} since {}: {after}{behind}", time(*since))
        }
    }
}

fn document(view: &View<'_>) -> Value {
    let last = view.last.as_ref().map(|(fired, redrive)| {
        json!({
            "at": fired.at,
            "after": fired.after,
            "redrive": fired.redrive,
            "run": redrive.as_ref().map(|redrive| redrive.standing.run),
        })
    });
    json!({ "rule": view.rule, "sends_now": view.takes.sent, "standing": view.standing, "last": last })
}

/// What the rule would do, done by whoever asks for it.
async fn run_one(context: &Context, args: RuleRun) -> Result<Exit, Failure> {
    let rule = named(context, &args.name)?;
    context.broker()?;
    let ledger = context.ledger().await?;
    let mut new = look(context, &*ledger).await?.wanted(rule);
    new.created_by = audit::user().unwrap_or_else(|| "unknown".to_owned());
    new.because = Some(args.because.unwrap_or_else(|| format!("rule {} by hand", rule.name)));
    let wish = Wish {
        new,
        what: "rules run",
        choice: choice(rule),
        left_alone: "see the plan: rules send through doors alone, and after a breaker closed nothing that was redriven \
                     before; `dead-letters redrive` sends more",
        wait: args.wait,
        dry_run: args.dry_run,
        yes: args.yes,
    };
    by_hand(context, wish).await
}

/// The entry in the audit log is what the relay goes by, so that it is looked at once more.
async fn resume(context: &Context, name: &str, because: &str) -> Result<(), Failure> {
    let rule = named(context, name)?;
    let ledger = context.ledger().await?;
    let look = look(context, &*ledger).await?;
    let view = look.view(rule, EVERY).await.map_err(database)?;
    let failed = |hint: &'static str| move |what| Failure::new(Exit::Failed, what, hint);
    let redrive = view.rests_after().map_err(failed("see how it stands with `rules list`"))?;
    let action = Action::on_letters(&ledger, RESUME, name, Some(because)).about(redrive);
    action.begins(view.takes.sent).await?;
    action.ended(view.takes.sent).await;
    let now = look.view(rule, EVERY).await.map_err(database)?;
    now.is_resumed().map_err(failed("look at the log of this command, and try again"))?;
    if context.is_json() {
        return Ok(output::json(&document(&now))?);
    }
    Ok(output::line(format!("rule {name} fires again when its time comes: {}", stands(&now.standing)))?)
}

/// Rules that can never fire, for `check`. Where the ledger does not answer only the configuration is judged.
pub(super) async fn findings(config: &Config, ledger: Option<&dyn Ledger>) -> Vec<Finding> {
    let told = match ledger {
        Some(ledger) => ledger.consumers().await.ok().zip(ledger.time().await.ok()),
        None => None,
    };
    let letters = &config.dead_letters;
    if letters.enabled && told.is_none() {
        return Vec::new();
    }
    let (reports, now) = told.unwrap_or_else(|| (Vec::new(), Utc::now()));
    let look = |rule: &RuleConfig| {
        let subject = format!("rule {}", rule.name);
        match Standing::blocked(letters, rule, &Scene::of(rule, &reports, now)) {
            Some(Standing::Blocked { why, remedy }) => Finding::warning(subject, why, remedy),
            _ => Finding::fine(subject, "its consumer tells what it waits for"),
        }
    };
    letters.rules.iter().map(look).collect()
}
