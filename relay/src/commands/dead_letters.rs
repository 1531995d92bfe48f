//! `dead-letters groups`, `list` and `show`

use backstop_core::ledger::{
    COUNT_LIMIT, Ledger, Letter, LetterEvent, LetterFilter, LetterGroup, Outcome, StatusCounts,
};
use backstop_core::report::escaped;
use serde_json::json;

use crate::audit::Action;
use crate::cli::{DeadLettersCommand, Filter};
use crate::commands::outbox::time;
use crate::commands::{Context, content, database, letter_changes, letter_edit, letter_files, reencrypt};
use crate::encryption::{Keyring, Locked, key_of, size_of};
use crate::exit::{Exit, Failure};
use crate::output::{self, or_dash};

pub(super) async fn run(context: &Context, command: DeadLettersCommand) -> Result<Exit, Failure> {
    match command {
        DeadLettersCommand::Groups { filter, limit } => groups(context, &filter, limit).await?,
        DeadLettersCommand::List { filter, limit, after } => {
            list(context, &filter, limit, after.as_deref()).await?
        }
        DeadLettersCommand::Show { id, reveal } => show(context, &id, reveal).await?,
        DeadLettersCommand::Redrive(redrive) => return super::redrive::run(context, *redrive).await,
        DeadLettersCommand::Edit(edit) => letter_edit::run(context, &edit).await?,
        DeadLettersCommand::Discard(change) => return letter_changes::discard(context, &change).await,
        DeadLettersCommand::Hold { change, end } => return letter_changes::hold(context, &change, end).await,
        DeadLettersCommand::Export { filter, to } => {
            letter_files::export(context, &filter, to.as_deref()).await?;
        }
        DeadLettersCommand::Archive => letter_files::archive(context).await?,
        DeadLettersCommand::Import { file } => letter_files::import(context, &file).await?,
        DeadLettersCommand::Reencrypt { dry_run } => reencrypt::run(context, dry_run).await?,
    }
    Ok(Exit::Ok)
}

/// How many letters a filter means, as people read it.
pub(super) fn many(filter: &LetterFilter, count: u64) -> String {
    if count > COUNT_LIMIT && !filter.is_by_group() {
        format!("more than {COUNT_LIMIT}")
    } else {
        count.to_string()
    }
}

async fn groups(context: &Context, filter: &Filter, limit: u32) -> Result<(), Failure> {
    let ledger = context.ledger().await?;
    let filter = filter.in_ledger();
    let groups = ledger.groups(&filter, limit).await.map_err(database)?;
    let all = ledger.count(&filter).await.map_err(database)?;
    if context.is_json() {
        return Ok(output::json(&json!({ "groups": groups, "matching": all }))?);
    }
    if groups.is_empty() {
        return Ok(output::line("no letters")?);
    }
    output::table(
        &[
            "LETTERS",
            "LAST HOUR",
            "CONSUMER",
            "PLACE",
            "CLASS",
            "REASON",
            "LAST SEEN",
            "FINGERPRINT",
            "ERROR",
        ],
        groups.iter().map(group_row),
    )?;
    let shown: u64 = groups.iter().map(|group| group.letters).sum();
    output::line(format!("\n{shown} of {} letters", many(&filter, all)))?;
    if filter.status.is_none() {
        output::line(by_status(&groups))?;
    }
    Ok(())
}

/// How many letters of the groups stand where.
fn by_status(groups: &[LetterGroup]) -> String {
    let sum = |of: fn(&StatusCounts) -> u64| -> u64 { groups.iter().map(|group| of(&group.by_status)).sum() };
    let sums = [
        (sum(|counts| counts.open), "open"),
        (sum(|counts| counts.redriving), "redriving"),
        (sum(|counts| counts.resolved), "resolved"),
        (sum(|counts| counts.discarded), "discarded"),
        (sum(|counts| counts.superseded), "superseded: failed again, or edited"),
    ];
    let told = sums.iter().filter(|(letters, _)| *letters > 0);
    told.map(|(letters, status)| format!("{letters} {status}")).collect::<Vec<_>>().join(", ")
}

fn group_row(group: &LetterGroup) -> Vec<String> {
    vec![
        group.letters.to_string(),
        group.last_hour.to_string(),
        or_dash(group.consumer.as_deref()),
        or_dash(group.place.as_deref()),
        or_dash(group.class.as_deref()),
        or_dash(group.reason.as_deref()),
        time(group.last_seen),
        or_dash(group.fingerprint.as_deref()),
        or_dash(group.error.as_deref()),
    ]
}

async fn list(context: &Context, filter: &Filter, limit: u32, after: Option<&str>) -> Result<(), Failure> {
    let ledger = context.ledger().await?;
    let filter = filter.in_ledger();
    let letters = ledger.list(&filter, after, limit).await.map_err(database)?;
    let all = ledger.count(&filter).await.map_err(database)?;
    if context.is_json() {
        return Ok(output::json(&json!({ "letters": letters, "matching": all }))?);
    }
    if letters.is_empty() {
        return Ok(output::line("no letters")?);
    }
    output::table(
        &["ID", "STATUS", "CONSUMER", "PLACE", "REASON", "ATTEMPTS", "DEAD AT", "ERROR"],
        letters.iter().map(row),
    )?;
    Ok(output::line(format!("\n{} of {} letters", letters.len(), many(&filter, all)))?)
}

fn row(letter: &Letter) -> Vec<String> {
    vec![
        letter.id.clone(),
        letter.status.to_string(),
        or_dash(letter.consumer.as_deref()),
        letter.place.clone().unwrap_or_else(|| letter.found_in.clone()),
        or_dash(letter.reason.as_deref()),
        or_dash(letter.attempts.map(|attempts| attempts.to_string()).as_deref()),
        or_dash(letter.dead_at.map(time).as_deref()),
        or_dash(letter.error.as_deref()),
    ]
}

async fn show(context: &Context, id: &str, reveal: bool) -> Result<(), Failure> {
    let ledger = context.ledger().await?;
    let action = Action::on_letters(&ledger, "dead-letters show --reveal", id, None);
    if reveal {
        action.begins(1).await?;
    }
    let mut letter = one(&*ledger, id).await?;
    let history = ledger.history(id).await.map_err(database)?;
    if reveal {
        action.ended(1).await;
    }
    let keys = context.keys();
    let (bytes, encryption) = (size_of(&letter), encryption(&letter, &keys));
    let locked = if reveal { keys.open(&mut letter).err() } else { None };
    if context.is_json() {
        let mut content = if reveal {
            content::revealed(&letter.envelope, locked.as_ref())
        } else {
            content::hidden(&letter.envelope, bytes)
        };
        content["encryption"] = json!(encryption);
        output::json(&json!({ "letter": letter, "history": history, "content": content }))?;
        return told(locked.as_ref());
    }
    for (name, value) in fields(&letter).into_iter().chain([("encryption", encryption)]) {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            output::line(format!("{name:<16}{}", escaped(&value)))?;
        }
    }
    output::line("\nhistory")?;
    let event = |event: &LetterEvent| {
        vec![format!("  {}", time(event.at)), event.what.clone(), or_dash(event.detail.as_deref())]
    };
    output::table(&["  AT", "WHAT", "DETAIL"], history.iter().map(event))?;
    match reveal {
        true => content::print_revealed(&letter.envelope, locked.as_ref())?,
        false => content::print_hidden(&letter.envelope, bytes)?,
    }
    told(locked.as_ref())
}

/// The letter of that id.
pub(super) async fn one(ledger: &dyn Ledger, id: &str) -> Result<Letter, Failure> {
    let filter = LetterFilter { ids: vec![id.to_owned()], ..LetterFilter::default() };
    let found = ledger.list(&filter, None, 1).await.map_err(database)?;
    found.into_iter().next().ok_or_else(|| {
        let what = format!("the ledger has no letter {id}");
        Failure::new(Exit::Failed, what, "look for it with dead-letters list --status all")
    })
}

/// How the body is stored; `None` where it is in clear.
fn encryption(letter: &Letter, keys: &Keyring) -> Option<String> {
    match (keys.locked(letter), key_of(letter)) {
        (Some(Locked::NoKey(key)), _) => Some(format!("with key {key}, which is not configured")),
        (Some(locked), _) => Some(locked.to_string()),
        (None, key) => key.map(|key| format!("with key {key}")),
    }
}

/// A body that was asked for and cannot be shown is a failure.
fn told(locked: Option<&Locked>) -> Result<(), Failure> {
    locked.map_or(Ok(()), |locked| Err(Failure::new(Exit::Failed, locked.to_string(), locked.hint())))
}

fn fields(letter: &Letter) -> [(&'static str, Option<String>); 19] {
    [
        ("id", Some(letter.id.clone())),
        ("status", Some(letter.status.to_string())),
        ("consumer", letter.consumer.clone()),
        ("place", letter.place.clone()),
        ("found in", Some(letter.found_in.clone())),
        ("door", Some(letter.door.clone().unwrap_or_else(|| "none: it cannot be redriven".to_owned()))),
        ("reason", letter.reason.clone()),
        ("class", letter.class.clone()),
        ("error type", letter.error_type.clone()),
        ("error", letter.error.clone()),
        ("fingerprint", letter.fingerprint.clone()),
        ("attempts", letter.attempts.map(|attempts| attempts.to_string())),
        ("redriven", Some(format!("{} times before", letter.generation))),
        ("outcome", letter.outcome.map(Outcome::as_str).map(str::to_owned)),
        ("last redrive", letter.redrive.clone()),
        ("legal hold", letter.hold.clone()),
        ("first failed", letter.first_failed_at.map(time)),
        ("dead since", letter.dead_at.map(time)),
        ("collected", Some(time(letter.collected_at))),
    ]
}
