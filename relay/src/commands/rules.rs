//! `rules …`

use std::sync::Arc;

use backstop_core::ConsumerReport;
use backstop_core::ledger::{Ledger, Redrive};
use backstop_core::report::escaped;
use backstop_core::schema::Finding;
use chrono::{DateTime, Utc};
use serde_json::{Value, json};

use crate::audit::{self, Action};
use crate::cli::{RuleRun, RulesCommand};
use crate::commands::outbox::time;
use crate::commands::redrive::{Wish, by_hand};
use crate::commands::{Context, database};
use crate::config::{Config, RuleConfig};
use crate::exit::{Exit, Failure};
use crate::output::{self, or_dash};
use crate::rules::{Fired, Memory, RESUME, Scene, Standing, View, lease_name, wanted};

pub(super) async fn run(context: &Context, command: RulesCommand) -> Result<Exit, Failure> {
    match command {
        RulesCommand::List => list(context).await?,
        RulesCommand::Run(args) => return run_one(context, args).await,
        RulesCommand::Resume { name, because } => resume(context, &name, &because).await?,
    }
    Ok(Exit::Ok)
}

/// What rules are looked at with.
struct Look {
    ledger: Arc<dyn Ledger>,
    reports: Vec<ConsumerReport>,
    now: DateTime<Utc>,
    memory: Option<Memory>,
}

impl Look {
    async fn at(context: &Context) -> Result<Self, Failure> {
        let ledger = context.ledger().await?;
        let holder = ledger.holder(&lease_name(&context.config.dead_letters)).await.map_err(database)?;
        let memory = holder.and_then(|holder| holder.report).map(|report| Memory::read(&report.text));
        let reports = ledger.consumers().await.map_err(database)?;
        let now = ledger.time().await.map_err(database)?;
        Ok(Self { ledger, reports, now, memory })
    }

    fn scene<'a>(&'a self, rule: &'a RuleConfig) -> Scene<'a> {
        Scene::of(rule, &self.reports, self.now)
    }

    async fn view<'a>(&self, config: &Config, rule: &'a RuleConfig) -> Result<View<'a>, Failure> {
        let (letters, memory) = (&config.dead_letters, self.memory.as_ref());
        View::of(&*self.ledger, letters, rule, memory, &self.scene(rule)).await.map_err(database)
    }
}

fn named<'a>(context: &'a Context, name: &str) -> Result<&'a RuleConfig, Failure> {
    let rules = &context.config.dead_letters.rules;
    rules.iter().find(|rule| rule.name == name).ok_or_else(|| {
        let what = format!("there is no rule {:?} in {}", escaped(name), context.global.config.display());
        let names: Vec<&str> = rules.iter().map(|rule| rule.name.as_str()).collect();
        let hint = match names.is_empty() {
            true => "write one with [[dead_letters.rules]]".to_owned(),
            false => format!("name one of {}", names.join(", ")),
        };
        Failure::new(Exit::Usage, what, hint)
    })
}

async fn list(context: &Context) -> Result<(), Failure> {
    let rules = &context.config.dead_letters.rules;
    if rules.is_empty() && !context.is_json() {
        return Ok(output::line("no rules: nothing is redriven unless somebody asks for it")?);
    }
    let look = Look::at(context).await?;
    let mut views = Vec::new();
    for rule in rules {
        views.push(look.view(&context.config, rule).await?);
    }
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
        view.takes.to_string(),
        stands(&view.standing),
        or_dash(view.last.as_ref().map(|(fired, _)| time(fired.at)).as_deref()),
        or_dash(view.last.as_ref().map(|(fired, _)| made(fired)).as_deref()),
        or_dash(redrive.map(|redrive| redrive.standing.run.as_str())),
    ]
}

/// Which letters a rule takes, as its section says.
fn choice(rule: &RuleConfig) -> String {
    let since = rule.since.map(|since| humantime::format_duration(since).to_string());
    let all = [
        ("consumer", Some(&rule.consumer)),
        ("place", rule.place.as_ref()),
        ("class", rule.class.as_ref()),
        ("reason", rule.reason.as_ref()),
        ("fingerprint", rule.fingerprint.as_ref()),
        ("error", rule.error.as_ref()),
        ("header", rule.header.as_ref()),
        ("key", rule.key.as_ref()),
        ("since", since.as_ref()),
    ];
    let given = all.into_iter().filter_map(|(name, value)| Some(format!("{name}={}", value?)));
    given.collect::<Vec<_>>().join(" ")
}

fn stands(standing: &Standing) -> String {
    match standing {
        Standing::Blocked { why, .. } => format!("cannot fire: {why}"),
        Standing::Unattended => "no relay attends to it yet".to_owned(),
        Standing::Watching => "watching".to_owned(),
        Standing::Waiting { after, since, behind } => {
            let behind = behind.as_ref().map(|id| format!("; redrive {id} is not over")).unwrap_or_default();
            format!("waits since {}: {after}{behind}", time(*since))
        }
        Standing::Resting { why } => format!("rests: {why}"),
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
    json!({ "rule": view.rule, "sends_now": view.takes, "standing": view.standing, "last": last })
}

/// What the rule would do, done by whoever asks for it.
async fn run_one(context: &Context, args: RuleRun) -> Result<Exit, Failure> {
    let rule = named(context, &args.name)?;
    context.broker()?;
    let look = Look::at(context).await?;
    let mut new = wanted(&context.config.dead_letters, rule, &look.scene(rule));
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
    let look = Look::at(context).await?;
    let view = look.view(&context.config, rule).await?;
    let (Standing::Resting { .. }, Some((_, Some(Redrive { plan, .. })))) = (&view.standing, &view.last)
    else {
        let what = format!("rule {name} does not rest");
        return Err(Failure::new(Exit::Failed, what, "see how it stands with `rules list`"));
    };
    let action = Action::on_letters(&look.ledger, RESUME, name, Some(because)).about(&plan.id);
    action.begins(view.takes).await?;
    action.ended(view.takes).await;
    let now = look.view(&context.config, rule).await?;
    if let Standing::Resting { why } = now.standing {
        let what = format!("rule {name} still rests: {why}");
        return Err(Failure::new(Exit::Failed, what, "look at the log of this command, and try again"));
    }
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
