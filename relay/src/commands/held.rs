//! `held list`, `release` and `skip`

use std::sync::Arc;

use backstop_core::held_keys::{Ended, Ending, HeldFilter, HeldKey, HeldKeys};
use serde_json::{Value, json};

use crate::audit::Action;
use crate::cli::{HeldChange, HeldCommand};
use crate::commands::outbox::{in_words, named, time};
use crate::commands::{Context, confirm, database};
use crate::config::OutboxConfig;
use crate::exit::{Exit, Failure};
use crate::output::{self, counted, or_dash};

pub(super) async fn run(context: &Context, command: HeldCommand) -> Result<Exit, Failure> {
    match command {
        HeldCommand::Ask(args) => super::held_ask::run(context, &args).await,
        HeldCommand::List { consumer, place, quarantined, after, limit, outbox } => {
            let (_, store) = held_in(context, outbox.as_deref()).await?;
            let filter = HeldFilter { numbers: Vec::new(), consumer, place, quarantined, after };
            list(context, &store.keys(&filter, limit).await.map_err(database)?)
        }
        HeldCommand::Release { change, because } => {
            end(context, &change, Ending::Release, ("held release", because.as_deref())).await
        }
        HeldCommand::Skip { change, because } => {
            end(context, &change, Ending::Skip, ("held skip", Some(&*because))).await
        }
    }
}

/// What is held in the database of the outbox with that name.
async fn held_in<'c>(
    context: &'c Context,
    outbox: Option<&str>,
) -> Result<(&'c OutboxConfig, Arc<dyn HeldKeys>), Failure> {
    let outbox = named(context, outbox)?;
    Ok((outbox, context.outbox(outbox).await?.held))
}

fn list(context: &Context, keys: &[HeldKey]) -> Result<Exit, Failure> {
    if context.is_json() {
        output::json(&keys.iter().map(document).collect::<Vec<Value>>())?;
    } else {
        print(keys)?;
    }
    Ok(Exit::Ok)
}

fn print(keys: &[HeldKey]) -> std::io::Result<()> {
    if keys.is_empty() {
        return output::line("no held keys");
    }
    let row = |key: &HeldKey| {
        let head = &key.head;
        vec![
            head.n.to_string(),
            key.consumer.clone(),
            head.place.clone(),
            head.message_key.to_string(),
            key.state.to_string(),
            key.due_in.map_or_else(|| or_dash(None), in_words),
            key.behind.to_string(),
            head.attempts.to_string(),
            or_dash(head.error.as_deref()),
            time(head.held_since),
        ]
    };
    let header =
        ["N", "CONSUMER", "PLACE", "MESSAGE", "STATE", "DUE IN", "BEHIND", "ATTEMPTS", "ERROR", "HELD SINCE"];
    output::table(&header, keys.iter().map(row))
}

fn document(key: &HeldKey) -> Value {
    let head = &key.head;
    json!({
        "n": head.n,
        "consumer": key.consumer,
        "place": head.place,
        "message": head.message_key.as_str(),
        "generation": head.generation(),
        "state": key.state.as_str(),
        "due_in_seconds": key.due_in.map(|due| due.as_secs_f64()),
        "behind": key.behind,
        "attempts": head.attempts,
        "class": head.class.map(|class| class.as_str()),
        "error": head.error,
        "held_since": time(head.held_since),
    })
}

/// Shows what is meant, asks, and ends the wait for each.
async fn end(
    context: &Context,
    change: &HeldChange,
    ending: Ending,
    (what, because): (&str, Option<&str>),
) -> Result<Exit, Failure> {
    let (outbox, store) = held_in(context, change.outbox.as_deref()).await?;
    let filter = HeldFilter { numbers: change.numbers.clone(), ..HeldFilter::default() };
    let at_most = u32::try_from(change.numbers.len()).unwrap_or(u32::MAX);
    let keys = store.keys(&filter, at_most).await.map_err(database)?;
    if !context.is_json() {
        print(&keys)?;
    }
    if change.dry_run || keys.is_empty() {
        return report(context, change, &keys, &[], because);
    }
    if !change.yes {
        confirm(&format!("{ending} {}?", counted(keys.len() as u64, "message")), "nothing was changed")?;
    }
    let choice = change.choice();
    let action = Action::on_rows(context, what, &outbox.name, &choice, because).await;
    action.begins(keys.len() as u64).await?;
    let mut ended = Vec::with_capacity(keys.len());
    for key in &keys {
        // Of the failure that was shown, and of no later one.
        let generation = Some(key.head.generation());
        match store.end(&key.consumer, &key.head.message_key, ending, generation).await {
            Ok(outcome) => ended.push(outcome),
            Err(error) => {
                action.failed(done(&ended), &error.to_string()).await;
                return Err(Failure::database(&error));
            }
        }
    }
    action.ended(done(&ended)).await;
    report(context, change, &keys, &ended, because)
}

fn done(ended: &[Ended]) -> u64 {
    ended.iter().filter(|ended| **ended == Ended::Done).count() as u64
}

/// Says what became of each; a failure unless all that were named were ended, or nothing was to be done.
fn report(
    context: &Context,
    change: &HeldChange,
    keys: &[HeldKey],
    ended: &[Ended],
    because: Option<&str>,
) -> Result<Exit, Failure> {
    let missing = change.numbers.iter().filter(|n| !keys.iter().any(|key| key.head.n == **n));
    let missing: Vec<i64> = missing.copied().collect();
    if context.is_json() {
        let outcomes = keys.iter().enumerate().map(|(at, key)| {
            let outcome = ended.get(at).map(|ended| words(*ended));
            json!({ "key": document(key), "outcome": outcome })
        });
        let mut document = json!({ "keys": outcomes.collect::<Vec<Value>>(), "missing": missing });
        if let Some(because) = because {
            document["because"] = because.into();
        }
        output::json(&document)?;
    } else {
        for (key, ended) in keys.iter().zip(ended) {
            output::line(format!("{} {}", key.head.n, words(*ended)))?;
        }
        for n in &missing {
            output::line(format!("{n} is not the head of a held key"))?;
        }
    }
    let all_well = missing.is_empty() && done(ended) == ended.len() as u64;
    Ok(if all_well { Exit::Ok } else { Exit::Failed })
}

fn words(ended: Ended) -> &'static str {
    match ended {
        Ended::Done => "done",
        Ended::AlreadyHandled => "was handled meanwhile",
        Ended::NotHeld => "is not held any more",
        Ended::NotQuarantined => "is still tried: released, it would be lost",
        Ended::Redriven => "was redriven meanwhile",
        Ended::Busy => "is at work just now: ask again",
    }
}
