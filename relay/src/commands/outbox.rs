//! `outbox …`

use std::time::Duration;

use chrono::{DateTime, SecondsFormat, Utc};

use crate::cli::OutboxCommand;
use crate::commands::Context;
use crate::config::OutboxConfig;
use crate::exit::{Exit, Failure};

pub(super) async fn run(context: &Context, command: OutboxCommand) -> Result<Exit, Failure> {
    match command {
        OutboxCommand::Status => super::outbox_status::run(context).await,
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
