//! `outbox status`

use std::time::Duration;

use backstop_core::lease::Holder;
use backstop_core::outbox::OutboxStatus;
use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::{Value, json};

use crate::cli::OutboxCommand;
use crate::commands::{Context, database};
use crate::config::OutboxConfig;
use crate::exit::{Exit, Failure};
use crate::output::{self, or_dash};

pub(super) async fn run(context: &Context, command: OutboxCommand) -> Result<Exit, Failure> {
    match command {
        OutboxCommand::Status => status(context).await,
        OutboxCommand::Dead(command) => super::outbox_dead::run(context, command).await,
    }
}

/// The outbox of that name; the only one, where none is named.
pub(super) fn named<'c>(context: &'c Context, name: Option<&str>) -> Result<&'c OutboxConfig, Failure> {
    let outboxes = &context.config.outbox;
    let found = match name {
        Some(name) => outboxes.iter().find(|outbox| outbox.name == name),
        None => outboxes.first().filter(|_| outboxes.len() == 1),
    };
    found.ok_or_else(|| {
        let names: Vec<&str> = outboxes.iter().map(|outbox| outbox.name.as_str()).collect();
        let what = match name {
            Some(name) => format!("there is no outbox {name:?} in {}", context.global.config.display()),
            None => format!("{} has {} outboxes", context.global.config.display(), names.len()),
        };
        Failure::new(Exit::Usage, what, format!("name one with --outbox: {}", names.join(", ")))
    })
}

type Standing<'a> = (&'a str, OutboxStatus, Option<Holder>);

async fn status(context: &Context) -> Result<Exit, Failure> {
    let mut all = Vec::new();
    for outbox in &context.config.outbox {
        let store = context.outbox(outbox).await?.outbox;
        let status = store.status().await.map_err(database)?;
        all.push((outbox.name.as_str(), status, store.holder(&outbox.name).await.map_err(database)?));
    }
    if context.is_json() {
        let document = |(name, status, holder): &Standing<'_>| {
            json!({
                "name": name,
                "pending": status.pending,
                "oldest_seconds": status.oldest.map(|age| age.as_secs_f64()),
                "dead": status.dead,
                "scheduled": status.scheduled,
                "next_due": status.next_due.map(time),
                "owner": holder.as_ref().map(|holder| &holder.lease.owner),
                "token": holder.as_ref().map(|holder| holder.lease.token),
                "lease_seconds": holder.as_ref().map(|holder| holder.remaining.as_secs_f64()),
            })
        };
        output::json(&all.iter().map(document).collect::<Vec<Value>>())?;
        return Ok(Exit::Ok);
    }
    let age = |age: Option<Duration>| age.map_or_else(|| "-".to_owned(), in_words);
    let row = |(name, status, holder): &Standing<'_>| {
        vec![
            (*name).to_owned(),
            status.pending.to_string(),
            age(status.oldest),
            status.dead.to_string(),
            status.scheduled.to_string(),
            or_dash(status.next_due.map(time).as_deref()),
            or_dash(holder.as_ref().map(|holder| holder.lease.owner.as_str())),
            age(holder.as_ref().map(|holder| holder.remaining)),
        ]
    };
    let header = ["OUTBOX", "PENDING", "OLDEST", "DEAD", "SCHEDULED", "NEXT DUE", "OWNER", "LEASE ENDS IN"];
    output::table(&header, all.iter().map(row))?;
    Ok(Exit::Ok)
}

/// A time as tables and documents show it.
pub(crate) fn time(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Millis, true)
}

/// An age, in whole seconds above one second.
pub(crate) fn in_words(age: Duration) -> String {
    let age = if age.as_secs() > 0 {
        Duration::from_secs(age.as_secs())
    } else {
        Duration::from_millis(age.subsec_millis().into())
    };
    humantime::format_duration(age).to_string()
}
